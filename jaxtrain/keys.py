"""Seeds of every draw: keys on the devices, generators on the host, each with its purpose.

Keys are raw threefry data, uint32 [... 2], so that they can be stored in trees.

Keys are folded, never split along a chain: what a problem draws is a function of (seed, iteration,
purpose, problem, path in the tree, lane, token), so neither its neighbours in a batch nor a resume
can change it.
"""

from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.structs import Array


class Purpose(IntEnum):
    """What a key or a random generator is for; part of every seed."""

    INIT = 0
    SEARCH = 1
    SOLVE = 2
    SAMPLE = 3
    GREEDY = 4
    FIT_POLICY = 5
    FIT_PRM = 6
    PROMPTS = 7
    PATHS = 8
    PAIRS = 9
    HELD_OUT = 10
    HINT = 11


def host_rng(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """Make the host's generator for one purpose; `numbers` tell its uses apart, all of them >= 0.

    A use gives as many numbers as every other use of its purpose: a seed of numpy reads (1, 0) as
    it reads (1,).
    """
    return np.random.default_rng((seed, int(purpose), *numbers))


def fold_in(keys: Array, data: Array | int) -> Array:
    """Fold int [...] into uint32 [... 2], broadcast against each other: uint32 [... 2]."""
    fold = jnp.vectorize(
        lambda key, n: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key), n)),
        signature="(k),()->(k)",
    )
    return fold(keys, jnp.asarray(data))


def problem_keys(seed: int, iteration: Array, purpose: Array, problem_id: Array) -> Array:
    """Derive the keys of problems [B] for one purpose of one iteration: uint32 [B 2]."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), iteration), purpose)
    return fold_in(jax.random.key_data(key), problem_id)
