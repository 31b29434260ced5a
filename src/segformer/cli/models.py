"""The model that a command is given: a checkpoint, or a folder that `segformer export` wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from segformer.config import SegFormerConfig


@dataclass(frozen=True)
class OpenedModel:
    """A model whose weights have not been read yet.

    Attributes:
        kind: "segmenter", "classifier" or "encoder".
        config: Configuration.
        load: Gives what `Predictor` and `ClassPredictor` take.
    """

    kind: str
    config: SegFormerConfig
    load: Callable[[], Any]


def open_model(source: str | None) -> OpenedModel:
    """Open a model; exported ones without PyTorch.

    Args:
        source: Folder, file or Hub id. None: the model that ships inside the package.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
    """
    from segformer.prediction.runtimes.exported import is_exported, open_exported

    if is_exported(source):
        exported = open_exported(str(source))
        return OpenedModel(exported.kind, exported.config, lambda: source)

    from segformer.checkpoints.opening import SHIPPED, open_checkpoint

    checkpoint = open_checkpoint(SHIPPED if source is None else source)

    def load() -> Any:
        from segformer.model.pretrained import assemble
        from segformer.model.segformer import SegFormer, SegFormerClassifier

        if checkpoint.kind == "classifier":
            return assemble(SegFormerClassifier, checkpoint)
        return assemble(SegFormer, checkpoint)

    return OpenedModel(checkpoint.kind, checkpoint.config, load)
