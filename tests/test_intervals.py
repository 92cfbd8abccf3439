"""Intervals against golden values from the literature, brute force over pairs, and resamples
written out.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from jaxtrain import intervals
from jaxtrain.intervals import auroc, auroc_interval, mean, mean_interval, wilson


@pytest.mark.parametrize(
    ("num_correct", "n", "low", "high"),
    [
        # the first four: Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0000, 0.2775),  # by hand: z^2 / (n + z^2) = 3.8416 / 13.8416
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0000),
    ],
)
def test_wilson_golden_values(num_correct, n, low, high):
    assert wilson(num_correct, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_solves_the_score_equation():
    for num_correct, n in [(1, 7), (30, 64), (511, 512)]:
        for bound in wilson(num_correct, n):
            assert abs(num_correct / n - bound) == pytest.approx(
                1.959964 * math.sqrt(bound * (1 - bound) / n)
            )


def test_wilson_contains_the_share_and_stays_in_bounds():
    for n in (1, 2, 7, 50, 79):
        for num_correct in range(n + 1):
            low, high = wilson(num_correct, n)
            assert 0 <= low <= num_correct / n <= high <= 1


def pairs_auroc(score, is_positive):
    marked = list(zip(score, is_positive, strict=True))
    pairs = [(p, q) for p, a in marked for q, b in marked if a and not b]
    return sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs)


def test_auroc_equals_brute_force_over_pairs():
    rng = np.random.default_rng(1)
    for num_distinct in (2, 5, 1000):
        score = rng.integers(num_distinct, size=60) / num_distinct - 0.3
        is_positive = rng.random(60) < 0.3
        expected = pytest.approx(pairs_auroc(score, is_positive), abs=1e-12)
        assert auroc(score, is_positive) == expected
        ranked = stats.mannwhitneyu(score[is_positive], score[~is_positive], method="asymptotic")
        assert ranked.statistic / (is_positive.sum() * (~is_positive).sum()) == expected


def test_auroc_of_perfect_reversed_and_blind_scores():
    is_positive = np.array([False, False, True, True])
    assert auroc(np.array([0.1, 0.2, 0.3, 0.4]), is_positive) == 1
    assert auroc(np.array([0.4, 0.3, 0.2, 0.1]), is_positive) == 0
    assert auroc(np.ones(4), is_positive) == 0.5


def test_auroc_interval_equals_resamples_written_out():
    rng = np.random.default_rng(2)
    group = rng.integers(8, size=50)
    score = rng.integers(10, size=50) / 10
    is_positive = rng.random(50) < score
    names = sorted(set(group))
    draws = np.random.default_rng(intervals.SEED).multinomial(
        len(names), [1 / len(names)] * len(names), size=intervals.NUM_RESAMPLES
    )
    estimates = []
    for draw in draws[:200]:
        drawn = [n for n, times in zip(names, draw, strict=True) for _ in range(times)]
        entries = [i for name in drawn for i in np.flatnonzero(group == name)]
        estimates.append(pairs_auroc(score[entries], is_positive[entries]))
    member = np.searchsorted(names, group)
    weighted = intervals._auroc(score, is_positive, draws[:200, member])
    assert weighted == pytest.approx(estimates)
    assert auroc_interval(score, is_positive, group) == pytest.approx(
        np.percentile(estimates, [2.5, 97.5]), abs=0.02
    )


def test_auroc_interval_contains_the_estimate_and_shrinks():
    rng = np.random.default_rng(3)
    widths = []
    for num_groups in (20, 320):
        group = np.repeat(np.arange(num_groups), 4)
        is_positive = rng.random(len(group)) < 0.5
        score = is_positive + rng.normal(size=len(group))
        low, high = auroc_interval(score, is_positive, group)
        assert low < auroc(score, is_positive) < high
        widths.append(high - low)
    assert 2.5 < widths[0] / widths[1] < 6.5  # four in theory


def test_mean_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(4).normal(size=400)
    low, high = mean_interval(values, np.arange(400))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_mean_interval_counts_groups_not_entries():
    values = np.random.default_rng(5).normal(size=50)
    copied = np.repeat(values, 9)
    once = mean_interval(values, np.arange(50))
    assert mean_interval(copied, np.repeat(np.arange(50), 9)) == pytest.approx(once)
    naive_low, naive_high = mean_interval(copied, np.arange(450))
    assert naive_high - naive_low < 0.5 * (once[1] - once[0])


def test_mean_interval_equals_resamples_written_out():
    rng = np.random.default_rng(6)
    group = np.repeat([7, -3, 12, 5, 0], [1, 9, 2, 4, 6])  # sizes differ, and with them the weights
    values = rng.random(len(group)) + group
    draws = np.random.default_rng(1).multinomial(5, [0.2] * 5, size=20_000)
    means = [
        np.average(values, weights=np.repeat(draw[[3, 0, 4, 2, 1]], [1, 9, 2, 4, 6]))
        for draw in draws
    ]
    assert mean_interval(values, group) == pytest.approx(
        np.percentile(means, [2.5, 97.5]), rel=0.03
    )


def test_resamples_of_one_class_are_left_out():
    interval = auroc_interval(
        np.array([0.1, 0.9, 0.2]), np.array([False, True, False]), np.arange(3)
    )
    assert interval == (1.0, 1.0)


def test_the_same_data_give_the_same_interval():
    values, group = np.random.default_rng(7).random(30), np.arange(30) % 7
    assert mean_interval(values, group) == mean_interval(values, group)


@pytest.mark.parametrize(
    "estimate",
    [
        lambda: wilson(0, 0),
        lambda: mean(np.array([])),
        lambda: mean_interval(np.array([]), np.array([])),
        lambda: mean_interval(np.array([1.0, 2.0]), np.array([3, 3])),
        lambda: auroc(np.array([]), np.array([])),
        lambda: auroc(np.array([0.1, 0.9]), np.array([True, True])),
        lambda: auroc_interval(np.array([]), np.array([]), np.array([])),
        lambda: auroc_interval(np.array([0.1, 0.9]), np.array([False, False]), np.array([0, 1])),
        lambda: auroc_interval(np.array([0.1, 0.9]), np.array([False, True]), np.array([4, 4])),
    ],
)
def test_what_cannot_be_known_is_nan(estimate):
    assert np.isnan(estimate()).all()
