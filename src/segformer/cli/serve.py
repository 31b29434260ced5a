"""`segformer serve`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

import logging
import sys
from dataclasses import dataclass, field
from typing import Annotated

from segformer.cli.terminal import parse


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.prediction.config import PredictConfig
    from segformer.serving.options import ServeOptions

    @dataclass
    class Serve:
        """Segment images over HTTP, until SIGTERM or Ctrl-C.

        Example: segformer serve runs/mine/best --port 8000

        POST /v1/segment takes an image and gives the label map, an overlay, class fractions, COCO
        run lengths, polygons or the confidence; /docs describes all of it. /label-studio is an ML
        backend for Label Studio. Requests are logged on standard error as lines of JSON.

        Attributes:
            models: Folders, files or Hub ids of models, each with a name of its own if given as
                NAME=MODEL. The first is the default.
        """

        models: Annotated[
            tyro.conf.Positional[tuple[str, ...]],
            tyro.conf.arg(
                metavar="[MODEL ...]",
                help_behavior_hint="(default: the human parsing model inside)",
            ),
        ] = ()
        options: Annotated[
            ServeOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="service")
        ] = field(default_factory=ServeOptions)
        config: Annotated[
            PredictConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="prediction")
        ] = field(default_factory=PredictConfig)

    options = parse(Serve, "serve", words)

    from segformer.serving.server import serve

    _log_requests()
    serve(options.models, options.options, options.config)
    return 0


def _log_requests() -> None:
    """Write the lines of the access log as they are, without the terminal's formatting."""
    logger = logging.getLogger("segformer.serving.access_log")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.propagate = False
