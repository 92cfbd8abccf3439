"""Files that are whole, or known to be damaged. Stands at the bottom.

A file is complete or absent: it is written under a temporary name, synced to the disk and renamed.
What has to be believed later is sealed: `sha256.json`, written last, holds the hash of every file
beside it and what the folder is meant to be. What is damaged is set aside, never deleted.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain.errors import UserError

TEMPORARY = ".tmp"  # suffix of a file that is still being written
SEAL = "sha256.json"
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EXDEV, errno.ELOOP),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
RESTORE = "restore it from a copy, or use another --workdir"
ASIDE = "damaged"  # folder of a run that holds what was set aside


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content as one event: a crash leaves the old bytes or the new."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    rename(temporary, path)


def rename(source: Path, to: Path) -> None:
    """Give a file or folder its name, replacing a file; the name survives a power cut too."""
    os.replace(source, to)
    folder = os.open(to.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write a value as sorted, indented JSON, atomically."""
    write_atomic(path, dumps(value).encode())


def read_json(path: Path, then: str = RESTORE) -> dict[str, Any]:
    """Read a JSON object; raises UserError where there is none, and says what to do then."""
    try:
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
        return value
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {then}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON object ({error}); {then}") from error


def dumps(value: Any) -> str:
    """Return a value as sorted, indented JSON: all that is written, compared or hashed."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Seal a folder whose content is complete; `about` says in JSON values what it is."""
    write_json(folder / SEAL, {**about, "files": _hashes(folder)})


def fault(folder: Path, about: Mapping[str, Any]) -> str:
    """Say how a sealed folder differs from what was sealed, any file more or less too, or ""."""
    try:
        sealed = json.loads((folder / SEAL).read_text("utf-8"))
        expected = dict(sealed.pop("files"))
    except FileNotFoundError:
        return f"{folder} has no {SEAL}, so it was not finished or something was removed"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{folder / SEAL} cannot be read ({error})"
    if sealed != about:
        differing = sorted(
            key for key in sealed.keys() | about.keys() if sealed.get(key) != about.get(key)
        )
        return f"{folder} is of another {', '.join(differing)}"
    try:
        found = _hashes(folder)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{folder / name} is missing"
        if name not in expected:
            return f"{folder / name} does not belong there"
        if found[name] != expected[name]:
            return f"{folder / name} is not as it was written (its sha256 differs)"
    return ""


def set_aside(path: Path, run: Path) -> Path:
    """Move what is damaged into `damaged/` of its run folder. Returns where it lies now."""
    (run / ASIDE).mkdir(exist_ok=True)
    name = "-".join(path.relative_to(run).parts)
    to, number = run / ASIDE / name, 1
    while os.path.lexists(to):
        number += 1
        to = run / ASIDE / f"{name}-{number}"
    shutil.move(path, to)  # the folder that it lies in may be a link to another disk
    return to


def disk_fault(error: Exception) -> str:
    """Say what a file system refused, "" for an error of another kind."""
    # that a disk is full, libraries tell in errors of their own
    if any(os.strerror(number) in str(error) for number in FULL):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename:
        # of a rename, it is the new name that something lies in the way of
        return f"{error.filename2 or error.filename}: {error.strerror}"
    return ""


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return {str(p.relative_to(folder)): sha256(p) for p in files if p != folder / SEAL}
