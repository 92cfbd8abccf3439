"""Rows of the metrics log, and values as text. What is HTML stands in `templates/` alone."""

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

Row = dict[str, Any]  # an event of the metrics log, or all events of an iteration as one
STYLES = {"percent": ".1%", "decimal": ".3f", "signed": "+.3f", "count": ",.0f", "ratio": ".2f"}


def merge(rows: Iterable[Row]) -> list[Row]:
    """Return one row per iteration, oldest first; of a key logged twice it has the newest value."""
    merged: dict[int, Row] = {}
    for row in rows:
        merged.setdefault(row["iteration"], {}).update(row)
    return [merged[iteration] for iteration in sorted(merged)]


def newest(history: list[Row], key: str) -> Row | None:
    """Return the newest iteration that has the key, and no NaN there; None if none has."""
    found = ((row, row.get(key)) for row in reversed(history))
    return next((row for row, value in found if value is not None and value == value), None)


def having(history: list[Row], prefix: str) -> list[Row]:
    """Return the iterations that have a key with the prefix."""
    return [row for row in history if any(key.startswith(prefix) for key in row)]


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def visible(value: Any) -> Any:
    """Return a value with the characters that cannot be seen (controls, bidi marks) as escapes.

    The templates send everything that they show through here, and escape it afterwards. What is
    HTML already passes as it is.
    """
    text = str(value)
    if hasattr(value, "__html__") or text.isprintable():
        return value
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def format_number(value: float, style: str = "plain") -> str:
    """Return a number as text: in one of STYLES, points (of a share), seconds, or plain."""
    if style in STYLES:
        return format(value, STYLES[style])
    if style == "points":
        return f"{100 * value:+.1f}"
    if style == "seconds":
        return format_seconds(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """Return "0.4 s", "12 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02} min" if hours else f"{minutes} min {rest:02} s"
