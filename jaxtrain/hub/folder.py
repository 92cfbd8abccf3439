"""A Hugging Face folder, read as data: config.json, safetensors, tokenizer files.

Nothing in it is executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxtrain.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")  # what a model is known by


def find_folder(name: str, may_download: bool, key: str = "pretrained") -> Path:
    """Find a model: a local folder, or an id of the hub in its cache. Raises UserError where it is
    not there.

    The cache is Hugging Face's own (HF_HOME, HF_HUB_OFFLINE and HF_TOKEN hold). Nothing is fetched
    unless asked.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise UserError(
            f"--config.hub.{key}={name}: is a file; name the folder that holds it and config.json"
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"--config.hub.{key}={name}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*PATTERNS, "README.md"]  # which names the license
    try:
        return Path(
            snapshot_download(name, allow_patterns=patterns, local_files_only=not may_download)
        )
    except LocalEntryNotFoundError as error:
        hint = (
            "the hub cannot be reached"
            if may_download
            else "--config.hub.may_download=True fetches it"
        )
        raise UserError(
            f"--config.hub.{key}={name}: neither a folder nor in the hub's cache; {hint}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"--config.hub.{key}={name}: {str(error).splitlines()[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of the folder. Raises UserError."""
    try:
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; is {path.parent} the folder of a model?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a JSON object ({error}); fetch the model again") from error


def list_tensors(
    folder: Path,
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any], Callable[[str], np.ndarray]]:
    """List the tensors of a folder. Returns (shape by name, dtype by name, function that reads
    one).

    Only headers are read here. A file is opened anew for every tensor, so that no more of it than
    that tensor is ever mapped into memory. Raises UserError for a shard that is missing, damaged or
    outside the folder.
    """
    if (folder / SINGLE).exists():  # transformers reads it and no index beside it
        files, listed = [SINGLE], None
    elif (folder / INDEX).exists():
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(
            isinstance(name, str) for name in listed.values()
        ):
            raise UserError(
                f"{folder / INDEX}: has no weight_map from tensor to file; fetch the model again"
            )
        for name in sorted(set(listed.values())):
            if Path(name).name != name:
                raise UserError(
                    f"{folder / INDEX}: names {name!r}, which is outside the folder; fetch the "
                    "model again"
                )
        files = sorted(set(listed.values()))
    else:
        has_pickle = any(folder.glob("*.bin"))
        more = (
            "; its .bin files can execute code and are not read: convert them to safetensors"
            if has_pickle
            else ""
        )
        raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}{more}")

    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, Any] = {}
    files_by_name: dict[str, Path] = {}
    for file in files:
        with open_safetensors(folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                header = tensors.get_slice(name)
                kind, known = header.get_dtype(), ", ".join(FLOATS)
                if kind not in FLOATS:
                    raise UserError(
                        f"{folder / file}: tensor {name} is of type {kind}, not one of {known}"
                    )
                if name in shapes:
                    raise UserError(
                        f"{folder / file}: tensor {name} is in {files_by_name[name].name} too"
                    )
                shapes[name], files_by_name[name] = tuple(header.get_shape()), folder / file
                dtypes[name] = FLOATS[kind]
    for name, file in (listed or {}).items():
        if files_by_name.get(name) != folder / file:
            raise UserError(
                f"{folder / file}: tensor {name} is missing, which {INDEX} says is there"
            )

    def read(name: str) -> np.ndarray:
        with open_safetensors(files_by_name[name]) as tensors:
            return tensors.get_tensor(name)

    return shapes, dtypes, read


def open_safetensors(path: Path) -> Any:
    """Open a file of tensors. Raises UserError where it is missing or cut short."""
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; fetch the model again") from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: is cut short or damaged ({error}); fetch the model again"
        ) from error
