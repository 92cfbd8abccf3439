"""The one transformer: a Llama-shaped causal network that reads tokens behind any number of cached
segments.

It never owns a cache. A call attends to the `segments` it is given and to its own tokens, and
returns its own keys and values, alone or written into a segment that the caller keeps; whoever
calls decides what lives where. So a prompt is computed once and shared by all candidates of a node
(a segment may have fewer rows than the queries, each shared by a run of neighbours), and a cache
that is stored differently later changes a gather, not the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.errors import Count, NotNegative, Positive, Section, at_least, one_of
from jaxtrain.nn import lora
from jaxtrain.structs import Array, Params


@dataclass(frozen=True)
class ModelConfig(Section, at="model"):
    """Shape of the transformer, policy and PRM alike."""

    num_layers: Count = 2  # blocks of attention and MLP
    width: Count = 64  # of the residual stream
    num_heads: Count = 4  # of queries
    num_kv_heads: Count = 4  # fewer than num_heads: grouped-query attention
    mlp_width: Count = 192  # of the hidden layer
    head_width: Count | None = None  # none: width / num_heads
    vocab_size: Count | None = None  # rows of the embedding; none: as many as the tokenizer has ids
    is_tied: bool = True  # logits through the embedding; otherwise through a matrix of their own
    has_qkv_bias: bool = False  # Qwen2
    has_qk_norm: bool = False  # an RMSNorm on every head's query and key: Qwen3
    # tokens back that attention reaches, itself included; none: all (Mistral 7B v0.1: 4096)
    window: Count | None = None
    rope_theta: Positive = 10_000.0  # base of the rotary position angles
    # Llama 3.1: low frequencies are divided by this; 1: none
    rope_factor: Annotated[float, at_least(1)] = 1.0
    rope_low: float = 1.0  # Llama 3.1: a frequency that turns less often within rope_length is low
    # Llama 3.1: one that turns more often is high and stays; between them, a blend
    rope_high: float = 4.0
    rope_length: Count = 8192  # Llama 3.1: tokens that the model was first trained on
    norm_eps: NotNegative = 1e-5  # under the root of every RMSNorm
    # of activations and caches; logits, values and losses are float32
    dtype: Annotated[str, one_of("float32", "bfloat16")] = "float32"
    # one compiled block for all layers: deep networks compile in seconds. A policy that writes has
    # them apart all the same: a scan would copy keys and values for every token
    is_scanned: bool = False
    # with is_scanned: updates compute activations again and keep one a layer
    is_rematerialised: bool = False

    def check(self) -> None:
        pairs = [("width", "num_heads"), ("num_heads", "num_kv_heads")]
        for whole, part in pairs[1:] if self.head_width else pairs:
            size = getattr(self, part)
            is_multiple = getattr(self, whole) % size == 0
            self.require(is_multiple, whole, f"must be a multiple of {part}={size}")
        self.require(self.head % 2 == 0, "width", f"a head ({self.head}) must be even")
        is_met = self.is_scanned or not self.is_rematerialised
        self.require(is_met, "is_rematerialised", "needs --config.model.is_scanned=True")
        why = f"must be below rope_high={self.rope_high}"
        self.require(self.rope_low < self.rope_high, "rope_low", why)

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.head_width or self.width // self.num_heads

    @property
    def num_ids(self) -> int:
        """V: rows of the embedding, once a model or a tokenizer has told them."""
        assert self.vocab_size is not None
        return self.vocab_size


class Segment(NamedTuple):
    """Keys and values of tokens read before; a row serves a run of batch / rows queries."""

    # a layer: [rows kv_heads T head]; all layers: a tuple, or one array where they are scanned
    k: Any
    v: Any  # likewise
    position: Array  # [rows T] int32, -1: no token


def join(first: Segment, second: Segment) -> Segment:
    """Lay the tokens of two segments of as many rows side by side, the first in front."""
    k, v = jax.tree.map(
        lambda x, y: jnp.concatenate([x, y], axis=-2), (first.k, first.v), (second.k, second.v)
    )
    return Segment(k, v, jnp.concatenate([first.position, second.position], axis=1))


def empty_segment(segment: Segment, rows: int, size: int) -> Segment:
    """Make a segment of `size` free places a row, beside one with the same network's shapes."""
    k, v = jax.tree.map(
        lambda x: jnp.zeros((*x.shape[:-4], rows, x.shape[-3], size, x.shape[-1]), x.dtype),
        (segment.k, segment.v),
    )
    return Segment(k, v, jnp.full((rows, size), -1))


def newest(segment: Segment, size: int) -> Segment:
    """Take the last `size` places of a segment."""
    k, v = jax.tree.map(lambda x: x[..., -size:, :], (segment.k, segment.v))
    return Segment(k, v, segment.position[:, -size:])


def frequencies(config: ModelConfig) -> np.ndarray:
    """Return the rotary angles a position, [head / 2] float32, scaled as Llama 3.1 scales them."""
    half = config.head // 2
    plain = config.rope_theta ** (-np.arange(half) / half)
    turns = config.rope_length * plain / (2 * np.pi)
    share = np.clip((turns - config.rope_low) / (config.rope_high - config.rope_low), 0, 1)
    return (plain * (share + (1 - share) / config.rope_factor)).astype(np.float32)


def rotation(positions: Array, frequency: np.ndarray) -> tuple[Array, Array]:
    """Return cosine and signed sine of the angles at positions [b t]: [b t 1 2 h/2] float32 each.

    All layers share them; computed where they are used, they would be for every head.
    """
    angle = positions[..., None, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cos, cos], axis=-2), jnp.concatenate([-sin, sin], axis=-2)


def rotate(x: Array, angles: tuple[Array, Array]) -> Array:
    """Rotate x [b t heads h] by the angles of its positions (Su et al. 2021, half-split form)."""
    cos, sin = angles
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    return (halves * cos + jnp.flip(halves, axis=-2) * sin).reshape(x.shape).astype(x.dtype)


def attend(
    q: Array, keys: Sequence[Array], values: Sequence[Array], masks: Sequence[Array]
) -> Array:
    """Softmax attention of one set of queries over several segments of keys.

    q: [b kv groups t h]. keys, values: [rows kv s h] each, rows dividing b. masks: broadcastable to
    [b 1 1 t s], True where visible. Returns [b kv groups t h]. Scores and softmax in float32. A
    query that sees nothing averages everything, which is finite and is read by nobody.
    """
    b, kv, groups, t, h = q.shape

    # [b kv groups t x] -> [rows kv n*groups*t x], n = b / rows
    def by_row(x: Array, rows: int) -> Array:
        x = x.reshape(rows, b // rows, kv, groups * t, x.shape[-1])
        return jnp.swapaxes(x, 1, 2).reshape(rows, kv, -1, x.shape[-1])

    def by_query(x: Array) -> Array:  # and back
        x = x.reshape(x.shape[0], kv, b // x.shape[0], groups * t, x.shape[-1])
        return jnp.swapaxes(x, 1, 2).reshape(b, kv, groups, t, x.shape[-1])

    dot = partial(jnp.einsum, "bkqh,bksh->bkqs", preferred_element_type=jnp.float32)
    scores = [by_query(dot(by_row(q, k.shape[0]), k)) * h**-0.5 for k in keys]
    scores = [jnp.where(mask, x, -1e30) for mask, x in zip(masks, scores, strict=True)]
    top = reduce(jnp.maximum, [jnp.max(x, axis=-1, keepdims=True) for x in scores])
    weights = [jnp.exp(x - jax.lax.stop_gradient(top)) for x in scores]
    total = reduce(jnp.add, [jnp.sum(x, axis=-1, keepdims=True) for x in weights])
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
        inverse = jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * scale).astype(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU; adapters (`nn/lora.py`) where the parameters hold some."""

    config: ModelConfig
    scale: float = 1.0  # of what adapters add
    dropout: float = 0.0  # share of their inputs that is left out where a key "dropout" is given
    residual_dropout: float = 0.0  # likewise, of what attention and MLP add to the residual stream

    @nn.compact
    def __call__(
        self,
        x: Array,
        past: list[tuple[Array, Array]],
        own: tuple[Array, Array] | None,
        angles: tuple[Array, Array],
        masks: list[Array],
        at: Array | int,
        own_mask: Array,
    ):
        """x: [b t width]; past: (k, v) of this layer a segment, masks: theirs; own: (k, v) to write
        into at `at`: before reading, so that a cache in a loop is updated in place.

        Returns (x, (k, v)).
        """
        c = self.config
        b, t, width = x.shape
        dtype, head = jnp.dtype(c.dtype), c.head
        init = nn.initializers.normal(width**-0.5)

        # Projections work on rows of tokens [b*t ...]: the gradient of a weight is then one plain
        # matrix product. Those of the same input are one product where their weights are fused.
        def project(y: Array, shapes: dict[str, tuple[int, ...]], num_in: int = 1) -> list[Array]:
            y, whole = y.reshape(b * t, -1), "_".join(shapes)
            if self.has_variable("params", whole) and len(shapes) > 1:
                ends = np.cumsum([math.prod(shape[num_in:]) for shape in shapes.values()])
                product = y @ self.get_variable("params", whole).astype(dtype)
                products = jnp.split(product, ends[:-1], axis=1)
            else:
                weights = [self.param(name, init, shape) for name, shape in shapes.items()]
                rows = math.prod(next(iter(shapes.values()))[:num_in])
                products = [y @ weight.astype(dtype).reshape(rows, -1) for weight in weights]
            return [adapt(y, x, name) for x, name in zip(products, shapes, strict=True)]

        def adapt(y: Array, projected: Array, name: str) -> Array:
            if not self.has_variable("params", name + lora.A):
                return projected
            down, up = (self.get_variable("params", name + part) for part in (lora.A, lora.B))
            key = self.make_rng("dropout") if self.dropout and self.has_rng("dropout") else None
            return projected + lora.low_rank(y, down, up, self.scale, self.dropout, key)

        def heads(y: Array, name: str, num_heads: int) -> Array:
            y = y.reshape(b, t, num_heads, head)
            if c.has_qkv_bias:
                bias = self.param(f"b{name}", nn.initializers.zeros, (num_heads, head))
                y = y + bias.astype(dtype)
            if c.has_qk_norm and name != "v":
                y = RMSNorm(c.norm_eps, name=f"{name}_norm")(y)
            return y

        # Attention over what was read before and what is read now.
        y = RMSNorm(c.norm_eps, name="attention_norm")(x)
        num_heads = {"q": c.num_heads, "k": c.num_kv_heads, "v": c.num_kv_heads}
        products = project(y, {f"w{name}": (width, n, head) for name, n in num_heads.items()})
        q, k, v = (heads(x, *args) for x, args in zip(products, num_heads.items(), strict=True))
        q = rotate(q, angles).reshape(b, t, c.num_kv_heads, -1, head).transpose(0, 2, 3, 1, 4)
        k, v = rotate(k, angles).transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        if own is not None:
            k = jax.lax.dynamic_update_slice_in_dim(own[0], k, at, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(own[1], v, at, axis=2)
        keys, values = zip(*past, (k, v), strict=True)
        mixed = attend(q, keys, values, [*masks, own_mask]).transpose(0, 3, 1, 2, 4)
        (mixed,) = project(mixed, {"wo": (c.num_heads, head, width)}, num_in=2)
        dropped = nn.Dropout(self.residual_dropout, deterministic=not self.has_rng("dropout"))
        x = x + dropped(mixed.reshape(x.shape))

        y = RMSNorm(c.norm_eps, name="mlp_norm")(x)
        gate, up = project(y, {name: (width, c.mlp_width) for name in ("gate", "up")})
        (y,) = project(nn.silu(gate) * up, {"down": (c.mlp_width, width)})
        return x + dropped(y.reshape(x.shape)), (k, v)


def scan_blocks(config: ModelConfig, *options: float) -> Any:
    """Make one block for all layers: the layer leads in their parameters, past and own."""
    by_layer: Any = (0, 0, *(nn.broadcast,) * 4)  # flax's own annotation knows of an int alone
    return nn.scan(
        nn.remat(Block, prevent_cse=False) if config.is_rematerialised else Block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=by_layer,
        length=config.num_layers,
    )(config, *options)


class Transformer(nn.Module):
    """Embedding, blocks, final norm; logits through the embedding or a matrix of their own."""

    config: ModelConfig
    vocab_size: int
    scale: float = 1.0  # of what adapters add, and what is left out; see Block
    dropout: float = 0.0
    residual_dropout: float = 0.0

    def setup(self):
        c = self.config
        init, shape = nn.initializers.normal(c.width**-0.5), (self.vocab_size, c.width)
        self.embedding = self.param("embedding", init, shape)
        options = (self.scale, self.dropout, self.residual_dropout)
        if c.is_scanned:
            self.blocks: Any = scan_blocks(c, *options)
        else:
            self.blocks = [Block(c, *options, name=f"block_{i}") for i in range(c.num_layers)]
        self.final_norm = RMSNorm(c.norm_eps)
        if not c.is_tied:
            self.unembedding = self.param("unembedding", init, shape)

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        mask: Array,
        segments: tuple[Segment, ...] = (),
        into: Segment | None = None,
        at: Array | int = 0,
        until: Array | None = None,
    ):
        """Read `tokens` behind `segments`.

        tokens, positions: [b t] int32; mask: [b t] bool, True for real tokens. Tokens are causal
        among themselves, in index order; where `until` [b t] int32 is given, a token is seen in
        columns before that one alone. With `into`, of b rows, they continue its tokens at index
        `at`. Returns (hidden [b t width] after the final norm, the Segment written).
        """
        # What each token sees: of these tokens those before it, of the segments all in reach.
        b, t = tokens.shape
        own = jnp.where(mask, positions, -1).astype(jnp.int32)
        if into is not None:
            own = jax.lax.dynamic_update_slice_in_dim(into.position, own, at, axis=1)
        is_before = jnp.arange(own.shape[1]) <= at + jnp.arange(t)[:, None]
        is_visible = is_before & self.is_visible(own, positions)
        if until is not None:  # of several texts in one row
            is_visible &= jnp.arange(t)[:, None] < until[:, None]
        own_mask = is_visible[:, None, None]
        past = [jnp.repeat(s.position, b // s.position.shape[0], axis=0) for s in segments]
        past_masks = [self.is_visible(p, positions)[:, None, None] for p in past]
        x = self.embedding[tokens].astype(jnp.dtype(self.config.dtype))

        # Layer after layer, scanned or unrolled.
        shared = (rotation(positions, frequencies(self.config)), past_masks, at, own_mask)
        if self.config.is_scanned:
            written = None if into is None else (into.k, into.v)
            x, (keys, values) = self.blocks(x, [(s.k, s.v) for s in segments], written, *shared)
            return self.final_norm(x), Segment(keys, values, own)
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            past = [(s.k[i], s.v[i]) for s in segments]
            x, (k, v) = block(x, past, None if into is None else (into.k[i], into.v[i]), *shared)
            keys.append(k)
            values.append(v)
        return self.final_norm(x), Segment(tuple(keys), tuple(values), own)

    def is_visible(self, position: Array, positions: Array) -> Array:
        """Say which keys at `position` [b s] queries at `positions` [b t] may see: [b 1|t s]."""
        is_token = position[:, None] >= 0
        if self.config.window is None:
            return is_token
        return is_token & (positions[:, :, None] - position[:, None] < self.config.window)

    def logits(self, hidden: Array) -> Array:
        """Turn hidden states [... width] into next-token logits [... vocab], float32."""
        matrix = self.embedding if self.config.is_tied else self.unembedding
        return jnp.matmul(hidden, matrix.T.astype(hidden.dtype), preferred_element_type=jnp.float32)


def init_params(model: Transformer, key: Array) -> Params:
    """Draw parameters; `key` is a typed key. Under `jax.eval_shape` only their shapes."""
    one = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, one, one, one == 0)["params"]


def abstract_params(model: Transformer) -> Params:
    """Return the shapes and dtypes of a network's parameters."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
