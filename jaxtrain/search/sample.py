"""Independent traces behind one prompt, in the rows of a Tree: the generator of ReST-EM, and of
greedy decoding (one trace, temperature 0), self-consistency, best-of-k and weighted vote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxtrain.boundaries import TraceConfig
from jaxtrain.structs import Array, Kind, Prefix, Prompts, Tree

if TYPE_CHECKING:
    from jaxtrain.search.config import SearchConfig


def grow_samples(
    config: SearchConfig,
    trace: TraceConfig,
    sample: Callable,
    score: Callable,
    prompts: Prompts,
    keys: Array,
    temperature: Array,
) -> Tree:
    """Grow stars of K traces: R = D * K rows, depth-major (row = depth * K + trace).

    See `search.make_grow`.
    """
    num_problems, k, max_steps = prompts.length.shape[0], config.num_samples, trace.max_steps
    is_real = prompts.problem_id >= 0
    prefix = Prefix(prompts.tokens, prompts.length)
    room = jnp.where(is_real, max_steps, 0)
    steps, slots = sample(prefix, keys, room, temperature, num_lanes=k, max_steps=max_steps)
    scores = score(prefix, steps).astype(jnp.float32)

    def rows(x: Array) -> Array:  # [B K D ...] -> [B D*K ...]
        x = jnp.swapaxes(x, 1, 2)
        return x.reshape(num_problems, max_steps * k, *x.shape[3:])

    length = rows(steps.length)
    is_row = length > 0
    is_ok = jnp.all(rows(steps.is_ok & (jnp.isfinite(scores) | (steps.length == 0))), axis=1)
    score_rows = jnp.where(is_row & jnp.isfinite(rows(scores)), rows(scores), 0.0)
    is_last = jnp.arange(max_steps * k) >= (max_steps - 1) * k
    is_finished = rows(steps.is_finished)
    parent = jnp.broadcast_to(jnp.arange(max_steps * k) - k, length.shape)
    num_tokens = jnp.where(is_real, prompts.length + jnp.sum(length, axis=1), 0)
    best = jnp.argmax(jnp.where(is_finished, score_rows, -jnp.inf), axis=1)
    return Tree(
        problem_id=prompts.problem_id,
        parent=jnp.where(is_row, jnp.maximum(parent, -1), -1),
        kind=jnp.where(is_row, int(Kind.CANDIDATE), int(Kind.EMPTY)),
        tokens=rows(steps.tokens),
        length=length,
        score=score_rows,
        visits=is_row.astype(jnp.int32),
        value=jnp.clip(score_rows, 0.0, 1.0),
        is_ended=is_finished | rows(steps.is_cut) | (is_row & is_last),
        is_finished=is_finished,
        chosen=jnp.where(jnp.any(is_finished, axis=1), best, -1).astype(jnp.int32),
        is_ok=is_ok & is_real,
        num_simulations=jnp.where(is_real, k, 0).astype(jnp.int32),
        num_wasted=jnp.zeros(num_problems, jnp.int32),
        policy_tokens=num_tokens,
        prm_tokens=num_tokens,
        lane_tokens=jnp.where(is_real, slots, 0).astype(jnp.int32),
    )
