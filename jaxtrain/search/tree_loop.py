"""Every search that walks down a tree, on `mctx.search`, unmodified and through its public names
only.

In a move, mctx selects an unexpanded candidate of every tree and makes room for its node. The tree
orders the node's candidates; when they are there, the method's rule may roll out, then it gives
them their first statistics and backs up. mctx keeps topology and statistics alone.

- The first move expands the prompt. mctx knows of one simulation less.
- A candidate that has ended is never given a node. Either it is *closed*: its visit is counted when
  it is drawn, and a node below which nothing is open is closed as well. Or it is visited again, as
  in the paper: mctx's turn is undone on the small arrays, and the next turn writes in its place.
- A node may *widen*: selection then names a candidate that is not drawn yet.
- mctx's own back-up is discarded; ours takes the mean of what was visited.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import mctx as _mctx
import numpy as np

from jaxtrain.keys import fold_in
from jaxtrain.search.lanes import want
from jaxtrain.search.rows import Job, MctxTree, Rows, back_up, clip, path_to, pick
from jaxtrain.search.slots import Growth, Method, grow
from jaxtrain.search.tree_rule import TreeRule, View
from jaxtrain.structs import Array, Kind, Tree, choose

mctx: Any = _mctx  # its dataclasses hide their fields from a type checker


class TreeState(NamedTuple):
    """What a tree knows besides its rows."""

    tree: MctxTree  # [B]
    key: Array  # [B N 2] uint32
    is_closed: Array  # [B N A] bool
    is_exhausted: Array  # [B N] bool
    slot: Array  # [B] int32, the newest node, -1: none yet
    node: Array  # [B] int32, the node that an order is for, -1: none
    first: Array  # [B] int32, its first candidate of that order
    num_rounds: Array  # [B] int32, rounds of its rollout that were ordered


class TreeMoves:
    """The moves of trees under a rule."""

    def __init__(self, rule: TreeRule, job: Job, body: Callable, rng: Array):
        self.rule, self.job, self.body, self.rng = rule, job, body, rng
        self.config = config = job.config
        self.num_nodes = config.num_simulations
        self.num_candidates = config.max_candidates
        self.num_rows = self.num_candidates + rule.num_extra_rows
        self.is_closing = config.ended_leaves == "closed"
        self.trees = jnp.arange(job.num_trees)

    def move(self, growth: Growth) -> Growth:
        """Take what came back, and order what comes next."""
        return self.select(self.take(growth))

    def nodes(self, rows: Rows) -> Rows:
        """View rows [B R] by node, [B N C]."""
        shape = (len(self.trees), self.num_nodes, self.num_rows)
        return jax.tree.map(lambda x: x.reshape(shape), rows)

    def take(self, growth: Growth) -> Growth:
        """Go on with a rollout, or open the node whose rows are all there and back up."""
        state: TreeState = growth.state
        is_back = growth.is_ready & (state.node >= 0)
        node = jnp.maximum(state.node, 0)
        rows: Rows = jax.tree.map(lambda x: pick(x, node), self.nodes(growth.rows))
        chex.assert_shape(list(rows), (len(self.trees), self.num_rows))

        # A rollout follows the newest candidates of a node that is new.
        cell = jax.vmap(self.rule.follow)(rows, state.num_rounds)
        is_rolling = is_back & (cell >= 0) & (state.first == 0)
        growth = choose(is_rolling, self.order_rollout(growth, node, cell), growth)
        # All is there: first statistics, what is closed, and a visit up to the root.
        state = self.open(growth, node, rows, is_back & ~is_rolling)
        is_done = is_back & ~is_rolling
        num_exhausted = growth.num_exhausted + (growth.is_short[:, 0] & is_done)
        growth = growth._replace(state=state, num_exhausted=num_exhausted)
        return self.decide(growth, node, rows, is_done)

    def decide(self, growth: Growth, node: Array, rows: Rows, is_done: Array) -> Growth:
        """End trees whose best new candidate is finished and crosses the threshold. Leaves that are
        not closed decide when they are selected, as in the paper.
        """
        if not self.is_closing:
            return growth
        best = self.job.decisive(rows)
        is_deciding = is_done & (best >= 0)
        decided = jnp.where(is_deciding, node * self.num_rows + best, growth.decided)
        return growth._replace(decided=decided, is_over=growth.is_over | is_deciding)

    def order_rollout(self, growth: Growth, node: Array, cell: Array) -> Growth:
        """Order a round of a rollout behind row `cell` of a node."""
        state, rule, job = growth.state, self.rule, self.job
        leaf = (node * self.num_rows + cell)[:, None]
        path = path_to(growth.rows.parent, leaf, job.max_steps - 1)
        # Children use fold_in(key, action); rounds take the numbers after the actions.
        key = fold_in(pick(state.key, node), self.num_candidates + state.num_rounds)
        size = rule.num_lanes * rule.num_steps
        first = node * self.num_rows + self.num_candidates + state.num_rounds * size
        row = jnp.arange(size).reshape(rule.num_steps, rule.num_lanes).T
        row = first[:, None, None, None] + row
        is_wanted = jnp.ones(row.shape[:3], bool)
        told = path, key[:, None], row, is_wanted, Kind.ROLLOUT, False, job.max_steps
        return growth._replace(
            pending=want(growth.pending, *told),
            state=state._replace(num_rounds=state.num_rounds + 1),
        )

    def open(self, growth: Growth, node: Array, rows: Rows, is_done: Array) -> TreeState:
        """Give new candidates their first statistics where a node is done, and back up."""
        state, width, trees = growth.state, self.num_candidates, self.trees
        visits, values = jax.vmap(lambda x: self.rule.open(x, width))(rows)
        # What is drawn when a node widens is never rolled out.
        is_first = (state.first == 0)[:, None]
        candidates: Rows = jax.tree.map(lambda x: x[:, :width], rows)
        is_candidate = candidates.kind == Kind.CANDIDATE
        visits = jnp.where(is_first, visits, 0)
        values = jnp.where(is_first, values, clip(candidates.score))
        is_ended = is_candidate & candidates.is_ended & self.is_closing
        visits = jnp.where(is_ended, jnp.maximum(visits, 1), visits)

        # Only the new ones: the others have been searched.
        is_new = is_done[:, None] & (jnp.arange(width) >= state.first[:, None])
        tree, is_closed = state.tree, state.is_closed

        def put(old: Array, new: Array) -> Array:
            return old.at[trees, node].set(jnp.where(is_new, new, old[trees, node]))

        tree = tree.replace(
            children_visits=put(tree.children_visits, visits),
            children_values=put(tree.children_values, values),
        )
        is_short = growth.is_short[:, 0] & is_done
        state = state._replace(
            tree=back_up(tree, jnp.where(is_done, node, -1)),
            is_closed=put(is_closed, is_ended),
            is_exhausted=state.is_exhausted.at[trees, node].max(is_short),
            node=jnp.where(is_done, -1, state.node),
        )
        return self.close(growth, state, jnp.where(is_done, node, -1)) if self.is_closing else state

    def close(self, growth: Growth, state: TreeState, node: Array) -> TreeState:
        """Close the nodes from `node` [B] up to the first below which something is open."""
        tree, view = state.tree, self.view(growth.rows, state)

        @jax.vmap
        def climb(view, can_grow, parents, actions, node):
            def step(carry):
                node, is_closed = carry
                is_open = view._replace(is_closed=is_closed).is_open[node]
                is_open = can_grow[node] | jnp.any(is_open)
                parent = jnp.where(is_open, -1, parents[node])
                at = jnp.where(parent >= 0, parent, self.num_nodes)
                return parent, is_closed.at[at, actions[node]].set(True, mode="drop")

            return jax.lax.while_loop(lambda carry: carry[0] >= 0, step, (node, view.is_closed))[1]

        way = tree.parents, tree.action_from_parent, node
        return state._replace(is_closed=climb(view, self.can_widen(view), *way))

    def view(self, rows: Rows, state: TreeState) -> View:
        """Make what selection sees."""
        candidates = jax.tree.map(lambda x: x[:, :, : self.num_candidates], self.nodes(rows))
        return View(candidates, state.is_closed, state.is_exhausted)

    def can_widen(self, view: View) -> Array:
        """Say which nodes [B N] (or one) may draw further candidates."""
        if self.config.widening.max_candidates is None:
            return jnp.zeros_like(view.is_exhausted)
        return (view.num_drawn < self.num_candidates) & ~view.is_exhausted

    def can_select(self, view: View) -> Array:
        """Say below which nodes [B N] (or one) there is something to select."""
        return jnp.any(view.is_open, axis=-1) | self.can_widen(view)

    def select_candidate(self, tree: MctxTree, node: Array) -> Array:
        """Choose among a node's open candidates, or the next one to draw."""
        view: View = jax.tree.map(lambda x: x[node], tree.extra_data)
        action = self.rule.select(tree, node, view.is_open)
        # More are drawn where none is open, or too few for so many visits.
        visits = jnp.maximum(tree.node_visits[node], 1).astype(jnp.float32)
        enough = self.config.num_candidates * visits**self.config.widening.exponent
        is_widening = (view.num_drawn < enough) | ~jnp.any(view.is_open)
        is_widening &= self.can_widen(view)
        return jnp.where(is_widening, view.num_drawn, action).astype(jnp.int32)

    def select(self, growth: Growth) -> Growth:
        """Let mctx select the next leaf, and make of it a turn: decide, visit again, or order."""
        state, config, trees = growth.state, self.config, self.trees
        view = self.view(growth.rows, state)
        is_asked = growth.is_ready & (state.node < 0)
        # Over when the budget is spent, or when nothing is open below the prompt.
        is_open = self.can_select(jax.tree.map(lambda x: x[:, 0], view))
        is_spent = growth.num_simulations >= config.num_simulations
        is_spent |= self.job.has_spent(growth.rows)
        is_spent |= (state.slot >= 0) & ~is_open
        is_over = growth.is_over | (is_asked & is_spent)
        is_asked = is_asked & ~is_over

        # The leaf, and its statistics before mctx backed anything up.
        old, slot = state.tree.replace(extra_data=view), state.slot + 1
        _, new = self.body(state.slot, (self.rng, old))
        parent, action = new.parents[trees, slot], new.action_from_parent[trees, slot]
        visits = old.children_visits[trees, parent, action]
        value = old.children_values[trees, parent, action]
        leaf = parent * self.num_rows + action
        there: Rows = jax.tree.map(lambda x: pick(x, leaf), growth.rows)

        # What becomes of each tree? In its first turn the leaf is the prompt: nothing of it is set.
        is_first = slot == 0
        is_more = is_asked & ~is_first & (there.kind == Kind.EMPTY)
        is_deciding = jnp.zeros_like(is_asked)
        if config.end_threshold is not None:
            is_deciding = is_asked & ~is_first & ~is_more
            is_deciding &= there.is_finished & (value >= config.end_threshold)
        is_counted = is_asked & ~is_deciding
        is_wasted = is_counted & ~is_first & ~is_more & there.is_ended
        is_new = is_counted & ~is_more & ~is_wasted
        is_child = is_new & ~is_first

        # Topology is mctx's where a candidate got a node; the statistics are the rule's.
        def taken(name: str) -> Array:
            return jax.vmap(jnp.where)(is_child, getattr(new, name), getattr(old, name))

        at = jnp.where(is_new, slot, self.num_nodes)
        key = fold_in(pick(state.key, parent), action)
        key = jnp.where(is_first[:, None], growth.key, key)
        tree = old.replace(
            parents=taken("parents"),
            action_from_parent=taken("action_from_parent"),
            children_index=taken("children_index"),
            children_visits=old.children_visits.at[trees, parent, action].add(is_wasted),
            node_visits=old.node_visits.at[trees, at].set(visits, mode="drop"),
            node_values=old.node_values.at[trees, at].set(value, mode="drop"),
            extra_data=(),
        )
        state = state._replace(
            tree=back_up(tree, jnp.where(is_wasted, parent, -1)),
            key=state.key.at[trees, at].set(key, mode="drop"),
            slot=jnp.where(is_new, slot, state.slot),
            node=jnp.where(is_new, slot, jnp.where(is_more, parent, state.node)),
            first=jnp.where(is_new, 0, jnp.where(is_more, action, state.first)),
            num_rounds=jnp.where(is_counted, 0, state.num_rounds),
        )
        growth = growth._replace(
            is_over=is_over | is_deciding,
            decided=jnp.where(is_deciding, leaf, growth.decided),
            num_simulations=growth.num_simulations + is_counted,
            num_wasted=growth.num_wasted + is_wasted,
            state=state,
        )
        ordered = self.order_candidates(growth, jnp.where(is_first, -1, leaf), is_more)
        return choose(is_new | is_more, ordered, growth)

    def order_candidates(self, growth: Growth, leaf: Array, is_more: Array) -> Growth:
        """Order the first candidates of a new node behind row `leaf`, or more of an old one."""
        state, depth = growth.state, self.job.max_steps - 1
        node = jnp.maximum(state.node, 0)
        # An old node stands where the row before its candidates does.
        first_row = node * self.num_rows
        leaf = jnp.where(is_more, pick(growth.rows.parent, first_row), leaf)
        path = path_to(growth.rows.parent, leaf[:, None], depth)
        row = first_row[:, None, None, None] + jnp.arange(self.num_candidates)[:, None]
        number = jnp.arange(self.num_candidates) - state.first[:, None]
        num_more = jnp.where(is_more, self.config.widening.num_more, self.config.num_candidates)
        is_wanted = ((number >= 0) & (number < num_more[:, None]))[:, None]
        key = pick(state.key, node)[:, None]
        told = path, key, row, is_wanted, Kind.CANDIDATE, True, self.job.max_steps
        pending = want(growth.pending, *told)
        return growth._replace(pending=pending, is_short=jnp.zeros_like(growth.is_short))

    def read(self, growth: Growth) -> tuple[Array, Array, Array]:
        """Tell visits and values of all rows [B R], and how many nodes are closed [B]."""
        state, rows = growth.state, self.nodes(growth.rows)
        width, num_trees = self.num_candidates, len(self.trees)
        # A rule's own rows were never selected: no visits, and their scores for values.
        visits = jnp.zeros_like(rows.kind).at[:, :, :width].set(state.tree.children_visits)
        value = clip(rows.score).at[:, :, :width].set(state.tree.children_values)
        is_node = jnp.arange(self.num_nodes) <= state.slot[:, None]
        is_open = self.can_select(self.view(growth.rows, state))
        num_closed = jnp.sum(is_node & ~is_open, axis=1)
        return visits.reshape(num_trees, -1), value.reshape(num_trees, -1), num_closed


def grow_tree(rule: TreeRule, job: Job) -> Tree:
    """Grow trees of R = N * C rows: N = T nodes of C rows, A candidates and the rule's own."""
    config, num_trees = job.config, job.num_trees
    num_nodes, width = config.num_simulations, config.max_candidates
    zeros, none = jnp.zeros(num_trees), jnp.zeros(num_trees, jnp.int32)
    unused = dict(value=zeros, prior_logits=jnp.zeros((num_trees, width)))
    moves: TreeMoves | None = None

    # mctx expands nothing itself: a node's candidates are drawn when it is there.
    def recurrent_fn(*_):
        return mctx.RecurrentFnOutput(reward=zeros, discount=zeros, **unused), ()

    # One rule of selection, at the root as below it.
    def select(rng_key, tree: MctxTree, node: Array, depth=None) -> Array:
        del rng_key, depth  # selection draws no noise
        assert moves is not None
        return moves.select_candidate(tree, node)

    def loop_fn(lo, hi, body, carry):
        nonlocal moves
        del lo, hi  # mctx does not count the first turn
        key, tree = carry
        moves = TreeMoves(rule, job, body, key)
        blocks = np.arange(num_nodes * moves.num_rows).reshape(num_nodes, -1)
        method = Method(
            num_rows=blocks.size,
            width=1,
            depth=job.max_steps - 1,
            num_candidates=max(width, rule.num_lanes),
            num_lanes=rule.num_writers(config.num_lanes or config.num_candidates, width),
            num_steps=max(1, rule.num_steps),
            compares=True,
            may_repeat=config.candidates == "independent",
            state=TreeState(
                tree=tree,
                key=jnp.zeros((num_trees, num_nodes, 2), jnp.uint32),
                is_closed=jnp.zeros((num_trees, num_nodes, width), bool),
                is_exhausted=jnp.zeros((num_trees, num_nodes), bool),
                slot=none - 1,
                node=none - 1,
                first=none,
                num_rounds=none,
            ),
            move=moves.move,
            read=moves.read,
            # a Tree lists the candidates of all nodes first
            listing=np.concatenate([blocks[:, :width].ravel(), blocks[:, width:].ravel()]),
        )
        return key, tree.replace(extra_data=grow(method, job))

    # mctx lends its selection and its topology; the statistics are the rule's.
    return mctx.search(
        params=(),
        rng_key=jax.random.key(0),  # split by mctx, read by nobody
        root=mctx.RootFnOutput(embedding=(), **unused),
        recurrent_fn=recurrent_fn,
        root_action_selection_fn=select,
        interior_action_selection_fn=select,
        num_simulations=num_nodes - 1,
        loop_fn=loop_fn,
        extra_data=(),
    ).extra_data
