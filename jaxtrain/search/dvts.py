"""Diverse verifier tree search (Beeching et al. 2024) as a rule of `frontier`.

`width` subtrees begin behind the prompt, and each goes on with the best of its own, by raw score,
until that has ended. So a subtree that looks worse is not given up for a better one, as in a beam.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.errors import require_at_least
from jaxtrain.search.frontier import FrontierRule, Pool
from jaxtrain.structs import Array


@dataclass(frozen=True)
class DvtsConfig:
    """How many subtrees DVTS has."""

    width: int = 4  # W: subtrees, with num_candidates steps behind the prefix of each

    def __post_init__(self):
        require_at_least(1, "search.dvts", self, "width")


def make_dvts(config: DvtsConfig, num_candidates: int, max_steps: int) -> FrontierRule:
    """Make the rule, with A candidates behind each of the W prefixes, for traces of D steps."""

    def choose(pool: Pool) -> Array:
        # A subtree keeps its place in the frontier; one that has ended has nothing new.
        is_own = pool.place == jnp.arange(config.width)[:, None]
        is_mine = is_own & pool.is_there & pool.is_new
        best, rows = jax.lax.top_k(jnp.where(is_mine, pool.score, -jnp.inf), 1)
        return jnp.where(best > -jnp.inf, rows, -1)[:, 0]

    return FrontierRule(config.width, num_candidates, max_steps, choose)
