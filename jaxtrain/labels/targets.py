"""What every step is worth: the kinds of labels, each a function of a tree and its verdicts.

A kind is one line of `TARGETS`. Its function sees the verdicts on usable rows alone, and says of
every row its target in [0, 1] and whether it has one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import chex
import jax
import numpy as np

from jaxtrain import trees
from jaxtrain.errors import Section, one_of
from jaxtrain.labels.leaves import TdLambdaConfig, hard, mc_return, omega, outcome, soft, td_lambda
from jaxtrain.labels.walks import Target, fold_down, fold_up
from jaxtrain.structs import JUDGED, Labels, Tree, Verdict

TargetFn = Callable[[Tree, np.ndarray, "LabelsConfig"], Target]


def quality(tree: Tree, verdict: np.ndarray, config: "LabelsConfig") -> Target:
    """Give steps their quality value (ReST-MCTS*, section 3.2, Eq. 1 and 2).

    Branches without a finished and judged trace are pruned (an ERROR does not count as judged), and
    a tree without a correct trace has no labels at all. For the rest, with g the gap 1 - v,

        m = fewest further steps to a correct trace; that of the parent where none is reached
        g = min(1, g_parent * (m + 2 r) / (m + 1)),   g of the prompt = 1
        r = 1 where none is reached, else 0

    The paper's r is the probability that a step is *wrong*; its text has it both ways.
    """
    parent, num_rows = tree.parent, tree.parent.shape[1]
    far = num_rows + 1  # above every distance that a tree of this many rows can have
    is_correct = verdict == Verdict.CORRECT

    # upwards: whether a trace below was judged, and how many steps away the nearest correct one is
    is_kept = fold_up(parent, np.isin(verdict, JUDGED), False, np.logical_or)[:, :-1]
    distance = fold_up(
        parent, np.where(is_correct, 0, far), far, lambda above, below: np.minimum(above, below + 1)
    )

    # downwards: m, and with it the gap
    is_reached = distance < far
    m = fold_down(
        parent,
        distance[:, -1],
        lambda above, row: np.where(is_reached[:, row], distance[:, row], above),
    ).astype(np.float32)
    factor = (m + 2 * ~is_reached) / (m + 1)
    gap = fold_down(
        parent,
        np.ones(len(parent), np.float32),
        lambda above, row: np.minimum(np.float32(1), above * factor[:, row]),
    )
    return Target(1 - gap[:, :-1], is_kept & is_reached[:, -1:])


TARGETS: dict[str, TargetFn] = {
    "quality": quality,
    "mc_return": mc_return,
    "hard": hard,
    "omega": omega,
    "soft": soft,
    "outcome": outcome,
    "td_lambda": td_lambda,
}


@dataclass(frozen=True)
class LabelsConfig(Section, at="labels"):
    """What the PRM learns of a step."""

    # quality: the paper's, how near a correct answer is, and how surely; mc_return: the share of
    # correct answers among those below the step; hard: whether one of them is correct; soft: the
    # policy's chance to end right, as far as its steps were followed (hard and soft are
    # Math-Shepherd's, on the completions that the tree holds); omega: hard up to the first error of
    # a path, and nothing behind it; td_lambda: soft, mixed with the PRM's scores on the way;
    # outcome: the verdict on the end of every trace through the step
    kind: Annotated[str, one_of(*TARGETS)] = "quality"
    td_lambda: TdLambdaConfig = TdLambdaConfig()


def label(tree: Tree, verdict: np.ndarray, config: LabelsConfig) -> Labels:
    """Infer the value of every step from the verdicts on the finished traces below it.

    verdict `[B R]` int32 from `judge`. Rows without a label have target 0. Duplicates, padding
    problems and trees set aside have no label, and their verdicts count for nothing. A step that
    the search filtered out as false is worth 0, whatever the kind.
    """
    tree = jax.device_get(tree)
    chex.assert_equal_shape([tree.parent, tree.kind, verdict])
    # Rows that are no steps of their own say nothing.
    usable = trees.is_usable(tree)
    verdict = np.where(usable, verdict, Verdict.NONE).astype(np.int32)
    is_false = trees.is_false(tree)
    target, is_labelled, weight = TARGETS[config.kind](tree, verdict, config)
    chex.assert_equal_shape([tree.parent, target, is_labelled])
    # Nor are they told anything, unless they are known to be false.
    is_labelled = (is_labelled & usable) | is_false
    if weight is not None:
        weight = np.where(is_false, 1, weight)
        is_labelled &= weight > 0
    is_reached = fold_up(tree.parent, verdict == Verdict.CORRECT, False, np.logical_or)[:, :-1]
    return Labels(
        verdict=verdict,
        is_correct=is_labelled & is_reached,
        target=np.where(is_labelled & ~is_false, target, 0).astype(np.float32),
        is_labelled=is_labelled,
        weight=None if weight is None else np.where(is_labelled, weight, 0).astype(np.float32),
    )


def of_reference(num_steps: int, config: LabelsConfig, num_right: int | None = None) -> np.ndarray:
    """Value the steps of a solution known to be right, [num_steps]: k / K by the paper's kind
    (ReST-MCTS*, Eq. 20), 1 by all others; or its first num_right and a wrong step behind them,
    [num_right + 1], which is worth what Eq. 22 says, or 0.

    >>> of_reference(4, LabelsConfig("quality")).tolist()
    [0.25, 0.5, 0.75, 1.0]
    >>> of_reference(4, LabelsConfig("quality"), 3).tolist()
    [0.25, 0.5, 0.75, 0.625]
    """
    is_paper, k = config.kind == "quality", num_right
    right = np.arange(1, num_steps + 1) / num_steps if is_paper else np.ones(num_steps)
    if k is None:
        return right
    wrong = max(0, (k - 1) / num_steps + 1 / (num_steps * (num_steps - k + 1)))
    return np.append(right[:k], wrong * is_paper)


def counts(tree: Tree, labels: Labels) -> dict[str, int]:
    """Count what was judged, labelled, pruned and set aside; padding problems are not counted."""
    is_problem = tree.problem_id >= 0
    is_solved = (labels.verdict == Verdict.CORRECT).any(axis=1)
    return {
        "num_trees": int(is_problem.sum()),
        "num_set_aside": int((is_problem & ~tree.is_ok).sum()),
        "num_trees_solved": int(is_solved.sum()),
        "num_trees_without_correct": int((is_problem & tree.is_ok & ~is_solved).sum()),
        "num_correct": int((labels.verdict == Verdict.CORRECT).sum()),
        "num_wrong": int((labels.verdict == Verdict.WRONG).sum()),
        "num_unparsable": int((labels.verdict == Verdict.UNPARSABLE).sum()),
        "num_errors": int((labels.verdict == Verdict.ERROR).sum()),
        "num_labelled": int(labels.is_labelled.sum()),
        "num_unlabelled": int((trees.is_usable(tree) & ~labels.is_labelled).sum()),
    }
