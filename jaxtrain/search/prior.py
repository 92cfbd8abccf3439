"""The policy's own probability as a prior over the candidates of a node, for `puct` and `gumbel`.

A candidate's weight is the probability with which the policy writes it, among the candidates that
were drawn: they stand for all the steps that a game would list as its moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from jaxtrain.errors import require
from jaxtrain.search.tree_loop import View
from jaxtrain.structs import Array, Kind

NEVER = -1e9  # the logit of what is no candidate; finite, so that no mean becomes NaN


@dataclass(frozen=True)
class PriorConfig:
    """How the policy's probability weighs in."""

    temperature: float = 1.0  # of the prior: below 1 sharper, above 1 flatter
    # whether it is that of a token of the step on average, and long steps are as likely as short
    normalises_length: bool = False

    def __post_init__(self):
        require(self.temperature > 0, "search.prior", self, "temperature", "must be above 0")


def prior_logits(config: PriorConfig, view: View, node: Array, num_candidates: int) -> Array:
    """Return the logits of the prior over a node's candidates [A], the tree unbatched."""
    kind = view.rows.kind[node, :num_candidates]
    log_prob = view.rows.log_prob[node, :num_candidates]
    if config.normalises_length:
        log_prob /= jnp.maximum(view.rows.length[node, :num_candidates], 1)
    return jnp.where(kind == Kind.CANDIDATE, log_prob / config.temperature, NEVER)
