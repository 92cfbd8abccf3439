"""What runs, and where: versions, devices, commit, seed and hashes, for manifest.json.

Stands beside the run folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxtrain.compilation import kept_in
from jaxtrain.files import dumps

PACKAGES = ("jaxtrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mctx", "numpy")


def describe(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Describe what is about to run, for manifest.json: versions, devices, commit, seed, hashes."""
    return {
        "seed": config["seed"],
        "config_sha256": hashlib.sha256(dumps(config).encode()).hexdigest(),
        "facts": facts,
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
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
