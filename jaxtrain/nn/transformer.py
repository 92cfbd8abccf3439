"""The one transformer: a Llama-shaped causal network that reads tokens behind any number of cached segments.

It never owns a cache. A call attends to the `segments` it is given and to its own tokens, and returns its own keys and
values, alone or written into a segment that the caller keeps; whoever calls decides what lives where. So a prompt is
computed once and shared by all candidates of a node (a segment may have fewer rows than the queries, each shared by a
run of neighbours), and a cache that is stored differently later changes a gather, not the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtrain.errors import UserError, require_at_least, require_one_of
from jaxtrain.structs import Array


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the transformer, policy and PRM alike."""

    num_layers: int = 2
    width: int = 64
    num_heads: int = 4
    num_kv_heads: int = 4  # fewer than num_heads: grouped-query attention
    mlp_width: int = 192
    rope_theta: float = 10_000.0  # base of the rotary position angles
    norm_eps: float = 1e-5
    dtype: str = "float32"  # of activations and caches; parameters, logits, values and losses are float32

    def __post_init__(self):
        require_at_least(1, "model", self, "num_layers", "width", "num_heads", "num_kv_heads", "mlp_width")
        require_at_least(0, "model", self, "rope_theta", "norm_eps")
        require_one_of("model", self, dtype=("float32", "bfloat16"))
        for whole, part in (("width", "num_heads"), ("num_heads", "num_kv_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise UserError(
                    f"--config.model.{whole}={getattr(self, whole)}: must be a multiple of {part}={getattr(self, part)}"
                )
        if self.width // self.num_heads % 2:
            raise UserError(f"--config.model.width={self.width}: a head ({self.width // self.num_heads}) must be even")


class Segment(NamedTuple):
    """Keys and values of tokens read before. Row b serves the queries [b * n, (b + 1) * n), n = batch / rows."""

    k: tuple[Array, ...]  # a layer: [rows kv_heads T head_dim]
    v: tuple[Array, ...]  # a layer: [rows kv_heads T head_dim]
    mask: Array  # [rows T] bool


def rotate(x: Array, positions: Array, theta: float) -> Array:
    """Apply rotary position embedding (Su et al. 2021, half-split form) to `x` [b t heads h] at `positions` [b t]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(q: Array, keys: Sequence[Array], values: Sequence[Array], masks: Sequence[Array]) -> Array:
    """Softmax attention of one set of queries over several segments of keys.

    q: [b kv groups t h]. keys, values: [rows kv s h] each, rows dividing b. masks: broadcastable to [b 1 1 t s], True
    where visible. Returns [b kv groups t h]. Scores and softmax in float32. A query that sees nothing averages
    everything, which is finite and is read by nobody.
    """
    b, kv, groups, t, h = q.shape

    def by_row(x: Array, rows: int) -> Array:  # [b kv groups t x] -> [rows kv n*groups*t x], n = b / rows
        x = x.reshape(rows, b // rows, kv, groups * t, x.shape[-1])
        return jnp.swapaxes(x, 1, 2).reshape(rows, kv, -1, x.shape[-1])

    def by_query(x: Array) -> Array:  # and back
        x = x.reshape(x.shape[0], kv, b // x.shape[0], groups * t, x.shape[-1])
        return jnp.swapaxes(x, 1, 2).reshape(b, kv, groups, t, x.shape[-1])

    scores = [
        by_query(jnp.einsum("bkqh,bksh->bkqs", by_row(q, k.shape[0]), k, preferred_element_type=jnp.float32))
        for k in keys
    ]
    masked = [jnp.where(mask, score * h**-0.5, -1e30) for score, mask in zip(scores, masks, strict=True)]
    tops = [jnp.max(score, axis=-1, keepdims=True) for score in masked]
    top = jax.lax.stop_gradient(reduce(jnp.maximum, tops))
    weights = [jnp.exp(score - top) for score in masked]
    total = reduce(jnp.add, [jnp.sum(weight, axis=-1, keepdims=True) for weight in weights])
    mixed = [
        by_query(jnp.einsum("bkqs,bksh->bkqh", by_row(weight.astype(v.dtype), v.shape[0]), v))
        for weight, v in zip(weights, values, strict=True)
    ]
    return (reduce(jnp.add, mixed) / total).astype(q.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps) * scale).astype(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, positions: Array, past: list[tuple[Array, Array, Array]], own: tuple | None, own_mask):
        """x: [b t width]; past: (k, v, mask) of this layer a segment; own: (k, v, at) to write into, or None.

        Returns (x, k, v). Writing comes before reading, so that a cache in a loop is updated in place.
        """
        c = self.config
        b, t, width = x.shape
        dtype, head = jnp.dtype(c.dtype), width // c.num_heads
        init = nn.initializers.normal(width**-0.5)

        # Projections work on rows of tokens [b*t ...]: the gradient of a weight is then one plain matrix product.
        def project(y: Array, name: str, *shape: int, num_in: int = 1) -> Array:
            weight = self.param(name, init, shape).astype(dtype)
            return y.reshape(b * t, -1) @ weight.reshape(math.prod(shape[:num_in]), -1)

        y = RMSNorm(c.norm_eps, name="attention_norm")(x)
        q = project(y, "wq", width, c.num_heads, head).reshape(b, t, c.num_heads, head)
        k = project(y, "wk", width, c.num_kv_heads, head).reshape(b, t, c.num_kv_heads, head)
        v = project(y, "wv", width, c.num_kv_heads, head).reshape(b, t, c.num_kv_heads, head)
        q = rotate(q, positions, c.rope_theta).reshape(b, t, c.num_kv_heads, -1, head).transpose(0, 2, 3, 1, 4)
        k, v = rotate(k, positions, c.rope_theta).transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        if own is not None:
            k = jax.lax.dynamic_update_slice_in_dim(own[0], k, own[2], axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(own[1], v, own[2], axis=2)
        keys, values, masks = zip(*past, (k, v, own_mask), strict=True)
        mixed = attend(q, keys, values, masks).transpose(0, 3, 1, 2, 4)
        x = x + project(mixed, "wo", c.num_heads, head, width, num_in=2).reshape(x.shape)

        y = RMSNorm(c.norm_eps, name="mlp_norm")(x)
        y = nn.silu(project(y, "gate", width, c.mlp_width)) * project(y, "up", width, c.mlp_width)
        return x + project(y, "down", c.mlp_width, width).reshape(x.shape), k, v


class Transformer(nn.Module):
    """Embedding, blocks, final norm; logits through the tied embedding."""

    config: ModelConfig
    vocab_size: int

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", nn.initializers.normal(c.width**-0.5), (self.vocab_size, c.width))
        self.blocks = [Block(c, name=f"block_{i}") for i in range(c.num_layers)]
        self.final_norm = RMSNorm(c.norm_eps)

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        mask: Array,
        segments: tuple[Segment, ...] = (),
        into: Segment | None = None,
        at: Array | int = 0,
    ):
        """Read `tokens` behind `segments`.

        tokens, positions: [b t] int32; mask: [b t] bool, True for real tokens. Tokens are causal among themselves, in
        index order. With `into`, they continue the tokens of that segment (rows = b) at index `at`, the same for all
        rows. Returns (hidden [b t width] after the final norm, Segment of these tokens or `into` with them written).
        """
        b, t = tokens.shape
        own = mask if into is None else jax.lax.dynamic_update_slice_in_dim(into.mask, mask, at, axis=1)
        is_before = jnp.arange(own.shape[1]) <= at + jnp.arange(t)[:, None]
        own_mask = (is_before & own[:, None])[:, None, None]
        past_masks = [jnp.repeat(s.mask, b // s.mask.shape[0], axis=0)[:, None, None, None, :] for s in segments]
        x = self.embedding[tokens].astype(jnp.dtype(self.config.dtype))
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            past = [(s.k[i], s.v[i], m) for s, m in zip(segments, past_masks, strict=True)]
            x, k, v = block(x, positions, past, None if into is None else (into.k[i], into.v[i], at), own_mask)
            keys.append(k)
            values.append(v)
        return self.final_norm(x), Segment(tuple(keys), tuple(values), own)

    def logits(self, hidden: Array) -> Array:
        """Turn hidden states [... width] into next-token logits [... vocab], float32."""
        return hidden.astype(jnp.float32) @ self.embedding.T.astype(jnp.float32)
