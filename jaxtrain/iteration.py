"""The seven stages composed: `iterate` is one turn of the loop, `run_loop` all of them.

Iteration 0 is the warm start, checkpointed and scored like the others. The iteration is the atom of
resume: what was interrupted is done again with the same keys, finished shards of trees and saved
parts of fits are reused, and every draw is a function of (seed, iteration, purpose, problem). So a
resumed run ends where an undisturbed one does, bit for bit.
"""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints
from jaxtrain.config import Config
from jaxtrain.errors import require
from jaxtrain.evaluation import named
from jaxtrain.hub import Pretrained
from jaxtrain.keys import Purpose
from jaxtrain.learning import collect, fit, with_reference
from jaxtrain.memory import give_back
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import Run, draw, earlier_rounds, encode_demonstrations, grow, score
from jaxtrain.progress import Progress
from jaxtrain.structs import Networks, Params, State
from jaxtrain.tasks import Task
from jaxtrain.workdir import Workdir


def iterate(state: State, run: Run) -> State:
    """Turn the loop once: prompts, search, labels, datasets, updates.

    Checkpoint and evaluation are `run_loop`'s.
    """
    i = int(state.iteration) + 1
    # prompts and search
    batches, num_too_long = draw(run, i)
    shards = grow(run, i, batches, state.networks)
    # what is learnt from, of this iteration and those before
    rounds = {**earlier_rounds(run, i), i: shards}
    texts, paths, counts = collect(run, rounds)
    texts = with_reference(run, state.networks, texts)
    run.log.append(i, {"prompts/num_too_long": num_too_long, **named("datasets", counts)})
    # updates
    policy = fit(run, i, "policy", state.base, state.policy, texts)
    prm = fit(run, i, "prm", state.base, state.prm, paths)
    return State(np.asarray(i, np.int32), state.base, policy, prm)


def warm_start(run: Run, base: Params) -> State:
    """Make iteration 0: the policy learns demonstrations (D_S0), the PRM its trees (D_V0)."""
    fns = run.fns
    # the policy, from demonstrations
    shown, num_demonstrations_too_long = encode_demonstrations(run, run.task.demonstrations)
    key = fns.problem_keys(0, int(Purpose.INIT), np.zeros(1, np.int32))[0]
    policy = fit(run, 0, "policy", base, fns.init_policy(key), shown, is_imitation=True)
    prm = fns.init_prm(policy.params)

    # the PRM, from the first trees of that policy
    batches, num_too_long = draw(run, 0)
    shards = grow(run, 0, batches, Networks(base, policy.params, prm.params))
    _, paths, counts = collect(run, {0: shards})
    told = {
        "prompts/num_too_long": num_too_long,
        "prompts/num_demonstrations_too_long": num_demonstrations_too_long,
        **named("tasks", {**run.task.counts, "notice": run.task.notice}),
        **named("datasets", counts),
    }
    run.log.append(0, told)
    prm = fit(run, 0, "prm", base, prm, paths)
    return State(np.asarray(0, np.int32), base, policy, prm)


def run_loop(
    config: Config,
    task: Task,
    workdir: Workdir,
    progress: Progress,
    pretrained: Pretrained | None = None,
) -> State:
    """Run to the last iteration, from wherever the run folder stands."""
    fns = build(config, task, progress, pretrained)
    with (
        Checkpoints(
            workdir.checkpoints, config.checkpoints, workdir.run_key, note_fn=progress.note
        ) as checkpoints,
        MetricsLog(workdir.path, config.loop.writers, asdict(config)) as log,
    ):
        run = Run(config, task, fns, workdir, log, progress, checkpoints)

        # where the run folder stands, and that its disk has room
        newest = checkpoints.newest()
        abstract = fns.abstract_state
        checkpoints.require_space((abstract.policy, abstract.prm))
        for notice in tell_resume(run, newest):
            progress.note(notice)
        is_scored = log.truncate(-1 if newest is None else newest, is_told=workdir.report.exists())
        base, state = fns.init_base(), None
        if newest is not None:
            state = checkpoints.restore(newest, abstract, base)
            workdir.remove_fits(int(state.iteration))
            if not is_scored:
                score(run, int(state.iteration), state.networks)

        while state is None or int(state.iteration) < config.loop.num_iterations:
            state = warm_start(run, base) if state is None else iterate(state, run)
            checkpoints.save(state)
            workdir.remove_fits(int(state.iteration))
            give_back()
            score(run, int(state.iteration), state.networks)
            checkpoints.prune()  # not before: what cannot be scored must not push a good one out
    return state


def tell_resume(run: Run, newest: int | None) -> Iterator[str]:
    """Say what a start finds in its run folder: where it goes on, and what is missing.

    Raises UserError where iterations were scored and no checkpoint is left: nothing begins again
    unasked.
    """
    told = run.log.last("evaluation/")
    is_new = newest is not None or (told < 0 and not run.workdir.report.exists())
    then = "restore checkpoints/ from a copy, or use another --workdir"
    what = "metrics.jsonl or report.html tells of a checkpoint, and none is there"
    require(is_new, run.workdir.path, f"{what}; {then}")
    if newest is not None:
        if told > newest:
            then = f"what came after iteration {newest} is done again"
            yield f"the checkpoint of iteration {told} is gone; {then}"
        yield f"resuming after iteration {newest} in {run.workdir.path}"
        # what every iteration leaves in the log; the newest may be still to be scored
        learnt = {"time/search", "updates/policy/", "updates/prm/"}
        kept = {i: learnt | ({"evaluation/"} if i < newest else set()) for i in range(newest + 1)}
        if gone := [i for i, keys in kept.items() if not all(run.log.has(i, key) for key in keys)]:
            numbers = ", ".join(map(str, gone))
            yield f"metrics.jsonl lacks rows of iterations {numbers}: what they told is lost"
    under_way = 0 if newest is None else newest + 1
    if run.log.last("") > under_way:
        yield f"rows of metrics.jsonl that tell of later iterations than {under_way} are cut"
    if run.workdir.num_starts > 1 and under_way <= run.config.loop.num_iterations:
        fits = "saved fits go on"
        if not (run.config.checkpoints.num_updates or run.workdir.fits.exists()):
            fits = "its fits begin again (--config.checkpoints.num_updates saves them on their way)"
        yield f"iteration {under_way}: what is finished of its trees is used again, {fits}"
