"""Compare search with sampling on problems that neither was trained on, from the trees that `benchmarks.arms` left.

    python -m benchmarks.compare --root runs/arms/smollm2_gsm [--seed 0]

In iteration 1 the arms `search` and `sample` draw the same problems and work with the networks of the same warm start,
for about as many generated tokens, and the fits come after. So these trees tell, on as many problems as an iteration
has, what each method would have answered, and how well the PRM of iteration 0 ranks what it has not seen. Samples
are drawn at search's own temperature. Every trace is judged again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from jaxtrain import evaluation, labels
from jaxtrain.intervals import mean_interval, wilson
from jaxtrain.main import open_run, open_task
from jaxtrain.report.scores import METHODS
from jaxtrain.structs import Labels, Tree
from jaxtrain.tasks import Task

Points = list[tuple[float, ...]]  # (tokens generated a problem, accuracy, low, high) each


@dataclass(frozen=True)
class Compared:
    """What came of it: the points of every method by its name, and the lines that tell of search and the PRM."""

    points: dict[str, Points]
    lines: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    compared = compare(options.root, options.seed)
    print("| method | tokens generated a problem | solved |\n| --- | --- | --- |")
    for name, points in compared.points.items():
        tokens, *shares = points[-1]
        print(f"| {name} | {tokens:,.0f} | {percent(*shares)} |")
    print("\n".join(["", *compared.lines]))


def compare(root: Path, seed: int) -> Compared:
    """Judge what both arms of a seed left, and compare."""
    folder = root / f"search_{seed}"
    config, manifest, model = open_run(folder)
    task = open_task(folder, config, manifest, model)
    tree, judged = read_trees(folder, 1, task)
    sample_tree, sample_judged = read_trees(root / f"sample_{seed}", 1, task)

    def answer(_: int, tokens: np.ndarray) -> str | None:
        return task.answer(task.tokenizer.decode(tokens.tolist()))

    # Of tokens, those generated alone are counted: no prompt, nothing for the PRM.
    no_tokens = np.zeros(len(sample_tree.problem_id), int)
    sampled = evaluation.read_samples(sample_tree, sample_judged.verdict, no_tokens, answer)
    sampled = replace(sampled, prm_tokens=0 * sampled.prm_tokens)
    table = evaluation.accuracy_table(sampled, sampled)  # no greedy answers are there: its row is not read
    points: dict[str, Points] = {
        name: [tuple(point[:4]) for point in table[f"evaluation/{key}/curve"]]
        for key, name, _ in METHODS
        if key not in ("greedy", "mcts")
    }
    chosen = evaluation.read_choice(tree, judged.verdict, answer).is_correct[:, 0]
    generated = float(tree.length.sum() / len(chosen))
    points["MCTS"] = [(generated, chosen.mean(), *wilson(int(chosen.sum()), len(chosen)))]

    lines = [
        f"{len(chosen)} problems; a tree holds a correct answer for "
        f"{100 * evaluation.share_in_tree(tree, judged.verdict):.1f} % of them, "
        f"a sample is correct in {100 * sampled.is_correct.mean():.1f} %"
    ]
    for key, name, _ in METHODS:
        if key in evaluation.SELECT_FNS:
            gain = chosen.astype(float) - table[f"evaluation/{key}/outcomes"]
            low, high = mean_interval(gain, np.arange(len(gain)))
            lines.append(f"MCTS less {name}: {100 * gain.mean():+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]")
    first_tree, first_judged = read_trees(folder, 0, task)
    at = first_judged.is_labelled
    baseline = evaluation.fit_baseline(first_judged.target[at], evaluation.row_depth(first_tree.parent)[at])
    lines += tell_prm("trees", "prm", evaluation.prm_report(tree, judged, baseline))
    lines += tell_prm("samples", "prm/samples", evaluation.samples_report(sampled))
    return Compared(points, lines)


def read_trees(folder: Path, iteration: int, task: Task) -> tuple[Tree, Labels]:
    """Load an iteration's trees without padding, judge every finished trace and back the values up."""
    problems = {p.id: p for p in task.train}
    paths = sorted((folder / "trees" / str(iteration)).glob("search-*.npz"))
    tree = jax.tree.map(lambda *x: np.concatenate(x), *(Tree(**dict(np.load(path).items())) for path in paths))
    tree = jax.tree.map(lambda x: x[tree.problem_id >= 0], tree)
    verdict = labels.judge(tree, lambda i, tokens: task.verify(problems[i], task.tokenizer.decode(tokens.tolist())))
    return tree, jax.device_get(labels.back_up(tree, verdict))


def tell_prm(where: str, prefix: str, report: evaluation.Metrics) -> Iterator[str]:
    """Say how the PRM ranks and, of trees, what its values are worth."""

    def of(name: str) -> str:
        value, low, high = (report[f"evaluation/{prefix}/{name}{end}"] for end in ("", "_low", "_high"))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    at = f"evaluation/{prefix}"
    yield (
        f"PRM on {where}: AUROC of {report[f'{at}/num_leaves']:,} finished traces {of('auroc')}, within a problem "
        f"{of('auroc_within')} (the mean of {report[f'{at}/num_mixed']} that have both)"
    )
    if f"{at}/squared_error" not in report:
        return
    by_depth = " ".join(f"{value:.2f}" for _, value, _ in report[f"{at}/auroc_by_depth"])
    yield f"  steps by depth, those that reach a correct answer against the others: {by_depth}"
    yield (
        f"  squared error {of('squared_error')}, skill over the constant {of('skill_constant')}, over the depth alone "
        f"{of('skill_depth')}; within 0.1: {100 * report[f'{at}/within']:.0f} %, constant "
        f"{100 * report[f'{at}/within_constant']:.0f} %, depth {100 * report[f'{at}/within_depth']:.0f} %"
    )


def percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
