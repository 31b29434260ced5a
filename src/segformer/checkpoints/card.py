"""The card of a published model, written from the files of its training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.layout import Description

_OF_INTEREST = (
    "variant pretrained epochs max_steps batch_size accumulate_grad_batches devices crop_size lr "
    "head_lr_factor weight_decay warmup_steps schedule ema_decay precision seed"
).split()


def model_card(
    model: Description,
    model_id: str,
    *,
    run: str | Path | None = None,
    license: str | None = None,
) -> str:
    """The text of ``README.md``: what the model is, its use, its scores and its training.

    Args:
        model: The model.
        model_id: OWNER/NAME.
        run: Folder of its training run. Default: a card that states no scores.
        license: As the Hub names licenses, such as "apache-2.0".

    Raises:
        CheckpointError: ``run`` has no readable ``report.json`` or ``config.yaml``.
    """
    report, recipe = _read_run(Path(run)) if run is not None else ({}, {})
    segmenter = model.kind == "segmenter"
    title = f"SegFormer-{(model.config.variant or 'custom size').upper()}"
    front: dict[str, Any] = {"library_name": "segformer"}
    if license is not None:
        front["license"] = license
    front["pipeline_tag"] = "image-segmentation" if segmenter else "image-classification"
    front["tags"] = ["segformer", "semantic-segmentation" if segmenter else "classification"]
    if report:
        front["model-index"] = [_index_entry(model_id, front["pipeline_tag"], report)]
    classes = ", ".join(model.classes.names[:40])
    more = f" and {len(model.classes) - 40} more" if len(model.classes) > 40 else ""
    use = (
        f'predictor = segformer.Predictor("{model_id}")\nprediction = predictor("image.jpg")\n'
        "prediction.overlay()"
        if segmenter
        else f'classifier = segformer.SegFormerClassifier.from_pretrained("{model_id}")'
    )
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {title}: {Path(model_id).name}\n",
        f"Classes ({len(model.classes)}): {classes}{more}.\n",
        f"Input: {model.config.in_channels} channels, {_sizes(model)}.\n",
        f"## Use\n\n```python\nimport segformer\n\n{use}\n```\n",
        _scores(report),
        _training(recipe, report),
    ]
    return "\n".join(part for part in parts if part)


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{run}: not the folder of a finished training run: {error}"
        ) from None
    return dict(report), dict(recipe)


def _index_entry(model_id: str, task: str, report: dict[str, Any]) -> dict[str, Any]:
    """Scores in the form of the Hub's table of results."""
    names = {"miou": "mean_iou", "pixel_accuracy": "pixel_accuracy", "top1": "accuracy"}
    metrics = [
        {"type": kind, "name": name, "value": round(100 * report[name], 2)}
        for name, kind in names.items()
        if report.get(name) is not None
    ]
    dataset = Path(str(report.get("dataset", "unnamed"))).name
    entry = {"task": {"type": task}, "dataset": {"name": dataset, "type": dataset}}
    return {"name": model_id, "results": [{**entry, "metrics": metrics}]}


def _sizes(model: Description) -> str:
    size = model.preprocessing.size
    if isinstance(size, tuple):
        return f"resized to {size[1]} x {size[0]} pixels"
    return f"short side {size} pixels" if size is not None else "any size"


def _scores(report: dict[str, Any]) -> str:
    if not report:
        return "## Scores\n\nNot stated.\n"
    where = f"`{Path(str(report['dataset'])).name}`, split {report['split']}"
    lines = [f"## Scores\n\nOn {report['images']} images of {where}.\n"]
    if "miou" in report:
        lines.append("| class | IoU | accuracy | Dice |\n| --- | ---: | ---: | ---: |")
        rows = {**report["classes"], "**mean**": _mean_row(report)}
        for name, row in rows.items():
            cells = (_percent(row[key]) for key in ("iou", "accuracy", "dice"))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append(f"\nPixel accuracy {_percent(report['pixel_accuracy'])} %.\n")
    else:
        lines.append(f"Top-1 {_percent(report['top1'])} %, top-5 {_percent(report['top5'])} %.\n")
    return "\n".join(lines)


def _mean_row(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "iou": report["miou"],
        "accuracy": report["mean_accuracy"],
        "dice": report["mean_dice"],
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _training(recipe: dict[str, Any], report: dict[str, Any]) -> str:
    if not recipe:
        return ""
    images, minutes = report.get("training_images"), report.get("minutes")
    lines = [f"## Training\n\n{images} images, {minutes} minutes, with this recipe:\n\n```yaml"]
    kept = {k: recipe[k] for k in _OF_INTEREST if recipe.get(k) is not None}
    if "pretrained" in kept:
        kept["pretrained"] = Path(str(kept["pretrained"])).name
    lines.append(yaml.safe_dump(kept, sort_keys=False) + "```\n")
    return "\n".join(lines)
