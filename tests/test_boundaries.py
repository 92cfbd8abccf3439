"""Where steps and answers end: tables over tokens against plain reading of the text."""

from __future__ import annotations

import numpy as np
import pytest

from jaxtrain.boundaries import COMPLETE, FINISHED, MAX_DEPTH, NO_ANSWER, OVER, make_tables

RNG = np.random.default_rng(0)
PIECES = [
    b"a",
    b" ",
    b"\n",
    b"#",
    b"##",
    b" ####",
    b"{",
    b"}",
    b"}}",
    b"\\boxed",
    b"\\",
    b"boxed{",
    b"\n\n",
    b".\n",
    b"7",
]
MIXED = [
    b"".join(PIECES[i] for i in RNG.integers(0, len(PIECES), RNG.integers(1, 4))) for _ in range(60)
]
TOKENS = [b"", *PIECES, *MIXED, "\u00e4".encode()[:1], "\u00e4".encode()[1:]]
END = 0


def is_step_over(text: bytes, boundary: bytes) -> bool:
    ends = range(1, len(text) + 1)
    return (
        any(text[:end].endswith(boundary) and text[:end].strip() for end in ends)
        if boundary
        else False
    )


def answer_in(text: bytes, answer: str) -> int:
    if answer == "hash":
        before, marker, after = text.partition(b"####")
        return FINISHED if b"\n" in after else (3 if marker else NO_ANSWER)
    marker, depth = text.find(b"\\boxed{"), 1
    for at in range(marker + 7, len(text)) if marker >= 0 else ():
        depth = min(depth + {ord("{"): 1, ord("}"): -1}.get(text[at], 0), MAX_DEPTH)
        if depth == 0:
            return FINISHED if b"\n" in text[at:] else COMPLETE
    return 3 if marker >= 0 else NO_ANSWER


@pytest.mark.parametrize("boundary", ["\n", "\n\n", "##", "a\n", ""])
def test_a_step_ends_where_its_text_does(boundary):
    table = make_tables(TOKENS, [END], boundary, "end").step
    num_over = 0
    for _ in range(1500):
        state, text = 0, b""
        for token in RNG.integers(1, len(TOKENS), 6):
            state, text = table[state, token], text + TOKENS[token]
            assert (state == OVER) == is_step_over(text, boundary.encode()), text
        num_over += state == OVER
    assert 10 < num_over < 1500 or not boundary


@pytest.mark.parametrize("answer", ["hash", "boxed"])
def test_an_answer_ends_where_its_text_does(answer):
    table = make_tables(TOKENS, [END], "\n", answer).answer
    seen = set()
    for _ in range(4000):
        state, text = 0, b""
        for token in RNG.integers(1, len(TOKENS), 8):
            state, text = table[state, token], text + TOKENS[token]
            expected = answer_in(text, answer)
            seen.add(expected)
            if expected in (FINISHED, COMPLETE):
                assert state == expected, text
            elif expected == NO_ANSWER:  # or a marker that has begun
                assert state not in (FINISHED, COMPLETE), text
            else:
                assert state > COMPLETE, text
    assert seen == {NO_ANSWER, FINISHED, 3} | ({COMPLETE} if answer == "boxed" else set())


@pytest.mark.parametrize("answer", ["end", "hash", "boxed"])
def test_an_end_token_finishes_from_every_state(answer):
    table = make_tables(TOKENS, [END], "\n", answer).answer
    assert (table[:, END] == FINISHED).all()
    assert (table[FINISHED] == FINISHED).all()


def test_plain_text_is_no_answer():
    table = make_tables(TOKENS, [END], "\n", "end").answer
    assert (table[NO_ANSWER, 1:] == NO_ANSWER).all()


def test_long_tokens_in_a_large_vocabulary_fit():
    """150,000 tokens of up to 200 bytes; none of these ends a step or an answer."""
    tokens = [bytes([97 + i % 26]) * (1 + i % 200 if i % 1000 == 0 else 4) for i in range(150_000)]
    tables = make_tables(tokens, [0], "\n\n", "boxed")
    assert (tables.answer[NO_ANSWER, 1:] == NO_ANSWER).all() and not (tables.step[0] == OVER).any()
