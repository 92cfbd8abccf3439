"""`benchmarks.countdown_values`: a PRM that knows, and one whose ignorance is known."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from benchmarks.countdown_values import (
    Noise,
    exact_value,
    measured_auroc,
    sigma_of_auroc,
    standard_noise,
    values,
)
from jaxtrain.structs import Verdict
from jaxtrain.tasks import TasksConfig, make_task
from jaxtrain.tasks.countdown import ALPHABET, CountdownConfig, legal_moves, write_move

SMALL = [((2, 3, 7), 13), ((4, 4, 6), 20), ((1, 1, 5), 99), ((1, 2, 3, 4), 24), ((2, 5, 5, 9), 11)]
SIZES = TasksConfig(num_train=40, num_dev=1, num_test=1, num_demonstrations=40)
THREE = replace(SIZES, countdown=CountdownConfig(max_number=15))
FOUR = replace(
    SIZES, countdown=CountdownConfig(num_numbers=4, max_number=99, min_target=10, max_target=100)
)
PROMPT, RIGHT, WRONG = "4 6 7=31\n", "4*6=24|7 24\n7+24=31|31", "4+6=10|7 10\n7+10=17|17"


def games(numbers: tuple[int, ...]) -> list[tuple[str, ...]]:
    """Oracle: the lines of every legal game."""
    if len(numbers) == 1:
        return [()]
    moves = legal_moves(numbers)
    return [(write_move(move), *rest) for move in moves for rest in games(move.remaining)]


@pytest.mark.parametrize(("numbers", "target"), SMALL)
def test_a_prefix_is_worth_one_where_a_game_that_wins_begins_with_it(numbers, target):
    prompt = f"{' '.join(map(str, numbers))}={target}\n"
    hopeful = {
        game[:end]
        for game in games(numbers)
        if game[-1].endswith(f"|{target}")
        for end in range(len(numbers))
    }
    for game in games(numbers):
        for end in range(len(numbers)):
            text = "\n".join(game[:end])
            is_hopeful = game[:end] in hopeful
            assert exact_value(prompt, text) == is_hopeful
            is_whole = end == len(numbers) - 1
            assert exact_value(prompt, text, is_finished=True) == (is_hopeful and is_whole)
            if text:  # behind the last move a newline begins a line too many
                assert exact_value(prompt, f"{text}\n") == (is_hopeful and not is_whole)


@pytest.mark.parametrize("config", [THREE, FOUR], ids=["three", "four"])
def test_the_value_of_a_finished_response_is_its_verdict(config):
    task = make_task(config)
    rng = random.Random(0)
    for problem, shown in product(task.train[:10], task.demonstrations):
        text = shown.response if rng.random() < 0.5 else shown.response + rng.choice(ALPHABET)
        is_correct = task.verify(problem, text) == Verdict.CORRECT
        assert exact_value(problem.prompt, text, is_finished=True) == is_correct
        assert exact_value(shown.prompt, shown.response) == shown.response.endswith(
            f"|{shown.prompt.strip().partition('=')[2]}"
        )


@pytest.mark.parametrize(
    "text",
    ["4*6=25|7 25", "4*6=24|7 2", "4*6", "31", "\n", "4*6=24|7 24\n\n", RIGHT + "\n31", "é"],
)
def test_what_is_not_legal_is_worth_nothing(text):
    assert exact_value(PROMPT, text) == exact_value(PROMPT, text, is_finished=True) == 0


def test_values_are_a_function_of_each_text_alone():
    noise = Noise(first=1.0, leaf=0.5, seed=7)
    texts = ["", RIGHT.partition("\n")[0], RIGHT, WRONG]
    alone = [values([PROMPT], [text], noise=noise)[0] for text in texts]
    together = values([PROMPT] * 4, texts, noise=noise)
    assert together.tolist() == alone and together.dtype == np.float32
    exact = values([PROMPT] * 4, texts)
    assert exact.tolist() == [1, 1, 1, 0]
    drawn = [standard_noise(7, PROMPT, text) for text in texts]
    np.testing.assert_allclose(together - exact, drawn * np.array([0, 1, 0.5, 0.5]), rtol=1e-5)
    assert values([PROMPT] * 2, [RIGHT] * 2, [True, False]).tolist() == [1, 1]
    assert values([PROMPT] * 2, [""] * 2, [True, False]).tolist() == [0, 1]


def test_noise_is_normal_and_of_its_seed_problem_and_text():
    drawn = np.array([standard_noise(0, PROMPT, str(i)) for i in range(20_000)])
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.03
    assert abs((drawn < 1).mean() - 0.8413) < 0.01
    variants = [(0, PROMPT, RIGHT), (1, PROMPT, RIGHT), (0, "4 6 8=31\n", RIGHT), (0, PROMPT, "")]
    assert len({standard_noise(*variant) for variant in variants}) == 4
    assert standard_noise(0, PROMPT, RIGHT) == standard_noise(0, PROMPT, RIGHT + "\n")
    assert round(standard_noise(0, PROMPT, RIGHT), 6) == 0.509817, "on every machine"


@pytest.mark.parametrize(("sigma", "area"), [(0.5, 0.92), (1.0, 0.76), (9.0, 0.53)])
def test_sigma_and_auroc_belong_together(sigma, area):
    assert sigma_of_auroc(area) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("config", [THREE, FOUR], ids=["three", "four"])
def test_noise_ranks_as_well_as_it_was_asked_to(config):
    problems = make_task(config).train
    asked = {"first": 0.7, "inner": 0.8, "leaf": 0.9}
    noise = Noise(**{depth: sigma_of_auroc(area) for depth, area in asked.items()})
    measured = measured_auroc(problems, noise)
    assert measured.keys() == ({"first", "leaf"} if config is THREE else asked.keys())
    for depth, area in measured.items():
        assert area == pytest.approx(asked[depth], abs=0.04)
    assert set(measured_auroc(problems, Noise()).values()) == {1.0}
