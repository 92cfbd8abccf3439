"""Walks that carry values through a batch of trees, which every kind of label is made of.

A parent's row number is smaller than its children's, so one pass over the rows from the last to the
first carries anything up, and one from the first to the last carries anything down. In the results
the prompt is one more row, behind the others, and so the parent of the first steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import numpy as np

# (values of parents [B], values of their children [B]) -> values of the parents [B]
CombineFn = Callable[[np.ndarray, np.ndarray], np.ndarray]
# (values [B], a number of a row) -> values [B]: of that row from its parents', or what its parents
# see of its own
StepFn = Callable[[np.ndarray, int], np.ndarray]


class Target(NamedTuple):
    """What a kind of label says of every row."""

    value: np.ndarray  # [B R] in [0, 1], unread where there is no label
    is_labelled: np.ndarray  # [B R] bool
    weight: np.ndarray | None = (
        None  # [B R], how much a label counts, 0: there is none; None: all alike
    )


def fold_up(parent: np.ndarray, own: np.ndarray, prompt: float, combine: CombineFn) -> np.ndarray:
    """Let every row take in its children, which have taken in theirs: `[B R + 1]`, of own's dtype.

    parent `[B R]`; own `[B R]`, what a row is by itself; prompt: what the prompt is by itself.
    """
    chex.assert_equal_shape([parent, own])
    value = np.pad(own, ((0, 0), (0, 1)), constant_values=prompt)
    problem, above = above_of(parent)
    for row in reversed(range(parent.shape[1])):
        at = problem, above[:, row]
        value[at] = combine(value[at], value[:, row])
    return value


def fold_down(parent: np.ndarray, prompt: np.ndarray, step: StepFn) -> np.ndarray:
    """Make every row's value from its parent's: `[B R + 1]`, of prompt's dtype.

    parent `[B R]`; prompt `[B]`, the value that the prompt has.
    """
    chex.assert_equal_shape_prefix([parent, prompt], 1)
    problem, above = above_of(parent)
    value = np.repeat(prompt[:, None], parent.shape[1] + 1, axis=1)
    for row in range(parent.shape[1]):
        value[:, row] = step(value[problem, above[:, row]], row)
    return value


def mean_up(parent: np.ndarray, own: np.ndarray, weight: np.ndarray, see: StepFn) -> np.ndarray:
    """Give a row without a value of its own the mean of what it sees of its children: `[B R]`.

    parent, own and weight `[B R]`; NaN is no value, and what sees nothing has none. A child counts
    by its weight.
    """
    chex.assert_equal_shape([parent, own, weight])
    value, total = np.array(own, float), np.zeros((2, len(parent), parent.shape[1] + 1))
    problem, above = above_of(parent)
    for row in reversed(range(parent.shape[1])):
        mean = np.divide(*total[:, :, row], where=total[1, :, row] > 0, out=own[:, row] + np.nan)
        value[:, row] = np.where(np.isnan(own[:, row]), mean, own[:, row])
        # What its parent takes in: a weighted sum, and the weight.
        seen = see(value[:, row], row)
        counted = np.where(np.isnan(seen), 0, weight[:, row])
        total[:, problem, above[:, row]] += counted * np.nan_to_num(seen), counted
    return value


def above_of(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices into the results: of the trees [B], and of every row's parent [B R]."""
    return np.arange(len(parent)), np.where(parent < 0, parent.shape[1], parent)
