"""Lanes: who writes what. A tree waits for what it has ordered; its lanes take one part after the
other.

An order is a set of continuations behind W prefixes, A behind each, of K steps. It may be larger
than the J lanes of a prefix: a lane that is done takes the next, so that none waits for the longest
of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.search.rows import Rows, pick
from jaxtrain.structs import Array, FormFn, Kind, LaneShape, Order, Path, Written

NOTHING, WANTED, STARTED = 0, 1, 2  # what a continuation is


class Pending(NamedTuple):
    """What the trees wait for."""

    path: Path  # [B W D-K]
    key: Array  # [B W 2] uint32
    row: Array  # [B W A K] int32
    room: Array  # [B W] int32, steps that fit behind a prefix
    kind: Array  # [B] int32, what the rows will be
    is_distinct: Array  # [B] bool, no row may repeat another one behind an equal prefix
    state: Array  # [B W A] int32
    num_draws: Array  # [B W A] int32
    lane: Array  # [B W J] int32, what each lane writes, -1: nothing

    @property
    def is_waiting(self) -> Array:
        """Which trees wait, [B] bool."""
        return jnp.any(self.state != NOTHING, axis=(1, 2))


def no_pending(shape: LaneShape, num_candidates: int, depth: int) -> Pending:
    """Make what trees wait for that have ordered nothing."""
    prefixes = shape.num_trees, shape.num_prefixes
    none = jnp.zeros((*prefixes, num_candidates), jnp.int32)
    return Pending(
        path=jnp.full((*prefixes, depth), -1),
        key=jnp.zeros((*prefixes, 2), jnp.uint32),
        row=jnp.full((*none.shape, shape.num_steps), -1),
        room=none[:, :, 0],
        kind=none[:, 0, 0],
        is_distinct=none[:, 0, 0] > 0,
        state=none,
        num_draws=none,
        lane=jnp.full((*prefixes, shape.num_lanes), -1),
    )


def want(
    pending: Pending,
    path: Path,
    key: Array,
    row: Array,
    is_wanted: Array,
    kind: Kind,
    is_distinct: bool,
    max_steps: int,
) -> Pending:
    """Order rows [B W a k] where wanted [B W a], behind paths [B W D-K], keys [B W 2]."""
    depth = jnp.sum(path >= 0, axis=2)
    *_, num_candidates, num_steps = pending.row.shape
    pad = ((0, 0), (0, 0), (0, num_candidates - row.shape[2]), (0, num_steps - row.shape[3]))
    return pending._replace(
        path=path,
        key=key,
        row=jnp.pad(row, pad, constant_values=-1),
        room=jnp.minimum(row.shape[3], max_steps - depth),
        kind=jnp.full(len(row), int(kind)),
        is_distinct=jnp.full(len(row), is_distinct),
        state=jnp.where(jnp.pad(is_wanted, pad[:3]), WANTED, NOTHING),
        num_draws=jnp.zeros_like(pending.num_draws),
    )


def assign(pending: Pending, rows: Rows, num_siblings: int) -> tuple[Pending, Order]:
    """Give what is wanted to the lanes that are idle, the first to the first."""
    is_idle, is_wanted = pending.lane < 0, pending.state == WANTED
    rank, number = jnp.cumsum(is_idle, axis=2), jnp.cumsum(is_wanted, axis=2)
    fits = (rank[..., None] == number[:, :, None]) & is_idle[..., None] & is_wanted[:, :, None]
    is_new = jnp.any(fits, axis=3)
    lane = jnp.where(is_new, jnp.argmax(fits, axis=3), pending.lane)
    state = jnp.where(jnp.any(fits, axis=2), STARTED, pending.state)

    # What a lane needs to know of it. One that is idle begins nothing, whatever it did before.
    at, is_idle = jnp.maximum(lane, 0), lane < 0
    num_draws = jnp.take_along_axis(pending.num_draws, at, axis=2)
    order = Order(
        path=pending.path,
        key=pending.key,
        number=at + num_draws * pending.state.shape[2],
        row=jnp.where(is_idle[..., None], -1, jnp.take_along_axis(pending.row, at[..., None], 2)),
        room=jnp.where(is_idle, 0, pending.room[..., None]),
        sibling=siblings_of(pending, rows, num_siblings),
        is_new=is_new | is_idle,
    )
    return pending._replace(lane=lane, state=state), order


def siblings_of(pending: Pending, rows: Rows, num_siblings: int) -> Array:
    """Name the rows behind an equal prefix, [B W J W*A], -1 elsewhere; [B W J 0] if not asked."""
    num_trees, width, num_candidates, _ = pending.row.shape
    num_lanes = pending.lane.shape[2]
    if not num_siblings:
        return jnp.zeros((num_trees, width, num_lanes, 0), jnp.int32)
    row = pending.row[..., 0].reshape(num_trees, -1)
    there = (row >= 0) & (pick(rows.kind, row) != Kind.EMPTY)
    is_equal = jnp.all(pending.path[:, :, None] == pending.path[:, None], axis=3)
    is_equal = jnp.repeat(is_equal, num_candidates, axis=2)
    is_sibling = is_equal & there[:, None] & pending.is_distinct[:, None, None]
    sibling = jnp.where(is_sibling, row[:, None], -1)[:, :, None]
    return jnp.broadcast_to(sibling, (num_trees, width, num_lanes, row.shape[1]))


def collect(
    pending: Pending, order: Order, written: Written, rows: Rows
) -> tuple[Pending, Rows, Array, Array]:
    """Write down what lanes have done, and let them go.

    Returns besides [B] bool, all was finite, and [B W] bool, a prefix has no further step.
    """
    is_done = (pending.lane >= 0) & ~written.is_live
    num_trees, num_rows = rows.kind.shape

    # What each row is; a lane's first step stands behind the prefix, the others behind it.
    is_step = is_done[..., None] & (written.length > 0)
    first = jnp.max(order.path[..., -1:], axis=2, initial=-1)[:, :, None, None]
    first = jnp.broadcast_to(first, (*order.row.shape[:3], 1))
    new = Rows(
        parent=jnp.concatenate([first, order.row[..., :-1]], axis=3),
        kind=jnp.broadcast_to(pending.kind[:, None, None, None], order.row.shape),
        length=written.length,
        score=written.score,
        log_prob=written.log_prob,
        is_finished=written.is_finished,
        is_ended=written.is_ended,
    )
    at = jnp.where(is_step, order.row, num_rows)
    tree = jnp.arange(num_trees)[:, None, None, None]
    rows = jax.tree.map(lambda x, y: x.at[tree, at].set(y, mode="drop"), rows, new)

    # The lanes are free again.
    is_mine = pending.lane[..., None] == jnp.arange(pending.state.shape[2])
    is_over = jnp.any(is_mine & is_done[..., None], axis=2)
    pending = pending._replace(
        lane=jnp.where(is_done, -1, pending.lane),
        state=jnp.where(is_over, NOTHING, pending.state),
    )
    is_ok = jnp.all(written.is_ok | ~is_done, axis=(1, 2))
    is_short = is_done & written.is_ok & (order.room > 0) & (written.length[..., 0] == 0)
    return pending, rows, is_ok, jnp.any(is_short, axis=2)


def find_repeats(pending: Pending, rows: Rows, text: Array, form: FormFn) -> tuple[Array, Array]:
    """Mark the rows [B W A] of an order that say what an older one behind an equal prefix says:
    word for word, and in the same form, which those do too. Prefixes that are equal take turns, so
    that none goes short of steps before another.

    text [B R S]: the tokens of all rows.
    """
    num_trees, width, num_candidates, _ = pending.row.shape
    row = pending.row[..., 0].reshape(num_trees, -1)
    at = jnp.maximum(row, 0)
    kind = pick(rows.kind, at)
    is_step = (row >= 0) & ((kind == Kind.CANDIDATE) | (kind == Kind.FALSE))

    def is_equal(x: Array) -> Array:
        return jnp.all(x[:, :, None] == x[:, None], axis=3)

    # A step that is drawn again never takes the place of one that stands.
    turn = jnp.arange(row.shape[1]).reshape(num_candidates, width).T.ravel()
    age = pending.num_draws.reshape(num_trees, -1) * row.shape[1] + turn
    is_older = (age[:, None] < age[:, :, None]) & is_step[:, :, None] & is_step[:, None]
    is_older &= is_equal(jnp.repeat(pending.path, num_candidates, axis=1))

    # Word for word, and in form.
    tokens, length = pick(text, at), pick(rows.length, at)
    is_repeat = is_older & is_equal(tokens) & (length[:, :, None] == length[:, None])
    is_twin = is_older & is_equal(form(tokens, length))
    is_repeat, is_twin = (
        jnp.any(x, axis=2).reshape(num_trees, width, num_candidates) for x in (is_repeat, is_twin)
    )
    return is_repeat, is_twin


def drop_rest(
    pending: Pending, rows: Rows, is_repeat: Array, top_p: float
) -> tuple[Pending, Array, Array]:
    """Want no more behind prefixes whose steps hold the share top_p of the policy's probability; of
    what is not filtered out, where a search filters.

    is_repeat [B W A]: what says the same as another counts once. Returns too which prefixes have
    enough, and which of these have fewer steps than they could, [B W] bool each.
    """
    row = pending.row[..., 0]
    at = jnp.maximum(row, 0).reshape(len(row), -1)
    kind = jnp.where(row >= 0, pick(rows.kind, at).reshape(row.shape), -1)
    # Enough are sound >= top_p * (1 - false).
    counted = jnp.where(kind == Kind.FALSE, top_p, kind > Kind.EMPTY) * ~is_repeat
    mass = counted * jnp.exp(pick(rows.log_prob, at)).reshape(row.shape)
    # Places of a frontier may share a prefix.
    is_equal = jnp.all(pending.path[:, :, None] == pending.path[:, None], axis=3)
    mass = jnp.sum(is_equal * jnp.sum(mass, axis=2)[:, None], axis=2)
    is_enough = (mass >= top_p) & pending.is_distinct[:, None]
    is_dropped = (pending.state == WANTED) & is_enough[..., None]
    pending = pending._replace(state=jnp.where(is_dropped, NOTHING, pending.state))
    is_left = (kind == Kind.EMPTY) & (pending.state == NOTHING)
    return pending, is_enough, is_enough & jnp.any(is_left, axis=2)


def draw_again(pending: Pending, rows: Rows, is_again: Array) -> tuple[Pending, Rows]:
    """Want the continuations [B W A] once more, under other keys; their rows are empty again."""
    pending = pending._replace(
        state=jnp.where(is_again, WANTED, pending.state),
        num_draws=pending.num_draws + is_again,
    )
    rows = mark(rows, pending.row[..., 0], is_again, Kind.EMPTY)
    return pending, rows._replace(length=jnp.where(rows.kind == Kind.EMPTY, 0, rows.length))


def mark(rows: Rows, row: Array, is_marked: Array, kind: Kind) -> Rows:
    """Change the kind of rows [B W A] where they are marked [B W A]."""
    at = jnp.where(is_marked, row, rows.kind.shape[1])
    tree = jnp.arange(len(at))[:, None, None]
    return rows._replace(kind=rows.kind.at[tree, at].set(int(kind), mode="drop"))
