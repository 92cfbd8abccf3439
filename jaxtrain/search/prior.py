"""The policy's own probability as a prior.

Over the candidates of a node it is a matter of `prior_rules`. Over finished traces, for whatever
answers: what the policy would hardly write is seldom right, and a PRM that saw little of it is
easily fooled.
"""

from dataclasses import dataclass

from jaxtrain.errors import NotNegative, Positive, Section
from jaxtrain.structs import Array


@dataclass(frozen=True)
class PriorConfig(Section, at="search.prior"):
    """How the policy's probability weighs in."""

    temperature: Positive = 1.0  # of the prior: below 1 sharper, above 1 flatter
    # whether it is that of a token of the step on average, and long steps are as likely as short
    normalises_length: bool = False
    # of the log-probability of a finished trace beside its score, where one of them is the answer
    weight: NotNegative = 0.0


def rank(config: PriorConfig, score: Array, log_prob: Array, length: Array) -> Array:
    """Return what finished traces are ranked by, the highest answers: the raw score of each, and by
    its weight the log-probability of its tokens (Controlled Decoding, Mudgal et al. 2024).

    All arrays are of one shape, of jax or numpy. Log-probabilities are of the law that was drawn
    from: at a temperature of 0 they are 0, and say nothing.
    """
    if config.normalises_length:
        log_prob = log_prob / (length + (length == 0))
    return score + config.weight * log_prob
