"""The accounts of a run: what went wrong, the losses, what was kept and dropped, the time."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxtrain.report.charts import Chart, Point, Series
from jaxtrain.report.values import Row, is_number, merge
from jaxtrain.tasks.jsonl import REASONS

# The stages in their order; metrics of any other stage follow.
STAGES = ("prompts", "tasks", "search", "labels", "hints", "datasets", "updates", "checkpoints")
# Words in the name of a count that should be zero.
TROUBLE = re.compile(r"(^|[_/])(skipped|set_aside|non_?finite|errors?|failed)($|_)")

NETWORKS = {"policy": ("policy", "c2"), "prm": ("PRM", "c4")}  # key: name, colour class
SHORT = "all samples of {method} together cost over 5% less than search, so tokens are not equal"
NUM_LOSSES = 60  # points of a loss curve, about
TOLD = tomllib.loads((Path(__file__).parent / "templates" / "meanings.toml").read_text("utf-8"))
# What tells whether search pays, in a table of its own: its names, and how numbers are written.
THRIFT: dict[str, list[str]] = TOLD.pop("thrift")
TOLD["tasks"] |= {reason: f"lines dropped: {told}" for reason, told in REASONS.items()}


def tell_nothing_learnt(rows: Sequence[Row]) -> str:
    """Return the line for the end of a run in which neither network learnt anything, else nothing.

    The fits that count are those after the warm start, or its own where nothing follows it.
    """
    keys = [f"updates/{name}/num_" for name in NETWORKS]
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


def notices(history: list[Row]) -> Iterator[tuple[Row, str, str]]:
    """Yield what a reader must know first, newest first: (row, text, key of a number or nothing).

    A notice is a fit that was skipped, a count of TROUBLE that is not zero, a value that was not
    finite, or a text under a name that ends with `notice`. Evaluation gives one where search cost
    more than all samples together, so that the comparison is not at equal tokens.
    """
    for row in reversed(history):
        for key, value in row.items():
            stage, _, name = key.partition("/")
            first = name.partition("/")[0]
            if name.endswith("notice") and value:
                yield row, f"{stage}: {value}", ""
            elif name.endswith("/is_budget_short") and value:
                yield row, f"{stage}: {SHORT.format(method=first.replace('_', '-'))}", ""
            elif name.endswith("/is_skipped_fit") and value:
                told = f"{stage}: the {first} had no data, or no updates to make"
                yield row, f"{told}: its fit was skipped", ""
            elif stage == "evaluation" and not name.startswith("num_"):
                continue
            elif value is None:
                yield row, f"{key} was not finite", ""
            elif is_number(value) and value > 0 and value == int(value) and TROUBLE.search(name):
                yield row, key, key


def losses(history: list[Row]) -> dict[str, Chart]:
    """Return the loss curve over all updates of the run of each network that has one, by name."""
    curves = {name: _losses(history, key, colour) for key, (name, colour) in NETWORKS.items()}
    return {name: curve for name, curve in curves.items() if curve.points}


def _losses(history: list[Row], network: str, colour: str) -> Chart:
    fits = [row.get(f"updates/{network}/losses") or [] for row in history]
    size = 1 + sum(map(len, fits)) // NUM_LOSSES
    points, starts, done = [], [], 0
    for fit in filter(None, fits):
        starts.append(done + 1)
        for k in range(0, len(fit), size):
            part = [loss for loss in fit[k : k + size] if loss is not None]
            if part:
                low, mean, high = min(part), sum(part) / len(part), max(part)
                first, last = done + k + 1, done + min(k + size, len(fit))
                label = f"updates {first:,} to {last:,}: {mean:.4g} ({low:.4g} to {high:.4g})"
                points.append(Point((first + last) / 2, mean, low, high, label))
        done += len(fit)
    ticks = [(float(start), f"{start:,}") for start in starts[:: 1 + len(starts) // 8]]
    return Chart("update", "loss", ticks, [Series(network, colour, points)])


def counts(history: list[Row]) -> dict[str, list[str]]:
    """Return the keys of all plain numbers by stage, each in the order of the log.

    Of the evaluation and of what search made of its tokens, which have tables of their own, the
    counts alone or nothing; seconds are under `time`.
    """
    found: dict[str, list[str]] = {}
    for key, value in ((key, value) for row in history for key, value in row.items()):
        stage, _, name = key.partition("/")
        is_elsewhere = key in THRIFT or stage == "evaluation" and not name.startswith("num_")
        if name and is_number(value) and not is_elsewhere:
            found.setdefault(stage, []).append(key)
    order = [*(stage for stage in STAGES if stage in found), *sorted(found.keys() - {*STAGES})]
    return {stage: list(dict.fromkeys(found[stage])) for stage in order}


def explain(key: str) -> str:
    """Return what a count means; nothing for a metric that no run writes."""
    stage, _, name = re.sub("^updates/(policy|prm)/", "updates/", key).partition("/")
    return TOLD.get(stage, {}).get(name, "")


def short_name(key: str) -> str:
    """Return a metric's key as words, without its stage."""
    return re.sub(r"[/_]", " ", re.sub(r"(^|/)num_", r"\1", key.partition("/")[2]))


def histogram(values: list[int]) -> Chart:
    """Return how many value targets lie in each part of [0, 1]."""
    ticks = [(i + 0.5, f"{i / len(values):.1f}") for i in range(len(values))]
    return Chart("value target, from", "steps", ticks, bars=values)


def total(rows: list[Row], only: str = "") -> float:
    """Return the sum of all `time/<name>`, which do not overlap, or of one key alone."""
    pairs = [(key, value) for row in rows for key, value in row.items() if is_number(value)]
    return sum(value for key, value in pairs if key == only or not only and key[:5] == "time/")
