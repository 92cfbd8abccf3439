"""Drawing a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxtrain.structs import Array


def draw(logits: Array, keys: Array, temperature: Array, exclude=None):
    """Placeholder."""
    warm = logits / jnp.maximum(temperature, 1e-6)
    plain = jax.nn.log_softmax(warm)
    rows = jnp.arange(len(logits))[:, None]
    law, greedy = plain, logits
    if exclude is not None:
        tokens, keep = exclude
        at = jnp.where(tokens >= 0, tokens, logits.shape[1])
        law = law.at[rows, at].add(keep, mode="drop")
        greedy = greedy.at[rows, at].add(keep, mode="drop")
    drawn = jax.vmap(jax.random.categorical)(jax.random.wrap_key_data(keys), law)
    token = jnp.where(temperature > 0, drawn, jnp.argmax(greedy, axis=-1)).astype(jnp.int32)
    log_prob = jnp.take_along_axis(plain, token[:, None], axis=1)[:, 0]
    is_left = jnp.any(jnp.isfinite(law), axis=-1)
    return token, jnp.where(temperature > 0, log_prob, 0.0), is_left
