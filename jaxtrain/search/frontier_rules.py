"""Methods as rules of `frontier`, guided by the PRM: which prefixes go on, turn by turn.

Behind each prefix stand `num_candidates` steps, A; `width` is W, the prefixes of a turn.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.errors import Count, Section, Share
from jaxtrain.search.frontier import FrontierRule, Pool
from jaxtrain.search.rows import clip
from jaxtrain.structs import Array


@dataclass(frozen=True)
class BeamConfig(Section, at="search.beam"):
    """How wide a beam is."""

    width: Count = 4  # W: prefixes that are kept at every depth


@dataclass(frozen=True)
class DvtsConfig(Section, at="search.dvts"):
    """How many subtrees DVTS has."""

    width: Count = 4  # W: subtrees, with num_candidates steps behind the prefix of each


@dataclass(frozen=True)
class BestFirstConfig(Section, at="search.best_first"):
    """How many prefixes best-first search opens."""

    width: Count = 1  # W: prefixes that are opened in a turn


@dataclass(frozen=True)
class DfsConfig(Section, at="search.dfs"):
    """What depth-first search prunes."""

    min_value: Share = 0.0  # v_th: nothing is searched behind a candidate of a lower value


def make_sample(num_samples: int, max_steps: int) -> FrontierRule:
    """Make the rule of independent traces: the prompt, opened once, for whole traces.

    The generator of ReST-EM, and of greedy decoding (one trace, temperature 0), self-consistency,
    best-of-k and weighted vote. Traces that repeat each other all count, and none goes on.
    """
    return FrontierRule(
        width=1,
        num_lanes=num_samples,
        num_steps=max_steps,
        num_turns=1,
        is_distinct=False,
        choose=lambda pool: jnp.full(1, -1),
    )


def make_beam(config: BeamConfig, num_candidates: int, max_steps: int) -> FrontierRule:
    """Make the rule of beam search over steps (Snell et al. 2024, Section 5.2).

    At every depth the best prefixes by raw score go on; those that have finished stay among them.
    The prompt counts for all prefixes at first, so the first choice is made among as many steps as
    every later one.
    """

    def choose(pool: Pool) -> Array:
        is_mine = pool.is_there & (pool.is_new | (pool.is_kept & pool.is_ended))
        return best(pool, is_mine, config.width)

    return FrontierRule(config.width, num_candidates, max_steps, choose)


def make_dvts(config: DvtsConfig, num_candidates: int, max_steps: int) -> FrontierRule:
    """Make the rule of diverse verifier tree search (Beeching et al. 2024).

    `width` subtrees begin behind the prompt, and each goes on with the best of its own, by raw
    score, until that has ended. So a subtree that looks worse is not given up for a better one, as
    in a beam.
    """

    def choose(pool: Pool) -> Array:
        # A subtree keeps its place in the frontier; one that has ended has nothing new.
        is_own = pool.place == jnp.arange(config.width)[:, None]
        return best(pool, is_own & pool.is_there & pool.is_new, 1)[:, 0]

    return FrontierRule(config.width, num_candidates, max_steps, choose)


def make_best_first(config: BestFirstConfig, num_candidates: int, num_turns: int) -> FrontierRule:
    """Make the rule of best-first search.

    The best prefixes of the whole tree that are not opened yet go on, wherever they stand: what
    looked second best at first is taken up again once all below the best looks worse.
    """

    def choose(pool: Pool) -> Array:
        return best(pool, pool.can_go_on, config.width)

    return FrontierRule(config.width, num_candidates, num_turns, choose)


def make_dfs(config: DfsConfig, num_candidates: int, num_turns: int) -> FrontierRule:
    """Make the rule of depth-first search (Tree of Thoughts, Yao et al. 2023, Algorithm 2).

    The best candidate of the deepest prefix goes on; where all below a prefix is ended, pruned or
    opened, the search steps back to the best of its siblings. Candidates below a value are pruned.
    The paper's breadth-first search keeps the best b prefixes of every depth, which is a beam.
    """

    def choose(pool: Pool) -> Array:
        is_mine = pool.can_go_on & (clip(pool.score) >= config.min_value)
        # All that is unopened at one depth stands behind one prefix: the deeper is always first.
        depth = jnp.where(is_mine, pool.depth, 0)
        return best(pool, is_mine & (depth == jnp.max(depth)), 1)

    return FrontierRule(1, num_candidates, num_turns, choose)


def best(pool: Pool, is_mine: Array, num: int) -> Array:
    """Return the rows of the best raw scores among those marked [... R]: [... num], -1: none."""
    scores, rows = jax.lax.top_k(jnp.where(is_mine, pool.score, -jnp.inf), num)
    return jnp.where(scores > -jnp.inf, rows, -1)
