"""`segformer data check`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from segformer.cli.terminal import FAILED, parse, printable, show

if TYPE_CHECKING:
    from segformer.data.check import SplitReport


def run(words: list[str]) -> int:
    """Run the action; returns the exit code."""
    import tyro

    from segformer.data.options import SeededSourceOptions

    @dataclass
    class Check:
        r"""Read every image and mask of a data set once and report what is wrong with it.

        Says which layout the source was taken for and why. At the end it prints what to write into
        dataset.yaml, if that helps. A source that is not divided into training and validation is
        divided with --val-fraction, --fold or --val-list, as in segformer train.

        Example: segformer data check my-data

        Example: segformer data check export.zip --val-fraction 0.2 --group-by 'patient(\d+)'

        Exit codes: 0, ready to train; 1, training would fail; 2, wrong usage.

        Attributes:
            source: Folder with dataset.yaml, or with images/{train,val} and masks/{train,val}, or
                in a known layout, or a zip of one of these.
        """

        source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
        reading: Annotated[
            tyro.conf.OmitArgPrefixes[SeededSourceOptions], tyro.conf.arg(name="data set")
        ] = field(default_factory=SeededSourceOptions)

    options = parse(Check, "data check", words)

    from segformer.data.check import check_split, suggested_yaml
    from segformer.data.dataset import DatasetError
    from segformer.data.source import no_training_split, open_splits
    from segformer.progress import ProgressBar

    how = options.reading
    found, reports, failed, taken_for = list[str](), [], False, ""
    for split, dataset in open_splits(options.source, how, how.seed):
        found.append(split)
        if isinstance(dataset, DatasetError):
            print(f"\nsplit {split}\nerror: {printable(str(dataset))}")
            failed = True
            continue
        if not taken_for:
            taken_for = dataset.taken_for
            print(f"read as {printable(taken_for)}")
        with ProgressBar(f"checking {split}", len(dataset), "images") as bar:
            report = check_split(dataset, bar.advance)
        _show_report(report)
        reports.append(report)
    failed |= any(report.errors for report in reports)
    suggestion = suggested_yaml(reports)
    if suggestion:
        print(f"\nwrite into dataset.yaml:\n\n{suggestion}\n")
    if "train" not in found:
        print(f"error: {no_training_split(found)}")
        failed = True
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
        if images or len(dataset.classes) <= _ALL_SHOWN:
            table.add_row(str(i), name, f"{frequency:.2%}", str(images))
    total = report.labeled + report.ignored
    table.add_row(
        str(dataset.classes.ignore_index), "(ignored)", f"{report.ignored / max(total, 1):.2%}", ""
    )
    show(table)
    for line in report.describe():
        print(printable(line))


_ALL_SHOWN = 40
"""Classes up to which the table also has those that never occur."""
