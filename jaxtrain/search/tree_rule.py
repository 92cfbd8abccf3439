"""A method that walks down a tree: what it says of itself, and what it sees. `tree_loop` does the
rest.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxtrain.search.rows import MctxTree, Rows, clip
from jaxtrain.structs import Array, Kind


class TreeRule(NamedTuple):
    """A method: how it selects, what it draws behind the candidates, how it values.

    Trees are unbatched; the rows of a node [C] are its A candidates and then the rule's own.
    """

    # (tree, node, which candidates [A] are open) -> its candidate, [] int32
    select: Callable[[MctxTree, Array, Array], Array]
    # What is drawn behind a node's A candidates: rounds, lanes of each, steps of a lane.
    num_rounds: int = 0
    num_lanes: int = 0
    num_steps: int = 0
    # (rows [C], rounds done) -> the one from which the next round goes on, -1: there is none
    follow: Callable[[Rows, Array], Array] = lambda rows, num_rounds: jnp.int32(-1)
    # (rows [C], A) -> the first visits and values of the candidates, [A] each: the PRM's word alone
    open: Callable[[Rows, int], tuple[Array, Array]] = lambda rows, num: (
        jnp.zeros(num, jnp.int32),
        clip(rows.score[:num]),
    )

    def num_writers(self, num_lanes: int, max_candidates: int) -> int:
        """How many lanes write behind a node, of those that it is given."""
        return min(num_lanes, max(max_candidates, self.num_lanes))

    @property
    def num_extra_rows(self) -> int:
        """Rows of a node behind its candidates."""
        return self.num_rounds * self.num_lanes * self.num_steps


class View(NamedTuple):
    """What selection sees besides mctx's statistics."""

    candidates: Rows  # [B N A]
    is_closed: Array  # [B N A] bool
    is_exhausted: Array  # [B N] bool, there is no other step behind it

    @property
    def is_open(self) -> Array:
        """Which candidates can be selected, [... A] bool."""
        return (self.candidates.kind == Kind.CANDIDATE) & ~self.is_closed

    @property
    def num_drawn(self) -> Array:
        """How many candidates a node has, [...] int32."""
        return jnp.sum(self.candidates.kind != Kind.EMPTY, axis=-1)
