"""The report: one HTML page about a run, rewritten after every iteration.

Everything on it comes from the metrics log, the config and a few sample traces, so it can be made
again at any time. The page loads nothing and runs nothing, wherever it is sent. Model text is
hostile input: it is escaped, made visible where it is not printable, and a policy in the page
itself forbids scripts in case that were not enough.

    markup.py    escaping, numbers, tables          scores.py     accuracy against compute; what the
    PRM knows charts.py    figures as inline SVG              accounts.py   notices, losses, counts,
    time style.py     the look                           meanings.py   what every count means
    samples.py   traces, step by step

A number is shown rounded; point at it to read its metric key and its full value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtrain.files import write_atomic
from jaxtrain.report import accounts, samples, scores
from jaxtrain.report.markup import (
    Row,
    duration,
    escape,
    get_row,
    interval,
    iteration_name,
    merge,
    number,
)
from jaxtrain.report.style import CSS

Manifest = dict[str, Any]

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(
    path: Path,
    config: dict[str, Any],
    rows: Sequence[Row],
    sample_traces: Sequence[samples.Sample],
    manifest: Manifest | None = None,
) -> None:
    """Write the report of a run, atomically.

    Args:
      path: the HTML file.
      config: the resolved config.
      rows: the rows of the metrics log; any metric may be missing.
      sample_traces: what `samples.render_samples` takes.
      manifest: that of the run folder, for the command, commit, starts, versions and devices.
    """
    write_atomic(path, render_report(config, rows, sample_traces, manifest).encode("utf-8"))


def render_report(
    config: dict[str, Any],
    rows: Sequence[Row],
    sample_traces: Sequence[samples.Sample],
    manifest: Manifest | None = None,
) -> str:
    """Return the page that `write_report` writes."""
    history = merge(rows)
    task = _look_up(config, "tasks.name")
    title = f"Self-training on {task}" if task else "A self-training run"
    sections = (
        _header(title, config, history, manifest),
        accounts.render_notices(history),
        _highlights(history),
        scores.render_accuracy(history),
        scores.render_prm(history),
        accounts.render_losses(history),
        accounts.render_counts(history),
        accounts.render_time(history),
        samples.render_samples(sample_traces),
    )
    return PAGE.format(title=escape(title), css=CSS, body="\n".join(filter(None, sections)))


def _header(
    title: str, config: dict[str, Any], history: list[Row], manifest: Manifest | None
) -> str:
    # How far the run is.
    goal = _look_up(config, "loop.num_iterations")
    done = history[-1]["iteration"] if history else None
    if done is None:
        status, share = "nothing logged yet", 0.0
    elif not goal:
        status, share = f"iteration {done}", 0.0
    else:
        status = f"iteration {done} of {goal}"
        share = min(done / goal, 1.0)

    # What it took, and what it ran on.
    seconds = accounts.total_seconds(history)
    facts = [f"{duration(seconds)} accounted for"] if seconds else []
    facts += [f"seed {config['seed']}"] if "seed" in config else []
    command = ""
    if manifest:
        starts, versions = manifest["starts"], manifest["versions"].items()
        facts.append(f"started {starts[0]}")
        facts += [f"resumed {starts[-1]}"] if len(starts) > 1 else []
        facts.append(f"{manifest['devices']['count']} x {manifest['devices']['kind']}")
        facts.append(f"commit {manifest['git_commit'] or 'unknown'}")
        facts += [f"{name} {version}" for name, version in versions if version]
        command = f"<pre>{escape(manifest['command'])}</pre>" if manifest["command"] else ""

    return f"""<header>
<p class="kicker">jaxtrain</p>
<h1>{escape(title)}</h1>
<p class="lead">A policy proposes reasoning steps, a process reward model (PRM) scores them, a search explores, and
both learn from what the verifier confirms. Iteration 0 is the warm start.</p>
<p class="status"><span class="track"><span style="width:{100 * share:.0f}%"></span></span> {escape(status)}</p>
<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>
{command}
<details><summary>Config</summary><pre>{escape(json.dumps(config, indent=2))}</pre></details>
</header>"""


def _highlights(history: list[Row]) -> str:
    """Return the three figures that a hurried reader wants, each with its interval."""
    tiles = []
    if scored := [row for row in history if "evaluation/greedy/accuracy" in row]:
        first, last = scored[0], scored[-1]
        ours, theirs = (row.get("evaluation/greedy/outcomes") for row in (last, first))
        gain = scores.paired(ours, theirs) if last is not first else None
        note = f"{scores.tell_difference(gain)} since {iteration_name(first)}" if gain else ""
        spread = interval(last, "evaluation/greedy/low", "evaluation/greedy/high", "percent")
        figure = number(last, "evaluation/greedy/accuracy", "percent")
        tiles.append(("greedy accuracy", figure, spread, note))
    if searched := get_row(history, "evaluation/mcts/accuracy"):
        note = f"{number(searched, 'evaluation/mcts/tokens', 'count')} tokens per problem"
        spread = interval(searched, "evaluation/mcts/low", "evaluation/mcts/high", "percent")
        figure = number(searched, "evaluation/mcts/accuracy", "percent")
        tiles.append(("accuracy with search", figure, spread, note))
    if rated := get_row(history, "evaluation/prm/auroc"):
        note = "chance that a correct trace outscores a wrong one"
        spread = interval(rated, "evaluation/prm/auroc_low", "evaluation/prm/auroc_high", "decimal")
        tiles.append(("PRM AUROC", number(rated, "evaluation/prm/auroc", "decimal"), spread, note))
    if not tiles:
        return ""
    inner = "".join(
        f"<div><h3>{name}</h3><p>{figure}</p><small>{spread}</small><small>{note}</small></div>"
        for name, figure, spread, note in tiles
    )
    return f'<section class="tiles">{inner}</section>'


def _look_up(config: dict[str, Any], key: str) -> Any:
    """Return the value under a dotted key, None where the config has no such key."""
    value: Any = config
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) and name in value else None
    return value
