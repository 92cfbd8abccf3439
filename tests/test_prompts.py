"""Which problems an iteration sees, and in which shape."""

import datetime
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.prompts import PromptsConfig, draw, encode, fix_date, make_encode
from jaxtrain.tasks import Demonstration, Problem
from jaxtrain.tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()
plain = make_encode(PromptsConfig(), TOKENIZER, ())


def problems_of(total):
    return [Problem(id=10 + i, prompt=f"problem {i}\n", gold="") for i in range(total)]


def ids(problems):
    return [problem.id for problem in problems]


def drawn(total, num_problems, iteration, seed=0):
    return ids(draw(problems_of(total), num_problems, seed, iteration))


def test_an_epoch_is_a_permutation_of_its_own():
    """Four iterations of five problems each are one epoch of twenty."""
    epochs = [sum((drawn(20, 5, i) for i in range(4 * e, 4 * e + 4)), []) for e in range(5)]
    for epoch in epochs:
        assert sorted(epoch) == ids(problems_of(20))
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize(("total", "num_problems"), [(10, 4), (10, 7), (10, 9), (7, 5)])
def test_an_iteration_repeats_no_problem(total, num_problems):
    for iteration in range(40):
        found = drawn(total, num_problems, iteration)
        assert len(set(found)) == len(found) == num_problems


@pytest.mark.parametrize(("total", "num_problems"), [(10, 4), (10, 7), (7, 5), (4, 3)])
def test_every_problem_is_drawn_equally_often(total, num_problems):
    """Also where an iteration reaches from one epoch into the next: `total` iterations are
    `num_problems` epochs.
    """
    counts = Counter(i for iteration in range(total) for i in drawn(total, num_problems, iteration))
    assert set(counts.values()) == {num_problems} and len(counts) == total


@pytest.mark.parametrize("num_problems", [None, 10, 11, 1000])
def test_all_problems_are_drawn_where_no_fewer_are_asked_for(num_problems):
    for iteration in range(3):
        assert sorted(drawn(10, num_problems, iteration)) == ids(problems_of(10))
    assert drawn(10, num_problems, 0) != drawn(10, num_problems, 1)


def test_a_draw_is_a_function_of_seed_and_iteration():
    assert drawn(50, 20, 3) == drawn(50, 20, 3)
    different = {
        tuple(drawn(50, 20, iteration, seed)) for iteration in range(4) for seed in range(4)
    }
    assert len(different) == 16


def test_prompts_come_in_batches_of_one_shape():
    prompts = ["a", "bcd", "", "ef", "g"]
    problems = [Problem(id=7 * i, prompt=prompt, gold="") for i, prompt in enumerate(prompts)]
    batches, num_too_long = encode(problems, plain, max_prompt_tokens=4, batch_size=2)
    assert num_too_long == 0 and len(batches) == 3
    for batch in batches:
        assert (batch.tokens.shape, batch.length.shape, batch.problem_id.shape) == (
            (2, 4),
            (2,),
            (2,),
        )
        assert {x.dtype for x in (batch.tokens, batch.length, batch.problem_id)} == {
            np.dtype(np.int32)
        }
    rows = [
        (problem_id, TOKENIZER.decode(tokens[:length]), tokens[length:].any())
        for batch in batches
        for tokens, length, problem_id in zip(
            batch.tokens, batch.length, batch.problem_id, strict=True
        )
    ]
    assert rows[:5] == [(7 * i, prompt, False) for i, prompt in enumerate(prompts)]


def test_the_last_batch_is_filled_with_padding_of_one_token():
    batches, _ = encode(problems_of(5), plain, max_prompt_tokens=12, batch_size=4)
    assert batches[1].problem_id.tolist() == [14, -1, -1, -1]
    assert batches[1].length.tolist() == [10, 1, 1, 1]
    assert not batches[1].tokens[1:].any()


def test_a_prompt_over_the_limit_is_left_out_and_counted():
    problems = [Problem(id=i, prompt="x" * (i + 1), gold="") for i in range(8)]
    batches, num_too_long = encode(problems, plain, max_prompt_tokens=5, batch_size=4)
    assert num_too_long == 3
    kept = np.concatenate([batch.problem_id for batch in batches])
    # the last of them is exactly as long as the limit
    assert kept[kept >= 0].tolist() == [0, 1, 2, 3, 4]
    assert batches[1].tokens[0].tolist() == TOKENIZER.encode("xxxxx")


def test_no_prompt_at_all_makes_no_batch():
    assert encode([], plain, 5, 4) == ([], 0)
    assert encode(problems_of(3), plain, 5, 4) == ([], 3)


SHOTS = [Demonstration(f"Q: {i}?\nA:\n", f"#### {i}", f"{i}?") for i in range(5)]
ASKED = Problem(7, "Q: 9?\nA:\n", "9", "9?")


def test_few_shot_prompts_stand_behind_demonstrations():
    shots = make_encode(PromptsConfig(style="few_shot", num_shots=2), TOKENIZER, SHOTS)(ASKED)
    assert TOKENIZER.decode(shots) == "Q: 0?\nA:\n#### 0\n\nQ: 1?\nA:\n#### 1\n\nQ: 9?\nA:\n"
    assert TOKENIZER.decode(make_encode(PromptsConfig(), TOKENIZER, SHOTS)(ASKED)) == ASKED.prompt


def test_a_chat_asks_the_question_alone():
    told = []

    class Chat:
        def encode_chat(self, text, system, date):
            told.append((text, system, date))
            return [5]

    config = PromptsConfig(style="chat", system="Be brief.", date="2024-07-26")
    assert make_encode(config, Chat(), SHOTS)(ASKED) == [5]
    assert told == [("9?", "Be brief.", "2024-07-26")]
    with pytest.raises(UserError, match="needs a pretrained model with a chat template"):
        make_encode(PromptsConfig(style="chat"), TOKENIZER, SHOTS)(ASKED)


def test_the_day_is_that_on_which_a_run_started(monkeypatch):
    class Days(datetime.date):
        today = classmethod(lambda cls: datetime.date(2026, 2, 3))

    monkeypatch.setattr("jaxtrain.prompts.datetime", SimpleNamespace(date=Days))
    chat = PromptsConfig(style="chat")
    assert fix_date(chat, "").date == "2026-02-03"
    assert fix_date(chat, "2024-07-26").date == "2024-07-26"
    assert fix_date(replace(chat, date="2020-01-01"), "2024-07-26").date == "2020-01-01"
    assert fix_date(PromptsConfig(), "").date == "", "only chats are told"


def test_a_date_is_a_day():
    with pytest.raises(
        UserError, match="--config.prompts.date=today: must be a day, as YYYY-MM-DD"
    ):
        PromptsConfig(date="today")
