"""Means, AUROC and the 95 % intervals that say how far to trust them. Nothing of ours is imported.

A share of independent problems gets Wilson's interval, which stays inside [0, 1] and has a width
even at 0 of n. All else gets a percentile bootstrap over *groups*: the steps of one tree share a
problem and most of a prefix, so steps resampled as if independent would promise far too much.

What cannot be known is NaN (no data, one class, one group), never a made-up 0. The seed of the
bootstrap is fixed: the same data give the same interval, also after a resume.
"""

import math

import numpy as np
from scipy import stats

NUM_RESAMPLES = 2000
SEED = 0
UNKNOWN = (math.nan, math.nan)


def wilson(num_correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's interval (low, high) of the share num_correct / n (1927), NaN for n = 0.

    >>> low, high = wilson(40, 100)
    >>> round(low, 3), round(high, 3)
    (0.309, 0.498)
    """
    if n == 0:
        return UNKNOWN
    low, high = stats.binomtest(num_correct, n).proportion_ci(0.95, "wilson")
    return float(low), float(high)


def mean(values: np.ndarray) -> float:
    """Return the mean of `values [n]`, NaN where numpy would warn of an empty slice."""
    return float(np.mean(values)) if np.size(values) else math.nan


def mean_interval(values: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """Bootstrap the mean of `values [n]` over their groups, `group [n]` of any integers."""
    _, member = np.unique(group, return_inverse=True)
    sums, sizes = np.bincount(member, values), np.bincount(member)
    if len(sizes) < 2 or not np.isfinite(sums).all():
        return UNKNOWN
    low, high = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        n_resamples=NUM_RESAMPLES,
        batch=100,
        method="percentile",
        rng=SEED,
    ).confidence_interval
    return float(low), float(high)


def auroc(score: np.ndarray, is_positive: np.ndarray) -> float:
    """Return the chance that a positive outscores a negative, ties half; NaN with one class only.

    `score [n]`, `is_positive [n]` bool. By ranks (Mann and Whitney, 1947), hence O(n log n).

    >>> auroc([0.9, 0.4, 0.4], [True, True, False])
    0.75
    """
    score, is_positive = np.asarray(score), np.asarray(is_positive, bool)
    return float(_auroc(score, is_positive, np.ones(len(score))))


def auroc_interval(
    score: np.ndarray, is_positive: np.ndarray, group: np.ndarray
) -> tuple[float, float]:
    """Bootstrap `auroc` over the groups `group [n]`, resamples with one class left out."""
    names, member = np.unique(group, return_inverse=True)
    if len(names) < 2:
        return UNKNOWN
    score, is_positive = np.asarray(score), np.asarray(is_positive, bool)

    # How often each resample draws each group; a part of them at a time, for the memory.
    shares = np.full(len(names), 1 / len(names))
    rng = np.random.default_rng(SEED)
    times = rng.multinomial(len(names), shares, size=NUM_RESAMPLES)
    parts = np.array_split(times, math.ceil(NUM_RESAMPLES / 100))
    found = np.concatenate([_auroc(score, is_positive, part[:, member]) for part in parts])

    found = found[np.isfinite(found)]
    return tuple(np.percentile(found, [2.5, 97.5]).tolist()) if found.size else UNKNOWN


def _auroc(score: np.ndarray, is_positive: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return `[...]` for `score [n]`, of which an entry counts `weight [... n]` times."""
    if not len(score):
        return np.full(weight.shape[:-1], np.nan)
    order = np.argsort(score)
    _, starts = np.unique(score[order], return_index=True)
    weight, is_positive = weight[..., order], is_positive[order]

    # Both classes by level: a positive wins against all negatives below it, and half of its own.
    positive = np.add.reduceat(weight * is_positive, starts, axis=-1)
    negative = np.add.reduceat(weight * ~is_positive, starts, axis=-1)
    below = np.cumsum(negative, axis=-1) - negative
    with np.errstate(invalid="ignore"):
        num_pairs = positive.sum(-1) * negative.sum(-1)
        return (positive * (below + negative / 2)).sum(-1) / num_pairs
