"""Runs side by side, each as its files tell it; the first is what the others are compared with."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from jaxtrain.report.charts import Chart, Series
from jaxtrain.report.scores import NUM_COLOURS, Gain, along_iterations, paired, scored, to_point
from jaxtrain.report.values import Row, newest


class Side(NamedTuple):
    """A run: its name here, its config and manifest, its rows by iteration."""

    name: str
    config: dict[str, Any]
    manifest: dict[str, Any]
    history: list[Row]


def gain(first: Side, other: Side, method: str) -> Gain | None:
    """Return by how much the other's last accuracy differs, over the problems that both answered.

    None where they share none: problems are known by their hash, their split and their order.
    """
    key, found = f"evaluation/{method}/outcomes", []
    for _, config, manifest, history in (first, other):
        row = newest(history, key) or {}
        num = row.get("evaluation/num_too_long")
        # Where prompts were too long, only the same prompts and tokens leave out the same problems.
        tokens = {key: x for key, x in manifest["facts"].items() if key.startswith("hub/")}
        kept = num and (num, config.get("prompts"), tokens)
        split = config.get("evaluation", {}).get("split")
        asked = manifest["facts"].get("tasks.problems.sha256"), split, kept
        found.append((asked, row.get(key) or []))
    (ours, before), (theirs, after) = found
    num_shared = min(len(before), len(after)) if ours == theirs else 0
    return paired(after[:num_shared], before[:num_shared])


def by_iteration(sides: Sequence[Side], method: str) -> Chart:
    """Return the accuracies of a method along each run."""
    rows = [scored(side.history, method) for side in sides]
    lines = [
        Series(
            side.name, f"c{k % NUM_COLOURS}", [to_point(x, method, x["iteration"]) for x in found]
        )
        for k, (side, found) in enumerate(zip(sides, rows, strict=True))
    ]
    return along_iterations([row for found in rows for row in found], lines)


def differing(sides: Sequence[Side]) -> Iterator[tuple[str, list[Any]]]:
    """Yield what is not the same in all runs: keys of the config, versions, devices and facts."""
    names = ("versions", "devices", "git_commit", "facts")
    told = [{"config": s.config, **{key: s.manifest.get(key) for key in names}} for s in sides]
    leaves = [flatten_dict(values, sep=".") for values in told]
    for key in sorted({key for known in leaves for key in known}):
        found = [known.get(key, "(absent)") for known in leaves]
        if any(value != found[0] for value in found):
            yield key, found
