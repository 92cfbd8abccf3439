"""Figures as inline SVG: lines with intervals, and bars.

Colours come from the page's style and follow its theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtrain.report.markup import escape

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 46  # margins of the plot in the figure
WHISKER_SHIFT = 4  # pixels between the intervals of two series at one x
Tick = tuple[float, str]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Point:
    """A value with its interval; `label` is shown by whoever points at it."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Series:
    """A line of a figure; `colour` is a class of the page's style."""

    name: str
    colour: str
    points: Sequence[Point]
    is_dashed: bool = False


def line_chart(
    series: Sequence[Series],
    x_ticks: Sequence[Tick],
    x_label: str,
    y_label: str,
    *,
    is_log_x: bool = False,
    is_percent: bool = True,
) -> str:
    """Draw lines with markers and intervals over shared axes, and a legend below; y starts at 0."""
    series = [line for line in series if line.points]
    if not series:
        return ""
    xs = [point.x for line in series for point in line.points] + [x for x, _ in x_ticks]
    to_x = _scale(min(xs), max(xs), LEFT + 12, WIDTH - RIGHT - 12, is_log_x)
    y_ticks = _y_ticks(
        max(max(point.high, point.y) for line in series for point in line.points), is_percent
    )
    to_y = _scale(0.0, y_ticks[-1][0], HEIGHT - BOTTOM, TOP)
    parts = [_axes(to_x, to_y, x_ticks, y_ticks, x_label, y_label)]
    for index, line in enumerate(series):
        shift = 0.0 if is_log_x else WHISKER_SHIFT * (index - (len(series) - 1) / 2)
        parts.append(_line(line, to_x, to_y, shift))
    legend = "".join(
        f'<li><i class="{line.colour}{" dashed" if line.is_dashed else ""}"></i>{escape(line.name)}</li>'
        for line in series
    )
    label = f"{y_label} against {x_label}"
    return f'<figure>{_svg(label, parts)}<figcaption><ul class="legend">{legend}</ul></figcaption></figure>'


def bar_chart(bars: Sequence[tuple[str, int]], x_label: str, y_label: str) -> str:
    """Draw a histogram; each bar has its label below and its count above."""
    y_ticks = _y_ticks(max(1, *(count for _, count in bars)), is_percent=False)
    width = (WIDTH - LEFT - RIGHT) / len(bars)
    to_x = _scale(0, len(bars), LEFT, WIDTH - RIGHT)
    to_y = _scale(0, y_ticks[-1][0], HEIGHT - BOTTOM, TOP + 8)
    parts = [
        _axes(
            to_x,
            to_y,
            [(i + 0.5, label) for i, (label, _) in enumerate(bars)],
            y_ticks,
            x_label,
            y_label,
        )
    ]
    for i, (_, count) in enumerate(bars):
        x, y = to_x(i), to_y(count)
        parts.append(
            f'<rect class="fill" x="{x + 2:.1f}" y="{y:.1f}" width="{width - 4:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}" rx="2"/>'
            f'<text x="{x + width / 2:.1f}" y="{y - 5:.1f}" text-anchor="middle">{count:,}</text>'
        )
    return f"<figure>{_svg(f'{y_label} against {x_label}', parts)}</figure>"


def log_ticks(low: float, high: float) -> list[Tick]:
    """Return ticks at 1, 2 and 5 times the powers of ten that bracket a positive range."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [mantissa * 10.0**exponent for exponent in exponents for mantissa in (1, 2, 5)]
    first = max((i for i, value in enumerate(values) if value <= low), default=0)
    last = min((i for i, value in enumerate(values) if value >= high), default=len(values) - 1)
    return [(value, _short(value)) for value in values[first : last + 1]]


def _svg(label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _scale(low: float, high: float, start: float, stop: float, is_log: bool = False) -> Scale:
    """Return the map from [low, high] to [start, stop]; a range of one value lands in the middle."""
    transform = math.log10 if is_log else float
    first, span = transform(low), transform(high) - transform(low)
    if span == 0:
        return lambda value: (start + stop) / 2
    return lambda value: start + (stop - start) * (transform(value) - first) / span


def _y_ticks(top: float, is_percent: bool) -> list[Tick]:
    """Return about five ticks from 0 to just above `top`, 1 to 5 times a power of ten apart."""
    rough = max(top, 0.01) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    count = math.ceil(top / step - 1e-9) or 1
    return [
        (i * step, f"{100 * i * step:.3g}%" if is_percent else _short(i * step))
        for i in range(count + 1)
    ]


def _short(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _axes(
    to_x: Scale,
    to_y: Scale,
    x_ticks: Sequence[Tick],
    y_ticks: Sequence[Tick],
    x_label: str,
    y_label: str,
) -> str:
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for value, text in y_ticks:
        y = to_y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in x_ticks:
        parts.append(
            f'<text x="{to_x(value):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>'
        )
    x = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    turn = f'transform="rotate(-90 12 {middle})"'
    parts.append(
        f'<text class="axis" x="12" y="{middle}" text-anchor="middle" {turn}>{escape(y_label)}</text>'
    )
    return "".join(parts)


def _line(line: Series, to_x: Scale, to_y: Scale, shift: float) -> str:
    places = [(to_x(point.x) + shift, to_y(point.y), point) for point in line.points]
    dash = "dashed" if line.is_dashed else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    parts = [f'<polyline class="{dash}" points="{path}"/>'] if len(places) > 1 else []
    radius = 3.4 if len(places) > 1 else 5.0  # a lone point has no line to find it by
    for x, y, point in places:
        low, high = to_y(max(point.low, 0.0)), to_y(point.high)
        parts.append(
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        )
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(point.label)}</title></circle>'
        )
    return f'<g class="{line.colour}">{"".join(parts)}</g>'
