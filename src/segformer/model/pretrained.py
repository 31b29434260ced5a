"""Models from checkpoints, and back: what `from_pretrained` and `save_pretrained` do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from segformer.checkpoints import card, hub
from segformer.checkpoints.formats import HUB
from segformer.checkpoints.layout import Description
from segformer.checkpoints.opening import Checkpoint, open_checkpoint
from segformer.checkpoints.tensors import CheckpointError
from segformer.checkpoints.writing import write_folder
from segformer.classes import ClassSet
from segformer.config import FIRST_CONVOLUTION
from segformer.image import Preprocessing
from segformer.model.decoder import MLPDecoder
from segformer.model.encoder import MixTransformer
from segformer.model.segformer import Classes, SegFormer, SegFormerClassifier

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

Whole = TypeVar("Whole", SegFormer, SegFormerClassifier)


def load(
    source: str | Path,
    *,
    classes: Classes | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **options: Unpack[hub.HubOptions],
) -> SegFormer:
    """Load a segmentation model; see `SegFormer.from_pretrained`."""
    checkpoint = open_checkpoint(source, **options)
    return assemble(SegFormer, checkpoint, classes, num_classes, in_channels)


def load_classifier(
    source: str | Path,
    *,
    classes: Classes | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **options: Unpack[hub.HubOptions],
) -> SegFormerClassifier:
    """Load a classifier; see `SegFormerClassifier.from_pretrained`."""
    checkpoint = open_checkpoint(source, **options)
    return assemble(SegFormerClassifier, checkpoint, classes, num_classes, in_channels)


def load_any(
    source: str | Path, **options: Unpack[hub.HubOptions]
) -> SegFormer | SegFormerClassifier:
    """Load a segmentation or a classification model, whichever the checkpoint holds.

    Args:
        source: As for `SegFormer.from_pretrained`.
        **options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        CheckpointError: As for `SegFormer.from_pretrained`; an encoder alone is neither.
    """
    checkpoint = open_checkpoint(source, **options)
    if checkpoint.kind == "classifier":
        return assemble(SegFormerClassifier, checkpoint)
    return assemble(SegFormer, checkpoint)


def load_encoder(
    source: str | Path,
    *,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    in_channels: int | None = None,
    **options: Unpack[hub.HubOptions],
) -> MixTransformer:
    """Load the encoder of any model; see `MixTransformer.from_pretrained`."""
    checkpoint = open_checkpoint(source, **options)
    checkpoint.check(("encoder.",))
    channels = checkpoint.config.in_channels if in_channels is None else in_channels
    with torch.device("meta"):
        encoder = MixTransformer(replace(checkpoint.config, in_channels=channels), out_indices)
    tensors = _to_float32(checkpoint.read("encoder."), channels)
    encoder.load_state_dict(
        {name.removeprefix("encoder."): tensor for name, tensor in tensors}, assign=True
    )
    return encoder.eval()


def assemble(
    whole: type[Whole],
    checkpoint: Checkpoint,
    classes: Classes | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    *,
    reinitialize_classifier: bool = False,
) -> Whole:
    """Build a model and put a checkpoint's weights into it.

    Weights are re-initialized only where the arguments ask for it, and each time with a log
    message.

    Args:
        whole: `SegFormer` or `SegFormerClassifier`.
        checkpoint: An opened checkpoint.
        classes: As for `SegFormer.from_pretrained`.
        num_classes: As for `SegFormer.from_pretrained`.
        in_channels: As for `SegFormer.from_pretrained`.
        reinitialize_classifier: Re-initialize the classifier even if the numbers of classes agree.

    Returns:
        The model in float32, in evaluation mode.

    Raises:
        CheckpointError: A tensor is missing, damaged, or of another shape than the model's.
    """
    if classes is not None:
        classes = ClassSet.of(classes)
    kind, part = ("segmenter", "decoder.") if whole is SegFormer else ("classifier", "head.")
    head = part.removesuffix(".")
    source, found = checkpoint.config, checkpoint.kind
    if num_classes is None and classes is not None:
        same_count = found == kind and len(classes) == len(checkpoint.classes)
        num_classes = source.num_classes if same_count else len(classes)
    if found != kind and num_classes is None:
        loader = {"segmenter": "SegFormer", "classifier": "SegFormerClassifier"}
        other = loader.get(found, "MixTransformer")
        raise CheckpointError(
            f"{checkpoint.origin}: holds {'an' if found == 'encoder' else 'a'} {found} without "
            f"{head}; pass num_classes=... to start with a re-initialized {head}, or load it with "
            f"{other}.from_pretrained"
        )
    checkpoint.check(("encoder.", part) if found == kind else ("encoder.",))
    config = replace(
        source,
        num_classes=source.num_classes if num_classes is None else num_classes,
        in_channels=source.in_channels if in_channels is None else in_channels,
    )
    other_classes = config.num_classes != source.num_classes
    reinitialize = found != kind or other_classes or reinitialize_classifier
    if classes is None and not reinitialize:
        classes = checkpoint.classes
    preprocessing = adapt_preprocessing(checkpoint.preprocessing, config.in_channels)
    try:
        with torch.device("meta"):
            model = whole(config, classes, preprocessing)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.origin}: {error}") from None
    if reinitialize:
        model.reset_head()
        if found != kind:
            why = f"it has no {head}; the {head} is re-initialized"
        elif other_classes:
            why = (
                f"it has {source.num_classes} classes, not {config.num_classes}; "
                "the classifier is re-initialized"
            )
        else:
            why = "its classes have other names; the classifier is re-initialized"
        logger.info(f"{checkpoint.origin}: {why}")
    if config.in_channels != source.in_channels:
        logger.info(
            f"{checkpoint.origin}: made for {source.in_channels} channels; its first convolution "
            f"is adapted to {config.in_channels}"
        )
    classifier = "decoder.classifier." if kind == "segmenter" else "head."
    parts = ("encoder.", part) if found == kind else ("encoder.",)
    stored = (pair for part in parts for pair in checkpoint.read(part))
    tensors = {
        name: tensor
        for name, tensor in _to_float32(stored, config.in_channels)
        if not (reinitialize and name.startswith(classifier))
    }
    model.load_state_dict(tensors, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.get_buffer("num_batches_tracked").is_meta:
            module.num_batches_tracked = torch.tensor(0)  # old files lack this counter
    return model.eval()


def adapt_in_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the weight of the first convolution to another number of channels.

    The weights of existing channels are kept, and each further channel starts with their mean; with
    fewer channels than before, all start with the mean. The result is scaled by the ratio of the
    channel counts, so that an image whose channels are all equal gives the same response as before
    (a gray image gives the response of the same image in color).

    Args:
        weight: (C, channels before, k, k).
        channels: Channels after.

    Returns:
        (C, channels, k, k); ``weight`` itself if the number stays the same.
    """
    known = weight.shape[1]
    if channels == known:
        return weight
    mean = weight.mean(1, keepdim=True)
    kept = weight if channels > known else weight[:, :0]
    extra = mean.expand(-1, channels - kept.shape[1], -1, -1)
    return torch.cat([kept, extra], dim=1) * (known / channels)


def adapt_preprocessing(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """Adapt the channel statistics to another number of channels, as `adapt_in_channels` does."""
    known = len(preprocessing.mean)
    if channels == known:
        return preprocessing

    def adapt(values: tuple[float, ...]) -> tuple[float, ...]:
        kept = values if channels > known else ()
        return kept + (sum(values) / known,) * (channels - len(kept))

    return replace(
        preprocessing,
        mean=adapt(preprocessing.mean),
        std=adapt(preprocessing.std),
        channel_names=(),
    )


def save(
    model: SegFormer | SegFormerClassifier, folder: str | Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write a model in the Hub layout; see `SegFormer.save_pretrained`."""
    if isinstance(model, SegFormer) and not isinstance(model.decoder, MLPDecoder):
        raise ValueError("a folded model cannot be saved; save the model it was folded from")
    write_folder(Path(folder), HUB.from_ours(model.state_dict()), _description(model), dtype)


def push(
    model: SegFormer | SegFormerClassifier,
    model_id: str,
    *,
    run: str | Path | None = None,
    license: str | None = None,
    **options: Unpack[hub.UploadOptions],
) -> str:
    """Publish a model with a card; see `SegFormer.push_to_hub`."""
    text = card.model_card(_description(model), model_id, run=run, license=license)
    return hub.upload(partial(save, model), model_id, card=text, **options)


def _description(model: SegFormer | SegFormerClassifier) -> Description:
    kind = "segmenter" if isinstance(model, SegFormer) else "classifier"
    return Description(kind, model.config, model.classes, model.preprocessing)


def _to_float32(
    tensors: Iterator[tuple[str, Tensor]], channels: int
) -> Iterator[tuple[str, Tensor]]:
    """Tensors in float32, the first convolution for ``channels`` channels."""
    for name, tensor in tensors:
        if name == FIRST_CONVOLUTION:
            yield name, adapt_in_channels(tensor.float(), channels)
        else:
            yield name, tensor if name.endswith("num_batches_tracked") else tensor.float()
