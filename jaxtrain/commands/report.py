"""The command: `python -m jaxtrain.report --workdir W [--compare W2 ...] [--to FILE]`.

Makes the report of a run again from its files, which are only read, so the run may go on meanwhile.
With --compare the runs stand side by side: accuracy by iteration and at the end, the differences
over the problems that they share, tokens, time, and the keys of their configs that differ.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jaxtrain.commands import Parser, home_path, page_path
from jaxtrain.errors import require
from jaxtrain.files import read_json, write_atomic
from jaxtrain.metrics import MetricsLog
from jaxtrain.report import render_comparison, render_report
from jaxtrain.report.compare import Side
from jaxtrain.report.values import merge
from jaxtrain.workdir import read_old


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Write a page about one run or several. Raises UserError where one is no run."""
    parser = Parser(__doc__, iteration="")
    parser.add_argument("--compare", nargs="+", type=home_path, default=[], help="other runs")
    parser.add_argument("--to", type=page_path, help="the page; W/report.html or W/comparison.html")
    options = parser.parse_args(arguments)
    path, to = options.workdir, options.to

    # A page about all, or of the one with what it has to show besides metrics.
    sides = open_sides([path, *options.compare])
    if options.compare:
        page, name = render_comparison(sides), "comparison.html"
    else:
        files = [path / name for name in ("samples.json", "methods.json")]
        shown, found = (read_json(file) if file.exists() else {} for file in files)
        _, config, manifest, rows = sides[0]
        shown = {"samples": [], **shown, "compared": found.get("rows", ())}
        page, name = render_report(config, rows, manifest=manifest, **shown), "report.html"
    write_atomic(to or path / name, page.encode())
    print(to or path / name)


def open_sides(paths: Sequence[Path]) -> list[Side]:
    """Read runs of whatever layout, named by what their paths do not share. Raises UserError."""
    shared, sides = os.path.commonpath([path.absolute().parent for path in paths]), []
    for path in paths:
        config, manifest = read_old(path)
        is_run = bool(config and manifest)
        require(is_run, path, "holds no config.json or manifest.json, so it is no run")
        rows = merge(MetricsLog(path).read())
        sides.append(Side(os.path.relpath(path, shared), config, manifest, rows))
    return sides
