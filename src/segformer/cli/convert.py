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
        """Write a model's weights in another checkpoint format, bit for bit.

        Existing files are replaced only with --overwrite, and the source never.

        Example: segformer convert segformer.b0.512x512.ade.160k.pth b0-ade --format hf

        Attributes:
            source: Folder, file or Hub id of a model, in any format.
            destination: File (.pth, .pt, .bin or .safetensors); for hf and smp also a folder.
            format: hf: transformers and the Hub; nvlabs: the original code; mmseg: OpenMMLab 1.x;
                smp: segmentation_models.pytorch; segformer: this package's state_dict.
            half: Store the weights as float16.
            overwrite: Replace files at the destination.
        """

        source: tyro.conf.Positional[str]
        destination: tyro.conf.Positional[Path]
        format: Literal["hf", "nvlabs", "mmseg", "smp", "segformer"]
        half: bool = False
        overwrite: bool = False

    options = parse(Convert, "convert", words)

    import torch

    from segformer.checkpoints.writing import convert

    found = convert(
        options.source,
        options.destination,
        options.format,
        dtype=torch.float16 if options.half else None,
        overwrite=options.overwrite,
    )
    print(f"{found.format.title} {found.kind} -> {options.destination} ({options.format})")
    if found.unused:
        more = f" and {len(found.unused) - 5} more" if len(found.unused) > 5 else ""
        print(f"not converted: {', '.join(found.unused[:5])}{more}", file=sys.stderr)
    return 0
