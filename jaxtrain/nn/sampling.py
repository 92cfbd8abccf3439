"""Drawing a token from logits: one exponential a token of the vocabulary, and no random numbers but
two a lane.

The inverse of the distribution function is looked up twice: among the sums of blocks of the
vocabulary, and inside the block that was met. Each look-up has a uniform number of its own, so that
rare tokens are drawn as often as they should.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxtrain.structs import Array

BLOCK = 128  # tokens


class Draw(NamedTuple):
    """A token a lane."""

    token: Array  # [b] int32
    # [b] float32, under softmax(logits / temperature) without exclusions, 0 at temperature 0; NaN
    # where a logit is NaN or inf
    log_prob: Array
    is_left: Array  # [b] bool, False where no token has a probability any more


def draw(
    logits: Array, keys: Array, temperature: Array, exclude: tuple[Array, Array] | None = None
) -> Draw:
    """Draw a token a lane from softmax(logits / temperature), or take the first of the likeliest.

    logits: [b V] float32, -inf: never; keys: uint32 [b 2]; temperature: [], 0: the likeliest.
    exclude: (tokens [b A] int32, -1: none, each at most once a lane; log_keep [b A] float32): the
    logarithm of the share of each token's probability that is not taken yet, added to
    logits / temperature. A lane's token depends on its own rows alone.
    """
    b, size = logits.shape
    chex.assert_shape(keys, (b, 2))
    is_warm, rows = temperature > 0, jnp.arange(b)[:, None]
    scale = jnp.where(is_warm, 1 / jnp.maximum(temperature, 1e-30), 1e30)
    width = min(BLOCK, size)
    padded = jnp.pad(logits, ((0, 0), (0, -size % width)), constant_values=-jnp.inf)
    blocks = padded.reshape(b, -1, width)

    def left(block: Array) -> Array:  # [b n] -> logits [b n width], after exclusion
        found = jnp.take_along_axis(blocks, block[..., None], axis=1)
        if exclude is None:
            return found
        tokens, log_keep = (x[:, None, None] for x in exclude)
        is_named = (block[..., None] * width + jnp.arange(width))[..., None] == tokens
        added = jnp.sum(jnp.where(is_named, log_keep, 0.0), axis=-1)
        return found + added * jnp.where(is_warm, temperature, 1.0)

    # Weights are at most 1; without temperature, 1 for the likeliest that are left and else 0.
    tops = tops_left = jnp.max(blocks, axis=2)
    if exclude is not None:
        chex.assert_shape(exclude, (b, None))
        # All of them, where no more are there than could be named: each is looked at once.
        all_blocks = jnp.broadcast_to(jnp.arange(blocks.shape[1]), blocks.shape[:2])
        is_few = blocks.shape[1] <= exclude[0].shape[1]
        named = all_blocks if is_few else jnp.maximum(exclude[0], 0) // width
        tops_left = tops.at[rows, named].set(jnp.max(left(named), axis=2))
    top = jnp.max(jnp.where(is_warm, tops, tops_left), axis=1)
    top = jnp.where(top == -jnp.inf, 0.0, top)

    def weights(x: Array) -> Array:
        return jnp.exp((x - top[:, None, None]) * scale)

    # A block with excluded tokens is summed anew: what a subtraction leaves of a sum is noise.
    sums = jnp.sum(weights(blocks), axis=2)
    total = jnp.sum(sums, axis=1)
    if exclude is not None:
        sums = sums.at[rows, named].set(jnp.sum(weights(left(named)), axis=2))

    # One number finds the block, the other one the token inside.
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(jax.random.wrap_key_data(keys))
    uniform = jnp.where(is_warm, uniform, 0.0)
    block = invert(sums, uniform[:, 0])
    inside = invert(weights(left(block[:, None]))[:, 0], uniform[:, 1])
    token = jnp.minimum(block * width + inside, size - 1)
    logit = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    log_prob = jnp.where(total == 0, -jnp.inf, (logit - top) * scale - jnp.log(total))
    cold = jnp.where(jnp.isfinite(top), 0.0, jnp.nan)
    return Draw(token, jnp.where(is_warm, log_prob, cold), jnp.sum(sums, axis=1) > 0)


def invert(weights: Array, uniform: Array) -> Array:
    """Find where the running sum of weights [b n] passes the share `uniform` [b] of the whole.

    Never an entry of weight zero, unless all are: a rounded running sum may fall, or pass nowhere,
    and then the largest entry is taken.
    """
    running = jnp.cumsum(weights, axis=1)
    is_past = (running > uniform[:, None] * running[:, -1:]) & (weights > 0)
    found = jnp.where(jnp.any(is_past, axis=1), is_past.argmax(axis=1), weights.argmax(axis=1))
    return found.astype(jnp.int32)
