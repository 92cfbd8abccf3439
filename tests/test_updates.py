"""Losses against plain float64 loops, and what an update and a fit promise.

Where a loss is looked at alone, its network is a constant: the parameters are the logits, or the
values, themselves.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import MODEL, random_params

from jaxtrain.nn.heads import make_log_probs, make_outputs
from jaxtrain.nn.transformer import ModelConfig, Transformer, init_params
from jaxtrain.structs import Learner, TokenRows
from jaxtrain.updates import PolicyConfig, PrmConfig
from jaxtrain.updates.fits import (
    FitConfig,
    LearnerConfig,
    all_finite,
    count_updates,
    fit,
    init_learner,
    is_weight,
    learning_rates,
    make_optimizer,
    make_update,
    summarise,
)
from jaxtrain.updates.policy import likelihood
from jaxtrain.updates.prm import squared

ROWS, LENGTH, VOCAB = 4, 7, 5
RNG = np.random.default_rng(0)


def policy_loss(logits, rows):
    # a token is told by the position before it
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.roll(logits, 1, 1), rows.tokens)
    return likelihood(-losses, rows, PolicyConfig())


def prm_loss(values, rows):
    return squared(values, rows, PrmConfig(), LENGTH)


policy_gradient = jax.jit(jax.value_and_grad(policy_loss))
prm_gradient = jax.jit(jax.value_and_grad(prm_loss))

TOKENS = RNG.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
PLACE = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)
PROMPT_LENGTH, TEXT_LENGTH = (
    np.array(lengths, np.int32)[:, None]
    for lengths in ([2, 1, 3, 4], [5, 7, 4, 4])  # the last has no response at all
)
POLICY_ROWS = TokenRows(
    tokens=TOKENS,
    position=PLACE,
    until=np.where(PLACE < TEXT_LENGTH, TEXT_LENGTH, 0),
    target=RNG.normal(size=TOKENS.shape).astype(np.float32),  # not to be read
    weight=((PLACE >= PROMPT_LENGTH) & (PLACE < TEXT_LENGTH)).astype(np.float32),
    group=np.full(TOKENS.shape, -1, np.int32),
)
LOGITS = RNG.normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32)

STEP_WEIGHT = np.zeros(TOKENS.shape, np.float32)
STEP_WEIGHT[[0, 0, 1, 1, 2], [2, 4, 3, 6, 3]] = [1, 0.5, 2, 1, 1]
PRM_ROWS = POLICY_ROWS.replace(weight=STEP_WEIGHT)
VALUES = RNG.normal(size=(ROWS, LENGTH)).astype(np.float32)


def test_policy_loss_is_the_weighted_mean_over_response_tokens():
    for scale in (1, RNG.uniform(0.5, 2, TOKENS.shape).astype(np.float32)):
        rows, total, weights = POLICY_ROWS.replace(weight=scale * POLICY_ROWS.weight), 0.0, 0.0
        for row, at in np.argwhere(rows.weight):
            # a token is told by the position before it
            logits = [float(x) for x in LOGITS[row, at - 1]]
            loss = math.log(math.fsum(math.exp(x) for x in logits)) - logits[TOKENS[row, at]]
            total += float(rows.weight[row, at]) * loss
            weights += float(rows.weight[row, at])
        assert policy_gradient(LOGITS, rows)[0] == pytest.approx(total / weights, rel=1e-6)


def test_policy_gradient_is_zero_off_the_response():
    _, gradient = policy_gradient(LOGITS, POLICY_ROWS)
    told = [[False] * LENGTH for _ in range(ROWS)]
    for row in range(ROWS):
        for at in range(PROMPT_LENGTH[row, 0], TEXT_LENGTH[row, 0]):
            told[row][at - 1] = True
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), told)


def test_policy_loss_does_not_read_past_the_length():
    garbled = POLICY_ROWS.replace(
        tokens=np.where(POLICY_ROWS.until == 0, (TOKENS + 1) % VOCAB, TOKENS)
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        policy_gradient(LOGITS, garbled),
        policy_gradient(LOGITS, POLICY_ROWS),
    )


def test_prm_loss_is_the_weighted_mean_of_squares():
    total = weights = 0.0
    for row, at in np.argwhere(PRM_ROWS.weight):
        weight = float(PRM_ROWS.weight[row, at])
        total += weight * (float(VALUES[row, at]) - float(PRM_ROWS.target[row, at])) ** 2
        weights += weight
    assert prm_gradient(VALUES, PRM_ROWS)[0] == pytest.approx(total / weights, rel=1e-6)


def test_prm_gradient_is_zero_where_the_weight_is():
    _, gradient = prm_gradient(VALUES, PRM_ROWS)
    np.testing.assert_array_equal(gradient != 0, PRM_ROWS.weight > 0)


def test_a_value_without_weight_may_be_anything():
    unread = PRM_ROWS.weight == 0
    for poison in (np.nan, np.inf):
        jax.tree.map(
            np.testing.assert_array_equal,
            prm_gradient(np.where(unread, poison, VALUES), PRM_ROWS),
            prm_gradient(VALUES, PRM_ROWS),
        )


def test_batches_without_a_label_cost_nothing():
    empty = POLICY_ROWS.replace(weight=np.zeros_like(POLICY_ROWS.weight))
    for loss, gradient in (policy_gradient(LOGITS, empty), prm_gradient(VALUES, empty)):
        assert loss == 0 and not np.any(gradient)


def packed(rows):
    """Put all texts of rows into one row, one behind the other, and a row of padding beside it."""
    is_token = rows.until > 0
    joined = jax.tree.map(lambda x: x[is_token][None] if x.ndim == 2 else x[:1], rows)
    end = np.cumsum(is_token.sum(axis=1, dtype=np.int32))
    joined = joined.replace(until=end[np.nonzero(is_token)[0]][None])
    return jax.tree.map(lambda x: np.pad(x, [(0, 1), (0, 3)][: x.ndim]), joined)


def test_texts_packed_in_a_row_are_read_as_texts_in_rows():
    """What either network says, its loss and gradients: no text sees another."""
    prm_params = {
        "backbone": random_params(),
        "head": {"weight": RNG.normal(size=16).astype(np.float32), "bias": np.float32(0.1)},
    }
    for loss, config, make_read, params, rows in (
        (likelihood, PolicyConfig(), make_log_probs, random_params(), POLICY_ROWS),
        (lambda *args: squared(*args, LENGTH), PrmConfig(), make_outputs, prm_params, PRM_ROWS),
    ):
        read, together = jax.jit(make_read(MODEL)), packed(rows)

        def inner(said, rows):
            return np.asarray(said)[(rows.until > 0) & (rows.position > 0)]

        apart = inner(read(params, rows), rows)
        np.testing.assert_allclose(inner(read(params, together), together), apart, atol=1e-4)
        one_text = together.replace(until=np.where(together.until > 0, together.until.max(), 0))
        assert np.abs(inner(read(params, one_text), together) - apart).max() > 0.1

        def cost(params, rows, loss=loss, config=config, read=read):
            return loss(read(params, rows), rows, config)

        gradient = jax.jit(jax.value_and_grad(cost))
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
            gradient(params, rows),
            gradient(params, together),
        )


# Updates. The network of these is a straight line.

CONFIG = LearnerConfig(weight_decay=0.05, clip_norm=0.5)
FIT = FitConfig(learning_rate=0.1, warmup=0.2, final=0.1)


def squares(params, batch):
    x, y = batch
    return jnp.mean((x @ params["slope"] + params["bias"] - y) ** 2)


def loss_of_an_update(params, base, batch, num_updates):
    return squares(params, batch)


update = partial(jax.jit(make_update(loss_of_an_update, make_optimizer(CONFIG))), {})


def line_batches(num, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 16, 3)).astype(np.float32)
    return list(zip(x, x @ np.array([1, -2, 3], np.float32) + 4, strict=True))


@pytest.fixture
def learner():
    params = {"slope": jnp.array([0.5, 0.1, -0.2]), "bias": jnp.array(0.3)}
    return init_learner(params, make_optimizer(CONFIG))


def test_an_update_is_adamw_behind_clipping(learner):
    params, state = learner.params, None
    for i, batch in enumerate(line_batches(6)):
        rate = 0.01 * (i + 1)
        optimizer = optax.chain(
            optax.clip_by_global_norm(CONFIG.clip_norm),
            optax.adamw(
                rate,
                b1=CONFIG.b1,
                b2=CONFIG.b2,
                weight_decay=CONFIG.weight_decay,
                mask={"slope": True, "bias": False},
            ),
        )
        state = optimizer.init(params) if state is None else state
        gradient = jax.grad(squares)(params, batch)
        assert optax.tree.norm(gradient) > CONFIG.clip_norm
        steps, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, steps)
        learner, info = update(learner, batch, np.float32(rate))
        assert info["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), learner.params, params)
    assert learner.num_updates == 6


def test_weight_decay_leaves_norms_and_biases_alone():
    """Also where the layers are stacked, so that a bias has two axes as a matrix has."""
    config = ModelConfig(
        num_layers=2,
        width=8,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=8,
        has_qkv_bias=True,
        is_scanned=True,
    )
    model = Transformer(config, 5)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    marks = is_weight({"backbone": shapes, "head": {"weight": 0, "bias": 0}})
    named = {path[-1].key: mark for path, mark in jax.tree.leaves_with_path(marks)}
    spared = {name for name, mark in named.items() if not mark}
    assert spared == {"scale", "bias", "bq", "bk", "bv"}
    assert {"embedding", "wq", "gate", "down", "weight"} <= named.keys() - spared


def spoilt(learner: Learner, x=0.0, y=0.0, slope=None):
    """Make an update go wrong: (learner, batch)."""
    batch = np.full((16, 3), x, np.float32), np.full(16, y, np.float32)
    params = learner.params if slope is None else learner.params | {"slope": jnp.full(3, slope)}
    return learner.replace(params=params), batch


@pytest.mark.parametrize(
    "fault",
    [dict(y=np.nan), dict(y=np.inf), dict(x=1e38, slope=1e-30), dict(slope=np.nan)],
    ids=["loss nan", "loss inf", "gradient inf, loss finite", "parameters nan"],
)
def test_an_update_that_is_not_finite_leaves_the_learner_as_it_was(learner, fault):
    for batch in line_batches(2):  # so that the moments are not zero
        learner, info = update(learner, batch, np.float32(0.01))
        assert not info["is_skipped"]
    before, batch = spoilt(learner, **fault)
    after, info = update(before, batch, np.float32(0.01))
    assert info["is_skipped"]
    assert np.isfinite(info["loss"]) == ("x" in fault), "the case is not what its name says"
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("moment", ["mu", "nu"])
def test_a_moment_that_is_not_finite_never_reaches_the_parameters(learner, moment):
    """Loss and gradient are finite, and yet Adam would write NaN into the weights."""
    clip, adam, decay = learner.opt_state
    spoilt_adam = adam._replace(
        **{moment: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), getattr(adam, moment))}
    )
    before = learner.replace(opt_state=(clip, spoilt_adam, decay))
    after, info = update(before, line_batches(1)[0], np.float32(0.01))
    assert info["is_skipped"] and np.isfinite(info["loss"]) and np.isfinite(info["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_what_an_update_makes_is_checked_by_the_next_one(learner):
    """The gradient is finite, and the step overflows."""
    spoilt_one, info = update(learner, line_batches(1)[0], np.float32(3.4e38))
    assert not info["is_skipped"] and not all_finite(spoilt_one) and all_finite(learner)
    after, info = update(spoilt_one, line_batches(1)[0], np.float32(0.01))
    assert info["is_skipped"]
    jax.tree.map(np.testing.assert_array_equal, after, spoilt_one)


# Fits.


def test_a_fit_counts_the_updates_it_skipped(learner):
    batches = line_batches(5)
    for i in (1, 4):
        batches[i] = spoilt(learner, y=np.nan)[1]
    fitted, infos = fit(update, learner, batches, np.full(5, 0.01, np.float32))
    info = summarise(infos)
    assert (info["num_updates"], info["num_skipped"], info["is_skipped_fit"]) == (5, 2, 0)
    assert np.isfinite(info["loss"]) and np.isfinite(info["grad_norm"])
    assert fitted.num_updates == 3
    good, _ = fit(update, learner, [batches[i] for i in (0, 2, 3)], np.full(3, 0.01, np.float32))
    jax.tree.map(np.testing.assert_array_equal, fitted, good)


def test_a_fit_without_batches_says_so(learner):
    fitted, infos = fit(update, learner, iter(()), np.zeros(3, np.float32))
    info = summarise(infos)
    assert fitted is learner
    assert (info["num_updates"], info["is_skipped_fit"]) == (0, 1)


def test_a_fit_reports_means_and_tells_of_every_update(learner):
    batches, rates, told = line_batches(20), np.full(20, 0.01, np.float32), []
    _, infos = fit(update, learner, batches, rates, lambda loss, is_skipped: told.append(loss))
    info = summarise(infos)
    losses = []
    for batch in batches:
        learner, one = update(learner, batch, rates[0])
        losses.append(float(one["loss"]))
    assert told == losses
    assert info["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert info["loss_last_tenth"] == pytest.approx(np.mean(losses[-2:]), rel=1e-6)


def test_a_fit_in_parts_equals_a_fit_at_once(learner):
    batches, rates = line_batches(7), learning_rates(FIT, 7)
    whole, infos = fit(update, learner, batches, rates)
    ahead = iter(batches)
    for at in (0, 3, 6):  # a part takes no batch that the next one needs
        learner, part = fit(update, learner, ahead, rates[at : at + 3])
        np.testing.assert_array_equal(part["loss"], infos["loss"][at : at + 3])
    jax.tree.map(np.testing.assert_array_equal, learner, whole)


def test_a_fit_of_nothing_but_faults_still_reports(learner):
    _, infos = fit(
        update, learner, [spoilt(learner, y=np.nan)[1]] * 3, np.full(3, 0.01, np.float32)
    )
    info = summarise(infos)
    assert (info["num_skipped"], math.isnan(info["loss"])) == (3, True)


def test_a_fit_learns(learner):
    batches = line_batches(300)
    fitted, infos = fit(update, learner, batches, learning_rates(FIT, 300))
    assert summarise(infos)["loss_last_tenth"] < 0.01 * squares(learner.params, batches[0])
    np.testing.assert_allclose(fitted.params["slope"], [1, -2, 3], atol=0.1)


@pytest.mark.parametrize("num_updates", [10, 100, 1000])
def test_learning_rates_span_one_fit(num_updates):
    rates = learning_rates(FIT, num_updates)
    warmup = num_updates // 5
    assert rates.shape == (num_updates,) and rates.dtype == np.float32
    np.testing.assert_allclose(
        rates[:warmup], FIT.learning_rate * np.arange(1, warmup + 1) / warmup, rtol=1e-5
    )
    share = np.arange(1, num_updates - warmup + 1) / (num_updates - warmup)
    cosine = FIT.final + (1 - FIT.final) * (1 + np.cos(np.pi * share)) / 2
    np.testing.assert_allclose(rates[warmup:], FIT.learning_rate * cosine, rtol=1e-4)


@pytest.mark.parametrize(
    ("max_epochs", "num_rows", "num_updates"),
    [(None, 3, 50), (2, 23, 6), (2, 24, 6), (0.5, 23, 2), (2, 999, 50), (2, 0, 0)],
)
def test_a_limit_of_epochs_is_rounded_up_to_updates(max_epochs, num_rows, num_updates):
    config = FitConfig(num_updates=50, max_epochs=max_epochs)
    assert count_updates(config, 8, num_rows) == num_updates


@pytest.mark.parametrize("num_updates", [0, 1, 2])
def test_the_shortest_fits_have_rates(num_updates):
    rates = learning_rates(FIT, num_updates)
    assert (
        rates.shape == (num_updates,)
        and np.all(rates > 0)
        and np.all(rates <= np.float32(FIT.learning_rate))
    )
