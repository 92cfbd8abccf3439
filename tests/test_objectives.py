"""Losses of either network against the published formulas, in plain numpy on the same arrays, and
their gradients against finite differences in float64.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxtrain.errors import UserError
from jaxtrain.nn.heads import head_outputs, init_head, value_of
from jaxtrain.structs import TokenRows
from jaxtrain.updates import OBJECTIVES, PolicyConfig, PrmConfig
from jaxtrain.updates.prm import comparisons, cross_entropy, language

ROWS, LENGTH, LABELS = 4, 9, 3
RNG = np.random.default_rng(0)

# Of two problems two rows each; steps of a depth are of one group.
IS_END = np.zeros((ROWS, LENGTH), bool)
ENDS = [(0, 3), (0, 5), (0, 8), (1, 4), (1, 7), (2, 3), (2, 6), (3, 2), (3, 5)]
IS_END[tuple(np.transpose(ENDS))] = True
DEPTH = np.cumsum(IS_END, axis=1) - 1
GROUP = np.where(IS_END, 10 * (np.arange(ROWS)[:, None] // 2) + DEPTH, -1).astype(np.int32)
PLACE = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), IS_END.shape)
PRM_ROWS = TokenRows(
    tokens=RNG.integers(0, 5, IS_END.shape).astype(np.int32),
    position=PLACE,
    until=np.full_like(PLACE, LENGTH),
    target=np.where(IS_END, RNG.uniform(size=IS_END.shape), 0).astype(np.float32),
    weight=np.where(IS_END, RNG.uniform(0.5, 2, IS_END.shape), 0).astype(np.float32),
    group=GROUP,
)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def said(name, config=None):
    """What a head says that has as many outputs as an objective asks for."""
    num = OBJECTIVES["prm"][name].num_outputs(config or PrmConfig())
    shape = IS_END.shape if num == 1 else (*IS_END.shape, num)
    return np.random.default_rng(1).normal(size=shape)


def loss_of(name, outputs, rows=PRM_ROWS, **how):
    return OBJECTIVES["prm"][name].loss(outputs, rows, PrmConfig(**how), LABELS)


@pytest.mark.parametrize("name", OBJECTIVES["prm"])
def test_the_gradient_of_a_prm_loss_is_what_differences_say(name):
    with jax.enable_x64(True):
        outputs = jnp.asarray(said(name))
        assert outputs.dtype == jnp.float64
        check_grads(lambda x: loss_of(name, x), (outputs,), order=1, modes=["rev"], atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES["prm"])
def test_what_a_prm_says_where_nothing_is_learnt_may_be_anything(name):
    outputs = said(name).astype(np.float32)
    gradient_of = jax.jit(jax.value_and_grad(lambda x: loss_of(name, x)))
    expected = gradient_of(outputs)
    outputs[~IS_END] = np.nan
    jax.tree.map(np.testing.assert_array_equal, gradient_of(outputs), expected)
    assert not expected[1][~IS_END].any() and expected[1][IS_END].any()


def test_two_bins_are_binary_cross_entropy():
    outputs, total = said("binary"), 0.0
    for at in ENDS:
        log_odds, t = outputs[at][1] - outputs[at][0], PRM_ROWS.target[at]
        total -= PRM_ROWS.weight[at] * (
            t * log_sigmoid(log_odds) + (1 - t) * log_sigmoid(-log_odds)
        )
    expected = total / PRM_ROWS.weight.sum()
    assert loss_of("binary", outputs) == pytest.approx(expected, rel=1e-5)


def test_bins_are_cross_entropy_to_the_two_values_beside_the_target():
    outputs, total = said("bins"), 0.0
    for at in ENDS:
        log_prob = outputs[at] - np.log(np.exp(outputs[at]).sum())
        t = float(PRM_ROWS.target[at])
        low = min(int(t * 10), 9)
        share = t * 10 - low
        total -= PRM_ROWS.weight[at] * ((1 - share) * log_prob[low] + share * log_prob[low + 1])
    assert loss_of("bins", outputs) == pytest.approx(total / PRM_ROWS.weight.sum(), rel=1e-5)


@pytest.mark.parametrize("target", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_bins_are_right_where_their_mean_is_the_target(target):
    """The cross-entropy's minimum has the target as its value."""
    rows = jax.tree.map(lambda x: x[:1, :1], PRM_ROWS)
    rows = rows.replace(target=np.full((1, 1), target), weight=np.ones((1, 1)))
    low = min(int(target * 10), 9)
    share = np.zeros(11)
    share[[low, low + 1]] = 1 - (target * 10 - low), target * 10 - low
    outputs = np.log(share + 1e-12).astype(np.float32)[None, None]
    gradient = jax.grad(lambda x: cross_entropy(x, rows, PrmConfig(), 1))(outputs)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    head = {"weight": jnp.zeros((2, 11)), "bias": outputs[0, 0]}
    assert value_of(head, jnp.ones(2)) == pytest.approx(target, abs=1e-5)


def test_comparisons_are_bradley_and_terrys():
    """Of hard labels: minus log sigmoid of right less wrong, in all pairs of a group."""
    score = np.array([0.3, -1.0, 2.0, 0.7, 5.0])
    target, weight = np.array([1.0, 0, 0, 1, 0]), np.ones(5)
    group = np.array([7, 7, 7, 8, -1])
    expected = -(log_sigmoid(0.3 + 1.0) + log_sigmoid(0.3 - 2.0)) / 2
    found = comparisons(*map(jnp.asarray, (score, target, weight, group)))
    assert found == pytest.approx(expected, rel=1e-6)


def test_pairwise_is_binary_and_its_comparisons():
    outputs, total, weights = said("pairwise"), 0.0, 0.0
    for a in ENDS:
        for b in ENDS:
            if a != b and GROUP[a] == GROUP[b]:
                wins = PRM_ROWS.target[a] * (1 - PRM_ROWS.target[b])
                wins *= PRM_ROWS.weight[a] * PRM_ROWS.weight[b]
                gap = (outputs[a][1] - outputs[a][0]) - (outputs[b][1] - outputs[b][0])
                total, weights = total - wins * log_sigmoid(gap), weights + wins
    expected = float(loss_of("binary", outputs)) + 0.3 * total / weights
    assert loss_of("pairwise", outputs, pairwise_weight=0.3) == pytest.approx(expected, rel=1e-5)


def test_comparisons_see_no_shift_of_a_problem_and_only_its_order():
    outputs = said("pairwise")
    shifted = outputs + np.where(np.arange(ROWS) < 2, 3.0, -5.0)[:, None, None] * [0, 1]

    def pairs(outputs):
        return float(loss_of("pairwise", outputs) - loss_of("binary", outputs))

    assert pairs(shifted) == pytest.approx(pairs(outputs), abs=1e-5)
    right = np.where(PRM_ROWS.target[..., None] > 0.5, [0, 50.0], [0, 0.0])
    hard = PRM_ROWS.replace(target=np.round(PRM_ROWS.target))
    told = loss_of("pairwise", right, hard) - loss_of("binary", right, hard)
    assert float(told) == pytest.approx(0, abs=1e-6)


def test_the_language_models_loss_is_the_mean_of_all_tokens_but_the_first():
    """Of three texts in two rows, the rest padding, which tells 0 as the first tokens do."""
    position = np.array([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]], np.int32)
    log_probs = np.where(position > 0, RNG.uniform(-3, -0.1, position.shape), 0)
    rows = jax.tree.map(lambda x: x[:2, :5], PRM_ROWS).replace(position=position)
    expected = -np.mean([log_probs[0, 1], log_probs[0, 2], log_probs[0, 4], log_probs[1, 1]])
    assert language(log_probs, rows) == pytest.approx(expected, rel=1e-6)
    with jax.enable_x64(True):
        told = (jnp.asarray(log_probs),)
        check_grads(lambda x: language(x, rows), told, order=1, modes=["rev"], atol=1e-6)


@pytest.mark.parametrize("num", [1, 2, 11])
def test_a_new_head_says_one_half(num):
    head = init_head(6, num)
    hidden = jnp.asarray(RNG.normal(size=(3, 4, 6)), jnp.bfloat16)
    assert head_outputs(head, hidden).shape == (3, 4, *[num] * (num > 1))
    value = value_of(head, hidden)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.full((3, 4), 0.5), rtol=1e-6)


# The policy: two pairs, of prompts of two tokens and answers of several lengths.
OWN = (PLACE >= 2) & (np.array([9, 6, 7, 8])[:, None] > PLACE)
ADVANTAGE = np.array([1.5, -0.5, 0.7, -1.2])
POLICY_ROWS = PRM_ROWS.replace(
    target=(OWN * ADVANTAGE[:, None]).astype(np.float32),
    weight=OWN.astype(np.float32),
    log_prob=-RNG.uniform(0.1, 3, OWN.shape).astype(np.float32),
)
LOG_PROBS = POLICY_ROWS.log_prob + RNG.normal(0, 0.4, OWN.shape)


def policy_loss_of(name, log_probs, rows=POLICY_ROWS, **how):
    return OBJECTIVES["policy"][name].loss(log_probs, rows, PolicyConfig(**how))


@pytest.mark.parametrize("name", OBJECTIVES["policy"])
def test_the_gradient_of_a_policy_loss_is_what_differences_say(name):
    with jax.enable_x64(True):
        log_probs = jnp.asarray(LOG_PROBS)
        check_grads(
            lambda x: policy_loss_of(name, x), (log_probs,), order=1, modes=["rev"], atol=1e-6
        )


@pytest.mark.parametrize("name", OBJECTIVES["policy"])
def test_a_policy_loss_reads_nothing_but_what_is_learnt(name):
    gradient_of = jax.jit(jax.value_and_grad(lambda x, rows: policy_loss_of(name, x, rows)))
    other = np.where(OWN, 0, RNG.normal(size=OWN.shape)).astype(np.float32)
    rows = POLICY_ROWS.replace(log_prob=POLICY_ROWS.log_prob + other)
    found = gradient_of(LOG_PROBS.astype(np.float32) - 2 * other, rows)
    expected = gradient_of(LOG_PROBS.astype(np.float32), POLICY_ROWS)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)
    assert not found[1][~OWN].any() and found[1][OWN].any()


@pytest.mark.parametrize("name", ["dpo", "step_dpo"])
def test_preference_is_dpo(name):
    """As in TRL's `sigmoid` loss: minus log sigmoid of beta times (policy's log-ratio less the
    reference's), summed over the answers' tokens, mean over pairs.
    """
    chosen, rejected = (LOG_PROBS * OWN).sum(axis=1).reshape(2, 2).T
    their_chosen, their_rejected = (POLICY_ROWS.log_prob * OWN).sum(axis=1).reshape(2, 2).T
    logits = (chosen - rejected) - (their_chosen - their_rejected)
    expected = np.mean([-log_sigmoid(0.3 * x) for x in logits])
    assert policy_loss_of(name, LOG_PROBS, beta=0.3) == pytest.approx(expected, rel=1e-5)


def test_what_a_pair_shares_cancels():
    """So of sibling steps the prefix need not be learnt, or may be."""
    shared = POLICY_ROWS.replace(
        weight=(PLACE < 6).astype(np.float32), log_prob=POLICY_ROWS.log_prob.copy()
    )
    log_probs = LOG_PROBS.copy()
    for array in (log_probs, shared.log_prob):
        array[1::2, :4] = array[::2, :4]
    alone = shared.replace(weight=((PLACE >= 4) & (PLACE < 6)).astype(np.float32))
    told = [float(policy_loss_of("step_dpo", log_probs, rows)) for rows in (shared, alone)]
    assert told[0] == pytest.approx(told[1], rel=1e-5)


def test_clipped_is_grpo():
    """As in TRL with `loss_type="bnpo"`, which is "dapo" of one batch."""
    ratio = np.exp(LOG_PROBS - POLICY_ROWS.log_prob)
    bounded = np.clip(ratio, 0.8, 1.2)
    assert (ratio != bounded)[OWN].any(), "some are clipped"
    advantage = ADVANTAGE[:, None]
    loss = -np.minimum(ratio * advantage, bounded * advantage)
    away = POLICY_ROWS.log_prob - LOG_PROBS
    loss = loss + 0.04 * (np.exp(away) - away - 1)
    expected = (loss * OWN).sum() / OWN.sum()
    found = policy_loss_of("grpo", LOG_PROBS, clip=0.2, kl=0.04)
    assert found == pytest.approx(expected, rel=1e-5)


BAD = {
    "prm.objective": (PrmConfig, dict(objective="ranks"), "squared or binary or bins or pair"),
    "prm.num_bins": (PrmConfig, dict(num_bins=1), "must be 2 or more"),
    "prm.dropout": (PrmConfig, dict(dropout=1.0), "must be below 1, and 0 or more"),
    "prm.held_out": (PrmConfig, dict(held_out=-0.1), "must be below 1, and 0 or more"),
    "prm.lm_weight": (PrmConfig, dict(lm_weight=-1.0), "must be 0 or more"),
    "policy.objective": (PolicyConfig, dict(objective="ppo"), "nll or weighted or dpo or "),
    # a mean that forgets nothing of its beginning divides 0 by 0
    "policy.b1": (PolicyConfig, dict(b1=1.0), "must be below 1, and 0 or more"),
    "prm.b2": (PrmConfig, dict(b2=1.0), "must be below 1, and 0 or more"),
    "policy.init_from": (
        PolicyConfig,
        dict(objective="grpo", init_from="warm_start"),
        "grpo improves on the policy before; it goes with --config.updates.policy.objective nll",
    ),
    "policy.batch_size": (
        PolicyConfig,
        dict(objective="dpo", batch_size=7),
        "dpo takes pairs of rows; choose an even number",
    ),
}


@pytest.mark.parametrize("key", BAD)
def test_what_makes_no_sense_is_one_line(key):
    cls, how, why = BAD[key]
    with pytest.raises(UserError, match=f"--config.updates.{key}=.*: .*{why}") as caught:
        cls(**how)
    assert "\n" not in str(caught.value)
