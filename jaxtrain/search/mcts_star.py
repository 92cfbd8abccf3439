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

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax.numpy as jnp

from jaxtrain.errors import Count, Natural, NotNegative, Section, Share, one_of
from jaxtrain.search.rows import MctxTree, Rows, clip
from jaxtrain.search.tree_rule import TreeRule
from jaxtrain.structs import Array, Kind


@dataclass(frozen=True)
class MctsStarConfig(Section, at="search.mcts_star"):
    """Constants of MCTS*; they follow the paper's Algorithm 2 and its code."""

    exploration: NotNegative = 0.7  # eps of UCB1: v + eps * sqrt(ln n_parent / n)
    unvisited_bonus: NotNegative = 1.0  # stands for the bonus of a child never visited
    num_rollout_steps: Natural = 1  # m: steps of the greedy rollout from the best new candidate
    num_rollout_candidates: Count = 1  # d: candidates drawn for each of them
    # alpha: v = alpha * own value + (1 - alpha) * best value of the rollout
    rollout_blend: Share = 0.5
    # where the best value starts: paper: 0; self: the child's own value
    rollout_floor: Annotated[str, one_of("paper", "self")] = "paper"

    def rounds(self, max_steps: int) -> tuple[int, int]:
        """Return the rounds of a rollout and the steps of each: m, or as many as fit below the
        first candidate, all in one round where d is 1, for then nothing is chosen between.
        """
        depth = min(self.num_rollout_steps, max_steps - 1)
        return (depth, 1) if self.num_rollout_candidates > 1 else (min(depth, 1), depth)


def make_mcts_star(config: MctsStarConfig, max_steps: int) -> TreeRule:
    """Make the rule, for traces of D steps."""
    num_rounds, num_steps = config.rounds(max_steps)
    follow_one = partial(follow, num_rounds, config.num_rollout_candidates, num_steps)
    return TreeRule(
        num_rounds=num_rounds,
        num_lanes=config.num_rollout_candidates,
        num_steps=num_steps,
        select=partial(select_candidate, config),
        follow=lambda rows, r: follow_one(rows, r)[0],
        open=partial(open_node, config, follow_one, num_rounds),
    )


def select_candidate(config: MctsStarConfig, tree: MctxTree, node: Array, is_open: Array) -> Array:
    """Choose among a node's open candidates [A] by UCB1 (Eq. 33), the tree unbatched."""
    values, visits = tree.children_values[node], tree.children_visits[node]
    log_parent = jnp.log(jnp.maximum(tree.node_visits[node], 1).astype(jnp.float32))
    explore = config.exploration * jnp.sqrt(log_parent / jnp.maximum(visits, 1))
    ucb = values + jnp.where(visits > 0, explore, config.unvisited_bonus)
    return jnp.argmax(jnp.where(is_open, ucb, -jnp.inf)).astype(jnp.int32)


def follow(
    num_rounds: int, num_lanes: int, num_steps: int, rows: Rows, r: Array
) -> tuple[Array, Array]:
    """Say from which row of a node [C] round r of its rollout goes on, -1: from none, and the best
    value that round r - 1 has seen (Eq. 34).

    A rollout starts from the best candidate, and goes on from the best of the d draws of a round.
    Steps lie behind the candidates, d for each of the m.
    """
    num_candidates = len(rows.kind) - num_rounds * num_lanes * num_steps
    first = best_candidate(rows, num_candidates)
    if not num_rounds:
        return jnp.int32(-1), jnp.float32(0)

    # The lane whose first step is best is followed, and all its steps are seen.
    def by_round(x: Array) -> Array:
        last = x[num_candidates:].reshape(num_rounds, num_steps, num_lanes)
        return last[jnp.maximum(r - 1, 0)]

    is_step, scores = by_round(rows.kind) == Kind.ROLLOUT, by_round(rows.score)
    lane = jnp.argmax(jnp.where(is_step[0], scores[0], -jnp.inf))
    seen = jnp.max(jnp.where(is_step[:, lane], clip(scores[:, lane]), 0.0))

    # A next round follows one step only.
    drawn = num_candidates + (r - 1) * num_steps * num_lanes + lane
    cell = jnp.where(r == 0, first, drawn).astype(jnp.int32)
    goes_on = (r < num_rounds) & (rows.length[cell] > 0) & ~rows.is_ended[cell]
    return jnp.where(goes_on, cell, -1), jnp.where(r > 0, seen, 0.0)


def best_candidate(rows: Rows, num_candidates: int) -> Array:
    """Return the first of the best-scored candidates of a node [C], [] int32."""
    is_valid = rows.kind[:num_candidates] == Kind.CANDIDATE
    scores = jnp.where(is_valid, rows.score[:num_candidates], -jnp.inf)
    return jnp.argmax(scores).astype(jnp.int32)


def open_node(config: MctsStarConfig, follow_one, num_rounds: int, rows: Rows, num_candidates: int):
    """Give the candidates of a node [C] their first visits and values [A]: their scores, and of the
    one that was rolled out what the rollout saw blended in.
    """
    best, values = best_candidate(rows, num_candidates), clip(rows.score[:num_candidates])
    if not config.num_rollout_steps:
        return jnp.zeros(num_candidates, jnp.int32), values
    own = values[best]
    highest = jnp.where(rows.is_finished[best] | (config.rollout_floor == "self"), own, 0.0)
    for r in range(num_rounds):
        highest = jnp.maximum(highest, follow_one(rows, jnp.int32(r + 1))[1])

    # alpha * own + (1 - alpha) * highest, written so that equal values blend to themselves exactly.
    blended = highest + config.rollout_blend * (own - highest)
    is_best = (jnp.arange(num_candidates) == best) & (rows.kind[best] == Kind.CANDIDATE)
    return is_best.astype(jnp.int32), jnp.where(is_best, blended, values)
