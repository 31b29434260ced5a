"""`segformer convert`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segformer.cli.terminal import parse


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    @dataclass
    class Convert:
        """Write a model's weights with another codebase's names, bit for bit.

        Example: segformer convert segformer.b0.512x512.ade.160k.pth b0-ade --format hf

        Attributes:
            source: Folder, file or Hub id of a model, in any format.
            destination: File (.pth, .safetensors, ...), or for hf and smp a folder.
            format: Whose names to write: transformers and the Hub, the original code, OpenMMLab
                1.x, or segmentation_models.pytorch.
            half: Store float16.
        """

        source: tyro.conf.Positional[str]
        destination: tyro.conf.Positional[Path]
        format: Literal["hf", "nvlabs", "mmseg", "smp"]
        half: bool = False

    options = parse(Convert, "convert", words)

    import torch

    from segformer.checkpoints.writing import convert

    found = convert(
        options.source,
        options.destination,
        options.format,
        dtype=torch.float16 if options.half else None,
    )
    print(f"{found.format.title} {found.kind} -> {options.destination} ({options.format})")
    left_out = found.unused + found.unknown
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        print(f"left out: {', '.join(left_out[:5])}{more}", file=sys.stderr)
    return 0
