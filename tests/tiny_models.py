"""Tiny networks for tests: every parameter random, so that none can be forgotten unnoticed."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.nn.transformer import ModelConfig, Segment, Transformer, abstract_params

VOCAB = 11
CONFIG = ModelConfig(num_layers=2, width=16, num_heads=4, num_kv_heads=2, mlp_width=24)
MODEL = Transformer(CONFIG, VOCAB)


class Bigram:
    """A network without layers or memory: the next token's logits are the newest token's row of the
    parameters.
    """

    def apply(
        self,
        variables,
        tokens,
        positions=None,
        mask=None,
        segments=(),
        into=None,
        at=0,
        method=None,
    ):
        del positions, segments, at
        return (
            tokens
            if method == "logits"
            else (variables["params"][tokens], into or Segment((), (), mask))
        )


def random_like(tree, seed):
    """Fill a tree of arrays with normal numbers, blocks strong enough that greedy text does not
    just repeat itself.
    """
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        drawn = rng.normal(size=leaf.shape)
        if leaf.ndim < 2:
            return jnp.asarray(1 + 0.3 * drawn, jnp.float32)
        return jnp.asarray(drawn / (4 if path[-1].key == "embedding" else 2), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, tree)


@cache
def random_params(model=MODEL, seed=2):
    return random_like(abstract_params(model), seed)


def plain_positions(tokens):
    return np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


def read_whole(model, params, tokens, length):
    """Read right-padded rows [b t] in one piece: hidden states [b t width]."""
    mask = plain_positions(tokens) < length[:, None]
    return model.apply({"params": params}, tokens, plain_positions(tokens), mask)[0]
