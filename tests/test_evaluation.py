"""Evaluation against trees drawn by hand, votes in plain Python, and sums written out as loops."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from jaxtrain.config import EvaluationConfig
from jaxtrain.errors import UserError
from jaxtrain.evaluation import (
    STRATEGIES,
    TREES,
    Answered,
    Baseline,
    Strategy,
    accuracy_table,
    prm_report,
    read_choice,
    read_samples,
    samples_report,
    share_in_tree,
)
from jaxtrain.evaluation.prm import row_depth
from jaxtrain.evaluation.strategies import best_of_k, vote, weighted_vote
from jaxtrain.intervals import mean_interval
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import read_baseline
from jaxtrain.report import render_report, scores
from jaxtrain.search.rows import PriorConfig, rank
from jaxtrain.structs import Kind, Labels, Tree, Verdict

NONE, CORRECT, WRONG, UNPARSABLE, ERROR = Verdict


def make_tree(problems, num_rows=8, num_tokens=4, **fields):
    """A Tree from problems = lists of rows (parent, tokens, score, is_finished)."""
    shape = (len(problems), num_rows)
    tree = {
        "problem_id": np.arange(100, 100 + len(problems), dtype=np.int32),
        "parent": np.full(shape, -1, np.int32),
        "kind": np.zeros(shape, np.int32),
        "tokens": np.zeros((*shape, num_tokens), np.int32),
        "length": np.zeros(shape, np.int32),
        "score": np.zeros(shape, np.float32),
        "log_prob": np.zeros(shape, np.float32),
        "visits": np.zeros(shape, np.int32),
        "value": np.zeros(shape, np.float32),
        "is_ended": np.zeros(shape, bool),
        "is_finished": np.zeros(shape, bool),
        "is_ok": np.ones(len(problems), bool),
    }
    zeros = ("num_simulations", "num_wasted", "num_closed", "num_exhausted")
    zeros += ("policy_tokens", "prm_tokens", "lane_tokens")
    tree |= {name: np.zeros(len(problems), np.int32) for name in zeros} | {
        "chosen": np.full(len(problems), -1)
    }
    for b, rows in enumerate(problems):
        for r, (parent, tokens, score, is_finished) in enumerate(rows):
            tree["parent"][b, r], tree["kind"][b, r], tree["score"][b, r] = (
                parent,
                Kind.CANDIDATE,
                score,
            )
            tree["tokens"][b, r, : len(tokens)], tree["length"][b, r] = tokens, len(tokens)
            tree["is_ended"][b, r] = tree["is_finished"][b, r] = is_finished
    return Tree(**(tree | fields))


def verdicts(rows, num_rows=8):
    return np.array([row + [NONE] * (num_rows - len(row)) for row in rows], np.int32)


def read_answer(tokens):
    """Answer with the tokens; token 0 at the end makes it unparsable."""
    return None if tokens[-1] == 0 else ",".join(map(str, tokens))


# Three lanes a problem. The first is laid out depth by depth, the second with lanes and depths
# mixed.
SAMPLES = [
    [
        (-1, [1, 2], 0.1, False),  # lane 0: 1 2 | 5, finished
        (-1, [3], 0.9, True),  # lane 1: 3, finished at once
        (-1, [4, 4, 4], 0.5, False),  # lane 2: 4 4 4 | 6 6 | 7, never finished
        (0, [5], 0.7, True),
        (2, [6, 6], 0.4, False),
        (4, [7], 0.3, False),
    ],
    [
        (-1, [1], 0.2, False),  # lane 0: 1 | 2 | 3
        (0, [2], 0.3, False),
        (-1, [4], 0.4, False),  # lane 1: 4 | 5 0, unparsable
        (-1, [6, 6], 0.8, True),  # lane 2: 6 6
        (2, [5, 0], 0.6, True),
        (1, [3], 0.5, True),
    ],
]
SAMPLE_VERDICTS = [
    [NONE, WRONG, NONE, CORRECT, NONE, NONE],
    [NONE, NONE, NONE, CORRECT, UNPARSABLE, WRONG],
]


def test_samples_are_the_paths_to_childless_rows_in_lane_order():
    read = read_samples(
        make_tree(SAMPLES), verdicts(SAMPLE_VERDICTS), np.array([10, 20]), read_answer
    )
    assert read.problem_id.tolist() == [100, 101]
    assert read.answer == [["1,2,5", "3", None], ["1,2,3", None, "6,6"]]
    assert read.is_correct.tolist() == [[True, False, False], [False, False, True]]
    np.testing.assert_allclose(read.score, [[0.7, 0.9, 0.3], [0.5, 0.6, 0.8]])


def test_best_of_k_ranks_by_score_and_what_the_policy_thought_of_the_trace():
    log_prob = np.zeros((2, 8))
    log_prob[:, :6] = [[-0.5, -4, 0, -0.5, 0, 0], [-1, 0, 0, -9, 0, -1]]
    tree = make_tree(SAMPLES, log_prob=log_prob)
    found = {}
    for weight in (0.0, 0.1):
        rank_fn = partial(rank, PriorConfig(weight=weight))
        read = read_samples(
            tree, verdicts(SAMPLE_VERDICTS), np.array([10, 20]), read_answer, rank_fn
        )
        found[weight] = best_of_k(read, 3).tolist()
    # 0.9 - 0.4 is less than 0.7 - 0.1, and 0.8 - 0.9 than 0.5 - 0.2; the scores stay
    assert found == {0.0: [1, 2], 0.1: [0, 0]}
    np.testing.assert_allclose(read.score, [[0.7, 0.9, 0.3], [0.5, 0.6, 0.8]])


def test_samples_cost_the_prompt_once_and_every_sampled_token():
    read = read_samples(
        make_tree(SAMPLES), verdicts(SAMPLE_VERDICTS), np.array([10, 20]), read_answer
    )
    assert read.policy_tokens.tolist() == [
        [10 + 3, 10 + 3 + 1, 10 + 3 + 1 + 6],
        [20 + 3, 20 + 3 + 3, 20 + 3 + 3 + 2],
    ]
    assert read.prm_tokens.tolist() == read.policy_tokens.tolist()


def test_a_problem_with_fewer_traces_is_filled_up():
    tree = make_tree([SAMPLES[0], [(-1, [1, 2], 0.3, True)], []])
    read = read_samples(
        tree, verdicts([SAMPLE_VERDICTS[0], [CORRECT], []]), np.array([10, 20, 30]), read_answer
    )
    assert read.answer[1:] == [["1,2", None, None], [None, None, None]]
    assert read.is_correct[1:].tolist() == [[True, False, False], [False, False, False]]
    assert read.policy_tokens[1:].tolist() == [[22, 22, 22], [30, 30, 30]]


def test_padding_is_dropped_and_a_problem_set_aside_is_wrong():
    tree = make_tree(
        SAMPLES + SAMPLES,
        problem_id=np.array([5, -1, 6, 7]),
        is_ok=np.array([True, True, False, True]),
    )
    both = verdicts(SAMPLE_VERDICTS + SAMPLE_VERDICTS)
    read = read_samples(tree, both, np.array([10, 20, 30, 40]), read_answer)
    assert read.problem_id.tolist() == [5, 6, 7]
    assert read.is_correct.any(axis=1).tolist() == [True, False, True]
    assert read.answer[1] == [None] * 3
    assert read.policy_tokens[:, 0].tolist() == [13, 33, 43]


SEARCH = [
    (-1, [1], 0.3, False),
    (-1, [2], 0.4, False),
    (0, [3, 4], 0.8, True),
    (1, [5], 0.9, True),
    (0, [6], 0.2, True),
]


def test_a_choice_is_the_chosen_row_at_the_measured_cost():
    tree = make_tree(
        [SEARCH] * 4,
        num_rows=5,
        chosen=np.array([2, 3, -1, 2]),
        is_ok=np.array([True, True, True, False]),
        policy_tokens=np.array([50, 60, 70, 80], np.int32),
        prm_tokens=np.array([40, 41, 42, 43], np.int32),
    )
    verdict = verdicts([[NONE, NONE, CORRECT, WRONG, CORRECT]] * 4, num_rows=5)
    read = read_choice(tree, verdict, read_answer)
    assert read.answer == [["1,3,4"], ["2,5"], [None], [None]]
    assert read.is_correct.tolist() == [[True], [False], [False], [False]]
    assert read.policy_tokens.tolist() == [[50], [60], [70], [80]]
    assert read.prm_tokens.tolist() == [[40], [41], [42], [43]]


def test_share_in_tree_counts_any_correct_row_and_no_padding():
    tree = make_tree([SEARCH] * 4, num_rows=5, problem_id=np.array([3, 4, -1, -1]))
    verdict = verdicts(
        [[NONE, NONE, WRONG, WRONG, CORRECT], [NONE, NONE, WRONG, WRONG, WRONG]] * 2, num_rows=5
    )
    assert share_in_tree(tree, verdict) == 0.5
    nobody = make_tree([SEARCH], num_rows=5, problem_id=np.array([-1]))
    assert math.isnan(share_in_tree(nobody, verdict[:1]))


def make_answered(answer, is_correct, score=None, policy=10, prm=10, prompt=5):
    """B problems with K traces that cost `policy` and `prm` tokens each above the prompt."""
    shape = np.shape(is_correct)
    cost = np.broadcast_to(np.arange(1, shape[1] + 1), shape)
    score = np.zeros(shape) if score is None else np.array(score)
    return Answered(
        np.arange(shape[0]),
        answer,
        np.array(is_correct),
        score,
        score,
        prompt + policy * cost,
        prompt + prm * cost,
    )


def random_answered(rng, num_problems=200, num_samples=11):
    answer = [[None if rng.random() < 0.2 else "abcd"[rng.integers(4)] for _ in range(num_samples)]
              for _ in range(num_problems)]  # fmt: skip
    # outside [0, 1] too, with many ties
    score = rng.integers(-3, 14, (num_problems, num_samples)) / 8
    return make_answered(answer, [[a == "a" for a in row] for row in answer], score)


def test_vote_equals_a_counter():
    answered = random_answered(np.random.default_rng(0))
    for k in (1, 2, 5, 11):
        for answer, winner in zip(answered.answer, vote(answered, k), strict=True):
            count = Counter(a for a in answer[:k] if a is not None)
            expected = [a for a in answer[:k] if a is not None and count[a] == max(count.values())]
            assert winner == (answer.index(expected[0]) if expected else -1)


def test_weighted_vote_equals_a_counter_of_clipped_values():
    answered = random_answered(np.random.default_rng(1))
    for k in (1, 3, 11):
        for answer, score, winner in zip(
            answered.answer, answered.score, weighted_vote(answered, k), strict=True
        ):
            weight = Counter()
            for a, s in zip(answer[:k], score[:k], strict=True):
                weight[a] += min(max(s, 0), 1)
            expected = [
                a
                for a in answer[:k]
                if a is not None and weight[a] == max(weight[b] for b in weight if b)
            ]
            assert winner == (answer.index(expected[0]) if expected else -1)


def test_best_of_k_equals_a_sorted_list():
    answered = random_answered(np.random.default_rng(2))
    for k in (1, 4, 11):
        for answer, score, winner in zip(
            answered.answer, answered.score, best_of_k(answered, k), strict=True
        ):
            ranked = sorted((-score[i], i) for i in range(k) if answer[i] is not None)
            assert winner == (ranked[0][1] if ranked else -1)


def test_ties_and_traces_without_an_answer():
    answered = make_answered(
        [[None, "b", "a", "a", "b"], [None] * 5, ["a", "b", "b", "a", "c"]],
        np.zeros((3, 5), bool),
        [[9.0, 0.2, 0.6, 0.6, 0.1], [1.0] * 5, [0.3, 0.5, 0.5, 0.6, 3.0]],
    )
    assert vote(answered, 5).tolist() == [1, -1, 0]
    assert best_of_k(answered, 5).tolist() == [2, -1, 4]
    # 1.0 for b, 0.9 for a, and 3.0 counts as 1.0
    assert weighted_vote(answered, 5).tolist() == [2, -1, 1]
    assert vote(answered, 1).tolist() == [-1, -1, 0]


def test_a_vote_is_as_right_as_its_first_trace():
    answered = make_answered([["x", "x", "y"]] * 2, [[True, False, False], [False, True, False]])
    assert table_of(answered, answered)["evaluation/self_consistency/accuracy"] == 0.5


TABLE_SAMPLES = make_answered(
    [["b", "a", "a", "c"], ["b", "b", "a", "a"], ["a", None, None, None], [None, None, "b", "a"]],
    [
        [False, True, True, False],
        [False, False, True, True],
        [True, False, False, False],
        [False, False, False, True],
    ],
    [[0.9, 0.8, 0.8, 0.1], [0.2, 0.3, 0.4, 0.9], [0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.6]],
)
GREEDY = make_answered(
    [["a"], ["b"], ["a"], ["b"]], [[True], [False], [True], [False]], policy=20, prm=99
)


def table_of(greedy, samples=None, search=None):
    """Compare all strategies that read trees which are there."""
    groups = {"greedy": greedy, "samples": samples, "search": search}
    groups = {name: group for name, group in groups.items() if group is not None}
    return accuracy_table(groups, [s.name for s in STRATEGIES.values() if s.trees in groups])


def search_costing(policy, prm):
    return make_answered(
        [["a"]] * 4, [[True], [True], [False], [True]], policy=policy, prm=prm, prompt=0
    )


def test_curves_by_hand():
    table = table_of(GREEDY, TABLE_SAMPLES)
    curves = {m: table[f"evaluation/{m}/curve"] for m in
              ("self_consistency", "best_of_k", "weighted_vote", "pass_at_k")}  # fmt: skip
    assert [(row[0], row[1], row[4]) for row in curves["self_consistency"]] == [
        (15, 0.25, 1),
        (25, 0.25, 2),
        (45, 0.5, 4),
    ]
    assert [(row[0], row[1], row[4]) for row in curves["best_of_k"]] == [
        (30, 0.25, 1),
        (50, 0.25, 2),
        (90, 0.75, 4),
    ]
    assert [(row[0], row[1], row[4]) for row in curves["weighted_vote"]] == [
        (30, 0.25, 1),
        (50, 0.25, 2),
        (90, 1.0, 4),
    ]
    assert [(row[0], row[1], row[4]) for row in curves["pass_at_k"]] == [
        (15, 0.25, 1),
        (25, 0.5, 2),
        (45, 1.0, 4),
    ]
    assert curves["self_consistency"][2][2:4] == pytest.approx([0.1500, 0.8500], abs=1e-4)


def test_the_curve_ends_at_k_that_is_no_power_of_two():
    table = table_of(GREEDY, random_answered(np.random.default_rng(3), num_problems=4))
    assert [row[4] for row in table["evaluation/best_of_k/curve"]] == [1, 2, 4, 8, 11]


def test_greedy_pays_for_the_policy_and_search_for_both():
    table = table_of(GREEDY, TABLE_SAMPLES, search_costing(31, 14))
    assert table["evaluation/greedy/tokens"] == 25
    assert table["evaluation/search/tokens"] == 45
    assert (table["evaluation/greedy/accuracy"], table["evaluation/search/accuracy"]) == (0.5, 0.75)
    assert (table["evaluation/search/low"], table["evaluation/search/high"]) == pytest.approx(
        (0.3006, 0.9544), abs=1e-4
    )
    assert table["evaluation/search/num_problems"] == 4


@pytest.mark.parametrize(
    ("budget", "vote_k", "is_vote_short", "best_k", "is_best_short"),
    [
        # a vote costs 5 + 10 k, best-of-k 10 + 20 k: 35 is met exactly, 30 is nearest below
        (35, 3, 0, 1, 0),
        (33.4, 3, 0, 1, 0),  # 35 passes the budget by less than 5 %
        (33.0, 2, 0, 1, 0),  # by more than 5 %
        (47, 4, 0, 1, 0),  # all samples cost 4 % less: near enough
        (48, 4, 1, 2, 0),
        (400, 4, 1, 4, 1),
        (2, 1, 0, 1, 0),  # nothing is as cheap
    ],
)
def test_the_headline_k_costs_what_search_costs(
    budget, vote_k, is_vote_short, best_k, is_best_short
):
    table = table_of(GREEDY, TABLE_SAMPLES, search_costing(budget - 1, 1))
    for method, k, is_short in (
        ("self_consistency", vote_k, is_vote_short),
        ("best_of_k", best_k, is_best_short),
        ("weighted_vote", best_k, is_best_short),
    ):
        assert table[f"evaluation/{method}/k"] == k
        assert table[f"evaluation/{method}/is_budget_short"] == is_short
    assert table["evaluation/self_consistency/tokens"] == 5 + 10 * vote_k
    assert table["evaluation/best_of_k/tokens"] == 10 + 20 * best_k
    assert table["evaluation/pass_at_k/k"] == 4


def test_without_search_every_sample_counts_and_search_has_no_keys():
    table = table_of(GREEDY, TABLE_SAMPLES)
    row = ["accuracy", "low", "high", "num_problems", "tokens", "outcomes"]
    sampled = [f"{m}/{key}" for m in ("self_consistency", "best_of_k", "weighted_vote", "pass_at_k")
               for key in [*row, "k", "curve"]]  # fmt: skip
    assert sorted(table) == sorted(
        f"evaluation/{key}" for key in [*(f"greedy/{key}" for key in row), *sampled]
    )
    assert table["evaluation/weighted_vote/k"] == 4


def last(answered, k):
    return np.full(len(answered.answer), k - 1)


def test_another_strategy_is_a_line_of_the_table(monkeypatch):
    """Config, metrics and the report have it; only its own trees are grown."""
    monkeypatch.setitem(STRATEGIES, "last", Strategy("last", "the last trace", "samples", last))
    config = EvaluationConfig(strategies=("last",))
    assert list(config.searches) == ["samples"]
    table = table_of(GREEDY, TABLE_SAMPLES, search_costing(34, 1))
    rows = [{"iteration": 0, **table}]
    assert table["evaluation/last/outcomes"] == TABLE_SAMPLES.is_correct[:, 2].astype(int).tolist()
    assert table["evaluation/search_minus_last"] == 0.25
    assert "the last trace" in scores.tell_accuracy(rows[0])
    assert "the last trace" in [line.name for line in scores.by_tokens(rows[0]).lines]
    assert "the last trace" in render_report({}, rows, [], {})


def test_no_tree_is_grown_that_nothing_reads():
    for strategies, kinds in (
        (("greedy",), ["greedy"]),
        (("pass_at_k", "greedy"), ["greedy", "samples"]),
        (("search",), ["search"]),
    ):
        assert list(EvaluationConfig(strategies=strategies).searches) == kinds
    assert list(EvaluationConfig().searches) == list(TREES)


def test_differences_are_paired():
    rng = np.random.default_rng(4)
    is_hard = rng.random(301) < 0.5
    # search loses no problem, and wins a few
    ours, theirs = ~is_hard, ~is_hard & (rng.random(301) < 0.9)
    answer = [["a"]] * 301
    rival = make_answered(answer, theirs[:, None])
    table = table_of(rival, rival, make_answered(answer, ours[:, None]))
    for name in ("evaluation/search_minus_self_consistency", "evaluation/search_minus_best_of_k"):
        assert table[name] == pytest.approx(ours.mean() - theirs.mean())
        interval = mean_interval(ours.astype(float) - theirs, np.arange(301))
        assert (table[f"{name}_low"], table[f"{name}_high"]) == interval
        assert 0 < interval[0] < table[name] < interval[1]
    assert interval[1] - interval[0] < 0.7 * (
        table["evaluation/search/high"] - table["evaluation/search/low"]
    )


def test_other_problems_are_an_error():
    other = replace(GREEDY, problem_id=np.arange(4)[::-1])
    with pytest.raises(ValueError, match="greedy and samples answer different problems"):
        table_of(other, TABLE_SAMPLES)


def test_no_problems_give_nan():
    tree = make_tree([SAMPLES[0]], problem_id=np.array([-1]))
    nobody = read_samples(tree, verdicts([SAMPLE_VERDICTS[0]]), np.array([10]), read_answer)
    table = table_of(nobody, nobody, read_choice(tree, verdicts([SAMPLE_VERDICTS[0]]), read_answer))
    assert table["evaluation/search/num_problems"] == 0
    for name in ("greedy/accuracy", "search/tokens", "best_of_k/low", "search_minus_best_of_k"):
        assert math.isnan(table[f"evaluation/{name}"])


def test_baseline_is_the_mean_target_and_the_mean_of_a_depth(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.truncate(-1)
        log.append(0, {"datasets/targets_by_depth": [[0.25, 2], [1.0, 1], [None, 0], [0.3, 1]]})
        baseline = read_baseline(log, 1)
    assert baseline.constant == pytest.approx(0.45)
    np.testing.assert_allclose(
        baseline.predict(np.array([0, 1, 2, 3, 4, 9])), [0.25, 1.0, 0.45, 0.3, 0.45, 0.45]
    )


def test_depth_is_the_number_of_parents():
    parent = np.array([[-1, 0, 1, -1, 3, 1], [-1, -1, 1, 2, 3, 4]])
    assert row_depth(parent).tolist() == [[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 3, 4]]


def make_labels(tree, verdict, target=None, is_labelled=None):
    shape = tree.parent.shape
    return Labels(
        verdict=verdict,
        is_correct=np.zeros(shape, bool) if target is None else target > 0.5,
        target=np.zeros(shape, np.float32) if target is None else target,
        is_labelled=np.zeros(shape, bool) if is_labelled is None else is_labelled,
    )


def random_trees(rng, num_trees, num_rows=24):
    """Trees of random shape whose scores know something about the verdicts and the targets."""
    shape = (num_trees, num_rows)
    kind = rng.choice(
        [Kind.EMPTY, Kind.CANDIDATE, Kind.ROLLOUT, Kind.DUPLICATE], shape, p=[0.1, 0.6, 0.2, 0.1]
    )
    verdict = np.where(
        rng.random(shape) < 0.5, rng.choice([CORRECT, WRONG, UNPARSABLE, ERROR], shape), NONE
    )
    target = rng.integers(0, 5, shape) / 4
    score = (
        (0.5 * (verdict == CORRECT) + 0.5 * target + rng.normal(0, 0.3, shape))
        .round(1)
        .astype(np.float32)
    )
    parent = np.array(
        [[rng.integers(-1, r) if r else -1 for r in range(num_rows)] for _ in range(num_trees)]
    )
    tree = make_tree(
        [[]] * num_trees,
        num_rows,
        parent=parent,
        kind=kind,
        score=score,
        is_finished=verdict != NONE,
        is_ok=rng.random(num_trees) < 0.9,
        problem_id=np.where(rng.random(num_trees) < 0.9, np.arange(num_trees), -1),
    )
    return tree, make_labels(tree, verdict, target.astype(np.float32), rng.random(shape) < 0.7)


BASELINE = Baseline(0.4, np.array([0.3, 0.5, 0.6]))
UNFITTED = Baseline(math.nan, np.zeros(0))


@pytest.fixture(scope="module")
def random_report():
    tree, labels = random_trees(np.random.default_rng(5), 40)
    return tree, labels, prm_report(tree, labels, BASELINE)


def kept_rows(tree):
    """(problem, row) of every sampled step that may count."""
    for b in range(tree.parent.shape[0]):
        for r in range(tree.parent.shape[1]):
            if (
                tree.is_ok[b]
                and tree.problem_id[b] >= 0
                and tree.kind[b, r] in (Kind.CANDIDATE, Kind.ROLLOUT)
            ):
                yield b, r


def share_won(pairs):
    return np.mean([1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs])


def test_prm_auroc_equals_pairs_of_judged_leaves(random_report):
    tree, labels, report = random_report
    right = [(b, tree.score[b, r]) for b, r in kept_rows(tree) if labels.verdict[b, r] == CORRECT]
    wrong = [
        (b, tree.score[b, r])
        for b, r in kept_rows(tree)
        if labels.verdict[b, r] in (WRONG, UNPARSABLE)
    ]
    assert report["evaluation/prm/num_leaves"] == len(right) + len(wrong)
    assert report["evaluation/prm/auroc"] == pytest.approx(
        share_won([(p, q) for _, p in right for _, q in wrong])
    )
    pairs = [[(p, q) for b, p in right if b == t for c, q in wrong if c == t] for t in range(40)]
    within = [share_won(own) for own in pairs if own]
    assert report["evaluation/prm/num_mixed"] == len(within)
    assert report["evaluation/prm/auroc_within"] == pytest.approx(np.mean(within))
    for name in ("auroc", "auroc_within"):
        name = f"evaluation/prm/{name}"
        assert report[f"{name}_low"] < report[name] < report[f"{name}_high"]


def test_prm_errors_equal_loops_over_labelled_steps(random_report):
    tree, labels, report = random_report
    rows = [(b, r) for b, r in kept_rows(tree) if labels.is_labelled[b, r]]
    error, within = {"": [], "_constant": [], "_depth": []}, {"": [], "_constant": [], "_depth": []}
    for b, r in rows:
        depth, up = 0, tree.parent[b, r]
        while up >= 0:
            depth, up = depth + 1, tree.parent[b, up]
        guesses = {"": min(max(float(tree.score[b, r]), 0), 1), "_constant": 0.4,
                   "_depth": [0.3, 0.5, 0.6][depth] if depth < 3 else 0.4}  # fmt: skip
        for name, guess in guesses.items():
            distance = abs(guess - float(labels.target[b, r]))
            error[name].append(distance**2)
            within[name].append(distance < 0.1001)
    assert report["evaluation/prm/num_steps"] == len(rows)
    assert report["evaluation/prm/num_trees"] == (tree.is_ok & (tree.problem_id >= 0)).sum()
    for name in error:
        assert report[f"evaluation/prm/squared_error{name}"] == pytest.approx(np.mean(error[name]))
        assert report[f"evaluation/prm/within{name}"] == pytest.approx(np.mean(within[name]))
    for name in ("_constant", "_depth"):
        skill = report[f"evaluation/prm/skill{name}"]
        assert skill == pytest.approx(np.mean(error[name]) - np.mean(error[""]))
        assert (
            report[f"evaluation/prm/skill{name}_low"]
            < skill
            < report[f"evaluation/prm/skill{name}_high"]
        )


def test_prm_calibration_equals_a_loop(random_report):
    tree, labels, report = random_report
    bins = {}
    for b, r in kept_rows(tree):
        if labels.is_labelled[b, r]:
            value = min(max(float(tree.score[b, r]), 0), 1)
            bins.setdefault(min(math.floor(value * 10), 9), []).append((value, labels.target[b, r]))
    expected = [[*np.mean(bins[i], axis=0), len(bins[i])] for i in sorted(bins)]
    np.testing.assert_allclose(report["evaluation/prm/calibration"], expected, rtol=1e-6)


def test_prm_auroc_by_depth_equals_pairs_of_steps(random_report):
    tree, labels, report = random_report
    depth, steps = row_depth(tree.parent), {}
    for b, r in kept_rows(tree):
        if labels.is_labelled[b, r]:
            steps.setdefault(depth[b, r], ([], []))[int(labels.is_correct[b, r])].append(
                tree.score[b, r]
            )
    expected = [
        [d, share_won([(p, q) for p in right for q in wrong]), len(right) + len(wrong)]
        for d, (wrong, right) in sorted(steps.items())
        if right and wrong
    ]
    assert len(expected) > 3
    np.testing.assert_allclose(report["evaluation/prm/auroc_by_depth"], expected, rtol=1e-6)


def test_prm_auroc_within_by_depth_equals_pairs_of_steps_of_a_problem(random_report):
    tree, labels, report = random_report
    depth, steps = row_depth(tree.parent), {}
    for b, r in kept_rows(tree):
        if labels.is_labelled[b, r]:
            at = depth[b, r], int(tree.problem_id[b])
            sides = steps.setdefault(at, ([], []))
            sides[int(labels.is_correct[b, r])].append(tree.score[b, r])
    found = {}
    for (d, _), (wrong, right) in steps.items():
        if right and wrong:
            found.setdefault(d, []).append(share_won([(p, q) for p in right for q in wrong]))
    expected = [[d, np.mean(x), len(x)] for d, x in sorted(found.items())]
    assert len(expected) > 3 and len(found[0]) > 1
    np.testing.assert_allclose(report["evaluation/prm/auroc_within_by_depth"], expected, rtol=1e-6)
    first = [report[f"evaluation/prm/auroc_within_first{end}"] for end in ("_low", "", "_high")]
    assert first == sorted(first) and first[1] == pytest.approx(np.mean(found[0]))


def test_prm_calibration_by_hand():
    tree = make_tree([[(-1, [1], s, False) for s in (-0.5, 0.05, 0.15, 0.95, 1.0, 1.5)]])
    target = np.array([[0.0, 0.5, 0.25, 0.5, 1.0, 0.75, 9.0, 9.0]], np.float32)
    report = prm_report(
        tree, make_labels(tree, verdicts([[]]), target, tree.kind == Kind.CANDIDATE), BASELINE
    )
    expected = [[0.025, 0.25, 2], [0.15, 0.25, 1], [2.95 / 3, 0.75, 3]]
    np.testing.assert_allclose(report["evaluation/prm/calibration"], expected, rtol=1e-6)


def test_easy_and_hard_problems_lift_auroc_but_not_auroc_within():
    easy = [(-1, [1], 0.9, True)] * 4
    hard = [(-1, [1], 0.1, True)] * 4
    tree = make_tree([easy, hard])
    verdict = verdicts([[CORRECT, CORRECT, CORRECT, WRONG], [CORRECT, WRONG, WRONG, WRONG]])
    report = prm_report(tree, make_labels(tree, verdict), BASELINE)
    assert report["evaluation/prm/auroc"] == 0.75
    assert report["evaluation/prm/auroc_within"] == 0.5


def test_samples_are_ranked_by_pairs_of_answers():
    answered = random_answered(np.random.default_rng(3), num_problems=40)
    report = samples_report(answered)
    given = [
        (b, score, right)
        for b, row in enumerate(answered.answer)
        for text, score, right in zip(row, answered.score[b], answered.is_correct[b], strict=True)
        if text is not None
    ]
    pairs = [(b == c, p, q) for b, p, right in given if right for c, q, other in given if not other]
    assert report["evaluation/prm/samples/num_leaves"] == len(given) < answered.score.size
    assert report["evaluation/prm/samples/auroc"] == pytest.approx(
        share_won([(p, q) for _, p, q in pairs])
    )
    own = defaultdict(list)
    for b, p, right in given:
        if right:
            own[b] += [(p, q) for c, q, other in given if c == b and not other]
    within = [share_won(pairs) for pairs in own.values() if pairs]
    assert report["evaluation/prm/samples/auroc_within"] == pytest.approx(np.mean(within))
    assert report["evaluation/prm/samples/num_mixed"] == len(within) > 1


def test_the_best_sample_is_set_beside_the_mean_one():
    answered, gains = random_answered(np.random.default_rng(5), num_problems=40), []
    for b, texts in enumerate(answered.answer):
        told = [k for k, text in enumerate(texts) if text is not None]
        best = max(told, key=lambda k: answered.rank[b, k], default=None)
        right = answered.is_correct[b].tolist()
        gains.append((best is not None and right[best]) - sum(right) / len(right))
    report = samples_report(answered)
    key = "evaluation/prm/samples/gain"
    assert report[key] == pytest.approx(np.mean(gains))
    assert report[f"{key}_low"] < report[key] < report[f"{key}_high"]


def test_an_error_of_a_tenth_in_float32_is_within_a_tenth():
    tree = make_tree([[(-1, [1], s, False) for s in (0.9, 0.4, 0.51)]])
    target = np.zeros((1, 8), np.float32)
    target[0, :3] = 0.8, 0.3, 0.4
    report = prm_report(
        tree, make_labels(tree, verdicts([[]]), target, tree.kind == Kind.CANDIDATE), BASELINE
    )
    assert report["evaluation/prm/within"] == pytest.approx(2 / 3)


def test_prm_intervals_shrink_with_trees():
    few, many = (
        prm_report(*random_trees(np.random.default_rng(6), n), BASELINE) for n in (20, 180)
    )
    for name in ("auroc", "squared_error", "skill_depth", "auroc_within"):
        width = [
            r[f"evaluation/prm/{name}_high"] - r[f"evaluation/prm/{name}_low"] for r in (few, many)
        ]
        assert 1.7 < width[0] / width[1] < 6  # three in theory


def test_nothing_to_measure_is_nan():
    tree = make_tree([SAMPLES[0], SAMPLES[1]], is_ok=np.array([False, False]))
    report = prm_report(tree, make_labels(tree, verdicts(SAMPLE_VERDICTS)), UNFITTED)
    counts = {"num_leaves": 0, "num_steps": 0, "num_trees": 0, "num_mixed": 0, "calibration": []}
    counts |= {"auroc_by_depth": [], "auroc_within_by_depth": []}
    for name, value in report.items():
        name = name.removeprefix("evaluation/prm/")
        assert value == counts[name] if name in counts else math.isnan(value), name


def test_one_tree_has_an_estimate_but_no_interval():
    tree = make_tree([SAMPLES[0]])
    target = np.full((1, 8), 0.5, np.float32)
    labels = make_labels(tree, verdicts([SAMPLE_VERDICTS[0]]), target, tree.kind == Kind.CANDIDATE)
    report = prm_report(tree, labels, BASELINE)
    assert report["evaluation/prm/auroc"] == 0
    assert report["evaluation/prm/squared_error"] == pytest.approx(
        (0.16 + 0.16 + 0 + 0.04 + 0.01 + 0.04) / 6
    )
    for name in ("auroc_low", "auroc_within_high", "squared_error_low", "skill_depth_high"):
        assert math.isnan(report[f"evaluation/prm/{name}"])


def test_one_class_has_no_auroc():
    tree = make_tree(SAMPLES)
    verdict = np.where(verdicts(SAMPLE_VERDICTS) == CORRECT, CORRECT, NONE)
    report = prm_report(tree, make_labels(tree, verdict), BASELINE)
    assert report["evaluation/prm/num_leaves"] == 2
    for name in ("auroc", "auroc_low", "auroc_high", "auroc_within", "auroc_within_low"):
        assert math.isnan(report[f"evaluation/prm/{name}"])


def test_an_unfitted_baseline_is_nan_and_the_prm_is_not():
    tree, labels = random_trees(np.random.default_rng(7), 10)
    report = prm_report(tree, labels, UNFITTED)
    for name in (
        "squared_error_constant",
        "squared_error_depth",
        "skill_constant",
        "skill_depth_low",
        "within_depth",
    ):
        assert math.isnan(report[f"evaluation/prm/{name}"])
    assert report["evaluation/prm/squared_error"] > 0


def test_metrics_are_plain_json(random_report):
    metrics = random_report[2] | table_of(GREEDY, TABLE_SAMPLES, search_costing(30, 10))
    assert json.loads(json.dumps(metrics)) == metrics


@pytest.mark.parametrize(
    "field", [{"split": "train"}, {"num_problems": -1}, {"strategies": "mcts"}]
)
def test_a_setting_that_cannot_be_is_named(field):
    ((name, value),) = field.items()
    field = {name: (value,) if name == "strategies" else value}
    with pytest.raises(UserError, match=f"--config.evaluation.{name}={value}: must be"):
        EvaluationConfig(**field)
