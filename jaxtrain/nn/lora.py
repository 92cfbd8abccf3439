"""Low-rank adapters (LoRA, Hu et al. 2021): what is trained while the base stays as it is.

The adapter of a projection W [in out] is A [in r] and B [r out], kept beside it in the tree of
parameters, as `wq_a` and `wq_b` beside `wq`. `merge` lays the adapters of a network over a base
that others share, without a copy; a block that finds an adapter adds `x A B` times a scale to what
W gives. So one base serves the policy, the PRM, their updates and their search. `fold` adds the
adapters into the weights, for whoever knows none.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxtrain.structs import Array, Params

A, B = "_a", "_b"  # behind the name of the projection


def init(abstract: Params, key: Array, rank: int, targets: Sequence[str]) -> Params:
    """Draw adapters for the projections `targets` in every block of a Transformer.

    A is uniform within 1 / sqrt(in), as in peft, and B is zero: they change nothing yet. abstract:
    the parameters of the base, or their shapes; key: a typed key. Returns float32.
    """
    blocks = {room: block for room, block in abstract.items() if room.startswith("block")}

    def draw(room: str, name: str, key: Array) -> Params:
        shape = blocks[room][name].shape
        # Scanned layers are one block with an axis in front; of attention's output, heads are in.
        layers, num_in_axes = len(blocks[room]["wq"].shape) - 3, 2 if name == "wo" else 1
        num_in = math.prod(shape[layers : layers + num_in_axes])
        num_out = math.prod(shape[layers + num_in_axes :])
        a = jax.random.uniform(key, (*shape[:layers], num_in, rank), minval=-1.0, maxval=1.0)
        return {name + A: a * num_in**-0.5, name + B: jnp.zeros((*shape[:layers], rank, num_out))}

    adapters: Params = {room: {} for room in blocks}
    for i, room in enumerate(blocks):
        for j, name in enumerate(targets):
            adapters[room] |= draw(room, name, jax.random.fold_in(key, i * len(targets) + j))
    return adapters


def merge(base: Params, params: Params) -> Params:
    """Lay what is trained over what is there: one tree with the leaves of both, without a copy."""
    if not base:
        return params
    laid = {
        key: merge(base.get(key, {}), x) if isinstance(x, dict) else x for key, x in params.items()
    }
    return {**base, **laid}


def fold(params: Params, scale: float) -> Params:
    """Add the adapters of a Transformer into its projections: plain weights, these in float32."""

    def fold_block(block: Params) -> Params:
        def weight(name: str, x: Array) -> Array:
            if name + A not in block:
                return x
            product = jnp.matmul(block[name + A], block[name + B], precision="highest")
            return x.astype(jnp.float32) + scale * product.reshape(x.shape)

        return {name: weight(name, x) for name, x in block.items() if not name.endswith((A, B))}

    return {room: fold_block(x) if isinstance(x, dict) else x for room, x in params.items()}


def low_rank(
    x: Array, a: Array, b: Array, scale: float, dropout: float, key: Array | None
) -> Array:
    """Return the part of an adapter in a projection of x [rows in]: [rows out].

    With a key (typed), inputs are dropped by the share `dropout`, and the rest is raised by as
    much: a branch of its own, as in peft, so that what the base sees is whole.
    """
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 1 - dropout, x.shape), x / (1 - dropout), 0)
    return (x @ a.astype(x.dtype) * scale) @ b.astype(x.dtype)
