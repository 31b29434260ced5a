"""Measure a training step: forward, loss, backward of four 512 x 512 crops with 150 classes.

    python benchmarks/training_step.py [b0 b2]

Compares the model and loss of transformers with those of this package, with the same weights, in
float32 and under autocast to bfloat16. Dropout is off, so that the losses can be compared first.
The floor is three times the number of operations of the folded model divided by the speed of a
large matrix product.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch
import transformers
from forward import peer
from torch import Tensor, nn

from segformer import SegFormer
from segformer.model.products import reuse_memory
from segformer.training.losses import cross_entropy_at_mask_size

PEER, OURS = "transformers", "segformer"
BATCH, SIDE = 4, 512
Step = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("variants", nargs="*", default=["b0", "b2"])
    parser.add_argument("--precision", choices=["float32", "bfloat16"])
    parser.add_argument(harness.PEAK_OF, help="internal: run in a subprocess")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    precisions = [options.precision] if options.precision else ["float32", "bfloat16"]
    if options.peak_of:
        step = contenders(options.variants[0], precisions[0], [options.peak_of])[options.peak_of]
        harness.print_peak(step)
        return
    harness.report("training_step", (row(v, p) for v in options.variants for p in precisions))


def row(variant: str, precision: str) -> harness.Row:
    found = contenders(variant, precision, [PEER, OURS])
    losses = {name: step().item() for name, step in found.items()}
    assert abs(losses[PEER] - losses[OURS]) < (1e-4 if precision == "float32" else 1e-2), losses
    return harness.Row(
        f"training step {variant} {precision}",
        harness.in_turns(found, 3 if variant == "b0" else 1),
        OURS,
        3 * operations(variant) / harness.product_rate(getattr(torch, precision)),
        harness.peaks([PEER, OURS], variant, "--precision", precision),
        {"losses": losses},
    )


def operations(variant: str) -> int:
    """Count the operations of the forward pass; the backward pass needs twice as many."""
    folded = SegFormer.from_variant(variant).fold()
    with torch.no_grad():
        return BATCH * harness.operations(lambda: folded(torch.zeros(1, 3, SIDE, SIDE)))


def contenders(variant: str, precision: str, names: list[str]) -> dict[str, Step]:
    torch.manual_seed(0)
    reuse_memory()  # as in real training
    model = SegFormer.from_variant(variant, drop_path=0.0, dropout=0.0)
    pixels = torch.randn(BATCH, 3, SIDE, SIDE)
    # Uniform areas, as in real masks
    mask = torch.randint(0, 150, (BATCH, SIDE // 64, SIDE // 64))
    mask = mask.repeat_interleave(64, 1).repeat_interleave(64, 2)
    found: dict[str, Step] = {}
    for name in names:
        trained: nn.Module = (peer(model) if name == PEER else model).train()
        loss: Callable[[], Tensor] = partial(
            peer_loss if name == PEER else own_loss, trained, pixels, mask
        )
        found[name] = partial(step, trained, loss, precision == "bfloat16")
    return found


def peer_loss(model: nn.Module, pixels: Tensor, mask: Tensor) -> Tensor:
    return model(pixel_values=pixels, labels=mask).loss


def own_loss(model: nn.Module, pixels: Tensor, mask: Tensor) -> Tensor:
    return cross_entropy_at_mask_size(model(pixels), mask)


def step(model: nn.Module, loss: Callable[[], Tensor], half: bool) -> Tensor:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        value: Any = loss()
    value.backward()
    return value.detach()


if __name__ == "__main__":
    main()
