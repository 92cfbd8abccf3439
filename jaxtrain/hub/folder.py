"""A Hugging Face folder, read as data, never executed: config.json, safetensors, tokenizer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from jaxtrain import files
from jaxtrain.errors import UserError, explained, require

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")  # what a model is known by

read_json = partial(files.read_json, then="fetch the model again, or name its folder")


def find_folder(name: str, may_download: bool, key: str = "pretrained") -> Path:
    """Find a local folder, or an id in the hub's cache, fetched if asked. Raises UserError."""
    flag = f"--config.hub.{key}={name}"
    if Path(name).is_dir():
        return Path(name)
    told = "is a file; name the folder that holds it and config.json"
    require(not Path(name).is_file(), flag, told)
    is_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    require(is_id, flag, "no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*PATTERNS, "README.md"]  # which names the license
    try:
        is_local = not may_download
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=is_local))
    except LocalEntryNotFoundError as error:
        fetch = "--config.hub.may_download=True fetches it"
        hint = "the hub cannot be reached" if may_download else fetch
        raise UserError(f"{flag}: neither a folder nor in the hub's cache; {hint}") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{flag}: {str(error).splitlines()[0]}") from error


def list_tensors(
    folder: Path,
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any], Callable[[str], np.ndarray]]:
    """List the tensors of a folder: shapes and dtypes by name, and a function that reads one.

    A file is opened anew for every tensor, so that no more than that is mapped into memory. Raises
    UserError for a shard that is missing, damaged or outside the folder.
    """
    names, listed = list_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for path in (folder / name for name in names):
        with open_safetensors(path) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                header = tensors.get_slice(name)
                kind, known = header.get_dtype(), ", ".join(FLOATS)
                told = f"tensor {name} is of type {kind}, not one of {known}"
                require(kind in FLOATS, path, told)
                told = f"tensor {name} is in {places.get(name, path).name} too"
                require(name not in shapes, path, told)
                shapes[name], dtypes[name] = tuple(header.get_shape()), FLOATS[kind]
                places[name] = path
    for name, file in listed.items():
        told = f"tensor {name} is missing, which {INDEX} says is there"
        require(places.get(name) == folder / file, folder / file, told)

    def read(name: str) -> np.ndarray:
        with open_safetensors(places[name]) as tensors:
            return tensors.get_tensor(name)

    return shapes, dtypes, read


def list_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """List the files of tensors, and by tensor where an index says. Raises UserError."""
    index = folder / INDEX
    if (folder / SINGLE).exists():  # transformers reads it and no index beside it
        return [SINGLE], {}
    if not index.exists():
        more = "; its .bin files can execute code and are not read: convert them to safetensors"
        more = more if any(folder.glob("*.bin")) else ""
        raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}{more}")
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"{index}: has no weight_map from tensor to file; fetch the model again")
    names = sorted(set(listed.values()))
    for name in names:
        told = f"names {name!r}, which is outside the folder; fetch the model again"
        require(Path(name).name == name, index, told)
    return names, listed


def open_safetensors(path: Path) -> Any:
    """Open a file of tensors. Raises UserError where it is missing or cut short."""
    require(path.exists(), path, "is missing; fetch the model again")
    with explained(f"{path}: is cut short or damaged"):
        return safe_open(path, framework="numpy")
