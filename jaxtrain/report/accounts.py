"""The accounts of a run: what went wrong, what was kept and dropped, what the labels look like, where the time went."""

from __future__ import annotations

import re

from jaxtrain.report.charts import bar_chart
from jaxtrain.report.markup import (
    Row,
    bar,
    duration,
    escape,
    format_number,
    get_row,
    is_number,
    iteration_name,
    number,
    table,
)

# The stages in their order; metrics of any other stage follow.
STAGES = ("prompts", "tasks", "search", "labels", "datasets", "updates", "checkpoints")
# Words in the name of a count that should be zero.
TROUBLE = re.compile(r"(^|[_/])(skipped|set_aside|non_?finite|errors?|failed)($|_)")


def render_notices(history: list[Row]) -> str:
    """Return what a reader must know first, newest first; nothing where all went well.

    A notice is a fit that was skipped, a count of trouble (skipped, set_aside, non_finite, errors, failed) that is not
    zero, a value that was not finite, or a metric with text whose name ends with `notice`. Evaluation gives one where
    search cost more than all samples together, so that the comparison is not at equal tokens.
    """
    notices = [
        f"<li><b>Iteration {row['iteration']}</b> {text}</li>"
        for row in reversed(history)
        for key, value in row.items()
        if (text := _notice(row, key, value))
    ]
    return f'<section class="notices"><h2>Notices</h2><ul>{"".join(notices)}</ul></section>' if notices else ""


def _notice(row: Row, key: str, value: object) -> str:
    stage, _, name = key.partition("/")
    if name.endswith("notice") and value:
        return f"{escape(stage)}: {escape(value)}"
    if name.endswith("/is_budget_short") and value:
        method = escape(name.partition("/")[0].replace("_", "-"))
        return f"evaluation: all samples of {method} together cost over 5% less than search, so tokens are not equal"
    if name.endswith("/is_skipped_fit"):
        return (
            f"{escape(stage)}: the {escape(name.partition('/')[0])} had no data, its fit was skipped" if value else ""
        )
    if stage == "evaluation" and not name.startswith("num_"):
        return ""
    if value is None:
        return f"{escape(key)} was not finite"
    if is_number(value) and float(value) > 0 and float(value).is_integer() and TROUBLE.search(name):
        return f"{escape(key)}: {number(row, key)}"
    return ""


def render_counts(history: list[Row]) -> str:
    """Return all plain numbers of the stages, iteration by iteration, and the histogram of value targets."""
    keys = {key for row in history for key, value in row.items() if "/" in key and is_number(value)}
    keys = {key for key in keys if not key.startswith(("evaluation/", "time/")) or key.startswith("evaluation/num_")}
    stages = sorted({key.partition("/")[0] for key in keys}, key=lambda s: (STAGES.index(s) if s in STAGES else 99, s))
    body: list[list[str]] = []
    for stage in stages:
        body.append([escape(stage)])
        names = [key for key in _in_order(history) if key in keys and key.startswith(stage + "/")]
        body += [[_name(key), *(number(row, key) for row in history)] for key in names]
    counts = f"<div>{table(['', *map(iteration_name, history)], body, 'dense')}</div>" if body else ""
    histogram = _histogram(get_row(history, "datasets/value_histogram"))
    if not counts and not histogram:
        return ""
    return f'<section><h2>Kept and dropped</h2><div class="beside">{counts}{histogram}</div></section>'


def _in_order(history: list[Row]) -> list[str]:
    """Return all keys in the order in which they were first logged."""
    return list(dict.fromkeys(key for row in history for key in row))


def _name(key: str) -> str:
    name = re.sub(r"(^|/)num_", r"\1", key.partition("/")[2])
    return escape(re.sub(r"[/_]", " ", name))


def _histogram(row: Row | None) -> str:
    counts = row["datasets/value_histogram"] if row else []
    if not row or not counts:
        return ""
    bars = [(f"{i / len(counts):.1f}", count) for i, count in enumerate(counts)]
    chart = bar_chart(bars, "value target, from", "steps")
    return f"<div><h3>Value targets, iteration {row['iteration']}</h3>{chart}</div>"


def total_seconds(history: list[Row]) -> float:
    """Return the sum of all `time/<name>`, which are seconds that do not overlap."""
    return sum(sum(_seconds(row).values()) for row in history)


def render_time(history: list[Row]) -> str:
    """Return the time ledger: seconds of each `time/<name>`, their sums and shares."""
    keys = [key for key in _in_order(history) if any(key in _seconds(row) for row in history)]
    total = total_seconds(history)
    if not total:
        return ""
    timed = [row for row in history if _seconds(row)]
    body = []
    for key in keys:
        seconds = sum(_seconds(row)[key] for row in timed if key in _seconds(row))
        share = seconds / total
        cells = [number(row, key, "seconds") for row in timed]
        body.append([_name(key), *cells, duration(seconds), bar(share), format_number(share, "percent")])
    sums = [duration(sum(_seconds(row).values())) for row in timed]
    body.append(["<b>all</b>", *sums, f"<b>{duration(total)}</b>", "", ""])
    heads = ["", *map(iteration_name, timed), "all", "", "share"]
    told = "<p>Of a stage that was interrupted, what its last start took.</p>"
    return f"<section><h2>Where the time went</h2>{told}{table(heads, body)}</section>"


def _seconds(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith("time/") and is_number(value)}
