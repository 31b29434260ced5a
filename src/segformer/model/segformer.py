"""The two models: `SegFormer` for segmentation, `SegFormerClassifier` for classification.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from segformer.classes import ClassSet
from segformer.config import SegFormerConfig
from segformer.image import Preprocessing
from segformer.machine import idle_cpus_only
from segformer.model.decoder import FoldedDecoder, MLPDecoder
from segformer.model.encoder import MixTransformer
from segformer.model.products import passes_through, reuse_memory

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segformer.checkpoints.hub import HubOptions, UploadOptions

Classes: TypeAlias = ClassSet | Sequence[str] | Mapping[int, str]
"""A class set, or class names as a list or as ``{id: name}``."""


class SegFormer(nn.Module):
    """The segmentation model: Mix Transformer encoder and all-MLP decoder.

    Args:
        config: Model configuration.
        classes: Classes of the model. Default: "class 0", "class 1", ...
        preprocessing: How images are converted to model input. Default: resize to 512 x 512,
            normalize with the ImageNet mean and standard deviation.

    Raises:
        ValueError: The number of classes does not match ``config.num_classes``.
    """

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
        expected = 2 if config.num_classes == 1 else config.num_classes
        if len(self.classes) != expected:
            raise ValueError(
                f"a model with {config.num_classes} output channels needs {expected} classes, "
                f"but {len(self.classes)} were given"
            )
        self.encoder = MixTransformer(config)
        self.decoder: MLPDecoder | FoldedDecoder = MLPDecoder(config)

    @classmethod
    def from_variant(
        cls, variant: str, *, classes: Classes | None = None, **overrides: Any
    ) -> SegFormer:
        """Create a randomly initialized model.

        Args:
            variant: "b0" to "b5".
            classes: Classes of the model. They also set ``num_classes``, unless it is given.
                Default: "class 0", "class 1", ...
            **overrides: Fields of `SegFormerConfig`, such as ``num_classes`` (1: binary, with a
                sigmoid) or ``in_channels``.
        """
        if classes is not None:
            classes = ClassSet.of(classes)
            overrides.setdefault("num_classes", len(classes))
        return cls(SegFormerConfig.from_variant(variant, **overrides), classes)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        classes: Classes | None = None,
        num_classes: int | None = None,
        in_channels: int | None = None,
        **hub: Unpack[HubOptions],
    ) -> SegFormer:
        """Load a model from a checkpoint of any supported format.

        Checkpoints of transformers, NVlabs, OpenMMLab, segmentation_models.pytorch and this
        package are supported. The format is detected from the names of the tensors. If there is no
        configuration file, the variant is detected from their shapes.

        Args:
            source: A Hub id (OWNER/NAME, or OWNER/NAME@REVISION), a folder, or a file of weights
                (``.safetensors``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``). For
                ``model.safetensors`` and ``pytorch_model.bin``, the JSON files in the same folder
                are read too. For the folder of a training run, its best model is loaded.
            classes: Classes of the model. Default: as in the checkpoint.
            num_classes: Number of classes. If it differs from the checkpoint, the classifier is
                re-initialized. If it is given, the checkpoint can also be an encoder or a
                classification model; the complete decoder is then initialized. Both are logged.
                Default: as in the checkpoint.
            in_channels: Number of image channels. If it differs from the checkpoint, the first
                convolution is adapted (`segformer.model.pretrained.adapt_in_channels`).
                Default: as in the checkpoint.
            **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Returns:
            The model in float32, in evaluation mode, with its classes and preprocessing.

        Raises:
            CheckpointError: The model does not exist, or a tensor is missing, damaged, or has a
                wrong shape.
        """
        from segformer.model import pretrained

        return pretrained.load(
            source, classes=classes, num_classes=num_classes, in_channels=in_channels, **hub
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Save the model in the Hub layout, which transformers can load too.

        Writes ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``. Each file
        is written completely or not at all, and replaces an existing file of the same name. A
        model with the OpenMMLab decoder is saved in the same layout, but only this package can
        load it.

        Args:
            folder: Folder to write to; created if it does not exist.
            dtype: Dtype of the saved weights. Default: the dtype of the model.

        Raises:
            ValueError: The model is folded, or a weight is out of the range of ``dtype``.
        """
        from segformer.model import pretrained

        pretrained.save(self, folder, dtype=dtype)

    def push_to_hub(
        self,
        model_id: str,
        *,
        run: str | Path | None = None,
        license: str | None = None,
        **options: Unpack[UploadOptions],
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
        from segformer.model import pretrained

        return pretrained.push(self, model_id, run=run, license=license, **options)

    def reset_head(self) -> None:
        """Re-initialize the decoder."""
        self.decoder = MLPDecoder(self.config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits at a quarter of the image size.

        Args:
            pixels: (B, in_channels, H, W), float, normalized; height and width at least
                ``config.min_size`` (29 for B0..B5).

        Returns:
            (B, num_classes, ceil(H / 4), ceil(W / 4)).

        Raises:
            ValueError: Wrong number of dimensions or channels, or the image is too small.
        """
        if not passes_through(pixels):
            return self.decoder(self.encoder(pixels))
        with idle_cpus_only():
            return self.decoder(self.encoder(pixels))

    def fold(self) -> SegFormer:
        """Return a model for inference with the same outputs and a folded decoder.

        The encoder and the classifier share their parameters with this model, but the folded
        weights of the decoder are copies. Use this only if the model is not trained further, for
        example to export it. `inference_copy` returns a model that follows further training.
        """
        folded = inference_copy(self)
        assert isinstance(folded, SegFormer)
        if isinstance(folded.decoder, MLPDecoder):
            folded.decoder = folded.decoder.fold().eval()
        return folded


class SegFormerClassifier(nn.Module):
    """Image classifier, as pre-trained on ImageNet: encoder, mean of the last map, linear head.

    Args:
        config: Model configuration; the decoder fields are not used.
        classes: Classes of the model. Default: "class 0", "class 1", ...
        preprocessing: How images are converted to model input. Default: resize the short side to
            256, crop the central 224 x 224 pixels.

    Raises:
        ValueError: The number of classes does not match ``config.num_classes``.
    """

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
        self.preprocessing = preprocessing or replace(
            Preprocessing.for_channels(config.in_channels), size=256, crop=(224, 224)
        )
        if len(self.classes) != config.num_classes:
            raise ValueError(
                f"a classifier with {config.num_classes} outputs needs {config.num_classes} "
                f"classes, but {len(self.classes)} were given"
            )
        self.encoder = MixTransformer(config, out_indices=(3,))
        self.reset_head()

    @classmethod
    def from_variant(
        cls, variant: str, *, classes: Classes | None = None, **overrides: Any
    ) -> SegFormerClassifier:
        """Create a randomly initialized classifier.

        Args:
            variant: "b0" to "b5".
            classes: Classes of the model. Default: "class 0", "class 1", ...; their number is
                ``num_classes`` or, if not given, 1000.
            **overrides: Fields of `SegFormerConfig`.
        """
        overrides.setdefault("num_classes", 1000 if classes is None else len(classes))
        return cls(SegFormerConfig.from_variant(variant, **overrides), classes)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        classes: Classes | None = None,
        num_classes: int | None = None,
        in_channels: int | None = None,
        **hub: Unpack[HubOptions],
    ) -> SegFormerClassifier:
        """Load a classifier; see `SegFormer.from_pretrained` for arguments and errors."""
        from segformer.model import pretrained

        return pretrained.load_classifier(
            source, classes=classes, num_classes=num_classes, in_channels=in_channels, **hub
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Save the model in the Hub layout; see `SegFormer.save_pretrained`."""
        from segformer.model import pretrained

        pretrained.save(self, folder, dtype=dtype)

    def push_to_hub(
        self,
        model_id: str,
        *,
        run: str | Path | None = None,
        license: str | None = None,
        **options: Unpack[UploadOptions],
    ) -> str:
        """Upload the model to the Hub; see `SegFormer.push_to_hub`."""
        from segformer.model import pretrained

        return pretrained.push(self, model_id, run=run, license=license, **options)

    def reset_head(self) -> None:
        """Re-initialize the head."""
        self.head = nn.Linear(self.config.hidden_sizes[-1], self.config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, in_channels, H, W), normalized -> logits (B, num_classes)."""
        if not passes_through(pixels):
            return self.head(self.encoder(pixels)[-1].mean(dim=(2, 3)))
        with idle_cpus_only():
            return self.head(self.encoder(pixels)[-1].mean(dim=(2, 3)))


def inference_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares the parameters; the mode of ``model`` is kept.

    Modules are copied, but parameters and buffers are the same objects. So changes in place, such
    as an optimizer step, `load_state_dict` or a move to another device, apply to both. If a
    parameter is replaced by another object, the copy keeps the old one.

    Without gradients the copy runs at full speed: it folds the decoder at each call, which takes
    about 2 % of the time.
    """
    inference = copy.copy(model)
    inference._parameters = dict(model._parameters)
    inference._buffers = dict(model._buffers)
    inference._modules = {
        name: None if module is None else inference_copy(module)
        for name, module in model._modules.items()
    }
    inference.training = False
    reuse_memory()
    return inference


def probabilities(logits: Tensor) -> Tensor:
    """Convert logits (B, K, ...) to class probabilities of the same shape.

    The single logit of a binary model (K = 1) gives two classes, background and foreground.
    """
    if logits.shape[1] == 1:
        foreground = logits.sigmoid()
        return torch.cat([1 - foreground, foreground], dim=1)
    return logits.softmax(dim=1)
