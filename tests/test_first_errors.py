"""First errors as ProcessBench counts them, by hand."""

import json

import numpy as np
import pytest
from sklearn import metrics

from benchmarks.first_errors import RIGHT, card, f1, first_below, read_solutions
from jaxtrain.errors import UserError

VALUES = [np.array(x) for x in ([0.9, 0.4, 0.1], [0.8, 0.7], [0.6, 0.3], [0.45, 0.9, 0.2], [0.9])]
LABEL = np.array([1, RIGHT, RIGHT, 2, RIGHT])


def test_the_first_step_below_the_threshold_is_named():
    assert first_below(VALUES, 0.5).tolist() == [1, RIGHT, 1, 0, RIGHT]
    assert first_below(VALUES, 0.0).tolist() == [RIGHT] * 5


def test_f1_is_the_harmonic_mean_of_two_shares():
    """One of two errors is named exactly, two of three right solutions pass."""
    told = f1(first_below(VALUES, 0.5), LABEL)
    assert told == pytest.approx((2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3), 1 / 2, 2 / 3))
    assert f1(np.array([0, 0]), np.array([RIGHT, 1])) == (0, 0, 0)
    assert f1(np.array([1, RIGHT]), np.array([1, RIGHT])) == (1, 1, 1)


def test_the_best_threshold_is_found():
    """No other one does better; between 0.4 and 0.45 no error is missed but one that is."""
    told = card(VALUES, LABEL)
    levels = np.linspace(-0.1, 1.1, 1201)
    best = max(f1(first_below(VALUES, level), LABEL)[0] for level in levels)
    assert told["best_f1"] == best > told["f1"] - 1e-12
    assert f1(first_below(VALUES, told["best_threshold"]), LABEL)[0] == best
    assert (told["num_wrong"], told["num_right"]) == (2, 3)


def test_steps_behind_the_first_error_are_not_ranked():
    told = card(VALUES, LABEL)
    right, wrong = [0.9, 0.8, 0.7, 0.6, 0.3, 0.45, 0.9, 0.9], [0.4, 0.2]
    won = np.mean([p > n for p in right for n in wrong])
    assert told["auroc"] == pytest.approx(won) and told["auroc_within"] == 1


def test_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    values = [np.round(rng.uniform(size=n), 1) for n in rng.integers(1, 6, 50)]
    label = np.array([rng.integers(-1, len(x)) for x in values])
    known = [x[: len(x) if k == RIGHT else k + 1] for x, k in zip(values, label, strict=True)]
    truth = [np.arange(len(x)) != k for x, k in zip(known, label, strict=True)]
    told = card(values, label)
    expected = metrics.roc_auc_score(np.concatenate(truth), np.concatenate(known))
    assert told["auroc"] == pytest.approx(expected)
    named, is_wrong = first_below(values, 0.5), label != RIGHT
    shares = [metrics.accuracy_score(label[at], named[at]) for at in (is_wrong, ~is_wrong)]
    assert [told["wrong"], told["right"]] == pytest.approx(shares)


def test_a_file_of_another_form_is_refused_in_one_line(tmp_path):
    good = {"id": "a", "problem": "1 + 1?", "steps": ["2", "so 2"], "label": -1}
    path = tmp_path / "solutions.jsonl"
    path.write_text(json.dumps(good), "utf-8-sig")
    assert read_solutions(path) == [("1 + 1?", ("2", "so 2"), RIGHT)]
    odd = [good | {"steps": "abc"}, good | {"label": 0.7}, good | {"label": float("inf")}]
    odd += [good | {"steps": ["2", 3]}, good | {"problem": None}, good | {"label": False}]
    bad = [good | {"label": 2}, good | {"steps": []}, {"problem": ""}, [1], "x", *odd]
    for line in (*map(json.dumps, bad), 100_000 * "["):
        path.write_text(json.dumps(good) + "\n" + line)
        with pytest.raises(UserError, match="solutions.jsonl:2: is no solution") as caught:
            read_solutions(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "binary").write_bytes(b"\xff")
    for name in ("none", "binary", "."):
        with pytest.raises(UserError, match="^--file .*: cannot be read"):
            read_solutions(tmp_path / name)
