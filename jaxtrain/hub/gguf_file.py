"""One GGUF file of the llama family: weights and tokenizer, by the `gguf` package and numpy.

Tensors are dequantized to float32 one at a time. llama.cpp stores the rows of q and k as pairs
(2i, 2i + 1) of a head side by side; they are put back into the half-split order of everybody else.
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.errors import UserError, explained, require
from jaxtrain.hub import families
from jaxtrain.hub.tokenizer import byte_level
from jaxtrain.nn.transformer import ModelConfig

CONTROL = 3  # the type of a token that is no text

# Metadata of the family that is read here; any other that is set is refused.
READ = re.compile(
    r"llama\.(block_count|embedding_length|feed_forward_length|context_length|vocab_size"
    r"|rope\.(freq_base|dimension_count|scal.*)"
    r"|attention\.(head_count(_kv)?|(key|value)_length|layer_norm_rms_epsilon))"
)


def open_gguf(path: Path) -> Any:
    """Open a file by the `gguf` package. Raises UserError for one missing, cut, or no GGUF."""
    try:
        from gguf import GGUFReader  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("a GGUF file needs pip install 'jaxtrain[gguf]'") from error
    # A damaged file surfaces as anything from numpy's and the reader's parsers.
    with explained(f"{path}: is no GGUF file, or is cut short", "fetch it again"):
        try:
            reader = GGUFReader(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
    size = path.stat().st_size
    told = f"its tensors end at byte {end}, the file at {size}; fetch it again"
    require(end <= size, path, told)
    return reader


def field(reader: Any, key: str, default: Any = None, prefix: str = "") -> Any:
    """Read one metadata value."""
    found = reader.get_field(prefix + key)
    return default if found is None else found.contents()


def read_model_config(reader: Any, where: str) -> ModelConfig:
    """Turn the metadata into a ModelConfig. Raises UserError for what is not computed here."""
    kind = field(reader, "general.architecture")
    told = f"architecture {kind} is not supported; supported is llama"
    require(kind == "llama", where, told)

    def need(key: str) -> Any:
        value = field(reader, f"llama.{key}")
        require(value is not None, where, f"llama.{key} is missing; fetch the file again")
        return value

    num_heads, width = int(need("attention.head_count")), int(need("embedding_length"))
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    head = int(field(reader, "llama.attention.key_length", width // num_heads))

    # What would change the computation in a way that is not ours is refused.
    rope = partial(field, reader, prefix="llama.rope.")
    scaling = rope("scaling.type", "none")
    factors = [float(rope(key, 1.0)) for key in ("scaling.factor", "scale_linear")]
    is_whole = rope("dimension_count", head) == head
    told = f"rope scaling {scaling!r} or a rope over part of a head is not supported"
    require(scaling == "none" and factors == [1.0, 1.0] and is_whole, where, told)
    told = "rope scaling by rope_freqs.weight is not supported"
    require("rope_freqs.weight" not in shapes, where, told)
    for key in reader.fields:
        if key.startswith("llama.") and not READ.fullmatch(key) and field(reader, key):
            raise UserError(f"{where}: {key}={repr(field(reader, key))[:80]} is not supported")
    is_met = field(reader, "llama.attention.value_length", head) == head
    require(is_met, where, f"llama.attention.value_length is not that of the keys, {head}")
    return ModelConfig(
        num_layers=int(need("block_count")),
        width=width,
        num_heads=num_heads,
        num_kv_heads=int(field(reader, "llama.attention.head_count_kv", num_heads)),
        mlp_width=int(need("feed_forward_length")),
        head_width=None if head * num_heads == width else head,
        vocab_size=len(field(reader, "tokenizer.ggml.tokens")),
        is_tied="output.weight" not in shapes,
        rope_theta=float(rope("freq_base", 10_000.0)),
        norm_eps=float(need("attention.layer_norm_rms_epsilon")),
    )


def list_tensors(
    reader: Any, config: ModelConfig, where: str
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """List the shapes of tensors by Hugging Face's names, and how one is read. Raises UserError."""
    import gguf  # pyright: ignore[reportMissingImports]

    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    layers = [f"model.layers.{i}." for i in range(config.num_layers)]
    names = [*families.TOP.values(), *map("".join, product(layers, families.BLOCK.values()))]
    known = {name_map.get_name(theirs, (".weight",)): theirs for theirs in names}
    tensors = {}
    for tensor in reader.tensors:
        name = known.get(tensor.name, tensor.name)
        told = f"tensor {tensor.name} is there twice; fetch the file again"
        require(name not in tensors, where, told)
        try:
            gguf.dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError as error:
            told = f"tensor {tensor.name} is of type {tensor.tensor_type.name}, not known"
            raise UserError(f"{where}: {told}") from error
        tensors[name] = tensor

    def read(name: str) -> np.ndarray:
        values = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        values = values.astype(np.float32).reshape(shapes[name])
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        for part, num_heads in heads.items():
            if part in name:
                pairs = values.reshape(num_heads, config.head // 2, 2, -1)
                values = pairs.swapaxes(1, 2).reshape(shapes[name])
        return values

    # gguf gives dimensions innermost first.
    shapes = {
        name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()
    }
    return shapes, read


def make_tokenizer(reader: Any, where: str) -> Any:
    """Build transformers' fast tokenizer. Raises UserError for a kind that is not known."""
    from tokenizers import pre_tokenizers

    read = partial(field, reader, prefix="tokenizer.")
    kind, split = read("ggml.model"), read("ggml.pre")
    told = f"tokenizer {kind}/{split} is not supported; supported is gpt2/smollm"
    require((kind, split) == ("gpt2", "smollm"), where, told)
    # SmolLM2's way to split a text, put together from the parts that the metadata names.
    tokens, types = read("ggml.tokens"), read("ggml.token_type")
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    numbers = {name: read(f"ggml.{key}_token_id") for name, key in names.items()}
    return byte_level(
        {token: i for i, token in enumerate(tokens)},
        [tuple(merge.split(" ", 1)) for merge in read("ggml.merges")],
        [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL],
        pre_tokenizers.Sequence([digits, words]),
        chat_template=read("chat_template"),
        add_bos_token=bool(read("ggml.add_bos_token", False)),
        **{f"{name}_token": i if i is None else tokens[i] for name, i in numbers.items()},
    )
