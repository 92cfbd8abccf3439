"""The policy's own probability as a prior.

Over the candidates of a node, for `puct` and `gumbel`: a candidate's weight is the probability with
which the policy writes it, among the candidates that were drawn, which stand for all the steps that
a game would list as its moves. And over finished traces, for whatever answers: what the policy
would hardly write is seldom right, and a PRM that saw little of it is easily fooled.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxtrain.errors import require, require_at_least
from jaxtrain.structs import Array, Kind

if TYPE_CHECKING:
    from jaxtrain.search.tree_loop import View

NEVER = -1e9  # the logit of what is no candidate; finite, so that no mean becomes NaN


@dataclass(frozen=True)
class PriorConfig:
    """How the policy's probability weighs in."""

    temperature: float = 1.0  # of the prior: below 1 sharper, above 1 flatter
    # whether it is that of a token of the step on average, and long steps are as likely as short
    normalises_length: bool = False
    # of the log-probability of a finished trace beside its score, where one of them is the answer
    weight: float = 0.0

    def __post_init__(self):
        require_at_least(0, "search.prior", self, "weight")
        require(self.temperature > 0, "search.prior", self, "temperature", "must be above 0")


def prior_logits(config: PriorConfig, view: "View", node: Array, num_candidates: int) -> Array:
    """Return the logits of the prior over a node's candidates [A], the tree unbatched."""
    kind = view.rows.kind[node, :num_candidates]
    log_prob = view.rows.log_prob[node, :num_candidates]
    if config.normalises_length:
        log_prob /= jnp.maximum(view.rows.length[node, :num_candidates], 1)
    return jnp.where(kind == Kind.CANDIDATE, log_prob / config.temperature, NEVER)


def rank(config: PriorConfig, score: Array, log_prob: Array, length: Array) -> Array:
    """Return what finished traces are ranked by, the highest answers: the raw score of each, and by
    its weight the log-probability of its tokens (Controlled Decoding, Mudgal et al. 2024).

    All arrays are of one shape, of jax or numpy. Log-probabilities are of the law that was drawn
    from: at a temperature of 0 they are 0, and say nothing.
    """
    if config.normalises_length:
        log_prob = log_prob / (length + (length == 0))
    return score + config.weight * log_prob
