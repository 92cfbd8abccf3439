"""What the two networks read from a row for their fits: the policy's logits, the PRM's values at
step ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxtrain.structs import Array, Params

# a Transformer, or its head; flax types what `apply` returns as if it could be mutable collections
# too
Network = Any


class ValueHead(nn.Module):
    """Linear in float32, zero weights and bias 0.5 at the start.

    The raw output is fitted; clip it where it is used.
    """

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """hidden: [... width]. Returns [...] float32."""
        weight = self.param("weight", nn.initializers.zeros, (hidden.shape[-1],))
        bias = self.param("bias", nn.initializers.constant(0.5), ())
        return hidden.astype(jnp.float32) @ weight + bias


HEAD: Network = ValueHead()


def make_logits(model: Network) -> Callable:
    """Make `logits(params, tokens [M L], length [M])` -> [M L V] float32, of the policy."""

    def logits(params: Params, tokens: Array, length: Array) -> Array:
        return model.apply(
            {"params": params}, read_rows(model, params, tokens, length), method="logits"
        )

    return logits


def make_values(model: Network) -> Callable:
    """Make `values(params, tokens [M L], length [M], step_end [M D])` -> [M D] float32, of the PRM."""

    def values(params: Params, tokens: Array, length: Array, step_end: Array) -> Array:
        hidden = read_rows(model, params["backbone"], tokens, length)
        at_ends = jnp.take_along_axis(hidden, step_end[..., None], axis=1)
        return HEAD.apply({"params": params["head"]}, at_ends)

    return values


def read_rows(model: Network, params: Params, tokens: Array, length: Array) -> Array:
    """Read whole rows [M L] of `length` [M]. Returns hidden states [M L width]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model.apply({"params": params}, tokens, positions, positions < length[:, None])[0]
