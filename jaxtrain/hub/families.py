"""What a `config.json` means, and what Hugging Face calls our parameters.

A config is data: read with an allow-list, never executed. Every family here is the one Llama-shaped
block with flags; a family that needs another block gets a network of its own beside
`nn/transformer.py`, not one more flag.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from jaxtrain.errors import UserError, explained, require
from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.structs import PROJECTIONS, STACKED

# computed from the config, written by old versions
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")

# Published configs hold keys of all sorts. One that is not read here is refused if its name says
# that it changes what is computed: another reader of the same file may heed it.
COMPUTES = re.compile(
    "rope|rotary|attention|attn|window|norm|scal|multiplier|bias|expert|moe|logit|softcap|capping"
    "|alibi|layer|head|hidden|activation|embed|residual|mup|position|compression"
)
HARMLESS = re.compile(
    "_.*|.*(drop|implementation|flash).*|max_position_embeddings|output_(attentions|hidden_states)"
)
READ = re.compile(
    "hidden_(size|act)|num_(hidden_layers|attention_heads|key_value_heads)|head_dim|rms_norm_eps"
    "|rope_(theta|scaling|parameters)|tie_word_embeddings|(attention|mlp)_bias|layer_types"
)
QWEN = {"sliding_window", "use_sliding_window", "max_window_layers"}
FAMILIES = {  # by name, what else is read
    "LlamaForCausalLM": set(),
    "MistralForCausalLM": {"sliding_window"},
    "Qwen2ForCausalLM": QWEN,
    "Qwen3ForCausalLM": QWEN,
}
# Their keys and ours, where both mean the same.
SIZES = {
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
LLAMA3 = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low",
    "high_freq_factor": "rope_high",
    "original_max_position_embeddings": "rope_length",
}

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


def read_model_config(data: Mapping[str, Any], where: str) -> ModelConfig:
    """Turn the content of a config.json into a ModelConfig. Raises UserError for another model."""
    with explained(f"{where}: holds a value of the wrong kind"):
        fields = read_fields(data, where)
    try:
        return ModelConfig(**fields)
    except UserError as error:  # in the words of a flag that nobody set
        told = str(error).removeprefix("--config.model.")
        raise UserError(f"{where}: as {told}; fetch the model again") from error


def read_fields(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a ModelConfig. Raises UserError, and whatever a wrong value does."""
    names = data.get("architectures") or "(none)"
    family = names if isinstance(names, str) else names[0]
    told = f"architecture {family} is not supported; supported are {', '.join(FAMILIES)}"
    require(family in FAMILIES, where, told)

    def read(key: str, kind: type = int, default: Any = None) -> Any:
        value = default if data.get(key) is None else data[key]
        told = f"{key} is missing; is it the config.json of a {family}?"
        require(value is not None, where, told)
        if type(value) is not kind:
            raise TypeError(f"{value!r} where one of type {kind.__name__} belongs")
        return value

    check_keys(data, family, where)

    # Values that families leave out or mean in their own way.
    window = 0  # Qwen's is not used: use_sliding_window is false
    if family == "MistralForCausalLM":
        window = read("sliding_window", default=0 if "sliding_window" in data else 4096)
    eps = read("rms_norm_eps", float)
    if not 0 < eps < math.inf:
        refuse(where, family, "rms_norm_eps", eps, "a number above 0")
    sizes = {ours: read(key) for key, ours in SIZES.items()}
    num_heads, width = sizes["num_heads"], sizes["width"]
    head = read("head_dim", default=128 if family == "Qwen3ForCausalLM" else width // num_heads)
    return {
        **sizes,
        "num_kv_heads": read("num_key_value_heads", default=num_heads),
        "head_width": None if head * num_heads == width else head,
        "vocab_size": read("vocab_size"),
        "is_tied": read("tie_word_embeddings", bool, False),
        "has_qkv_bias": family == "Qwen2ForCausalLM",
        "has_qk_norm": family == "Qwen3ForCausalLM",
        "window": window or None,
        "norm_eps": eps,
        **read_rope(data, family, where),
    }


def check_keys(data: Mapping[str, Any], family: str, where: str) -> None:
    """Refuse what changes the computation in a way that is not ours. Raises UserError."""
    kind = family.removesuffix("ForCausalLM").lower()
    # Qwen lets the layers from max_window_layers on slide; none of those published uses it.
    is_sliding = family.startswith("Qwen") and bool(data.get("use_sliding_window"))
    quantization = data.get("quantization_config") or {"quant_method": None}
    layer_types = sorted({*(data.get("layer_types") or ()), "full_attention"})
    for key, value, known in (
        ("model_type", data.get("model_type") or kind, kind),
        ("is_causal", data.get("is_causal", True), True),
        ("hidden_act", data.get("hidden_act") or "silu", "silu"),
        ("attention_bias", bool(data.get("attention_bias")), False),
        ("mlp_bias", bool(data.get("mlp_bias")), False),
        ("use_sliding_window", is_sliding, False),
        ("layer_types", layer_types, ["full_attention"]),
        ("quantization_config", quantization.get("quant_method", "?"), None),
    ):
        if value != known:
            refuse(where, family, key, value, known)
    for key, value in data.items():
        is_read = key in FAMILIES[family] or READ.fullmatch(key) or HARMLESS.fullmatch(key)
        is_neutral = not value or (type(value) is float and value == 1.0)
        if COMPUTES.search(key) and not is_read and not is_neutral and key != "quantization_config":
            refuse(where, family, key, value, "a config without it")


def read_rope(data: Mapping[str, Any], family: str, where: str) -> dict[str, Any]:
    """Read the rotary settings, under `rope_parameters` (transformers 5) or beside the rest.

    With both forms there, transformers heeds `rope_scaling` alone. Raises UserError.
    """
    rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        refuse(where, family, "rope_type", kind, "default or llama3")
    for key, value in rope.items():
        if key not in ("rope_type", "type", "rope_theta", *LLAMA3) and value not in (None, 1.0):
            refuse(where, family, key, value, f"rope_type {kind} without it")
    theta = float(rope.get("rope_theta", data.get("rope_theta", 10_000.0)))
    if not 0 < theta < math.inf:
        refuse(where, family, "rope_theta", theta, "a number above 0")
    if kind == "default":
        return {"rope_theta": theta}
    missing = [key for key in LLAMA3 if key not in rope]
    require(not missing, where, f"rope_type llama3 without {', '.join(missing)}")
    scaling = {ours: float(rope[key]) for key, ours in LLAMA3.items()}
    return {"rope_theta": theta, **scaling, "rope_length": int(scaling["rope_length"])}


def refuse(where: str, family: str, key: str, value: object, known: object) -> NoReturn:
    """Say what a config asks for, and what we compute."""
    told = f"{key}={repr(value)[:80]} is not supported for {family}; supported is {known}"
    raise UserError(f"{where}: {told}")


def family_of(config: ModelConfig) -> str:
    """Name the architecture that computes a network. Raises UserError where none does."""
    marks = {
        "a window": ("MistralForCausalLM", config.window),
        "qkv biases": ("Qwen2ForCausalLM", config.has_qkv_bias),
        "q/k norms": ("Qwen3ForCausalLM", config.has_qk_norm),
    }
    found = {name: family for name, (family, is_set) in marks.items() if is_set}
    if len(found) > 1:
        together = " together with ".join(found)
        raise UserError(f"no architecture has {together}; it cannot be exported")
    return next(iter(found.values()), "LlamaForCausalLM")


def write_model_config(config: ModelConfig, vocab_size: int, max_positions: int) -> dict[str, Any]:
    """Say in a config.json what a network is; transformers 4 and 5 and we read it alike."""
    family = family_of(config)
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_factor != 1.0:
        scaling = {key: getattr(config, ours) for key, ours in LLAMA3.items()}
        rope = {"rope_type": "llama3", **scaling}
    data: dict[str, Any] = {
        "architectures": [family],
        "model_type": family.removesuffix("ForCausalLM").lower(),
        "hidden_act": "silu",
        **{key: getattr(config, ours) for key, ours in SIZES.items()},
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
    if family.startswith("Qwen"):
        return data | {"use_sliding_window": False}
    return data | ({"sliding_window": config.window} if config.window else {})


def path_of(keys: tuple[Any, ...]) -> str:
    """Join the keys of a leaf, as `jax.tree_util` lists them: "block_3/wq"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def layers_of(
    path: str, shape: tuple[int, ...]
) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """List (path, index, shape) of every layer of a parameter, which Hugging Face stores apart.

    "blocks/wq" [28 ...] is "block_0/wq" at (0,), "block_1/wq" at (1,), ...; any other is at ().
    """
    if not path.startswith(f"{STACKED}/"):
        return [(path, (), shape)]
    return [(path.replace(STACKED, f"block_{i}", 1), (i,), shape[1:]) for i in range(shape[0])]


def their_name(path: str) -> str:
    """Name a parameter as they do: "block_3/wq" is "model.layers.3.self_attn.q_proj.weight"."""
    match = re.fullmatch(r"block_(\d+)/(.*)", path)
    return f"model.layers.{match[1]}.{BLOCK[match[2]]}" if match else TOP[path]


def their_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape that Hugging Face stores a parameter in; projections are [out in]."""
    name = path.rsplit("/", 1)[-1]
    if name in PROJECTIONS:
        num_in = shape[0] * shape[1] if name == "wo" else shape[0]
        return (int(np.prod(shape)) // num_in, num_in)
    return (int(np.prod(shape)),) if name.startswith("b") and len(name) == 2 else shape


def to_ours(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turn a tensor of theirs into a parameter of ours; a view where it can be."""
    return (tensor.T if path.rsplit("/", 1)[-1] in PROJECTIONS else tensor).reshape(shape)


def to_theirs(path: str, array: np.ndarray) -> np.ndarray:
    """Turn a parameter of ours into a tensor of theirs."""
    shape = their_shape(path, array.shape)
    is_kernel = path.rsplit("/", 1)[-1] in PROJECTIONS
    return np.ascontiguousarray(array.reshape(shape[::-1]).T if is_kernel else array.reshape(shape))
