"""Figures as data, lines with intervals or bars; `templates/macros.html` draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

WIDTH, HEIGHT = 446, 260  # pixels of the plot; labels stand around it
INSET = 12  # pixels between the sides of the plot and the ends of the x axis
Tick = tuple[float, str]


class Point(NamedTuple):
    """A value with its interval; `label` is shown to whoever points at it."""

    x: float
    y: float
    low: float
    high: float
    label: str = ""


class Series(NamedTuple):
    """A line of a figure; `colour` is a class of the page's style."""

    name: str
    colour: str
    points: Sequence[Point]
    is_dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure; its y axis starts at 0. Without a point or bar there is nothing to draw."""

    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    lines: Sequence[Series] = ()
    bars: Sequence[int] = ()  # bar i stands from i to i + 1
    is_log_x: bool = False
    is_percent: bool = False

    @cached_property
    def points(self) -> list[Point]:
        return [point for line in self.lines for point in line.points]

    @cached_property
    def y_ticks(self) -> list[Tick]:
        """About five ticks from 0 to just above the highest value, apart by 1 to 5 times 10^n."""
        tops = [max(point.y, point.high) for point in self.points] or [1, *self.bars]
        rough = max(*tops, 0.01) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
        values = [i * step for i in range(1 + (math.ceil(max(tops) / step - 1e-9) or 1))]
        return [(y, f"{100 * y:.3g}%" if self.is_percent else short(y)) for y in values]

    def x(self, value: float) -> float:
        """Return pixels from the left; a range of one value lands in the middle."""
        ends = [point.x for point in self.points] + [x for x, _ in self.x_ticks]
        ends = [0, len(self.bars)] if self.bars else ends
        transform = math.log10 if self.is_log_x else float
        low, high, at = map(transform, (min(ends), max(ends), value))
        share = (at - low) / (high - low) if high > low else 0.5
        return round(INSET + (WIDTH - 2 * INSET) * share, 1)

    def y(self, value: float) -> float:
        """Return pixels from the top."""
        return round(HEIGHT * (1 - value / self.y_ticks[-1][0]), 1)


def log_ticks(low: float, high: float) -> list[Tick]:
    """Return ticks at 1, 2 and 5 times the powers of ten that bracket a positive range."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [mantissa * 10.0**exponent for exponent in exponents for mantissa in (1, 2, 5)]
    first = max((value for value in values if value <= low), default=low)
    last = min((value for value in values if value >= high), default=high)
    return [(value, short(value)) for value in values if first <= value <= last]


def short(value: float) -> str:
    """Return "20", "2k" or "2M"."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"
