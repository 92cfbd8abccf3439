"""Draw what `benchmarks.arms` measured (needs the extra `figures`).

    python -m benchmarks.figures --root runs/arms/smollm2_gsm --to benchmarks/smollm2_gsm

writes <to>_iterations.svg: greedy accuracy by iteration, the mean of an arm's seeds, with 95 %
intervals bootstrapped over the problems, which all seeds share; and, where `sample` was run,
<to>_tokens.svg: accuracy of every method against the tokens it generates a problem, by
`benchmarks.compare` for seed 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

from benchmarks.arms import ARMS, merge
from benchmarks.compare import Points, compare
from jaxtrain.intervals import mean_interval

OUTCOMES = "evaluation/greedy/outcomes"
Curve = tuple[str, Points]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    draw(f"{options.to}_iterations.svg", "iteration", by_iteration(options.root))
    if (options.root / "sample_0").exists():
        curves = list(compare(options.root, 0).points.items())
        draw(f"{options.to}_tokens.svg", "tokens generated a problem", curves, is_log=True)


def by_iteration(root: Path) -> list[Curve]:
    """Pool the seeds of every arm that was run."""
    curves = []
    for arm in ARMS:
        seeds = [merge(folder) for folder in sorted(root.glob(f"{arm}_*"))]
        points = []
        scored = [{i for i in seed if OUTCOMES in seed[i]} for seed in seeds]
        for i in sorted(set.intersection(*scored)) if seeds else ():
            solved = np.mean([seed[i][OUTCOMES] for seed in seeds], axis=0)
            points.append((i, solved.mean(), *mean_interval(solved, np.arange(len(solved)))))
        curves.append((arm, points))
    return curves


def draw(path: str, x_label: str, curves: list[Curve], is_log: bool = False) -> None:
    """Draw curves with their intervals."""
    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), layout="constrained")
    curves = [curve for curve in curves if curve[1]]
    for number, (name, points) in enumerate(curves):
        x, y, low, high = (100 * np.array(points, float) * [0.01, 1, 1, 1]).T
        # so that intervals stand side by side
        x = x if is_log else x + 0.02 * (number - (len(curves) - 1) / 2)
        axes.errorbar(
            x,
            y,
            (y - low, high - y),
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1.2,
            label=name,
        )
    if is_log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    else:
        axes.set_xticks(range(1 + max(int(point[0]) for _, points in curves for point in points)))
    axes.set(xlabel=x_label, ylabel="accuracy, %", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize="small", loc="outside right upper")
    figure.savefig(path)


if __name__ == "__main__":
    main()
