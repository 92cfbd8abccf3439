"""What an iteration learns, as it is run: rows made of trees, and fits, in parts that are saved.
Stands beside the other phases.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, takewhile
from typing import Any

import jax
import numpy as np

from jaxtrain import datasets, labels, updates
from jaxtrain.checkpoints import FitCheckpoints
from jaxtrain.errors import require
from jaxtrain.evaluation import named
from jaxtrain.evaluation.prm import within_problems
from jaxtrain.intervals import mean
from jaxtrain.keys import Purpose, host_rng
from jaxtrain.phases import Run, diverged
from jaxtrain.structs import Examples, Learner, Networks, Params, TokenRows, Verdict
from jaxtrain.updates import LearnerConfig, fits

FITS = {"policy": Purpose.FIT_POLICY, "prm": Purpose.FIT_PRM}
NUM_RANKED = 10  # times that held-out problems are ranked in a fit
HELD_OUT, NONE = "held_out_auroc_within", np.zeros(0, np.float32)

_log = logging.getLogger(__name__)
is_finite = jax.jit(fits.all_finite)


def collect(run: Run, rounds: datasets.Rounds) -> tuple[Examples, Examples, dict[str, Any]]:
    """Make the rows of both networks as their objectives ask: (policy's, PRM's, counts)."""
    c = run.config
    rows_fn = datasets.ROWS[updates.policy.OBJECTIVES[c.updates.policy.objective].rows]
    if c.datasets.drop_false_steps and run.check is not None:
        rows_fn = datasets.without_false_steps(rows_fn, run.check)
    known = references(run, rounds) if c.datasets.learn_references else []
    settings = c.datasets, c.max_length, c.seed
    return datasets.collect(rounds, *settings, rows_fn, known)


def references(run: Run, rounds: datasets.Rounds) -> list[datasets.Text]:
    """Read the task's own solutions of the problems in use: those of several steps, as many as a
    trace may have, that the verifier takes; and starts with a wrong step, where they are asked for.
    """
    c, task, failures = run.config, run.task, []

    def verify(problem_id: int, response: str) -> Any:
        return task.verify(task.problems[problem_id], response)

    def is_right(problem_id: int, lines: Sequence[str]) -> bool:
        verdict = labels.ask(verify, problem_id, "\n".join(lines), failures)
        return verdict == Verdict.CORRECT

    batches = [
        s.prompts for i in datasets.newest(rounds, c.datasets.paths_rounds) for s in rounds[i]
    ]
    prompt_of = {
        int(batch.problem_id[b]): batch.tokens[b, : batch.length[b]]
        for batch in batches
        for b in np.flatnonzero(batch.problem_id >= 0)
    }

    # Steps are lines, and the last one ends the response.
    found, alike = [], defaultdict(list)
    for problem_id, prompt in prompt_of.items():
        shown = task.solution(task.problems[problem_id])
        lines = shown.response.split("\n") if shown else []
        if 1 < len(lines) <= c.trace.max_steps and is_right(problem_id, lines):
            steps = [task.tokenizer.encode(f"{line}\n") for line in lines[:-1]]
            steps.append([*task.tokenizer.encode(lines[-1]), task.tokenizer.end_id])
            targets = labels.of_reference(len(steps), c.labels)
            found.append(datasets.reference(problem_id, prompt, steps, targets))
            alike[len(steps)].append((problem_id, lines, steps))

    # A wrong step is that of the next solution of as many steps, unless it ends right as well. What
    # is right before it the solution itself teaches.
    for num_steps, known in alike.items() if c.datasets.learn_wrong_steps else ():
        for (problem_id, lines, steps), other in zip(known, known[1:] + known[:1], strict=True):
            for k, (line, step) in enumerate(zip(*other[1:], strict=True)):
                if line == lines[k] or is_right(problem_id, [*lines[:k], line]):
                    continue
                told = [*steps[:k], step], labels.of_reference(num_steps, c.labels, k)
                made = datasets.reference(problem_id, prompt_of[problem_id], *told)
                is_whole = k == num_steps - 1
                wrong = dict(is_correct=False, is_whole=is_whole, steps=made.steps[-1:])
                found.append(made._replace(**wrong))
    if failures:
        _log.warning("the verifier failed on %d solutions: %r", len(failures), failures[0])
    return found


def pack(run: Run, i: int, name: str, examples: Examples) -> Examples:
    """Pack the rows of a network, where that is asked, and log the tokens of both forms."""
    c, order = run.config.datasets, updates.prm.OBJECTIVES[run.config.updates.prm.objective].order
    if c.packed_tokens is None:
        return examples
    is_balanced = c.balance_outcomes and name == "prm" and order == "rows"
    packed = datasets.pack(examples, c.packed_tokens, is_balanced)
    forms = ("apart", examples.rows), ("packed", packed.rows)
    told = {f"num_{name}_tokens_{key}": int(np.count_nonzero(rows.until)) for key, rows in forms}
    run.log.append(i, named("datasets", told))
    return packed


def with_reference(run: Run, networks: Networks, examples: Examples) -> Examples:
    """Write down how likely the policy before the fit makes every token, if a loss asks for it."""
    learning, num_rows = run.config.updates.policy, datasets.num_rows(examples)
    if not updates.policy.OBJECTIVES[learning.objective].has_reference or not num_rows:
        return examples
    read = partial(run.fns.read_log_probs, networks.base, networks.policy)
    log_prob = read_all(read, examples.rows, learning.batch_size)
    return replace(examples, rows=replace(examples.rows, log_prob=log_prob))


def read_all(read: Callable[[TokenRows], Any], rows: TokenRows, size: int) -> np.ndarray:
    """Let a network read rows, `size` at a time: [E L] float32."""
    found, num_rows = [], len(rows.tokens)
    for first in range(0, num_rows, size):
        # The last batch is filled up from the front.
        at = np.arange(first, first + size) % num_rows
        told = read(jax.tree.map(lambda x, at=at: x[at], rows))
        found.append(np.asarray(told, np.float32))
    return np.concatenate(found)[:num_rows]


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
    examples, held = hold_out(run, i, name, examples)
    examples = examples if is_imitation else pack(run, i, name, examples)
    rates, batches = lay_out(run, i, name, examples, is_imitation)
    num_updates, learning = len(rates), getattr(run.config.updates, name)
    # the parts of it, which held-out problems are ranked after, or which are saved
    every, folder = run.config.checkpoints.num_updates, run.workdir.fits / str(i) / name
    ranked = [num_updates * k // NUM_RANKED for k in range(1, NUM_RANKED + 1)] if held else []
    stops = sorted({num_updates, *ranked, *range(every or num_updates, num_updates, every or 1)})
    is_saved = bool(every or ranked)
    # where it stood when it was interrupted, if it was
    with (
        FitCheckpoints(folder, not is_saved, run.workdir.run_key, run.progress.note) as saved,
        run.progress.phase(
            f"{name} updates", iteration=i, total=num_updates, unit="updates"
        ) as phase,
    ):
        if i > 1 and learning.init_from == "warm_start":
            learner = warm_learner(run, name, learner)
        learner, infos = saved.restore(learner, fits.NO_INFOS | ({HELD_OUT: NONE} if held else {}))

        # a run of updates that are not finite ends the run, wherever it was interrupted
        num_skipped = sum(1 for _ in takewhile(bool, infos["is_skipped"][::-1]))
        limit = min(run.config.updates.max_skipped, num_updates)

        def on_update(loss: float, is_skipped: bool) -> None:
            nonlocal num_skipped
            phase.advance(loss=loss)
            num_skipped = num_skipped + 1 if is_skipped else 0
            if num_skipped >= limit:
                what = f"{num_skipped} updates of the {name} in a row were not finite"
                raise diverged(run, i, f"{what}, so they were skipped")

        # part by part, each saved when it is done
        done = sum(1 for _ in islice(batches, len(infos["loss"])))
        phase.advance(done, is_restored=True)
        for stop in (stop for stop in stops if stop > done):
            learner, told = fits.fit(update, learner, batches, rates[done:stop], on_update)
            if not len(told["loss"]):
                break
            if not is_finite(learner):
                what = f"parameters or moments of the {name}"
                raise diverged(run, i, f"{what} are not finite after its updates")
            if held:
                told[HELD_OUT] = np.full(len(told["loss"]), np.nan, np.float32)
                if stop in ranked:
                    told[HELD_OUT][-1] = rank_ends(run, base, learner, held)
            infos = {key: np.concatenate([infos[key], told[key]]) for key in infos}
            done = len(infos["loss"])
            if is_saved:
                saved.save(learner, infos, best_of(infos))
        # with problems held out, back to where it ranked them best
        if (best := best_of(infos)) != done:
            learner = saved.go_back(best, learner)
    tell(run, i, name, infos, held, phase.seconds)
    return learner


def tell(
    run: Run, i: int, name: str, infos: dict[str, Any], held: Examples | None, seconds: float
) -> None:
    """Log what there is to tell of a fit."""
    told: dict[str, Any] = fits.summarise(infos)
    if told["is_skipped_fit"]:
        asked = getattr(run.config.updates, name).fit_of(i)
        why = "has no data" if fits.count_updates(asked, 1, 1) else "is asked for no updates"
        run.progress.note(f"iteration {i}: the {name} {why}, its fit is skipped")
    told["losses"] = [float(f"{loss:.6g}") for loss in infos["loss"]]
    if held:
        curve = infos[HELD_OUT][np.isfinite(infos[HELD_OUT])]
        told |= {HELD_OUT: curve.tolist(), "num_updates_kept": best_of(infos)}
        told["num_problems_held_out"] = len(np.unique(held.problem_id))
    run.log.append(i, {**named(f"updates/{name}", told), f"time/{name}_updates": seconds})


def hold_out(run: Run, i: int, name: str, examples: Examples) -> tuple[Examples, Examples | None]:
    """Part what the PRM is not to learn, the newest paths of some problems: (learnt, held out)."""
    newest = np.unique(examples.problem_id[examples.iteration == i])
    share = run.config.updates.prm.held_out if name == "prm" else 0.0
    # one at least, and something is left to learn
    size = min(max(round(share * len(newest)), share > 0), len(newest) - 1)
    if size <= 0:
        return examples, None
    chosen = host_rng(run.config.seed, Purpose.HELD_OUT, i).permutation(newest)[:size]
    is_held = np.isin(examples.problem_id, chosen)
    learnt = jax.tree.map(lambda x: x[~is_held], examples)
    return learnt, jax.tree.map(lambda x: x[is_held & (examples.iteration == i)], examples)


def rank_ends(run: Run, base: Params, prm: Learner, held: Examples) -> float:
    """Return the AUROC within a problem of the PRM's values at the ends of paths, NaN where none
    has right and wrong ones; an end is right where it is worth 1, whatever the kind of label.
    """
    read = partial(run.fns.read_values, base, prm.params)
    values = read_all(read, held.rows, run.config.updates.prm.batch_size)
    # A row is one path, which ends at its last label.
    ends = np.arange(len(values)), [np.flatnonzero(weight)[-1] for weight in held.rows.weight]
    is_right = held.rows.target[ends] > 1 - 1e-6
    return mean(within_problems(values[ends], is_right, held.problem_id)[0])


def best_of(infos: dict[str, np.ndarray]) -> int:
    """Return the number of updates after which held-out problems were first ranked best, all of
    them where none were.
    """
    ranks = infos.get(HELD_OUT, NONE)
    return int(np.nanargmax(ranks)) + 1 if np.isfinite(ranks).any() else len(infos["loss"])


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
        # packed rows are balanced in themselves
        d.balance_outcomes and name == "prm" and d.packed_tokens is None,
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
