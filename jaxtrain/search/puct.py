"""PUCT as a rule of `tree_loop`: UCB with the policy's own probability as a prior.

The selection of AlphaZero (Silver et al. 2018): Q + c * prior * sqrt(n_parent) / (1 + n). Q of a
candidate that was never visited is the PRM's score, for every candidate is scored when it is drawn.
There are no rollouts. Of equals the first is taken: candidates are exchangeable.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.errors import require_at_least
from jaxtrain.search.back_up import without_rollouts
from jaxtrain.search.prior import PriorConfig, prior_logits
from jaxtrain.search.tree_loop import MctxTree, TreeRule
from jaxtrain.structs import Array


@dataclass(frozen=True)
class PuctConfig:
    """Constants of PUCT."""

    exploration: float = 1.25  # c

    def __post_init__(self):
        require_at_least(0, "search.puct", self, "exploration")


def make_puct(config: PuctConfig, prior: PriorConfig) -> TreeRule:
    """Make the rule."""

    def select(tree: MctxTree, node: Array, is_open: Array) -> Array:
        values, visits = tree.children_values[node], tree.children_visits[node]
        # What is closed keeps its share, so that the others do not change when it closes.
        share = jax.nn.softmax(prior_logits(prior, tree.extra_data, node, len(is_open)))
        parent = jnp.sqrt(tree.node_visits[node].astype(jnp.float32))
        bound = values + config.exploration * share * parent / (1 + visits)
        return jnp.argmax(jnp.where(is_open, bound, -jnp.inf)).astype(jnp.int32)

    return without_rollouts(select)
