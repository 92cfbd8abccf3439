"""A PRM that comes in: a backbone of the policy's shape and a linear head, ours or anyone's.

Supported is a `...ForTokenClassification` or `...ForSequenceClassification` with one label, whose
raw output at the last token of a step is the value. A softmax over labels is refused: our head does
not compute it. Whether a PRM reads its values at a marker between steps no file says; ours never
sees one.
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
    """Open a PRM to start from.

    Raises UserError where kind, shape or tokenizer are not supported.
    """
    names = read_json(path / "config.json").get("architectures") or ["(none)"]
    kind = next((kind for kind in KINDS if str(names[0]).endswith(kind)), None)
    if kind is None:
        known = ", ".join(KINDS)
        raise UserError(
            f"{path}: architecture {names[0]} is not supported as a PRM; supported are {known}"
        )
    prm = open_folder(path, kind)
    width = policy.config.width
    if prm.shapes.get(WEIGHT) != (1, width) or prm.shapes.get(BIAS, (1,)) != (1,):
        raise UserError(
            f"{path}: {WEIGHT} has shape {prm.shapes.get(WEIGHT)}, not (1, {width}); "
            "supported is a PRM with one label, whose raw output is the value"
        )
    if prm.tokenizer.sha256 != policy.tokenizer.sha256:
        raise UserError(f"{path}: its tokenizer is not that of {policy.where}; take its own PRM")
    # The backbone has no unembedding, whatever its config says.
    prm = replace(prm, config=replace(prm.config, is_tied=policy.config.is_tied))
    if prm.config != policy.config:
        raise UserError(f"{path}: is of another shape than {policy.where}; take its own PRM")
    backbone = {name: shape for name, shape in prm.shapes.items() if name not in (WEIGHT, BIAS)}
    check_tensors(replace(prm, shapes=backbone, config=replace(prm.config, is_tied=True)))
    return prm


def load_prm(prm: Pretrained, abstract: Params, unembedding: Array | None) -> Params:
    """Load a PRM onto the shapes, dtypes and shardings of `abstract`.

    unembedding: the policy's, where it has one: it has a place in the backbone and is read by
    nobody. Raises UserError as `load_params` does.
    """
    wanted = {name: leaf for name, leaf in abstract["backbone"].items() if name != "unembedding"}
    backbone = load_params(prm, wanted)
    if unembedding is not None:
        backbone["unembedding"] = jnp.copy(unembedding)
    bias: Any = read_tensor(prm, BIAS) if BIAS in prm.shapes else np.zeros(1, np.float32)
    head = {"weight": read_tensor(prm, WEIGHT)[0], "bias": bias.reshape(())}
    return {
        "backbone": backbone,
        "head": {name: place(head[name], abstract["head"][name]) for name in head},
    }
