"""Text, numbers and tables as HTML.

Everything that is shown passes through here, and so through `escape`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

Row = dict[str, Any]  # an event of the metrics log, or all events of an iteration as one
NONE = '<span class="none">&ndash;</span>'


def escape(value: object) -> str:
    """Return text that HTML shows as it is, characters that cannot be seen (controls, bidi marks)
    as escapes.
    """
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return html.escape(text)


def merge(rows: Iterable[Row]) -> list[Row]:
    """Return one row per iteration, oldest first; of a key that was logged twice the newest value."""
    merged: dict[int, Row] = {}
    for row in rows:
        merged.setdefault(row["iteration"], {}).update(row)
    return [merged[iteration] for iteration in sorted(merged)]


def get_row(history: list[Row], key: str) -> Row | None:
    """Return the newest iteration that has the key, None if none has."""
    return next((row for row in reversed(history) if row.get(key) is not None), None)


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(row: Row, key: str, style: str = "plain") -> str:
    """Return one metric as text that carries its key and full value; a dash where it is missing."""
    value = row.get(key)
    if not is_number(value):
        return NONE
    iteration = row["iteration"]
    return (
        f'<data value="{value!r}" data-key="{escape(key)}" data-iteration="{iteration}" '
        f'title="{escape(key)}, iteration {iteration}: {value!r}">{format_number(value, style)}</data>'
    )


def interval(row: Row, low: str, high: str, style: str) -> str:
    """Return "low to high" of two metrics, nothing where they are missing."""
    if not is_number(row.get(low)) or not is_number(row.get(high)):
        return ""
    return f"{number(row, low, style)} to {number(row, high, style)}"


def format_number(value: float, style: str) -> str:
    """Return a number as text: percent, points, decimal (3 places), signed, count, seconds, or
    plain.
    """
    if style == "percent":
        return f"{value:.1%}"
    if style == "points":
        return f"{100 * value:+.1f}"
    if style == "decimal":
        return f"{value:.3f}"
    if style == "signed":
        return f"{value:+.3f}"
    if style == "count":
        return f"{value:,.0f}"
    if style == "seconds":
        return duration(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return "0.4 s", "12 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
    )


def bar(share: float) -> str:
    """Return a thin bar that fills the share of its track."""
    return (
        f'<span class="bar"><span style="width:{100 * min(max(share, 0), 1):.1f}%"></span></span>'
    )


def table(head: Sequence[str], body: Iterable[Sequence[str]], style: str = "") -> str:
    """Return a table of HTML cells; the first column names the row.

    A row of one cell is a heading over all columns.
    """
    lines = []
    for first, *rest in body:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        span = "" if rest else f' colspan="{len(head)}" class="group"'
        lines.append(f'<tr><th scope="row"{span}>{first}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return (
        f'<div class="scroll"><table class="{style}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def iteration_name(row: Row) -> str:
    return f"iteration {row['iteration']}" if row["iteration"] else "warm start"
