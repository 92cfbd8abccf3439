"""How weights lie in a program that decodes: cast, projections of the same input side by side, and
layers apart.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.structs import STACKED, Params

FUSED = ("wq", "wk", "wv"), ("gate", "up")  # projections of the same input


def cast_weights(config: ModelConfig, params: Params) -> Params:
    """Cast the weights to the dtype of the activations; the scales of norms stay float32."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "scale" else x.astype(config.dtype), params
    )


def fuse(params: Params) -> Params:
    """Lay the weights of projections with the same input side by side.

    A block reads either form. Adapters stay as they are, so these may be merged before or after.
    Not for weights whose heads are split over devices: a part of the whole would mix theirs.
    """

    def fuse_block(block: Params) -> Params:
        if "gate" not in block:  # adapters alone
            return block
        axes = block["gate"].shape[:-1]  # [in] or [layers in]
        for names in FUSED:
            flat = [block[name].reshape(*axes, -1) for name in names]
            block = {name: x for name, x in block.items() if name not in names}
            block["_".join(names)] = jnp.concatenate(flat, axis=-1)
        return block

    return {room: fuse_block(x) if isinstance(x, dict) else x for room, x in params.items()}


def decode_weights(config: ModelConfig, params: Params, is_split: bool) -> Params:
    """Cast the weights, and fuse those that devices do not split; adapters may be laid over."""
    cast = cast_weights(config, params)
    return cast if is_split else fuse(cast)


def unroll(config: ModelConfig) -> ModelConfig:
    """Return the shape of a network whose layers are called one after the other.

    A loop over layers copies the keys and values of each out of a stack, for every token.
    """
    return replace(config, is_scanned=False, is_rematerialised=False)


def unstack(params: Params) -> Params:
    """Lay scanned layers apart, for a network with `unroll`; others are returned as they are."""
    if STACKED not in params:
        return params
    num_layers = len(jax.tree.leaves(params[STACKED])[0])
    layers = {
        f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params[STACKED]) for i in range(num_layers)
    }
    return {room: x for room, x in params.items() if room != STACKED} | layers
