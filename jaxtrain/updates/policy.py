"""What the policy learns: losses of its tokens' log-probabilities, one line of `OBJECTIVES` each.

An objective is a kind of rows (`datasets.ROWS`) and a loss of them. Where a loss sets the policy
beside a *reference*, that is the policy as it was before the fit: its log-probabilities are read
once, and stand in the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxtrain.errors import NotNegative
from jaxtrain.structs import Array, TokenRows
from jaxtrain.updates.fits import LearnerConfig


@dataclass(frozen=True)
class PolicyConfig(LearnerConfig, at="updates.policy"):
    """How the policy learns; its warm start learns demonstrations, whatever the objective."""

    # nll: verified traces; weighted: every step by its label; dpo: right traces before wrong ones;
    # step_dpo: right steps before wrong siblings; grpo: answers by their advantage in a tree
    objective: str = "nll"
    beta: NotNegative = 0.1  # of dpo and step_dpo: a larger one stays nearer to the reference
    clip: NotNegative = 0.2  # of grpo: a token's ratio counts from 1 - clip to 1 + clip
    kl: NotNegative = 0.04  # of grpo: weight of the divergence from the reference

    def check(self) -> None:
        is_met, why = self.objective in OBJECTIVES, f"must be {' or '.join(OBJECTIVES)}"
        self.require(is_met, "objective", why)
        # What is compared with the policy before the fit begins there.
        known = OBJECTIVES[self.objective]
        free = [name for name, kind in OBJECTIVES.items() if not kind.has_reference]
        why = (
            f"{self.objective} improves on the policy before; it goes with "
            f"--config.updates.policy.objective {' or '.join(free)}"
        )
        self.require(self.init_from == "previous" or not known.has_reference, "init_from", why)
        why = f"{self.objective} takes pairs of rows; choose an even number"
        self.require(known.order != "pairs" or self.batch_size % 2 == 0, "batch_size", why)
        why = f"tells nothing apart by {self.objective}; choose a number above 0, such as 0.1"
        self.require(known.order != "pairs" or self.beta > 0, "beta", why)


# (log-probability of every token given those before it, [M L] float32, 0 at the first; rows;
# config) -> [] float32
PolicyLossFn = Callable[[Array, TokenRows, PolicyConfig], Array]


class PolicyObjective(NamedTuple):
    """A loss, and the rows that it is of."""

    loss: PolicyLossFn
    rows: str  # what is learnt from, a key of datasets.ROWS
    order: str = "rows"  # of the rows, a key of datasets.ORDERS
    has_reference: bool = False
    is_packable: bool = False  # a mean over tokens, which rows may share


def likelihood(log_probs: Array, rows: TokenRows, config: PolicyConfig) -> Array:
    """Mean negative log-likelihood of the tokens with a weight, each by its weight."""
    chex.assert_equal_shape([log_probs, rows.weight])
    return -jnp.sum(log_probs * rows.weight) / jnp.maximum(jnp.sum(rows.weight), 1.0)


def preference(log_probs: Array, rows: TokenRows, config: PolicyConfig) -> Array:
    """Mean DPO loss of pairs (Rafailov et al., 2023, Eq. 7); rows 2k are chosen, 2k + 1 rejected.

    What both texts share cancels, so of siblings the steps alone need a weight (Step-DPO).
    """
    chex.assert_equal_shape([log_probs, rows.log_prob, rows.weight])
    gain = jnp.sum(rows.weight * (log_probs - rows.log_prob), axis=1)
    chosen, rejected = gain.reshape(-1, 2).T
    return jnp.mean(jax.nn.softplus(-config.beta * (chosen - rejected)))


def clipped(log_probs: Array, rows: TokenRows, config: PolicyConfig) -> Array:
    """Mean over tokens of GRPO's loss (Shao et al., 2024, Eq. 3), the target being the advantage.

    Old policy and reference are one. All tokens of a batch weigh the same (as in DAPO), so a long
    wrong answer is not spared.
    """
    chex.assert_equal_shape([log_probs, rows.log_prob, rows.weight])
    gain = jnp.where(rows.weight > 0, log_probs - rows.log_prob, 0.0)
    ratio, bounded = jnp.exp(gain), jnp.clip(jnp.exp(gain), 1 - config.clip, 1 + config.clip)
    surrogate = jnp.minimum(ratio * rows.target, bounded * rows.target)
    # Unbiased and never below 0 (Schulman, 2020).
    divergence = jnp.exp(-gain) + gain - 1
    loss = config.kl * divergence - surrogate
    return jnp.sum(rows.weight * loss) / jnp.maximum(jnp.sum(rows.weight), 1.0)


OBJECTIVES = {
    "nll": PolicyObjective(likelihood, "traces", is_packable=True),
    "weighted": PolicyObjective(likelihood, "steps", is_packable=True),
    "dpo": PolicyObjective(preference, "trace_pairs", "pairs", has_reference=True),
    "step_dpo": PolicyObjective(preference, "step_pairs", "pairs", has_reference=True),
    "grpo": PolicyObjective(clipped, "answers", has_reference=True),
}
