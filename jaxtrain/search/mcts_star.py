"""MCTS* (ReST-MCTS*, Algorithm 2) on `mctx.search`, unmodified and through its public names only.

An iteration of the paper selects a leaf C, expands it, rolls its best new child out and backs
values up. mctx's simulation selects a candidate (P, a), which *is* that leaf, and makes a node for
it; our `recurrent_fn` fills the node with C's own candidates and the rollout. Three things differ
from mctx's own statistics, so our loop keeps its own and takes only topology and embeddings from
mctx:

- a new node is *opened*: its candidates' values are their scores, and the one that was rolled out
  counts as visited;
- values are the visit-weighted mean of the visited children (Eq. 36), without the node's own
  evaluation;
- a leaf that has ended is never given a node: the simulation is undone on the small arrays (never
  on the embeddings), the leaf gains a visit, and the next simulation writes into the same slot.

Selection draws no noise: candidates are exchangeable samples, so taking the first among equals is a
fair tie-break.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import mctx as _mctx
from flax import struct

from jaxtrain.boundaries import TraceConfig
from jaxtrain.errors import require_at_least, require_one_of, require_share
from jaxtrain.keys import fold_in
from jaxtrain.search.expand import Node, append, clip, make_expand, pick
from jaxtrain.structs import Array, Kind, Prefix, Prompts, Tree

if TYPE_CHECKING:
    from jaxtrain.search.config import SearchConfig

mctx: Any = _mctx  # its dataclasses hide their fields from a type checker
MctxTree = Any  # mctx.Tree


@dataclass(frozen=True)
class MctsStarConfig:
    """Constants of MCTS*; they follow the paper's Algorithm 2 and its code."""

    exploration: float = 0.7  # eps of UCB1: v + eps * sqrt(ln n_parent / n)
    unvisited_bonus: float = 1.0  # stands for the bonus of a child never visited
    num_rollout_steps: int = 1  # m: steps of the greedy rollout from the best new candidate
    num_rollout_candidates: int = 1  # d: candidates drawn for each of them
    # alpha: v = alpha * own value + (1 - alpha) * best value of the rollout
    rollout_blend: float = 0.5
    # where the best value starts: paper: 0; self: the child's own value
    rollout_floor: str = "paper"

    def __post_init__(self):
        section = "search.mcts_star"
        require_at_least(0, section, self, "exploration", "unvisited_bonus", "num_rollout_steps")
        require_at_least(1, section, self, "num_rollout_candidates")
        require_share(section, self, "rollout_blend")
        require_one_of(section, self, rollout_floor=("paper", "self"))

    def rollout_depth(self, max_steps: int) -> int:
        """Count the steps of a rollout at most: m, or as many as fit below the first candidate."""
        return min(self.num_rollout_steps, max_steps - 1)

    def round_steps(self, max_steps: int) -> int:
        """Count the steps that a round of the rollout draws at once: all where d is 1, for then
        nothing is chosen between.
        """
        depth = self.rollout_depth(max_steps)
        return depth if self.num_rollout_candidates == 1 else min(depth, 1)

    def num_rounds(self, max_steps: int) -> int:
        """Count the rounds of a rollout at most."""
        return self.rollout_depth(max_steps) // max(self.round_steps(max_steps), 1)


@struct.dataclass
class Progress:
    """What a tree knows besides mctx's arrays; it travels as the tree's `extra_data`."""

    slot: Array  # [B] int32, the newest node
    decided: Array  # [B] int32, row of the leaf that crossed the threshold, -1: none
    is_ok: Array  # [B] bool
    num_simulations: Array  # [B] int32
    num_wasted: Array  # [B] int32
    lane_tokens: Array  # [B] int32, of its batch, whether or not the tree itself grew


def grow_mcts_star(
    config: SearchConfig,
    trace: TraceConfig,
    sample: Callable,
    score: Callable,
    prompts: Prompts,
    keys: Array,
    temperature: Array,
) -> Tree:
    """Grow a batch of trees of R = T * A + T * min(m, D - 1) * d rows.

    See `search.make_grow` for the arguments.
    """
    num_problems = prompts.length.shape[0]
    expand = make_expand(config, trace.max_steps, sample, score)
    is_real = prompts.problem_id >= 0
    zeros = jnp.zeros(num_problems)
    unused = dict(value=zeros, prior_logits=jnp.zeros((num_problems, config.num_candidates)))

    room = (trace.max_steps - 1) * trace.max_step_tokens
    prefix = Prefix(jnp.pad(prompts.tokens, ((0, 0), (0, room))), prompts.length)
    root = expand(prefix, jnp.zeros(num_problems, jnp.int32), keys, is_real, temperature)

    def recurrent_fn(_, rng_key, action, node: Node):
        del rng_key  # a node's key is its parent's and its action, whatever the batch
        is_live = node.is_live & node.is_ok & pick(node.is_valid & ~node.is_ended, action)
        child = append(node.prefix, pick(node.tokens, action), pick(node.length, action))
        node = expand(child, node.depth + 1, fold_in(node.key, action), is_live, temperature)
        return mctx.RecurrentFnOutput(reward=zeros, discount=zeros, **unused), node

    def select(rng_key, tree: MctxTree, node_index, depth=None):
        del rng_key, depth
        return select_candidate(config, tree, node_index)

    def loop_fn(lo, hi, body, carry):
        def simulate(_, carry):
            key, old = carry
            key, new = body(old.extra_data.slot, (key, old))
            return key, settle(config, old, new)

        key, tree = carry
        is_ok = tree.embeddings.is_ok[:, 0] & is_real
        tree = tree.replace(
            node_visits=tree.node_visits.at[:, 0].set(0),
            extra_data=tree.extra_data.replace(is_ok=is_ok),
        )
        at_root = jnp.zeros(num_problems, jnp.int32)
        tree = back_up(open_node(config, tree, at_root, is_ok), jnp.where(is_ok, at_root, -1))
        return jax.lax.fori_loop(lo, hi, simulate, (key, tree))

    tree = mctx.search(
        params=(),
        rng_key=jax.random.key(0),  # split by mctx, read by nobody
        root=mctx.RootFnOutput(embedding=root, **unused),
        recurrent_fn=recurrent_fn,
        root_action_selection_fn=select,
        interior_action_selection_fn=select,
        num_simulations=config.num_simulations - 1,
        loop_fn=loop_fn,
        extra_data=Progress(
            slot=jnp.zeros(num_problems, jnp.int32),
            decided=jnp.full(num_problems, -1, jnp.int32),
            is_ok=is_real,
            num_simulations=is_real.astype(jnp.int32),
            num_wasted=jnp.zeros(num_problems, jnp.int32),
            lane_tokens=root.lane_tokens,
        ),
    )
    return to_rows(config, prompts, tree)


def select_candidate(config: SearchConfig, tree: MctxTree, node_index: Array) -> Array:
    """Choose among a node's candidates by UCB1 (Eq. 33). `tree` is unbatched. Returns [] int32."""
    values, visits = tree.children_values[node_index], tree.children_visits[node_index]
    log_parent = jnp.log(jnp.maximum(tree.node_visits[node_index], 1).astype(jnp.float32))
    explore = config.mcts_star.exploration * jnp.sqrt(log_parent / jnp.maximum(visits, 1))
    ucb = values + jnp.where(visits > 0, explore, config.mcts_star.unvisited_bonus)
    return jnp.argmax(jnp.where(tree.embeddings.is_valid[node_index], ucb, -jnp.inf)).astype(
        jnp.int32
    )


def open_node(config: SearchConfig, tree: MctxTree, index: Array, is_new: Array) -> MctxTree:
    """Give the candidates of node `index` [B] their values, and the rolled-out one its visit, where
    `is_new` [B].
    """
    rows = jnp.arange(index.shape[0])
    node: Node = jax.tree.map(lambda x: x[rows, index], tree.embeddings)
    is_best = jnp.arange(config.num_candidates) == node.best[:, None]
    values = jnp.where(is_best, node.best_value[:, None], clip(node.score))
    visits = (is_best & (config.mcts_star.num_rollout_steps > 0)).astype(jnp.int32)
    keep = ~is_new[:, None]
    return tree.replace(
        children_values=tree.children_values.at[rows, index].set(
            jnp.where(keep, tree.children_values[rows, index], values)
        ),
        children_visits=tree.children_visits.at[rows, index].set(
            jnp.where(keep, tree.children_visits[rows, index], visits)
        ),
    )


@jax.vmap
def back_up(tree: MctxTree, index: Array) -> MctxTree:
    """Walk from node `index` [B] to the root (Eq. 35-36); -1 leaves a tree as it is.

    n += 1; v = sum n_c v_c / sum n_c over visited children where there are any; both copied into
    the parent's slot.
    """

    def step(carry):
        index, n, v, children_n, children_v = carry
        visits = children_n[index]
        total = jnp.sum(visits)
        mean = jnp.sum(visits * children_v[index]) / jnp.maximum(total, 1)
        n = n.at[index].add(1)
        v = v.at[index].set(jnp.where(total > 0, mean, v[index]))
        parent, action = tree.parents[index], tree.action_from_parent[index]
        # At the root the parent is -1: the write is aimed past the end, where scatters drop it.
        slot = jnp.where(parent >= 0, parent, n.shape[0])
        children_n = children_n.at[slot, action].set(n[index], mode="drop")
        children_v = children_v.at[slot, action].set(v[index], mode="drop")
        return parent, n, v, children_n, children_v

    carry = index, tree.node_visits, tree.node_values, tree.children_visits, tree.children_values
    _, n, v, children_n, children_v = jax.lax.while_loop(lambda carry: carry[0] >= 0, step, carry)
    return tree.replace(
        node_visits=n, node_values=v, children_visits=children_n, children_values=children_v
    )


def settle(config: SearchConfig, old: MctxTree, new: MctxTree) -> MctxTree:
    """Turn mctx's simulation into an iteration of Algorithm 2: decide, visit an ended leaf, or grow
    the tree.

    `new` is `old` after mctx's body, which selected the leaf (parent, action) of every tree and
    wrote a node for it into the slot after the newest.
    """
    progress: Progress = old.extra_data
    rows, slot = jnp.arange(progress.slot.shape[0]), progress.slot + 1
    parent, action = new.parents[rows, slot], new.action_from_parent[rows, slot]
    is_ended = new.embeddings.is_ended[rows, parent, action]
    visits, value = (
        old.children_visits[rows, parent, action],
        old.children_values[rows, parent, action],
    )

    is_active = progress.is_ok & (progress.decided < 0)
    is_deciding = jnp.zeros_like(is_active)
    if config.end_threshold is not None:
        is_finished = new.embeddings.is_finished[rows, parent, action]
        is_deciding = is_active & is_finished & (value >= config.end_threshold)
    is_counted = is_active & ~is_deciding
    is_growing, is_wasted = is_counted & ~is_ended, is_counted & is_ended
    is_ok = new.embeddings.is_ok[rows, slot] | ~is_growing

    def taken(mine: Array, theirs: Array) -> Array:
        return jnp.where(is_growing.reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine)

    tree = old.replace(
        embeddings=new.embeddings,
        parents=taken(old.parents, new.parents),
        action_from_parent=taken(old.action_from_parent, new.action_from_parent),
        children_index=taken(old.children_index, new.children_index),
        children_visits=old.children_visits.at[rows, parent, action].add(is_wasted),
        node_visits=old.node_visits.at[rows, slot].set(visits),
        node_values=old.node_values.at[rows, slot].set(value),
        extra_data=Progress(
            slot=jnp.where(is_growing, slot, progress.slot),
            decided=jnp.where(
                is_deciding, parent * config.num_candidates + action, progress.decided
            ),
            is_ok=progress.is_ok & is_ok,
            num_simulations=progress.num_simulations + is_counted,
            num_wasted=progress.num_wasted + is_wasted,
            lane_tokens=progress.lane_tokens + new.embeddings.lane_tokens[rows, slot],
        ),
    )
    start = jnp.where(is_growing, slot, jnp.where(is_wasted, parent, -1))
    return back_up(open_node(config, tree, slot, is_growing), start)


def to_rows(config: SearchConfig, prompts: Prompts, tree: MctxTree) -> Tree:
    """Read the engine-neutral rows out of mctx's arrays: T * A candidates in node order, then the
    rollout steps.
    """
    node, progress = tree.embeddings, tree.extra_data
    num_problems, num_nodes, width = node.score.shape
    num_rounds, d = node.rollout_score.shape[2:]
    nodes = jnp.arange(num_nodes)
    is_grown = (nodes <= progress.slot[:, None]) & (prompts.problem_id >= 0)[:, None]

    above = jnp.where(nodes > 0, tree.parents * width + tree.action_from_parent, -1)
    first_rollout = num_nodes * width + jnp.arange(num_nodes * num_rounds * d).reshape(
        num_nodes, num_rounds, d
    )
    from_best = (nodes * width + node.best)[..., None]
    from_round = first_rollout[:, :-1, 0] + node.rollout_best[..., :-1]
    rollout_parent = jnp.concatenate([from_best, from_round], axis=-1)[..., :num_rounds]

    def flat(candidates: Array, rollouts: Array) -> Array:
        lead, tail = candidates.shape[:2], candidates.shape[3:]
        both = [
            jnp.broadcast_to(candidates, (*lead, width, *tail)),
            rollouts.astype(candidates.dtype),
        ]
        return jnp.concatenate([x.reshape(num_problems, -1, *tail) for x in both], axis=1)

    is_sampled = (node.length > 0) & is_grown[..., None]
    kind = jnp.where(
        is_sampled,
        jnp.where(node.is_valid, int(Kind.CANDIDATE), int(Kind.DUPLICATE)),
        int(Kind.EMPTY),
    )
    is_rolled = (node.rollout_length > 0) & is_grown[..., None, None]
    kind = flat(kind, jnp.where(is_rolled, int(Kind.ROLLOUT), int(Kind.EMPTY)))
    is_row = kind != Kind.EMPTY
    score = jnp.where(is_row, flat(node.score, node.rollout_score), 0.0)
    is_finished = is_row & flat(node.is_finished, node.rollout_is_finished)
    is_answer = is_finished & (kind != Kind.DUPLICATE)
    # the raw score: values are clipped, which ties
    best = jnp.argmax(jnp.where(is_answer, score, -jnp.inf), axis=1)
    chosen = jnp.where(
        progress.decided >= 0, progress.decided, jnp.where(jnp.any(is_answer, axis=1), best, -1)
    )

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(is_grown, x, 0), axis=1)

    parent = flat(above[..., None], jnp.repeat(rollout_parent[..., None], d, axis=-1))
    return Tree(
        problem_id=prompts.problem_id,
        parent=jnp.where(is_row, parent, -1),
        kind=kind,
        tokens=jnp.where(is_row[..., None], flat(node.tokens, node.rollout_tokens), 0),
        length=jnp.where(is_row, flat(node.length, node.rollout_length), 0),
        score=score,
        visits=jnp.where(
            is_row, flat(tree.children_visits, jnp.zeros_like(node.rollout_length)), 0
        ),
        value=jnp.where(is_row, flat(tree.children_values, clip(node.rollout_score)), 0.0),
        is_ended=is_row & flat(node.is_ended, node.rollout_is_ended),
        is_finished=is_finished,
        chosen=chosen.astype(jnp.int32),
        is_ok=progress.is_ok,
        num_simulations=progress.num_simulations,
        num_wasted=progress.num_wasted,
        policy_tokens=total(node.policy_tokens),
        prm_tokens=total(node.prm_tokens),
        lane_tokens=jnp.where(prompts.problem_id >= 0, progress.lane_tokens, 0),
    )
