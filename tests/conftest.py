"""Tests run on eight simulated CPU devices, set up before jax wakes, and compile fast rather than
well.
"""

import gc
import os
from pathlib import Path

import pytest

MAX_MAPPINGS = 20_000

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the user's cache is no business of tests
# most of the time of the tests is LLVM's
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)


@pytest.fixture(autouse=True)
def forget_programs():
    """Unload compiled programs when there are many: every kernel is a mapping of memory, and past
    some 65,000 of them LLVM ends the process with a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text("utf-8").count("\n") > MAX_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory):
    """Let the runs of a module share what they compile."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = (
        "enable_compilation_cache",
        "compilation_cache_dir",
        "persistent_cache_min_compile_time_secs",
    )
    keys = [f"jax_{name}" for name in names]
    before = {key: getattr(jax.config, key) for key in keys}
    for key, value in zip(keys, (True, str(tmp_path_factory.mktemp("cache")), 0), strict=True):
        jax.config.update(key, value)
    compilation_cache.reset_cache()
    yield
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()
