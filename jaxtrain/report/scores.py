"""What the evaluation measured: accuracy against tokens, method by method; what the PRM knows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtrain.evaluation.strategies import BUDGET, STRATEGIES
from jaxtrain.intervals import mean_interval
from jaxtrain.report.charts import Chart, Point, Series, log_ticks
from jaxtrain.report.values import Row, is_number

SEARCH = BUDGET  # its tokens are what the others are given
WITH_CALCULATOR = ", with a calculator"  # behind the name of every result that has one
NUM_COLOURS = 6  # classes c0 to c5 of the page's style


class Gain(NamedTuple):
    """A difference of accuracies, and its 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def is_beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0


def tell_accuracy(row: Row) -> str:
    """Return a line for the terminal: an iteration's accuracies as far as measured."""
    keys = [key for key in STRATEGIES if _has(row, key)]
    found = [f"{STRATEGIES[key].label} {row[f'evaluation/{key}/accuracy']:.1%}" for key in keys]
    found += [f"{row[f'evaluation/{key}/num_problems']:,} problems" for key in keys[:1]]
    told = WITH_CALCULATOR if row.get("evaluation/has_calculator") else ""
    return f"iteration {row['iteration']}{told}: {' | '.join(found) or 'no problem was scored'}"


def scored(history: list[Row], *methods: str) -> list[Row]:
    """Return the iterations in which one of the methods was scored, or any."""
    keys = [f"evaluation/{method}/accuracy" for method in methods or STRATEGIES]
    return [row for row in history if any(key in row for key in keys)]


def paired(ours: Sequence[int] | None, theirs: Sequence[int] | None) -> Gain | None:
    """Return the difference of two accuracies, its interval bootstrapped over problems.

    `ours` and `theirs` are outcomes, 1 or 0 a problem; None where they cannot be paired.
    """
    if not ours or not theirs or len(ours) != len(theirs):
        return None
    difference = np.subtract(ours, theirs)
    return Gain(float(difference.mean()), *mean_interval(difference, np.arange(len(difference))))


def best(row: Row) -> dict[str, Any] | None:
    """Return which method is best at equal tokens, and by how much on the same problems.

    None without search, and where it has no rival: greedy decoding, which costs less, is none, nor
    is the oracle.
    """
    found = {key: row.get(f"evaluation/{key}/outcomes") for key in STRATEGIES}
    solved = {key: x for key, x in found.items() if x and not STRATEGIES[key].is_oracle}
    rivals = [key for key in solved if STRATEGIES[key].trees != "greedy"]
    if len(rivals) < 2 or SEARCH not in rivals:
        return None
    first = max(rivals, key=lambda key: np.mean(solved[key]))
    gains = {key: paired(solved[first], solved[key]) for key in solved if key != first}
    return {
        "method": first,
        "gains": {key: gain for key, gain in gains.items() if gain},
        # The sentence claims no more than the intervals.
        "is_clear": all((g := gains[key]) and g.is_beyond_noise for key in rivals if key != first),
        "is_short": any(row.get(f"evaluation/{key}/is_budget_short") for key in rivals),
    }


def by_iteration(rows: list[Row]) -> Chart:
    """Return the accuracies of every method along the run."""
    lines = [
        _line(key, [to_point(row, key, row["iteration"]) for row in rows if _has(row, key)])
        for key in STRATEGIES
    ]
    return along_iterations(rows, lines)


def along_iterations(rows: list[Row], lines: list[Series]) -> Chart:
    """Return a figure of accuracies with the iterations of some rows below."""
    ticks = [(float(i), str(i)) for i in sorted({row["iteration"] for row in rows})]
    return Chart("iteration", "accuracy", ticks[:: 1 + len(ticks) // 12], lines, is_percent=True)


def by_tokens(row: Row) -> Chart:
    """Return an iteration's accuracies against their cost, along k where there is one."""
    lines = []
    for key, strategy in STRATEGIES.items():
        curve, tokens = (row.get(f"evaluation/{key}/{what}") for what in ("curve", "tokens"))
        points = []
        for x, y, low, high, k in curve or []:
            if None not in (x, y, low, high, k) and x > 0:
                told = f"{strategy.label}, k = {k:g}, {x:,.0f} tokens: {_told(y, low, high)}"
                points.append(Point(x, y, low, high, told))
        if not curve and tokens and _has(row, key):
            points = [to_point(row, key, tokens)]
        lines.append(_line(key, points))
    costs = [point.x for line in lines for point in line.points]
    ticks = log_ticks(min(costs), max(costs)) if costs else []
    x_label = "tokens per problem, policy and PRM"
    return Chart(x_label, "accuracy", ticks, lines, is_log_x=True, is_percent=True)


def calibration(bins: list[list[float]]) -> Chart:
    """Return the mean target of each bin [prediction, target, steps] that holds a step."""
    points = [
        Point(x, y, y, y, f"predicted {x:.3f}, target {y:.3f}, {count:,.0f} steps")
        for x, y, count in bins
        if count and None not in (x, y)
    ]
    ideal = [Point(x, x, x, x) for x in (0.0, 1.0)]
    lines = [Series("perfectly calibrated", "c5", ideal, True), Series("PRM", "c4", points)]
    ticks = [(tenth / 10, f"{tenth / 10:g}") for tenth in range(0, 11, 2)]
    return Chart("mean prediction", "mean target", ticks, lines)


def colour(method: str) -> str:
    """Return a class of the page's style."""
    return f"c{list(STRATEGIES).index(method) % NUM_COLOURS}"


def _has(row: Row, method: str) -> bool:
    return is_number(row.get(f"evaluation/{method}/accuracy"))


def _line(method: str, points: list[Point]) -> Series:
    strategy = STRATEGIES[method]
    return Series(strategy.label, colour(method), points, strategy.is_oracle)


def to_point(row: Row, method: str, x: float) -> Point:
    key = f"evaluation/{method}"
    accuracy = row[f"{key}/accuracy"]
    ends = [row.get(f"{key}/{end}") for end in ("low", "high")]
    low, high = (accuracy if end is None else end for end in ends)
    name = f"{STRATEGIES[method].label}, iteration {row['iteration']}"
    return Point(x, accuracy, low, high, f"{name}: {_told(accuracy, low, high)}")


def _told(accuracy: float, low: float, high: float) -> str:
    return f"{accuracy:.1%} ({low:.1%} to {high:.1%})"
