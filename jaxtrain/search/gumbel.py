"""Gumbel MuZero's selection (Danihelka et al. 2022) as a rule of `tree_loop`.

At the prompt, sequential halving: m candidates share the budget, and the better half goes on. Below
it, the candidate that brings visits nearest to softmax(logits + sigma(q)). Three things are ours:

- No Gumbel noise is added. The paper draws actions without replacement by adding it to the logits
  of all of them; here the candidates *are* such draws (`search.candidates=distinct`), so the noise
  is in which of them are there, and logits + sigma(q) decides among those.
- Every candidate has a q, its score, when it is drawn: no missing value is completed by a mean. It
  lies in [0, 1] already, and is not rescaled by the least and the largest of the siblings.
- What is closed leaves the halving, and those that are left share its visits.

mctx's own function selects below the prompt. That for the prompt knows of nothing that closes.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import mctx as _mctx

from jaxtrain.errors import require_at_least
from jaxtrain.search.back_up import without_rollouts
from jaxtrain.search.prior import NEVER, PriorConfig, prior_logits
from jaxtrain.search.tree_loop import MctxTree, TreeRule
from jaxtrain.structs import Array

mctx: Any = _mctx  # its dataclasses hide their fields from a type checker


@dataclass(frozen=True)
class GumbelConfig:
    """Constants of Gumbel MuZero; they follow mctx."""

    num_considered: int = 16  # m: candidates behind the prompt that halving begins with, at most
    # c_visit in sigma(q) = (c_visit + the most visits of a sibling) * c_scale * q
    visit_offset: float = 50.0
    value_scale: float = 0.1  # c_scale

    def __post_init__(self):
        require_at_least(1, "search.gumbel", self, "num_considered")
        require_at_least(0, "search.gumbel", self, "visit_offset", "value_scale")


def make_gumbel(config: GumbelConfig, prior: PriorConfig, num_simulations: int) -> TreeRule:
    """Make the rule, for T simulations of which the first opens the prompt."""
    num_turns = max(1, num_simulations - 1)
    table = [halving_visits(m, num_turns) for m in range(config.num_considered + 1)]

    def select(tree: MctxTree, node: Array, is_open: Array) -> Array:
        # What is closed counts for nothing: neither its visits nor its share of the prior.
        logits = prior_logits(prior, tree.extra_data, node, len(is_open))
        visits = jnp.where(is_open, tree.children_visits[node], 0)
        scale = (config.visit_offset + jnp.max(visits)) * config.value_scale
        sigma = scale * tree.children_values[node]
        seen = tree.replace(
            children_visits=visits[None],
            children_prior_logits=jnp.where(is_open, logits, NEVER)[None],
        )
        inner = mctx.gumbel_muzero_interior_action_selection(
            None, seen, jnp.int32(0), None, qtransform=lambda *_: sigma
        )

        # At the prompt: how many visits has a candidate whose turn it is? Those that ended when
        # they were drawn never took part.
        there = tree.extra_data.rows
        is_ended = there.is_ended[node, : len(is_open)]
        takes_part = is_open | ((logits > NEVER) & ~is_ended)
        num_considered = jnp.minimum(jnp.sum(takes_part), config.num_considered)
        turn = jnp.clip(tree.node_visits[node] - 1, 0, num_turns - 1)
        due = jnp.asarray(table)[num_considered, turn]
        # None has as many where siblings closed: then those that have the next more, or else most.
        excess = visits - due
        rank = jnp.where(excess >= 0, excess, num_turns - excess)
        is_due = is_open & (rank == jnp.min(rank, where=is_open, initial=2 * num_turns))
        first = jnp.argmax(jnp.where(is_due, logits + sigma, -jnp.inf))
        return jnp.where(node == 0, first, inner).astype(jnp.int32)

    return without_rollouts(select)


def halving_visits(num_considered: int, num_turns: int) -> list[int]:
    """List how many visits the candidate has that sequential halving visits in each turn."""
    if num_considered <= 1:
        return list(range(num_turns))
    num_rounds, visits, due = math.ceil(math.log2(num_considered)), 0, []
    left = num_considered
    while len(due) < num_turns:
        for _ in range(max(1, num_turns // (num_rounds * left))):
            due += [visits] * left
            visits += 1
        left = max(2, left // 2)
    return due[:num_turns]
