"""The loop of every search: B trees at once, each at its own pace.

In a turn, every tree that waits for nothing moves: it looks at what came back, and orders what it
wants next. A tree that is over leaves, and the next problem takes its slot. Then all lanes write
some tokens. So no tree waits for another one, and none can tell which others there are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.search.lanes import (
    Pending,
    assign,
    collect,
    draw_again,
    drop_rest,
    find_repeats,
    mark,
    no_pending,
)
from jaxtrain.search.rows import Job, Rows, empty_rows, pick, rank, sum_above
from jaxtrain.structs import Array, Cost, Kind, LaneShape, Memory, Prompts, Tree, choose
from jaxtrain.trees import count_false


class Growth(NamedTuple):
    """What grows in B slots."""

    problem: Array  # [B] int32, which of the M problems, M: none
    key: Array  # [B 2] uint32, the problem's
    rows: Rows  # [B R]
    pending: Pending
    is_over: Array  # [B] bool
    is_short: Array  # [B W] bool, the newest order had fewer distinct steps than it asked for
    decided: Array  # [B] int32, row of the leaf that crossed the threshold, -1: none
    is_ok: Array  # [B] bool
    num_simulations: Array  # [B] int32
    num_wasted: Array  # [B] int32
    num_exhausted: Array  # [B] int32
    cost: Cost
    state: Any  # the method's own, [B ...]

    @property
    def is_ready(self) -> Array:
        """Which trees wait for nothing and go on, [B] bool."""
        return ~self.is_over & ~self.pending.is_waiting


class Method(NamedTuple):
    """A search, as the loop sees it."""

    num_rows: int  # R
    width: int  # W: prefixes that are open at once
    depth: int  # steps of a prefix, at most
    num_candidates: int  # A: continuations of each, at most
    num_lanes: int  # J: lanes that write them
    num_steps: int  # K: steps of a continuation, at most
    compares: bool  # whether a candidate that repeats another is told apart from it
    may_repeat: bool  # whether it is drawn all the same
    state: Any  # of B trees that have not begun, [B ...]
    move: Callable[[Growth], Growth]  # all trees; those that are ready order something or are over
    # -> visits, value [B R], num_closed [B]
    read: Callable[[Growth], tuple[Array, Array, Array]]
    listing: np.ndarray | None = None  # [R], the order of rows in a Tree, where it is another

    @property
    def num_siblings(self) -> int:
        """How many steps a lane must know that it may not say."""
        return self.width * self.num_candidates if self.compares and not self.may_repeat else 0

    def lanes(self, num_trees: int) -> LaneShape:
        """Return the form of the lanes of so many trees."""
        sizes = self.width, self.num_lanes, self.num_steps, self.num_siblings
        return LaneShape(num_trees, self.num_rows, *sizes)


class Exported(NamedTuple):
    """What is kept of M trees."""

    rows: Rows  # [M R]
    tokens: Array  # [M R S]
    visits: Array  # [M R]
    value: Array  # [M R]
    decided: Array  # [M]
    told: dict[str, Array]  # [M] each, fields of a Tree


class Turn(NamedTuple):
    """What the loop carries."""

    growth: Growth
    memory: Memory
    exported: Exported
    num_begun: Array  # [] int32, problems


def grow(method: Method, job: Job) -> Tree:
    """Grow the trees of M problems."""
    num_problems, shape = len(job.keys), method.lanes(job.num_trees)
    memory = job.reader.open(job.params, shape, job.prompts.tokens.shape[1])
    growth = fresh_growth(method, job)
    growth = growth._replace(is_over=~growth.is_over)
    blank = jax.eval_shape(lambda: export(method, job, growth, memory))
    exported = jax.tree.map(lambda x: jnp.zeros((num_problems, *x.shape[1:]), x.dtype), blank)

    # Nobody waits for anything when the loop begins, so its first turn writes nothing.
    turn = jax.lax.while_loop(
        lambda turn: jnp.any(~turn.growth.is_over) | (turn.num_begun < num_problems),
        lambda turn: settle(method, job, advance(method, job, turn)),
        Turn(growth, memory, exported, jnp.int32(0)),
    )
    return to_tree(method, job, leave(method, job, turn).exported)


def fresh_growth(method: Method, job: Job) -> Growth:
    """Make B slots with trees that have not begun, of no problem yet."""
    num_trees = job.num_trees
    none, no = jnp.zeros(num_trees, jnp.int32), jnp.zeros(num_trees, bool)
    return Growth(
        problem=none + len(job.keys),
        key=jnp.zeros((num_trees, 2), jnp.uint32),
        rows=empty_rows(num_trees, method.num_rows),
        pending=no_pending(method.lanes(num_trees), method.num_candidates, method.depth),
        is_over=no,
        is_short=jnp.zeros((num_trees, method.width), bool),
        decided=none - 1,
        is_ok=~no,
        num_simulations=none,
        num_wasted=none,
        num_exhausted=none,
        cost=Cost(none, none, none),
        state=method.state,
    )


def settle(method: Method, job: Job, turn: Turn) -> Turn:
    """Move all trees until each of them waits, or none is left to begin."""
    num_problems = len(job.keys)

    def can_begin(turn: Turn) -> Array:
        return jnp.any(turn.growth.is_over) & (turn.num_begun < num_problems)

    def step(turn: Turn) -> Turn:
        turn = jax.lax.while_loop(can_begin, lambda t: begin(method, job, t), turn)
        return turn._replace(growth=method.move(turn.growth))

    return jax.lax.while_loop(
        lambda turn: can_begin(turn) | jnp.any(turn.growth.is_ready), step, turn
    )


def begin(method: Method, job: Job, turn: Turn) -> Turn:
    """Let the next problems take the slots of trees that are over."""
    num_problems, num_trees = len(job.keys), job.num_trees
    turn = leave(method, job, turn)
    # Prompts are read some at a time, so that few free slots do not cost many.
    size = max(1, num_trees // 8)
    slots = jnp.nonzero(turn.growth.is_over, size=size, fill_value=num_trees)[0]
    problem = turn.num_begun + jnp.arange(size)
    is_taken = (slots < num_trees) & (problem < num_problems)
    slots, at = jnp.where(is_taken, slots, -1), jnp.minimum(problem, num_problems - 1)
    prompts: Prompts = jax.tree.map(lambda x: x[at], job.prompts)
    memory, cost = job.reader.renew(job.params, turn.memory, slots, prompts)

    # Padding of the batch grows nothing.
    put = jnp.where(is_taken, slots, num_trees)
    fresh = fresh_growth(method, job)
    is_real = prompts.problem_id >= 0
    cost = jax.tree.map(lambda x: jnp.where(is_real, x, 0), cost)
    fresh = fresh._replace(
        problem=fresh.problem.at[put].set(problem, mode="drop"),
        key=fresh.key.at[put].set(job.keys[at], mode="drop"),
        is_over=fresh.is_over.at[put].set(~is_real, mode="drop"),
        is_ok=fresh.is_ok.at[put].set(is_real, mode="drop"),
        cost=jax.tree.map(lambda x, y: x.at[put].set(y, mode="drop"), fresh.cost, cost),
    )
    is_new = jnp.zeros(num_trees, bool).at[put].set(True, mode="drop")
    growth = choose(is_new, fresh, turn.growth)
    num_begun = turn.num_begun + jnp.sum(is_taken)
    return Turn(growth, memory, turn.exported, num_begun)


def advance(method: Method, job: Job, turn: Turn) -> Turn:
    """Let all lanes write some tokens, and take what they have done."""
    growth, memory = turn.growth, turn.memory
    pending, order = assign(growth.pending, growth.rows, method.num_siblings)
    memory, written, cost = job.reader.write(job.params, memory, order, job.temperature)
    pending, rows, is_ok, is_short = collect(pending, order, written, growth.rows)
    is_short |= growth.is_short
    text = job.reader.text(memory)
    rows = apply_checks(job, growth.problem, growth.rows, rows, text)

    if method.compares:
        found, is_enough = find_repeats(pending, rows, text, job.reader.form), jnp.array(False)
        # What the policy would hardly say is not asked for.
        if job.config.top_p < 1 and not method.may_repeat:
            pending, is_enough, is_few = drop_rest(pending, rows, found[0], job.config.top_p)
            is_short |= is_few
        # An order that is complete must hold no step twice.
        is_complete = growth.pending.is_waiting & ~pending.is_waiting & pending.is_distinct
        is_repeat, is_twin = (x & is_complete[:, None, None] for x in found)
        # Nobody goes on from a twin that has ended, and its wording teaches.
        is_twin &= is_repeat | ~pick(rows.is_ended, pending.row[..., 0])
        if not method.may_repeat:
            # Every round brings one more step at least, for a lane says what no sibling said.
            is_again = is_repeat & (pending.num_draws < method.num_siblings)
            # That may be a twin, and there may be little else: one more draw.
            is_again |= is_twin & ~is_repeat & (pending.num_draws == 0)
            is_again &= ~is_enough[..., None]
            is_short |= jnp.any(is_repeat & ~is_again, axis=2)
            pending, rows = draw_again(pending, rows, is_again)
            is_twin &= ~is_again
        rows = mark(rows, pending.row[..., 0], is_twin, Kind.DUPLICATE)

    # A tree that met what is not finite is set aside.
    is_ok &= growth.is_ok
    is_over = growth.is_over | ~is_ok
    none = fresh_growth(method, job).pending
    growth = growth._replace(
        rows=rows,
        pending=choose(is_over, none, pending),
        is_over=is_over,
        is_short=is_short,
        is_ok=is_ok,
        cost=jax.tree.map(jnp.add, growth.cost, cost),
    )
    return turn._replace(growth=growth, memory=memory)


def apply_checks(job: Job, problem: Array, before: Rows, rows: Rows, text: Array) -> Rows:
    """Take from the scores of rows that were empty before [B R] what false steps on their paths
    cost, or filter such rows out.

    problem [B]: which of the M problems; text [B R S]: the tokens of all rows. A check reads text,
    so it is asked on the host. What it says hangs on a step and those before it alone, so a tree is
    the same whatever its neighbours.
    """
    if job.check is None:
        return rows
    at = jnp.minimum(problem, len(job.keys) - 1)
    is_new = (before.kind == Kind.EMPTY) & (rows.kind != Kind.EMPTY)
    shape = jax.ShapeDtypeStruct(is_new.shape, jnp.int32)
    ask = partial(jax.pure_callback, partial(count_false, job.check), shape)
    asked = job.prompts.problem_id[at], rows.parent, text, rows.length, is_new
    # The host is called in turns only that bring something new.
    none = jnp.zeros(is_new.shape, jnp.int32)
    num_false = jax.lax.cond(jnp.any(is_new), ask, lambda *_: none, *asked)
    if job.config.checks == "penalty":
        return rows._replace(score=rows.score - job.config.check_weight * num_false)
    is_false = num_false > 0
    return rows._replace(
        kind=jnp.where(is_false, int(Kind.FALSE), rows.kind),
        score=jnp.where(is_false, 0.0, rows.score),
        is_finished=rows.is_finished & ~is_false,
        is_ended=rows.is_ended | is_false,
    )


def leave(method: Method, job: Job, turn: Turn) -> Turn:
    """Export the trees that are over."""
    growth = turn.growth
    at = jnp.where(growth.is_over, growth.problem, len(job.keys))
    new = export(method, job, growth, turn.memory)
    exported = jax.tree.map(lambda x, y: x.at[at].set(y, mode="drop"), turn.exported, new)
    return turn._replace(exported=exported)


def export(method: Method, job: Job, growth: Growth, memory: Memory) -> Exported:
    """Take of B slots what is kept."""
    visits, value, num_closed = method.read(growth)
    told = dict(
        is_ok=growth.is_ok,
        num_simulations=growth.num_simulations,
        num_wasted=growth.num_wasted,
        num_closed=num_closed,
        num_exhausted=growth.num_exhausted,
        **growth.cost._asdict(),
    )
    return Exported(growth.rows, job.reader.text(memory), visits, value, growth.decided, told)


def to_tree(method: Method, job: Job, exported: Exported) -> Tree:
    """Hand M trees on; each answers with the row that decided it, or else the best finished one."""
    rows, tokens, visits, value, decided, told = exported
    if method.listing is not None:
        place = jnp.append(np.argsort(method.listing), -1)  # of a row in that order; -1 stays
        rows, tokens, visits, value = jax.tree.map(
            lambda y: y[:, method.listing], (rows, tokens, visits, value)
        )
        rows, decided = rows._replace(parent=place[rows.parent]), place[decided]
    chex.assert_equal_shape([rows.kind, visits, value])
    is_row = rows.kind != Kind.EMPTY
    rows = Rows(
        *(jnp.where(is_row, y, none) for y, none in zip(rows, empty_rows(1, 1), strict=True))
    )

    # The raw score ranks: values are clipped, which ties.
    is_answer = rows.is_finished & (rows.kind != Kind.DUPLICATE)
    ranked = rows.score
    if job.config.prior.weight:
        above = (sum_above(x, rows.parent, job.max_steps) for x in (rows.log_prob, rows.length))
        ranked = rank(job.config.prior, ranked, *above)
    best = jnp.argmax(jnp.where(is_answer, ranked, -jnp.inf), axis=1)
    best = jnp.where(jnp.any(is_answer, axis=1), best, -1)
    return Tree(
        problem_id=job.prompts.problem_id,
        **rows._asdict(),
        tokens=jnp.where(is_row[..., None], tokens, 0),
        visits=jnp.where(is_row, visits, 0),
        value=jnp.where(is_row, value, 0.0),
        chosen=jnp.where(decided >= 0, decided, best).astype(jnp.int32),
        **told,
    )
