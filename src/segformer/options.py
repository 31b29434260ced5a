"""How the command line shows options whose default is worked out when a command runs."""

from __future__ import annotations

from typing import Any


def depends(metavar: str, default: str) -> Any:
    """An annotation for a field whose default is None, or empty.

    Args:
        metavar: What the help shows for the value, such as "PIXELS".
        default: What the default means, such as "three quarters of a window".

    Example:
        >>> stride: Annotated[int | None, depends("PIXELS", "three quarters of a window")] = None
    """
    from tyro.conf import arg  # for the command line alone

    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")
