"""`segformer data`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segformer.cli.terminal import FAILED, parse, show

if TYPE_CHECKING:
    from segformer.data.check import SplitReport


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    @dataclass
    class Check:
        """Read every image and mask of a data set once and report what is wrong with it.

        At the end it prints what to write into dataset.yaml, if that helps. Exit codes: 0, ready to
        train; 1, training would fail; 2, wrong usage.

        Example: segformer data check my-data

        Attributes:
            dataset: Folder with dataset.yaml, or with images/{train,val} and masks/{train,val}.
        """

        dataset: tyro.conf.Positional[Path]

    if not words or words[0] != "check":
        if words and words[0] not in ("-h", "--help"):
            raise ValueError(f"no such action {words[0]!r}; there is: check")
        print("usage: segformer data check DATASET\n\n" + (Check.__doc__ or "").split("\n")[0])
        return 0
    options = parse(Check, "data check", words[1:])

    from segformer.data.check import check_split, suggested_yaml
    from segformer.data.dataset import DatasetError, open_dataset, splits
    from segformer.progress import ProgressBar

    found = splits(options.dataset)
    if "train" not in found:
        raise DatasetError(f"{options.dataset}: there is no split 'train' to train on")
    reports = []
    for split in found:
        dataset = open_dataset(options.dataset, split)
        with ProgressBar(f"checking {split}", len(dataset), "images") as bar:
            report = check_split(dataset, bar.advance)
        _show_report(report)
        reports.append(report)
    failed = any(report.errors for report in reports)
    suggestion = suggested_yaml(reports)
    if suggestion:
        print(f"\nwrite into dataset.yaml:\n\n{suggestion}\n")
    print("training would fail" if failed else "ready to train")
    return FAILED if failed else 0


def _show_report(report: "SplitReport") -> None:
    from rich.table import Table

    dataset = report.dataset
    sizes = ", ".join(
        f"{width}x{height} ({count})" for (height, width), count in report.sizes.most_common(4)
    )
    more = f" and {len(report.sizes) - 4} more" if len(report.sizes) > 4 else ""
    print(f"\nsplit {dataset.split}: {len(dataset)} images of {sizes or 'no readable size'}{more}")
    table = Table()
    for column, justify in (("id", "right"), ("class", "left"), ("pixels", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("images", justify="right")
    rows = zip(dataset.classes.names, report.frequencies, report.images, strict=True)
    for i, (name, frequency, images) in enumerate(rows):
        table.add_row(str(i), name, f"{frequency:.2%}", str(images))
    total = int(report.pixels.sum()) + report.ignored
    table.add_row(
        str(dataset.classes.ignore_index), "(ignored)", f"{report.ignored / max(total, 1):.2%}", ""
    )
    show(table)
    for line in report.describe():
        print(line)
