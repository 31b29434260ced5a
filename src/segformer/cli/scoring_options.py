"""Options of the commands that score models on a data set.

tyro reads them from the dataclass, so annotations must be real types here, not the strings of
PEP 563. This module is imported when such a command runs.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from segformer.data.options import SeededSourceOptions
from segformer.evaluation.matching import MatchClasses
from segformer.prediction.config import PredictConfig


@dataclass(kw_only=True)
class ScoringOptions:
    """How models are scored on a data set.

    Attributes:
        split: Split of the data set to evaluate.
        out: Folder for the files that are written.
        overwrite: Replace these files if they exist, instead of refusing to start.
        match_classes: Match the model's classes with those of the data set by name (case is
            ignored, the order may differ), or by position, where equal class ids mean the
            same class whatever the names.
    """

    split: str = "val"
    out: Path = Path("evaluation")
    overwrite: bool = False
    match_classes: MatchClasses = "name"
    config: Annotated[
        PredictConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="prediction")
    ] = field(default_factory=PredictConfig)
    reading: Annotated[
        SeededSourceOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="data set")
    ] = field(default_factory=SeededSourceOptions)

    def protocol(self) -> dict[str, object]:
        """What a report says of how images were seen."""
        return {"match_classes": self.match_classes, "protocol": asdict(self.config)}
