import hashlib
import json
import random
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import permutations, product

import pytest
from nested import change
from solver import solutions

from jaxtrain.configs import countdown4
from jaxtrain.errors import UserError
from jaxtrain.structs import Verdict
from jaxtrain.tasks import Problem, TasksConfig, countdown, digest, make_task
from jaxtrain.tasks.countdown import (
    ALPHABET,
    CountdownConfig,
    legal_moves,
    read_move,
    read_prompt,
    result_of,
    weak_trace,
)

SMALL = change(
    TasksConfig(),
    max_number=6,
    max_target=40,
    num_train=100,
    num_dev=20,
    num_test=30,
    num_demonstrations=120,
    seed=3,
)
FOUR = change(SMALL, num_numbers=4, max_number=99, min_target=10, max_target=100)
EACH = pytest.mark.parametrize("config", [SMALL, FOUR], ids=["enumerated", "drawn"])

PROBLEM = Problem(id=0, prompt="4 6 7=31\n", gold="31")
RIGHT = "4*6=24|7 24\n7+24=31|31"

CORRECT, WRONG, UNPARSABLE = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE
CHEATS = [
    ("nothing", "", UNPARSABLE),
    ("the target alone", "31", UNPARSABLE),
    ("the target as the whole remainder", "31=31|31", UNPARSABLE),
    ("only the last line", "7+24=31|31", UNPARSABLE),
    ("only the first line", "4*6=24|7 24", UNPARSABLE),
    ("no remainders", "4*6=24\n7+24=31", UNPARSABLE),
    ("a third line", RIGHT + "\n31*1=31|31", UNPARSABLE),
    ("the solution twice", RIGHT + "\n" + RIGHT, UNPARSABLE),
    ("a wrong try first", "4+6=10|7 10\n7+10=17|17\n" + RIGHT, UNPARSABLE),
    ("the prompt before the solution", PROBLEM.prompt + RIGHT, UNPARSABLE),
    ("false first line", "4+6=24|7 24\n7+24=31|31", WRONG),
    ("false last line", "4*6=24|7 24\n7-24=31|31", WRONG),
    ("result and remainder differ at the end", "4*6=24|7 24\n7+24=31|32", WRONG),
    ("target written instead of the result", "4+6=10|7 10\n7+10=17|31", WRONG),
    ("target reached by a false sum", "4+6=10|7 10\n7+10=31|31", WRONG),
    ("true but another target", "4+6=10|7 10\n7+10=17|17", WRONG),
    ("operands from nowhere", "3*8=24|7 24\n7+24=31|31", WRONG),
    ("a number used twice", "6+6=12|7 12\n7+12=19|19", WRONG),
    ("a number used twice to reach the target", "6*4=24|7 24\n24+7=31|7", WRONG),
    ("an operand kept in the remainder", "4*6=24|6 24\n6+24=30|30", WRONG),
    ("the untouched number changed", "4+6=10|21 10\n21+10=31|31", WRONG),
    ("a number smuggled into the remainder", "4+6=10|7 10 21\n10+21=31|31", UNPARSABLE),
    ("a number dropped from the remainder", "4*6=24|24\n7+24=31|31", UNPARSABLE),
    ("the result not in the remainder", "4*6=24|7 25\n7+25=32|32", WRONG),
    ("a spent number used on the last line", "4*6=24|7 24\n6+25=31|31", WRONG),
    ("inexact division", "7/6=1|4 1\n4-1=3|3", WRONG),
    ("a decimal", "7/4=1.75|6 1.75\n6+1.75=7.75|7.75", UNPARSABLE),
    ("a negative result", "4-6=-2|7 -2\n7+-2=5|5", UNPARSABLE),
    ("a subtraction turned round", "4-6=2|7 2\n7+2=9|9", WRONG),
    ("zero", "4*0=0|7 0\n31+0=31|31", WRONG),
    ("division by zero", "4/0=24|7 24\n7+24=31|31", WRONG),
    ("leading zero", "04*6=24|7 24\n7+24=31|31", UNPARSABLE),
    ("a sign", "+4*6=24|7 24\n7+24=31|31", UNPARSABLE),
    ("a space in a line", "4*6 =24|7 24\n7+24=31|31", UNPARSABLE),
    ("two spaces in the remainder", "4*6=24|7  24\n7+24=31|31", UNPARSABLE),
    ("a newline at the end", RIGHT + "\n", UNPARSABLE),
    ("a newline at the start", "\n" + RIGHT, UNPARSABLE),
    ("a carriage return", RIGHT.replace("\n", "\r\n"), UNPARSABLE),
    ("text after the target", RIGHT + " ok", UNPARSABLE),
    ("a sampled pad id", RIGHT + "\ufffd", UNPARSABLE),
    ("a NUL", RIGHT + "\0", UNPARSABLE),
    ("power", "4**6=4096|7 4096\n7+24=31|31", UNPARSABLE),
    ("brackets", "(4*6)=24|7 24\n7+24=31|31", UNPARSABLE),
    ("two operations on a line", "4*6+7=31|31", UNPARSABLE),
    ("full-width digits", RIGHT.replace("4", "\uff14"), UNPARSABLE),
    ("Arabic-Indic digits", RIGHT.replace("7", "\u0667"), UNPARSABLE),
    ("another multiplication sign", RIGHT.replace("*", "\u00d7"), UNPARSABLE),
    ("hexadecimal", "4*6=0x18|7 24\n7+24=31|31", UNPARSABLE),
    ("Python", "__import__('os')|31", UNPARSABLE),
    ("thirty thousand digits", "4*6=" + "2" * 30_000 + "|7 24\n7+24=31|31", UNPARSABLE),
    ("a million operators", "+" * 1_000_000, UNPARSABLE),
    ("a hundred thousand lines", RIGHT + "\n7+24=31|31" * 100_000, UNPARSABLE),
]


@pytest.fixture(scope="module")
def task():
    return make_task(SMALL)


@cache
def reachable(numbers):
    """Oracle: the results of all expressions over the numbers, positive integers throughout."""
    if len(numbers) == 1:
        return set(numbers)
    results = set()
    for order in permutations(numbers):
        for cut in range(1, len(order)):
            for a, b in product(reachable(order[:cut]), reachable(order[cut:])):
                results |= {a + b, a - b, a * b, a // b if a % b == 0 else 0}
    return {result for result in results if result > 0}


def test_an_operation_is_legal_where_its_exact_result_is_a_whole_number_above_0():
    for left, right, operator in product(range(1, 30), range(1, 30), "+-*/"):
        exact = eval(f"Fraction({left}){operator}{right}", {"Fraction": Fraction})
        is_met = exact > 0 and exact.denominator == 1
        assert result_of(left, operator, right) == (exact if is_met else 0)


@pytest.mark.parametrize(
    ("text", "verdict"), [case[1:] for case in CHEATS], ids=[case[0] for case in CHEATS]
)
def test_cheating_does_not_pay(task, text, verdict):
    assert task.verify(PROBLEM, text) == verdict


def test_the_cheats_are_many_and_distinct():
    assert len({text for _, text, _ in CHEATS}) == len(CHEATS) >= 20


@pytest.mark.parametrize("text", [RIGHT, "6*4=24|24 7\n24+7=31|31"])
def test_a_solution_is_correct_with_its_numbers_in_any_order(task, text):
    assert task.verify(PROBLEM, text) == CORRECT


def test_equal_numbers_are_distinct_pieces(task):
    problem = Problem(id=0, prompt="4 4 4=20\n", gold="20")
    assert task.verify(problem, "4*4=16|4 16\n4+16=20|20") == CORRECT
    assert task.verify(problem, "4*4=16|16 16\n4+16=20|20") == WRONG


FOUR_PROBLEM = Problem(id=0, prompt="3 4 6 7=31\n", gold="31")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("4*6=24|3 7 24\n7+24=31|3 31\n31/1=31|31", WRONG),
        ("3*4=12|6 7 12\n12*6=72|7 72\n72-7=65|65", WRONG),
        ("7-6=1|3 4 1\n3*4=12|1 12\n12+1=13|13", WRONG),
        ("4*6=24|7 24\n7+24=31|31", UNPARSABLE),
        ("4*6=24|3 7 24\n7+24=31|31", UNPARSABLE),
        ("4*6=24|3 7 24\n7+24=31|3 31", UNPARSABLE),
        ("3+4=7|6 7 7\n7*6=42|7 42\n42-7=35|35\n35-4=31|31", UNPARSABLE),
    ],
)
def test_cheating_does_not_pay_with_four_numbers(text, verdict):
    assert make_task(FOUR).verify(FOUR_PROBLEM, text) == verdict


@EACH
def test_every_solution_verifies(config):
    task = make_task(config)
    for problem in task.train[:20] + task.dev + task.test:
        found = solutions(*read_prompt(problem.prompt))
        assert found
        assert {task.verify(problem, text) for text in found} == {CORRECT}


@EACH
def test_after_a_change_only_a_solution_verifies(config):
    task = make_task(config)
    rng = random.Random(0)
    num_correct = 0
    for problem in task.test:
        found = solutions(*read_prompt(problem.prompt))
        canonical = {task.answer(text) for text in found}
        for _ in range(300):
            text = rng.choice(found)
            i = rng.randrange(len(text))
            text = text[:i] + rng.choice(ALPHABET) + text[i + rng.randrange(2) :]
            is_solution = task.answer(text) in canonical
            num_correct += is_solution
            assert (task.verify(problem, text) == CORRECT) == is_solution
    assert num_correct > 100  # a character replaced by itself, at least


def test_problems_are_exactly_the_pairs_that_brute_force_solves():
    everything = make_task(
        change(
            TasksConfig(), max_number=5, max_target=30, num_test=1, num_dev=1, num_demonstrations=8
        )
    )
    prompts = {problem.prompt for problem in everything.train + everything.dev + everything.test}
    prompts |= {demonstration.prompt for demonstration in everything.demonstrations}
    expected = {
        f"{a} {b} {c}={target}\n"
        for a, b, c in product(range(1, 6), repeat=3)
        if a <= b <= c
        for target in reachable((a, b, c))
        if target <= 30
    }
    assert prompts == expected
    assert everything.counts["solvable"] == len(expected)


@pytest.mark.parametrize(("num_numbers", "num_draws"), [(3, 100), (4, 2)])
def test_solutions_exist_where_brute_force_finds_one(num_numbers, num_draws):
    rng = random.Random(1)
    for _ in range(num_draws):
        numbers = tuple(sorted(rng.choices(range(1, 13), k=num_numbers)))
        results = reachable(numbers)
        for target in range(1, 100):
            assert bool(solutions(numbers, target)) == (target in results)


@pytest.mark.parametrize("num_numbers", [3, 4])
def test_what_is_drawn_is_in_the_end_all_that_is_solvable(num_numbers, monkeypatch):
    """Enumeration and draws go two ways: forward from the numbers, and by trying both on arrays."""

    def prompts(task):
        return {row.prompt for row in task.train + task.dev + task.test + task.demonstrations}

    config = change(SMALL, num_numbers=num_numbers, max_number=4, max_target=12)
    few = change(config, num_dev=1, num_test=1, num_demonstrations=8, num_train=None)
    listed = make_task(few)
    monkeypatch.setattr(countdown, "MAX_ENUMERATED", {3: 0, 4: 0})
    drawn = make_task(change(few, num_train=len(listed.train)))
    assert prompts(drawn) == prompts(listed)
    with pytest.raises(UserError, match=rf"but only {len(prompts(listed))} exist: solvable"):
        make_task(change(few, num_train=len(listed.train) + 1))


def test_drawn_problems_are_solvable_by_brute_force():
    task = make_task(FOUR)
    for problem in task.train[:10]:
        numbers, target = read_prompt(problem.prompt)
        assert list(numbers) == sorted(numbers) and len(numbers) == 4
        assert min(numbers) >= 1 and max(numbers) <= 99 and 10 <= target <= 100
        assert target in reachable(numbers) and problem.gold == str(target)


def test_drawn_problems_are_as_many_as_asked_for():
    with pytest.raises(UserError, match=r"--config.tasks.num_train=none: countdown with 4 numbers"):
        make_task(change(FOUR, num_train=None))
    far = CountdownConfig(num_numbers=4, max_number=99, min_target=10**8, max_target=10**8)
    with pytest.raises(UserError, match=r"only 0 exist: solvable, .* targets from 100000000 to"):
        make_task(change(FOUR, countdown=far))


@EACH
def test_sets_share_no_problem(config):
    task = make_task(config)
    sets = [
        {row.prompt for row in rows}
        for rows in (task.train, task.dev, task.test, task.demonstrations)
    ]
    assert [len(rows) for rows in sets] == [100, 20, 30, 15]
    assert len(set.union(*sets)) == 165


@EACH
def test_ids_are_unique_and_independent_of_the_sizes(config):
    task = make_task(config)
    problems = task.train + task.dev + task.test
    assert len({problem.id for problem in problems}) == len(problems)
    larger = make_task(change(config, num_train=2000 if config is FOUR else 200))
    assert (larger.dev, larger.test, larger.demonstrations) == (
        task.dev,
        task.test,
        task.demonstrations,
    )
    assert larger.train[:100] == task.train


@EACH
def test_the_seed_decides_the_draw(config):
    assert make_task(config) == make_task(config)
    assert make_task(change(config, seed=4)).test != make_task(config).test


@EACH
def test_every_demonstration_is_whole_and_legal(config):
    task = make_task(config)
    assert len(task.demonstrations) == SMALL.num_demonstrations
    for demonstration in task.demonstrations:
        numbers, _ = read_prompt(demonstration.prompt)
        reached = int(demonstration.response.rpartition("|")[2])
        assert demonstration.response in solutions(numbers, reached)


@EACH
def test_demonstrations_are_sometimes_correct_and_mostly_not(config):
    task = make_task(config)
    verdicts = [
        task.verify(Problem(0, row.prompt, ""), row.response) for row in task.demonstrations
    ]
    assert set(verdicts) == {CORRECT, WRONG}
    assert verdicts.count(CORRECT) < len(verdicts) / 2


def test_weak_player_draws_any_first_move_and_takes_the_nearest_second():
    rng = random.Random(0)
    firsts = set()
    for _ in range(2000):
        first, second = weak_trace(
            "2 3 7=40\n", CountdownConfig(demonstration_skill=1.0, max_target=99), rng
        ).split("\n")
        firsts.add(first)
        pair = tuple(int(number) for number in first.partition("|")[2].split(" "))
        nearest = min(abs(move.result - 40) for move in legal_moves(pair))
        assert abs(int(second.partition("|")[2]) - 40) == nearest
    # Both orders of + and * for three pairs, three subtractions, and no exact division among 2, 3
    # and 7.
    assert len(firsts) == len(legal_moves((2, 3, 7))) == 15


def test_weak_player_of_four_numbers_takes_the_nearest_last_move_alone():
    rng = random.Random(0)
    lines = [set(), set()]
    for _ in range(2000):
        trace = weak_trace("2 3 5 7=40\n", CountdownConfig(num_numbers=4), rng).split("\n")
        lines[0].add(trace[0])
        lines[1].add(trace[1] if trace[0] == "2+3=5|5 7 5" else None)
        pair = tuple(int(number) for number in trace[1].partition("|")[2].split(" "))
        nearest = min(abs(move.result - 40) for move in legal_moves(pair) if move.result <= 99)
        assert abs(int(trace[2].partition("|")[2]) - 40) == nearest
    assert len(lines[0]) == len(legal_moves((2, 3, 5, 7)))
    assert len(lines[1] - {None}) == len(legal_moves((5, 5, 7)))


def test_without_skill_the_second_move_is_any():
    rng = random.Random(0)
    seconds = defaultdict(set)
    for _ in range(4000):
        first, second = weak_trace(
            "2 3 7=40\n", CountdownConfig(demonstration_skill=0.0, max_target=99), rng
        ).split("\n")
        seconds[first].add(second)
    assert seconds["2+3=5|7 5"] == {
        "5+7=12|12",
        "7+5=12|12",
        "5*7=35|35",
        "7*5=35|35",
        "7-5=2|2",
    }


def test_weak_player_avoids_large_results_where_it_can():
    rng = random.Random(0)
    results = set()
    for _ in range(2000):
        trace = weak_trace(
            "7 8 9=40\n", CountdownConfig(demonstration_skill=0.5, max_target=60), rng
        )
        results |= {int(line.split("=")[1].partition("|")[0]) for line in trace.split("\n")}
    assert max(results) <= 60 and 56 in results, "7*8 is allowed, 8*9 is not"


def test_commuted_solutions_vote_together(task):
    assert task.answer("6*4=24|24 7\n24+7=31|31") == task.answer(RIGHT)


@pytest.mark.parametrize(
    "text",
    [
        "4+6=10|7 10\n7+24=31|31",
        "4*6=25|7 24\n7+24=31|31",
        "4*6=24|7 25\n7+24=31|31",
        "4*6=24|7 24\n24-7=17|17",
    ],
)
def test_different_claims_do_not_vote_together(task, text):
    assert task.answer(text) not in (None, task.answer(RIGHT))


def test_the_order_of_a_subtraction_counts(task):
    assert task.answer("7-4=3|6 3\n6-3=3|3") != task.answer("4-7=3|6 3\n6-3=3|3")


def test_an_answer_decides_the_verdict(task):
    rng = random.Random(2)
    verdicts = defaultdict(set)
    for _ in range(20_000):
        a, b, c, d, e, f = (rng.choice([4, 6, 7, 24, 31]) for _ in range(6))
        text = f"{a}*{b}=24|{c} {d}\n{e}{rng.choice('+-')}{f}=31|31"
        verdicts[task.answer(text)].add(task.verify(PROBLEM, text))
    assert all(len(found) == 1 for found in verdicts.values())
    assert {CORRECT} in verdicts.values()


def test_an_unparsable_response_has_no_vote(task):
    assert [
        task.answer(text)
        for _, text, verdict in CHEATS
        if verdict == UNPARSABLE and task.answer(text)
    ] == []


@EACH
def test_steps_of_one_canonical_form_are_the_same_move(config):
    """All spellings of the legal moves: their forms part them as moves are parted, + and *
    commuted.
    """
    task = make_task(config)
    moves_of_form = defaultdict(set)
    for problem in task.test:
        numbers = read_prompt(problem.prompt)[0]
        for move in legal_moves(numbers):
            operands = move.left, move.right
            if move.operator in "+*":
                operands = tuple(sorted(operands))
            for remaining in permutations(move.remaining):
                rest = " ".join(map(str, remaining))
                step = f"{move.left}{move.operator}{move.right}={move.result}|{rest}"
                form = task.canonical_step(step)
                assert task.canonical_step(form) == form
                moves_of_form[form].add((operands, move.operator, move.result, move.remaining))
    assert all(len(moves) == 1 for moves in moves_of_form.values())
    assert len(moves_of_form) == len(set.union(*moves_of_form.values()))


@EACH
def test_a_canonical_step_in_place_of_another_changes_no_verdict(config):
    task = make_task(config)
    shown = {row.prompt: row.response for row in task.demonstrations}
    texts = [(p, text) for p in task.test for text in solutions(*read_prompt(p.prompt))[:20]]
    texts += [(Problem(0, prompt, ""), text) for prompt, text in shown.items()]
    texts += [(p, text.replace("1", "2")) for p, text in texts]
    verdicts = defaultdict(int)
    for problem, text in texts:
        verdict = task.verify(problem, text)
        verdicts[verdict] += 1
        lines = text.split("\n")
        for i, line in enumerate(lines):
            changed = [*lines[:i], task.canonical_step(line), *lines[i + 1 :]]
            assert task.verify(problem, "\n".join(changed)) == verdict
    assert verdicts[CORRECT] > 100 and verdicts[WRONG] > 100


@pytest.mark.parametrize(
    "step", ["", "31", "4*6=24", "6*4=24|24 7 ", "6*4=24|24 7\n", "6*4=24|9 8 7 6", "+" * 10**6]
)
def test_a_step_that_is_no_line_has_no_form_that_is_one(task, step):
    form = task.canonical_step(step)
    assert read_move(step) is read_move(form) is None and task.canonical_step(form) == form


def test_unless_a_task_says_more_a_step_is_its_own_form(task):
    assert replace(task, commuting="").canonical_step("6*4=24|24 7") == "6*4=24|24 7"
    assert task.canonical_step("6*4=24|24 7") == "4*6=24|7 24"


def test_four_numbers_fit_into_the_tokens_of_their_config():
    config, task = countdown4.get_config(), make_task(FOUR)
    for key, value in config.tasks.countdown.items():
        assert getattr(FOUR.countdown, key) == value or key == "demonstration_skill"
    limit = config.trace.max_step_tokens - 1  # behind a step stands a newline or an end token
    assert max(len(p.prompt) for p in task.train) <= config.prompts.max_prompt_tokens
    for problem in task.train[:20]:
        found = solutions(*read_prompt(problem.prompt))
        assert any(all(len(line) <= limit for line in text.split("\n")) for text in found)
    assert all(len(x) <= limit for row in task.demonstrations for x in row.response.split("\n"))


def test_every_text_of_the_task_is_in_its_alphabet(task):
    for row in task.demonstrations:
        assert (
            task.tokenizer.decode(task.tokenizer.encode(row.prompt + row.response))
            == row.prompt + row.response
        )


def test_too_large_sets_are_refused_with_the_number_that_exists():
    with pytest.raises(
        UserError, match=r"need 9769 problems .* only 4739 exist: solvable, with numbers up to 12"
    ):
        make_task(change(TasksConfig(), num_train=8001, num_demonstrations=8000))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_dev", -1),
        ("max_number", 0),
        ("max_number", 100),
        ("num_numbers", 2),
        ("num_numbers", 5),
        ("min_target", 0),
        ("max_target", 0),
        ("demonstration_skill", 1.5),
        ("max_bad_share", -0.1),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(key, value):
    with pytest.raises(UserError, match=rf"--config.tasks[.a-z]*.{key}={value}"):
        make_task(change(TasksConfig(), **{key: value}))


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(
        UserError, match=r"--config.tasks.name=chess: unknown task; known are countdown, jsonl"
    ):
        make_task(change(TasksConfig(), name="chess"))


def test_the_problems_of_the_quickstart_are_those_of_its_published_figures():
    """By value: sizes left open are 256, 512 and 8000 where problems are made."""
    config = change(TasksConfig(), max_number=15, demonstration_skill=0.5)
    task = make_task(config)
    sizes = {"num_dev": 256, "num_test": 512, "num_demonstrations": 8000}
    assert make_task(change(config, **sizes)) == task
    assert digest(task) == "1f1d766dc73f844e73c63414ea667ebbce7c050af3593c8c7a92ab280a328d56"
    shown = json.dumps([(shot.prompt, shot.response) for shot in task.demonstrations])
    assert hashlib.sha256(shown.encode()).hexdigest().startswith("f8710509ee056460")


def test_drawn_problems_are_the_same_everywhere():
    assert digest(make_task(FOUR)).startswith("a5b2f9e1de742baf")
