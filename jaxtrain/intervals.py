"""Means, AUROC and the 95 % intervals that say how far to trust them. Plain numpy, nothing of ours.

Two intervals suffice. A share of independent problems gets Wilson's, which stays inside [0, 1] and
has a width even at 0 of n. All else gets a percentile bootstrap over *groups*: the steps of one
tree share a problem and most of a prefix, so to resample steps as if they were independent would
promise far too much.

What cannot be known is NaN (no data, one class, one group), never an exception and never a made-up
0. The seed of the bootstrap is fixed: the same data give the same interval, also after a resume.
"""

from __future__ import annotations

import math

import numpy as np

NUM_RESAMPLES = 2000
SEED = 0
UNKNOWN = (math.nan, math.nan)


def wilson(num_correct: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) of the share num_correct / n, NaN for n = 0
    (Wilson, 1927).
    """
    if n == 0:
        return UNKNOWN
    share, shrink = num_correct / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    # At 0 and n of n one bound equals the share; rounding must not push it past.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mean(values: np.ndarray) -> float:
    """Return the mean of `values [n]`, NaN where numpy would warn of an empty slice."""
    return float(np.mean(values)) if np.size(values) else math.nan


def mean_interval(values: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """Bootstrap the mean of `values [n]` over the groups that `group [n]` (any integers) puts them
    in.

    Paired comparisons are means of differences, so they go through here too.
    """
    draws, member = _draw_groups(group)
    sums, sizes = np.bincount(member, values), np.bincount(member)
    return _middle(draws @ sums / (draws @ sizes))


def auroc(score: np.ndarray, is_positive: np.ndarray) -> float:
    """Return the chance that a positive outscores a negative, ties counting half; NaN with one
    class only.

    `score [n]`, `is_positive [n]` bool. By ranks (Mann and Whitney, 1947), hence O(n log n).
    """
    _, level = np.unique(score, return_inverse=True)
    return _auroc(level, np.asarray(is_positive, bool), np.ones(level.shape))


def auroc_interval(
    score: np.ndarray, is_positive: np.ndarray, group: np.ndarray
) -> tuple[float, float]:
    """Bootstrap `auroc` over the groups that `group [n]` puts the scores in; resamples with one
    class are left out.
    """
    draws, member = _draw_groups(group)
    _, level = np.unique(score, return_inverse=True)
    is_positive = np.asarray(is_positive, bool)
    return _middle(np.array([_auroc(level, is_positive, draw[member]) for draw in draws]))


def _auroc(level: np.ndarray, is_positive: np.ndarray, weight: np.ndarray) -> float:
    """`level` numbers the distinct scores in ascending order; an entry counts `weight` times."""
    num_levels = level.max(initial=-1) + 1
    positive = np.bincount(level[is_positive], weight[is_positive], minlength=num_levels)
    negative = np.bincount(level[~is_positive], weight[~is_positive], minlength=num_levels)
    num_pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / num_pairs) if num_pairs else math.nan


def _draw_groups(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample draws each of the G groups `[NUM_RESAMPLES G]`, and each entry's
    group in 0..G-1 `[n]`.

    One group or none says nothing about the spread between groups: then there are no resamples.
    """
    names, member = np.unique(group, return_inverse=True)
    num_groups = len(names)
    if num_groups < 2:
        return np.zeros((0, num_groups), int), member
    shares = np.full(num_groups, 1 / num_groups)
    return np.random.default_rng(SEED).multinomial(num_groups, shares, size=NUM_RESAMPLES), member


def _middle(estimates: np.ndarray) -> tuple[float, float]:
    estimates = estimates[np.isfinite(estimates)]
    if not estimates.size:
        return UNKNOWN
    low, high = np.percentile(estimates, [2.5, 97.5])
    return float(low), float(high)
