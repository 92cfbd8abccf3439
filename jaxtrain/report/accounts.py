"""The accounts of a run: what went wrong, the losses, what was kept and dropped, the time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxtrain.report.charts import Point, Series, bar_chart, line_chart
from jaxtrain.report.markup import (
    Row,
    bar,
    duration,
    escape,
    format_number,
    get_row,
    is_number,
    iteration_name,
    merge,
    number,
    table,
)
from jaxtrain.report.meanings import explain

# The stages in their order; metrics of any other stage follow.
STAGES = ("prompts", "tasks", "search", "labels", "datasets", "updates", "checkpoints")
# Words in the name of a count that should be zero.
TROUBLE = re.compile(r"(^|[_/])(skipped|set_aside|non_?finite|errors?|failed)($|_)")

NETWORKS = (("policy", "policy", "c2"), ("prm", "PRM", "c4"))  # key, name, colour class
NUM_LOSSES = 60  # points of a loss curve, about


def tell_nothing_learnt(rows: Sequence[Row]) -> str:
    """Return the line for the end of a run in which neither network learnt anything, else nothing.

    The fits that count are those after the warm start, or its own where nothing follows it. A
    network learns from a fit in which an update was made and not skipped.
    """
    keys = [f"updates/{name}/num_" for name, *_ in NETWORKS]
    fits = [row for row in merge(rows) if any(f"{key}updates" in row for key in keys)]
    later = [row for row in fits if row["iteration"]] or fits
    made = sum(row.get(f"{key}updates", 0) for row in later for key in keys)
    skipped = sum(row.get(f"{key}skipped", 0) for row in later for key in keys)
    if not fits or made > skipped:
        return ""
    when = "after the warm start" if later[0]["iteration"] else "in the warm start"
    if made:
        why = "no update was finite"
    elif sum(row.get("labels/num_correct", 0) for row in fits):
        why = "every fit was skipped"
    else:
        why = "no trace was verified, so every fit was skipped"
    return f"neither network learnt anything {when}: {why}"


def render_notices(history: list[Row]) -> str:
    """Return what a reader must know first, newest first; nothing where all went well.

    A notice is a fit that was skipped, a count of trouble (skipped, set_aside, non_finite, errors,
    failed) that is not zero, a value that was not finite, or a metric with text whose name ends
    with `notice`. Evaluation gives one where search cost more than all samples together, so that
    the comparison is not at equal tokens."""
    notices = [
        f"<li><b>Iteration {row['iteration']}</b> {text}</li>"
        for row in reversed(history)
        for key, value in row.items()
        if (text := _notice(row, key, value))
    ]
    return (
        f'<section class="notices"><h2>Notices</h2><ul>{"".join(notices)}</ul></section>'
        if notices
        else ""
    )


def _notice(row: Row, key: str, value: object) -> str:
    stage, _, name = key.partition("/")
    if name.endswith("notice") and value:
        return f"{escape(stage)}: {escape(value)}"
    if name.endswith("/is_budget_short") and value:
        method = escape(name.partition("/")[0].replace("_", "-"))
        return f"evaluation: all samples of {method} together cost over 5% less than search, so tokens are not equal"
    if name.endswith("/is_skipped_fit"):
        return (
            f"{escape(stage)}: the {escape(name.partition('/')[0])} had no data, its fit was skipped"
            if value
            else ""
        )
    if stage == "evaluation" and not name.startswith("num_"):
        return ""
    if value is None:
        return f"{escape(key)} was not finite"
    if is_number(value) and float(value) > 0 and float(value).is_integer() and TROUBLE.search(name):
        return f"{escape(key)}: {number(row, key)}"
    return ""


def render_losses(history: list[Row]) -> str:
    """Return the loss curve of each network over all updates of the run."""
    charts = {name: _losses(history, key, colour) for key, name, colour in NETWORKS}
    inner = "".join(f"<div><h3>{name}</h3>{chart}</div>" for name, chart in charts.items() if chart)
    if not inner:
        return ""
    return f"""<section><h2>Losses</h2>
<p>A point is the mean of some updates in turn, its whisker their range. Ticks stand where a fit
begins.</p>
<div class="pair">{inner}</div></section>"""


def _losses(history: list[Row], network: str, colour: str) -> str:
    fits = [row.get(f"updates/{network}/losses") or [] for row in history]
    size = 1 + sum(map(len, fits)) // NUM_LOSSES
    points, starts, done = [], [], 0
    for losses in filter(None, fits):
        starts.append(done + 1)
        for k in range(0, len(losses), size):
            part = [loss for loss in losses[k : k + size] if loss is not None]
            if part:
                low, mean, high = min(part), sum(part) / len(part), max(part)
                first, last = done + k + 1, done + min(k + size, len(losses))
                label = f"updates {first:,} to {last:,}: {mean:.4g} ({low:.4g} to {high:.4g})"
                points.append(Point((first + last) / 2, mean, low, high, label))
        done += len(losses)
    ticks = [(float(start), f"{start:,}") for start in starts[:: 1 + len(starts) // 8]]
    return line_chart([Series(network, colour, points)], ticks, "update", "loss", is_percent=False)


def render_counts(history: list[Row]) -> str:
    """Return all plain numbers of the stages, iteration by iteration, and the histogram of value
    targets.
    """
    keys = {key for row in history for key, value in row.items() if "/" in key and is_number(value)}
    keys = {
        key
        for key in keys
        if not key.startswith(("evaluation/", "time/")) or key.startswith("evaluation/num_")
    }
    stages = sorted(
        {key.partition("/")[0] for key in keys},
        key=lambda s: (STAGES.index(s) if s in STAGES else 99, s),
    )
    body: list[list[str]] = []
    for stage in stages:
        body.append([escape(stage)])
        names = [key for key in _in_order(history) if key in keys and key.startswith(stage + "/")]
        body += [[_explained(key), *(number(row, key) for row in history)] for key in names]
    counts = (
        f"<div>{table(['', *map(iteration_name, history)], body, 'dense')}</div>" if body else ""
    )
    histogram = _histogram(get_row(history, "datasets/value_histogram"))
    if not counts and not histogram:
        return ""
    return (
        f'<section><h2>Kept and dropped</h2><div class="beside">{counts}{histogram}</div></section>'
    )


def _in_order(history: list[Row]) -> list[str]:
    """Return all keys in the order in which they were first logged."""
    return list(dict.fromkeys(key for row in history for key in row))


def _name(key: str) -> str:
    name = re.sub(r"(^|/)num_", r"\1", key.partition("/")[2])
    return escape(re.sub(r"[/_]", " ", name))


def _explained(key: str) -> str:
    return f"{_name(key)}<small>{escape(explain(key))}</small>"


def _histogram(row: Row | None) -> str:
    counts = row["datasets/value_histogram"] if row else []
    if not row or not counts:
        return ""
    bars = [(f"{i / len(counts):.1f}", count) for i, count in enumerate(counts)]
    chart = bar_chart(bars, "value target, from", "steps")
    told = f"<p>{explain('datasets/value_histogram')}</p>"
    return f"<div><h3>Value targets, iteration {row['iteration']}</h3>{told}{chart}</div>"


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
        body.append(
            [_name(key), *cells, duration(seconds), bar(share), format_number(share, "percent")]
        )
    sums = [duration(sum(_seconds(row).values())) for row in timed]
    body.append(["<b>all</b>", *sums, f"<b>{duration(total)}</b>", "", ""])
    heads = ["", *map(iteration_name, timed), "all", "", "share"]
    told = "<p>Of a stage that was interrupted, what its last start took.</p>"
    return f"<section><h2>Where the time went</h2>{told}{table(heads, body)}</section>"


def _seconds(row: Row) -> dict[str, float]:
    return {
        key: value for key, value in row.items() if key.startswith("time/") and is_number(value)
    }
