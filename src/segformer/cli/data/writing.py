"""Options and steps of both `segformer data convert` and `segformer data tile`.

tyro reads the options from dataclasses, so annotations must be real types here, not the strings of
PEP 563.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from segformer.data.options import SeededSourceOptions

if TYPE_CHECKING:
    from segformer.data.dataset import Dataset


@dataclass
class Writing:
    """A data set that is read, and a folder that is written.

    Attributes:
        source: Folder with dataset.yaml, or with images/{train,val} and masks/{train,val}, or in a
            known layout, or a zip of one of these.
        destination: Folder to write, which must not exist.
        overwrite: Replace a folder that segformer data wrote.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DESTINATION")]
    overwrite: bool = False
    reading: Annotated[
        tyro.conf.OmitArgPrefixes[SeededSourceOptions], tyro.conf.arg(name="data set")
    ] = field(default_factory=SeededSourceOptions)

    def open(self) -> "list[Dataset]":
        """The splits to read, once it is sure that the folder can be written."""
        from segformer.data.plain import check_destination
        from segformer.data.source import open_parts

        check_destination(self.destination, self.source, overwrite=self.overwrite)
        parts = open_parts(self.source, self.reading, self.reading.seed)
        print(f"read as {parts[0].taken_for}")
        return parts
