"""Keys and values of the steps of a batch of trees, each token's kept once.

A pool has pages of as many tokens as a chunk. A lane that writes takes the next page of its tree;
where the tokens of a step lie is told by their addresses, so a path is a gather.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.nn.transformer import Segment
from jaxtrain.structs import Array


class Pool(NamedTuple):
    """Keys and values of one network: a layer [B kv pages c h]; scanned, the layer axis leads."""

    k: Any
    v: Any


def empty_pool(segment: Segment, num_trees: int, num_pages: int, size: int) -> Pool:
    """Make a pool of empty pages; segment: one of the network's, abstract, for its shapes."""

    def empty(x: Array) -> Array:
        *layers, _, kv, _, h = x.shape
        return jnp.zeros((*layers, num_trees, kv, num_pages, size, h), x.dtype)

    return Pool(*jax.tree.map(empty, (segment.k, segment.v)))


def put(pool: Pool, page: Array, own: Segment) -> Pool:
    """Write the chunks of lanes [B n] into pages [B n]; a page past the end is none."""

    def write(pages: Array, chunk: Array) -> Array:
        if chunk.ndim > 4:  # layer by layer
            return jax.vmap(write)(pages, chunk)
        by_tree = chunk.reshape(*page.shape, *chunk.shape[1:]).swapaxes(1, 2)
        return jax.vmap(lambda x, i, y: x.at[:, i].set(y, mode="drop"))(pages, page, by_tree)

    return Pool(*jax.tree.map(write, tuple(pool), (own.k, own.v)))


def gather(pool: Pool, address: Array, position: Array) -> Segment:
    """Read tokens at addresses [B n T], of positions [B n T], -1: none: a segment of B*n rows."""

    def read(pages: Array) -> Array:
        if pages.ndim > 5:
            return jax.vmap(read)(pages)
        tokens = pages.reshape(*pages.shape[:2], -1, pages.shape[-1])
        found = jax.vmap(lambda x, at: jax.vmap(lambda i: x[:, i])(at))(tokens, address)
        return found.reshape(-1, *found.shape[2:])

    k, v = jax.tree.map(read, tuple(pool))
    return Segment(k, v, position.reshape(-1, position.shape[-1]))


def put_rows(old: Segment, slots: Array, new: Segment) -> Segment:
    """Write the rows [G] of a segment into slots [G] of another; a slot past the end is none."""

    def write(x: Array, y: Array) -> Array:
        if y.ndim > 4:
            return jax.vmap(write)(x, y)
        return x.at[slots].set(y, mode="drop")

    k, v = jax.tree.map(write, (old.k, old.v), (new.k, new.v))
    return Segment(k, v, old.position.at[slots].set(new.position, mode="drop"))
