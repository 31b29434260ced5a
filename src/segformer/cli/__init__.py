"""The command line: parsing only. What a command needs is imported when the command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from segformer.cli.terminal import (
    EVERY_COMMAND,
    FAILED,
    INTERRUPTED,
    USAGE,
    log_to_terminal,
    printable,
    take_log_level,
)


@dataclass(frozen=True)
class Command:
    """A command, whose module in this package has a function ``run(words) -> exit code``.

    Attributes:
        summary: One line for the list of commands.
        extra: The pip extra that it needs.
    """

    summary: str
    extra: str | None = None


COMMANDS = {
    "predict": Command("segment images: files, folders, patterns"),
    "train": Command("train a model on your own masks", "train"),
    "evaluate": Command("score a model on a labeled data set"),
    "compare": Command("compare two models on a labeled data set"),
    "serve": Command("segment images over HTTP, for programs and annotation tools", "serve"),
    "data": Command("check, show, measure, convert and tile data sets"),
    "export": Command("write a model for ONNX Runtime, OpenVINO and other programs"),
    "convert": Command("write a model's weights in another checkpoint format"),
    "info": Command("show what a model is: sizes, work, classes, origin"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    words, level = take_log_level(words)
    log_to_terminal(level)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from segformer import __version__

        print(__version__)
        return 0
    name = words.pop(0)
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"segformer: no command {name!r}{hint}\n\n{_help()}", file=sys.stderr)
        return USAGE
    try:
        code: int = import_module(f"segformer.cli.{name}").run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `segformer ... | head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError, MemoryError) as error:
        print(printable(f"segformer {name}: {error}"), file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"segformer {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        extra = COMMANDS[name].extra
        if extra is None or (error.name or "").startswith("segformer"):
            raise
        print(
            f"segformer {name}: {error.name} is not installed; "
            f"pip install 'segformer[{extra}]' brings it",
            file=sys.stderr,
        )
        return FAILED


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {c.summary}" for name, c in COMMANDS.items())
    return (
        "usage: segformer COMMAND ...\n\n"
        "SegFormer semantic segmentation: pretrained models, training, evaluation, prediction.\n\n"
        f"commands:\n{rows}\n\n"
        f"{EVERY_COMMAND}\n\n"
        "segformer COMMAND --help shows the options of a command; segformer --version prints the "
        "version."
    )
