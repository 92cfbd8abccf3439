"""The PRM's head: the value of a prefix, read from the hidden state at a step's last token."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxtrain.structs import Array


class ValueHead(nn.Module):
    """Linear in float32, zero weights and bias 0.5 at the start. The raw output is fitted; clip it where it is used."""

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """hidden: [... width]. Returns [...] float32."""
        weight = self.param("weight", nn.initializers.zeros, (hidden.shape[-1],))
        bias = self.param("bias", nn.initializers.constant(0.5), ())
        return hidden.astype(jnp.float32) @ weight + bias
