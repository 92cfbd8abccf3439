"""Fits of a Learner, whatever it learns.

The learning rate is an argument and its schedule spans exactly one fit, so the warm start and every
later fit have a horizon of their own while Adam's moments live on. An update leaves the learner as
it was, and is counted, where its loss, its gradient, a parameter or a moment is not finite. What an
update made is checked by the next one, and at the end of a fit: to check it at once would hold a
second copy of the learner.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtrain.errors import Count, Natural, NotNegative, Part, Positive, Section, Share, one_of
from jaxtrain.intervals import mean
from jaxtrain.structs import Array, Learner, Params

# (params that are trained, base, rows, number of updates before) -> loss, [] float32
LossFn = Callable[[Params, Params, Any, Array], Array]
# (base, learner, batch, learning rate) -> (learner, {loss, grad_norm, is_skipped})
UpdateFn = Callable[[Params, Learner, Any, Array], tuple[Learner, dict[str, Array]]]

NOT_WEIGHTS = {"scale", "bias", "bq", "bk", "bv"}  # of norms, the value head, attention

# What no updates tell.
NO_INFOS = {
    "loss": np.zeros(0, np.float32),
    "grad_norm": np.zeros(0, np.float32),
    "is_skipped": np.zeros(0, bool),
}


@dataclass(frozen=True)
class FitConfig(Section, at="updates.policy.fit"):
    """The length of a fit, and its learning rates."""

    num_updates: Natural = 400  # of a fit, at most
    # fewer updates if these are more epochs, rounded up; none: no limit
    max_epochs: NotNegative | None = None
    learning_rate: NotNegative = 1e-3  # peak
    # share of a fit in which the rate rises from 0; a cosine to `final` follows
    warmup: Share = 0.05
    final: Share = 0.1  # last rate, as a share of the peak


@dataclass(frozen=True)
class LearnerConfig(Section):
    """How one network learns."""

    # iteration 0: the policy on demonstrations, the PRM on D_V0
    warm_start: FitConfig = FitConfig(num_updates=800)
    fit: FitConfig = FitConfig()  # iterations 1, 2, ...
    batch_size: Count = 64  # M, over all devices
    b1: Part = 0.9  # AdamW's decay of the mean gradient, an update
    b2: Part = 0.98  # AdamW's decay of the mean squared gradient, an update
    weight_decay: NotNegative = 0.01  # AdamW's, times the rate
    clip_norm: Positive = 1.0  # of the whole gradient
    # where later fits begin: previous, the fit before; warm_start, from iteration 2 on, the network
    # of iteration 0
    init_from: Annotated[str, one_of("previous", "warm_start")] = "previous"
    objective: str = ""  # what is learnt, a key of the network's own table

    def fit_of(self, iteration: int) -> FitConfig:
        """Return what an iteration's fit is like."""
        return self.fit if iteration else self.warm_start


def make_optimizer(config: LearnerConfig) -> optax.GradientTransformation:
    """AdamW behind clipping, without its learning rate, by which an update multiplies."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=is_weight),
    )


def is_weight(params: Params) -> Params:
    """Mark the matrices and vectors that multiply: a tree of bool, False at norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NOT_WEIGHTS, params)


def init_learner(params: Params, optimizer: optax.GradientTransformation) -> Learner:
    """Wrap fresh parameters."""
    return Learner(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_update(loss_fn: LossFn, optimizer: optax.GradientTransformation) -> UpdateFn:
    """Make the pure update; jit it with shardings."""

    def update(
        base: Params, learner: Learner, batch: Any, learning_rate: Array
    ) -> tuple[Learner, dict[str, Array]]:
        grad_fn = jax.value_and_grad(loss_fn)
        loss, grads = grad_fn(learner.params, base, batch, learner.num_updates)
        # What the update would be.
        norm = optax.tree.norm(grads)
        direction, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
        steps = optax.tree.scale(-learning_rate, direction)
        params = optax.apply_updates(learner.params, steps)
        new = Learner(params, opt_state, learner.num_updates + 1)
        is_ok = all_finite((loss, norm, learner.params, learner.opt_state))
        learner = jax.tree.map(partial(jnp.where, is_ok), new, learner)
        return learner, {"loss": loss, "grad_norm": norm, "is_skipped": ~is_ok}

    return update


def all_finite(tree: Any) -> Array:
    """Say whether every number of a tree of arrays is finite, [] bool."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def count_updates(config: FitConfig, batch_size: int, num_rows: int) -> int:
    """Return how many updates a fit on so many rows makes.

    >>> count_updates(FitConfig(num_updates=400, max_epochs=2), batch_size=64, num_rows=1000)
    32
    """
    if config.max_epochs is None:
        return config.num_updates
    return min(config.num_updates, math.ceil(config.max_epochs * num_rows / batch_size))


def learning_rates(config: FitConfig, num_updates: int) -> np.ndarray:
    """Lay the schedule over one fit: [num_updates] float32."""
    peak, warmup = config.learning_rate, max(1, round(config.warmup * num_updates))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup, max(num_updates, warmup + 1), config.final * peak
    )
    return np.asarray(jax.vmap(schedule)(jnp.arange(1, num_updates + 1)), np.float32)


def fit(
    update: Callable[[Learner, Any, Array], tuple[Learner, dict[str, Array]]],
    learner: Learner,
    batches: Iterable[Any],
    rates: np.ndarray,
    on_update: Callable[[float, bool], None] = lambda loss, is_skipped: None,
) -> tuple[Learner, dict[str, np.ndarray]]:
    """Run one update for every batch and rate. Returns the learner and what each of the N updates
    told, [N] a key.

    on_update is told the loss of every update, and whether it was skipped, once it is done; by then
    the next one is with the device.
    """
    infos = []

    def tell() -> None:
        on_update(float(infos[-1]["loss"]), bool(infos[-1]["is_skipped"]))

    # in this order: no batch is taken that has no rate
    for rate, batch in zip(rates, batches, strict=False):
        learner, info = update(learner, batch, rate)
        if infos:
            tell()
        infos.append(info)
    if not infos:
        return learner, NO_INFOS
    tell()
    return learner, jax.tree.map(lambda *x: np.stack(x), *jax.device_get(infos))


def summarise(infos: dict[str, np.ndarray]) -> dict[str, float]:
    """Average a fit's updates, the skipped ones apart; no updates are a skipped fit."""
    num_updates = len(infos["loss"])
    if not num_updates:
        return {"num_updates": 0, "is_skipped_fit": 1}
    is_ok, tail = ~infos["is_skipped"], slice(-max(1, num_updates // 10), None)
    return {
        "num_updates": num_updates,
        "num_skipped": int(np.sum(~is_ok)),
        "is_skipped_fit": 0,
        "loss": mean(infos["loss"][is_ok]),
        "loss_last_tenth": mean(infos["loss"][tail][is_ok[tail]]),
        "grad_norm": mean(infos["grad_norm"][is_ok]),
    }
