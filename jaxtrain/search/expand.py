"""One expansion: sample candidate steps behind a prefix, score them, roll the best one out.

Shared by tree searches.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxtrain.keys import fold_in
from jaxtrain.structs import Array, Prefix, Steps

if TYPE_CHECKING:
    from jaxtrain.search.config import SearchConfig


@struct.dataclass
class Node:
    """What an expansion leaves behind: mctx's embedding, so every field has the leading axis B."""

    prefix: Prefix
    depth: Array  # [B] int32, steps in the prefix
    key: Array  # [B 2] uint32
    tokens: Array  # [B A S] int32, the candidates
    length: Array  # [B A] int32
    score: Array  # [B A] float32, raw
    is_finished: Array  # [B A] bool
    is_ended: Array  # [B A] bool
    is_valid: Array  # [B A] bool, sampled and not an earlier sibling's duplicate
    best: Array  # [B] int32, the candidate rolled out
    best_value: Array  # [B] float32, its value after the rollout is blended in (Eq. 34)
    rollout_tokens: Array  # [B m d S] int32
    rollout_length: Array  # [B m d] int32, 0: not drawn
    rollout_score: Array  # [B m d] float32
    rollout_is_finished: Array  # [B m d] bool
    rollout_is_ended: Array  # [B m d] bool
    rollout_best: Array  # [B m] int32
    is_live: Array  # [B] bool, False: nothing was expanded here
    is_ok: Array  # [B] bool
    policy_tokens: Array  # [B] int32
    prm_tokens: Array  # [B] int32
    lane_tokens: Array  # [B] int32


class Drawn(NamedTuple):
    """What the networks answer: up to K steps in each of some lanes, and what they cost."""

    steps: Steps  # fields [B lanes K ...]
    scores: Array  # [B lanes K] float32, raw; 0 where not finite
    is_ended: Array  # [B lanes K] bool
    is_ok: Array  # [B] bool
    num_tokens: Array  # [B] int32, that each network computed
    slots: Array  # [] int32, token slots held open a problem


def pick(x: Array, index: Array) -> Array:
    """Take x[b, index[b]]: x [B A ...], index [B] give [B ...]."""
    return jax.vmap(lambda row, i: row[i])(x, index)


def clip(score: Array) -> Array:
    """Turn a raw score into a value. Scores are ranked raw, so that clipping ties nothing."""
    return jnp.clip(score, 0.0, 1.0)


def append(prefix: Prefix, tokens: Array, length: Array) -> Prefix:
    """Write a step [B S] of `length` [B] behind each prefix; what is beyond L is dropped.

    A prefix that is expanded has D - 1 steps at most, so L = P + (D - 1) * S loses nothing that is
    read.
    """
    at = jnp.arange(prefix.tokens.shape[1]) - prefix.length[:, None]
    step = jnp.take_along_axis(tokens, jnp.clip(at, 0, tokens.shape[1] - 1), axis=1)
    is_new = (at >= 0) & (at < length[:, None])
    return Prefix(jnp.where(is_new, step, prefix.tokens), prefix.length + length)


def first_copies(tokens: Array, length: Array) -> Array:
    """Mark, among candidates [B A S], those that no earlier sibling equals. Returns [B A] bool."""
    same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1) & (
        length[:, :, None] == length[:, None]
    )
    return ~jnp.any(jnp.tril(same, k=-1), axis=-1)


def make_expand(
    config: SearchConfig, max_steps: int, sample: Callable, score: Callable
) -> Callable:
    """Make `expand(prefix, depth, key, is_live, temperature)` -> Node.

    Rows that are not live get no lanes.
    """
    c, trace_steps = config.mcts_star, max_steps
    width, alpha = c.num_rollout_candidates, c.rollout_blend
    round_steps = c.round_steps(max_steps)

    def ask(prefix: Prefix, key, room, temperature, num_lanes: int, max_steps: int):
        def networks():
            steps, slots = sample(
                prefix, key, room, temperature, num_lanes=num_lanes, max_steps=max_steps
            )
            return steps, score(prefix, steps), slots

        def nothing():
            steps, scores, slots = jax.tree.map(jnp.zeros_like, jax.eval_shape(networks))
            return steps.replace(is_ok=~steps.is_ok), scores, slots

        # Late in a search whole batches have nothing to expand or roll out.
        return jax.lax.cond(jnp.any(room > 0), networks, nothing)

    def draw(
        prefix: Prefix, depth, key, is_live, temperature, num_lanes: int, max_steps: int
    ) -> Drawn:
        room = jnp.where(is_live, jnp.clip(trace_steps - depth, 0, max_steps), 0)
        steps, scores, slots = ask(prefix, key, room, temperature, num_lanes, max_steps)
        scores, is_step = scores.astype(jnp.float32), steps.length > 0
        is_ok = jnp.all(steps.is_ok & (jnp.isfinite(scores) | ~is_step), axis=(1, 2))
        is_deepest = depth[:, None, None] + 1 + jnp.arange(max_steps) >= trace_steps
        is_ended = steps.is_finished | steps.is_cut | (is_step & is_deepest)
        num_tokens = jnp.where(is_live, prefix.length + jnp.sum(steps.length, axis=(1, 2)), 0)
        return Drawn(
            steps, jnp.where(jnp.isfinite(scores), scores, 0.0), is_ended, is_ok, num_tokens, slots
        )

    def expand(prefix: Prefix, depth, key, is_live, temperature) -> Node:
        drawn = draw(prefix, depth, key, is_live, temperature, config.num_candidates, 1)
        one: Steps = jax.tree.map(lambda x: x[:, :, 0], drawn.steps)
        scores, is_ended = drawn.scores[:, :, 0], drawn.is_ended[:, :, 0]
        is_valid = first_copies(one.tokens, one.length) & (one.length > 0)
        best = jnp.argmax(jnp.where(is_valid, scores, -jnp.inf), axis=1).astype(jnp.int32)
        own, is_done = clip(pick(scores, best)), pick(one.is_finished, best)
        top = jnp.where(is_done | (c.rollout_floor == "self"), own, 0.0)

        at = append(prefix, pick(one.tokens, best), pick(one.length, best))
        is_rolling, rounds = is_live & drawn.is_ok & ~pick(is_ended, best), []
        for r in range(c.num_rounds(max_steps)):
            # Children use fold_in(key, action); rounds take the numbers after the actions.
            round_key = fold_in(key, config.num_candidates + r)
            new = draw(at, depth + 1 + r, round_key, is_rolling, temperature, width, round_steps)
            is_step = new.steps.length > 0
            choice = jnp.argmax(jnp.where(is_step, new.scores, -jnp.inf)[:, :, 0], axis=1).astype(
                jnp.int32
            )
            # [B round_steps ...]
            chosen = jax.tree.map(lambda x, choice=choice: pick(x, choice), new.steps)
            seen = jnp.max(
                jnp.where(chosen.length > 0, clip(pick(new.scores, choice)), 0.0), axis=1
            )
            top = jnp.where(is_rolling, jnp.maximum(top, seen), top)
            rounds.append((new, choice))
            # a next round follows one step only
            at = append(at, chosen.tokens[:, 0], chosen.length[:, 0])
            is_rolling = is_rolling & new.is_ok & ~pick(new.is_ended, choice)[:, 0]

        rolled = join_rounds(rounds) if rounds else empty_rollout(one, width)
        every = [drawn, *(new for new, _ in rounds)]
        num_tokens = sum(x.num_tokens for x in every)
        return Node(
            prefix=prefix,
            depth=depth,
            key=key,
            tokens=one.tokens,
            length=one.length,
            score=scores,
            is_finished=one.is_finished,
            is_ended=is_ended,
            is_valid=is_valid,
            best=best,
            # alpha * own + (1 - alpha) * top, written so that equal values blend to themselves
            # exactly.
            best_value=top + alpha * (own - top) if c.num_rollout_steps else own,
            rollout_tokens=rolled[0],
            rollout_length=rolled[1],
            rollout_score=rolled[2],
            rollout_is_finished=rolled[3],
            rollout_is_ended=rolled[4],
            rollout_best=rolled[5],
            is_live=is_live,
            is_ok=functools.reduce(operator.and_, (x.is_ok for x in every)),
            policy_tokens=num_tokens,
            prm_tokens=num_tokens,
            lane_tokens=jnp.broadcast_to(sum(x.slots for x in every), is_live.shape),
        )

    return expand


def join_rounds(rounds: list[tuple[Drawn, Array]]) -> list[Array]:
    """Lay rounds (what was drawn, the lane chosen [B]) end to end: steps [B d K ...] become [B m d
    ...].
    """
    fields = [
        (x.steps.tokens, x.steps.length, x.scores, x.steps.is_finished, x.is_ended)
        for x, _ in rounds
    ]
    steps = [
        jnp.concatenate([jnp.swapaxes(x, 1, 2) for x in field], axis=1)
        for field in zip(*fields, strict=True)
    ]
    best = [jnp.repeat(choice[:, None], x.scores.shape[2], axis=1) for x, choice in rounds]
    return [*steps, jnp.concatenate(best, axis=1)]


def empty_rollout(steps: Steps, width: int) -> list[Array]:
    """Shape a rollout of no rounds, m = 0."""
    num_problems, _, size = steps.tokens.shape
    shape = (num_problems, 0, width)
    ints, bools = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    floats, best = jnp.zeros(shape, jnp.float32), jnp.zeros((num_problems, 0), jnp.int32)
    return [jnp.zeros((*shape, size), jnp.int32), ints, floats, bools, bools, best]
