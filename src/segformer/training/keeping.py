"""The models of the last and the best validations, each in a folder of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from segformer.files import whole_folder
from segformer.training.task import Model

NO_SCORE = -1.0
"""Score of a model that was not validated."""


def steps_to_keep(scores: Mapping[int, float], last: int, best: int) -> set[int]:
    """Steps of the ``last`` last and the ``best`` best models; of equal scores the earlier.

    Args:
        scores: Score by step.
        last: How many of the last are kept.
        best: How many of the best are kept; a model without a score is none of them.
    """
    newest = sorted(scores, reverse=True)[:last]
    scored = [step for step, score in scores.items() if score > NO_SCORE]
    return {*newest, *sorted(scored, key=lambda step: (-scores[step], step))[:best]}


def keep_model(
    folder: Path, model: Model, step: int, scores: dict[int, float], last: int, best: int
) -> None:
    """Save a model as ``folder/step-00001000`` if it is to be kept, and delete those that are not.

    Args:
        folder: Where the models are.
        model: The model of this step.
        step: Number of the step.
        scores: Score by step, that of this step included; steps that are not kept are removed.
        last: How many of the last are kept.
        best: How many of the best are kept.
    """
    kept = steps_to_keep(scores, last, best)
    if step in kept:
        with whole_folder(folder / _name(step)) as partial:
            model.save_pretrained(partial)
    for other in scores.keys() - kept:
        del scores[other]
    names = set(map(_name, kept))
    for path in model_folders(folder):  # also those of steps that a resumed run does again
        if path.name not in names:
            shutil.rmtree(path)


def model_folders(folder: Path) -> list[Path]:
    """The folders of models in ``folder``, by step."""
    if not folder.is_dir():
        return []
    return sorted(
        p for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"step-\d{8,}", p.name)
    )


def _name(step: int) -> str:
    return f"step-{step:08}"
