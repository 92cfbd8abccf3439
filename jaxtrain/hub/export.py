"""Write a network as a Hugging Face folder, which all that is built on its format can load.

The policy is a `...ForCausalLM`, the PRM a `...ForTokenClassification` with one label, the value at
every token before it is clipped to [0, 1], or with several, values that a softmax weighs. What
started from a folder leaves with its config, sampling defaults and dtypes.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxtrain.errors import require
from jaxtrain.files import SEAL, sha256, write_json
from jaxtrain.hub import families
from jaxtrain.hub.folder import INDEX, SINGLE
from jaxtrain.hub.pretrained import BIAS, OUTPUT, WEIGHT, Pretrained
from jaxtrain.hub.tokenizer import HubTokenizer, byte_level, byte_of_character
from jaxtrain.nn import lora
from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.structs import Params
from jaxtrain.tokenizers import AlphabetTokenizer

MAX_SHARD_BYTES = 2**31
PEFT = "base_model.model."  # what PEFT puts before the name of a tensor
PEFT_TASKS = {"policy": "CAUSAL_LM", "prm": "TOKEN_CLS"}

Tensors = Iterator[tuple[str, np.ndarray]]


def write_network(
    to: Path,
    network: str,
    params: Params,
    config: ModelConfig,
    tokenizer: Any,
    max_length: int,
    card: str,
    base: Pretrained | None = None,
) -> None:
    """Write the policy or the PRM, its head in float32. Raises UserError where it cannot be."""
    is_prm = network == "prm"
    backbone = params["backbone"] if is_prm else params
    if base and base.given:
        data = dict(base.given["config.json"])
    else:
        data = families.write_model_config(config, len(backbone["embedding"]), max_length)
    texts, tensors = {"config.json": data}, named_tensors(backbone, base)

    # The PRM has no unembedding and writes no text.
    if is_prm:
        kinds = [name.replace("CausalLM", "TokenClassification") for name in data["architectures"]]
        labels = value_labels(params["head"])
        names = {str(k): label for k, label in enumerate(labels)}
        data |= {"architectures": kinds, "id2label": names}
        data |= {"label2id": {label: k for k, label in enumerate(labels)}}
        tensors = chain((pair for pair in tensors if pair[0] != OUTPUT), head_tensors(params))
    elif base and "generation_config.json" in base.given:
        texts["generation_config.json"] = base.given["generation_config.json"]
    elif "eos_token_id" not in data:
        ends = {"eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}
        texts["generation_config.json"] = ends
    write_folder(to, texts, partial(write_tensors, tensors=tensors), tokenizer, card)


def write_adapter(
    to: Path,
    network: str,
    params: Params,
    tokenizer: Any,
    card: str,
    base: Pretrained,
    rank: int,
    targets: Sequence[str],
    alpha: float,
    dropout: float,
) -> None:
    """Write the adapters of a network, and the PRM's head, as a folder that PEFT loads."""
    data = {
        "peft_type": "LORA",
        "task_type": PEFT_TASKS[network],
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": [families.BLOCK[name].split(".")[1] for name in targets],
        "modules_to_save": ["score"] if network == "prm" else None,
        "bias": "none",
        "inference_mode": True,
    }
    tensors = dict(head_tensors(params)) if network == "prm" else {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params.get("backbone", params)):
        for name, index, _ in families.layers_of(families.path_of(keys), leaf.shape):
            part = {lora.A: "lora_A.weight", lora.B: "lora_B.weight"}[name[-len(lora.A) :]]
            module = families.their_name(name[: -len(lora.A)]).removesuffix("weight")
            tensors[module + part] = np.ascontiguousarray(np.asarray(leaf)[index].T)

    def write(folder: Path) -> None:
        named = {PEFT + name: x for name, x in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    write_folder(to, {"adapter_config.json": data}, write, tokenizer, card)


def head_tensors(params: Params) -> Tensors:
    """Yield the tensors of the PRM's head, an output a row."""
    weight, bias = (np.asarray(params["head"][name]) for name in ("weight", "bias"))
    yield WEIGHT, np.ascontiguousarray(np.atleast_2d(weight.T))
    yield BIAS, np.atleast_1d(bias)


def value_labels(head: Params) -> list[str]:
    """Name the outputs of the PRM's head: the value, or the values that a softmax weighs."""
    if np.ndim(head["weight"]) == 1:
        return ["value"]
    return [f"value {x:.3g}" for x in np.linspace(0, 1, np.shape(head["weight"])[1])]


def named_tensors(params: Params, base: Pretrained | None = None) -> Tensors:
    """Yield a Transformer's tensors as Hugging Face has them, in the dtypes of `base`."""
    dtypes = base.dtypes if base else {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.asarray(leaf)
        for name, index, _ in families.layers_of(families.path_of(path), leaf.shape):
            theirs = families.their_name(name)
            dtype = dtypes.get(theirs, np.float32)
            yield theirs, families.to_theirs(name, values[index]).astype(dtype, copy=False)


def write_folder(
    to: Path, texts: Mapping[str, Any], write_fn: Callable[[Path], None], tokenizer: Any, card: str
) -> None:
    """Write all beside `to`, `texts` as JSON, and rename it. Raises UserError if it is there."""
    told = "exists already; choose another folder or remove it"
    require(not to.exists(), f"--to {to}", told)
    beside = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write_fn(beside)
    fast_tokenizer(tokenizer).save_pretrained(str(beside))
    for name, content in texts.items():
        write_json(beside / name, content)
    write_json(beside / SEAL, {path.name: sha256(path) for path in sorted(beside.iterdir())})
    (beside / "README.md").write_text(card, "utf-8")  # anyone may edit the card
    for path in beside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    beside.rename(to)


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Write one file, or numbered ones of at most MAX_SHARD_BYTES with an index."""
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sum(x.nbytes for x in held.values()) + tensor.nbytes > MAX_SHARD_BYTES:
            flush()
        held[name] = tensor
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / SINGLE)
        return
    listed = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{i}").rename(folder / name)
        listed |= dict.fromkeys(shard, name)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": listed})


def fast_tokenizer(tokenizer: AlphabetTokenizer | HubTokenizer) -> Any:
    """Return transformers' tokenizer: the pretrained one, or one that knows the bytes of ours."""
    if isinstance(tokenizer, HubTokenizer):
        return tokenizer.fast
    from tokenizers import pre_tokenizers

    characters = {byte: character for character, byte in byte_of_character().items()}
    special = {"<pad>": tokenizer.pad_id, "<end>": tokenizer.end_id}
    known = {characters[text[0]]: i for i, text in enumerate(tokenizer.token_bytes) if text}
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = {"pad_token": "<pad>", "eos_token": "<end>"}
    return byte_level(special | known, [], [*special], split, **names)
