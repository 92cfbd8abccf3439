"""The loop of every search that walks down a tree, on `mctx.search`, unmodified and through its
public names only.

In a turn, mctx selects an unexpanded candidate of every tree and makes room for its node. The loop
fills it: it draws the node's own candidates, and lets the method's rule roll out, set the first
statistics and back up. mctx keeps topology and statistics alone; rows and memory are the loop's.

- The first turn expands the prompt. mctx knows of one simulation less.
- A candidate that has ended is never given a node: it gains a visit, mctx's turn is undone on the
  small arrays (never on those of whole nodes), and the next turn writes into the same place.
- mctx's own back-up is discarded; the rule has its own.
- The loop ends when every tree has been decided or set aside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import mctx as _mctx
import numpy as np

from jaxtrain.keys import fold_in
from jaxtrain.search.rows import (
    DrawFn,
    Rows,
    empty_rows,
    extend,
    first_copies,
    make_draw,
    make_tree,
    pick,
    root_paths,
)
from jaxtrain.structs import Array, Cost, Kind, Memory, Params, Path, Prompts, Reader, Tree

if TYPE_CHECKING:
    from jaxtrain.search.config import SearchConfig

mctx: Any = _mctx  # its dataclasses hide their fields from a type checker
MctxTree = Any  # mctx.Tree, with a TreeGrowth as its extra_data


class Expansion(NamedTuple):
    """What a turn makes of the leaves that it expands, one a tree."""

    path: Path  # [B 1], of the leaf
    key: Array  # [B 2] uint32, of its draws
    row: Array  # [B C] int32, the rows that are the node's
    is_live: Array  # [B] bool, False: nothing is expanded here
    rows: Rows  # [B C]: A candidates, then the rule's own
    is_ok: Array  # [B] bool
    cost: Cost
    memory: Memory
    opening: Any = None  # what `open` is to know from `roll_out`


class TreeRule(NamedTuple):
    """A method: how it selects, what it draws beside the candidates, how it values."""

    num_extra_rows: int  # of a node, behind its A candidates
    # (tree without batch, node) -> which of its candidates, [] int32
    select: Callable[[MctxTree, Array], Array]
    # adds the extra rows to those of the candidates
    roll_out: Callable[[DrawFn, Expansion], Expansion]
    # (tree, node [B], expansion): gives its candidates their first statistics, where it is live
    open: Callable[[MctxTree, Array, Expansion], MctxTree]
    # (tree, node [B]) -> tree after a visit from the node up to the root; -1: as it was
    back_up: Callable[[MctxTree, Array], MctxTree]


class TreeGrowth(NamedTuple):
    """What a tree knows besides mctx's arrays."""

    rows: Rows  # [B N C]
    path: Path  # [B N], of the nodes
    key: Array  # [B N 2] uint32
    slot: Array  # [B] int32, the newest node, -1: none yet
    decided: Array  # [B] int32, row of the leaf that crossed the threshold, -1: none
    is_ok: Array  # [B] bool
    num_simulations: Array  # [B] int32
    num_wasted: Array  # [B] int32
    cost: Cost


@dataclass(frozen=True)
class Setting:
    """What stays the same from turn to turn."""

    rule: TreeRule
    num_candidates: int
    end_threshold: float | None
    draw: DrawFn
    keys: Array  # [B 2] uint32, of the problems


def grow_tree(
    config: SearchConfig,
    rule: TreeRule,
    max_steps: int,
    reader: Reader,
    params: tuple[Params, Params],
    prompts: Prompts,
    keys: Array,
    temperature: Array,
) -> Tree:
    """Grow a batch of trees of R = N * C rows, N = T nodes of C = A + `num_extra_rows` rows."""
    num_nodes, width = config.num_simulations, config.num_candidates
    num_trees, num_rows = prompts.length.shape[0], width + rule.num_extra_rows
    draw = make_draw(reader, params, temperature)
    setting = Setting(rule, width, config.end_threshold, draw, keys)
    zeros, none = jnp.zeros(num_trees), jnp.zeros(num_trees, jnp.int32)
    unused = dict(value=zeros, prior_logits=jnp.zeros((num_trees, width)))

    def recurrent_fn(*_):
        return mctx.RecurrentFnOutput(reward=zeros, discount=zeros, **unused), ()

    def select(rng_key, tree: MctxTree, node: Array, depth=None):
        del rng_key, depth  # selection draws no noise
        return rule.select(tree, node)

    def loop_fn(lo, hi, body, carry):
        del lo, hi  # mctx does not count the first turn

        def is_active(carry):
            turn, (_, tree), _ = carry
            return (turn < num_nodes) & jnp.any(is_growing(tree.extra_data))

        def take_turn(carry):
            turn, (key, old), memory = carry
            key, new = body(old.extra_data.slot, (key, old))
            chex.assert_shape([new.children_values, new.children_visits], old.children_index.shape)
            tree, memory = settle(setting, old, new, memory)
            return turn + 1, (key, tree), memory

        memory = reader.open(params, prompts, num_nodes * num_rows)
        _, (key, tree), memory = jax.lax.while_loop(is_active, take_turn, (0, carry, memory))
        return key, tree.replace(extra_data=(tree.extra_data, reader.text(memory)))

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
            path=root_paths(num_trees, num_nodes, max_steps - 1),
            key=jnp.zeros((num_trees, num_nodes, 2), jnp.uint32),
            slot=none - 1,
            decided=none - 1,
            is_ok=prompts.problem_id >= 0,
            num_simulations=none,
            num_wasted=none,
            cost=Cost(none, none, none),
        ),
    )
    chex.assert_shape([tree.children_values, tree.children_visits], (num_trees, num_nodes, width))
    return to_tree(prompts, tree)


def is_growing(growth: TreeGrowth) -> Array:
    """Tell which trees still search, [B] bool."""
    return growth.is_ok & (growth.decided < 0)


def settle(
    setting: Setting, old: MctxTree, new: MctxTree, memory: Memory
) -> tuple[MctxTree, Memory]:
    """Make of mctx's simulation a turn: decide a tree, visit an ended leaf again, or grow.

    `new` is `old` after mctx's body, which selected the leaf (parent, action) of every tree and
    made a node for it in the slot after the newest.
    """
    growth: TreeGrowth = old.extra_data
    trees, slot = jnp.arange(growth.slot.shape[0]), growth.slot + 1
    parent, action = new.parents[trees, slot], new.action_from_parent[trees, slot]
    visits = old.children_visits[trees, parent, action]
    value = old.children_values[trees, parent, action]

    # What becomes of each tree? In its first turn the leaf is the prompt, and nothing of it is set.
    is_active = is_growing(growth)
    is_deciding = jnp.zeros_like(is_active)
    if setting.end_threshold is not None:
        is_finished = growth.rows.is_finished[trees, parent, action]
        is_deciding = is_active & is_finished & (value >= setting.end_threshold)
    is_ended = growth.rows.is_ended[trees, parent, action]
    is_counted = is_active & ~is_deciding
    is_live, is_wasted = is_counted & ~is_ended, is_counted & is_ended

    # Expand what grows.
    leaf = parent * growth.rows.kind.shape[2] + action
    node = expand_leaf(setting, growth, memory, parent, action, leaf, is_live)
    growth = TreeGrowth(
        rows=jax.tree.map(lambda x, y: x.at[trees, slot].set(y), growth.rows, node.rows),
        path=jax.tree.map(lambda x, y: x.at[trees, slot].set(y[:, 0]), growth.path, node.path),
        key=growth.key.at[trees, slot].set(node.key),
        slot=jnp.where(is_live, slot, growth.slot),
        decided=jnp.where(is_deciding, leaf, growth.decided),
        is_ok=growth.is_ok & (node.is_ok | ~is_live),
        num_simulations=growth.num_simulations + is_counted,
        num_wasted=growth.num_wasted + is_wasted,
        cost=jax.tree.map(jnp.add, growth.cost, node.cost),
    )

    # Take over the topology of mctx where a candidate got a node; the statistics are the rule's.
    is_child = is_live & (slot > 0)

    def taken(mine: Array, theirs: Array) -> Array:
        return jnp.where(is_child.reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine)

    tree = old.replace(
        parents=taken(old.parents, new.parents),
        action_from_parent=taken(old.action_from_parent, new.action_from_parent),
        children_index=taken(old.children_index, new.children_index),
        children_visits=old.children_visits.at[trees, parent, action].add(is_wasted),
        node_visits=old.node_visits.at[trees, slot].set(visits),
        node_values=old.node_values.at[trees, slot].set(value),
        extra_data=growth,
    )
    start = jnp.where(is_live, slot, jnp.where(is_wasted, parent, -1))
    return setting.rule.back_up(setting.rule.open(tree, slot, node), start), node.memory


def expand_leaf(
    setting: Setting,
    growth: TreeGrowth,
    memory: Memory,
    parent: Array,
    action: Array,
    leaf: Array,
    is_live: Array,
) -> Expansion:
    """Draw the candidates of each leaf [B], and roll out. Trees that are not live get no lanes."""
    slot, width = growth.slot + 1, setting.num_candidates
    num_trees, num_nodes, num_rows = growth.rows.kind.shape

    # A node's key is its parent's with the candidate's number folded in, whatever the batch.
    above = jax.tree.map(lambda x: pick(x, parent)[:, None], growth.path)
    is_first = slot == 0
    path = jax.tree.map(
        lambda x, y: jnp.where(is_first.reshape(-1, *[1] * (y.ndim - 1)), x, y),
        root_paths(num_trees, 1, growth.path.rows.shape[2]),
        extend(above, leaf[:, None]),
    )
    key = fold_in(pick(growth.key, parent), action)
    key = jnp.where(is_first[:, None], setting.keys, key)

    # Candidates; one that repeats an earlier one's text is never searched.
    row = slot[:, None] * num_rows + jnp.arange(num_rows)
    drawn = setting.draw(memory, path, key[:, None], is_live[:, None], row[:, None, :width, None])
    rows = jax.tree.map(lambda x: x[:, 0, :, 0], drawn.rows)
    is_first_copy = first_copies(drawn.proposal.steps.tokens[:, 0, :, 0], rows.length)
    is_copy = (rows.length > 0) & ~is_first_copy
    rows = rows._replace(kind=jnp.where(is_copy, int(Kind.DUPLICATE), rows.kind))

    proposal = drawn.proposal
    node = Expansion(path, key, row, is_live, rows, proposal.is_ok, proposal.cost, drawn.memory)
    node = setting.rule.roll_out(setting.draw, node)
    chex.assert_shape(jax.tree.leaves(node.rows), (num_trees, num_rows))
    return node


def to_tree(prompts: Prompts, tree: MctxTree) -> Tree:
    """Hand on what mctx and the loop hold. A Tree lists the candidates of all nodes first."""
    growth, tokens = tree.extra_data
    num_trees, num_nodes, num_rows = growth.rows.kind.shape
    width = tree.children_values.shape[2]
    blocks = np.arange(num_nodes * num_rows).reshape(num_nodes, num_rows)
    order = np.concatenate([blocks[:, :width].ravel(), blocks[:, width:].ravel()])
    place = np.append(np.argsort(order), -1)  # of a row; -1 stays

    def listed(x: Array) -> Array:
        return x.reshape(num_trees, -1, *x.shape[3:])[:, order]

    rows = jax.tree.map(listed, growth.rows)
    rows = rows._replace(parent=jnp.asarray(place)[rows.parent])
    extra = ((0, 0), (0, 0), (0, num_rows - width))
    values = jnp.clip(growth.rows.score, 0.0, 1.0).at[:, :, :width].set(tree.children_values)
    return make_tree(
        prompts,
        rows,
        tokens[:, order],
        growth.cost,
        jnp.asarray(place)[growth.decided],
        visits=listed(jnp.pad(tree.children_visits, extra)),
        value=listed(values),
        is_ok=growth.is_ok,
        num_simulations=growth.num_simulations,
        num_wasted=growth.num_wasted,
    )
