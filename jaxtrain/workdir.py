"""The run folder: config, manifest, lock, trees, and the names of all that a run leaves behind.

    config.json     the resolved config                    run.lock   who runs here now
    manifest.json   versions, devices, hashes              damaged/   what was set aside
    checkpoints/<iteration>/                               orbax
    fits/<iteration>/<network>/<updates>/                  orbax, while a fit lasts
    trees/<iteration>/<purpose>-<shard>.npz                see `trees.TreeFiles`
    labels/<iteration>/<purpose>-<shard>.<kind>.npz        likewise
    metrics.jsonl, tensorboard/, report.html               what is told
    samples.json, writers.json                             what it shows; the run's ids at services

A run may be killed at any instant, so a file is complete or absent (`files.py`). One run owns a
folder at a time, and one config owns it for ever: the same command resumes, another config is
refused before anything is touched.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import jax
from flax.traverse_util import flatten_dict

from jaxtrain.compilation import kept_in
from jaxtrain.errors import UserError, require
from jaxtrain.files import TEMPORARY, dumps, read_json, write_json
from jaxtrain.trees import TreeFiles

# A key stands for itself and all below it. None of these changes what an iteration learns: data
# files and models are known by their content, whose hash is a fact, and another number of devices
# draws the same.
FREE_KEYS = (
    "loop",
    "compilation",
    "checkpoints",
    "evaluation",
    "sharding",
    "tasks.jsonl.path",
    "tasks.jsonl.test_path",
    "hub.pretrained",
    "hub.may_download",
    "hub.prm",
)
PACKAGES = ("jaxtrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mctx", "numpy")
MAX_SHOWN = 8  # differing keys, or problems, that a message names
LOCK = "run.lock"
FILES = (LOCK, "config.json", "manifest.json", "metrics.jsonl", "samples.json", "report.html")
# What must stand in a file that an earlier start wrote, and of which type.
NEEDED = {
    "config.json": {"seed": int},
    "manifest.json": {
        **{"facts": dict, "starts": list, "versions": dict, "devices": dict},
        **{"seed": int, "config_sha256": str, "run_key": str},
    },
}


@dataclass(frozen=True)
class Workdir:
    """A run folder that this process owns."""

    path: Path
    notices: tuple[str, ...]  # what changed since the last start, or is missing, a line each
    num_starts: int  # this one included
    run_key: str  # hash of what training depends on: config and facts
    solve_key: str  # hash of that and of what solving depends on besides

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

    @property
    def trees(self) -> TreeFiles:
        return TreeFiles(self.path, self.run_key, self.solve_key)


@contextlib.contextmanager
def open_workdir(
    path: str | Path, config: dict[str, Any], facts: dict[str, Any], command: str = ""
) -> Iterator[Workdir]:
    """Open a run folder, new or to be resumed, and lock it until the block ends; the files stay.

    config: resolved, nested dicts of JSON values. facts: JSON values that the run depends on
    besides, such as hashes of its files. command: what was typed.

    Raises UserError for a folder in use, of another config (any key but `FREE_KEYS`) or other
    facts, with files but no config.json, or that cannot be written to.
    """
    if "://" in str(path):
        raise UserError(f"workdir {path}: is no folder of this machine; choose another folder")
    path = Path(path).expanduser()
    with contextlib.ExitStack() as held:
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in path.iterdir()}
            # A start killed before config.json was in place leaves these two at most.
            is_run = "config.json" in names or names <= {LOCK, "config.json" + TEMPORARY}
            why = "holds files but no config.json, so it is no run; choose another folder"
            require(is_run, f"workdir {path}", why)
            held.enter_context(acquire(path))
            notices, num_starts = _take_over(path, config, facts, command)
        except OSError as error:
            why = f"{error.filename or path} cannot be used ({error.strerror})"
            raise UserError(f"workdir {path}: {why}; choose another folder") from error
        keys = run_key(config, facts), run_key(config, facts, config.get("evaluation"))
        yield Workdir(path, tuple(notices), num_starts, *keys)


def read_old(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what config.json and manifest.json hold, {} for an absent one. Raises UserError."""
    found = {name: read_json(path / name) for name in NEEDED if (path / name).exists()}
    for name, value in found.items():
        if wrong := [key for key, kind in NEEDED[name].items() if type(value.get(key)) is not kind]:
            hint = ", or remove it" if name == "manifest.json" else ""
            what = f"has no {', '.join(wrong)} as a run of this jaxtrain writes it"
            raise UserError(f"{path / name} {what}; restore it from a copy{hint}")
    return found.get("config.json", {}), found.get("manifest.json", {})


def _take_over(
    path: Path, config: dict[str, Any], facts: dict[str, Any], command: str
) -> tuple[list[str], int]:
    """Compare a locked folder with what is to run there. Returns (notices, number of starts)."""
    old_config, before = read_old(path)
    if old_config:
        _refuse(path, "config", _differing(old_config, config, FREE_KEYS))
    if before:
        _refuse(path, "facts", _differing(before["facts"], facts))

    # what a killed write left
    for pattern in (*FILES, "trees/*/*.npz", "labels/*/*.npz"):
        for leftover in path.glob(pattern + TEMPORARY):
            leftover.unlink()

    now = describe(config, facts) | {"run_key": run_key(config, facts)}
    starts = [*(before["starts"] if before else ()), _now()]
    write_json(path / "config.json", config)
    write_json(path / "manifest.json", now | {"starts": starts, "command": command})

    def changes(told: str, old: dict[str, Any], new: dict[str, Any], *parts: str) -> list[str]:
        before, after = ({part: whole.get(part, {}) for part in parts} for whole in (old, new))
        return [f"changed {told}: {line}" for line in _differing(before, after)]

    notices = []
    if before:
        notices += changes("since the last start", before, now, "versions", "devices", "git_commit")
    elif old_config:
        told = "data and model are not compared with those of the first start"
        notices.append(f"manifest.json was gone: {told}")
    if old_config:
        notices += changes("from here on", old_config, config, "evaluation", "sharding")
    return notices, len(starts)


def describe(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Describe what is about to run, for manifest.json."""
    return {
        "seed": config["seed"],
        "config_sha256": _hash(config),
        "facts": facts,
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
        "host": socket.gethostname(),
        "num_cores": os.cpu_count(),
        "platform": platform.platform(),
        "devices": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "num_processes": jax.process_count(),
        },
        "compilation_cache": kept_in(),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _git_commit() -> str | None:
    """Return the commit of our checkout ("-dirty" where it was edited), None elsewhere."""
    root = Path(__file__).resolve().parents[1]
    # An installed package may lie inside somebody else's repository, whose commit would be a lie.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def run_key(config: dict[str, Any], facts: dict[str, Any], more: Any = None) -> str:
    """Hash what training depends on, all but the free keys of the config, and `more`."""
    return _hash([_leaves(config, FREE_KEYS), facts, more])


def acquire(path: Path) -> IO[str]:
    """Lock a folder through the kernel, which forgets the lock with its process."""
    lock = (path / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = " ".join(lock.read().split()) or "another process"
        lock.close()
        told = f"is in use by {owner}; stop that run or choose another folder"
        raise UserError(f"workdir {path} {told}") from None
    lock.truncate(0)
    lock.write(f"host {socket.gethostname()}, pid {os.getpid()}, since {_now()}\n")
    lock.flush()
    return lock


def _differing(
    old: dict[str, Any], new: dict[str, Any], free_keys: tuple[str, ...] = ()
) -> list[str]:
    """Return a line "key old -> new" for every leaf that differs, free keys apart."""
    before, after = (
        {key: json.dumps(value) for key, value in _leaves(whole, free_keys).items()}
        for whole in (old, new)
    )
    keys = sorted(before.keys() | after.keys())
    told = [(key, before.get(key, "(absent)"), after.get(key, "(absent)")) for key in keys]
    return [f"{key} {_short(x)} -> {_short(y)}" for key, x, y in told if x != y]


def _leaves(config: dict[str, Any], free_keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the leaves of nested dicts under dotted keys, free keys apart."""
    free = tuple(f"{key}." for key in free_keys)
    leaves = flatten_dict(config, sep=".").items()
    return {key: value for key, value in leaves if not f"{key}.".startswith(free)}


def _refuse(path: Path, what: str, differing: list[str]) -> None:
    if differing:
        more = f" and {len(differing) - MAX_SHOWN} more" if len(differing) > MAX_SHOWN else ""
        told = f"belongs to other {what}: {', '.join(differing[:MAX_SHOWN])}{more}"
        then = "choose another folder, or go back to the old values"
        absent = "what is absent on one side is of another jaxtrain"
        raise UserError(f"workdir {path} {told}; {then} ({absent})")


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _hash(value: Any) -> str:
    return hashlib.sha256(dumps(value).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
