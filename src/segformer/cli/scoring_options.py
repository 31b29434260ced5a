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
from segformer.prediction.config import PredictConfig, Protocol


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
        protocol: "paper" sees images exactly as the original evaluation of SegFormer: resized
            without antialiasing, their sides rounded up to multiples of 32 unless they are run
            in windows, and the logits resized to that size before they are resized to the
            image. It takes --short-side, --window, --stride, --scales and --flip; see
            docs/protocol.md. A classifier has no such protocol.
    """

    split: str = "val"
    out: Path = Path("evaluation")
    overwrite: bool = False
    match_classes: MatchClasses = "name"
    protocol: Protocol = "default"
    config: Annotated[
        PredictConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="prediction")
    ] = field(default_factory=PredictConfig)
    reading: Annotated[
        SeededSourceOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="data set")
    ] = field(default_factory=SeededSourceOptions)

    def entries(self) -> dict[str, object]:
        """What a report says of how images were seen."""
        return {
            "match_classes": self.match_classes,
            "protocol": {"name": self.protocol, **asdict(self.config)},
        }
