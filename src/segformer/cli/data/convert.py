"""`segformer data convert`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from dataclasses import dataclass

from segformer.cli.data.stats import report_skipped
from segformer.cli.terminal import parse


def run(words: list[str]) -> int:
    """Run the action; returns the exit code."""
    from segformer.cli.data.writing import Writing
    from segformer.data.conversion import Format

    @dataclass
    class Convert(Writing):
        """Write a data set of any layout as images/, masks/ and dataset.yaml, or as COCO JSON.

        Image files stay as they are. Masks are PNG files of class ids. The folder appears whole
        or not at all. Images that cannot be read, or whose masks cannot, are skipped and listed.

        Example: segformer data convert export.zip my-data --val-fraction 0.2

        Example: segformer data convert my-data my-data-coco --format coco

        Exit codes: 0 success; 1 error, and nothing is written; 2, wrong usage; 3, some images
        were skipped.

        Attributes:
            format: masks: masks of class ids and dataset.yaml; coco: COCO JSON with one run-length
                encoded annotation for each class in an image.
            link: Make hard links to the image files instead of copies.
        """

        format: Format = "masks"
        link: bool = False

    options = parse(Convert, "data convert", words)

    from segformer.data.conversion import convert
    from segformer.progress import ProgressBar

    parts = options.open()
    with ProgressBar("converting", sum(map(len, parts)), "images") as bar:
        done = convert(
            parts,
            options.destination,
            format=options.format,
            link=options.link,
            overwrite=options.overwrite,
            on_sample=bar.advance,
        )
    counts = ", ".join(f"{split}: {count} images" for split, count in done.images.items())
    print(f"written: {options.destination} ({counts})")
    for note in done.notes:
        print(f"note: {note}")
    return report_skipped(done.skipped)
