"""MCTS* (ReST-MCTS*, Algorithm 2) as a rule of `tree_loop`.

An iteration of the paper selects a leaf C, expands it, rolls its best new child out and backs
values up. mctx's simulation selects a candidate (P, a), which *is* that leaf, and its node holds
C's own candidates and the rollout. Two things differ from mctx's own statistics:

- a new node is *opened*: its candidates' values are their scores, and the one that was rolled out
  counts as visited;
- values are the visit-weighted mean of the visited children (Eq. 36), without the node's own
  evaluation.

Candidates are exchangeable samples, so taking the first among equals is a fair tie-break.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxtrain.errors import require_at_least, require_one_of, require_share
from jaxtrain.keys import fold_in
from jaxtrain.search.rows import Drawn, Job, Rows, clip, extend, pick
from jaxtrain.search.tree_loop import MctxTree, Node, TreeRule, draw_behind
from jaxtrain.structs import Array, Cost, Kind


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

    def rounds(self, max_steps: int) -> tuple[int, int]:
        """Return the rounds of a rollout and the steps of each: m, or as many as fit below the
        first candidate, all in one round where d is 1, for then nothing is chosen between.
        """
        depth = min(self.num_rollout_steps, max_steps - 1)
        return (depth, 1) if self.num_rollout_candidates > 1 else (min(depth, 1), depth)


def make_mcts_star(config: MctsStarConfig, max_steps: int) -> TreeRule:
    """Make the rule, for traces of D steps."""
    num_rounds, num_steps = config.rounds(max_steps)
    return TreeRule(
        num_rounds=num_rounds,
        num_lanes=config.num_rollout_candidates,
        num_steps=num_steps,
        select=partial(select_candidate, config),
        roll_out=partial(roll_out, config),
        open=partial(open_node, config),
        back_up=back_up,
    )


def select_candidate(config: MctsStarConfig, tree: MctxTree, node: Array) -> Array:
    """Choose among a node's candidates by UCB1 (Eq. 33). `tree` is unbatched. Returns [] int32."""
    values, visits = tree.children_values[node], tree.children_visits[node]
    log_parent = jnp.log(jnp.maximum(tree.node_visits[node], 1).astype(jnp.float32))
    explore = config.exploration * jnp.sqrt(log_parent / jnp.maximum(visits, 1))
    ucb = values + jnp.where(visits > 0, explore, config.unvisited_bonus)
    is_valid = tree.extra_data.rows.kind[node, : len(visits)] == Kind.CANDIDATE
    return jnp.argmax(jnp.where(is_valid, ucb, -jnp.inf)).astype(jnp.int32)


def roll_out(config: MctsStarConfig, job: Job, node: Node) -> Node:
    """Follow the best of d draws from the best candidate for up to m steps (Eq. 34).

    The node's `opening` is that candidate, [B] int32, and its value with the rollout blended in,
    [B] float32. Steps lie behind the candidates, d for each of the m.
    """
    lanes, (num_rounds, steps) = config.num_rollout_candidates, config.rounds(job.max_steps)
    drawn, (num_trees, num_candidates) = node.drawn, node.drawn.rows.kind.shape

    # A rollout starts from the best candidate, if that goes on.
    is_valid = drawn.rows.kind == Kind.CANDIDATE
    scores = jnp.where(is_valid, drawn.rows.score, -jnp.inf)
    best = jnp.argmax(scores, axis=1).astype(jnp.int32)
    first: Rows = jax.tree.map(lambda x: pick(x, best), drawn.rows)
    own = clip(first.score)
    highest = jnp.where(first.is_finished | (config.rollout_floor == "self"), own, 0.0)
    path = extend(node.path, pick(node.row, best))
    is_rolling = node.is_live & drawn.is_ok & ~first.is_ended

    for r in range(num_rounds):
        # Children use fold_in(key, action); rounds take the numbers after the actions.
        key = fold_in(node.key, num_candidates + r)
        at = num_candidates + r * steps * lanes
        row = node.row[:, at : at + steps * lanes].reshape(num_trees, steps, lanes)
        row = jnp.swapaxes(row, 1, 2)
        new = draw_behind(job, drawn.memory, path, key, is_rolling, row)  # rows [B d steps]

        # The lane whose first step is best is followed, and all its steps are seen.
        scores = jnp.where(new.rows.length > 0, new.rows.score, -jnp.inf)[:, :, 0]
        choice = jnp.argmax(scores, axis=1).astype(jnp.int32)
        chosen: Rows = jax.tree.map(lambda x, choice=choice: pick(x, choice), new.rows)
        seen = jnp.max(jnp.where(chosen.length > 0, clip(chosen.score), 0.0), axis=1)
        highest = jnp.where(is_rolling, jnp.maximum(highest, seen), highest)

        # A next round follows one step only.
        path = extend(path, pick(row, choice)[:, 0])
        is_rolling = is_rolling & new.is_ok & ~chosen.is_ended[:, 0]
        drawn = add_round(drawn, new)

    # alpha * own + (1 - alpha) * highest, written so that equal values blend to themselves exactly.
    blended = highest + config.rollout_blend * (own - highest)
    opening = best, blended if config.num_rollout_steps else own
    return node._replace(drawn=drawn, opening=opening)


def add_round(drawn: Drawn, new: Drawn) -> Drawn:
    """Put the steps [B d steps] of a round of the rollout behind a node's rows [B n]."""
    kind = jnp.where(new.rows.length > 0, int(Kind.ROLLOUT), int(Kind.EMPTY))
    rows = jax.tree.map(
        lambda x, y: jnp.concatenate([x, jnp.swapaxes(y, 1, 2).reshape(len(x), -1)], axis=1),
        drawn.rows,
        new.rows._replace(kind=kind),
    )
    cost = Cost(*map(jnp.add, drawn.cost, new.cost))
    return Drawn(rows, drawn.is_ok & new.is_ok, cost, new.memory)


def open_node(config: MctsStarConfig, tree: MctxTree, index: Array, node: Node) -> MctxTree:
    """Give the candidates of node `index` [B] their values, and the rolled-out one its visit."""
    rows, width = jnp.arange(index.shape[0]), tree.children_values.shape[2]
    best, best_value = node.opening
    is_best = jnp.arange(width) == best[:, None]
    values = jnp.where(is_best, best_value[:, None], clip(node.drawn.rows.score[:, :width]))
    visits = (is_best & (config.num_rollout_steps > 0)).astype(jnp.int32)

    def set_where_live(old: Array, new: Array) -> Array:
        return old.at[rows, index].set(jnp.where(node.is_live[:, None], new, old[rows, index]))

    return tree.replace(
        children_values=set_where_live(tree.children_values, values),
        children_visits=set_where_live(tree.children_visits, visits),
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
