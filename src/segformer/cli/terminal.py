"""What every command needs of the terminal: parsing, tables, messages, exit codes."""

import logging
from typing import Any, TypeVar

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes beside 0: something failed; wrong usage; Ctrl-C."""

T = TypeVar("T")


def parse(command: type[T], name: str, words: list[str]) -> T:
    """Options of a command as its dataclass; wrong words exit with code 2."""
    import tyro

    return tyro.cli(command, prog=f"segformer {name}", args=words)


def take_option(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of ``option``, whose file gives the others their defaults, and the rest."""
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            return words[i + 1], words[:i] + words[i + 2 :]
        if word.startswith(option + "="):
            return word.partition("=")[2], words[:i] + words[i + 1 :]
    return None, words


def show(table: Any) -> None:
    """Print a rich table on standard output."""
    from rich.console import Console

    Console(markup=False).print(table)  # names of classes may hold brackets


def take_log_level(words: list[str]) -> tuple[list[str], int]:
    """The words without --quiet and --verbose, and the level of messages they ask for."""
    levels = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}
    asked = [levels[word] for word in words if word in levels]
    return [word for word in words if word not in levels], asked[-1] if asked else logging.INFO


class TerminalHandler(logging.Handler):
    """Messages on standard error, each as one line however narrow the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        from segformer.progress import console

        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        console.print(level + record.getMessage(), highlight=False, markup=False, soft_wrap=True)


def log_to_terminal(level: int) -> None:
    """Show the package's messages of a level and above."""
    logger = logging.getLogger("segformer")
    logger.setLevel(level)
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
