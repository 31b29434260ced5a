"""Low-rank adapters: fine-tuning of a few parameters beside frozen weights.

LoRA (Hu et al. 2022, equation 3) trains W + alpha / r B A in place of a weight W, where A has r
rows, B has r columns, and r is small. The sum is computed before the product with the tokens, so
that an adapted layer runs on the same kernels as a plain one and gives the same values as the
merged layer. The sum costs r multiplications per weight, as much as r tokens.

Legend: r rank.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from segformer.model.products import Linear, full_precision, linear

Model = TypeVar("Model", bound=nn.Module)


class AdaptedLinear(Linear):
    """A frozen linear layer plus a trained product of two narrow matrices.

    Args:
        base: The layer. Its parameters are shared, and frozen.
        rank: r.
        alpha: The product is scaled by ``alpha / rank``.
        parts: Number of equal parts of the outputs that have an adapter each: 2 where one layer
            computes keys and values.
        generator: Random numbers of the initial values.

    Attributes:
        down: (parts * r, C_in), A in the paper; initialized like a linear layer.
        up: (C_out, r), B in the paper; initialized with zeros, so that the layer starts as
            ``base``.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        parts: int = 1,
        generator: torch.Generator | None = None,
    ):
        super().__init__(base.in_features, base.out_features, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.scale, self.parts = alpha / rank, parts
        down = torch.empty(parts * rank, base.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down.to(base.weight))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def merged_weight(self) -> Tensor:
        """The weight (C_out, C_in) with the adapter added."""
        with full_precision(self.weight.device):
            rank = self.up.shape[1]
            up = self.up.view(self.parts, -1, rank)  # (parts, C_out / parts, r)
            down = self.down.view(self.parts, rank, -1)  # (parts, r, C_in)
            return self.weight + self.scale * (up @ down).flatten(0, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C_in) -> (B, h, w, C_out)."""
        return linear(tokens, self.merged_weight(), self.bias)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with the same outputs."""
        layer = Linear(self.in_features, self.out_features, device="meta")
        layer.weight, layer.bias = nn.Parameter(self.merged_weight()), self.bias
        return layer

    def extra_repr(self) -> str:
        """Return rank and scale, shown when a model is printed."""
        return f"{super().extra_repr()}, rank={self.up.shape[1]}, scale={self.scale:g}"


def add_adapters(encoder: nn.Module, rank: int, alpha: float, seed: int = 0) -> None:
    """Add an adapter to each linear layer of the encoder's blocks, in place.

    Query, key, value, output and both layers of the Mix-FFN get one. Everything else in the
    encoder is frozen, except for the LayerNorms. Frozen stages (`MixTransformer.freeze`) stay as
    they are.

    Args:
        encoder: A `MixTransformer`.
        rank: r, at most the number of channels of a layer to be of use.
        alpha: See `AdaptedLinear`.
        seed: Seed of the initial values.

    Example:
        >>> add_adapters(model.encoder, rank=8, alpha=16)
        >>> ...  # train, with an optimizer over the parameters that require gradients
        >>> model.save_pretrained("adapted")  # a plain checkpoint: the adapters are merged
    """
    generator = torch.Generator().manual_seed(seed)
    for stage in encoder.get_submodule("stages").children():
        if not any(parameter.requires_grad for parameter in stage.parameters()):
            continue
        for module in stage.modules():
            module.requires_grad_(isinstance(module, nn.LayerNorm))
        for parent in list(stage.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is Linear:
                    parts = 2 if name == "key_value" else 1
                    setattr(parent, name, AdaptedLinear(child, rank, alpha, parts, generator))


def has_adapters(model: nn.Module) -> bool:
    """Whether any layer of the model has an adapter."""
    return any(isinstance(module, AdaptedLinear) for module in model.modules())


def merged(model: Model) -> Model:
    """A copy of the model with the adapters merged into the weights; a model without is returned.

    The outputs are the same, and the copy has the parameters of a plain model.
    """
    if not has_adapters(model):
        return model
    plain = copy.deepcopy(model)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AdaptedLinear):
                setattr(parent, name, child.merged())
    return plain.requires_grad_()
