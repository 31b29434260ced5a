"""The two models: SegFormer for segmentation, SegFormerClassifier for ImageNet's task.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segformer.image import Preprocessing
from segformer.labels import LabelSet
from segformer.model.config import SegFormerConfig
from segformer.model.decoder import FoldedDecoder, MLPDecoder
from segformer.model.encoder import MixTransformer


class SegFormer(nn.Module):
    """The segmentation model: Mix Transformer and all-MLP decoder.

    Args:
        config: Shapes and arithmetic.
        labels: Its classes. Left out: numbered ones.
        preprocessing: How pictures become its input. Left out: 512 x 512, ImageNet statistics.

    Raises:
        ValueError: ``labels`` and ``config.num_classes`` disagree.
    """

    def __init__(
        self,
        config: SegFormerConfig,
        labels: LabelSet | None = None,
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__()
        self.config = config
        self.labels = labels or LabelSet.numbered(config.num_classes)
        self.preprocessing = preprocessing or Preprocessing.for_bands(config.in_channels)
        expected = 2 if config.num_classes == 1 else config.num_classes
        if len(self.labels) != expected:
            raise ValueError(
                f"a model of {config.num_classes} output channels has {expected} classes, "
                f"not the {len(self.labels)} that were named"
            )
        self.encoder = MixTransformer(config)
        self.decoder: MLPDecoder | FoldedDecoder = MLPDecoder(config)

    @classmethod
    def from_variant(
        cls, variant: str, *, labels: LabelSet | None = None, **overrides: Any
    ) -> SegFormer:
        """A model with fresh weights.

        Args:
            variant: "b0" to "b5".
            labels: Its classes; fixes ``num_classes`` unless that is given.
            **overrides: Fields of `SegFormerConfig`, such as ``num_classes`` (1 = binary with a
                sigmoid) or ``in_channels``.
        """
        if labels is not None:
            overrides.setdefault("num_classes", len(labels))
        return cls(SegFormerConfig.from_variant(variant, **overrides), labels)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> SegFormer:
        """Load a model from a folder in the Hub layout; see `segformer.checkpoints.store.load`.

        Raises:
            CheckpointError: Something is missing, broken, or does not fit.
        """
        from segformer.checkpoints import store

        return store.load(source)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the model in the Hub layout; see `segformer.checkpoints.store.save`.

        Args:
            folder: Made if it is not there.
            dtype: Of the stored weights; left out, as they are.

        Raises:
            ValueError: The model is folded.
        """
        from segformer.checkpoints import store

        store.save(self, folder, dtype=dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits at a quarter of the picture's size.

        Args:
            pixels: (B, in_channels, H, W), normalised, float; both sides at least
                ``config.min_size`` (29 for B0..B5), otherwise of any size.

        Returns:
            (B, num_classes, ceil(H / 4), ceil(W / 4)).

        Raises:
            ValueError: Another number of dimensions or bands, or too small a picture.
        """
        return self.decoder(self.encoder(pixels))

    def fold(self) -> SegFormer:
        """A model for inference with the same outputs: the decoder's constants multiplied out.

        Encoder and classifier are shared with this model; the folded weights are a snapshot.
        """
        folded = copy.copy(self)
        folded._modules = dict(self._modules)
        if isinstance(self.decoder, MLPDecoder):
            folded.decoder = self.decoder.fold()
        return folded.eval()


class SegFormerClassifier(nn.Module):
    """Encoder, mean over the last map, linear head: the model that ImageNet trains.

    Args:
        config: Shapes and arithmetic; its decoder fields are not used.
    """

    def __init__(self, config: SegFormerConfig):
        super().__init__()
        self.config = config
        self.encoder = MixTransformer(config)
        self.head = nn.Linear(config.channels[-1], config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> SegFormerClassifier:
        """A classifier with fresh weights; ``overrides`` are fields of `SegFormerConfig`."""
        overrides.setdefault("num_classes", 1000)
        return cls(SegFormerConfig.from_variant(variant, **overrides))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, in_channels, H, W), normalised -> logits (B, num_classes)."""
        return self.head(self.encoder(pixels)[-1].mean(dim=(2, 3)))


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities (B, K, ...); two classes for a binary model's one logit."""
    if logits.shape[1] == 1:
        foreground = logits.sigmoid()
        return torch.cat([1 - foreground, foreground], dim=1)
    return logits.softmax(dim=1)
