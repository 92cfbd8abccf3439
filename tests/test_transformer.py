"""The transformer against one in float64 numpy, and the same text read in every way that the caches
allow.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    CONFIG,
    MODEL,
    VOCAB,
    plain_positions,
    random_like,
    random_params,
    read_whole,
)

from jaxtrain.nn import lora
from jaxtrain.nn.transformer import Segment, Transformer, attend
from jaxtrain.nn.weights import fuse, unroll, unstack

ROWS, LENGTH = 3, 9
PARAMS = random_params()
read_jitted = jax.jit(read_whole, static_argnums=0)
apply_jitted = jax.jit(lambda *args: MODEL.apply({"params": PARAMS}, *args))


@pytest.fixture(scope="module")
def text():
    """Rows of random tokens and lengths; what lies past a length is random too."""
    rng = np.random.default_rng(1)
    return rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32), np.array([9, 4, 6], np.int32)


@pytest.fixture(scope="module")
def whole(text):
    return np.asarray(read_jitted(MODEL, PARAMS, *text))


def norm64(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + CONFIG.norm_eps) * scale


def rotate64(x, position):
    """Rotate the pairs (x[i], x[i + h/2]) of one head's vector by position * theta ** (-2i / h)."""
    half = len(x) // 2
    rotated = np.zeros_like(x)
    for i in range(half):
        angle = position * CONFIG.rope_theta ** (-2 * i / len(x))
        rotated[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        rotated[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return rotated


def attention64(p, x):
    """Attend causally, token by token and head by head: x [t width]."""
    y, group = norm64(x, p["attention_norm"]["scale"]), CONFIG.num_heads // CONFIG.num_kv_heads
    mixed = np.zeros_like(x)
    for head in range(CONFIG.num_heads):
        wq, wk, wv = p["wq"][:, head], p["wk"][:, head // group], p["wv"][:, head // group]
        keys = np.array([rotate64(row @ wk, t) for t, row in enumerate(y)])
        for t, row in enumerate(y):
            scores = keys[: t + 1] @ rotate64(row @ wq, t) / np.sqrt(wq.shape[1])
            weights = np.exp(scores) / np.sum(np.exp(scores))
            mixed[t] += weights @ (y[: t + 1] @ wv) @ p["wo"][head]
    return mixed


def hidden64(params, tokens):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = p["embedding"][tokens]
    for layer in range(CONFIG.num_layers):
        block = p[f"block_{layer}"]
        x = x + attention64(block, x)
        y = norm64(x, block["mlp_norm"]["scale"])
        gate = y @ block["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ block["up"])) @ block["down"]
    return norm64(x, p["final_norm"]["scale"])


def test_forward_pass_equals_float64_numpy(text, whole):
    tokens, length = text
    logits = MODEL.apply({"params": PARAMS}, whole, method="logits")
    for b in range(ROWS):
        expected = hidden64(PARAMS, tokens[b, : length[b]])
        np.testing.assert_allclose(whole[b, : length[b]], expected, rtol=0, atol=1e-5)
        expected = expected @ np.asarray(PARAMS["embedding"], np.float64).T
        np.testing.assert_allclose(logits[b, : length[b]], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("at", range(LENGTH))
def test_a_token_changes_itself_and_what_follows_only(text, whole, at):
    tokens = text[0].copy()
    tokens[0, at] = (tokens[0, at] + 1) % VOCAB
    changed = np.asarray(read_jitted(MODEL, PARAMS, tokens, text[1]))
    np.testing.assert_array_equal(changed[0, :at], whole[0, :at])
    assert np.all(np.any(changed[0, at:] != whole[0, at:], axis=-1))
    np.testing.assert_array_equal(changed[1:], whole[1:])


def test_garbage_past_the_length_changes_nothing(text, whole):
    tokens, length = text
    is_text = plain_positions(tokens) < length[:, None]
    garbled = np.asarray(
        read_jitted(MODEL, PARAMS, np.where(is_text, tokens, (tokens + 3) % VOCAB), length)
    )
    np.testing.assert_array_equal(garbled[is_text], whole[is_text])


def prefix_of(tokens, length):
    """Read the first tokens of each row, garbage past their lengths. Returns their segment."""
    mask = plain_positions(tokens) < length[:, None]
    return apply_jitted(tokens, plain_positions(tokens), mask)[1]


def shifted(tokens, start):
    """Take row b from start[b] on, right-padded: (tokens, positions, mask of its columns)."""
    columns = start[:, None] + np.arange(tokens.shape[1])
    inside = columns < tokens.shape[1]
    return (
        np.take_along_axis(tokens, np.minimum(columns, tokens.shape[1] - 1), axis=1),
        columns,
        inside,
    )


def assert_continues(hidden, whole, start, length):
    """Compare the hidden states of the tokens behind start[b] with those of the text read in one
    piece.
    """
    for b in range(ROWS):
        assert length[b] > start[b]
        np.testing.assert_allclose(
            hidden[b, : length[b] - start[b]],
            whole[b, start[b] : length[b]],
            rtol=0,
            atol=1e-5,
            err_msg=f"row {b}",
        )


START = np.array([5, 2, 4], np.int32)  # length of each row's prefix


def test_prefix_and_rest_equal_one_piece(text, whole):
    tokens, length = text
    prefix = prefix_of(tokens, START)
    rest, positions, inside = shifted(tokens, START)
    hidden, _ = apply_jitted(rest, positions, inside, (prefix,))
    assert_continues(hidden, whole, START, length)


def test_three_pieces_equal_one(text, whole):
    tokens, length = text
    first = np.array([2, 1, 3], np.int32)
    prompt = prefix_of(tokens, first)
    middle, positions, _ = shifted(tokens, first)
    _, path = apply_jitted(
        middle, positions, plain_positions(tokens) < (START - first)[:, None], (prompt,)
    )
    rest, positions, inside = shifted(tokens, START)
    hidden, _ = apply_jitted(rest, positions, inside, (prompt, path))
    assert_continues(hidden, whole, START, length)


def test_tokens_written_one_by_one_into_a_cache_equal_one_piece(text, whole):
    tokens, length = text
    prefix = prefix_of(tokens, START)
    rest, positions, _ = shifted(tokens, START)
    room = 7
    # what is not written is not read
    empty = tuple(jnp.full((*k.shape[:2], room, k.shape[3]), 9.0) for k in prefix.k)
    own, states = Segment(empty, empty, jnp.full((ROWS, room), -1)), []
    for at in range(4):
        hidden, own = apply_jitted(
            rest[:, at : at + 1],
            positions[:, at : at + 1],
            np.ones((ROWS, 1), bool),
            (prefix,),
            own,
            at,
        )
        states.append(hidden[:, 0])
    assert_continues(np.stack(states, axis=1), whole, START, np.minimum(length, START + 4))


def test_a_prefix_row_serves_its_run_of_queries():
    """Two prefixes, three continuations each: as if every continuation had its prefix to itself."""
    rng = np.random.default_rng(2)
    tokens, length = rng.integers(0, VOCAB, (2, 4)).astype(np.int32), np.array([4, 2], np.int32)
    rest = rng.integers(0, VOCAB, (6, 3)).astype(np.int32)
    positions = np.repeat(length, 3)[:, None] + np.arange(3)
    mask = np.ones(rest.shape, bool)
    prefix = prefix_of(tokens, length)
    shared, _ = apply_jitted(rest, positions, mask, (prefix,))
    alone, _ = apply_jitted(
        rest, positions, mask, (jax.tree.map(partial(np.repeat, repeats=3, axis=0), prefix),)
    )
    np.testing.assert_allclose(shared, alone, rtol=0, atol=1e-5)


def test_grouped_queries_are_shared_keys_and_values(text, whole):
    model = Transformer(replace(CONFIG, num_kv_heads=CONFIG.num_heads), VOCAB)

    def repeated(path, leaf):
        return jnp.repeat(leaf, 2, axis=1) if path[-1].key in ("wk", "wv") else leaf

    params = jax.tree_util.tree_map_with_path(repeated, PARAMS)
    np.testing.assert_allclose(read_jitted(model, params, *text), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_scanned", [False, True])
def test_weights_for_decoding_equal_those_of_updates(text, is_scanned):
    """With biases, norms of heads and adapters, which may be laid over them before or after."""
    config = replace(CONFIG, has_qkv_bias=True, has_qk_norm=True, is_scanned=is_scanned)
    model = Transformer(config, VOCAB, scale=0.5)
    base = random_params(model)
    targets = ("wq", "wv", "wo", "up")
    adapters = random_like(lora.init(base, jax.random.key(0), 3, targets), seed=5)
    laid = lora.merge(base, adapters)
    plain = read_jitted(model, laid, *text)
    assert np.abs(plain - read_jitted(model, base, *text)).max() > 0.1
    assert jax.tree.structure(fuse(adapters)) == jax.tree.structure(adapters)
    for fused in (fuse(laid), lora.merge(fuse(base), fuse(adapters))):
        block = fused["blocks" if is_scanned else "block_1"]
        assert {"wq_wk_wv", "gate_up", "wq_a", "bq"} <= set(block) and "wq" not in block
        np.testing.assert_allclose(read_jitted(model, fused, *text), plain, rtol=0, atol=1e-5)

        # Layers apart, as a program that decodes has them.
        unrolled = Transformer(unroll(config), VOCAB, scale=0.5)
        apart = read_jitted(unrolled, unstack(fused), *text)
        np.testing.assert_allclose(apart, plain, rtol=0, atol=1e-5)


def test_only_distances_between_positions_count(text, whole):
    tokens, length = text
    read_at = partial(apply_jitted, tokens)
    mask = plain_positions(tokens) < length[:, None]
    moved, _ = read_at(plain_positions(tokens) + 100, mask)
    stretched, _ = read_at(plain_positions(tokens) * 2, mask)
    np.testing.assert_allclose(moved, whole, rtol=0, atol=2e-5)
    assert np.abs(stretched - whole)[:, 1:].max() > 0.01


def test_a_query_that_sees_nothing_is_finite():
    q, kv = jnp.ones((1, 1, 1, 1, 2)), jnp.full((1, 1, 3, 2), 5.0)
    assert np.all(np.isfinite(attend(q, (kv,), (kv,), (jnp.zeros((1, 1, 1, 1, 3), bool),))))


def test_scores_far_apart_do_not_overflow():
    """The largest score of all segments is taken out before the exponential, wherever it stands."""
    q = jnp.full((1, 1, 1, 1, 1), 1000.0)
    keys = jnp.full((1, 1, 1, 1), 1.0), jnp.full((1, 1, 1, 1), -1.0)
    values = jnp.full((1, 1, 1, 1), 3.0), jnp.full((1, 1, 1, 1), 8.0)
    mask = jnp.ones((1, 1, 1, 1, 1), bool)
    assert attend(q, keys, values, (mask, mask)).item() == 3.0
    assert attend(q, keys[::-1], values[::-1], (mask, mask)).item() == 3.0


def test_half_precision_keeps_logits_in_float32(text):
    model = Transformer(replace(CONFIG, dtype="bfloat16"), VOCAB)
    hidden = read_jitted(model, PARAMS, *text)
    logits = model.apply({"params": PARAMS}, hidden, method="logits")
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    rounded = PARAMS["embedding"].astype(jnp.bfloat16)
    exact = np.asarray(hidden, np.float64) @ np.asarray(rounded, np.float64).T
    np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5)
