"""Options of the commands that read a data set: its layout, and how it is divided.

Nothing here imports more than the command line needs, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True)
class SourceOptions:
    """How a data set is read and divided.

    Attributes:
        layout: Name of the layout, instead of the one that the source is recognized by.
        val_fraction: Divide a source that is not divided: fraction of its images for validation.
            Classes that occur in few images are in both parts in proportion.
        fold: Divide it into folds, one of them for validation: 2/5 is the second of five.
        group_by: Keep images of one scene or patient in the same part: folder, or a regular
            expression whose first group is the scene or patient in the image's path.
        val_list: Text file with the names of the images for validation, one per line.
        train_list: The same for training.
    """

    layout: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: recognized)")
    ] = None
    val_fraction: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint="(default: as the source is divided)")
    ] = None
    fold: Annotated[str | None, arg(metavar="K/N", help_behavior_hint="")] = None
    group_by: Annotated[
        str | None, arg(metavar="folder|REGEX", help_behavior_hint="(default: each image alone)")
    ] = None
    val_list: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    train_list: Annotated[
        str | None,
        arg(metavar="FILE", help_behavior_hint="(default: all images not in val_list)"),
    ] = None

    @property
    def divides(self) -> bool:
        """Whether the source is divided as these options say."""
        given = (self.val_fraction, self.fold, self.val_list, self.train_list, self.group_by)
        return any(value is not None for value in given)


@dataclass(frozen=True)
class SeededSourceOptions(SourceOptions):
    """How a data set is read and divided.

    Attributes:
        seed: Seed of the random choices.
    """

    seed: int = 0
