"""Compare fused attention with two products and a softmax, for the shapes of B0 training.

    python benchmarks/attention.py

For each stage at 256 x 256 and batch size 16, prints the time of a forward and a backward pass with
each implementation, and their ratio. `segformer.model.layers.attend` selects its implementation
based on these results.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def forward_backward(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor
) -> None:
    attention(query, key, value).sum().backward()  # type: ignore[no-untyped-call]


def explicit(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scale = query.shape[-1] ** -0.5
    return ((query * scale) @ key.transpose(-1, -2)).softmax(-1) @ value


def milliseconds(run: Callable[[], None], repeats: int = 9) -> float:
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times)[repeats // 2]


def main() -> None:
    print("precision  stage  fused ms  explicit ms  ratio")
    for dtype in (torch.float32, torch.bfloat16):
        shapes = ((1, 4096, 64), (2, 1024, 64), (5, 256, 64), (8, 64, 64))
        for stage, (heads, queries, keys) in enumerate(shapes, 1):
            inputs = [
                torch.randn(16, tokens, heads, 32, dtype=dtype).transpose(1, 2).requires_grad_()
                for tokens in (queries, keys, keys)
            ]
            difference = fused(*inputs) - explicit(*inputs)
            assert difference.abs().max() < (1e-5 if dtype == torch.float32 else 3e-2)
            times = [
                milliseconds(partial(forward_backward, function, *inputs))
                for function in (fused, explicit)
            ]
            name = str(dtype).removeprefix("torch.")
            ratio = times[0] / times[1]
            print(f"{name:9}  {stage:5}  {times[0]:8.2f}  {times[1]:11.2f}  {ratio:5.2f}")


if __name__ == "__main__":
    main()
