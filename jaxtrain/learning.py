"""What an iteration learns, as it is run: rows made of trees, and fits, in parts that are saved.
Stands beside the other phases.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np

from jaxtrain import datasets, updates
from jaxtrain.checkpoints import FitCheckpoints
from jaxtrain.errors import require
from jaxtrain.evaluation import named
from jaxtrain.keys import Purpose, host_rng
from jaxtrain.phases import Run, diverged
from jaxtrain.structs import Examples, Learner, Networks, Params, TokenRows
from jaxtrain.updates import LearnerConfig, fits

FITS = {"policy": Purpose.FIT_POLICY, "prm": Purpose.FIT_PRM}

is_finite = jax.jit(fits.all_finite)


def collect(run: Run, rounds: datasets.Rounds) -> tuple[Examples, Examples, dict[str, Any]]:
    """Make the rows of both networks as their objectives ask: (policy's, PRM's, counts)."""
    c = run.config
    rows_fn = datasets.ROWS[updates.policy.OBJECTIVES[c.updates.policy.objective].rows]
    if c.datasets.drop_false_steps and run.check is not None:
        rows_fn = datasets.without_false_steps(rows_fn, run.check)
    policy, prm, counts = datasets.collect(rounds, c.datasets, c.max_length, c.seed, rows_fn)
    if c.datasets.packed_tokens is not None:
        policy = pack(run, "policy", policy, counts)
        prm = pack(run, "prm", prm, counts)
    return policy, prm, counts


def pack(run: Run, name: str, examples: Examples, counts: dict[str, Any]) -> Examples:
    """Pack the rows of a network, and count the tokens of both forms."""
    c, objective = run.config.datasets, getattr(run.config.updates, name).objective
    is_balanced = c.balance_outcomes and updates.OBJECTIVES[name][objective].order == "rows"
    packed = datasets.pack(examples, c.packed_tokens or 0, is_balanced)
    for key, rows in (("apart", examples.rows), ("packed", packed.rows)):
        counts[f"num_{name}_tokens_{key}"] = int(np.count_nonzero(rows.until))
    return packed


def with_reference(run: Run, networks: Networks, examples: Examples) -> Examples:
    """Write down how likely the policy before the fit makes every token, if a loss asks for it."""
    learning, num_rows = run.config.updates.policy, datasets.num_rows(examples)
    if not updates.policy.OBJECTIVES[learning.objective].has_reference or not num_rows:
        return examples
    found = []
    for first in range(0, num_rows, learning.batch_size):
        # The last batch is filled up from the front.
        at = np.arange(first, first + learning.batch_size) % num_rows
        rows = jax.tree.map(lambda x, at=at: x[at], examples.rows)
        told = run.fns.read_log_probs(networks.base, networks.policy, rows)
        found.append(np.asarray(told, np.float32))
    log_prob = np.concatenate(found)[:num_rows]
    return replace(examples, rows=replace(examples.rows, log_prob=log_prob))


def fit(
    run: Run,
    i: int,
    name: str,
    base: Params,
    learner: Learner,
    examples: Examples,
    is_imitation: bool = False,
) -> Learner:
    """Fit one network to its examples, from where an interrupted fit was last saved.

    is_imitation: the examples are demonstrations to the policy, whatever it learns of trees.
    """
    update = partial(run.fns.imitate if is_imitation else getattr(run.fns, f"update_{name}"), base)
    rates, batches = lay_out(run, i, name, examples, is_imitation)
    num_updates, learning = len(rates), getattr(run.config.updates, name)
    every, folder = run.config.checkpoints.num_updates, run.workdir.fits / str(i) / name
    # where it stood when it was interrupted, if it was
    with (
        FitCheckpoints(folder, not every, run.workdir.run_key, run.progress.note) as saved,
        run.progress.phase(
            f"{name} updates", iteration=i, total=num_updates, unit="updates"
        ) as phase,
    ):
        if i > 1 and learning.init_from == "warm_start":
            learner = warm_learner(run, name, learner)
        learner, infos = saved.restore(learner, fits.NO_INFOS)
        num_skipped, limit = 0, min(run.config.updates.max_skipped, num_updates)

        # a run of updates that are not finite ends the run
        def on_update(loss: float, is_skipped: bool) -> None:
            nonlocal num_skipped
            phase.advance(loss=loss)
            num_skipped = num_skipped + 1 if is_skipped else 0
            if num_skipped == limit:
                what = f"{limit} updates of the {name} in a row were not finite"
                raise diverged(run, i, f"{what}, so they were skipped")

        # part by part, each saved when it is done
        done = sum(1 for _ in islice(batches, len(infos["loss"])))
        phase.advance(done, is_restored=True)
        while done < num_updates:
            part = rates[done : done + (every or num_updates)]
            learner, told = fits.fit(update, learner, batches, part, on_update)
            if not len(told["loss"]):
                break
            if not is_finite(learner):
                what = f"parameters or moments of the {name}"
                raise diverged(run, i, f"{what} are not finite after its updates")
            infos = {key: np.concatenate([infos[key], told[key]]) for key in infos}
            done = len(infos["loss"])
            if every:
                saved.save(learner, infos)

    # what there is to tell of it
    info = fits.summarise(infos)
    if info["is_skipped_fit"]:
        run.progress.note(f"iteration {i}: the {name} has no data, its fit is skipped")
    told = {**info, "losses": [float(f"{loss:.6g}") for loss in infos["loss"]]}
    run.log.append(i, {**named(f"updates/{name}", told), f"time/{name}_updates": phase.seconds})
    return learner


def lay_out(
    run: Run, i: int, name: str, examples: Examples, is_imitation: bool
) -> tuple[np.ndarray, Iterator[TokenRows]]:
    """Lay out a whole fit before it begins: its learning rates and its batches."""
    learning: LearnerConfig = getattr(run.config.updates, name)
    c, d, size = learning.fit_of(i), run.config.datasets, learning.batch_size
    num_updates = fits.count_updates(c, size, datasets.num_rows(examples))
    batches = datasets.batches(
        examples,
        num_updates,
        size,
        host_rng(run.config.seed, FITS[name], i),
        d.balance_outcomes and d.packed_tokens is None,  # packed rows are balanced in themselves
        d.group_by_length,
        "rows" if is_imitation else updates.OBJECTIVES[name][learning.objective].order,
        run.config.updates.prm.num_together,
    )
    return fits.learning_rates(c, num_updates), batches


def warm_learner(run: Run, name: str, learner: Learner) -> Learner:
    """Restore a network as iteration 0 left it, and free `learner`. Raises UserError."""
    flag, fault = f"--config.updates.{name}.init_from=warm_start", run.checkpoints.fault(0)
    require(not fault, flag, f"{fault}; restore it from a copy")
    jax.tree.map(lambda x: x.delete(), learner)
    return run.checkpoints.restore_learner(0, name, run.fns.abstract_state)
