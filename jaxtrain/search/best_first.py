"""Best-first search, guided by the PRM, as a rule of `frontier`.

In every turn, the `width` best prefixes of the whole tree that are not opened yet go on, wherever
they stand: what looked second best at first is taken up again once all below the best looks worse.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.errors import require_at_least
from jaxtrain.search.frontier import FrontierRule, Pool
from jaxtrain.structs import Array


@dataclass(frozen=True)
class BestFirstConfig:
    """How many prefixes best-first search opens."""

    width: int = 1  # W: prefixes that are opened in a turn

    def __post_init__(self):
        require_at_least(1, "search.best_first", self, "width")


def make_best_first(config: BestFirstConfig, num_candidates: int, num_turns: int) -> FrontierRule:
    """Make the rule, with A candidates behind each prefix."""

    def choose(pool: Pool) -> Array:
        scores = jnp.where(pool.can_go_on, pool.score, -jnp.inf)
        best, rows = jax.lax.top_k(scores, config.width)
        return jnp.where(best > -jnp.inf, rows, -1)

    return FrontierRule(config.width, num_candidates, num_turns, choose)
