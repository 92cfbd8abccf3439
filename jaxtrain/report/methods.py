"""Every method at the same budgets, as a table of text for the terminal and the page.

The rows are those of `evaluation.budgets.compare`, with `share_early` of a search and
`has_calculator` of a row whose texts had one.
"""

from collections.abc import Iterator, Sequence

from jaxtrain.evaluation.strategies import STRATEGIES
from jaxtrain.report.charts import short
from jaxtrain.report.scores import WITH_CALCULATOR
from jaxtrain.report.values import Row, format_number

HEADS = ("budget", "method", "accuracy", "k", "tokens", "policy+PRM", "FLOPs", "seconds")
HEADS += ("ended early", "minus best-of-k")
MEANING = (
    "Tokens, FLOPs and seconds are those of a problem: tokens of both networks, prompts included, "
    "and what share of the budget they are; seconds of growing and judging, without compilation. "
    "Ended early: trees that ended before their tokens did, exhausted or decided. The difference, "
    "in points, is from the best of as many samples as cost what the method spent."
)


def cells(row: Row) -> list[str]:
    """Tell a row as text, below HEADS."""
    known, early = STRATEGIES.get(row["method"]), row.get("share_early")
    how = WITH_CALCULATOR if row.get("has_calculator") else ""
    gain = ["minus_best_of_k", "minus_best_of_k_low", "minus_best_of_k_high"]
    told = ["?" if row.get(x) is None else format_number(row[x], "points") for x in gain]
    spent = f" ({row['tokens'] / row['budget']:.0%})" if row["budget"] else ""
    return [
        short(row["budget"]) if row["budget"] else "-",
        (known.label if known else row["method"]) + how,
        f"{row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}]",
        "-" if row["k"] is None else str(row["k"]),
        f"{row['tokens']:,.0f}{spent}",
        f"{row['policy_tokens']:,.0f}+{row['prm_tokens']:,.0f}",
        f"{row['flops']:.2e}",
        "-" if row["seconds"] is None else f"{row['seconds']:.2g}",
        "-" if early is None else f"{early:.0%}",
        f"{told[0]} [{told[1]}, {told[2]}] (k {row['best_of_k']})" if "best_of_k" in row else "-",
    ]


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table for the terminal."""
    table = [HEADS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()
    yield MEANING
