"""The two models: `SegFormer` for segmentation, `SegFormerClassifier` for classification.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segformer.classes import Classes, ClassSet
from segformer.config import SegFormerConfig
from segformer.image import Preprocessing
from segformer.machine import idle_cpus_only
from segformer.model.decoder import FoldedDecoder, MLPDecoder
from segformer.model.encoder import MixTransformer
from segformer.model.pretrained import PretrainedModel
from segformer.model.products import passes_through, reuse_memory


class SegFormer(PretrainedModel):
    """The segmentation model: Mix Transformer encoder and all-MLP decoder.

    Args:
        config: Model configuration.
        classes: Classes of the model. Default: "class 0", "class 1", ...
        preprocessing: How images are converted to model input. Default: resize to 512 x 512,
            normalize with the ImageNet mean and standard deviation.

    Raises:
        ValueError: The number of classes does not match ``config.num_classes``.
    """

    kind = "segmenter"

    def __init__(
        self,
        config: SegFormerConfig,
        classes: Classes | None = None,
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__(config, classes, preprocessing)
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

        The encoder and the classifier have the parameters of this model itself, but the folded
        weights of the decoder are copies. Use this only if the model is not trained further, for
        example to export it. `inference_copy` returns a model that follows further training.
        """
        folded = inference_copy(self)
        assert isinstance(folded, SegFormer)
        if isinstance(folded.decoder, MLPDecoder):
            folded.decoder = folded.decoder.fold().eval()
        return folded


class SegFormerClassifier(PretrainedModel):
    """Image classifier, as pre-trained on ImageNet: encoder, mean of the last map, linear head.

    Args:
        config: Model configuration; the decoder fields are not used.
        classes: Classes of the model. Default: "class 0", "class 1", ...
        preprocessing: How images are converted to model input. Default: resize the short side to
            256, crop the central 224 x 224 pixels.

    Raises:
        ValueError: The number of classes does not match ``config.num_classes``.
    """

    kind = "classifier"

    def __init__(
        self,
        config: SegFormerConfig,
        classes: Classes | None = None,
        preprocessing: Preprocessing | None = None,
    ):
        if preprocessing is None:
            statistics = Preprocessing.for_channels(config.in_channels)
            preprocessing = replace(statistics, size=256, crop=(224, 224))
        super().__init__(config, classes, preprocessing)
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
    """Return a copy in evaluation mode with the same parameters; the mode of ``model`` is kept.

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
