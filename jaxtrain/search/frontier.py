"""The loop of every search without a tree policy: a frontier of prefixes goes on, turn by turn.

In a turn, each of W prefixes gets A lanes of K steps. What a rule chooses among those, and the
prefixes of before that had ended, is the next frontier. Rows lie depth by depth:
row = depth * W * A + prefix * A + lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.keys import fold_in
from jaxtrain.search.rows import Drawn, Job, Rows, clip, draw, empty_rows, extend, make_tree, pick
from jaxtrain.structs import Array, Cost, Kind, Memory, Path, Tree


class Frontier(NamedTuple):
    """Prefixes that go on, or can be chosen to: n of each problem."""

    path: Path  # [B n D-K]
    score: Array  # [B n] float32, raw, of the last step
    is_there: Array  # [B n] bool, False: nothing was drawn here, or it repeats another
    is_ended: Array  # [B n] bool


class FrontierRule(NamedTuple):
    """A method: how wide it goes, and what it goes on from."""

    width: int  # W: prefixes opened in a turn
    num_lanes: int  # A: continuations of each
    num_steps: int  # K: steps of a continuation: 1, or D where nothing is chosen between
    is_distinct: bool  # whether a lane that repeats another is a duplicate, and never chosen
    choose: Callable[[Frontier], Array]  # which of n go on: [B W] int32


class FrontierGrowth(NamedTuple):
    """What grows from turn to turn."""

    frontier: Frontier  # [B W]
    rows: Rows  # [B R]
    is_ok: Array  # [B] bool
    num_lanes: Array  # [B] int32, that were opened
    cost: Cost
    memory: Memory

    @property
    def is_open(self) -> Array:
        """Which prefixes go on, [B W] bool."""
        return self.frontier.is_there & ~self.frontier.is_ended & self.is_ok[:, None]


def make_sample(num_samples: int, max_steps: int) -> FrontierRule:
    """Make the rule of independent traces: the prompt, opened once, for whole traces.

    The generator of ReST-EM, and of greedy decoding (one trace, temperature 0), self-consistency,
    best-of-k and weighted vote. Traces that repeat each other all count, and none goes on.
    """
    return FrontierRule(
        width=1,
        num_lanes=num_samples,
        num_steps=max_steps,
        is_distinct=False,
        choose=lambda frontier: jnp.zeros((len(frontier.score), 1), jnp.int32),
    )


def grow_frontier(rule: FrontierRule, job: Job) -> Tree:
    """Grow a batch of trees of R = D * W * A rows."""
    num_problems, width, num_lanes = len(job.keys), rule.width, rule.num_lanes
    num_rows = job.max_steps * width * num_lanes
    none = jnp.zeros(num_problems, jnp.int32)

    # Over when traces are as deep as they may be, or when no prefix goes on.
    def is_active(carry: tuple[Array, FrontierGrowth]) -> Array:
        turn, growth = carry
        return (turn * rule.num_steps < job.max_steps) & jnp.any(growth.is_open)

    def take_turn(carry: tuple[Array, FrontierGrowth]) -> tuple[Array, FrontierGrowth]:
        turn, growth = carry

        # The first prefix draws with the problem's own key, as the root of a tree does.
        number = turn * width + jnp.arange(width)[:, None]
        keys = jnp.where(number > 0, fold_in(job.keys[:, None], number[:, 0]), job.keys[:, None])

        # The rows of the turn, [B W A K].
        depth = turn * rule.num_steps + jnp.arange(rule.num_steps)
        lane = jnp.arange(width * num_lanes).reshape(width, num_lanes, 1)
        row = jnp.tile(depth * lane.size + lane, (num_problems, 1, 1, 1))
        path, is_open = growth.frontier.path, growth.is_open
        drawn = draw(job, growth.memory, path, keys, is_open, row, rule.is_distinct)
        return turn + 1, advance(rule, growth, drawn, row)

    shape, is_real = (num_problems, width), job.prompts.problem_id >= 0
    # At first every place of the frontier is the prompt.
    growth = FrontierGrowth(
        frontier=Frontier(
            path=jnp.full((*shape, job.max_steps - rule.num_steps), -1, jnp.int32),
            score=jnp.zeros(shape),
            is_there=jnp.broadcast_to(is_real[:, None], shape),
            is_ended=jnp.zeros(shape, bool),
        ),
        rows=empty_rows(num_problems, num_rows),
        is_ok=is_real,
        num_lanes=none,
        cost=Cost(none, none, none),
        memory=job.reader.open(job.params, job.prompts, num_rows),
    )
    # Search, and hand the rows on.
    _, growth = jax.lax.while_loop(is_active, take_turn, (jnp.int32(0), growth))
    return make_tree(
        job,
        growth.rows,
        job.reader.text(growth.memory),
        visits=jnp.ones_like(growth.rows.kind),
        value=clip(growth.rows.score),
        cost=growth.cost,
        decided=none - 1,
        is_ok=growth.is_ok,
        num_simulations=growth.num_lanes,
        num_wasted=none,
    )


def advance(rule: FrontierRule, growth: FrontierGrowth, drawn: Drawn, row: Array) -> FrontierGrowth:
    """Write down what was drawn into rows `row` [B W A K], and choose the next frontier."""
    num_problems, old = len(row), growth.frontier

    # A turn is one block of rows.
    def write(rows: Array, new: Array) -> Array:
        block = jnp.moveaxis(new, 3, 1).reshape(num_problems, -1)
        return jax.lax.dynamic_update_slice_in_dim(rows, block, row[0, 0, 0, 0], axis=1)

    # Every continuation can be chosen, and what had ended before.
    last: Rows = jax.tree.map(lambda x: x[..., -1].reshape(num_problems, -1), drawn.rows)
    new = Frontier(
        path=extend(
            jnp.repeat(old.path, rule.num_lanes, axis=1), row[..., -1].reshape(last.kind.shape)
        ),
        score=last.score,
        is_there=last.kind == Kind.CANDIDATE,
        is_ended=last.is_ended,
    )
    # What had ended stays in the race, as it was.
    kept = old._replace(is_there=old.is_there & old.is_ended)
    both: Frontier = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), kept, new)
    chosen = rule.choose(both)
    return FrontierGrowth(
        frontier=jax.tree.map(lambda x: pick(x, chosen), both),
        rows=jax.tree.map(write, growth.rows, drawn.rows),
        is_ok=growth.is_ok & drawn.is_ok,
        num_lanes=growth.num_lanes + jnp.sum(growth.is_open, axis=1) * rule.num_lanes,
        cost=jax.tree.map(jnp.add, growth.cost, drawn.cost),
        memory=drawn.memory,
    )
