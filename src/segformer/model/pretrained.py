"""Models from checkpoints, and back: what `from_pretrained` and `save_pretrained` do."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self, TypeVar, Unpack

import torch
from torch import Tensor, nn

from segformer.checkpoints import card, hub
from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.formats import HUB
from segformer.checkpoints.layout import Description
from segformer.checkpoints.opening import Checkpoint, open_checkpoint
from segformer.checkpoints.writing import write_folder
from segformer.classes import Classes, ClassSet
from segformer.config import FIRST_CONVOLUTION, SegFormerConfig
from segformer.image import Preprocessing
from segformer.model.decoder import FoldedDecoder
from segformer.model.lora import merged

logger = logging.getLogger(__name__)

_HEADS = {"segmenter": "decoder", "classifier": "head"}
"""What comes after the encoder, by kind of model."""


class PretrainedModel(nn.Module, ABC):
    """A model that is loaded from checkpoints and saved as one.

    Args:
        config: Model configuration.
        classes: Classes of the model. Default: "class 0", "class 1", ...
        preprocessing: How images are converted to model input. Default: resize to 512 x 512,
            normalize with the ImageNet mean and standard deviation.

    Attributes:
        kind: "segmenter" or "classifier".
    """

    kind: ClassVar[str]

    def __init__(
        self,
        config: SegFormerConfig,
        classes: Classes | None = None,
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__()
        self.config = config
        self.classes = (
            ClassSet.numbered(config.num_classes) if classes is None else ClassSet.of(classes)
        )
        self.preprocessing = preprocessing or Preprocessing.for_channels(config.in_channels)

    @abstractmethod
    def reset_head(self) -> None:
        """Re-initialize what comes after the encoder."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        classes: Classes | None = None,
        num_classes: int | None = None,
        in_channels: int | None = None,
        **options: Unpack[hub.HubOptions],
    ) -> Self:
        """Load a model from a checkpoint of any supported format.

        Checkpoints of transformers, NVlabs, OpenMMLab, segmentation_models.pytorch, KerasHub and
        this package are supported. The format is detected from the names of the tensors. If there
        is no configuration file, the variant is detected from their shapes.

        Args:
            source: A Hub id (OWNER/NAME, or OWNER/NAME@REVISION), a folder, or a file of weights
                (``.safetensors``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.h5``, ``.keras``). For
                ``model.safetensors``, ``pytorch_model.bin``, ``tf_model.h5`` and
                ``model.weights.h5``, the JSON files in the same folder are read too. For the folder
                of a training run, its best model is loaded.
            classes: Classes of the model. Default: as in the checkpoint.
            num_classes: Number of classes. If it differs from the checkpoint, the classifier is
                re-initialized. If it is given, the checkpoint can also be an encoder or a
                classification model; the complete decoder is then initialized. Both are logged.
                Default: as in the checkpoint.
            in_channels: Number of image channels. If it differs from the checkpoint, the first
                convolution is adapted (`segformer.model.pretrained.adapt_in_channels`).
                Default: as in the checkpoint.
            **options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Returns:
            The model in float32, in evaluation mode, with its classes and preprocessing.

        Raises:
            CheckpointError: The model does not exist, or a tensor is missing, damaged, or has a
                wrong shape.
        """
        return assemble(cls, open_checkpoint(source, **options), classes, num_classes, in_channels)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Save the model in the Hub layout, which transformers can load too.

        Writes ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``. Each file
        is written completely or not at all, and replaces an existing file of the same name. A
        model with the OpenMMLab decoder is saved in the same layout, but only this package can
        load it. Low-rank adapters (`segformer.model.lora`) are merged into the weights.

        Args:
            folder: Folder to write to; created if it does not exist.
            dtype: Dtype of the saved weights. Default: the dtype of the model.

        Raises:
            ValueError: The decoder is folded, or a weight is out of the range of ``dtype``.
        """
        description = self._description()
        write_folder(Path(folder), HUB.from_ours(merged(self).state_dict()), description, dtype)

    def push_to_hub(
        self,
        model_id: str,
        *,
        run: str | Path | None = None,
        license: str | None = None,
        **options: Unpack[hub.UploadOptions],
    ) -> str:
        """Upload the model to the Hub, with a model card.

        Args:
            model_id: OWNER/NAME; created if it does not exist.
            run: Folder of the training run of the model. Its scores and its recipe are written
                to the model card. Default: a model card without scores.
            license: License id as used on the Hub, such as "apache-2.0".
            **options: ``private``, ``token``, ``revision``, ``message``.

        Returns:
            URL of the commit.

        Raises:
            CheckpointError: The Hub rejected the upload, or the run has no readable report.
        """
        text = card.model_card(self._description(), model_id, run=run, license=license)
        return hub.upload(self.save_pretrained, model_id, card=text, **options)

    def _description(self) -> Description:
        if isinstance(getattr(self, "decoder", None), FoldedDecoder):
            raise ValueError("a folded model cannot be saved; save the model it was folded from")
        return Description(self.kind, self.config, self.classes, self.preprocessing)


Model = TypeVar("Model", bound=PretrainedModel)


def assemble(
    model_class: type[Model],
    checkpoint: Checkpoint,
    classes: Classes | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    *,
    reinitialize_classifier: bool = False,
) -> Model:
    """Build a model and put a checkpoint's weights into it.

    Weights are re-initialized only where the arguments ask for it, and each time with a log
    message.

    Args:
        model_class: `SegFormer` or `SegFormerClassifier`.
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
    kind = model_class.kind
    head = _HEADS[kind]
    part = f"{head}."
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
        multilabel=source.multilabel and num_classes != 1,
        thresholds=source.thresholds if num_classes in (None, source.num_classes) else (),
    )
    other_classes = config.num_classes != source.num_classes
    reinitialize = found != kind or other_classes or reinitialize_classifier
    if classes is None and not reinitialize:
        classes = checkpoint.classes
    preprocessing = adapt_preprocessing(checkpoint.preprocessing, config.in_channels)
    try:
        with torch.device("meta"):
            model = model_class(config, classes, preprocessing)
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
    tensors = {
        name: tensor
        for name, tensor in read_float32(checkpoint, parts, config.in_channels)
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


def read_float32(
    checkpoint: Checkpoint, parts: Sequence[str], channels: int
) -> Iterator[tuple[str, Tensor]]:
    """Read tensors in float32, the first convolution adapted to the number of channels.

    Args:
        checkpoint: An opened checkpoint.
        parts: Beginnings of the names, such as "encoder.".
        channels: Image channels of the model.

    Yields:
        Name and tensor.
    """
    for part in parts:
        for name, tensor in checkpoint.read(part):
            if name == FIRST_CONVOLUTION:
                yield name, adapt_in_channels(tensor.float(), channels)
            else:
                yield name, tensor if name.endswith("num_batches_tracked") else tensor.float()
