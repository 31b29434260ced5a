"""Train another head on the encoder: here one that finds points.

    python examples/own_head.py

The head takes the feature maps at strides 8 and 32 and predicts a heat map of bright dots. The
first two stages of the encoder are frozen, which helps when there are few images.
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import segformer


class PointHead(nn.Module):
    """Logits of a heat map (B, 1, H / 8, W / 8) from two feature maps of the encoder."""

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, 64, 1) for c in channels)
        self.heat = nn.Conv2d(64, 1, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Feature maps at strides 8 and 32 -> logits of the heat map."""
        fine, coarse = (
            lateral(features) for lateral, features in zip(self.laterals, maps, strict=True)
        )
        return self.heat(F.relu(fine + F.interpolate(coarse, size=fine.shape[2:])))


def dots(count: int, side: int = 128) -> tuple[Tensor, Tensor]:
    """Images of noise with one bright dot each, and the heat maps of the dots."""
    pixels = 0.3 * torch.randn(count, 3, side, side)
    heat = torch.zeros(count, 1, side // 8, side // 8)
    for i, (y, x) in enumerate(torch.randint(8, side - 8, (count, 2)).tolist()):
        pixels[i, :, y - 4 : y + 4, x - 4 : x + 4] += 3
        heat[i, 0, y // 8, x // 8] = 1
    return pixels, heat


def main(steps: int = 60) -> None:
    torch.manual_seed(0)
    encoder = segformer.MixTransformer.from_pretrained("human-parsing-b0", out_indices=(1, 3))
    encoder.freeze(2).train()
    head = PointHead(encoder.out_channels)
    trainable = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)
    for step in range(steps):
        pixels, heat = dots(8)
        predicted = head(encoder(pixels))
        loss = F.binary_cross_entropy_with_logits(predicted, heat, pos_weight=torch.tensor(50.0))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    encoder.eval()
    pixels, heat = dots(32)
    with torch.no_grad():
        predicted = head(encoder(pixels))
    found = predicted.flatten(1).argmax(1) == heat.flatten(1).argmax(1)
    height, width = predicted.shape[2:]
    print(f"dots found in a heat map of {height} x {width}: {int(found.sum())} of {len(found)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
