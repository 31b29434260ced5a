"""Render a template to one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def render(template: str, **context: Any) -> str:
    """Render a template of this package; all text in ``context`` is escaped.

    The page may run no script but its own and load nothing: its content security policy forbids
    it, whatever names of classes and files hold.

    Args:
        template: Name of a file in ``templates``.
        **context: Variables of the template.
    """
    return _environment().get_template(template).render(**context)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("segformer.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, size=memory_size, number=number)
    loader = environment.loader
    assert loader is not None
    style, script = (loader.get_source(environment, name)[0] for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(style=style, script=script, script_hash=f"sha256-{digest}")
    return environment


def percent(value: float | None, digits: int = 1) -> str:
    """0.1234 -> "12.3 %"; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"  # noqa: RUF001


def points(value: float | None) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001
    return f"{round(100 * value, 2) + 0.0:+.2f}".replace("-", "\u2212")


def memory_size(count: float | None) -> str:
    """A number of bytes with a unit."""
    if count is None:
        return "–"  # noqa: RUF001
    power = min(len(_UNITS) - 1, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.{0 if power < 2 else 1}f} {_UNITS[power]}"


def number(value: float) -> str:
    """A count with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")
