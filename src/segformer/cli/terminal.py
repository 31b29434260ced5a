"""What every command needs of the terminal: parsing, tables, messages, exit codes."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

FAILED, USAGE, PARTIAL, INTERRUPTED = 1, 2, 3, 130
"""Exit codes other than 0: an error; wrong usage; some of the inputs failed; Ctrl-C."""

EVERY_COMMAND = """\
options of every command:
  --quiet    show warnings and errors only, no progress
  --verbose  show more messages

exit codes: 0 success, 1 error, 2 wrong usage, 3 some inputs failed and the others are done,
130 interrupted (Ctrl-C)"""

T = TypeVar("T")


def parse(command: type[T], name: str, words: list[str]) -> T:
    """Options of a command as its dataclass; wrong words exit with code 2."""
    import tyro

    try:
        return tyro.cli(
            command, prog=f"segformer {name}", args=end_number_lists(words, number_lists(command))
        )
    except SystemExit as stop:
        if not stop.code:  # after the help
            print(EVERY_COMMAND, flush=True)
        raise


def number_lists(command: type) -> set[str]:
    """Options of a dataclass, and of those in it, that take any number of numbers."""
    found = set()
    hints = get_type_hints(command)
    for field in fields(command):
        kind = hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            found |= number_lists(kind)
        for option in (kind, *get_args(kind)):
            if get_origin(option) is tuple and get_args(option) in ((int, ...), (float, ...)):
                found.add("--" + field.name.replace("_", "-"))
    return found


def end_number_lists(words: list[str], options: set[str]) -> list[str]:
    """The words, with such options and their numbers moved to the end.

    So in ``--scales 0.75 1 photo.jpg`` the file is not taken for a third number.
    """
    end = words.index("--") if "--" in words else len(words)
    kept: list[str] = []
    moved: list[str] = []
    taking = False
    for word in words[:end]:
        taking = word.replace("_", "-") in options or (taking and _is_number(word))
        (moved if taking else kept).append(word)
    return [*kept, *moved, *words[end:]]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def printable(text: str) -> str:
    """Text from files, such as names, for a terminal: control characters are escaped."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def take_option(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option, or None, and the words without it."""
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            return words[i + 1], words[:i] + words[i + 2 :]
        if word.startswith(option + "="):
            return word.partition("=")[2], words[:i] + words[i + 1 :]
    return None, words


def show(table: Any) -> None:
    """Print a rich table on standard output."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    console = Console(markup=False)  # names of classes may contain brackets
    segments = [
        segment if segment.control else Segment(printable(segment.text), segment.style)
        for segment in console.render(table)
    ]
    console.print(Segments(segments), end="")


def show_failures(failures: Sequence[object]) -> None:
    """Print the images that were skipped on standard error, if there are any."""
    if failures:
        print(f"skipped images: {len(failures)}", file=sys.stderr)
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)


def print_outcome(
    what: str,
    *,
    done: int,
    failed: int,
    errors: Sequence[str],
    earlier: int = 0,
    note: str = "",
) -> int:
    """Print how many inputs are done, and the errors; returns the exit code.

    Args:
        what: The inputs and what was done to them, such as "images segmented into masks".
        done: Number of inputs that did not fail.
        failed: Number of inputs that failed.
        errors: The first of their errors, or all.
        earlier: Number of inputs that an earlier run had done; ``done`` includes them.
        note: End of the first line.
    """
    skipped = f", {earlier} of them earlier" if earlier else ""
    print(f"{done} of {done + failed} {what}{skipped}{note}")
    if not failed:
        return 0
    print(f"{failed} failed:", file=sys.stderr)
    for error in errors:
        print(printable(f"  {error}"), file=sys.stderr)
    if failed > len(errors):
        print(f"  and {failed - len(errors)} more, see the summary", file=sys.stderr)
    return PARTIAL if done else FAILED


def take_log_level(words: list[str]) -> tuple[list[str], int]:
    """The words without --quiet and --verbose, and the log level they stand for."""
    levels = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}
    asked = [levels[word] for word in words if word in levels]
    return [word for word in words if word not in levels], asked[-1] if asked else logging.INFO


class TerminalHandler(logging.Handler):
    """Messages on standard error; long ones are not wrapped."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        from segformer.progress import console

        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = level + printable(record.getMessage())
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def log_to_terminal(level: int) -> None:
    """Show messages and progress of the package from a level on."""
    logger = logging.getLogger("segformer")
    logger.setLevel(level)
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
