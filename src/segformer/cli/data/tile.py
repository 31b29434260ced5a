"""`segformer data tile`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from dataclasses import dataclass
from typing import Annotated

from segformer.cli.data.stats import report_skipped
from segformer.cli.terminal import parse


def run(words: list[str]) -> int:
    """Run the action; returns the exit code."""
    import tyro

    from segformer.cli.data.writing import Writing

    @dataclass
    class Tile(Writing):
        """Cut large images and their masks into overlapping tiles that can be trained on.

        Writes images/, masks/ and dataset.yaml. A tile is named by its upper left corner:
        scene_y00448_x00000.png. Tiles without a labeled pixel are dropped. Images of other than
        one or three 8-bit channels become TIFF or .npy tiles with all their channels. Tiles of
        scenes, as dataset.yaml describes them, become GeoTIFF.

        Example: segformer data tile scenes tiles --size 512 --overlap 64

        Exit codes: 0 success; 1 error, and nothing is written; 2, wrong usage; 3, some images
        were skipped.

        Attributes:
            size: Side of the tiles in pixels.
            overlap: Overlap of neighboring tiles in pixels.
        """

        size: Annotated[
            int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 512)")
        ] = None
        overlap: Annotated[
            int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 64)")
        ] = None

    options = parse(Tile, "data tile", words)

    from segformer.data.tiling import tile
    from segformer.progress import ProgressBar

    parts = options.open()
    with ProgressBar("cutting", sum(map(len, parts)), "images") as bar:
        done = tile(
            parts,
            options.destination,
            size=options.size,
            overlap=options.overlap,
            overwrite=options.overwrite,
            on_sample=bar.advance,
        )
    counts = ", ".join(
        f"{split}: {tiles} tiles of {done.images[split]} images"
        for split, tiles in done.tiles.items()
    )
    print(f"written: {options.destination} ({counts})")
    if done.unlabeled:
        print(f"tiles without a labeled pixel, which were dropped: {done.unlabeled}")
    return report_skipped(done.skipped)
