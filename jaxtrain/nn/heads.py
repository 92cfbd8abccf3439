"""What the two networks read from rows for their fits: the policy's log-probabilities, what the
PRM's head says.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jaxtrain.structs import Array, Params, ReadFn, TokenRows

# a Transformer; flax types what `apply` returns as if it could be mutable collections too
Network = Any


def init_head(width: int, num_outputs: int = 1) -> Params:
    """Make a head that says 0.5 of everything.

    With one output: weight [width], bias [], the value itself. With K: weight [width K], bias [K].
    """
    if num_outputs == 1:
        return {"weight": jnp.zeros(width), "bias": jnp.asarray(0.5)}
    return {"weight": jnp.zeros((width, num_outputs)), "bias": jnp.zeros(num_outputs)}


def head_outputs(head: Params, hidden: Array) -> Array:
    """Read hidden states [... width], in float32: [...] of a head with one output, or [... K]."""
    return hidden.astype(jnp.float32) @ head["weight"] + head["bias"]


def value_of(head: Params, hidden: Array) -> Array:
    """Read the value from hidden states [... width]: [...] float32.

    One output is the value, raw: clip it where it is used. Of K, a softmax tells how likely K
    values from 0 to 1 are, evenly spaced, and their mean is the value.
    """
    outputs = head_outputs(head, hidden)
    if head["weight"].ndim == 1:
        return outputs
    return jax.nn.softmax(outputs) @ jnp.linspace(0.0, 1.0, outputs.shape[-1])


def make_log_probs(model: Network, key: Array | None = None) -> ReadFn:
    """Make the function that reads the policy's log-probability of every token, given those before
    it; 0 at the first. key: see `read_rows`.
    """

    def log_probs(params: Params, rows: TokenRows) -> Array:
        hidden, column = read_rows(model, params, rows, key), jnp.arange(rows.until.shape[1])
        # The token before each one stands in the last column that it goes on from.
        is_before = (column < column[:, None]) & (column[:, None] < rows.until[:, None])
        at = jnp.max(jnp.where(is_before, column, 0), axis=-1)
        before = jnp.take_along_axis(hidden, at[..., None], axis=1)
        logits = model.apply({"params": params}, before, method="logits")
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, rows.tokens)
        return jnp.where(rows.position > 0, -loss, 0.0)

    return log_probs


def make_outputs(model: Network, key: Array | None = None) -> ReadFn:
    """Make the function that reads what the PRM's head says of the text up to every token."""

    def outputs(params: Params, rows: TokenRows) -> Array:
        return head_outputs(params["head"], read_rows(model, params["backbone"], rows, key))

    return outputs


def read_rows(model: Network, params: Params, rows: TokenRows, key: Array | None = None) -> Array:
    """Read rows, a text alone: [M L width]; with a key (uint32 [2]), adapters drop inputs."""
    chex.assert_equal_shape([rows.tokens, rows.position, rows.until])
    rngs = None if key is None else {"dropout": jax.random.wrap_key_data(key)}
    told = rows.tokens, rows.position, rows.until > 0
    return model.apply({"params": params}, *told, until=rows.until, rngs=rngs)[0]
