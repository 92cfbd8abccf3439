"""The loop of every search that walks down a tree, on `mctx.search`, unmodified and through its
public names only.

In a turn, mctx selects an unexpanded candidate of every tree and makes room for its node. The loop
draws the node's own candidates and lets the method's rule roll out, set the first statistics and
back up. mctx keeps topology and statistics alone; rows and memory are the loop's.

- The first turn expands the prompt. mctx knows of one simulation less.
- A candidate that has ended is never given a node: it gains a visit, mctx's turn is undone on the
  small arrays (never on those of whole nodes), and the next turn writes into the same place.
- mctx's own back-up is discarded; the rule has its own.
- The loop ends when every tree has been decided or set aside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import mctx as _mctx
import numpy as np

from jaxtrain.keys import fold_in
from jaxtrain.search.rows import Drawn, Job, Rows, clip, draw, empty_rows, extend, make_tree, pick
from jaxtrain.structs import Array, Cost, Memory, Path, Tree

if TYPE_CHECKING:
    from jaxtrain.search.config import SearchConfig

mctx: Any = _mctx  # its dataclasses hide their fields from a type checker
MctxTree = Any  # mctx.Tree, with a TreeGrowth as its extra_data


class Node(NamedTuple):
    """What a turn makes of the leaves that it expands, one a tree."""

    path: Path  # [B D-1], of the leaf
    key: Array  # [B 2] uint32, of its draws
    row: Array  # [B C] int32, the numbers of its rows
    is_live: Array  # [B] bool, False: nothing is expanded here
    drawn: Drawn  # its rows [B C], A candidates and then the rule's own; and what they cost
    opening: Any = None  # what `open` is to know from `roll_out`


class TreeRule(NamedTuple):
    """A method: how it selects, what it draws beside the candidates, how it values."""

    # What `roll_out` draws behind a node's A candidates: rounds, lanes of each, steps of a lane.
    num_rounds: int
    num_lanes: int
    num_steps: int
    select: Callable[[MctxTree, Array], Array]  # (unbatched, node) -> its candidate, [] int32
    roll_out: Callable[[Job, Node], Node]  # adds the extra rows
    # (tree, node [B]) -> its candidates have their first statistics, where it is live
    open: Callable[[MctxTree, Array, Node], MctxTree]
    # (tree, node [B]) -> tree after a visit from the node up to the root; -1: as it was
    back_up: Callable[[MctxTree, Array], MctxTree]

    @property
    def num_extra_rows(self) -> int:
        """Rows of a node behind its candidates."""
        return self.num_rounds * self.num_lanes * self.num_steps


class TreeGrowth(NamedTuple):
    """What a tree knows besides mctx's arrays."""

    rows: Rows  # [B N C]
    path: Path  # [B N D-1], of the nodes
    key: Array  # [B N 2] uint32
    slot: Array  # [B] int32, the newest node, -1: none yet
    decided: Array  # [B] int32, row of the leaf that crossed the threshold, -1: none
    is_ok: Array  # [B] bool
    num_simulations: Array  # [B] int32
    num_wasted: Array  # [B] int32
    cost: Cost

    @property
    def is_active(self) -> Array:
        """Which trees still search, [B] bool."""
        return self.is_ok & (self.decided < 0)


def grow_tree(config: SearchConfig, rule: TreeRule, job: Job) -> Tree:
    """Grow a batch of trees of R = N * C rows: N = T nodes of C = A + `num_extra_rows`."""
    num_trees, num_nodes, width = len(job.keys), config.num_simulations, config.num_candidates
    num_rows = width + rule.num_extra_rows
    zeros, none = jnp.zeros(num_trees), jnp.zeros(num_trees, jnp.int32)
    unused = dict(value=zeros, prior_logits=jnp.zeros((num_trees, width)))

    # mctx expands nothing itself: the loop does, when it knows what the turn is.
    def recurrent_fn(*_):
        return mctx.RecurrentFnOutput(reward=zeros, discount=zeros, **unused), ()

    # One rule of selection, at the root as below it.
    def select(rng_key, tree: MctxTree, node: Array, depth=None) -> Array:
        del rng_key, depth  # selection draws no noise
        return rule.select(tree, node)

    def loop_fn(lo, hi, body, carry):
        del lo, hi  # mctx does not count the first turn

        # Over when the budget is spent, or when no tree is still searching.
        def is_active(carry):
            turn, (_, tree), _ = carry
            return (turn < num_nodes) & jnp.any(tree.extra_data.is_active)

        # The reader's memory travels beside mctx's tree, which knows nothing of it.
        def take_turn(carry):
            turn, (key, old), memory = carry
            key, new = body(old.extra_data.slot, (key, old))
            tree, memory = settle(config, rule, job, old, new, memory)
            return turn + 1, (key, tree), memory

        memory = job.reader.open(job.params, job.prompts, num_nodes * num_rows)
        _, (key, tree), memory = jax.lax.while_loop(is_active, take_turn, (0, carry, memory))
        return key, tree.replace(extra_data=(tree.extra_data, job.reader.text(memory)))

    # mctx lends its selection and its topology; the statistics are the rule's.
    tree = mctx.search(
        params=(),
        rng_key=jax.random.key(0),  # split by mctx, read by nobody
        root=mctx.RootFnOutput(embedding=(), **unused),
        recurrent_fn=recurrent_fn,
        root_action_selection_fn=select,
        interior_action_selection_fn=select,
        num_simulations=num_nodes - 1,
        loop_fn=loop_fn,
        extra_data=TreeGrowth(
            rows=empty_rows(num_trees, num_nodes, num_rows),
            path=jnp.full((num_trees, num_nodes, job.max_steps - 1), -1, jnp.int32),
            key=jnp.zeros((num_trees, num_nodes, 2), jnp.uint32),
            slot=none - 1,
            decided=none - 1,
            is_ok=job.prompts.problem_id >= 0,
            num_simulations=none,
            num_wasted=none,
            cost=Cost(none, none, none),
        ),
    )
    chex.assert_shape([tree.children_values, tree.children_visits], (num_trees, num_nodes, width))
    return to_tree(job, tree)


def settle(
    config: SearchConfig, rule: TreeRule, job: Job, old: MctxTree, new: MctxTree, memory: Memory
) -> tuple[MctxTree, Memory]:
    """Make of mctx's simulation a turn: decide a tree, visit an ended leaf again, or grow.

    `new` is `old` after mctx's body, which selected the leaf (parent, action) of every tree and
    made a node for it in the slot after the newest.
    """
    growth: TreeGrowth = old.extra_data
    trees, slot = jnp.arange(len(growth.slot)), growth.slot + 1
    parent, action = new.parents[trees, slot], new.action_from_parent[trees, slot]
    # The statistics of the leaf as they were, before mctx backed anything up.
    visits = old.children_visits[trees, parent, action]
    value = old.children_values[trees, parent, action]
    leaf = parent * growth.rows.kind.shape[2] + action

    # What becomes of each tree? In its first turn the leaf is the prompt: nothing of it is set.
    is_deciding = jnp.zeros_like(growth.is_ok)
    if config.end_threshold is not None:
        is_finished = growth.rows.is_finished[trees, parent, action]
        is_deciding = growth.is_active & is_finished & (value >= config.end_threshold)
    is_ended = growth.rows.is_ended[trees, parent, action]
    is_counted = growth.is_active & ~is_deciding
    is_live, is_wasted = is_counted & ~is_ended, is_counted & is_ended
    is_child = is_live & (slot > 0)

    # Fill the new node. Where nothing grew it is empty, and the next turn fills it.
    node = expand(config, job, growth, memory, parent, action, is_live)
    node = rule.roll_out(job, node)
    chex.assert_shape(list(node.drawn.rows), (len(trees), growth.rows.kind.shape[2]))
    rows, path, key = jax.tree.map(
        lambda x, y: x.at[trees, slot].set(y),
        (growth.rows, growth.path, growth.key),
        (node.drawn.rows, node.path, node.key),
    )

    # Topology is mctx's where a candidate got a node; the statistics are the rule's.
    def taken(name: str) -> Array:
        return jax.vmap(jnp.where)(is_child, getattr(new, name), getattr(old, name))

    tree = old.replace(
        parents=taken("parents"),
        action_from_parent=taken("action_from_parent"),
        children_index=taken("children_index"),
        children_visits=old.children_visits.at[trees, parent, action].add(is_wasted),
        node_visits=old.node_visits.at[trees, slot].set(visits),
        node_values=old.node_values.at[trees, slot].set(value),
        extra_data=TreeGrowth(
            rows=rows,
            path=path,
            key=key,
            slot=jnp.where(is_live, slot, growth.slot),
            decided=jnp.where(is_deciding, leaf, growth.decided),
            is_ok=growth.is_ok & (node.drawn.is_ok | ~is_live),
            num_simulations=growth.num_simulations + is_counted,
            num_wasted=growth.num_wasted + is_wasted,
            cost=jax.tree.map(jnp.add, growth.cost, node.drawn.cost),
        ),
    )
    # A visit walks up from the new node, or from the parent of a leaf that had ended.
    start = jnp.where(is_live, slot, jnp.where(is_wasted, parent, -1))
    return rule.back_up(rule.open(tree, slot, node), start), node.drawn.memory


def expand(
    config: SearchConfig,
    job: Job,
    growth: TreeGrowth,
    memory: Memory,
    parent: Array,
    action: Array,
    is_live: Array,
) -> Node:
    """Draw the candidates of each leaf [B]. Trees that are not live [B] get no lanes."""
    slot, num_rows = growth.slot + 1, growth.rows.kind.shape[2]
    is_first = slot == 0
    # Where the leaf stands.
    path = extend(pick(growth.path, parent), jnp.where(is_first, -1, parent * num_rows + action))
    # A node's key is its parent's with the candidate's number folded in, whatever the batch.
    key = fold_in(pick(growth.key, parent), action)
    key = jnp.where(is_first[:, None], job.keys, key)
    # Its rows are a block of their own; the candidates come first.
    row = slot[:, None] * num_rows + jnp.arange(num_rows)
    candidates = row[:, : config.num_candidates, None]
    drawn = draw_behind(job, memory, path, key, is_live, candidates, is_distinct=True)
    rows = jax.tree.map(lambda x: x[:, :, 0], drawn.rows)
    return Node(path, key, row, is_live, drawn._replace(rows=rows))


def draw_behind(job, memory, path, key, is_live, row, is_distinct: bool = False) -> Drawn:
    """Draw behind one prefix a problem, W = 1: `rows.draw` without that axis, in and out."""
    one = (x[:, None] for x in (path, key, is_live, row))
    drawn = draw(job, memory, *one, is_distinct=is_distinct)
    return drawn._replace(rows=jax.tree.map(lambda x: x[:, 0], drawn.rows))


def to_tree(job: Job, tree: MctxTree) -> Tree:
    """Hand on what mctx and the loop hold. A Tree lists the candidates of all nodes first."""
    growth, tokens = tree.extra_data
    num_trees, num_nodes, num_rows = growth.rows.kind.shape
    width = tree.children_values.shape[2]
    # The order of a Tree, and where each row goes in it.
    blocks = np.arange(num_nodes * num_rows).reshape(num_nodes, num_rows)
    order = np.concatenate([blocks[:, :width].ravel(), blocks[:, width:].ravel()])
    place = jnp.append(np.argsort(order), -1)  # of a row in that order; -1 stays

    def listed(x: Array) -> Array:
        return x.reshape(num_trees, -1)[:, order]

    # A rule's own rows were never selected: no visits, and their scores for values.
    rows = jax.tree.map(listed, growth.rows)
    return make_tree(
        job,
        rows._replace(parent=place[rows.parent]),
        tokens[:, order],
        listed(jnp.zeros_like(growth.rows.kind).at[:, :, :width].set(tree.children_visits)),
        listed(clip(growth.rows.score).at[:, :, :width].set(tree.children_values)),
        growth.cost,
        place[growth.decided],
        is_ok=growth.is_ok,
        num_simulations=growth.num_simulations,
        num_wasted=growth.num_wasted,
    )
