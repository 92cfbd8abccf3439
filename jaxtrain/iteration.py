"""The seven stages composed: `iterate` is one turn of the loop, `run_loop` all of them.

Iteration 0 is the warm start, checkpointed and scored like the others. The iteration is the atom of
resume: what was interrupted is done again with the same keys, finished shards of trees and saved
parts of fits are reused, and every draw is a function of (seed, iteration, purpose, problem). So a
resumed run ends where an undisturbed one does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxtrain import datasets, prompts
from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.hub import Pretrained
from jaxtrain.keys import Purpose
from jaxtrain.memory import give_back
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import Run, fit, grow, named, score
from jaxtrain.progress import Progress
from jaxtrain.structs import State
from jaxtrain.tasks import Task
from jaxtrain.workdir import Workdir


def iterate(state: State, run: Run) -> State:
    """Turn the loop once: prompts, search, labels, datasets, updates.

    Checkpoint and evaluation are `run_loop`'s.
    """
    i, c, fns = int(state.iteration) + 1, run.config, run.fns
    problems = prompts.draw(run.task.train, c.prompts.num_problems, c.seed, i)
    batches, num_too_long = run.encode(problems)
    shards = grow(run, i, batches, state.policy, state.prm)
    replay, kept = datasets.add(state.replay, shards, i, c.datasets, c.seed)
    run.log.append(i, {"prompts/num_too_long": num_too_long, **named("datasets", kept)})
    policy = fit(run, i, "policy", fns.update_policy, state.policy, replay.traces)
    prm = fit(run, i, "prm", fns.update_prm, state.prm, replay.paths)
    return State(np.asarray(i, np.int32), policy, prm, replay)


def warm_start(run: Run) -> State:
    """Make iteration 0: the policy learns the demonstrations (D_S0), the PRM the warm policy's
    first trees (D_V0).
    """
    c, fns = run.config, run.fns
    rows, num_too_long = run.encode_demonstrations(run.task.demonstrations)
    key = fns.problem_keys(0, int(Purpose.INIT), np.zeros(1, np.int32))[0]
    policy = fit(run, 0, "policy", fns.update_policy, fns.init_policy(key), rows)
    prm = fns.init_prm(policy.params)

    problems = prompts.draw(run.task.train, c.prompts.num_first_problems, c.seed, 0)
    batches, num_prompts_too_long = run.encode(problems)
    shards = grow(run, 0, batches, policy, prm)
    empty = datasets.empty_replay(c.datasets, c.max_length, c.search.max_steps)
    replay, kept = datasets.add(empty, shards, 0, c.datasets, c.seed)
    counts = {
        "prompts/num_too_long": num_prompts_too_long,
        "prompts/num_demonstrations_too_long": num_too_long,
    }
    told = named("tasks", {**run.task.counts, "notice": run.task.notice})
    run.log.append(0, {**counts, **told, **named("datasets", kept)})
    prm = fit(run, 0, "prm", fns.update_prm, prm, replay.paths)
    return State(np.asarray(0, np.int32), policy, prm, replay)


def run_loop(
    config: Config,
    task: Task,
    workdir: Workdir,
    progress: Progress,
    pretrained: Pretrained | None = None,
) -> State:
    """Run to the last iteration, from wherever the run folder stands."""
    fns = build(config, task.tokenizer, progress, pretrained)
    with (
        Checkpoints(
            workdir.checkpoints, config.checkpoints, workdir.run_key, note_fn=progress.note
        ) as checkpoints,
        MetricsLog(workdir.path) as log,
    ):
        run = Run(config, task, fns, workdir, log, progress)
        newest = checkpoints.newest()
        checkpoints.require_space(fns.abstract_state)
        for notice in tell_resume(run, newest):
            progress.note(notice)
        is_scored = log.truncate(-1 if newest is None else newest, is_told=workdir.report.exists())
        state = None if newest is None else checkpoints.restore(newest, fns.abstract_state)
        if state is not None:
            workdir.remove_fits(int(state.iteration))
            if not is_scored:
                score(state, run)
        while state is None or int(state.iteration) < config.loop.num_iterations:
            state = warm_start(run) if state is None else iterate(state, run)
            checkpoints.save(state)
            workdir.remove_fits(int(state.iteration))
            give_back()
            score(state, run)
            checkpoints.prune()  # not before: what cannot be scored must not push a good one out
    return state


def tell_resume(run: Run, newest: int | None) -> Iterator[str]:
    """Say what a start finds in its run folder: where it goes on, what is used again, and what is
    missing.

    Raises UserError where iterations were scored and no checkpoint is left of them: nothing begins
    again unasked.
    """
    told = run.log.last("evaluation/")
    if newest is None and (told >= 0 or run.workdir.report.exists()):
        raise UserError(
            f"{run.workdir.path}: metrics.jsonl or report.html tells of a checkpoint, and none is there; restore "
            "checkpoints/ from a copy, or use another --workdir"
        )
    if newest is not None:
        if told > newest:
            yield f"the checkpoint of iteration {told} is gone; what came after iteration {newest} is done again"
        yield f"resuming after iteration {newest} in {run.workdir.path}"
        if lacking := [i for i in range(newest + 1) if not is_whole(run.log, i, newest)]:
            yield f"metrics.jsonl lacks rows of iterations {', '.join(map(str, lacking))}: what they told is lost"
    under_way = 0 if newest is None else newest + 1
    if run.log.last("") > under_way:
        yield f"rows of metrics.jsonl that tell of later iterations than {under_way} are cut"
    if run.workdir.num_starts > 1 and under_way <= run.config.loop.num_iterations:
        fits = "saved fits go on"
        if not run.config.checkpoints.num_updates:
            fits = "its fits begin again (--config.checkpoints.num_updates saves them on their way)"
        yield f"iteration {under_way}: what is finished of its trees is used again, {fits}"


def is_whole(log: MetricsLog, i: int, newest: int) -> bool:
    """Say whether the log has what every iteration leaves there; the newest may be still to be
    scored.
    """
    prefixes = ["time/search", "updates/policy/", "updates/prm/"] + ["evaluation/"] * (i < newest)
    return all(log.has(i, prefix) for prefix in prefixes)
