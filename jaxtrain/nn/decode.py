"""Writing steps with the policy, token by token.

A lane writes up to K steps behind its prefix, some tokens at a time (a *chunk*), and what it has
read lies in segments that somebody else keeps. What a lane draws depends on its key, its prefix and
its siblings alone, so it does not change with the company it keeps in a batch.

Siblings are steps behind the same prefix that must not be said again. The mass that they hold is
taken out of the law before every token, so a lane draws from what is left, without any token in
vain: sampling without replacement over whole steps, of the law of Gumbel top-k (Kool et al. 2019),
one after the other (Shi et al. 2020).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain import boundaries
from jaxtrain.boundaries import COMPLETE, FINISHED, NO_ANSWER, Tables, TraceConfig
from jaxtrain.keys import fold_in
from jaxtrain.nn.arithmetic import Sums, advance, constrain, no_sums
from jaxtrain.nn.heads import Network
from jaxtrain.nn.sampling import draw
from jaxtrain.nn.transformer import Segment, newest
from jaxtrain.structs import Array, Params, choose


class Lanes(NamedTuple):
    """Decoding state of `b` lanes."""

    key: Array  # [b 2] uint32
    room: Array  # [b] int32, steps that may be written
    start: Array  # [b] int32, tokens before the first
    hidden: Array  # [b width], after the newest token
    num_tokens: Array  # [b] int32, written so far
    is_live: Array  # [b] bool
    is_ok: Array  # [b] bool
    step: Array  # [b] int32, the step being written
    step_state: Array  # [b] int32, of the automata in `boundaries`
    answer_state: Array  # [b] int32
    length: Array  # [b K] int32
    score: Array  # [b K] float32
    log_prob: Array  # [b K] float32
    is_finished: Array  # [b K] bool
    is_cut: Array  # [b K] bool
    is_same: Array  # [b A] bool, siblings that say what the step says so far
    sums: Sums | None  # what the calculator reads; None: there is none


class Siblings(NamedTuple):
    """Steps that the lanes must not say again."""

    tokens: Array  # [b A S] int32
    length: Array  # [b A] int32
    rest: Array  # [b A S] float32, log-probability of what follows each token


class Token(NamedTuple):
    """A token of every lane, and what it did."""

    token: Array  # [b] int32
    is_written: Array  # [b] bool
    step: Array  # [b] int32, of which step it is
    at: Array  # [b] int32, its place in the step
    log_prob: Array  # [b] float32
    is_last: Array  # [b] bool, it ends the step
    hidden: Array  # [b width], after it


def idle_lanes(
    num_lanes: int, num_steps: int, num_siblings: int, hidden: Array, calculator: bool
) -> Lanes:
    """Make lanes that write nothing; hidden: one of their hidden states, for its type."""
    b, none, no = num_lanes, jnp.zeros(num_lanes, jnp.int32), jnp.zeros(num_lanes, bool)
    ints, nos = jnp.zeros((b, num_steps), jnp.int32), jnp.zeros((b, num_steps), bool)
    return Lanes(
        key=jnp.zeros((b, 2), jnp.uint32),
        room=none,
        start=none,
        hidden=jnp.zeros((b, *hidden.shape), hidden.dtype),
        num_tokens=none,
        is_live=no,
        is_ok=~no,
        step=none,
        step_state=none,
        answer_state=none,
        length=ints,
        score=ints.astype(jnp.float32),
        log_prob=ints.astype(jnp.float32),
        is_finished=nos,
        is_cut=nos,
        is_same=jnp.zeros((b, num_siblings), bool),
        sums=no_sums(b) if calculator else None,
    )


def record(
    trace: TraceConfig,
    tables: Tables,
    lanes: Lanes,
    siblings: Siblings,
    logits: Array,
    temperature: Array,
) -> tuple[Lanes, Token]:
    """Draw the next token of every lane from its logits [b V], and end what it ends."""
    rows, size = jnp.arange(len(lanes.step)), trace.max_step_tokens
    at = lanes.length[rows, lanes.step]

    # Draw; a lane whose logits are not finite is set aside.
    is_ok = lanes.is_ok & (jnp.all(jnp.isfinite(logits), axis=-1) | ~lanes.is_live)
    is_live = lanes.is_live & is_ok
    logits = jnp.where(is_ok[:, None], logits, 0.0)
    sums, calculator = lanes.sums, tables.calculator
    if sums is not None and calculator is not None:
        logits = constrain(calculator, sums, logits, temperature)
    keys = fold_in(lanes.key, lanes.num_tokens)
    exclude = excluded(lanes, siblings, at) if siblings.length.shape[1] else None
    drawn, log_prob, is_left = draw(logits, keys, temperature, exclude)
    # Siblings are all that could be said: there is no such step.
    is_short, is_live = is_live & ~is_left, is_live & is_left
    token = jnp.where(is_live, drawn, 0)

    # Does the token finish the answer, end the step, or cut it? An answer is never cut in two.
    step_state = jnp.asarray(tables.step)[lanes.step_state, token].astype(jnp.int32)
    answer_state = jnp.asarray(tables.answer)[lanes.answer_state, token].astype(jnp.int32)
    is_full = at + 1 >= size
    is_finished = is_live & ((answer_state == FINISHED) | (is_full & (answer_state == COMPLETE)))
    is_end = step_state == boundaries.OVER
    if trace.step_tokens is not None:
        is_end = is_end | (at + 1 >= trace.step_tokens)
    # A step that is over makes room for the next one; one that is full is cut.
    is_over = is_live & ~is_finished & (answer_state == NO_ANSWER) & is_end
    is_cut = is_live & ~is_finished & ~is_over & is_full
    is_last = lanes.step + 1 >= lanes.room
    log_prob = jnp.where(is_live, log_prob, 0.0)
    same = jnp.take_along_axis(siblings.tokens, at[:, None, None], axis=2)[..., 0]

    length = lanes.length.at[rows, lanes.step].set(jnp.where(is_short, 0, at + is_live))

    # A sum lies in one step.
    if sums is not None and calculator is not None:
        sums = choose(is_live, advance(calculator, sums, token), sums)
        sums = choose(is_over, no_sums(len(token)), sums)
    new = lanes._replace(
        num_tokens=lanes.num_tokens + is_live,
        is_live=is_live & ~is_finished & ~is_cut & ~(is_over & is_last),
        is_ok=is_ok,
        step=jnp.where(is_over & ~is_last, lanes.step + 1, lanes.step),
        step_state=jnp.where(is_over, boundaries.START, step_state),
        answer_state=answer_state,
        length=length,
        log_prob=lanes.log_prob.at[rows, lanes.step].add(log_prob),
        is_finished=lanes.is_finished.at[rows, lanes.step].max(is_finished),
        is_cut=lanes.is_cut.at[rows, lanes.step].max(is_cut),
        is_same=lanes.is_same & (same == token[:, None]) & (siblings.length > at[:, None] + 1),
        sums=sums,
    )
    ends = is_finished | is_over | is_cut
    return new, Token(token, is_live, lanes.step, at, log_prob, ends, lanes.hidden)


def excluded(lanes: Lanes, siblings: Siblings, at: Array) -> tuple[Array, Array]:
    """Return the next tokens of the siblings [b A], each named once and -1 for none, and how much
    of their mass is left [b A], a logarithm.
    """
    place = at[:, None, None]
    token = jnp.take_along_axis(siblings.tokens, place, axis=2)[..., 0]
    rest = jnp.take_along_axis(siblings.rest, place, axis=2)[..., 0]
    token = jnp.where(lanes.is_same, token, -1)

    # Siblings that go on with one token share its mass.
    is_equal = (token[:, :, None] == token[:, None]) & (token[:, None] >= 0)
    taken = jnp.sum(jnp.where(is_equal, jnp.exp(rest)[:, None], 0.0), axis=-1)
    is_first = ~jnp.any(jnp.tril(is_equal, k=-1), axis=-1)
    # Rounding must not leave a trace of a mass that is all taken.
    log_keep = jnp.where(taken < 1 - 1e-5, jnp.log1p(-jnp.minimum(taken, 1 - 1e-6)), -jnp.inf)
    return jnp.where(is_first, token, -1), log_keep


def write_chunk(
    model: Network,
    trace: TraceConfig,
    tables: Tables,
    params: Params,
    lanes: Lanes,
    segments: tuple[Segment, ...],
    own: Segment,
    siblings: Siblings,
    temperature: Array,
    size: int,
) -> tuple[Lanes, Token, Segment, Array]:
    """Write up to `size` tokens in every live lane, behind what `segments` hold and into the last
    `size` places of `own`, which holds what each lane sees alone.

    Returns (lanes, the tokens [size b], their segment of `size` places, token slots held a lane).
    """
    network = partial(model.apply, {"params": params})
    first = own.position.shape[1] - size

    def take_turn(carry):
        at, lanes, own, told = carry
        logits = network(lanes.hidden, method="logits")
        lanes, new = record(trace, tables, lanes, siblings, logits, temperature)

        # The token is read at once, the last of a step too: others may go on behind it.
        positions = (lanes.start + lanes.num_tokens - 1)[:, None]
        mask = new.is_written[:, None]
        hidden, own = network(new.token[:, None], positions, mask, segments, own, first + at)
        hidden = jnp.where(mask, hidden[:, 0], lanes.hidden)
        told = jax.tree.map(lambda x, y: x.at[at].set(y), told, new._replace(hidden=hidden))
        return at + 1, lanes._replace(hidden=hidden), own, told

    def one_token(lanes: Lanes) -> Token:
        logits = network(lanes.hidden, method="logits")
        return record(trace, tables, lanes, siblings, logits, temperature)[1]

    # Nothing is written at first. Token by token, until no lane writes any more.
    token = jax.eval_shape(one_token, lanes)
    told = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), token)
    at, lanes, own, told = jax.lax.while_loop(
        lambda carry: (carry[0] < size) & jnp.any(carry[1].is_live),
        take_turn,
        (jnp.int32(0), lanes, own, told),
    )
    return lanes, told, newest(own, size), at
