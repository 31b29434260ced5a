"""The two models: SegFormer for segmentation, SegFormerClassifier for ImageNet's task.

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
"""A class set, or the names of its classes as a list or ``{id: name}``."""


class SegFormer(nn.Module):
    """The segmentation model: Mix Transformer and all-MLP decoder.

    Args:
        config: Shapes and arithmetic.
        classes: Its classes. Left out: numbered ones.
        preprocessing: How images become its input. Left out: 512 x 512, ImageNet statistics.

    Raises:
        ValueError: ``classes`` and ``config.num_classes`` disagree.
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
                f"a model of {config.num_classes} output channels has {expected} classes, "
                f"not the {len(self.classes)} that were named"
            )
        self.encoder = MixTransformer(config)
        self.decoder: MLPDecoder | FoldedDecoder = MLPDecoder(config)

    @classmethod
    def from_variant(
        cls, variant: str, *, classes: Classes | None = None, **overrides: Any
    ) -> SegFormer:
        """A model with fresh weights.

        Args:
            variant: "b0" to "b5".
            classes: Its classes; fixes ``num_classes`` unless that is given.
            **overrides: Fields of `SegFormerConfig`, such as ``num_classes`` (1 = binary with a
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
        """Load a model from a checkpoint of any format.

        Transformers, NVlabs, OpenMMLab, segmentation_models.pytorch and this package write such
        checkpoints. The names of the tensors tell the format, and their shapes the variant where
        there is no configuration.

        Args:
            source: A Hub id (OWNER/NAME, or OWNER/NAME@REVISION), a folder, or a file of weights
                (``.safetensors``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``). A file
                ``model.safetensors`` or ``pytorch_model.bin`` is read with the JSON files beside
                it, and the folder of a training run stands for its best model.
            classes: Other classes than the model's own.
            num_classes: Another number of classes than the model's own. The classifier is then
                re-initialized. With it an encoder or a classification model can be loaded too;
                its whole decoder is then initialized. Both are logged.
            in_channels: Another number of channels than the model's own. The first convolution is
                then adapted (`segformer.model.pretrained.adapt_in_channels`).
            **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Returns:
            The model in float32, in evaluation mode, with its classes and preprocessing.

        Raises:
            CheckpointError: There is no such model, or a tensor is missing, damaged, or of another
                shape than the model's.
        """
        from segformer.model import pretrained

        return pretrained.load(
            source, classes=classes, num_classes=num_classes, in_channels=in_channels, **hub
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the model in the Hub layout, which transformers loads too.

        ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` are written, each
        whole or not at all; files of these names in the folder are replaced. A model with
        OpenMMLab's decoder is written the same way, but only this package can read it.

        Args:
            folder: Created if missing.
            dtype: Type of the stored weights. Default: as they are.

        Raises:
            ValueError: The model is folded, or a weight does not fit into ``dtype``.
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
        """Publish the model on the Hub, with a card that describes it.

        Args:
            model_id: OWNER/NAME; created if missing.
            run: Folder of the training run that made the model: its scores and its recipe go into
                the card. Default: a card without scores.
            license: As the Hub names licenses, such as "apache-2.0".
            **options: ``private``, ``token``, ``revision``, ``message``.

        Returns:
            URL of the commit.

        Raises:
            CheckpointError: The Hub refused, or the run has no readable report.
        """
        from segformer.model import pretrained

        return pretrained.push(self, model_id, run=run, license=license, **options)

    def reset_head(self) -> None:
        """Give the decoder fresh weights."""
        self.decoder = MLPDecoder(self.config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits at a quarter of the image's size.

        Args:
            pixels: (B, in_channels, H, W), normalized, float; both sides at least
                ``config.min_size`` (29 for B0..B5), otherwise of any size.

        Returns:
            (B, num_classes, ceil(H / 4), ceil(W / 4)).

        Raises:
            ValueError: Another number of dimensions or channels, or too small an image.
        """
        if not passes_through(pixels):
            return self.decoder(self.encoder(pixels))
        with idle_cpus_only():
            return self.decoder(self.encoder(pixels))

    def fold(self) -> SegFormer:
        """A model for inference with the same outputs, whose decoder is folded once.

        Encoder and classifier share their parameters with this model, while the folded weights of
        the decoder are copies: use it on a model that is not trained any further, such as for an
        export. `inference_copy` follows a model that is.
        """
        folded = inference_copy(self)
        assert isinstance(folded, SegFormer)
        if isinstance(folded.decoder, MLPDecoder):
            folded.decoder = folded.decoder.fold().eval()
        return folded


class SegFormerClassifier(nn.Module):
    """Encoder, mean over the last map, linear head: the model that ImageNet trains.

    Args:
        config: Shapes and arithmetic; its decoder fields are not used.
        classes: Its classes. Left out: numbered ones.
        preprocessing: How images become its input. Left out: short side 256, of which the
            middle 224 x 224 are kept.

    Raises:
        ValueError: ``classes`` and ``config.num_classes`` disagree.
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
                f"a classifier of {config.num_classes} outputs has as many classes, not the "
                f"{len(self.classes)} that were named"
            )
        self.encoder = MixTransformer(config, out_indices=(3,))
        self.reset_head()

    @classmethod
    def from_variant(
        cls, variant: str, *, classes: Classes | None = None, **overrides: Any
    ) -> SegFormerClassifier:
        """A classifier with fresh weights.

        Args:
            variant: "b0" to "b5".
            classes: Its classes; left out, 1000 numbered ones, or ``num_classes``.
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
        """Load a classifier; arguments and errors as for `SegFormer.from_pretrained`."""
        from segformer.model import pretrained

        return pretrained.load_classifier(
            source, classes=classes, num_classes=num_classes, in_channels=in_channels, **hub
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the model in the Hub layout; see `SegFormer.save_pretrained`."""
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
        """Publish the model on the Hub; see `SegFormer.push_to_hub`."""
        from segformer.model import pretrained

        return pretrained.push(self, model_id, run=run, license=license, **options)

    def reset_head(self) -> None:
        """Give the head fresh weights."""
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
    """The model in evaluation mode, without changing the mode of the model itself.

    Modules are copied; parameters and buffers are the model's own objects. So changes in place,
    such as a step of an optimizer, `load_state_dict` or a move to another device, are seen by
    both. Parameters that are replaced by other objects are not.

    Without gradients the copy runs at full speed: the decoder is folded at each call, which costs
    about 2 % of its time.
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
    """Class probabilities (B, K, ...); two classes for a binary model's one logit."""
    if logits.shape[1] == 1:
        foreground = logits.sigmoid()
        return torch.cat([1 - foreground, foreground], dim=1)
    return logits.softmax(dim=1)
