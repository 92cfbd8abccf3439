"""Every method at the same budgets, as lines for the terminal and as a figure.

The rows are those of `evaluation.budgets.compare`, with `share_early` of a search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxtrain.evaluation.strategies import STRATEGIES
from jaxtrain.report.charts import Chart, Point, Series, log_ticks, short
from jaxtrain.report.scores import NUM_COLOURS
from jaxtrain.report.values import Row, format_number

HEADS = ("method", "budget", "accuracy", "k", "tokens", "spent", "policy+PRM", "FLOPs", "seconds")
HEADS += ("minus best-of-k",)
EARLY = 0.05  # share of trees that end before their tokens do, above which it is told


def label(row: Row) -> str:
    """Name a method."""
    known = STRATEGIES.get(row["method"])
    return known.label if known else row["method"]


def budget(row: Row) -> str:
    """Name its budget; greedy decoding has none."""
    return short(row["budget"]) if row["budget"] else "-"


def cells(row: Row) -> list[str]:
    """Tell a row as text, below HEADS; spent is the share of the budget, and best-of-k has as many
    tokens as the method spent.
    """

    def points(key: str) -> str:
        return "?" if row[key] is None else format_number(row[key], "points")

    gain = ""
    if "minus_best_of_k" in row:
        low, high = points("minus_best_of_k_low"), points("minus_best_of_k_high")
        gain = f"{points('minus_best_of_k')} [{low}, {high}] (k {row['best_of_k']})"
    return [
        label(row),
        budget(row),
        f"{row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}]",
        "-" if row["k"] is None else str(row["k"]),
        f"{row['tokens']:,.0f}",
        f"{row['tokens'] / row['budget']:.0%}" if row["budget"] else "-",
        f"{row['policy_tokens']:,.0f}+{row['prm_tokens']:,.0f}",
        f"{row['flops']:.2e}",
        "-" if row["seconds"] is None else f"{row['seconds']:.2g}",
        gain,
    ]


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table for the terminal, and what must be known to read it."""
    table = [HEADS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()
    yield from notes(rows)


def notes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield which searches ended before their tokens did."""
    for row in rows:
        if (row.get("share_early") or 0) > EARLY:
            yield (
                f"{row['method']} at {budget(row)}: {row['share_early']:.0%} of its trees ended "
                "before their tokens did; exhausted trees want more candidates or widening"
            )


def chart(rows: Sequence[Row]) -> Chart:
    """Return the accuracies of every method against the tokens that it spent."""
    series = []
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        points = [
            Point(
                row["tokens"],
                row["accuracy"],
                row["low"],
                row["high"],
                f"{label(row)}, {row['tokens']:,.0f} tokens: {cells(row)[2]}",
            )
            for row in own
        ]
        series.append(Series(label(own[0]), f"c{number % NUM_COLOURS}", points))
    costs = [row["tokens"] for row in rows]
    ticks = log_ticks(min(costs), max(costs))
    x_label = "tokens per problem, policy and PRM"
    return Chart(x_label, "accuracy", ticks, series, is_log_x=True, is_percent=True)
