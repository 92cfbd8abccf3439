"""The calculator of the benchmarks: which sums in a text it reads, and how it mends the first false
one.
"""

import pytest

from benchmarks.calculator import mend, sums, until_answer


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("48+30 = 88 years. 88/2 = 44", [False, True]),
        ("52 students - 24 girls = 28 boys", [True]),
        ("1,000 + 5 = 1,005.", [True]),
        ("$5 * 3 boxes = $16.", [False]),
        ("10 / 3 = 3.33", [True]),
        ("10 / 0 = 0", []),
        ("16 - 3 - 4 = 9", []),
        ("2 + 3 = 5 + 1", []),
        ("5 * 200 = 1,000 * 3", []),
        ("34% of 100 x 60% = 60%", []),
        ("12.5 + 3 = 25%", []),
    ],
)
def test_sums_of_two_numbers_are_read_and_judged(text, right):
    assert [is_right for *_, is_right in sums(text)] == right


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("88/2 = 44 and 48+30 = 88 years, 1+1 = 3", "88/2 = 44 and 48+30 = 78"),
        ("€0.94 x 38 = €34.72 for", "€0.94 x 38 = €35.72"),
        ("100000 * 20 = 2", "100000 * 20 = 2000000"),
        ("100 * 10 = 10", "100 * 10 = 1000"),
        ("2 - 5 = 1", "2 - 5 = -3"),
        ("2 + 2 = 4", None),
    ],
)
def test_first_false_sum_is_mended_and_the_rest_cut(text, mended):
    assert mend(text) == mended


def test_nothing_follows_the_answer():
    assert until_answer("a\n#### 5\nQ: b") == "a\n#### 5"
    assert until_answer("a\nb") == "a\nb"
