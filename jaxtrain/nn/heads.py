"""What the two networks read from rows for their fits: the policy's logits, the PRM's values."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtrain.structs import Array, Params, ReadFn, TokenRows

# a Transformer, or its head; flax types what `apply` returns as if it could be mutable collections
# too
Network = Any


class ValueHead(nn.Module):
    """Linear in float32, 0.5 at the start. The raw output is fitted: clip it where it is used."""

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """hidden: [... width]. Returns [...] float32."""
        weight = self.param("weight", nn.initializers.zeros, (hidden.shape[-1],))
        bias = self.param("bias", nn.initializers.constant(0.5), ())
        return hidden.astype(jnp.float32) @ weight + bias


HEAD: Network = ValueHead()


def make_logits(model: Network, key: Array | None = None) -> ReadFn:
    """Make the function that reads the policy's logits at every token; key: see `read_rows`."""

    def logits(params: Params, rows: TokenRows) -> Array:
        hidden = read_rows(model, params, rows, key)
        return model.apply({"params": params}, hidden, method="logits")

    return logits


def make_values(model: Network, key: Array | None = None) -> ReadFn:
    """Make the function that reads the PRM's value of the text up to every token."""

    def values(params: Params, rows: TokenRows) -> Array:
        hidden = read_rows(model, params["backbone"], rows, key)
        return HEAD.apply({"params": params["head"]}, hidden)

    return values


def read_rows(model: Network, params: Params, rows: TokenRows, key: Array | None) -> Array:
    """Read whole rows; a text sees itself alone. Returns hidden states [M L width].

    With a key (uint32 [2]), adapters drop some of their inputs.
    """
    chex.assert_equal_shape([rows.tokens, rows.position, rows.segment])
    rngs = None if key is None else {"dropout": jax.random.wrap_key_data(key)}
    return model.apply(
        {"params": params},
        rows.tokens,
        rows.position,
        rows.segment > 0,
        segment_ids=rows.segment,
        rngs=rngs,
    )[0]
