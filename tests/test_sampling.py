"""Drawing and scoring steps: with caches as without, and what a lane owes its neighbours.

Real transformers show that caches change nothing. Where a truth is about draws and endings alone,
the network is a `Bigram`: the table of logits that is its parameters can be written so that every
token is known beforehand.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import MODEL, VOCAB, random_like, random_params, read_whole

from jaxtrain.boundaries import TraceConfig, make_tables
from jaxtrain.nn.decode import make_sample_steps
from jaxtrain.nn.reader import make_score_steps
from jaxtrain.nn.transformer import Segment
from jaxtrain.structs import Prefix, Steps

END, NEWLINE, SIZE = 1, 2, 5  # SIZE: tokens of a step, at most
PARAMS = random_params()
read_jitted = jax.jit(partial(read_whole, MODEL))


class Bigram:
    """A network without layers or memory: the next token's logits are the newest token's row of the
    parameters.
    """

    def apply(
        self,
        variables,
        tokens,
        positions=None,
        mask=None,
        segments=(),
        into=None,
        at=0,
        method=None,
    ):
        del positions, segments, at
        return (
            tokens
            if method == "logits"
            else (variables["params"][tokens], into or Segment((), (), mask))
        )


TEXT = [b"", b"", b".\n", b"a", b"b", b"##", b"#d", b" e", b"f", b"g", b"h"]  # of each token


def compiled(model, answer="end", step_tokens=None):
    trace = TraceConfig(max_step_tokens=SIZE, step_tokens=step_tokens)
    sample_steps = make_sample_steps(model, make_tables(TEXT, [END], "\n", answer), trace)
    return jax.jit(sample_steps, static_argnames=("num_lanes", "max_steps"))


sample_bigram, sample_network = compiled(Bigram()), compiled(MODEL)


def keys_of(problem_ids):
    return np.array([(7, i) for i in problem_ids], np.uint32)


def host(steps):
    return jax.tree.map(np.asarray, steps[0])


# Networks: cached equals uncached.


@pytest.fixture(scope="module")
def prefix():
    """Prefixes of different lengths with garbage past them."""
    rng = np.random.default_rng(3)
    return Prefix(
        rng.integers(0, VOCAB, (8, 6)).astype(np.int32),
        np.array([6, 1, 4, 2, 5, 3, 6, 2], np.int32),
    )


def decode_plainly(tokens, max_steps):
    """Write greedy steps behind a list of tokens, reading everything again for each token."""
    tokens, steps = list(tokens), [[]]
    while True:
        row = np.zeros((1, 6 + 3 * SIZE), np.int32)
        row[0, : len(tokens)] = tokens
        hidden = read_jitted(PARAMS, row, np.array([len(tokens)]))[0, len(tokens) - 1]
        token = int(np.argmax(np.asarray(PARAMS["embedding"]) @ np.asarray(hidden)))
        tokens.append(token)
        steps[-1].append(token)
        is_finished, is_over = token == END, token == NEWLINE
        is_cut = len(steps[-1]) == SIZE and not is_finished and not is_over
        if is_finished or is_cut or (is_over and len(steps) == max_steps):
            return steps, is_finished, is_cut
        if is_over:
            steps.append([])


@pytest.mark.parametrize("max_steps", [1, 3])
def test_greedy_decoding_with_a_cache_equals_reading_everything_again(prefix, max_steps):
    room = np.full(8, max_steps)
    steps = host(
        sample_network(
            PARAMS, prefix, keys_of(range(8)), room, 0.0, num_lanes=2, max_steps=max_steps
        )
    )
    endings = set()
    for b in range(8):
        expected, is_finished, is_cut = decode_plainly(
            prefix.tokens[b, : prefix.length[b]], max_steps
        )
        endings.add((len(expected), is_finished, is_cut))
        for lane in range(2):
            found = [
                t[:n].tolist()
                for t, n in zip(steps.tokens[b, lane], steps.length[b, lane], strict=True)
                if n
            ]
            assert found == expected, f"problem {b}, lane {lane}"
            last = len(expected) - 1
            assert np.flatnonzero(steps.is_finished[b, lane]).tolist() == [last] * is_finished
            assert np.flatnonzero(steps.is_cut[b, lane]).tolist() == [last] * is_cut
    assert len(endings) > 2, "the prefixes must not all end alike"
    assert steps.is_ok.all()


def test_scores_with_a_shared_prefix_equal_reading_prefix_and_steps_in_one_pass(prefix):
    rng = np.random.default_rng(4)
    lanes, max_steps = 2, 3
    params = {
        "backbone": PARAMS,
        "head": random_like({"weight": jnp.zeros(16), "bias": jnp.zeros(())}, seed=5),
    }
    length = rng.integers(1, SIZE + 1, (8, lanes, max_steps)).astype(np.int32)
    length[::2, 1, 1:] = 0  # a lane that ended with its first step
    length[1::3, :, 2] = 0
    # garbage past the lengths
    tokens = rng.integers(0, VOCAB, (*length.shape, SIZE)).astype(np.int32)
    no = np.zeros(length.shape, bool)
    scores = jax.jit(make_score_steps(MODEL))(params, prefix, Steps(tokens, length, no, no, ~no))
    for b, lane, step in np.argwhere(length > 0).tolist():
        text = prefix.tokens[b, : prefix.length[b]].tolist()
        for k in range(step + 1):
            text += tokens[b, lane, k, : length[b, lane, k]].tolist()
        row = np.zeros((1, 6 + 3 * SIZE), np.int32)
        row[0, : len(text)] = text
        hidden = np.asarray(read_jitted(PARAMS, row, np.array([len(text)])))[0, len(text) - 1]
        expected = hidden @ np.asarray(params["head"]["weight"]) + np.asarray(
            params["head"]["bias"]
        )
        assert scores[b, lane, step] == pytest.approx(expected, rel=1e-5, abs=1e-5), (
            f"problem {b}, lane {lane}, step {step}"
        )


# Endings and draws, of three problems whose prompts are one token each.

A, B, C, D, E = range(3, 8)
EVEN = np.zeros((VOCAB, VOCAB), np.float32)
FEW, MANY = 4, 4000  # lanes


def follow(arrows):
    """Make a Bigram that goes from token to token as told (None: to NaN), and draws evenly after
    any other token.
    """
    table = EVEN.copy()
    for token, next_token in arrows.items():
        table[token] = np.nan if next_token is None else -1e9 * (np.arange(VOCAB) != next_token)
    return table


def draw(
    table,
    prompts=(A, B, C),
    ids=(0, 1, 2),
    room=(9, 9, 9),
    temperature=1.0,
    lanes=FEW,
    max_steps=1,
    sampler=sample_bigram,
):
    prefix = Prefix(np.array(prompts, np.int32)[:, None], np.ones(3, np.int32))
    room, temperature = np.minimum(room, max_steps), np.float32(temperature)
    return sampler(
        table, prefix, keys_of(ids), room, temperature, num_lanes=lanes, max_steps=max_steps
    )


def test_a_step_ends_at_a_newline_or_an_end_token_or_the_limit():
    steps = host(draw(follow({A: B, B: NEWLINE, C: END, D: D}), prompts=(A, C, D)))
    for lane in range(FEW):
        assert steps.tokens[:, lane, 0].tolist() == [
            [B, NEWLINE, 0, 0, 0],
            [END, 0, 0, 0, 0],
            [D] * SIZE,
        ]
        assert steps.length[:, lane, 0].tolist() == [2, 1, SIZE]
        assert steps.is_finished[:, lane, 0].tolist() == [False, True, False]
        assert steps.is_cut[:, lane, 0].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("last", "is_finished", "is_cut"),
    [(END, True, False), (NEWLINE, False, False), (8, False, True)],
)
def test_the_last_token_of_the_room_decides(last, is_finished, is_cut):
    steps = host(draw(follow({A: B, B: C, C: D, D: E, E: last})))
    assert steps.tokens[0, 0, 0].tolist() == [B, C, D, E, last]
    assert (steps.length[0, 0, 0], steps.is_finished[0, 0, 0], steps.is_cut[0, 0, 0]) == (
        SIZE,
        is_finished,
        is_cut,
    )


@pytest.mark.parametrize(
    ("after_newline", "lengths", "finished", "cut"),
    [
        (A, [1, 2, 2], [False, False, False], [False, False, False]),
        (END, [1, 1, 0], [False, True, False], [False, False, False]),
        (D, [1, SIZE, 0], [False, False, False], [False, True, False]),
    ],
)
def test_a_trace_ends_with_its_last_step(after_newline, lengths, finished, cut):
    steps = host(draw(follow({A: NEWLINE, D: D, NEWLINE: after_newline}), max_steps=3))
    assert steps.length[0, 0].tolist() == lengths
    assert (steps.is_finished[0, 0].tolist(), steps.is_cut[0, 0].tolist()) == (finished, cut)
    assert not steps.tokens[0, 0][np.arange(SIZE) >= np.array(lengths)[:, None]].any()


def test_an_answer_across_tokens_finishes_the_trace_with_its_line():
    """C and D together hold the marker ####; without it, the same line is a step like any other."""
    arrows = follow({A: C, C: D, D: E, E: NEWLINE, B: E})
    steps = host(draw(arrows, sampler=compiled(Bigram(), answer="hash")))
    assert steps.length[:, 0, 0].tolist() == [4, 2, 3]
    # "###d e" and less: one mark short
    assert steps.is_finished[:, 0, 0].tolist() == [False, False, False]
    arrows = follow({A: C, C: 9, 9: D, D: E, E: NEWLINE, B: C})
    text = TEXT[9]
    TEXT[9] = b"#"
    try:
        steps = host(draw(arrows, sampler=compiled(Bigram(), answer="hash")))
    finally:
        TEXT[9] = text
    assert steps.tokens[0, 0, 0].tolist() == [C, 9, D, E, NEWLINE]
    assert steps.is_finished[:, 0, 0].tolist() == [True, True, False]
    assert not steps.is_cut.any()


def test_a_long_step_ends_without_its_text_but_never_inside_an_answer():
    sampler = compiled(Bigram(), answer="hash", step_tokens=2)
    steps = host(draw(follow({A: B, B: A, C: C}), max_steps=3, sampler=sampler))
    assert steps.length[:2, 0].tolist() == [[2, 2, 2]] * 2  # a b, a b, a b
    # ##########: an answer without end
    assert steps.length[2, 0].tolist() == [SIZE, 0, 0] and steps.is_cut[2, 0, 0]


def test_every_lane_is_held_until_the_longest_has_ended():
    table = follow({A: NEWLINE, B: C, C: NEWLINE})
    assert draw(table, prompts=(A, A, B))[1] == 2 * FEW
    assert draw(table, prompts=(A, A, A))[1] == FEW


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_softmax(temperature):
    table = np.random.default_rng(6).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    steps = host(draw(table, temperature=temperature, lanes=MANY))
    for b, token in enumerate((A, B, C)):
        share = np.exp(table[token] / temperature) / np.exp(table[token] / temperature).sum()
        count = np.bincount(steps.tokens[b, :, 0, 0], minlength=VOCAB)
        deviation = (count - MANY * share) / np.sqrt(MANY * share * (1 - share))
        assert np.abs(deviation).max() < 4, f"problem {b}: {deviation.round(1)} standard deviations"


def test_temperature_zero_takes_the_most_likely():
    table = np.random.default_rng(7).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    steps = host(draw(table, temperature=0.0))
    np.testing.assert_array_equal(
        steps.tokens[:, :, 0, 0], np.repeat(table[[A, B, C]].argmax(axis=1)[:, None], FEW, 1)
    )


def test_tokens_of_a_lane_are_independent():
    """All pairs of two equally likely tokens are equally likely."""
    table = np.where(np.isin(np.arange(VOCAB), (A, B)), EVEN, -1e9)
    steps = host(draw(table, lanes=MANY))
    pairs = np.bincount((steps.tokens[0, :, 0, :2] - A) @ [2, 1], minlength=4)
    assert np.abs(pairs - MANY / 4).max() < 4 * np.sqrt(MANY * 3 / 16), pairs


def test_lanes_and_problems_draw_apart():
    """The same prompt twice: every lane of every problem is a sequence of its own."""
    # always five tokens, of eight: 32768 sequences
    table = np.where(np.arange(VOCAB) < A, -1e9, EVEN)
    steps = host(draw(table, prompts=(A, A, A)))
    assert len(np.unique(steps.tokens.reshape(-1, SIZE), axis=0)) == 3 * FEW


def test_a_problem_does_not_depend_on_its_neighbours():
    here = host(draw(EVEN, prompts=(A, B, C), ids=(0, 1, 2)))
    there = host(draw(EVEN, prompts=(C, D, A), ids=(2, 9, 0)))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[[0, 2]], y[[2, 0]]), here, there)


def test_a_lane_does_not_depend_on_the_number_of_lanes():
    few, many = host(draw(EVEN)), host(draw(EVEN, lanes=MANY))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[:, :FEW]), few, many)


def test_a_trace_begins_with_the_step_that_would_be_drawn_alone():
    one, three = host(draw(EVEN)), host(draw(EVEN, max_steps=3))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[:, :, :1]), one, three)
    assert three.length[:, :, 1].any()


def test_a_problem_takes_as_many_steps_as_it_has_room_for():
    """And no other problem notices."""
    some, all_three = host(draw(EVEN, room=(1, 3, 2), max_steps=3)), host(draw(EVEN, max_steps=3))
    for b, room in enumerate((1, 3, 2)):
        jax.tree.map(
            lambda x, y, b=b, n=room: np.testing.assert_array_equal(x[b, :, :n], y[b, :, :n]),
            some,
            all_three,
        )
        assert not some.length[b, :, room:].any()
    assert all_three.length[2, :, 2].any()


# What is set aside.


def test_logits_that_are_not_finite_set_only_their_problem_aside():
    steps = host(draw(follow({A: B, B: NEWLINE, C: D, D: None, E: None}), prompts=(A, C, E)))
    assert steps.is_ok[:, :, 0].tolist() == [[True] * FEW, [False] * FEW, [False] * FEW]
    assert steps.tokens[0, 0, 0].tolist() == [B, NEWLINE, 0, 0, 0]
    assert steps.length[1:, 0, 0].tolist() == [1, 0]  # what was drawn before the fault stays
    assert not steps.is_finished[1:].any() and not steps.is_cut[1:].any()


def test_a_fault_in_one_step_sets_the_whole_lane_aside():
    steps = host(draw(follow({A: NEWLINE, NEWLINE: D, D: None}), max_steps=3))
    assert steps.length[0, 0].tolist() == [1, 1, 0] and not steps.is_ok[0, 0].any()


def test_a_network_of_nan_sets_every_problem_aside(prefix):
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), PARAMS)
    steps = host(
        sample_network(
            params, prefix, keys_of(range(8)), np.ones(8, int), 0.0, num_lanes=2, max_steps=1
        )
    )
    assert not steps.is_ok.any() and not steps.length.any()


def test_dead_problems_get_no_tokens_and_their_neighbours_do_not_notice():
    live = np.array([True, False, True])
    steps, all_live = host(draw(EVEN, room=3 * live, max_steps=3)), host(draw(EVEN, max_steps=3))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[live], y[live]), steps, all_live)
    assert not steps.length[1].any() and not steps.tokens[1].any()
    assert not steps.is_finished[1].any() and not steps.is_cut[1].any()
    assert steps.is_ok[1].all(), "a problem that asks for nothing has no fault"
