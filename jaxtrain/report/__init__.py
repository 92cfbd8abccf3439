"""The report: one HTML page about a run, rewritten after every iteration.

Everything on it comes from the metrics log, the config and a few sample traces, so it can be made
again at any time. Python gathers the data; the page stands in `templates/`, in jinja2. It loads
nothing and runs nothing but the viewer of a tree. Model text is hostile input: it is escaped, made
visible where it is not printable, and a policy in the page itself forbids all scripts but that one.

    values.py   rows, and numbers as text      scores.py     accuracy against tokens, the PRM
    charts.py   figures as data                accounts.py   notices, losses, counts, time
    samples.py  traces to be read              methods.py    every method at the same budgets
    tree.py     one tree of a search, which is a page of its own, too
    compare.py  several runs side by side, a page of its own

A number is shown rounded; point at it to read its metric key and its full value.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jaxtrain.report import accounts, charts, compare, methods, scores, values

# `problem`, `gold`, `method` and `verdict` (text), and `steps`: dicts with `text`, and as a number
# or None `score` (the PRM's), `value` (after back-up) and `target` (the label). Any may be missing.
Sample = dict[str, Any]
# `problem`, `gold` (text), `facts` (texts) and `nodes`, in the order of their rows: dicts of plain
# values, None where there is none; `parent` counts in this list.
TreeData = dict[str, Any]

PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=values.visible,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {"number": values.format_number, "repr": repr}
PAGES.tests |= {"finite": values.is_number}
PAGES.globals |= {"accounts": accounts, "charts": charts, "scores": scores, "methods": methods}
PAGES.globals |= {"having": values.having, "newest": values.newest, "compare": compare}
# the viewer of a tree, byte for byte what its hash is of
SCRIPT = PAGES.get_template("tree.js").render()
SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
PAGES.globals |= {"script": Markup(SCRIPT), "script_hash": SCRIPT_HASH}


def render_report(
    config: dict[str, Any],
    rows: Sequence[values.Row],
    samples: Sequence[Sample],
    manifest: dict[str, Any] | None = None,
    compared: Sequence[values.Row] = (),
    tree: TreeData | None = None,
) -> str:
    """Return the page. Of `rows`, those of the metrics log, any metric may be missing.

    compared: every method at the same budgets, the rows of `evaluation.budgets.compare`. tree: one
    to be looked into; without it the page runs nothing.
    """
    history, config_text = values.merge(rows), json.dumps(config, indent=2, sort_keys=True)
    page = {"config": config, "config_text": config_text, "manifest": manifest}
    page |= {"history": history, "samples": samples, "compared": compared, "tree": tree}
    return PAGES.get_template("page.html").render(page)


def render_comparison(sides: Sequence[compare.Side]) -> str:
    """Return the page about two runs or more."""
    return PAGES.get_template("compare.html").render(sides=sides)
