"""Step-level beam search, guided by the PRM, as a rule of `frontier`.

At every depth the `width` best prefixes by raw score go on, with `num_candidates` steps behind each
(Snell et al. 2024, Section 5.2); those that have finished stay among them. The prompt counts for
all prefixes at first, so the first choice is made among as many steps as every later one.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.errors import require_at_least
from jaxtrain.search.frontier import FrontierRule, Pool
from jaxtrain.structs import Array


@dataclass(frozen=True)
class BeamConfig:
    """How wide a beam is."""

    width: int = 4  # W: prefixes that are kept at every depth

    def __post_init__(self):
        require_at_least(1, "search.beam", self, "width")


def make_beam(config: BeamConfig, num_candidates: int, max_steps: int) -> FrontierRule:
    """Make the rule, with A candidates behind each of the W prefixes, for traces of D steps."""

    def choose(pool: Pool) -> Array:
        is_mine = pool.is_there & (pool.is_new | (pool.is_kept & pool.is_ended))
        scores, rows = jax.lax.top_k(jnp.where(is_mine, pool.score, -jnp.inf), config.width)
        return jnp.where(scores > -jnp.inf, rows, -1)

    return FrontierRule(config.width, num_candidates, max_steps, choose)
