"""The loop of every search without a tree policy: a frontier of prefixes goes on, turn by turn.

In a turn, each of the W prefixes that are open gets A lanes of K steps. What a rule chooses among
those, and the prefixes of before that had ended, is the next frontier. Rows lie depth by depth:
row = depth * W * A + prefix * A + lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.keys import fold_in
from jaxtrain.search.rows import (
    Drawn,
    Rows,
    clip,
    empty_rows,
    extend,
    first_copies,
    make_draw,
    make_tree,
    pick,
    root_paths,
)
from jaxtrain.structs import Array, Cost, Kind, Memory, Params, Path, Prompts, Reader, Steps, Tree


class Front(NamedTuple):
    """Prefixes to choose from, n of each problem."""

    path: Path  # [B n]
    score: Array  # [B n] float32, raw, of the last step
    is_there: Array  # [B n] bool, False: nothing was drawn here, or it repeats another
    is_ended: Array  # [B n] bool


class FrontierRule(NamedTuple):
    """A method: how wide it goes, and what it goes on from."""

    width: int  # W: prefixes opened in a turn
    num_lanes: int  # A: continuations of each
    num_steps: int  # K: steps of a continuation, before the next choice
    is_distinct: bool  # whether a lane that repeats another is a duplicate, and not chosen
    choose: Callable[[Front], Array]  # which go on, of n: [B W] int32


class FrontierGrowth(NamedTuple):
    """What grows from turn to turn."""

    front: Front  # [B W]
    rows: Rows  # [B R]
    is_ok: Array  # [B] bool
    num_lanes: Array  # [B] int32, that were opened
    cost: Cost
    memory: Memory


def make_sample(num_samples: int, max_steps: int) -> FrontierRule:
    """Make the rule of independent traces: one prefix, opened once, for whole traces.

    The generator of ReST-EM, and of greedy decoding (one trace, temperature 0), self-consistency,
    best-of-k and weighted vote. Traces that repeat each other all count.
    """
    return FrontierRule(
        width=1,
        num_lanes=num_samples,
        num_steps=max_steps,
        is_distinct=False,
        choose=lambda front: jnp.zeros((len(front.score), 1), jnp.int32),  # never asked again
    )


def grow_frontier(
    rule: FrontierRule,
    max_steps: int,
    reader: Reader,
    params: tuple[Params, Params],
    prompts: Prompts,
    keys: Array,
    temperature: Array,
) -> Tree:
    """Grow a batch of trees of R = D * W * A rows."""
    num_problems, width = prompts.length.shape[0], rule.width
    num_rows = max_steps * width * rule.num_lanes
    draw = make_draw(reader, params, temperature)
    is_real, none = prompts.problem_id >= 0, jnp.zeros(num_problems, jnp.int32)
    shape = (num_problems, width)

    def is_active(carry: tuple[Array, FrontierGrowth]) -> Array:
        turn, growth = carry
        return (turn * rule.num_steps < max_steps) & jnp.any(is_open(growth))

    def take_turn(carry: tuple[Array, FrontierGrowth]) -> tuple[Array, FrontierGrowth]:
        turn, growth = carry

        # The first prefix draws with the problem's own key, as the root of a tree does.
        number = turn * width + jnp.arange(width)
        number_keys = fold_in(keys[:, None], number)
        turn_keys = jnp.where(number[:, None] > 0, number_keys, keys[:, None])
        depth = turn * rule.num_steps + jnp.arange(rule.num_steps)
        lane = jnp.arange(width * rule.num_lanes).reshape(width, rule.num_lanes, 1)
        row = jnp.broadcast_to(
            depth * lane.size + lane, (num_problems, *lane.shape[:2], len(depth))
        )
        drawn = draw(growth.memory, growth.front.path, turn_keys, is_open(growth), row)
        return turn + 1, advance(rule, growth, drawn, row)

    growth = FrontierGrowth(
        front=Front(
            path=root_paths(num_problems, width, max_steps - rule.num_steps),
            score=jnp.zeros(shape),
            is_there=jnp.broadcast_to(is_real[:, None], shape),
            is_ended=jnp.zeros(shape, bool),
        ),
        rows=empty_rows(num_problems, num_rows),
        is_ok=is_real,
        num_lanes=none,
        cost=Cost(none, none, none),
        memory=reader.open(params, prompts, num_rows),
    )
    _, growth = jax.lax.while_loop(is_active, take_turn, (jnp.int32(0), growth))
    return make_tree(
        prompts,
        growth.rows,
        reader.text(growth.memory),
        growth.cost,
        decided=none - 1,
        visits=jnp.ones_like(growth.rows.kind),
        value=clip(growth.rows.score),
        is_ok=growth.is_ok,
        num_simulations=growth.num_lanes,
        num_wasted=none,
    )


def is_open(growth: FrontierGrowth) -> Array:
    """Tell which prefixes of the frontier go on, [B W] bool."""
    return growth.front.is_there & ~growth.front.is_ended & growth.is_ok[:, None]


def advance(rule: FrontierRule, growth: FrontierGrowth, drawn: Drawn, row: Array) -> FrontierGrowth:
    """Write down what was drawn in rows [B W A K], and choose the next frontier."""
    num_problems, old = len(row), growth.front
    rows, proposal = drawn.rows, drawn.proposal
    opened = jnp.sum(is_open(growth), axis=1) * rule.num_lanes

    if rule.is_distinct:
        kind = jnp.where(is_repeated(old.path, proposal.steps), int(Kind.DUPLICATE), rows.kind)
        rows = rows._replace(kind=jnp.where(rows.length > 0, kind, rows.kind))

    # Steps follow each other, so that a turn is one block of rows.
    def write(all_rows: Array, new: Array) -> Array:
        block = jnp.moveaxis(new, 3, 1).reshape(num_problems, -1)
        return jax.lax.dynamic_update_slice_in_dim(all_rows, block, row[0, 0, 0, 0], axis=1)

    # Every continuation can be chosen, and what had ended before.
    paths = jax.tree.map(lambda x: jnp.repeat(x, rule.num_lanes, axis=1), old.path)
    last: Rows = jax.tree.map(lambda x: x[..., -1].reshape(num_problems, -1), rows)
    new = Front(
        path=extend(paths, row[..., -1].reshape(num_problems, -1)),
        score=last.score,
        is_there=last.kind == Kind.CANDIDATE,
        is_ended=last.is_ended,
    )
    kept = old._replace(is_there=old.is_there & old.is_ended)
    front: Front = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), kept, new)
    chosen = rule.choose(front)
    return FrontierGrowth(
        front=jax.tree.map(lambda x: pick(x, chosen), front),
        rows=jax.tree.map(write, growth.rows, rows),
        is_ok=growth.is_ok & proposal.is_ok,
        num_lanes=growth.num_lanes + opened,
        cost=jax.tree.map(jnp.add, growth.cost, proposal.cost),
        memory=drawn.memory,
    )


def is_repeated(path: Path, steps: Steps) -> Array:
    """Mark the lanes [B W A 1] that say what an earlier lane behind an equal prefix says."""
    num_problems, width, num_lanes = steps.length.shape[:3]
    tokens = steps.tokens.reshape(num_problems, width * num_lanes, -1)
    prefix = jnp.repeat(path.rows, num_lanes, axis=1)
    length = jnp.sum(steps.length, axis=3).reshape(num_problems, -1)
    is_first = first_copies(jnp.concatenate([prefix, tokens], axis=-1), length)
    return ~is_first.reshape(num_problems, width, num_lanes, 1)
