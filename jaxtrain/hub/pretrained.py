"""A pretrained model, and a PRM that comes in: opened, checked, loaded. Stands above `nn`.

Opening reads headers and tokenizer and refuses what we would compute wrongly; `load_params` then
streams the tensors, largest first, onto their shardings, so the host holds one at a time besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.errors import UserError, explained, require
from jaxtrain.files import SEAL, sha256
from jaxtrain.hub import families, folder, gguf_file
from jaxtrain.hub.tokenizer import HubTokenizer, read_tokenizer, wrap
from jaxtrain.nn.transformer import ModelConfig, Transformer, abstract_params
from jaxtrain.structs import STACKED, Array, Params

EMBEDDING, OUTPUT = families.TOP["embedding"], families.TOP["unembedding"]
CONFIGS = ("config.json", "generation_config.json")
PRM_KINDS = ("ForTokenClassification", "ForSequenceClassification")
WEIGHT, BIAS = "score.weight", "score.bias"  # of a PRM's head


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, opened: everything but its weights."""

    where: str
    config: ModelConfig
    tokenizer: HubTokenizer
    shapes: Mapping[str, tuple[int, ...]]  # by Hugging Face's names
    read_fn: Callable[[str], np.ndarray]
    hashes: Mapping[str, str]  # facts for the manifest
    name: str = ""  # as one would tell another, without this machine's folders
    dtypes: Mapping[str, Any] = field(default_factory=dict)  # of tensors by name, in a folder
    given: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # CONFIGS of a folder
    prm: Pretrained | None = None  # what the PRM starts from, if not from this


def open_folder(path: Path, kind: str = "ForCausalLM") -> Pretrained:
    """Open a Hugging Face folder of an architecture that ends in `kind`. Raises UserError."""
    # Compare an exported folder with the hashes beside its files.
    for name, expected in (folder.read_json(path / SEAL) if (path / SEAL).exists() else {}).items():
        told = "is missing or not as it was exported (its sha256 differs); export again"
        require((path / name).is_file() and sha256(path / name) == expected, path / name, told)

    # What the model is.
    names = [name for name in CONFIGS if name == CONFIGS[0] or (path / name).exists()]
    given = {name: folder.read_json(path / name) for name in names}
    data = given["config.json"]
    kinds = [str(name).replace(kind, "ForCausalLM") for name in data.get("architectures") or ()]
    data = data | {"architectures": kinds}
    config = families.read_model_config(data, str(path / "config.json"))
    shapes, dtypes, read_fn = folder.list_tensors(path)

    # Each of the files may name tokens that end a text.
    fast = read_tokenizer(path)
    ends = [fast.eos_token_id]
    for data in reversed(given.values()):
        more = data.get("eos_token_id", [])
        ends += more if isinstance(more, list) else [more]
    tokenizer = wrap(fast, config.num_ids, ends, str(path))
    files = sorted({p for pattern in folder.PATTERNS for p in path.glob(pattern) if p.is_file()})
    hashes = {f"hub/{p.name}": sha256(p) for p in files} | {"hub/tokenizer": tokenizer.sha256}
    return Pretrained(
        str(path), config, tokenizer, shapes, read_fn, hashes, dtypes=dtypes, given=given
    )


def open_gguf_file(path: Path, expected: str) -> Pretrained:
    """Open a GGUF file, whose hash must be `expected` unless that is empty. Raises UserError."""
    reader = gguf_file.open_gguf(path)
    found = sha256(path)
    told = f"its sha256 is {found}, not --config.hub.sha256={expected}; it is another file"
    require(expected in ("", found), path, told)
    with explained(f"{path}: holds a value of the wrong kind", "it is not supported"):
        config = gguf_file.read_model_config(reader, str(path))
    shapes, read_fn = gguf_file.list_tensors(reader, config, str(path))
    fast = gguf_file.make_tokenizer(reader, str(path))
    tokenizer = wrap(fast, config.num_ids, [fast.eos_token_id], str(path))
    hashes = {f"hub/{path.name}": found, "hub/tokenizer": tokenizer.sha256}
    return Pretrained(str(path), config, tokenizer, shapes, read_fn, hashes)


def load_params(pretrained: Pretrained, abstract: Params) -> Params:
    """Load the weights onto the shapes, dtypes and shardings of `abstract`. Raises UserError."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    leaves = {families.path_of(path): leaf for path, leaf in paths}
    read = partial(read_tensor, pretrained)

    loaded = {}
    for path, leaf in sorted(leaves.items(), key=lambda item: -item[1].size):
        layers = (
            families.to_ours(name, read(families.their_name(name)), shape)
            for name, _, shape in families.layers_of(path, leaf.shape)
        )
        is_stacked = path.startswith(f"{STACKED}/")
        loaded[path] = place_layers(layers, leaf) if is_stacked else place(next(layers), leaf)

    # A tied model may carry its embedding twice, but no other matrix in its place.
    is_twice = pretrained.config.is_tied and OUTPUT in pretrained.shapes
    is_met = not is_twice or np.array_equal(read(EMBEDDING), read(OUTPUT))
    told = f"tie_word_embeddings is true, but {OUTPUT} is not {EMBEDDING}; set it to false in "
    require(is_met, pretrained.where, f"{told}config.json, or remove the tensor")
    return jax.tree_util.tree_unflatten(treedef, [loaded[path] for path in leaves])


def read_tensor(pretrained: Pretrained, name: str) -> np.ndarray:
    """Read a tensor by Hugging Face's name. Raises UserError if no float32 holds its values."""
    tensor = pretrained.read_fn(name)
    # A sum needs no mask: an infinity or NaN goes through it, no finite weights reach the limit.
    with np.errstate(invalid="ignore", over="ignore"):
        total = tensor.sum(dtype=np.float64)
    told = f"tensor {name} holds a NaN or an infinity; fetch the model again"
    require(bool(abs(total) <= np.finfo(np.float32).max), pretrained.where, told)
    return tensor


def place(values: np.ndarray, leaf: Any) -> jax.Array:
    """Put one tensor onto a sharding, in the dtype asked for; each device gets its part only."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: np.asarray(values[index], leaf.dtype, order="C")
    )


def place_layers(tensors: Iterable[np.ndarray], leaf: Any) -> jax.Array:
    """Write layer after layer into one parameter; the host holds one, a device keeps its part."""
    compiled = partial(jax.jit, out_shardings=leaf.sharding)
    set_layer = jax.lax.dynamic_update_index_in_dim
    write = compiled(set_layer, static_argnums=3, donate_argnums=0)
    values = compiled(partial(jnp.empty, leaf.shape, leaf.dtype))()
    for layer, tensor in enumerate(tensors):
        values = write(values, tensor.astype(leaf.dtype, copy=False), layer, 0)
        jax.block_until_ready(values)
    return values


def check_tensors(pretrained: Pretrained) -> None:
    """Compare what a model holds with what its config says. Raises UserError for a difference."""
    abstract = abstract_params(Transformer(pretrained.config, pretrained.config.num_ids))
    wanted = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        path = families.path_of(keys)
        wanted[families.their_name(path)] = families.their_shape(path, leaf.shape)
    where, found = pretrained.where, pretrained.shapes
    for name, shape in wanted.items():
        require(name in found, where, f"tensor {name} is missing; fetch the model again")
        told = f"tensor {name} has shape {found[name]}, the config asks for {shape}"
        require(found[name] == shape, where, told)
    for name in found:
        # A tied model may carry its embedding twice.
        is_known = name in wanted or (name == OUTPUT and pretrained.config.is_tied)
        is_known = is_known or families.IGNORED.fullmatch(name) is not None
        require(is_known, where, f"tensor {name} has no place in this architecture")


def open_prm(path: Path, policy: Pretrained) -> Pretrained:
    """Open a PRM to start from, one of PRM_KINDS with a linear head.

    With one label, its output at the last token of a step is the value; with K, a softmax weighs K
    values from 0 to 1 (with two: wrong, then right). Whether a PRM reads its values at a marker
    between steps no file says. Raises UserError for another kind, shape or tokenizer.
    """
    names = folder.read_json(path / "config.json").get("architectures") or ["(none)"]
    kind = next((kind for kind in PRM_KINDS if str(names[0]).endswith(kind)), None)
    if kind is None:
        told = f"architecture {names[0]} is not supported as a PRM"
        raise UserError(f"{path}: {told}; supported are {', '.join(PRM_KINDS)}")
    prm = open_folder(path, kind)
    width = policy.config.width
    shape = prm.shapes.get(WEIGHT, ())
    is_linear = shape[1:] == (width,) and prm.shapes.get(BIAS, shape[:1]) == shape[:1]
    told = f"{WEIGHT} has shape {shape or None}, not (labels, {width})"
    require(is_linear, path, f"{told}; supported is a PRM whose head is linear")
    told = f"its tokenizer is not that of {policy.where}; take its own PRM"
    require(prm.tokenizer.sha256 == policy.tokenizer.sha256, path, told)
    # The backbone has no unembedding, whatever its config says.
    prm = replace(prm, config=replace(prm.config, is_tied=policy.config.is_tied))
    told = f"is of another shape than {policy.where}; take its own PRM"
    require(prm.config == policy.config, path, told)
    backbone = {name: shape for name, shape in prm.shapes.items() if name not in (WEIGHT, BIAS)}
    check_tensors(replace(prm, shapes=backbone, config=replace(prm.config, is_tied=True)))
    return prm


def check_head(prm: Pretrained, num_outputs: int, objective: str) -> None:
    """Refuse a PRM whose head an objective does not read. Raises UserError."""
    (num_labels, _), several = prm.shapes[WEIGHT], "binary, pairwise or, with num_bins, bins"
    told = f"has {num_labels} labels, and --config.updates.prm.objective={objective} reads"
    told = f"{told} {num_outputs}; choose {several if num_labels > 1 else 'squared'}"
    require(num_labels == num_outputs, prm.where, told)


def load_prm(prm: Pretrained, abstract: Params, unembedding: Array | None) -> Params:
    """Load a PRM onto the shapes, dtypes and shardings of `abstract`. Raises UserError.

    unembedding: the policy's, which has a place in the backbone and is read by nobody.
    """
    wanted = {name: leaf for name, leaf in abstract["backbone"].items() if name != "unembedding"}
    backbone = load_params(prm, wanted)
    if unembedding is not None:
        backbone["unembedding"] = jnp.copy(unembedding)
    weight: Any = read_tensor(prm, WEIGHT)
    bias: Any = read_tensor(prm, BIAS) if BIAS in prm.shapes else np.zeros(len(weight), np.float32)
    # One output has no axis of its own.
    head = {
        name: place(values.reshape(abstract["head"][name].shape), abstract["head"][name])
        for name, values in (("weight", weight.T), ("bias", bias))
    }
    return {"backbone": backbone, "head": head}
