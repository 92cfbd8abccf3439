"""Adapters: what they add, where they lie, and what is left of them when they are folded in."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIG, VOCAB, random_like, random_params

from jaxtrain.nn import lora
from jaxtrain.nn.transformer import Transformer
from jaxtrain.structs import STACKED

RANK, SCALE = 3, 0.5
ALL = ("wq", "wk", "wv", "wo", "gate", "up", "down")
KINDS = {
    "plain": CONFIG,
    "scanned": replace(CONFIG, is_scanned=True),
    "rematerialised": replace(CONFIG, is_scanned=True, is_rematerialised=True),
}
TOKENS = np.random.default_rng(1).integers(0, VOCAB, (3, 9)).astype(np.int32)
LENGTH = np.array([9, 4, 6], np.int32)


def model_of(kind, dropout=0.0):
    return Transformer(KINDS[kind], VOCAB, SCALE, dropout)


def adapted(kind, targets=ALL):
    """Return a base and adapters, every number random."""
    base = random_params(Transformer(KINDS[kind], VOCAB))
    adapters = lora.init(base, jax.random.key(0), RANK, targets)
    return base, jax.tree.map(lambda x: 0.3 * x, random_like(adapters, seed=5))


@partial(jax.jit, static_argnums=0)
def hidden(model, params, key=None):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    mask = positions < LENGTH[:, None]
    rngs = None if key is None else {"dropout": key}
    return model.apply({"params": params}, TOKENS, positions, mask, rngs=rngs)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing(kind):
    model, (base, _) = model_of(kind), adapted(kind)
    fresh = lora.init(base, jax.random.key(0), RANK, ALL)
    plain = hidden(Transformer(KINDS[kind], VOCAB), base)
    np.testing.assert_allclose(hidden(model, lora.merge(base, fresh)), plain, atol=1e-6)
    blocks = [block for room, block in fresh.items() if room.startswith("block")]
    assert all(np.ptp(block[name + lora.A]) > 0 for block in blocks for name in ALL)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_weights_compute_what_the_adapters_do(kind):
    model, (base, adapters) = model_of(kind), adapted(kind)
    laid = lora.merge(base, adapters)
    folded = lora.fold(laid, SCALE)
    assert jax.tree.structure(folded) == jax.tree.structure(base)
    ours = hidden(model, laid)
    np.testing.assert_allclose(hidden(model, folded), ours, atol=2e-5)
    assert np.max(np.abs(ours - hidden(model, base))) > 0.1


@pytest.mark.parametrize("target", ALL)
def test_an_adapter_is_a_matrix_product_beside_its_own_projection(target):
    base, adapters = adapted("plain", (target,))
    folded = lora.fold(lora.merge(base, adapters), SCALE)
    for room in ("block_0", "block_1"):
        block, plain = folded[room], base[room]
        assert all(block[name] is plain[name] for name in plain if name != target)
        a, b = (np.asarray(adapters[room][target + part]) for part in (lora.A, lora.B))
        assert (a.shape[1], b.shape[0]) == (RANK, RANK)
        expected = np.asarray(plain[target]) + SCALE * (a @ b).reshape(plain[target].shape)
        np.testing.assert_allclose(block[target], expected, atol=1e-6)


def test_scanned_layers_have_an_adapter_each():
    base, adapters = adapted("scanned")
    apart = {
        f"block_{i}": jax.tree.map(lambda x, i=i: x[i], lora.merge(base, adapters)[STACKED])
        for i in range(CONFIG.num_layers)
    }
    rest = {name: x for name, x in base.items() if name != STACKED}
    expected = hidden(model_of("plain"), rest | apart)
    np.testing.assert_allclose(
        hidden(model_of("scanned"), lora.merge(base, adapters)), expected, atol=2e-5
    )


def test_merge_copies_nothing_and_is_nothing_without_a_base():
    base, adapters = adapted("plain")
    prm = {"backbone": adapters, "head": {"weight": np.ones(3)}}
    laid = lora.merge({"backbone": base}, prm)
    assert laid["head"]["weight"] is prm["head"]["weight"]
    for name in base["block_0"]:
        assert laid["backbone"]["block_0"][name] is base["block_0"][name]
    assert lora.merge({}, prm) is prm


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_leaves_out_inputs_of_adapters_alone(kind):
    model, (base, adapters) = model_of(kind, dropout=0.5), adapted(kind)
    laid, keys = lora.merge(base, adapters), [jax.random.key(i) for i in range(2)]
    first, again, other = (np.asarray(hidden(model, laid, keys[i])) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    whole = np.asarray(hidden(model, laid))
    np.testing.assert_array_equal(whole, hidden(model_of(kind), laid))
    assert not np.array_equal(first, other) and not np.array_equal(first, whole)
    fresh = lora.merge(base, lora.init(base, jax.random.key(0), RANK, ALL))
    np.testing.assert_array_equal(hidden(model, fresh, keys[0]), hidden(model, fresh))


@pytest.mark.parametrize("kind", KINDS)
def test_residual_dropout_needs_a_share_and_a_key(kind):
    """Without either nothing changes, bit for bit; adapters are whole where theirs is 0."""
    plain, (base, adapters) = model_of(kind), adapted(kind)
    model, laid = plain.clone(residual_dropout=0.5), lora.merge(base, adapters)
    whole = np.asarray(hidden(plain, laid))
    np.testing.assert_array_equal(whole, hidden(model, laid))
    np.testing.assert_array_equal(whole, hidden(plain, laid, jax.random.key(0)))
    first, again, other = (np.asarray(hidden(model, laid, jax.random.key(i))) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, whole)


def test_dropout_keeps_the_mean():
    rng = np.random.default_rng(0)
    x, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 6), (6, 3), (3, 4)))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: lora.low_rank(x, a, b, SCALE, 0.25, key))(keys)
    expected = SCALE * x @ a @ b
    error = np.std(drawn, axis=0) / len(keys) ** 0.5
    np.testing.assert_array_less(np.abs(np.mean(drawn, axis=0) - expected), 5 * error)
    # An input is there, raised by 1 / (1 - 0.25), or it is not: 2 ** 6 sums in all.
    kept = np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1).T
    sums = SCALE * (kept * x[0] / 0.75) @ a @ b
    nearest = np.min(np.max(np.abs(sums[:, None] - drawn[None, :50, 0]), axis=-1), axis=0)
    assert np.max(nearest) < 1e-5
