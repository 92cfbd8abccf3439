"""Depth-first search of Tree of Thoughts (Yao et al. 2023, Algorithm 2) as a rule of `frontier`.

The best candidate of the deepest prefix goes on; where all below a prefix is ended, pruned or
opened, the search steps back to the best of its siblings. Candidates below a value are pruned. The
paper's breadth-first search keeps the best b prefixes of every depth, which is `beam`.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxtrain.errors import require_share
from jaxtrain.search.frontier import FrontierRule, Pool
from jaxtrain.search.rows import clip
from jaxtrain.structs import Array


@dataclass(frozen=True)
class DfsConfig:
    """What depth-first search prunes."""

    min_value: float = 0.0  # v_th: nothing is searched behind a candidate of a lower value

    def __post_init__(self):
        require_share("search.dfs", self, "min_value")


def make_dfs(config: DfsConfig, num_candidates: int, num_turns: int) -> FrontierRule:
    """Make the rule, with A candidates behind the prefix that is opened in each turn."""

    def choose(pool: Pool) -> Array:
        is_mine = pool.can_go_on & (clip(pool.score) >= config.min_value)
        depth = jnp.where(is_mine, pool.depth, 0)
        # All that is unopened at one depth stands behind one prefix: the deeper is always first.
        is_mine &= depth == jnp.max(depth)
        row = jnp.argmax(jnp.where(is_mine, pool.score, -jnp.inf))
        return jnp.where(jnp.any(is_mine), row, -1)[None]

    return FrontierRule(1, num_candidates, num_turns, choose)
