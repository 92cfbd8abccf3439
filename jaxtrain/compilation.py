"""Compiled programs, kept between starts: compiling takes minutes, reading takes seconds.

jax names a program by all that it is made of, the compiler and the kind of device included, so a
stale one is never taken.
"""

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxtrain.errors import UserError

USER = "user"
JAX: Any = jax.config  # whose attributes no checker knows


@dataclass(frozen=True)
class CompilationConfig:
    """Where compiled programs are kept."""

    # a folder that only you can write to; user: jaxtrain in your cache folder; none: keep nothing
    cache: str | None = USER


def keep_compiled(config: CompilationConfig) -> str:
    """Let jax keep what it compiles, where it does not already (JAX_COMPILATION_CACHE_DIR).

    Returns a notice. Raises UserError for a folder that was asked for and cannot be made.
    """
    if not JAX.jax_enable_compilation_cache:
        return "compiled programs are not kept: JAX_ENABLE_COMPILATION_CACHE is off"
    folder = kept_in() or config.cache
    if not folder:
        return "compiled programs are not kept: --config.compilation.cache is none"
    try:
        folder = (user_folder() if folder == USER else Path(folder)).absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # no right to; no home
        if config.cache != USER:
            flag = f"--config.compilation.cache={config.cache}"
            raise UserError(f"{flag}: cannot be made ({error})") from error
        return f"compiled programs are not kept: {error}"
    JAX.update("jax_compilation_cache_dir", str(folder))
    return f"compiled programs are kept in {folder}"


def kept_in() -> str | None:
    """Name the folder that jax keeps compiled programs in, if it does."""
    return JAX.jax_compilation_cache_dir if JAX.jax_enable_compilation_cache else None


def user_folder() -> Path:
    """Name our folder of the user's caches, which unlike machines may share, for this processor."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "jaxtrain"
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        features = next(line for line in told if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):  # no Linux
        features = platform.processor()
    return cache / hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
