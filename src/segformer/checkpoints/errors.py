"""Errors of checkpoints, and names from files in messages. Nothing here imports torch."""

from __future__ import annotations

_LONGEST_NAME = 120


class CheckpointError(ValueError):
    """A model that cannot be loaded; the message says which file or tensor, and what to do."""


def printable(text: object) -> str:
    """A name from a file for a message: no control characters, and shortened if very long."""
    name = str(text)
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in name)
