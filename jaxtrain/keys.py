"""Random keys as raw threefry data, uint32 [... 2], so that they can be stored in trees.

Keys are folded, never split along a chain: what a problem draws is a function of (seed, iteration,
purpose, problem, path in the tree, lane, token), so neither its neighbours in a batch nor a resume
can change it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxtrain.structs import Array


def fold_in(keys: Array, data: Array | int) -> Array:
    """Fold integers into keys.

    uint32 [... 2] and int [...], broadcast against each other, give uint32 [... 2].
    """
    fold = jnp.vectorize(
        lambda key, n: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key), n)),
        signature="(k),()->(k)",
    )
    return fold(keys, jnp.asarray(data))


def problem_keys(seed: int, iteration: Array, purpose: Array, problem_id: Array) -> Array:
    """Derive the keys of problems [B] for one purpose of one iteration: uint32 [B 2]."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), iteration), purpose)
    return fold_in(jax.random.key_data(key), problem_id)
