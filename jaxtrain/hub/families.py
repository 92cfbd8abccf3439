"""What a `config.json` means, and what Hugging Face calls our parameters.

A config is data: read with an allow-list, never executed. Every family here is the one Llama-shaped block with flags; a
family that needs another block gets a network of its own beside `nn/transformer.py`, not one more flag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtrain.errors import UserError
from jaxtrain.nn.transformer import STACKED, ModelConfig

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")  # computed from the config, written by old versions

TOP = {
    "embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "unembedding": "lm_head.weight",
}
BLOCK = {
    "attention_norm/scale": "input_layernorm.weight",
    "wq": "self_attn.q_proj.weight",
    "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight",
    "wo": "self_attn.o_proj.weight",
    "bq": "self_attn.q_proj.bias",
    "bk": "self_attn.k_proj.bias",
    "bv": "self_attn.v_proj.bias",
    "q_norm/scale": "self_attn.q_norm.weight",
    "k_norm/scale": "self_attn.k_norm.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
KERNELS = ("wq", "wk", "wv", "wo", "gate", "up", "down")  # theirs are [out in]


def read_model_config(data: Mapping[str, Any], where: str) -> tuple[str, ModelConfig]:
    """Turn the content of a config.json into (architecture, ModelConfig). Raises UserError for what we do not compute.

    Both forms are read: rotary settings under `rope_parameters` (transformers 5) and beside the rest (before).
    """
    try:
        return _read_model_config(data, where)
    except UserError as error:  # of a ModelConfig that cannot be, in the words of a flag that nobody set
        name = str(error).removeprefix("--config.model.")
        raise error if name == str(error) else UserError(f"{where}: as {name}; fetch the model again") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{where}: holds a value of the wrong kind ({error}); fetch the model again") from error


def _read_model_config(data: Mapping[str, Any], where: str) -> tuple[str, ModelConfig]:
    names = data.get("architectures") or "(none)"
    family = names if isinstance(names, str) else names[0]
    if family not in FAMILIES:
        raise UserError(f"{where}: architecture {family} is not supported; supported are {', '.join(FAMILIES)}")

    def need(key: str, kind: type = int) -> Any:
        if key not in data:
            raise UserError(f"{where}: {key} is missing; is it the config.json of a {family}?")
        return as_kind(data[key], kind)

    def as_kind(value: Any, kind: type) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r} where one of type {kind.__name__} belongs")
        return value

    def refuse(key: str, value: object, known: str) -> None:
        raise UserError(f"{where}: {key}={value!r} is not supported for {family}; supported is {known}")

    if data.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", data["hidden_act"], "silu")
    for key in ("attention_bias", "mlp_bias"):
        if data.get(key, False):
            refuse(key, True, "false")
    if data.get("quantization_config"):
        refuse("quantization_config", data["quantization_config"].get("quant_method"), "none")
    window = as_kind(data.get("sliding_window", 4096 if family == "MistralForCausalLM" else 0) or 0, int)
    if family.startswith("Qwen"):
        # Qwen lets the layers from max_window_layers on slide; none of those published uses it.
        if data.get("use_sliding_window", False):
            refuse("use_sliding_window", True, "false")
        window = 0
    rope = {**(data.get("rope_scaling") or {}), **(data.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        refuse("rope_type", kind, "default or llama3")
    scaling: dict[str, Any] = {}
    if kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        missing = [key for key in keys if key not in rope]
        if missing:
            raise UserError(f"{where}: rope_type llama3 without {', '.join(missing)}")
        scaling = dict(
            zip(("rope_factor", "rope_low", "rope_high"), (float(rope[key]) for key in keys[:3]), strict=True),
            rope_length=int(rope[keys[3]]),
        )
    theta, eps = float(rope.get("rope_theta", data.get("rope_theta", 10_000.0))), float(need("rms_norm_eps", float))
    for key, value in (("rope_theta", theta), ("rms_norm_eps", eps)):
        if not 0 < value < math.inf:
            refuse(key, value, "a number above 0")
    num_heads, width = need("num_attention_heads"), need("hidden_size")
    head = data.get("head_dim") or (128 if family == "Qwen3ForCausalLM" else width // num_heads)
    config = ModelConfig(
        num_layers=need("num_hidden_layers"),
        width=width,
        num_heads=num_heads,
        num_kv_heads=data.get("num_key_value_heads") or num_heads,
        mlp_width=need("intermediate_size"),
        head_width=0 if head * num_heads == width else head,
        vocab_size=need("vocab_size"),
        is_tied=as_kind(data.get("tie_word_embeddings", False), bool),
        has_qkv_bias=family == "Qwen2ForCausalLM",
        has_qk_norm=family == "Qwen3ForCausalLM",
        window=window,
        rope_theta=theta,
        norm_eps=eps,
        **scaling,
    )
    return family, config


def family_of(config: ModelConfig) -> str:
    """Name the architecture that computes what a network of ours does. Raises UserError where none does."""
    if config.window and (config.has_qkv_bias or config.has_qk_norm):
        raise UserError("no architecture has a window together with qkv biases or q/k norms; it cannot be exported")
    if config.has_qkv_bias == config.has_qk_norm:
        if config.has_qkv_bias:
            raise UserError("no architecture has both qkv biases and q/k norms; it cannot be exported")
        return "MistralForCausalLM" if config.window else "LlamaForCausalLM"
    return "Qwen2ForCausalLM" if config.has_qkv_bias else "Qwen3ForCausalLM"


def write_model_config(config: ModelConfig, vocab_size: int, max_positions: int) -> dict[str, Any]:
    """Say in a config.json what a network of ours is, so that transformers 4 and 5 and we read it alike."""
    family = family_of(config)
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_factor != 1.0:
        rope = {
            "rope_type": "llama3",
            "factor": config.rope_factor,
            "low_freq_factor": config.rope_low,
            "high_freq_factor": config.rope_high,
            "original_max_position_embeddings": config.rope_length,
        }
    data: dict[str, Any] = {
        "architectures": [family],
        "model_type": family.removesuffix("ForCausalLM").lower(),
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": config.is_tied,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "attention_bias": False,
        "dtype": "float32",
    }
    if config.rope_factor != 1.0:
        data["rope_scaling"] = rope
    if family == "MistralForCausalLM":
        data["sliding_window"] = config.window
    if family.startswith("Qwen"):
        data["use_sliding_window"] = False
    return data


def path_of(keys: Sequence[Any]) -> str:
    """Join the keys of a leaf, as `jax.tree_util` lists them: "block_3/wq"."""
    return "/".join(str(key.key) for key in keys)


def layers_of(path: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """List what Hugging Face stores apart: (path, index, shape) of every layer of a stacked parameter.

    "blocks/wq" [28 ...] is "block_0/wq" at (0,), "block_1/wq" at (1,) and so on; any other is itself, at ().
    """
    if not path.startswith(f"{STACKED}/"):
        return [(path, (), shape)]
    return [(path.replace(STACKED, f"block_{i}", 1), (i,), shape[1:]) for i in range(shape[0])]


def their_name(path: str) -> str:
    """Name a parameter as Hugging Face does: "block_3/wq" is "model.layers.3.self_attn.q_proj.weight"."""
    match = re.fullmatch(r"block_(\d+)/(.*)", path)
    return f"model.layers.{match[1]}.{BLOCK[match[2]]}" if match else TOP[path]


def their_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape that Hugging Face stores a parameter of ours in."""
    name = path.rsplit("/", 1)[-1]
    if name in KERNELS:
        num_in = shape[0] * shape[1] if name == "wo" else shape[0]
        return (int(np.prod(shape)) // num_in, num_in)
    return (int(np.prod(shape)),) if name.startswith("b") and len(name) == 2 else shape


def to_ours(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turn a tensor of theirs into a parameter of ours; a view where it can be."""
    return (tensor.T if path.rsplit("/", 1)[-1] in KERNELS else tensor).reshape(shape)


def to_theirs(path: str, array: np.ndarray) -> np.ndarray:
    """Turn a parameter of ours into a tensor of theirs."""
    shape = their_shape(path, array.shape)
    is_kernel = path.rsplit("/", 1)[-1] in KERNELS
    return np.ascontiguousarray(array.reshape(shape[::-1]).T if is_kernel else array.reshape(shape))
