"""What a check of steps, which learns nothing, knows beside the PRM."""

import numpy as np

from jaxtrain import trees
from jaxtrain.evaluation.prm import judged_leaves, within_problems
from jaxtrain.evaluation.table import Metrics, named, with_interval
from jaxtrain.intervals import mean
from jaxtrain.structs import CheckFn, Labels, Tree, Verdict


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
    return named("prm/check", metrics)
