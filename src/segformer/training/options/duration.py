"""Durations as text: 90s, 30m, 1h30m, 2d."""

from __future__ import annotations

import re

_MINUTES = {"d": 24 * 60.0, "h": 60.0, "m": 1.0, "s": 1 / 60}


def minutes_in(text: str, name: str = "duration") -> float:
    """Minutes of a duration such as "90s", "30m", "1h30m" or "2d".

    Args:
        text: Numbers, each with its unit: d, h, m or s.
        name: What the text is called in the error.

    Raises:
        ValueError: The text is no such duration, or the duration is zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*([dhms])", "", text).strip()
    minutes = sum(float(number) * _MINUTES[unit] for number, unit in parts)
    if rest or minutes <= 0:
        raise ValueError(f"{name} must be a duration such as 30m, 1h30m or 2d, not {text!r}")
    return minutes
