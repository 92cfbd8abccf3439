"""Compiled programs that were kept: the same bits, and a folder that is no trouble."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src import monitoring
from jax.experimental.compilation_cache import compilation_cache

from jaxtrain.build import build
from jaxtrain.compilation import CompilationConfig, keep_compiled
from jaxtrain.errors import UserError
from jaxtrain.flags import parse
from jaxtrain.plan import stand_in
from jaxtrain.progress import Progress
from jaxtrain.structs import Prompts, TokenRows

QUICK = [
    *("--config.model.vocab_size=24", "--config.model.num_layers=1", "--config.sharding.data=8"),
    *(
        "--config.prompts.batch_size=8",
        "--config.updates.policy.batch_size=8",
        "--config.updates.prm.batch_size=8",
    ),
    *(
        "--config.search.num_simulations=3",
        "--config.search.num_candidates=2",
    ),
]


@pytest.fixture
def jax_cache(monkeypatch):
    """Let the cache be used, as it is outside of tests, and forget it afterwards."""
    keys = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {key: getattr(jax.config, key) for key in keys}
    for key, value in zip(keys, (True, None, 0), strict=True):
        jax.config.update(key, value)
    compilation_cache.reset_cache()
    yield
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()
    jax.clear_caches()


def turn():
    """Grow trees with fresh networks and fit the policy three times. Returns all arrays."""
    jax.clear_caches()
    config, _ = parse(["", "--config", "quickstart", *QUICK])
    rng = np.random.default_rng(0)
    with Progress(0) as progress:
        fns = build(config, stand_in(config), progress)
        policy = fns.init_policy(np.zeros(2, np.uint32))
        prm = fns.init_prm(policy.params)
        size, length = config.prompts.max_prompt_tokens, config.max_length
        ids = np.arange(8, dtype=np.int32)
        prompts = Prompts(rng.integers(0, 24, (8, size), np.int32), np.full(8, size, np.int32), ids)
        keys = rng.integers(0, 2**32, (8, 2), np.uint32)
        tree = fns.grow["train"]({}, policy.params, prm.params, prompts, keys, np.float32(1))
        tokens = rng.integers(0, 24, (8, length), np.int32)
        place = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
        ones, weight = np.ones_like(tokens), (place >= size).astype(np.float32)
        batch = TokenRows(tokens, place, length * ones, weight, weight, -ones)
        for _ in range(3):
            policy, told = fns.update_policy({}, policy, batch, np.float32(1e-3))
    return jax.tree.map(np.asarray, jax.tree.leaves((tree, policy, prm, told)))


def test_what_was_kept_computes_the_same_bits(jax_cache, tmp_path):
    hits = []

    def listen(event, **_):
        hits.extend([event] * event.endswith("/cache_hits"))

    assert (
        keep_compiled(CompilationConfig(str(tmp_path)))
        == f"compiled programs are kept in {tmp_path}"
    )
    compiled = turn()
    kept = sorted(tmp_path.iterdir())
    jax.monitoring.register_event_listener(listen)
    try:
        read = turn()
    finally:
        monitoring.unregister_event_listener(listen)
    assert len(hits) >= 4 and sorted(tmp_path.iterdir()) == kept
    assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(compiled, read, strict=True))


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, "{tmp}/xdg/jaxtrain"),
        ({"XDG_CACHE_HOME": "", "HOME": "{tmp}"}, "{tmp}/.cache/jaxtrain"),
        ({"XDG_CACHE_HOME": "not/absolute", "HOME": "{tmp}"}, "{tmp}/.cache/jaxtrain"),
    ],
)
def test_the_users_cache_folder_is_where_it_belongs(
    jax_cache, monkeypatch, tmp_path, variables, folder
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    told = keep_compiled(CompilationConfig())
    (folder,) = Path(folder.format(tmp=tmp_path)).iterdir()  # one for this kind of processor
    assert told == f"compiled programs are kept in {folder}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_folder_of_jax_comes_first(jax_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    assert keep_compiled(CompilationConfig(str(tmp_path / "ours"))).endswith(str(tmp_path / "jax"))


@pytest.mark.parametrize("cache", [None, ""])
def test_without_a_folder_nothing_is_kept(jax_cache, monkeypatch, cache):
    told = "compiled programs are not kept: --config.compilation.cache is none"
    assert keep_compiled(CompilationConfig(cache)) == told
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert "not kept: " in keep_compiled(CompilationConfig())
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_made_is_refused(jax_cache):
    with pytest.raises(
        UserError, match=f"--config.compilation.cache={os.devnull}/x: cannot be made"
    ):
        keep_compiled(CompilationConfig(f"{os.devnull}/x"))


def test_tests_leave_the_users_cache_alone():
    assert (
        keep_compiled(CompilationConfig())
        == "compiled programs are not kept: JAX_ENABLE_COMPILATION_CACHE is off"
    )
