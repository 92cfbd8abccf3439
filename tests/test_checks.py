"""Rules that judge a step without the gold answer: what they call false, and what a search, the
policy's rows and the report do with it.
"""

from __future__ import annotations

import ast
import random
from dataclasses import replace
from fractions import Fraction
from functools import cache, partial
from itertools import permutations

import jax
import numpy as np
import oracle_mcts_star as oracle
import pytest
from forest import Row, grow_at_random, plant
from nested import change
from test_datasets import random_shard
from test_evaluation import make_tree, verdicts
from test_sums import OPERATIONS, draw_sum, dress
from toy_worlds import HEALTHY, draw_step, make_prompts, score_text, toy_reader

from jaxtrain import datasets, labels
from jaxtrain.boundaries import TraceConfig
from jaxtrain.config import Config, check
from jaxtrain.errors import UserError
from jaxtrain.evaluation.prm import check_report, count_false
from jaxtrain.labels import LabelsConfig
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.search.mcts_star import MctsStarConfig
from jaxtrain.sharding import ShardingConfig
from jaxtrain.structs import Kind, Labels, Tree, Verdict
from jaxtrain.tasks import Problem, Task, TasksConfig, make_task
from jaxtrain.tasks.base import make_check
from jaxtrain.tasks.countdown import legal_moves, write_move
from jaxtrain.tokenizers import byte_tokenizer
from jaxtrain.verifiers.sums import check_sums

# What they call false.

PROBLEM = Problem(0, "4 6 7=31\n", "31")
COUNTDOWN = make_task(
    change(TasksConfig(), num_train=20, num_dev=0, num_test=0, num_demonstrations=0, max_number=6)
)


@pytest.mark.parametrize("num_numbers", [3, 4])
def test_a_legal_move_holds_and_any_other_line_is_false(num_numbers):
    """Random games; a line with a digit changed is legal only where it is another legal move."""
    rng, num_false = random.Random(0), 0
    for _ in range(300):
        numbers = tuple(sorted(rng.randint(1, 30) for _ in range(num_numbers)))
        problem, lines = Problem(0, f"{' '.join(map(str, numbers))}=7\n", "7"), []
        while len(numbers) > 1:
            move = rng.choice(legal_moves(numbers))
            line = write_move(move)
            assert COUNTDOWN.check_step(problem, lines, line) is True
            at = rng.choice([i for i, char in enumerate(line) if char.isdecimal()])
            wrong = line[:at] + str((int(line[at]) + rng.randint(1, 9)) % 10) + line[at + 1 :]
            legal = {x for m in legal_moves(numbers) for x in spellings(m)}
            assert COUNTDOWN.check_step(problem, lines, wrong) is (wrong in legal)
            num_false += wrong not in legal
            numbers, lines = move.remaining, [*lines, line]
    assert num_false > 500


def spellings(move):
    """A move with its remaining numbers in both orders that two or three may have, and more."""
    head = write_move(move).partition("|")[0]
    return {f"{head}|{' '.join(map(str, order))}" for order in permutations(move.remaining)}


@pytest.mark.parametrize(
    ("before", "step", "said"),
    [
        ([], "4*6=24|7 24", True),
        ([], "4*6=24|24 7", True),
        ([], "4*6=25|7 25", False),
        # nothing is no result, nor what an illegal operation makes
        ([], "4-6=0|0 7", False),
        ([], "7/4=0|0 6", False),
        ([], "4*6=24|7", False),
        ([], "so 4*6", False),
        (["4*6=24|7 24"], "7+24=31|31", True),
        # not the target, which no step is judged by
        (["4*6=24|7 24"], "24-7=17|17", True),
        (["4*6=24|7 24"], "4+7=11|11", False),
        # what a false line leaves is what the next one has
        (["4*6=25|7 25"], "7+25=32|32", True),
        (["4*6=24|0 24"], "24/0=24|24", None),
        (["four times six"], "7+24=31|31", None),
        (["4*6=24|7 24", "7+24=31|31"], "31*1=31|31", False),
    ],
)
def test_moves_by_hand(before, step, said):
    assert COUNTDOWN.check_step(PROBLEM, before, step) is said


def test_a_right_result_of_any_sum_holds_and_one_with_another_digit_is_false():
    rng, num_right, num_false = np.random.default_rng(0), 0, 0
    while num_right < 2000:
        drawn = draw_sum(rng)
        try:
            value = exact(ast.parse(drawn, mode="eval").body)
        except ZeroDivisionError:
            continue
        # Two divisions in a row may be one by a fraction.
        if value.denominator > 10**6 or "/" in drawn:
            continue
        text, places = dress(rng, drawn), len(str(float(value)).partition(".")[2])
        result = f"{float(value):.{places}f}" if value.denominator > 1 else str(value.numerator)
        if Fraction(result) != value or "e" in result or len(result) > 15:
            continue
        assert check_sums(f"{text} {result}") is True, text
        num_right += 1
        at = rng.choice([i for i, char in enumerate(result) if char.isdecimal()])
        digit = str((int(result[at]) + int(rng.integers(1, 10))) % 10)
        wrong = result[:at] + digit + result[at + 1 :]
        # A number that begins with a zero may be a time of day.
        if wrong.lstrip("-").startswith("0") and wrong.lstrip("-")[1:2].isdecimal():
            continue
        assert check_sums(f"{text} {wrong}") is False, (text, wrong)
        num_false += 1
    assert num_false > 0.9 * num_right


def exact(node):
    """Evaluate what Python reads in fractions, whatever their size."""
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp):
        return -exact(node.operand)
    assert isinstance(node, ast.BinOp)
    return OPERATIONS[type(node.op)](exact(node.left), exact(node.right))


def test_a_rounded_result_is_never_false():
    """Quotients, at every number of digits: cut, or rounded up or down."""
    rng = random.Random(0)
    for _ in range(2000):
        a, b, digits = rng.randint(1, 999), rng.randint(1, 99), rng.randint(0, 4)
        unit = 10**digits
        for mantissa in (a * unit // b, -(-a * unit // b)):
            text = f"{mantissa // unit}" + f".{mantissa % unit:0{digits}d}" * (digits > 0)
            assert check_sums(f"{a} / {b} = {text}") is not False
        nearest = round(Fraction(a * unit, b))
        text = f"{nearest // unit}" + f".{nearest % unit:0{digits}d}" * (digits > 0)
        assert check_sums(f"{a}/{b}={text}") is True
        off = nearest + rng.choice([-3, 3])
        if off >= 0:
            text = f"{off // unit}" + f".{off % unit:0{digits}d}" * (digits > 0)
            assert check_sums(f"{a}/{b}={text}") is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("48/2 = 23", False),
        ("<<48/2=23>>23", False),
        ("So she has 48/2 = <<48/2=24>>23 left.", False),
        ("48/2=24>>1", True),
        (1014 * "a" + ". 48/2 = 24 left", None),
        ("48/2 = $<<48/2=24>>$24.00", True),
        ("4/1000 = $<<4/1000=0.004>>0.4 cents", None),
        ("So she has 48/2 = <<48/2=24>>24 left.", True),
        ("2 + 2 = 4, so 3 + 3 = 7 apples", False),
        ("She has 10 - 4 = 7 apples left", False),
        ("1 + 1 = 2 * 3 = 6", True),
        ("1,000 x (2 + 0.5) = $2,500.00.", True),
        ("5*3 = 16 boxes", False),
        ("20% * 50 = 11", False),
        ("2 - 5 = -3", True),
        # where nothing is sure
        ("no sum", None),
        ("5 = 6", None),
        ("5/0 = 3", None),
        ("3 boys + 4 = 8", None),
        ("2 + 3 = 6 + 1", None),
        ("34/100 = 34%", None),
        ("100 + 10% = 110", None),
        ("25 * 4 = $1", None),
        ("30 + 30 = 1 hour", None),
        ("9 + 5 = 2 pm", None),
        ("35 questions x 2/5 = 14", None),
        ("3 / 1/4 = 12", None),
        ("14, 400 / 80 = 180", None),
        ("600 x 30 = 18 000", None),
        ("0900-0130 = 0730", None),
        ("in base 2, 1 + 1 = 10", None),
        ("1/2 + 1/4 = 3/4", None),
        ("2 + 2 = 4 and 3 + 3 = 7 apples", None),  # as in 1 and 1/2
        ("0,050 + 1 = 51", None),
        ("1 + 2 = 0,500", None),
        ("1000 + 500 = 1.500", None),
        ("60 * 24 = 1 day", None),
        ("45 + 30 = 1 hour 15 minutes", None),
        ("23 + 2 = 1 in the morning", None),
        ("8 + 7 = 5, carry 1", None),
        ("negative 3 + 4 = 1", None),
        ("Step 1 - 5 x 3 = 15", None),
    ],
)
def test_sums_by_hand(text, said):
    assert check_sums(text) is said


def test_a_check_of_sums_is_total():
    """Whatever is written: it is judged or not, and never raises."""
    rng, pieces = random.Random(1), ["0,500", "1,000", "5", "0", ".5", "-", *"+*/()$%,x ", " and "]
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randint(3, 7))) + "=501"
        assert check_sums(text) in (True, False, None)


def test_steps_are_read_as_lines():
    """A step that was cut is not judged, and one behind a false one is counted with it."""

    class Even(Task):
        def check_step(self, problem, before, step):
            return None if step == "?" else len(step) % 2 == 0 and "bad" not in before

    task = Even("even", byte_tokenizer(), (PROBLEM,), (), (), ())
    told = make_check(task, TraceConfig())
    assert told is not None

    def count(*steps, is_ended=False):
        ids = [task.tokenizer.encode(step) for step in steps]
        ids[-1] += [task.tokenizer.end_id] * is_ended
        return told(0, tuple(np.array(x, np.int32).tobytes() for x in ids))

    assert count("ab\n", "abc\n") == 1
    assert count("ab\n", "abc") == 0
    assert count("ab\n", "abc", is_ended=True) == 1
    assert count("bad\n", "ab\n", "?\n") == 2
    # Without a rule, and where a number may go on in the next step, there is none.
    assert make_check(Task("none", byte_tokenizer(), (), (), (), ()), TraceConfig()) is None
    for trace in (TraceConfig(step_tokens=4), TraceConfig(boundary=".")):
        assert make_check(task, trace) is None


# What a search does with it.

NUM_TREES = 48
TRACE = TraceConfig(max_steps=4, max_step_tokens=3)
WORLD = oracle.HashWorld()
WORD = np.int32(oracle.FIRST_WORD).tobytes()


def has_word(problem_id: int, steps: tuple[bytes, ...]) -> int:
    """Call all steps false that hold a word."""
    return sum(WORD in [step[i : i + 4] for i in range(0, len(step), 4)] for step in steps)


@cache
def grown(method: str, checks: str, num_trees: int | None = None, **sections) -> Tree:
    config = SearchConfig(
        method,
        num_simulations=8,
        num_samples=6,
        checks=checks,
        check_weight=4.0,
        num_trees=num_trees,
        **sections,
    )
    draw_fn, score_fn = partial(draw_step, world=WORLD), partial(score_text, world=WORLD)
    grow = jax.jit(make_grow(config, 4, toy_reader(draw_fn, score_fn, TRACE), has_word))
    prompts = make_prompts(NUM_TREES, 0)
    keys = np.stack([prompts.problem_id, prompts.problem_id + 1], axis=1).astype(np.uint32)
    return jax.tree.map(np.asarray, grow(HEALTHY, HEALTHY, prompts, keys, np.float32(1)))


def false_steps(tree: Tree) -> np.ndarray:
    """Count by hand the false steps on the path to every row."""
    found = np.zeros(tree.kind.shape, int)
    for b, r in np.argwhere(tree.kind != Kind.EMPTY):
        step = tree.tokens[b, r, : tree.length[b, r]]
        above = found[b, tree.parent[b, r]] if tree.parent[b, r] >= 0 else 0
        found[b, r] = above + (oracle.FIRST_WORD in step)
    return found


@pytest.mark.parametrize("method", ["mcts_star", "puct", "beam", "sample"])
def test_a_filtered_step_is_never_searched_and_never_answered(method):
    tree = grown(method, "filter")
    is_false, is_row = false_steps(tree) > 0, tree.kind != Kind.EMPTY
    np.testing.assert_array_equal(tree.kind == Kind.FALSE, is_false)
    assert 200 < is_false.sum() < is_row.sum() - 200
    assert not tree.is_finished[is_false].any() and not tree.score[is_false].any()
    # Whole traces are drawn in one go; else nothing stands behind a false step.
    if method != "sample":
        above = is_false[np.arange(NUM_TREES)[:, None], tree.parent] & (tree.parent >= 0)
        behind = above & is_row & (tree.kind != Kind.FALSE)
        assert not behind.any()
    has_answer = (tree.is_finished & ~is_false).any(axis=1)
    assert has_answer.sum() > 20 and (tree.chosen[~has_answer] == -1).all()
    assert not is_false[has_answer, tree.chosen[has_answer]].any()


@pytest.mark.parametrize("method", ["mcts_star", "best_first", "sample"])
def test_a_false_step_costs_its_path_and_is_chosen_where_there_is_nothing_else(method):
    tree, num_false = grown(method, "penalty"), false_steps(grown(method, "penalty"))
    is_row = tree.kind != Kind.EMPTY
    assert not (tree.kind == Kind.FALSE).any()
    score = tree.score + 4 * num_false
    assert (score[is_row] >= 0).all() and (score[is_row] <= 1).all() and num_false.max() > 1
    is_answer = tree.is_finished & (tree.kind != Kind.DUPLICATE)
    least = np.min(num_false, where=is_answer, initial=99, axis=1)
    assert (least == 1).any() and (least == 0).sum() > 10
    at = np.flatnonzero(is_answer.any(axis=1))
    np.testing.assert_array_equal(num_false[at, tree.chosen[at]], least[at])


def test_a_beam_keeps_a_false_step_only_where_there_is_no_other():
    tree, num_false = grown("beam", "penalty"), false_steps(grown("beam", "penalty"))
    for b in range(NUM_TREES):
        first = np.flatnonzero((tree.parent[b] < 0) & (tree.kind[b] == Kind.CANDIDATE))
        opened = set(tree.parent[b].tolist())
        sound = [r for r in first if not num_false[b, r] and not tree.is_ended[b, r]]
        is_false_opened = any(num_false[b, r] and r in opened for r in first)
        assert not is_false_opened or all(r in opened for r in sound)


@pytest.mark.parametrize("checks", ["penalty", "filter"])
def test_what_a_check_says_does_not_hang_on_the_batch(checks):
    alone, beside = grown("mcts_star", checks, num_trees=3), grown("mcts_star", checks)
    for name, x in vars(alone).items():
        if name != "lane_tokens":
            np.testing.assert_array_equal(x, getattr(beside, name), name)


@pytest.mark.parametrize("method", ["mcts_star", "sample"])
def test_a_search_without_checks_is_the_same_program(method):
    """Whether or not there is a rule that it could ask."""
    config = SearchConfig(method, num_simulations=4)
    draw_fn, score_fn = partial(draw_step, world=WORLD), partial(score_text, world=WORLD)
    reader, prompts = toy_reader(draw_fn, score_fn, TRACE), make_prompts(2, 0)
    told = HEALTHY, HEALTHY, prompts, np.zeros((2, 2), np.uint32), np.float32(1)
    texts = [
        jax.jit(make_grow(config, 4, reader, rule)).lower(*told).as_text()
        for rule in (None, has_word)
    ]
    assert texts[0] == texts[1] and "callback" not in texts[0]


def test_a_rollout_never_goes_on_from_a_false_step():
    rollouts = MctsStarConfig(num_rollout_steps=3, num_rollout_candidates=2)
    tree = grown("mcts_star", "filter", mcts_star=rollouts)
    rows = np.arange(NUM_TREES)[:, None]
    is_behind = (tree.parent >= 0) & (tree.kind[rows, tree.parent] == Kind.FALSE)
    assert (tree.kind == Kind.ROLLOUT).sum() > 50 and not is_behind[tree.kind != Kind.EMPTY].any()


# What it is worth, and what the policy does not learn.


@pytest.mark.parametrize("kind", sorted(labels.TARGETS))
def test_a_filtered_step_is_worth_nothing_and_changes_nothing_else(kind):
    rng = np.random.default_rng(0)
    forest = [grow_at_random(rng, 30) for _ in range(20)]
    false = Row(-1, (9,), kind=Kind.FALSE)
    tree, verdict = plant([[*rows, false] for rows in forest])
    told = labels.label(tree, verdict, LabelsConfig(kind))
    assert told.is_labelled[:, 30].all() and not told.target[:, 30].any()
    assert not told.is_correct[:, 30].any()
    assert told.weight is None or (told.weight[:, 30] > 0).all()
    plain = labels.label(*plant(forest), LabelsConfig(kind))
    np.testing.assert_array_equal(told.target[:, :30], plain.target)
    np.testing.assert_array_equal(told.is_labelled[:, :30], plain.is_labelled)


def is_bad(problem_id: int, steps: tuple[bytes, ...]) -> int:
    """Call every step false that begins with an odd token."""
    return sum(np.frombuffer(step, np.int32)[0] % 2 for step in steps)


@pytest.mark.parametrize("rows", sorted(datasets.ROWS))
def test_no_row_of_the_policy_holds_a_false_step(rows):
    rng = np.random.default_rng(0)
    rounds = {1: [random_shard(rng, vocabulary=6)], 2: [random_shard(rng, vocabulary=6)]}
    config = datasets.DatasetsConfig(max_traces_per_problem=99)
    rows_fn = datasets.without_false_steps(datasets.ROWS[rows], is_bad)
    learnt, _, counts = datasets.collect(rounds, config, 160, 0, rows_fn)
    plain, _, _ = datasets.collect(rounds, config, 160, 0, datasets.ROWS[rows])
    assert datasets.num_rows(learnt) < datasets.num_rows(plain)
    # By hand: the correct leaves of the newest round with a false step on their path.
    num_dropped, good = 0, set()
    for i, (shard,) in rounds.items():
        tree, told = shard.tree, shard.labels
        for b, r in np.argwhere(told.verdict == Verdict.CORRECT):
            path, row = [], r
            while row >= 0:
                path.append(row)
                row = tree.parent[b, row]
            is_false = any(tree.tokens[b, row, 0] % 2 for row in path)
            num_dropped += is_false and i == 2
            text = [t for row in path[::-1] for t in tree.tokens[b, row, : tree.length[b, row]]]
            good |= set() if is_false else {tuple(text)}
    assert counts["num_traces_false"] == num_dropped > 10
    if rows == "traces":
        rows_of = learnt.rows
        texts = {
            tuple(rows_of.tokens[k][rows_of.weight[k] > 0].tolist())
            for k in range(datasets.num_rows(learnt))
        }
        assert texts == good


# What the report tells.


def test_the_report_by_hand():
    """Two problems: in one the check ranks better than the PRM, in the other it says nothing."""
    rows = [
        (-1, [1], 0.5, False),
        (0, [2], 0.9, True),  # wrong, behind a false step
        (-1, [4], 0.6, True),  # right
        (-1, [2], 0.3, True),  # wrong
    ]
    other = [(-1, [2], 0.2, True), (-1, [4], 0.8, True), (-1, [6], 0.1, True)]
    verdict = verdicts([[0, 2, 1, 2], [2, 1, 2]])
    tree = make_tree([rows, other])
    told = Labels(verdict, verdict == 1, np.zeros(verdict.shape), verdict > 0)
    num_false = count_false(tree, is_bad)
    assert num_false[:, :4].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    found = check_report(tree, told, num_false, 1.0)
    found = {name.removeprefix("evaluation/prm/check/"): x for name, x in found.items()}
    assert found["share_false_steps"] == 1 / 7
    assert found["share_false_leaves"] == 1 / 6
    assert found["auroc_within_prm"] == (0.5 + 1) / 2
    assert found["auroc_within_check"] == ((1 + 0.5) / 2 + 0.5) / 2
    assert found["auroc_within_both"] == 1
    # A weight that is not enough.
    weak = check_report(tree, told, num_false, 0.2)
    assert weak["evaluation/prm/check/auroc_within_both"] == 0.75


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        ({"trace": TraceConfig(step_tokens=3)}, "search.checks=filter: needs a task with a check"),
        (
            {"sharding": ShardingConfig(data=4, tp=2)},
            "search.checks=filter: .* --config.sharding.tp=1",
        ),
    ],
)
def test_checks_that_cannot_be_are_refused_in_one_line(change_of, message):
    config = replace(Config(search=SearchConfig(checks="filter")), **change_of)
    with pytest.raises(UserError, match=message) as caught:
        check(config, COUNTDOWN)
    assert "\n" not in str(caught.value)
