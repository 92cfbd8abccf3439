"""Labels: the paper's golden trees, Eq. 1-2 as an oracle in plain Python, what must never be
labelled, and every other kind of label against recursion.
"""

import logging
from dataclasses import replace

import numpy as np
import pytest
from forest import Row, grow_at_random, plant

from jaxtrain import labels
from jaxtrain.errors import UserError
from jaxtrain.labels import LabelsConfig
from jaxtrain.labels.leaves import TdLambdaConfig
from jaxtrain.labels.walks import Target
from jaxtrain.structs import Kind, Verdict

C, W, NONE = Verdict.CORRECT, Verdict.WRONG, Verdict.NONE

# Figure 3 of the paper: two dice, the probability that their sum is 4 (1/12).
DICE = """
name parent leaf m v
A    -      -    2 .333333333
B    -      W    3 0
C    -      -    3 0
C1   C      W    3 0
A1   A      -    1 .666666667
A1c  A1     C    0 1
A1w  A1     W    1 .5
A2   A      -    2 .555555556
A2a  A2     -    1 .777777778
A2b  A2a    C    0 1
"""

# Figure 1; s_1 is drawn as the start, so it is the prompt here.
FIGURE = """
name parent leaf m v
s2   -      -    3 .25
s31  s2     -    2 .5
s41  s31    -    1 .75
A1   s41    C    0 1
s42  s31    -    2 .333333333
A2   s42    W    2 .111111111
"""


def read_table(table: str) -> tuple[list[Row], list[float]]:
    lines = [line.split() for line in table.strip().splitlines()[1:]]
    index = {"-": -1} | {line[0]: i for i, line in enumerate(lines)}
    leaf = {"-": NONE, "C": C, "W": W}
    rows = [Row(index[parent], (i,), leaf[kind]) for i, (_, parent, kind, _, _) in enumerate(lines)]
    return rows, [float(line[4]) for line in lines]


def children_of(rows: list[Row]) -> dict[int, list[int]]:
    """The usable children of every row, and of the prompt at -1."""
    usable = [row.kind in (Kind.CANDIDATE, Kind.ROLLOUT) for row in rows]
    return {
        i: [c for c, row in enumerate(rows) if row.parent == i and usable[c]]
        for i in range(-1, len(rows))
    }


def oracle(rows: list[Row]) -> dict[int, tuple[bool, float]]:
    """Section 3.2 in recursion and float64: {row: (correct below, v)} of the labelled rows."""
    children = children_of(rows)

    def is_kept(i: int) -> bool:
        return rows[i].verdict in (C, W, Verdict.UNPARSABLE) or any(map(is_kept, children[i]))

    def distance(i: int) -> float:
        if i >= 0 and rows[i].verdict == C:
            return 0
        return 1 + min(map(distance, children[i]), default=float("inf"))

    found = {}

    def descend(i: int, m_parent: float, v_parent: float) -> None:
        r = int(distance(i) == float("inf"))  # the error: 1 where nothing correct was reached
        m = m_parent if r else distance(i)
        w = (1 - v_parent) / (m + 1) * (1 - 2 * r)
        v = max(v_parent + w, 0)
        found[i] = (not r, v)
        for child in filter(is_kept, children[i]):
            descend(child, m, v)

    if distance(-1) < float("inf"):
        for child in filter(is_kept, children[-1]):
            descend(child, distance(-1), 0.0)
    return found


def quality(tree, verdict):
    return labels.label(tree, verdict, LabelsConfig("quality"))


def words(known: dict[int, Verdict]):
    """A verifier that knows traces by their last token."""
    return lambda problem_id, tokens: known[int(tokens[-1])]


@pytest.mark.parametrize("table", [DICE, FIGURE])
def test_golden_trees(table):
    rows, value = read_table(table)
    tree, _ = plant([rows])
    verdict = labels.judge(tree, words({i: row.verdict for i, row in enumerate(rows)}))
    made = quality(tree, verdict)
    assert made.is_labelled.all()
    np.testing.assert_allclose(made.target[0], value, atol=1e-6, rtol=0)


def test_reverse_pass_equals_recursion_on_equations_1_and_2():
    rng = np.random.default_rng(1)
    num_labelled = 0
    for _ in range(10):
        forest = [grow_at_random(rng, 40) for _ in range(30)]
        tree, verdict = plant(forest)
        made = quality(tree, verdict)
        for b, rows in enumerate(forest):
            found = oracle(rows)
            num_labelled += len(found)
            assert np.flatnonzero(made.is_labelled[b]).tolist() == sorted(found)
            for r, (is_correct, v) in found.items():
                assert made.is_correct[b, r] == is_correct
                assert made.target[b, r] == pytest.approx(v, abs=1e-6)
    assert num_labelled > 2000


def test_values_are_bounded_and_only_correct_answers_reach_one():
    rng = np.random.default_rng(2)
    tree, verdict = plant([grow_at_random(rng, 60) for _ in range(100)])
    made = quality(tree, verdict)
    target, is_labelled = made.target, made.is_labelled
    assert ((target >= 0) & (target <= 1)).all()
    assert (target[is_labelled & (verdict == C)] == 1).all()
    assert (target[is_labelled & (verdict != C)] < 1).all()
    assert not target[~is_labelled].any()


@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_clean_solution_rises_evenly_and_a_wrong_step_follows_equation_22(num_steps):
    clean = [Row(i - 1, (i,), C if i == num_steps - 1 else NONE) for i in range(num_steps)]
    made = quality(*plant([[*clean, Row(k - 1, (99,), W)] for k in range(num_steps)]))
    for k in range(num_steps):
        wrong_value = max(0, (k - 1) / num_steps + 1 / (num_steps * (num_steps - k + 1)))
        expected = [*(np.arange(1, num_steps + 1) / num_steps), wrong_value]
        np.testing.assert_allclose(made.target[k], expected, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in labels.TARGETS if kind != "td_lambda"])
def test_a_reference_is_worth_what_a_tree_of_nothing_else_says(kind):
    """But for td_lambda, which asks a PRM."""
    steps = [Row(i - 1, (i,), C if i == 4 else NONE) for i in range(5)]
    told = labels.label(*plant([steps]), LabelsConfig(kind)).target[0]
    np.testing.assert_allclose(labels.of_reference(5, LabelsConfig(kind)), told, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in labels.TARGETS if kind != "td_lambda"])
@pytest.mark.parametrize("num_right", range(5))
def test_a_wrong_step_behind_one_is_worth_what_a_tree_of_both_says(kind, num_right):
    config = LabelsConfig(kind)
    steps = [Row(i - 1, (i,), C if i == 4 else NONE) for i in range(5)]
    made = labels.label(*plant([[*steps, Row(num_right - 1, (9,), W)]]), config)
    *right, wrong = labels.of_reference(5, config, num_right)
    np.testing.assert_allclose(right, labels.of_reference(5, config)[:num_right])
    np.testing.assert_allclose(wrong, made.target[0, 5], atol=1e-6)


def test_unfinished_and_unjudged_branches_are_pruned():
    rows = [
        Row(-1),
        Row(0, (1,), C),
        Row(0),
        Row(2),
        Row(-1),
        Row(4, (2,), Verdict.ERROR),
        Row(4, (3,), W),
    ]
    made = quality(*plant([rows]))
    assert np.flatnonzero(made.is_labelled[0]).tolist() == [0, 1, 4, 6]


def test_tree_without_a_correct_trace_gives_no_labels():
    rows = [Row(-1), Row(0, (1,), W), Row(0, (2,), Verdict.UNPARSABLE), Row(0, (3,), Verdict.ERROR)]
    made = quality(*plant([rows]))
    assert not made.is_labelled.any() and not made.is_correct.any() and not made.target.any()


@pytest.mark.parametrize("kind", [Kind.DUPLICATE, Kind.EMPTY])
def test_a_verdict_on_an_unusable_row_counts_for_nothing(kind):
    made = quality(*plant([[Row(-1), Row(0, (1,), W), Row(0, (1,), C, kind)]]))
    assert not made.is_labelled.any() and (made.verdict != C).all()


def test_unparsable_answer_is_a_wrong_one():
    trees = [
        [Row(-1), Row(0, (1,), C), Row(0, (2,), verdict)] for verdict in (W, Verdict.UNPARSABLE)
    ]
    made = quality(*plant(trees))
    np.testing.assert_array_equal(made.target[0], made.target[1])
    assert made.is_labelled.all()


def test_trees_set_aside_and_padding_are_neither_judged_nor_labelled():
    rows = [Row(-1), Row(0, (1,), C)]
    tree, verdict = plant([rows, rows, rows], problem_ids=[0, -1, 2])
    tree = replace(tree, is_ok=np.array([True, True, False]))
    judged = labels.judge(tree, words({1: C}))
    assert judged.tolist() == [[NONE, C], [NONE, NONE], [NONE, NONE]]
    assert quality(tree, verdict).is_labelled.tolist() == [
        [True, True],
        [False, False],
        [False, False],
    ]


def test_only_finished_distinct_rows_are_judged_on_their_whole_response():
    rows = [
        Row(-1, (1, 2)),
        Row(0, (3,), W),
        Row(0, (3,), W, Kind.DUPLICATE),
        Row(0, (), W, Kind.EMPTY),
        Row(0, (4, 5)),
    ]
    asked = []

    def verify(problem_id, tokens):
        asked.append((problem_id, tokens.tolist()))
        return W

    judged = labels.judge(plant([rows], problem_ids=[17])[0], verify)
    assert judged.tolist() == [[NONE, W, NONE, NONE, NONE]]
    assert asked == [(17, [1, 2, 3])]


def test_equal_texts_of_a_problem_are_judged_once():
    rows = [Row(-1, (1,), C), Row(-1, (1,), C), Row(-1, (2,), C)]
    asked = []

    def verify(problem_id, tokens):
        asked.append(problem_id)
        return C

    judged = labels.judge(plant([rows, rows])[0], verify)
    assert (judged == C).all()
    assert asked == [0, 0, 1, 1]


def test_true_and_false_are_verdicts():
    tree, _ = plant([[Row(-1, (1,), C), Row(-1, (2,), W)]])
    assert labels.judge(tree, lambda problem_id, tokens: bool(tokens[-1] == 1)).tolist() == [[C, W]]


def test_a_verifier_that_fails_on_every_answer_stops_the_run():
    tree, _ = plant([[Row(-1, (1,), C), Row(-1, (2,), W)]])
    with pytest.raises(ZeroDivisionError) as caught:
        labels.judge(tree, lambda problem_id, tokens: 1 // 0)
    assert "<lambda>" in [frame.name for frame in caught.traceback]
    with pytest.raises(TypeError, match="None is no verdict"):
        labels.judge(tree, lambda problem_id, tokens: None)


@pytest.mark.parametrize("answer", [1, None, "correct", Verdict.NONE])
def test_whatever_is_no_verdict_is_an_error(answer):
    judged = labels.judge(plant([[Row(-1, (1,), C)]])[0], lambda problem_id, tokens: answer)
    assert judged.tolist() == [[Verdict.ERROR]]


def test_verifier_that_raises_is_an_error_of_that_trace_alone(caplog):
    def verify(problem_id, tokens):
        if tokens[-1] == 1:
            raise RecursionError("hostile")
        return C

    with caplog.at_level(logging.WARNING):
        tree, _ = plant([[Row(-1, (1,), W), Row(-1, (2,), C)]])
        judged = labels.judge(tree, verify)
    assert judged.tolist() == [[Verdict.ERROR, C]]
    assert "hostile" in caplog.text
    assert quality(tree, judged).is_labelled.tolist() == [[False, True]]


def test_counts_add_up():
    forest = [
        [Row(-1), Row(0, (1,), C), Row(0, (2,), W), Row(0), Row(-1, (3,), Verdict.ERROR)],
        [Row(-1, (1,), Verdict.UNPARSABLE), Row(-1)],
        [Row(-1, (1,), C)],
        [Row(-1, (1,), C)],
    ]
    tree, _ = plant(forest, problem_ids=[0, 1, 2, -1])
    tree = replace(tree, is_ok=np.array([True, True, False, True]))
    known = {
        (b, row.tokens[-1]): row.verdict
        for b, rows in enumerate(forest)
        for row in rows
        if row.verdict
    }
    verdict = labels.judge(tree, lambda problem_id, tokens: known[problem_id, tokens[-1]])
    assert labels.counts(tree, quality(tree, verdict)) == {
        "num_trees": 3,
        "num_set_aside": 1,
        "num_trees_solved": 1,
        "num_trees_without_correct": 1,
        "num_correct": 1,
        "num_wrong": 1,
        "num_unparsable": 1,
        "num_errors": 1,
        "num_labelled": 3,
        "num_unlabelled": 4,
    }


def test_mc_return_is_the_share_of_correct_leaves_below():
    """Duplicates, unfinished steps and errors of the verifier are no leaves."""
    rng = np.random.default_rng(3)
    forest = [grow_at_random(rng, 40) for _ in range(40)]
    made = labels.label(*plant(forest), LabelsConfig("mc_return"))
    num_labelled = num_zero = 0
    for b, rows in enumerate(forest):
        children = children_of(rows)

        def leaves(i: int, rows=rows, children=children) -> list[bool]:
            own = rows[i].verdict in (C, W, Verdict.UNPARSABLE)
            return [rows[i].verdict == C] * own + [x for c in children[i] for x in leaves(c)]

        reachable = [i for i in range(len(rows)) if i in children[rows[i].parent]]
        for i in reachable:
            found = leaves(i)
            assert made.is_labelled[b, i] == bool(found)
            assert made.target[b, i] == (np.float32(np.mean(found)) if found else 0)
            assert made.is_correct[b, i] == any(found)
            num_labelled += bool(found)
        num_zero += not any(leaf for i in reachable for leaf in leaves(i))
    assert made.is_labelled.sum() == num_labelled > 500
    assert num_zero > 0, "unsolved trees have targets too, all of them zero"


def estimates(rows: list[Row], log_prob: np.ndarray, decay: float) -> dict[int, dict[str, float]]:
    """What each kind says of every row with a judged leaf at or below it, in recursion."""
    children = children_of(rows)

    def leaves(i: int) -> list[bool]:
        own = [rows[i].verdict == C] * (rows[i].verdict in (C, W, Verdict.UNPARSABLE))
        return own + [x for c in children[i] for x in leaves(c)]

    def mean(pairs: list[tuple[float, float]]) -> float:
        return sum(w * x for w, x in pairs) / sum(w for w, _ in pairs)

    def chance(i: int) -> float:
        if rows[i].verdict:
            return float(rows[i].verdict == C)
        return mean([(np.exp(log_prob[c]), chance(c)) for c in children[i] if leaves(c)])

    def look_ahead(i: int) -> float:
        if rows[i].verdict:
            return float(rows[i].verdict == C)

        def seen(c: int) -> float:
            if rows[c].verdict in (C, W, Verdict.UNPARSABLE):
                return float(rows[c].verdict == C)
            # what was never followed anywhere is known by its score alone
            given = look_ahead(c) if children[c] else rows[c].score
            return (1 - decay) * rows[c].score + decay * given

        return mean([(np.exp(log_prob[c]), seen(c)) for c in children[i]])

    usable = [i for i in range(len(rows)) if i in children[rows[i].parent] and leaves(i)]
    return {
        i: {
            "hard": float(any(leaves(i))),
            "soft": chance(i),
            "outcome": float(np.mean(leaves(i))),
            "td_lambda": look_ahead(i),
        }
        for i in usable
    }


@pytest.mark.parametrize("kind", ["hard", "soft", "outcome", "td_lambda"])
def test_a_kind_equals_its_recursion_and_says_something_of_unsolved_trees(kind):
    rng = np.random.default_rng(3)
    forest = [grow_at_random(rng, 40) for _ in range(40)]
    tree, verdict = plant(forest)
    tree = replace(tree, log_prob=-5 * rng.random(tree.parent.shape, dtype=np.float32))
    made = labels.label(tree, verdict, LabelsConfig(kind, TdLambdaConfig(0.7)))
    num_zero = 0
    for b, rows in enumerate(forest):
        found = estimates(rows, tree.log_prob[b].astype(float), 0.7)
        assert np.flatnonzero(made.is_labelled[b]).tolist() == sorted(found)
        for r, said in found.items():
            assert made.target[b, r] == pytest.approx(said[kind], abs=1e-6)
        num_zero += bool(found) and not made.is_correct[b].any()
    assert made.is_labelled.sum() > 500 and num_zero > 0


@pytest.mark.parametrize("kind", ["soft", "td_lambda"])
def test_steps_too_long_for_a_bare_probability_are_weighed_all_the_same(kind):
    """Against the same tree, shorter; what leads nowhere may be far likelier than what ended."""
    rows = [Row(-1), Row(0, (1,), C), Row(0, (2,), W), Row(0, (3,))]
    tree, verdict = plant([rows])
    log_prob = np.array([[0, -1, -2, -2.5]], np.float32)
    near, far = (
        labels.label(
            replace(tree, log_prob=log_prob - gap), verdict, LabelsConfig(kind, TdLambdaConfig(1.0))
        )
        for gap in (0, 2000)
    )
    assert near.target[0, 0] > 0.5
    np.testing.assert_allclose(far.target, near.target, atol=1e-6)
    log_prob[0, 1:3] -= 2000
    apart = labels.label(replace(tree, log_prob=log_prob), verdict, LabelsConfig("soft"))
    assert apart.target[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_omega_labels_each_path_up_to_its_first_error():
    """Against a walk down every path: as `hard`, and nothing behind the first 0."""
    rng, num_behind = np.random.default_rng(5), 0
    forest = [grow_at_random(rng, 40) for _ in range(40)]
    made, hard = (labels.label(*plant(forest), LabelsConfig(kind)) for kind in ("omega", "hard"))
    for b, rows in enumerate(forest):
        told, children = {}, children_of(rows)

        def walk(i: int, b=b, told=told, children=children) -> None:
            for c in children[i]:
                if hard.is_labelled[b, c]:
                    told[c] = hard.target[b, c]
                    if told[c]:
                        walk(c)

        walk(-1)
        assert np.flatnonzero(made.is_labelled[b]).tolist() == sorted(told)
        assert [made.target[b, r] for r in told] == list(told.values())
        num_behind += int(hard.is_labelled[b].sum()) - len(told)
    assert made.is_labelled.sum() > 500 and num_behind > 50


def test_an_outcome_counts_for_every_trace_through_a_step():
    rows = [Row(-1), Row(0, (1,), C), Row(0, (2,), W), Row(0, (3,), W), Row(0), Row(-1, (4,), W)]
    made = labels.label(*plant([rows]), LabelsConfig("outcome"))
    assert made.weight[0].tolist() == [3, 1, 1, 1, 0, 1]
    assert made.target[0, 0] == pytest.approx(1 / 3)


def test_what_weighs_nothing_has_no_label(monkeypatch):
    tree, verdict = plant([[Row(-1), Row(0, (1,), C), Row(0, (2,), W)]])
    told = Target(np.ones((1, 3)), np.ones((1, 3), bool), np.array([[2, 0, 1]]))
    monkeypatch.setitem(labels.TARGETS, "outcome", lambda *_: told)
    made = labels.label(tree, verdict, LabelsConfig("outcome"))
    assert made.is_labelled.tolist() == [[True, False, True]]
    assert made.weight.tolist() == [[2, 0, 1]]


def test_far_lambda_hears_answers_and_near_lambda_scores():
    rows = [
        Row(-1, score=0.1),
        Row(0, score=0.4),
        Row(1, (1,), C),
        Row(1, (2,), W),
        Row(0, score=0.8),
    ]
    for decay, first in ((1.0, (0.5 + 0.8) / 2), (0.0, (0.4 + 0.8) / 2)):
        made = labels.label(*plant([rows]), LabelsConfig("td_lambda", TdLambdaConfig(decay)))
        np.testing.assert_allclose(made.target[0], [first, 0.5, 1, 0, 0], atol=1e-6)
        assert made.is_labelled[0].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_lambda_is_a_share(decay):
    with pytest.raises(UserError, match="--config.labels.td_lambda.decay"):
        LabelsConfig("td_lambda", TdLambdaConfig(decay))


def test_an_unknown_kind_is_told_what_there_is():
    with pytest.raises(UserError, match=" or ".join(labels.TARGETS)):
        LabelsConfig("quantity")


def test_every_kind_of_label_keeps_to_usable_rows_and_the_unit_interval():
    rng = np.random.default_rng(4)
    tree, verdict = plant([grow_at_random(rng, 60) for _ in range(30)])
    for kind in labels.TARGETS:
        made = labels.label(tree, verdict, LabelsConfig(kind))
        assert made.is_labelled.any() and not made.target[~made.is_labelled].any(), kind
        assert ((made.target >= 0) & (made.target <= 1)).all(), kind
        assert np.isin(tree.kind[made.is_labelled], (Kind.CANDIDATE, Kind.ROLLOUT)).all(), kind
