"""Drawing a token: the law, its edges, and what is left of it when some of it was taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxtrain.nn.sampling import BLOCK, draw, invert

drawn = jax.jit(draw)
LANES = 20_000


def keys_of(num, seed=0):
    return jax.random.key_data(jax.random.split(jax.random.key(seed), num))


def law_of(logits, temperature=1.0):
    weights = np.exp((np.asarray(logits, np.float64) - np.max(logits)) / temperature)
    return weights / weights.sum()


def counts_of(logits, temperature=1.0, exclude=None):
    """Count what many lanes draw from one row of logits."""
    many = [np.broadcast_to(x, (LANES, *np.shape(x))) for x in (logits, *(exclude or ()))]
    out = drawn(many[0], keys_of(LANES), np.float32(temperature), tuple(many[1:]) or None)
    return np.bincount(out.token, minlength=len(logits)), out


def row(size, seed=0, spread=1.0):
    return np.random.default_rng(seed).normal(scale=spread, size=size).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("size", [7, BLOCK, 3 * BLOCK + 5])
def test_tokens_follow_their_law(size, temperature):
    counts, out = counts_of(row(size), temperature)
    expected = law_of(row(size), temperature)
    assert chisquare(counts, LANES * expected).pvalue > 1e-3
    np.testing.assert_allclose(out.log_prob, np.log(expected)[out.token], atol=1e-5)
    assert np.all(out.is_left)


def test_tokens_are_those_of_the_inverse_in_float64():
    """Two look-ups by two uniform numbers, token for token but within rounding of a border."""
    num, size = 500, 40 * BLOCK
    logits, keys = row((num, size), spread=4.0), keys_of(num)
    uniform = np.asarray([jax.random.uniform(jax.random.wrap_key_data(k), (2,)) for k in keys])
    token, num_checked = np.asarray(drawn(logits, keys, np.float32(1)).token), 0
    for lane in range(num):
        blocks = law_of(logits[lane]).reshape(-1, BLOCK)
        running = np.cumsum(blocks.sum(axis=1))
        block = np.searchsorted(running, uniform[lane, 0], side="right")
        inside = np.cumsum(blocks[block]) / blocks[block].sum()
        margins = np.abs(running - uniform[lane, 0]), np.abs(inside - uniform[lane, 1])
        if min(np.min(x) for x in margins) > 1e-6:
            found = block * BLOCK + np.searchsorted(inside, uniform[lane, 1], side="right")
            assert token[lane] == found
            num_checked += 1
    assert num_checked > 0.95 * num


def test_without_temperature_the_first_of_the_likeliest_is_taken():
    logits = row((50, 3 * BLOCK))
    logits[7, 200] = logits[7, 300] = 9.0
    out = drawn(logits, keys_of(50), np.float32(0))
    np.testing.assert_array_equal(out.token, np.argmax(logits, axis=1))
    assert out.token[7] == 200 and np.all(np.asarray(out.log_prob) == 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masked_tokens_are_never_drawn(temperature):
    logits = np.full(3 * BLOCK, -np.inf, np.float32)
    allowed = [5, BLOCK + 1, 2 * BLOCK - 1]
    logits[allowed] = [0.0, -30.0, 1.0]
    counts, out = counts_of(logits, temperature)
    assert set(np.flatnonzero(counts)) <= set(allowed) and np.all(np.isfinite(out.log_prob))


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-24])
def test_rounding_never_leads_to_weight_zero_or_past_the_end(uniform):
    weights = 10.0 ** np.random.default_rng(3).uniform(-30, 0, (200, 50)).astype(np.float32)
    weights[np.random.default_rng(4).random(weights.shape) < 0.5] = 0
    weights[:, -3:] = 0
    weights[:, 7] = 1e-3
    found = np.asarray(invert(jnp.asarray(weights), jnp.full(200, uniform, jnp.float32)))
    assert np.all(np.take_along_axis(weights, found[:, None], axis=1) > 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_law_is_told(temperature):
    logits = row((4, 2 * BLOCK))
    logits[0], logits[1, 3], logits[2, 4] = -np.inf, np.nan, np.inf
    out = drawn(logits, keys_of(4), np.float32(temperature))
    assert np.all((out.token >= 0) & (out.token < 2 * BLOCK))
    np.testing.assert_array_equal(np.isnan(out.log_prob), [False, True, True, False])
    assert not out.is_left[0] and out.is_left[3]


@pytest.mark.parametrize("with_exclusions", [False, True])
def test_a_lane_does_not_depend_on_its_neighbours(with_exclusions):
    logits, keys = row((64, 5 * BLOCK + 3), spread=3.0), keys_of(64)
    exclude = None
    if with_exclusions:
        tokens = np.argsort(-logits, axis=1)[:, :3].astype(np.int32)
        exclude = (tokens, np.full(tokens.shape, -2.0, np.float32))
    together = drawn(logits, keys, np.float32(0.7), exclude)
    for lanes in (slice(5, 6), slice(20, 23), slice(1, 60)):
        part = exclude and tuple(x[lanes] for x in exclude)
        alone = drawn(logits[lanes], keys[lanes], np.float32(0.7), part)
        np.testing.assert_array_equal(alone.token, together.token[lanes])
        np.testing.assert_allclose(alone.log_prob, together.log_prob[lanes], atol=1e-6)


# a block that is not whole; no more blocks than could be named; more
@pytest.mark.parametrize("size", [20, 2 * BLOCK, 9 * BLOCK + 5])
def test_taken_mass_is_left_out_of_the_law(size):
    logits = row(size)
    tokens = np.array([-1, 3, 4, size - 2], np.int32)
    keep = np.array([0.0, 0.5, 0.0, 0.1], np.float32)
    logits[tokens[1:]] = 4.0, 5.0, 5.0
    with np.errstate(divide="ignore"):
        counts, out = counts_of(logits, 2.0, (tokens, np.log(keep)))
    plain = law_of(logits, 2.0)
    left = plain.copy()
    left[tokens[1:]] *= keep[1:]
    is_left = left > 0
    assert counts[4] == 0
    expected = LANES * left[is_left] / left.sum()
    assert chisquare(counts[is_left], expected).pvalue > 1e-3
    np.testing.assert_allclose(out.log_prob, np.log(plain)[out.token], atol=1e-5)


@pytest.mark.parametrize("size", [20, 2 * BLOCK, 9 * BLOCK + 5])
def test_without_temperature_the_likeliest_that_is_left_is_taken(size):
    logits = row((1, size))
    order = np.argsort(-logits[0])
    for num in range(4):
        tokens = np.where(np.arange(4) < num, order[:4], -1)[None].astype(np.int32)
        keep = np.full((1, 4), -np.inf, np.float32)
        assert drawn(logits, keys_of(1), np.float32(0), (tokens, keep)).token[0] == order[num]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_left_where_all_is_taken(temperature):
    logits = np.full((2, BLOCK + 1), -np.inf, np.float32)
    logits[:, [4, BLOCK]] = 1.0, 2.0
    tokens = np.array([[4, BLOCK], [4, -1]], np.int32)
    keep = np.full((2, 2), -np.inf, np.float32)
    out = drawn(logits, keys_of(2), np.float32(temperature), (tokens, keep))
    assert out.is_left.tolist() == [False, True] and out.token[1] == BLOCK
