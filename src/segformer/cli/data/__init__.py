"""`segformer data`: one module per action, parsing only."""

import sys
from difflib import get_close_matches
from importlib import import_module

from segformer.cli.terminal import EVERY_COMMAND, USAGE

ACTIONS = {
    "check": "read every image and mask once and report what is wrong",
    "show": "draw a sheet of images with their masks",
    "stats": "mean and std of channels, image sizes, class frequencies",
    "convert": "write it as images/, masks/ and dataset.yaml, or as COCO JSON",
    "tile": "cut large images and masks into overlapping tiles",
}


def run(words: list[str]) -> int:
    """Run an action; returns the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    name = words[0]
    if name not in ACTIONS:
        close = get_close_matches(name, ACTIONS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"segformer data: no action {name!r}{hint}\n\n{_help()}", file=sys.stderr)
        return USAGE
    return import_module(f"segformer.cli.data.{name}").run(words[1:])


def _help() -> str:
    width = max(map(len, ACTIONS))
    rows = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in ACTIONS.items())
    return (
        "usage: segformer data ACTION SOURCE ...\n\n"
        "See and prepare a data set before training. SOURCE is a folder with dataset.yaml, with\n"
        "images/{train,val} and masks/{train,val}, or in a known layout (COCO JSON, YOLO,\n"
        "Cityscapes, Pascal VOC, LabelMe, ...), or a zip of one of these.\n\n"
        f"actions:\n{rows}\n\n"
        "Example: segformer data check my-data\n\n"
        f"{EVERY_COMMAND}\n\n"
        "segformer data ACTION --help shows the options of an action."
    )
