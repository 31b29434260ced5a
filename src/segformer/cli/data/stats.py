"""`segformer data stats`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from segformer.cli.terminal import PARTIAL, parse, printable, show

if TYPE_CHECKING:
    from segformer.data.check import SplitReport

_SHOWN = 40
"""Classes that the table lists, the most frequent ones; stats.json has all."""


def run(words: list[str]) -> int:
    """Run the action; returns the exit code."""
    import tyro

    from segformer.data.options import SeededSourceOptions

    @dataclass
    class Stats:
        """Measure a data set: channels, image sizes, class frequencies and co-occurrence.

        Prints a table and writes stats.json and stats.png. Every file is read once.

        Example: segformer data stats my-data --out stats

        Exit codes: 0 success; 1, the source cannot be read; 2, wrong usage; 3, images or masks
        that cannot be read were skipped, and are listed.

        Attributes:
            source: Folder with dataset.yaml, or with images/{train,val} and masks/{train,val}, or
                in a known layout, or a zip of one of these.
            out: Folder for stats.json and stats.png.
            overwrite: Replace these two files if they exist.
        """

        source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
        out: Path = Path("stats")
        overwrite: bool = False
        reading: Annotated[
            tyro.conf.OmitArgPrefixes[SeededSourceOptions], tyro.conf.arg(name="data set")
        ] = field(default_factory=SeededSourceOptions)

    options = parse(Stats, "data stats", words)

    from segformer.data.check import check_split
    from segformer.data.dataset import DatasetError
    from segformer.data.source import open_splits
    from segformer.data.statistics import statistics
    from segformer.data.statistics_plot import statistics_plot
    from segformer.files import check_replaceable, write_json
    from segformer.progress import ProgressBar

    written = [options.out / "stats.json", options.out / "stats.png"]
    check_replaceable(written, overwrite=options.overwrite)
    reports = []
    for split, dataset in open_splits(options.source, options.reading, options.reading.seed):
        if isinstance(dataset, DatasetError):
            raise dataset
        if not dataset.has_masks:
            print(f"split {split} has no masks: not measured")
            continue
        with ProgressBar(f"reading {split}", len(dataset), "images") as bar:
            report = check_split(dataset, bar.advance)
        if not report.sizes:
            raise DatasetError(f"{dataset.root}: no image can be used: {report.errors[0]}")
        reports.append(report)
        _show(report)
    if not reports:
        raise DatasetError(f"{options.source}: there are no masks")
    write_json(written[0], statistics(reports))
    statistics_plot(reports, written[1])
    print("written: " + ", ".join(map(str, written)))
    failures = [message for report in reports for _, message in report.failures]
    return report_skipped(failures)


def report_skipped(messages: list[str]) -> int:
    """List images that were skipped; returns the exit code."""
    if not messages:
        return 0
    print(f"skipped images: {len(messages)}", file=sys.stderr)
    for message in messages[:50]:
        print(printable(f"  {message}"), file=sys.stderr)
    if len(messages) > 50:
        print(f"  and {len(messages) - 50} more", file=sys.stderr)
    return PARTIAL


def _show(report: "SplitReport") -> None:
    from rich.table import Table

    dataset, order = report.dataset, (-report.pixels).argsort(kind="stable")
    sizes = ", ".join(f"{w}x{h} ({count})" for (h, w), count in report.sizes.most_common(4))
    more = f" and {len(report.sizes) - 4} more" if len(report.sizes) > 4 else ""
    print(f"\nsplit {dataset.split}: {len(dataset)} images of {sizes}{more}")
    if report.sums is not None:
        for name, values in zip(("mean", "std"), report.mean_and_std, strict=True):
            print(f"{name}: {', '.join(f'{value:.5g}' for value in values)}")
    table = Table()
    table.add_column("id", justify="right")
    table.add_column("class")
    for column in ("pixels", "fraction", "images"):
        table.add_column(column, justify="right")
    table.add_column("most often with")
    names = dataset.classes.names
    for i in order[:_SHOWN].tolist():
        table.add_row(
            str(i),
            names[i],
            f"{int(report.pixels[i])}",
            f"{report.frequencies[i]:.2%}",
            str(int(report.images[i])),
            _companions(report, i),
        )
    show(table)
    if len(names) > _SHOWN:
        print(f"and {len(names) - _SHOWN} more classes")
    total = report.labeled + report.ignored
    print(f"not labeled: {report.ignored / max(total, 1):.2%} of the pixels")


def _companions(report: "SplitReport", class_id: int) -> str:
    """The three classes that occur in most images of a class."""
    row = report.cooccurrence[class_id].copy()
    row[class_id] = 0
    best = [i for i in (-row).argsort(kind="stable")[:3].tolist() if row[i]]
    return ", ".join(report.dataset.classes.names[i] for i in best)
