"""Every search without a tree policy: a frontier of prefixes goes on, turn by turn.

In a turn, each of W prefixes gets A lanes of K steps. What a rule chooses among all rows is the
next frontier. Rows lie turn by turn: row = ((turn * K + step) * W + prefix) * A + lane.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.keys import fold_in
from jaxtrain.search.lanes import Pending, want
from jaxtrain.search.rows import Job, clip, path_to, pick
from jaxtrain.search.slots import Growth, Method, grow
from jaxtrain.structs import Array, Kind, Tree, choose


class Pool(NamedTuple):
    """The rows of a tree [R], as a rule chooses among them."""

    score: Array  # float32, raw
    is_there: Array  # bool, False: nothing was drawn here, or it repeats another
    is_ended: Array  # bool
    is_opened: Array  # bool, steps were drawn behind it
    is_new: Array  # bool, of the newest turn
    is_kept: Array  # bool, it was in the frontier before
    place: Array  # int32, the place of the frontier that it was drawn behind
    depth: Array  # int32, steps from the prompt to it

    @property
    def can_go_on(self) -> Array:
        """Which rows can be opened, [R] bool."""
        return self.is_there & ~self.is_opened & ~self.is_ended


class FrontierRule(NamedTuple):
    """A method: how wide it goes, and what it goes on from."""

    width: int  # W: prefixes opened in a turn
    num_lanes: int  # A: continuations of each
    num_turns: int  # at most
    # which rows are the next frontier: [W] int32, -1: none
    choose: Callable[[Pool], Array]
    num_steps: int = 1  # K: steps of a continuation: 1, or D where nothing is chosen between
    is_distinct: bool = True  # whether a lane that repeats another is a duplicate, never chosen

    def num_writers(self, num_lanes: int | None) -> int:
        """How many lanes write the continuations of a prefix, by search.num_lanes."""
        return min(num_lanes or self.num_lanes, self.num_lanes)


class FrontierState(NamedTuple):
    """Where the trees stand."""

    turn: Array  # [B] int32, turns that were ordered
    place: Array  # [B W] int32, the rows of the frontier, -1: none
    is_opened: Array  # [B R] bool


class FrontierMoves:
    """The moves of trees under a rule."""

    def __init__(self, rule: FrontierRule, job: Job):
        self.rule, self.job = rule, job
        self.num_rows = rule.num_turns * rule.num_steps * rule.width * rule.num_lanes

    def move(self, growth: Growth) -> Growth:
        """Choose the next frontier, and order what is to stand behind it."""
        state, rule, is_ready = growth.state, self.rule, growth.is_ready
        pool, is_first = self.pool(growth), state.turn == 0
        place = jnp.where(is_first[:, None], -1, jax.vmap(rule.choose)(pool))

        # At first every place of the frontier is the prompt; what has ended is not opened.
        at = jnp.maximum(place, 0)
        goes_on = (place >= 0) & pick(pool.is_there & ~pool.is_ended, at)
        goes_on = (goes_on | is_first[:, None]) & (state.turn < rule.num_turns)[:, None]
        decided, is_spent = self.job.decisive(growth.rows), self.job.has_spent(growth.rows)
        is_over = ~jnp.any(goes_on, axis=1) | is_spent | (decided >= 0)
        is_over &= is_ready

        # What the order that is back lacked: at first all its places are one prefix.
        is_short = growth.is_short & is_ready[:, None]
        num_short = jnp.where(state.turn == 1, jnp.any(is_short, axis=1), jnp.sum(is_short, axis=1))
        num_exhausted = growth.num_exhausted + num_short
        growth = growth._replace(num_exhausted=num_exhausted, is_short=growth.is_short & ~is_short)

        # What is opened is told, and waited for.
        opened = jnp.where(goes_on, place, self.num_rows)
        trees = jnp.arange(len(place))[:, None]
        is_opened = state.is_opened.at[trees, opened].set(True, mode="drop")
        num_opened = jnp.sum(goes_on, axis=1) * rule.num_lanes
        asked = growth._replace(
            pending=self.ordered(growth, place, goes_on),
            num_simulations=growth.num_simulations + num_opened,
            state=FrontierState(state.turn + 1, place, is_opened),
        )
        growth = choose(is_ready & ~is_over, asked, growth)
        return growth._replace(
            is_over=growth.is_over | is_over,
            decided=jnp.where(is_over, decided, growth.decided),
        )

    def pool(self, growth: Growth) -> Pool:
        """Make what a rule chooses among."""
        state, rows, rule = growth.state, growth.rows, self.rule
        row = jnp.arange(self.num_rows)
        turn = row // (rule.num_steps * rule.width * rule.num_lanes)
        all_rows = jnp.broadcast_to(row, rows.kind.shape)
        above = path_to(rows.parent, all_rows, self.job.max_steps)
        return Pool(
            score=rows.score,
            is_there=rows.kind == Kind.CANDIDATE,
            is_ended=rows.is_ended,
            is_opened=state.is_opened,
            is_new=turn == state.turn[:, None] - 1,
            is_kept=jnp.any(state.place[:, :, None] == row, axis=1),
            place=all_rows // rule.num_lanes % rule.width,
            depth=jnp.sum(above >= 0, axis=2),
        )

    def ordered(self, growth: Growth, place: Array, goes_on: Array) -> Pending:
        """Want K steps in A lanes behind the rows `place` [B W] that go on [B W]."""
        rule, turn, max_steps = self.rule, growth.state.turn[:, None], self.job.max_steps
        width, num_steps = rule.width, rule.num_steps
        path = path_to(growth.rows.parent, place, max_steps - num_steps)
        # The first prefix draws with the problem's own key, as the root of a tree does.
        number, key = turn * width + jnp.arange(width), growth.key[:, None]
        key = jnp.where((number > 0)[..., None], fold_in(key, number), key)
        step = (jnp.arange(num_steps) + turn * num_steps)[:, None, None]
        lane = jnp.arange(width * rule.num_lanes).reshape(width, rule.num_lanes, 1)
        row = step * (width * rule.num_lanes) + lane
        is_wanted, kind = jnp.broadcast_to(goes_on[..., None], row.shape[:3]), Kind.CANDIDATE
        told = path, key, row, is_wanted, kind, rule.is_distinct, max_steps
        return want(growth.pending, *told)

    def read(self, growth: Growth) -> tuple[Array, Array, Array]:
        """Tell visits and values of all rows [B R], and that no node is closed [B]."""
        visits = jnp.ones_like(growth.rows.kind)
        return visits, clip(growth.rows.score), jnp.zeros_like(growth.num_simulations)


def grow_frontier(rule: FrontierRule, job: Job) -> Tree:
    """Grow trees of R = turns * K * W * A rows."""
    moves, none = FrontierMoves(rule, job), jnp.zeros((job.num_trees, rule.width), jnp.int32)
    method = Method(
        num_rows=moves.num_rows,
        width=rule.width,
        depth=job.max_steps - rule.num_steps,
        num_candidates=rule.num_lanes,
        num_lanes=rule.num_writers(job.config.num_lanes),
        num_steps=rule.num_steps,
        compares=rule.is_distinct,
        may_repeat=job.config.candidates == "independent",
        state=FrontierState(none[:, 0], none - 1, jnp.zeros((job.num_trees, moves.num_rows), bool)),
        move=moves.move,
        read=moves.read,
    )
    return grow(method, job)
