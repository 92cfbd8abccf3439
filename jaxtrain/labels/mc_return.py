"""Labels by Monte Carlo return: how often a step was followed by a correct answer."""

from __future__ import annotations

import numpy as np

from jaxtrain.labels.walks import fold_up
from jaxtrain.structs import Tree, Verdict

LEAVES = (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE)


def mc_return(tree: Tree, verdict: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give a step the share of correct leaves among those at or below it.

    A leaf is a finished trace that was judged; one without a readable answer is wrong. Every leaf
    counts once, however often search visited it. What has no leaf below (unfinished, or the
    verifier failed) has no label; in a tree without a correct answer every target is 0.
    """
    is_correct, is_leaf = verdict == Verdict.CORRECT, np.isin(verdict, LEAVES)
    num_correct, num_leaves = (
        fold_up(tree.parent, is_own.astype(np.int32), 0, np.add)[:, :-1]
        for is_own in (is_correct, is_leaf)
    )
    return (num_correct / np.maximum(num_leaves, 1)).astype(np.float32), num_leaves > 0
