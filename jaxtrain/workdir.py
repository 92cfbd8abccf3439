"""The run folder: config, manifest, lock, trees, and the names of all that a run leaves behind.

    config.json     the resolved config          checkpoints/<iteration>/                    orbax
    manifest.json   versions, devices, hashes    trees/<iteration>/<purpose>-<shard>.npz     see `Workdir.save_trees`
    run.lock        who runs here now            fits/<iteration>/<network>/<updates>/       orbax, while a fit lasts
                                                 metrics.jsonl, tensorboard/, report.html

A run may be killed at any instant, so a file is complete or absent: it is written under a temporary name, synced to
the disk and renamed. One run owns a folder at a time (the kernel drops the lock of a killed process), and one config
owns it for ever: the same command resumes, another config is refused before anything is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from jaxtrain.compilation import kept_in
from jaxtrain.errors import UserError
from jaxtrain.structs import Tree

# A key stands for itself and all below it. None of these changes what an iteration computes: data files and models are
# known by their content, whose hash is a fact.
FREE_KEYS = (
    "loop.num_iterations",
    "compilation",
    "checkpoints",
    "tasks.path",
    "tasks.test_path",
    "hub.pretrained",
    "hub.may_download",
)
PACKAGES = ("jaxtrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mctx", "numpy")
MAX_SHOWN = 8  # differing keys that a message names
TEMPORARY = ".tmp"  # suffix of a file that is still being written
LOCK = "run.lock"


@dataclass(frozen=True)
class Workdir:
    """A run folder that this process owns until `close` (or the end of a `with` block)."""

    path: Path
    notices: tuple[str, ...]  # "key old -> new" for versions, devices and code that changed since the last start
    lock: IO[str]

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder up: the lock is released, the files stay."""
        self.lock.close()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def fits(self) -> Path:
        return self.path / "fits"

    def remove_fits(self, iteration: int) -> None:
        """Remove what was saved of an iteration's fits; its checkpoint holds them whole."""
        shutil.rmtree(self.fits / str(iteration), ignore_errors=True)
        with contextlib.suppress(OSError):  # absent, or another iteration's are there
            self.fits.rmdir()

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / "manifest.json")

    def trees(self, iteration: int, shard: int, purpose: str = "search") -> Path:
        """Name the file of one shard of trees; `purpose` is a word of lower-case letters and underscores."""
        if not re.fullmatch(r"[a-z_]+", purpose):
            raise ValueError(f"purpose {purpose!r} is not a word of lower-case letters and underscores")
        return self.path / "trees" / str(iteration) / f"{purpose}-{shard:05d}.npz"

    def save_trees(self, iteration: int, shard: int, tree: Tree, purpose: str = "search") -> None:
        """Write one shard of finished trees to `trees/<iteration>/<purpose>-<shard:05d>.npz`.

        The format is public: a zip of npy arrays as `numpy.savez_compressed` writes it, one per field of
        `structs.Tree`, under the field's name, with the shape and dtype that are written there (`[B R S]` int32
        tokens, and so on). Read it with `numpy.load(path)` and no code of ours.
        """
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(tree, field.name)) for field in fields(Tree)}
        np.savez_compressed(buffer, **arrays)
        path = self.trees(iteration, shard, purpose)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())

    def load_trees(self, iteration: int, shard: int, purpose: str = "search") -> Tree | None:
        """Read a shard back as numpy arrays; None where it is absent or damaged, so that it is grown again."""
        path = self.trees(iteration, shard, purpose)
        if not path.exists():
            return None
        data = path.read_bytes()
        # A wrong byte can surface as any of a dozen types from zipfile, zlib, numpy and its header parser. The zip's
        # own CRC covers every array, so what does load is what was saved.
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return Tree(**{name: arrays[name] for name in arrays.files})
        except Exception:
            return None


def open_workdir(path: str | Path, config: dict[str, Any], facts: dict[str, Any]) -> Workdir:
    """Open a run folder, new or to be resumed, and lock it.

    Args:
      path: a local folder; made if it does not exist.
      config: the resolved config, nested dicts of JSON values, with `seed`.
      facts: JSON values that the run depends on besides its config, such as hashes of its data files.

    Raises:
      UserError: another run is alive in the folder; it belongs to another config (any key but `FREE_KEYS`) or to
        other facts; it holds files but no config.json; or it is no local folder at all.
    """
    if "://" in str(path):
        raise UserError(
            f"workdir {path}: only a folder of this machine's file system will do; choose another --workdir"
        )
    path = Path(path)
    config, facts = _as_json(config), _as_json(facts)
    _make_folder(path)
    lock = _acquire(path)
    try:
        before = read_json(path / "manifest.json") if (path / "manifest.json").exists() else {}
        if (path / "config.json").exists():
            _refuse(path, "config", _differing(read_json(path / "config.json"), config, FREE_KEYS))
        if before:
            _refuse(path, "facts", _differing(before["facts"], facts))
        _remove_leftovers(path)
        now = describe(config, facts)
        starts = [*(before["starts"] if before else ()), _now()]
        write_json(path / "config.json", config)
        write_json(path / "manifest.json", now | {"starts": starts})
    except BaseException:
        lock.close()
        raise
    parts = ("versions", "devices", "git_commit")
    notices = _differing({part: before[part] for part in parts}, {part: now[part] for part in parts}) if before else []
    return Workdir(path, tuple(notices), lock)


def describe(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Describe what is about to run, for manifest.json: versions, devices, commit, seed, hashes."""
    return {
        "seed": config["seed"],
        "config_sha256": hashlib.sha256(_dumps(config).encode()).hexdigest(),
        "facts": facts,
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "devices": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "num_processes": jax.process_count(),
        },
        "compilation_cache": kept_in(),
    }


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content as one event: after a crash, at any instant, it holds the old bytes or the new."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut too
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write a value as sorted, indented JSON, atomically."""
    write_atomic(path, _dumps(value).encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of the run folder; raises UserError, naming it, where it is not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); restore it from a copy, or use another --workdir") from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise UserError(f"workdir {path} cannot be used ({error.strerror}); choose another --workdir") from error
    # A start killed before config.json was in place leaves these two at most.
    if "config.json" not in names and names - {LOCK, "config.json" + TEMPORARY}:
        raise UserError(f"workdir {path} holds files but no config.json, so it is no run; choose another --workdir")


def _acquire(path: Path) -> IO[str]:
    """Lock the folder through the kernel, which forgets a lock with its process, so none is ever stale."""
    lock = (path / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = " ".join(lock.read().split()) or "another process"
        lock.close()
        raise UserError(f"workdir {path} is in use by {owner}; stop that run or choose another --workdir") from None
    lock.truncate(0)
    lock.write(f"host {socket.gethostname()}, pid {os.getpid()}, since {_now()}\n")
    lock.flush()
    return lock


def _differing(old: dict[str, Any], new: dict[str, Any], free_keys: tuple[str, ...] = ()) -> list[str]:
    """Return a line "key old -> new" for every leaf that two nested dicts do not share, free keys apart."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    free = tuple(key + "." for key in free_keys)
    return [
        f"{key} {_show(before, key)} -> {_show(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if not (key + ".").startswith(free) and (key in before, before.get(key)) != (key in after, after.get(key))
    ]


def _refuse(path: Path, what: str, differing: list[str]) -> None:
    if differing:
        more = f" and {len(differing) - MAX_SHOWN} more" if len(differing) > MAX_SHOWN else ""
        raise UserError(
            f"workdir {path} belongs to other {what}: {', '.join(differing[:MAX_SHOWN])}{more}; "
            "choose another --workdir, or go back to the old values"
        )


def _remove_leftovers(path: Path) -> None:
    for leftover in (*path.glob("*" + TEMPORARY), *path.glob(f"trees/*/*{TEMPORARY}")):
        leftover.unlink()


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts under dotted keys; lists and empty dicts are leaves."""
    if not isinstance(value, dict) or (prefix and not value):
        yield prefix, value
        return
    for key in value:
        yield from _flatten(value[key], f"{prefix}.{key}" if prefix else key)


def _show(leaves: dict[str, Any], key: str) -> str:
    text = json.dumps(leaves[key]) if key in leaves else "(absent)"
    return text if len(text) <= 40 else text[:37] + "..."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _as_json(value: Any) -> Any:
    """Return the value as JSON reads it back (tuples are lists), the only form that is compared or hashed."""
    return json.loads(_dumps(value))


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _git_commit() -> str | None:
    """Return the commit of the checkout that this file lies in ("-dirty" where it was edited), None elsewhere."""
    root = Path(__file__).resolve().parents[1]
    # An installed package may lie inside somebody else's repository, whose commit would be a lie.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
