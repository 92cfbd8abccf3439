"""A PRM that comes in: a backbone of the policy's shape and a linear head, ours or anyone's.

Supported are the KINDS with one label, whose raw output at the last token of a step is the value,
or with K, whose softmax weighs K values from 0 to 1 (with two: wrong, then right). Whether a PRM
reads its values at a marker between steps no file says; ours never sees one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxtrain.errors import UserError
from jaxtrain.hub.folder import read_json
from jaxtrain.hub.pretrained import (
    Pretrained,
    check_tensors,
    load_params,
    open_folder,
    place,
    read_tensor,
)
from jaxtrain.structs import Array, Params

KINDS = ("ForTokenClassification", "ForSequenceClassification")
WEIGHT, BIAS = "score.weight", "score.bias"


def open_prm(path: Path, policy: Pretrained) -> Pretrained:
    """Open a PRM to start from. Raises UserError for another kind, shape or tokenizer."""
    names = read_json(path / "config.json").get("architectures") or ["(none)"]
    kind = next((kind for kind in KINDS if str(names[0]).endswith(kind)), None)
    if kind is None:
        told = f"architecture {names[0]} is not supported as a PRM"
        raise UserError(f"{path}: {told}; supported are {', '.join(KINDS)}")
    prm = open_folder(path, kind)
    width = policy.config.width
    shape = prm.shapes.get(WEIGHT)
    if not shape or shape[1:] != (width,) or prm.shapes.get(BIAS, shape[:1]) != shape[:1]:
        told = f"{WEIGHT} has shape {shape}, not (labels, {width})"
        raise UserError(f"{path}: {told}; supported is a PRM whose head is linear")
    if prm.tokenizer.sha256 != policy.tokenizer.sha256:
        raise UserError(f"{path}: its tokenizer is not that of {policy.where}; take its own PRM")
    # The backbone has no unembedding, whatever its config says.
    prm = replace(prm, config=replace(prm.config, is_tied=policy.config.is_tied))
    if prm.config != policy.config:
        raise UserError(f"{path}: is of another shape than {policy.where}; take its own PRM")
    backbone = {name: shape for name, shape in prm.shapes.items() if name not in (WEIGHT, BIAS)}
    check_tensors(replace(prm, shapes=backbone, config=replace(prm.config, is_tied=True)))
    return prm


def check_head(prm: Pretrained, num_outputs: int, objective: str) -> None:
    """Refuse a PRM whose head an objective does not read. Raises UserError."""
    (num_labels, _), several = prm.shapes[WEIGHT], "binary, pairwise or, with num_bins, bins"
    if num_labels != num_outputs:
        raise UserError(
            f"{prm.where}: has {num_labels} labels, and --config.updates.prm.objective={objective} "
            f"reads {num_outputs}; choose {several if num_labels > 1 else 'squared'}"
        )


def load_prm(prm: Pretrained, abstract: Params, unembedding: Array | None) -> Params:
    """Load a PRM onto the shapes, dtypes and shardings of `abstract`.

    unembedding: the policy's, where it has one: it has a place in the backbone and is read by
    nobody. Raises UserError as `load_params` does.
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
