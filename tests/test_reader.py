"""The reader: with caches as without, whatever the chunk, and what a lane owes its neighbours.

Real transformers show that caches change nothing. Where a truth is about draws and endings alone,
the network is a `Bigram`: the table of logits that is its parameters can be written so that every
token is known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import MODEL, VOCAB, Bigram, random_like, random_params, read_whole
from toy_worlds import Prefix

from jaxtrain.boundaries import TraceConfig, make_tables
from jaxtrain.nn.reader import make_reader
from jaxtrain.structs import LaneShape, Order, Prompts

END, NEWLINE, SIZE = 1, 2, 5  # SIZE: tokens of a step, at most
DEEPEST = 4  # steps of a trace; no order here goes as deep
PARAMS = random_params()
HEAD = random_like({"weight": jnp.zeros(16), "bias": jnp.zeros(())}, seed=5)
CHUNKS = (None, 2)  # nothing cached; a step in parts
read_jitted = jax.jit(partial(read_whole, MODEL))
TEXT = (b"", b"", b".\n", b"a", b"b", b"##", b"#d", b" e", b"f", b"g", b"h")  # of each token


@pytest.fixture(params=CHUNKS, ids=["recompute", "parts"])
def chunk(request):
    return request.param


@dataclass(frozen=True)
class Steps:
    """What lanes wrote, on the host."""

    tokens: np.ndarray  # [B J K S]
    length: np.ndarray  # [B J K]
    score: np.ndarray  # [B J K]
    is_finished: np.ndarray  # [B J K]
    is_cut: np.ndarray  # [B J K]
    is_ok: np.ndarray  # [B J]
    policy_tokens: np.ndarray  # [B]
    lane_tokens: np.ndarray  # [B]


@cache
def compiled(model, chunk, num_lanes, max_steps, answer="end", step_tokens=None, text=TEXT):
    """Compile a reader's way from prompts to the steps of one order, until no lane is live."""
    trace = TraceConfig(DEEPEST, SIZE, step_tokens=step_tokens, answer=answer)
    reader = make_reader((model, model), make_tables(text, [END], "\n", answer), trace, chunk)

    def write(params, prefix, keys, room, temperature):
        num_trees, size = prefix.tokens.shape
        rows = jnp.arange(num_lanes * max_steps).reshape(num_lanes, max_steps)
        shape = LaneShape(num_trees, rows.size, 1, num_lanes, max_steps, 0)
        memory = reader.open(params, shape, size)
        problems = Prompts(prefix.tokens, prefix.length, jnp.arange(num_trees))
        memory, first = reader.renew(params, memory, jnp.arange(num_trees), problems)

        def by_lane(x):
            return jnp.broadcast_to(x, (num_trees, 1, num_lanes, *x.shape[3:]))

        order = Order(
            path=jnp.full((num_trees, 1, DEEPEST - max_steps), -1),
            key=keys[:, None],
            number=by_lane(jnp.arange(num_lanes)[None, None]),
            row=by_lane(rows[None, None]),
            room=by_lane(room[:, None, None]),
            sibling=by_lane(jnp.zeros((1, 1, 1, 0), jnp.int32)),
            is_new=by_lane(jnp.ones((1, 1, 1), bool)),
        )

        # The others go on until the last is done.
        def go_on(carry):
            memory, written, total = carry
            later = order._replace(is_new=~order.is_new)
            memory, written, cost = reader.write(params, memory, later, temperature)
            return memory, written, jax.tree.map(jnp.add, total, cost)

        memory, written, cost = reader.write(params, memory, order, temperature)
        carry = memory, written, jax.tree.map(jnp.add, first, cost)
        is_live = lambda carry: jnp.any(carry[1].is_live)  # noqa: E731
        memory, written, cost = jax.lax.while_loop(is_live, go_on, carry)
        return reader.text(memory)[:, rows], written, cost

    return jax.jit(write)


def host(out) -> Steps:
    """Take what lanes wrote, without the axis of prefixes."""
    tokens, written, cost = jax.tree.map(np.asarray, out)
    written = jax.tree.map(lambda x: x[:, 0], written)
    return Steps(
        tokens=tokens,
        length=written.length,
        score=written.score,
        is_finished=written.is_finished,
        is_cut=written.is_ended & ~written.is_finished,
        is_ok=written.is_ok,
        policy_tokens=cost.policy_tokens,
        lane_tokens=cost.lane_tokens,
    )


def keys_of(problem_ids):
    return np.array([(7, i) for i in problem_ids], np.uint32)


def assert_equal(one: Steps, other: Steps, rows=slice(None), there=None) -> None:
    """Compare what lanes of problems `rows` wrote with those of problems `there` in another."""
    for name in ("tokens", "length", "is_finished", "is_cut", "is_ok"):
        x, y = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(x[rows], y[rows if there is None else there], err_msg=name)


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


BOTH = PARAMS, {"backbone": random_params(seed=6), "head": HEAD}
network = partial(compiled, MODEL, num_lanes=2)


@pytest.mark.parametrize(("chunk", "max_steps"), [(2, 1), *((chunk, 3) for chunk in CHUNKS)])
def test_greedy_decoding_with_a_cache_equals_reading_everything_again(prefix, chunk, max_steps):
    room, write = np.full(8, max_steps), network(chunk=chunk, max_steps=max_steps)
    steps = host(write(BOTH, prefix, keys_of(range(8)), room, np.float32(0)))
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
    # Every token is read once: prompts too, which the lanes of a problem share.
    assert steps.policy_tokens.tolist() == (prefix.length + steps.length.sum((1, 2))).tolist()


def test_scores_with_a_shared_prefix_equal_reading_prefix_and_steps_in_one_pass(prefix, chunk):
    room = np.array([3, 3, 2, 1, 3, 3, 2, 1])
    write = network(chunk=chunk, max_steps=3)
    drawn, greedy = (
        host(write(BOTH, prefix, keys_of(range(8)), room, np.float32(t))) for t in (1, 0)
    )
    for steps in (drawn, greedy):
        for b, lane, step in np.argwhere(steps.length > 0).tolist():
            text = prefix.tokens[b, : prefix.length[b]].tolist()
            for k in range(step + 1):
                text += steps.tokens[b, lane, k, : steps.length[b, lane, k]].tolist()
            row = np.zeros((1, 6 + 3 * SIZE), np.int32)
            row[0, : len(text)] = text
            read = read_jitted(BOTH[1]["backbone"], row, np.array([len(text)]))
            last = np.asarray(read)[0, len(text) - 1]
            expected = float(last @ np.asarray(HEAD["weight"]) + HEAD["bias"])
            assert steps.score[b, lane, step] == pytest.approx(expected, rel=1e-5, abs=1e-5), (
                f"problem {b}, lane {lane}, step {step}"
            )
        assert not steps.score[steps.length == 0].any()
    assert (greedy.length[:, :, 1] > 0).any(), "some must write a second step"


# Endings and draws, of three problems whose prompts are one token each.

A, B, C, D, E = range(3, 8)
BIGRAM = Bigram()
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
    chunk=None,
    **settings,
) -> Steps:
    prefix = Prefix(np.array(prompts, np.int32)[:, None], np.ones(3, np.int32))
    room, temperature = np.minimum(room, max_steps), np.float32(temperature)
    prm = {"backbone": EVEN, "head": {"weight": EVEN[0], "bias": EVEN[0, 0]}}
    write = compiled(BIGRAM, chunk, lanes, max_steps, **settings)
    return host(write((table, prm), prefix, keys_of(ids), room, temperature))


def test_a_step_ends_at_a_newline_or_an_end_token_or_the_limit(chunk):
    table = follow({A: B, B: NEWLINE, C: END, D: D})
    steps = draw(table, prompts=(A, C, D), chunk=chunk)
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
def test_the_last_token_of_the_room_decides(last, is_finished, is_cut, chunk):
    steps = draw(follow({A: B, B: C, C: D, D: E, E: last}), chunk=chunk)
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
def test_a_trace_ends_with_its_last_step(after_newline, lengths, finished, cut, chunk):
    table = follow({A: NEWLINE, D: D, NEWLINE: after_newline})
    steps = draw(table, max_steps=3, chunk=chunk)
    assert steps.length[0, 0].tolist() == lengths
    assert (steps.is_finished[0, 0].tolist(), steps.is_cut[0, 0].tolist()) == (finished, cut)
    assert not steps.tokens[0, 0][np.arange(SIZE) >= np.array(lengths)[:, None]].any()


def test_an_answer_across_tokens_finishes_the_trace_with_its_line(chunk):
    """C and D together hold the marker ####; without it, the same line is a step like any other."""
    arrows = follow({A: C, C: D, D: E, E: NEWLINE, B: E})
    steps = draw(arrows, answer="hash", chunk=chunk)
    assert steps.length[:, 0, 0].tolist() == [4, 2, 3]
    # "###d e" and less: one mark short
    assert steps.is_finished[:, 0, 0].tolist() == [False, False, False]
    arrows = follow({A: C, C: 9, 9: D, D: E, E: NEWLINE, B: C})
    steps = draw(arrows, answer="hash", text=(*TEXT[:9], b"#", *TEXT[10:]), chunk=chunk)
    assert steps.tokens[0, 0, 0].tolist() == [C, 9, D, E, NEWLINE]
    assert steps.is_finished[:, 0, 0].tolist() == [True, True, False]
    assert not steps.is_cut.any()


def test_a_long_step_ends_without_its_text_but_never_inside_an_answer(chunk):
    table = follow({A: B, B: A, C: C})
    steps = draw(table, max_steps=3, answer="hash", step_tokens=2, chunk=chunk)
    assert steps.length[:2, 0].tolist() == [[2, 2, 2]] * 2  # a b, a b, a b
    # ##########: an answer without end
    assert steps.length[2, 0].tolist() == [SIZE, 0, 0] and steps.is_cut[2, 0, 0]


def test_every_lane_is_held_until_the_longest_has_ended(chunk):
    table = follow({A: NEWLINE, B: C, C: NEWLINE})
    assert (draw(table, prompts=(A, A, B), chunk=chunk).lane_tokens == 2 * FEW).all()
    assert (draw(table, prompts=(A, A, A), chunk=chunk).lane_tokens == FEW).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_softmax(temperature):
    table = np.random.default_rng(6).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    steps = draw(table, temperature=temperature, lanes=MANY, chunk=2)
    for b, token in enumerate((A, B, C)):
        share = np.exp(table[token] / temperature) / np.exp(table[token] / temperature).sum()
        count = np.bincount(steps.tokens[b, :, 0, 0], minlength=VOCAB)
        deviation = (count - MANY * share) / np.sqrt(MANY * share * (1 - share))
        assert np.abs(deviation).max() < 4, f"problem {b}: {deviation.round(1)} standard deviations"


def test_temperature_zero_takes_the_most_likely(chunk):
    table = np.random.default_rng(7).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    steps = draw(table, temperature=0.0, chunk=chunk)
    np.testing.assert_array_equal(
        steps.tokens[:, :, 0, 0], np.repeat(table[[A, B, C]].argmax(axis=1)[:, None], FEW, 1)
    )


def test_tokens_of_a_lane_are_independent():
    """All pairs of two equally likely tokens are equally likely."""
    table = np.where(np.isin(np.arange(VOCAB), (A, B)), EVEN, -1e9)
    tokens = draw(table, lanes=MANY, chunk=2).tokens[0, :, 0]
    for first in range(SIZE - 1):  # within a chunk and across its end
        pairs = np.bincount((tokens[:, first : first + 2] - A) @ [2, 1], minlength=4)
        assert np.abs(pairs - MANY / 4).max() < 4 * np.sqrt(MANY * 3 / 16), pairs


def test_lanes_and_problems_draw_apart(chunk):
    """The same prompt twice: every lane of every problem is a sequence of its own."""
    # always five tokens, of eight: 32768 sequences
    table = np.where(np.arange(VOCAB) < A, -1e9, EVEN)
    steps = draw(table, prompts=(A, A, A), chunk=chunk)
    assert len(np.unique(steps.tokens.reshape(-1, SIZE), axis=0)) == 3 * FEW


def test_a_problem_does_not_depend_on_its_neighbours(chunk):
    here = draw(EVEN, prompts=(A, B, C), ids=(0, 1, 2), chunk=chunk)
    there = draw(EVEN, prompts=(C, D, A), ids=(2, 9, 0), chunk=chunk)
    assert_equal(here, there, [0, 2], [2, 0])


def test_draws_depend_neither_on_the_number_of_lanes_nor_on_the_chunk():
    few, many = draw(EVEN), draw(EVEN, lanes=MANY, chunk=2)
    for name in ("tokens", "length", "is_finished", "is_cut", "is_ok"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:, :FEW])
    traces = [draw(EVEN, max_steps=3, chunk=chunk) for chunk in CHUNKS]
    for trace in traces[1:]:
        assert_equal(traces[0], trace)


def test_a_trace_begins_with_the_step_that_would_be_drawn_alone(chunk):
    one, three = draw(EVEN, chunk=chunk), draw(EVEN, max_steps=3, chunk=chunk)
    for name in ("tokens", "length", "is_finished", "is_cut"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name)[:, :, :1])
    assert three.length[:, :, 1].any()


def test_a_problem_takes_as_many_steps_as_it_has_room_for(chunk):
    """And no other problem notices."""
    some = draw(EVEN, room=(1, 3, 2), max_steps=3, chunk=chunk)
    all_three = draw(EVEN, max_steps=3, chunk=chunk)
    for b, room in enumerate((1, 3, 2)):
        for name in ("tokens", "length", "is_finished", "is_cut"):
            one, other = getattr(some, name)[b, :, :room], getattr(all_three, name)[b, :, :room]
            np.testing.assert_array_equal(one, other)
        assert not some.length[b, :, room:].any()
    assert all_three.length[2, :, 2].any()


# What is set aside.


def test_logits_that_are_not_finite_set_only_their_problem_aside(chunk):
    table = follow({A: B, B: NEWLINE, C: D, D: None, E: None})
    steps = draw(table, prompts=(A, C, E), chunk=chunk)
    assert steps.is_ok.tolist() == [[True] * FEW, [False] * FEW, [False] * FEW]
    assert steps.tokens[0, 0, 0].tolist() == [B, NEWLINE, 0, 0, 0]
    assert steps.length[1:, 0, 0].tolist() == [1, 0]  # what was drawn before the fault stays
    assert not steps.is_finished[1:].any() and not steps.is_cut[1:].any()


def test_a_fault_in_one_step_sets_the_whole_lane_aside(chunk):
    table = follow({A: NEWLINE, NEWLINE: D, D: None})
    steps = draw(table, max_steps=3, chunk=chunk)
    assert steps.length[0, 0].tolist() == [1, 1, 0] and not steps.is_ok[0, 0].any()


@pytest.mark.parametrize("at", [0, 1], ids=["policy", "PRM"])
def test_a_network_of_nan_sets_every_problem_aside(prefix, at, chunk):
    networks = list(BOTH)
    networks[at] = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), networks[at])
    write = network(chunk=chunk, max_steps=3)
    steps = host(write(tuple(networks), prefix, keys_of(range(8)), np.full(8, 3), np.float32(1)))
    assert not steps.is_ok.any() and np.isfinite(steps.score).all()
    assert at or not steps.length.any()


def test_dead_problems_get_no_tokens_and_their_neighbours_do_not_notice(chunk):
    live = np.array([True, False, True])
    steps = draw(EVEN, room=3 * live, max_steps=3, chunk=chunk)
    assert_equal(steps, draw(EVEN, max_steps=3, chunk=chunk), live)
    assert not steps.length[1].any() and not steps.tokens[1].any()
    assert not steps.is_finished[1].any() and not steps.is_cut[1].any()
    assert steps.is_ok[1].all(), "a problem that asks for nothing has no fault"
