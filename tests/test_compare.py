"""`benchmarks.compare`: the rule that stands beside the PRM."""

from __future__ import annotations

import numpy as np

from benchmarks.compare import count_false_sums, keep_fewest
from jaxtrain.evaluation import Answered


def answered(answers: list[list[str | None]]) -> Answered:
    zeros = np.zeros((len(answers), len(answers[0])))
    return Answered(np.arange(len(answers)), answers, zeros > 0, zeros, zeros, zeros, zeros)


def test_answers_with_the_fewest_false_sums_stay():
    """A trace without an answer sets no bar, and a problem without any keeps none."""
    sampled = answered([["5", "7", "5", None], ["1", "2", "3", "1"], [None, None, None, None]])
    counted = answered([["2", "1", "1", "0"], ["0", "0", "3", "1"], ["0", None, None, None]])
    kept = keep_fewest(sampled, counted).answer
    assert kept == [[None, "7", "5", None], ["1", "2", None, None], [None] * 4]


def test_false_sums_are_counted_over_all_steps():
    assert count_false_sums("He has 3 * 4 = 12 plums.\n12 + 5 = 18\n18 - 1 = 16\n#### 16") == "2"
