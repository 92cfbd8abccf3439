"""PUCT and Gumbel MuZero as rules of `tree_loop`: the policy's probability is a prior.

There are no rollouts. A candidate that was never visited has the PRM's score for its value, since
every candidate is scored when it is drawn.

Gumbel MuZero halves at the prompt: m candidates share the budget, and the better half goes on.
Below it, that candidate is next which brings visits nearest to softmax(logits + sigma(q)). Three
things are ours:

- No Gumbel noise is added. The paper draws actions without replacement by adding it to the logits
  of all of them; here the candidates *are* such draws (`search.candidates=distinct`), so the noise
  is in which of them are there, and logits + sigma(q) decides among those.
- No missing value is completed by a mean. A q lies in [0, 1] already, and is not rescaled by the
  least and the largest of the siblings.
- What is closed leaves the halving, and those that are left share its visits.

mctx's own function selects below the prompt. That for the prompt knows of nothing that closes.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mctx as _mctx

from jaxtrain.errors import Count, NotNegative, Section
from jaxtrain.search.rows import MctxTree, PriorConfig, Rows
from jaxtrain.search.tree_rule import TreeRule, View
from jaxtrain.structs import Array, Kind

mctx: Any = _mctx  # its dataclasses hide their fields from a type checker
NEVER = -1e9  # the logit of what is no candidate; finite, so that no mean becomes NaN


@dataclass(frozen=True)
class PuctConfig(Section, at="search.puct"):
    """Constants of PUCT."""

    exploration: NotNegative = 1.25  # c


@dataclass(frozen=True)
class GumbelConfig(Section, at="search.gumbel"):
    """Constants of Gumbel MuZero; they follow mctx."""

    num_considered: Count = 16  # m: candidates behind the prompt that halving begins with, at most
    # c_visit in sigma(q) = (c_visit + the most visits of a sibling) * c_scale * q
    visit_offset: NotNegative = 50.0
    value_scale: NotNegative = 0.1  # c_scale


def make_puct(config: PuctConfig, prior: PriorConfig) -> TreeRule:
    """Make the rule of AlphaZero (Silver et al. 2018): Q + c * prior * sqrt(n_parent) / (1 + n).

    Of equals the first is taken: candidates are exchangeable.
    """

    def select(tree: MctxTree, node: Array, is_open: Array) -> Array:
        values, visits = tree.children_values[node], tree.children_visits[node]
        # What is closed keeps its share, so that the others do not change when it closes.
        share = jax.nn.softmax(prior_logits(prior, tree.extra_data, node))
        parent = jnp.sqrt(tree.node_visits[node].astype(jnp.float32))
        bound = values + config.exploration * share * parent / (1 + visits)
        return jnp.argmax(jnp.where(is_open, bound, -jnp.inf)).astype(jnp.int32)

    return TreeRule(select)


def make_gumbel(config: GumbelConfig, prior: PriorConfig, num_simulations: int) -> TreeRule:
    """Make the rule of Gumbel MuZero (Danihelka et al. 2022), for T simulations."""
    num_turns = max(1, num_simulations - 1)
    table = [halving_visits(m, num_turns) for m in range(config.num_considered + 1)]

    def select(tree: MctxTree, node: Array, is_open: Array) -> Array:
        # What is closed counts for nothing: neither its visits nor its share of the prior.
        logits = prior_logits(prior, tree.extra_data, node)
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
        is_ended = tree.extra_data.candidates.is_ended[node]
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

    return TreeRule(select)


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


def prior_logits(config: PriorConfig, view: View, node: Array) -> Array:
    """Return the logits of the prior over a node's candidates [A], the tree unbatched.

    A candidate weighs what the policy writes it with, among those that were drawn, which stand for
    all the steps that a game would list as its moves.
    """
    candidates: Rows = jax.tree.map(lambda x: x[node], view.candidates)
    log_prob = candidates.log_prob
    if config.normalises_length:
        log_prob /= jnp.maximum(candidates.length, 1)
    return jnp.where(candidates.kind == Kind.CANDIDATE, log_prob / config.temperature, NEVER)
