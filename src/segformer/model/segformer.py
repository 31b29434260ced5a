"""The two models: SegFormer for segmentation, SegFormerClassifier for ImageNet's task.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segformer.classes import ClassSet
from segformer.config import SegFormerConfig
from segformer.image import Preprocessing
from segformer.model.decoder import FoldedDecoder, MLPDecoder
from segformer.model.encoder import MixTransformer
from segformer.model.products import reuse_memory

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segformer.checkpoints.hub import HubOptions


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
        classes: ClassSet | None = None,
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__()
        self.config = config
        self.classes = classes or ClassSet.numbered(config.num_classes)
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
        cls, variant: str, *, classes: ClassSet | None = None, **overrides: Any
    ) -> SegFormer:
        """A model with fresh weights.

        Args:
            variant: "b0" to "b5".
            classes: Its classes; fixes ``num_classes`` unless that is given.
            **overrides: Fields of `SegFormerConfig`, such as ``num_classes`` (1 = binary with a
                sigmoid) or ``in_channels``.
        """
        if classes is not None:
            overrides.setdefault("num_classes", len(classes))
        return cls(SegFormerConfig.from_variant(variant, **overrides), classes)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        classes: ClassSet | None = None,
        num_classes: int | None = None,
        in_channels: int | None = None,
        **hub: Unpack[HubOptions],
    ) -> SegFormer:
        """Load a model, whatever wrote it: transformers, NVlabs, OpenMMLab, SMP or this package.

        Args:
            source: A Hub id (OWNER/NAME, or OWNER/NAME@REVISION), a folder, or a file of weights
                (``.safetensors``, ``.pth``, ``.pt``, ``.bin``). Names of tensors tell the
                codebase, their shapes the variant where no configuration does.
            classes: Other classes than the model's own.
            num_classes: Another number of classes than the model's own: the classifier is
                re-initialized, with a log message. With it an encoder or a classifier can be loaded
                too; the whole decoder is then re-initialized.
            in_channels: Another number of channels than the model's own; the first convolution is
                adapted (`segformer.model.pretrained.adapt_in_channels`).
            **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Returns:
            The model in float32, in evaluation mode, with its labels and preprocessing.

        Raises:
            CheckpointError: Something is missing, broken, or does not fit.
        """
        from segformer.model import pretrained

        return pretrained.load(
            source, classes=classes, num_classes=num_classes, in_channels=in_channels, **hub
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the model in the Hub layout.

        Args:
            folder: Made if it is not there.
            dtype: Of the stored weights; left out, as they are.

        Raises:
            ValueError: The model is folded.
        """
        from segformer.model import pretrained

        pretrained.save(self, folder, dtype=dtype)

    def push_to_hub(self, model_id: str, *, run: str | Path | None = None, **options: Any) -> str:
        """Publish the model with a card.

        Args:
            model_id: OWNER/NAME; made if it is not there.
            run: Folder of the training that made it: its report and recipe go into the card.
            **options: ``license``, ``private``, ``token``, ``revision``, ``message``.

        Returns:
            Address of the commit.
        """
        from segformer.model import pretrained

        return pretrained.push(self, model_id, run=run, **options)

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
        classes: ClassSet | None = None,
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__()
        self.config = config
        self.classes = classes or ClassSet.numbered(config.num_classes)
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
        cls, variant: str, *, classes: ClassSet | None = None, **overrides: Any
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
        classes: ClassSet | None = None,
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
        """Write the model in the Hub layout."""
        from segformer.model import pretrained

        pretrained.save(self, folder, dtype=dtype)

    def push_to_hub(self, model_id: str, *, run: str | Path | None = None, **options: Any) -> str:
        """Publish the model with a card; as `SegFormer.push_to_hub`."""
        from segformer.model import pretrained

        return pretrained.push(self, model_id, run=run, **options)

    def reset_head(self) -> None:
        """Give the head fresh weights."""
        self.head = nn.Linear(self.config.hidden_sizes[-1], self.config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, in_channels, H, W), normalized -> logits (B, num_classes)."""
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
