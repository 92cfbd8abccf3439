"""Drawing steps from the policy.

One decoder serves everything: it writes up to `max_steps` steps behind a prefix. A search draws one
step for each of its candidates and several for a rollout, the plain sampler a whole trace for each
of its lanes. The prefix is computed once for all lanes behind it. A lane's draws depend on its
prefix's key, its number and its tokens alone, so they do not change with the company it keeps in a
batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxtrain import boundaries
from jaxtrain.boundaries import COMPLETE, FINISHED, NO_ANSWER, Tables, TraceConfig
from jaxtrain.keys import fold_in
from jaxtrain.nn.heads import Network
from jaxtrain.nn.transformer import Segment
from jaxtrain.structs import Array, Params, Prefix, Steps

# (params, prefix [b], keys, room, temperature, num_lanes, max_steps) -> (Steps, token slots held)
SampleStepsFn = Callable[..., tuple[Steps, Array]]
LANES = 0x1A9E5  # sets the keys of lanes apart from those of nodes


class _Lanes(NamedTuple):
    """Decoding state of `b` lanes, K steps of at most S tokens each."""

    keys: Array  # [b 2] uint32
    room: Array  # [b] int32, steps that may be written
    num_tokens: Array  # [] int32, tokens sampled so far in every live lane
    token: Array  # [b] int32, the newest
    is_live: Array  # [b] bool
    is_ok: Array  # [b] bool
    step: Array  # [b] int32, the step being written
    step_state: Array  # [b] int32, of the automata in `boundaries`
    answer_state: Array  # [b] int32
    tokens: Array  # [b K S] int32
    length: Array  # [b K] int32
    is_finished: Array  # [b K] bool
    is_cut: Array  # [b K] bool
    own: Segment  # of the K*S tokens written at most


def _open(segment: Segment, keys: Array, room: Array, max_steps: int, size: int) -> _Lanes:
    """Lanes that have written nothing behind `segment`; those without room [b] are not live."""
    b, most, none = len(room), max_steps * size, jnp.zeros_like(room)
    no = jnp.zeros((b, max_steps), bool)
    # [rows kv T h], behind a layer axis where layers are scanned.
    empty = jax.tree.map(
        lambda k: jnp.zeros((*k.shape[:-4], b, k.shape[-3], most, k.shape[-1]), k.dtype), segment.k
    )
    return _Lanes(
        keys=keys,
        room=room,
        num_tokens=jnp.zeros((), jnp.int32),
        token=none,
        is_live=room > 0,
        is_ok=jnp.ones(b, bool),
        step=none,
        step_state=none,
        answer_state=none,
        tokens=jnp.zeros((b, max_steps, size), jnp.int32),
        length=jnp.zeros((b, max_steps), jnp.int32),
        is_finished=no,
        is_cut=no,
        own=Segment(empty, empty, jnp.full((b, most), -1)),
    )


def read(model: Network, params: Params, prefix: Prefix) -> tuple[Segment, Array]:
    """Read prefixes [B L]: (their segment, hidden state at each one's last token [B width])."""
    positions = jnp.broadcast_to(jnp.arange(prefix.tokens.shape[1]), prefix.tokens.shape)
    mask = positions < prefix.length[:, None]
    hidden, segment = model.apply({"params": params}, prefix.tokens, positions, mask)
    last = jnp.maximum(prefix.length - 1, 0)[:, None, None]
    return segment, jnp.take_along_axis(hidden, last, axis=1)[:, 0]


def draw(logits: Array, keys: Array, temperature: Array) -> Array:
    """Draw a token a lane, or take the likeliest: logits [b V] float32, keys uint32 [b 2]."""
    warm = logits / jnp.maximum(temperature, 1e-6)
    drawn = jax.vmap(jax.random.categorical)(jax.random.wrap_key_data(keys), warm)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def record(
    trace: TraceConfig, tables: Tables, lanes: _Lanes, logits: Array, temperature: Array
) -> _Lanes:
    """Draw the next token of every lane from its logits [b V], and end what it ends."""
    rows, size = jnp.arange(lanes.token.shape[0]), trace.max_step_tokens

    # Draw; a lane whose logits are not finite is set aside.
    is_ok = lanes.is_ok & (jnp.all(jnp.isfinite(logits), axis=-1) | ~lanes.is_live)
    is_live = lanes.is_live & is_ok
    logits = jnp.where(is_ok[:, None], logits, 0.0)
    keys = fold_in(lanes.keys, jnp.broadcast_to(lanes.num_tokens, rows.shape))
    token = jnp.where(is_live, draw(logits, keys, temperature), 0)
    at = lanes.length[rows, lanes.step]

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
    return lanes._replace(
        num_tokens=lanes.num_tokens + 1,
        token=token,
        is_live=is_live & ~is_finished & ~is_cut & ~(is_over & is_last),
        is_ok=is_ok,
        step=jnp.where(is_over & ~is_last, lanes.step + 1, lanes.step),
        step_state=jnp.where(is_over, boundaries.START, step_state),
        answer_state=answer_state,
        tokens=lanes.tokens.at[rows, lanes.step, jnp.minimum(at, size - 1)].add(token),
        length=lanes.length.at[rows, lanes.step].add(is_live),
        is_finished=lanes.is_finished.at[rows, lanes.step].max(is_finished),
        is_cut=lanes.is_cut.at[rows, lanes.step].max(is_cut),
    )


def make_sample_steps(model: Network, tables: Tables, trace: TraceConfig) -> SampleStepsFn:
    """Make the function that draws steps.

    A step ends where `tables` say so, or at `trace.step_tokens` tokens, but never inside an answer.
    At `trace.max_step_tokens` it is cut.

    Returns `sample_steps(params, prefix, keys [B 2] uint32, room [B] int32, temperature [],
    num_lanes, max_steps)` -> (Steps with fields [B num_lanes max_steps ...], token slots held open
    a prefix [] int32). `room` says how many of the `max_steps` steps a prefix may take, 0: none,
    and never more than there are.
    """

    def sample_steps(
        params: Params, prefix: Prefix, keys, room, temperature, num_lanes: int, max_steps: int
    ):
        num_prefixes, most = prefix.length.shape[0], max_steps * trace.max_step_tokens
        chex.assert_shape([keys, room], [(num_prefixes, 2), (num_prefixes,)])
        b, network = num_prefixes * num_lanes, partial(model.apply, {"params": params})

        # The prefix is read once for all lanes behind it.
        segment, hidden = read(model, params, prefix)
        logits = jnp.repeat(network(hidden, method="logits"), num_lanes, axis=0)
        # Folded twice: nodes fold an action into the same key, and a lane must not draw with the
        # key of a child node.
        lane_keys = fold_in(fold_in(keys, LANES)[:, None], jnp.arange(num_lanes)).reshape(b, 2)
        room, start = jnp.repeat(room, num_lanes), jnp.repeat(prefix.length, num_lanes)

        def next_token(lanes: _Lanes) -> _Lanes:
            at, mask = lanes.num_tokens - 1, jnp.ones((b, 1), bool)
            newest, positions = lanes.token[:, None], (start + at)[:, None]
            hidden, own = network(newest, positions, mask, (segment,), lanes.own, at)
            logits = network(hidden[:, 0], method="logits")
            return record(trace, tables, lanes._replace(own=own), logits, temperature)

        # Token by token, until no lane writes any more.
        lanes = _open(segment, lane_keys, room, max_steps, trace.max_step_tokens)
        lanes = record(trace, tables, lanes, logits, temperature)
        lanes = jax.lax.while_loop(
            lambda s: (s.num_tokens < most) & jnp.any(s.is_live), next_token, lanes
        )

        # A fault in one step sets its whole lane aside.
        is_ok = jnp.repeat(lanes.is_ok[:, None], max_steps, axis=-1)
        steps = Steps(lanes.tokens, lanes.length, lanes.is_finished, lanes.is_cut, is_ok)
        steps = jax.tree.map(lambda x: x.reshape(num_prefixes, num_lanes, *x.shape[1:]), steps)
        return steps, lanes.num_tokens * num_lanes

    return sample_steps
