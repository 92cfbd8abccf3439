"""Write a network as a Hugging Face folder, which transformers and everything built on its format
can load.

The policy is a `...ForCausalLM`, the PRM a `...ForTokenClassification` with one label: the value at
every token, before it is clipped to [0, 1]. What started from a folder leaves with its config,
sampling defaults and dtypes. A folder is written beside its place and renamed into it, so it is
whole or absent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxtrain.errors import UserError
from jaxtrain.files import SEAL, sha256, write_json
from jaxtrain.hub import families
from jaxtrain.hub.folder import INDEX, SINGLE
from jaxtrain.hub.pretrained import OUTPUT, Pretrained
from jaxtrain.hub.tokenizer import HubTokenizer
from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.structs import Params
from jaxtrain.tokenizers import Tokenizer

MAX_SHARD_BYTES = 2**31


def write_policy(
    to: Path,
    params: Params,
    config: ModelConfig,
    tokenizer: Any,
    max_length: int,
    card: str,
    base: Pretrained | None = None,
) -> None:
    """Write the policy, in the form of its `base`.

    Raises UserError where `to` is taken or no architecture computes the network.
    """
    data = config_json(params, config, max_length, base)
    generation = base.given.get("generation_config.json") if base else None
    if generation is None and "eos_token_id" not in data:
        generation = {"eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}
    write_folder(to, data, generation, named_tensors(params, base), tokenizer, card)


def write_prm(
    to: Path,
    params: Params,
    config: ModelConfig,
    tokenizer: Any,
    max_length: int,
    card: str,
    base: Pretrained | None = None,
) -> None:
    """Write the PRM: backbone in the form of its `base`, head in float32.

    Raises as `write_policy`.
    """
    data = config_json(params["backbone"], config, max_length, base)
    data["architectures"] = [
        name.replace("CausalLM", "TokenClassification") for name in data["architectures"]
    ]
    data |= {"id2label": {"0": "value"}, "label2id": {"value": 0}}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield from (
            (name, x) for name, x in named_tensors(params["backbone"], base) if name != OUTPUT
        )
        yield "score.weight", np.asarray(params["head"]["weight"])[None]
        yield "score.bias", np.asarray(params["head"]["bias"])[None]

    write_folder(to, data, None, tensors(), tokenizer, card)


def config_json(
    params: Params, config: ModelConfig, max_length: int, base: Pretrained | None
) -> dict[str, Any]:
    """Return the content of a config.json: the base's own, or that of a network from scratch."""
    if base and base.given:
        return dict(base.given["config.json"])
    return families.write_model_config(config, vocab_size_of(params), max_length)


def vocab_size_of(params: Params) -> int:
    """Count the rows of the embedding."""
    return params["embedding"].shape[0]


def named_tensors(
    params: Params, base: Pretrained | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a Transformer as Hugging Face names and shapes them.

    One parameter is on the host at a time. Each is rounded to the dtype that it has in `base`.
    """
    dtypes = base.dtypes if base else {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.asarray(leaf)
        for name, index, _ in families.layers_of(families.path_of(path), leaf.shape):
            theirs = families.their_name(name)
            yield (
                theirs,
                families.to_theirs(name, values[index]).astype(
                    dtypes.get(theirs, values.dtype), copy=False
                ),
            )


def write_folder(
    to: Path, config: dict, generation: dict | None, tensors: Iterator, tokenizer: Any, card: str
) -> None:
    """Write everything beside `to`, then rename. Raises UserError where `to` exists."""
    if to.exists():
        raise UserError(f"--to {to}: exists already; choose another folder or remove it")
    beside = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write_tensors(beside, tensors)
    fast_tokenizer(tokenizer).save_pretrained(str(beside))
    write_json(beside / "config.json", config)
    if generation is not None:
        write_json(beside / "generation_config.json", generation)
    write_json(beside / SEAL, {path.name: sha256(path) for path in sorted(beside.iterdir())})
    (beside / "README.md").write_text(card, "utf-8")  # anyone may edit the card
    for path in beside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    beside.rename(to)


def write_tensors(folder: Path, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
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
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(names):
        (folder / f"shard-{i}").rename(folder / name)
    listed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": listed})


def fast_tokenizer(tokenizer: Tokenizer | HubTokenizer) -> Any:
    """Return transformers' tokenizer: the pretrained one, or one that knows the bytes of ours."""
    if isinstance(tokenizer, HubTokenizer):
        return tokenizer.fast
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    from jaxtrain.hub.tokenizer import byte_of_character

    characters = {byte: character for character, byte in byte_of_character().items()}
    special = {"<pad>": tokenizer.pad_id, "<end>": tokenizer.end_id}
    known = {characters[text[0]]: i for i, text in enumerate(tokenizer.token_bytes) if text}
    backend = Backend(models.BPE(special | known, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<end>",
        clean_up_tokenization_spaces=False,
    )
