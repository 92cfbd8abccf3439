"""Does the PRM know anything? Its scores beside predictors that have read no text.

`prm_report` is about the steps and leaves of trees, `samples_report` about the independent traces
that best-of-k chooses from, `check_report` about what a check of steps, which learns nothing, knows
beside it.
"""

import math
from dataclasses import dataclass

import chex
import numpy as np

from jaxtrain import trees
from jaxtrain.evaluation.strategies import STRATEGIES, Answered, is_solved, keep
from jaxtrain.evaluation.table import Metrics, named, with_interval
from jaxtrain.intervals import auroc, auroc_interval, mean
from jaxtrain.structs import JUDGED, Array, CheckFn, Labels, Tree, Verdict

CLOSE = 0.1  # a value this near to its target is right (Eq. 38 of the paper)


@dataclass(frozen=True)
class Baseline:
    """Two predictors of a step's value that read no text: what a PRM must beat."""

    constant: float  # the mean target, NaN if there was none
    # [D] float, the mean target of the steps at a depth; the constant where there was none
    by_depth: np.ndarray

    def predict(self, depth: np.ndarray) -> np.ndarray:
        """Return the mean target `[n]` at each `depth [n]`, the constant below the deepest."""
        return np.append(self.by_depth, self.constant)[np.minimum(depth, len(self.by_depth))]


def row_depth(parent: Array) -> np.ndarray:
    """Count the steps before each row, `[B R]` int; `parent [B R]` as in Tree."""
    problem, row = np.indices(np.shape(parent)).reshape(2, -1)
    return (trees.row_paths(parent, problem, row) >= 0).sum(axis=1).reshape(np.shape(parent)) - 1


def prm_report(tree: Tree, labels: Labels, baseline: Baseline) -> Metrics:
    """Measure the PRM's scores on held-out trees: finished leaves are ranked, steps have values.

    Keys `evaluation/prm/<name>`; x stands for a quantity with its _low and _high, bootstrapped over
    problems: auroc (x) of correct against wrong leaves; auroc_within (x), the mean AUROC of the
    num_mixed problems that have both, which easy and hard problems cannot lift; squared_error (x)
    of the clipped score, squared_error_constant and _depth of the baseline; skill_constant and
    skill_depth (x), baseline's squared error less the PRM's; within, within_constant and
    within_depth, the share within 0.1 of the target (Eq. 38); calibration, a list of [mean
    prediction, mean target, count] for the tenths of [0, 1] that occur; auroc_by_depth, a list of
    [depth, AUROC, count] of labelled steps that reach a correct answer against those that do not,
    at depths that have both; auroc_within_by_depth, a list of [depth, mean AUROC of the problems
    that have both there, their number]; auroc_within_first (x) that of first steps; num_leaves,
    num_steps, num_trees. Unparsable leaves are wrong ones; duplicates, verifier errors, padding and
    problems set aside are left out.
    """
    chex.assert_equal_shape([tree.kind, labels.target])
    tree, labels = keep((np.asarray(tree.problem_id) >= 0) & np.asarray(tree.is_ok), (tree, labels))
    # The rows that can be measured: finished leaves, and steps with a label.
    problem = np.broadcast_to(tree.problem_id[:, None], tree.kind.shape)
    leaf, step = judged_leaves(tree, labels), trees.is_usable(tree) & labels.is_labelled
    score, target = np.asarray(tree.score, float), np.asarray(labels.target, float)
    is_correct, is_right = labels.verdict == Verdict.CORRECT, labels.is_correct
    # As a ranking of leaves, then as values of steps.
    leaf_metrics = _leaf_metrics(score[leaf], is_correct[leaf], problem[leaf])
    value, depth = np.clip(score, 0, 1), row_depth(tree.parent)
    step_metrics = _step_metrics(value[step], target[step], depth[step], problem[step], baseline)
    # How it ranks at each depth.
    by_depth, within = [], []
    for d in np.unique(depth[step]).tolist():
        at = step & (depth == d)
        by_depth.append([d, auroc(score[at], is_right[at]), int(at.sum())])
        found, _ = within_problems(score[at], is_right[at], problem[at])
        within.append([d, mean(found), len(found)])
    step_metrics["auroc_by_depth"] = [row for row in by_depth if np.isfinite(row[1])]
    # Within a problem, where a search compares: at each depth, and first moves with an interval.
    step_metrics["auroc_within_by_depth"] = [row for row in within if row[2]]
    at = step & (depth == 0)
    first = within_problems(score[at], is_right[at], problem[at])
    step_metrics |= with_interval("auroc_within_first", *first)
    metrics = leaf_metrics | step_metrics | {"num_trees": len(tree.problem_id)}
    return named("evaluation/prm", metrics)


def judged_leaves(tree: Tree, labels: Labels) -> np.ndarray:
    """Mark the finished rows `[B R]` whose verdict tells of them."""
    return trees.is_usable(tree) & tree.is_finished & np.isin(labels.verdict, JUDGED)


def count_false(tree: Tree, check: CheckFn) -> np.ndarray:
    """Count the steps that a check calls false on the path to every row of a tree, `[B R]`."""
    is_step = trees.is_usable(tree) | trees.is_false(tree)
    told = tree.problem_id, tree.parent, tree.tokens, tree.length, is_step
    return trees.count_false(check, *told)


def check_report(tree: Tree, labels: Labels, num_false: np.ndarray, weight: float) -> Metrics:
    """Measure how often a check fires, and how it ranks leaves within a problem.

    tree: with the PRM's own scores; num_false `[B R]`: of `count_false`.

    Keys `evaluation/prm/check/<name>`: share_false_steps, of all steps; share_false_leaves, those
    with a false step on their path; auroc_within_prm, auroc_within_check and auroc_within_both, x
    with its _low and _high, the mean AUROC of the problems that have right and wrong leaves: of the
    score, of the number of false steps, and of the score less `weight` for each of them.
    """
    # A step is false itself where its path has one more than that of the step before.
    above = np.take_along_axis(num_false, np.maximum(tree.parent, 0), axis=1)
    is_false = num_false > np.where(tree.parent < 0, 0, above)
    is_step, leaf = trees.is_usable(tree) | trees.is_false(tree), judged_leaves(tree, labels)
    metrics: Metrics = {
        "share_false_steps": mean(is_false[is_step]),
        "share_false_leaves": mean(num_false[leaf] > 0),
    }

    problem = np.broadcast_to(tree.problem_id[:, None], leaf.shape)[leaf]
    is_correct = labels.verdict[leaf] == Verdict.CORRECT
    score, cost = tree.score[leaf].astype(float), num_false[leaf]
    ranked = {"prm": score, "check": -cost, "both": score - weight * cost}
    for name, values in ranked.items():
        found = within_problems(values, is_correct, problem)
        metrics |= with_interval(f"auroc_within_{name}", *found)
    return named("evaluation/prm/check", metrics)


def samples_report(sampled: Answered) -> Metrics:
    """Measure the PRM's scores of independent traces with an answer, which best-of-k goes by.

    Keys `evaluation/prm/samples/<name>` with auroc (x), auroc_within (x), num_mixed and num_leaves
    of `prm_report`; gain (x), the accuracy of best-of-k less that of the mean sample.
    """
    has_answer = np.array([[text is not None for text in texts] for texts in sampled.answer], bool)
    at = np.nonzero(has_answer.reshape(sampled.score.shape))
    told = sampled.score[at], sampled.is_correct[at], sampled.problem_id[at[0]]
    # What is chosen by rank, beside what chance would choose of the same.
    solved = is_solved(STRATEGIES["best_of_k"], sampled, sampled.is_correct.shape[1])
    gain = with_interval("gain", solved - sampled.is_correct.mean(axis=1), sampled.problem_id)
    return named("evaluation/prm/samples", _leaf_metrics(*told) | gain)


def _leaf_metrics(score: np.ndarray, is_correct: np.ndarray, problem: np.ndarray) -> Metrics:
    low, high = auroc_interval(score, is_correct, problem)
    metrics: Metrics = {"auroc": auroc(score, is_correct), "auroc_low": low, "auroc_high": high}
    within, mixed = within_problems(score, is_correct, problem)
    metrics |= with_interval("auroc_within", within, mixed)
    return metrics | {"num_mixed": len(mixed), "num_leaves": len(score)}


def within_problems(
    score: np.ndarray, is_right: np.ndarray, problem: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUROC of each problem [n] that has both kinds, and these problems."""
    order = np.argsort(problem, kind="stable")
    names, starts = np.unique(problem[order], return_index=True)
    parts = np.split(order, starts[1:])
    found = np.array([auroc(score[at], is_right[at]) for at in parts if len(at)])
    is_mixed = np.isfinite(found)
    return found[is_mixed], names[is_mixed]


def _step_metrics(
    value: np.ndarray,
    target: np.ndarray,
    depth: np.ndarray,
    problem: np.ndarray,
    baseline: Baseline,
) -> Metrics:
    error = (value - target) ** 2
    metrics: Metrics = with_interval("squared_error", error, problem)
    metrics["within"] = _share_close(value, target)
    # Against those that read no text.
    for name, guess in (
        ("constant", np.full(target.shape, baseline.constant)),
        ("depth", baseline.predict(depth)),
    ):
        guess_error = (guess - target) ** 2
        metrics[f"squared_error_{name}"] = mean(guess_error)
        metrics |= with_interval(f"skill_{name}", guess_error - error, problem)
        metrics[f"within_{name}"] = _share_close(guess, target)
    # Is a score of 0.7 worth 0.7?
    tenth = np.minimum((value * 10).astype(int), 9)
    rows = [(value[tenth == i], target[tenth == i]) for i in np.unique(tenth)]
    metrics["calibration"] = [[mean(v), mean(t), len(v)] for v, t in rows]
    metrics["num_steps"] = len(target)
    return metrics


def _share_close(value: np.ndarray, target: np.ndarray) -> float:
    # Scores and targets are float32: 0.9 against 0.8 must be within 0.1.
    return mean(np.abs(value - target) <= CLOSE + 1e-6) if np.isfinite(value).all() else math.nan
