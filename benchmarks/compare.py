"""Compare search with sampling on problems that neither was trained on, from the trees that
`benchmarks.arms` left.

    python -m benchmarks.compare --root runs/arms/smollm2_gsm [--seed 0]

In iteration 1 the arms `search` and `sample` draw the same problems and work with the networks of
the same warm start, for about as many generated tokens, and the fits come after. So these trees
tell, on as many problems as an iteration has, what each method would have answered, and how well
the PRM of iteration 0 ranks what it has not seen. Samples are drawn at search's own temperature.
Every trace is judged again; a problem that was set aside counts as not solved. Beside the PRM
stands a rule that learns nothing: how many sums of a trace are false (`benchmarks.calculator`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from benchmarks.calculator import sums
from jaxtrain import evaluation, labels
from jaxtrain.errors import UserError
from jaxtrain.evaluation import Answered
from jaxtrain.intervals import mean_interval, wilson
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import read_baseline
from jaxtrain.runs import open_run
from jaxtrain.structs import Labels, Tree, Verdict
from jaxtrain.tasks import Task

SAMPLING = [s for s in evaluation.STRATEGIES.values() if s.trees == "samples"]
Points = list[tuple[float, ...]]  # (tokens generated a problem, accuracy, low, high) each


@dataclass(frozen=True)
class Compared:
    """What came of it: the points of every method by its name, and what else there is to say."""

    points: dict[str, Points]
    lines: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        compared = compare(options.root, options.seed)
    except UserError as error:
        sys.exit(str(error))
    print("| method | tokens generated a problem | solved |\n| --- | --- | --- |")
    for name, points in compared.points.items():
        tokens, *shares = points[-1]
        print(f"| {name} | {tokens:,.0f} | {percent(*shares)} |")
    print("\n".join(["", *compared.lines]))


def compare(root: Path, seed: int) -> Compared:
    """Judge what both arms of a seed left, and compare.

    Raises UserError where they cannot be compared.
    """
    folder, other = root / f"search_{seed}", root / f"sample_{seed}"
    task = open_run(folder).task
    tree, judged = read_trees(folder, 1, task)
    sample_tree, sample_judged = read_trees(other, 1, task)
    if not np.array_equal(tree.problem_id, sample_tree.problem_id):
        raise UserError(
            f"{folder} and {other}: iteration 1 drew different problems, so there is nothing to "
            "pair"
        )

    sampled = read_samples(sample_tree, sample_judged, task, task.answer)
    counted = read_samples(sample_tree, sample_judged, task, count_false_sums)
    chosen = evaluation.read_choice(tree, judged.verdict, lambda _: None).is_correct[:, 0]
    in_tree = (judged.verdict == Verdict.CORRECT).any(axis=1)

    # Every method is charged the tokens that were generated for it, as those are what the arms have
    # in common.
    costs = sampled.policy_tokens.mean(axis=0)
    points: dict[str, Points] = {
        s.label: [tuple(row[:4]) for row in evaluation.curve(s, sampled, costs)] for s in SAMPLING
    }
    solved = {s.name: evaluation.is_solved(s, sampled, len(costs)) for s in SAMPLING}
    solved_by_rule = evaluation.is_solved(
        evaluation.STRATEGIES["self_consistency"], keep_fewest(sampled, counted), len(costs)
    )
    points["vote, fewest false sums"] = [point(costs[-1], solved_by_rule)]
    points["MCTS"] = [point(tree.length.sum() / len(chosen), chosen)]

    policy = [float(x.policy_tokens.mean()) for x in (tree, sample_tree)]
    lines = [
        f"{len(chosen)} problems; {100 * sampled.is_correct.mean():.1f} % of the samples are "
        f"right; a tree holds a right answer for {percent(*point(0, in_tree)[1:])}",
        f"policy tokens a problem, those it read too: search {policy[0]:,.0f}, sampling "
        f"{policy[1]:,.0f}",
    ]
    lines += [
        f"MCTS less {s.label}: {difference(chosen, solved[s.name])}"
        for s in SAMPLING
        if not s.is_oracle
    ]
    lines += [
        "vote, fewest false sums, less vote: "
        f"{difference(solved_by_rule, solved['self_consistency'])}"
    ]
    baseline = read_baseline(MetricsLog(folder), 0)
    lines += tell_ranking("PRM on trees", "prm", evaluation.prm_report(tree, judged, baseline))
    lines += tell_ranking("PRM on samples", "prm/samples", evaluation.samples_report(sampled))
    by_rule = replace(sampled, score=-numbers(counted))
    lines += tell_ranking(
        "false sums on samples", "prm/samples", evaluation.samples_report(by_rule)
    )
    return Compared(points, lines)


def read_trees(
    folder: Path, iteration: int, task: Task, purpose: str = "search"
) -> tuple[Tree, Labels]:
    """Load an iteration's trees without padding, judge what is finished, back the values up."""
    paths = sorted((folder / "trees" / str(iteration)).glob(f"{purpose}-*.npz"))
    if not paths:
        raise UserError(
            f"{folder}: holds no trees of {purpose} of iteration {iteration}; let the run get that "
            "far"
        )
    tree = jax.tree.map(
        lambda *x: np.concatenate(x), *(Tree(**dict(np.load(path).items())) for path in paths)
    )
    tree = jax.tree.map(lambda x: x[tree.problem_id >= 0], tree)
    verdict = labels.judge(tree, task.verify_tokens)
    return tree, labels.label(tree, verdict, labels.LabelsConfig("quality"))


def read_samples(
    tree: Tree, judged: Labels, task: Task, read_fn: Callable[[str], str | None]
) -> Answered:
    """Take the samples; what `read_fn` makes of a finished text stands as its answer.

    No prompt is charged.
    """
    no_prompt = np.zeros(len(tree.problem_id), int)

    def answer(tokens: np.ndarray) -> str | None:
        return read_fn(task.tokenizer.decode(tokens.tolist()))

    return evaluation.read_samples(tree, judged.verdict, no_prompt, answer)


def count_false_sums(text: str) -> str:
    return str([is_right for *_, is_right in sums(text)].count(False))


def numbers(counted: Answered) -> np.ndarray:
    """Turn counts that stand as answers into numbers [B K], infinity where there is none."""
    return np.array(
        [[np.inf if count is None else float(count) for count in row] for row in counted.answer]
    )


def keep_fewest(sampled: Answered, counted: Answered) -> Answered:
    """Leave the answers with the fewest false sums of those to the same problem."""
    count = np.where(
        [[text is not None for text in row] for row in sampled.answer], numbers(counted), np.inf
    )
    is_kept = count == count.min(axis=1, keepdims=True)
    pairs = zip(sampled.answer, is_kept, strict=True)
    return replace(
        sampled,
        answer=[[text if keep else None for text, keep in zip(*row, strict=True)] for row in pairs],
    )


def point(tokens: float, solved: np.ndarray) -> tuple[float, ...]:
    return float(tokens), float(solved.mean()), *wilson(int(solved.sum()), len(solved))


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Mean difference of what is solved [B], paired by problem, bootstrapped over problems."""
    gain = ours.astype(float) - theirs
    low, high = mean_interval(gain, np.arange(len(gain)))
    return f"{100 * gain.mean():+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def tell_ranking(what: str, prefix: str, report: evaluation.Metrics) -> Iterator[str]:
    """Say how well scores rank finished traces and, for trees, what they are worth as values."""
    at = f"evaluation/{prefix}"

    def of(name: str) -> str:
        value, low, high = (report[f"{at}/{name}{end}"] for end in ("", "_low", "_high"))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    yield (
        f"{what}: AUROC of {report[f'{at}/num_leaves']:,} finished traces {of('auroc')}, within a "
        f"problem {of('auroc_within')} (the mean of {report[f'{at}/num_mixed']} that have both)"
    )
    if f"{at}/squared_error" not in report:
        return
    by_depth = ", ".join(
        f"{depth}: {value:.2f}" for depth, value, _ in report[f"{at}/auroc_by_depth"]
    )
    yield (
        "  steps of solved trees, by depth, those that reach a correct answer against the others: "
        f"{by_depth}"
    )
    yield (
        f"  their squared error {of('squared_error')}, skill over the constant "
        f"{of('skill_constant')}, over the depth "
        f"alone {of('skill_depth')}; within 0.1: {100 * report[f'{at}/within']:.0f} %, constant "
        f"{100 * report[f'{at}/within_constant']:.0f} %, depth "
        f"{100 * report[f'{at}/within_depth']:.0f} %"
    )


def percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
