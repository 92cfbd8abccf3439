"""What the PRM learns: losses of what its head says at the ends of steps, one line of `OBJECTIVES`
each.

A head with one output says the value itself. One with K outputs says, by a softmax, how likely each
of K values is, evenly spaced from 0 to 1, and the value is their mean (`nn.heads.value_of`). So
every objective gives a value in [0, 1] that search, checkpoints and exports read by the shape of
the head alone. With two outputs the value is the chance of 1, and their difference is its log-odds,
which is what pairs are compared by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxtrain.errors import NotNegative, at_least
from jaxtrain.structs import Array, TokenRows
from jaxtrain.updates.fits import LearnerConfig


@dataclass(frozen=True)
class PrmConfig(LearnerConfig, at="updates.prm"):
    """How the PRM learns."""

    # squared: error of the value; binary: cross-entropy of the chance of success; bins: that of
    # values in bins; pairwise: binary, and which of two steps of a problem is better
    objective: str = "squared"
    # with bins: values from 0 to 1 that the head tells apart
    num_bins: Annotated[int, at_least(2)] = 11
    pairwise_weight: NotNegative = 1.0  # with pairwise: of the comparisons, beside the binary loss
    # with pairwise: paths of a problem that stand in a batch together
    num_together: Annotated[int, at_least(2)] = 2

    def check(self) -> None:
        is_met, why = self.objective in OBJECTIVES, f"must be {' or '.join(OBJECTIVES)}"
        self.require(is_met, "objective", why)


# (what the head says, [M L] or [M L K]; rows; config; D, labels of a row at most) -> [] float32
PrmLossFn = Callable[[Array, TokenRows, PrmConfig, int], Array]


class PrmObjective(NamedTuple):
    """A loss, and what it asks of the head and of the batches."""

    loss: PrmLossFn
    num_outputs: Callable[[PrmConfig], int]
    order: str = "rows"  # of the rows, a key of datasets.ORDERS


def squared(outputs: Array, rows: TokenRows, config: PrmConfig, num_labels: int) -> Array:
    """Mean squared error of raw values where there is a weight (ReST-MCTS*, Eq. 37)."""
    chex.assert_equal_shape([outputs, rows.weight])
    # The mask stands inside: an unread position may hold anything, and 0 * inf is NaN.
    error = jnp.where(rows.weight > 0, outputs - rows.target, 0.0)
    return _mean(error**2, rows.weight)


def cross_entropy(outputs: Array, rows: TokenRows, config: PrmConfig, num_labels: int) -> Array:
    """Mean cross-entropy of the value in bins, where there is a weight.

    A target between two bins is shared by both so that their mean is the target; with two bins that
    is the binary cross-entropy of a soft target.
    """
    chex.assert_equal_shape_prefix([outputs, rows.weight], 2)
    outputs = jnp.where(rows.weight[..., None] > 0, outputs, 0.0)
    last = outputs.shape[-1] - 1
    far = jnp.abs(rows.target[..., None] * last - jnp.arange(last + 1))
    return _mean(optax.softmax_cross_entropy(outputs, jnp.maximum(1 - far, 0.0)), rows.weight)


def pairwise(outputs: Array, rows: TokenRows, config: PrmConfig, num_labels: int) -> Array:
    """Binary cross-entropy, which keeps the value calibrated, and what `comparisons` adds to it.

    Alone, comparisons fix log-odds but for a constant of each problem, and a search reads values.
    """
    own = cross_entropy(outputs, rows, config, num_labels)
    # Of every row the places with a label, which are few: its pairs would be L squared.
    weight, at = jax.lax.top_k(rows.weight, min(num_labels, rows.weight.shape[1]))
    log_odds, target, group = (
        jnp.take_along_axis(x, at, axis=1).reshape(-1)
        for x in (outputs[..., 1] - outputs[..., 0], rows.target, rows.group)
    )
    pairs = comparisons(log_odds, target, weight.reshape(-1), group)
    return own + config.pairwise_weight * pairs


def comparisons(log_odds: Array, target: Array, weight: Array, group: Array) -> Array:
    """Mean negative log-likelihood of which step of a pair is right, given that one of them is
    (Bradley and Terry, 1952).

    log_odds, target, weight, group: [n]. Pairs are of one group, -1 is of none. Targets in [0, 1]
    are chances to be right: step i is right and j is not with t_i (1 - t_j), which is what that
    outcome weighs, and given that one of them is, the chance that it is i is the sigmoid of the
    difference of their log-odds. Steps of equal certain worth are not compared.
    """
    chex.assert_equal_shape([log_odds, target, weight, group])
    log_odds = jnp.where(weight > 0, log_odds, 0.0)
    is_pair = (group[:, None] == group) & (group >= 0)
    wins = is_pair * weight[:, None] * weight * target[:, None] * (1 - target)
    wins = wins * (1 - jnp.eye(len(group)))
    loss = jax.nn.softplus(log_odds - log_odds[:, None])
    return _mean(loss, wins)


OBJECTIVES = {
    "squared": PrmObjective(squared, lambda config: 1),
    "binary": PrmObjective(cross_entropy, lambda config: 2),
    "bins": PrmObjective(cross_entropy, lambda config: config.num_bins),
    "pairwise": PrmObjective(pairwise, lambda config: 2, order="problems"),
}


def _mean(loss: Array, weight: Array) -> Array:
    return jnp.sum(weight * loss) / jnp.maximum(jnp.sum(weight), 1.0)
