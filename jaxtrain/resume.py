"""What a start finds in its run folder. Stands beside the phases.

The iteration is the atom of resume: `iteration.run_loop` goes on from the newest good checkpoint,
and what is said here is what that means for the user.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxtrain.errors import UserError
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import Run


def tell_resume(run: Run, newest: int | None) -> Iterator[str]:
    """Say what a start finds in its run folder: where it goes on, what is used again, and what is
    missing.

    Raises UserError where iterations were scored and no checkpoint is left of them: nothing begins
    again unasked.
    """
    told = run.log.last("evaluation/")
    if newest is None and (told >= 0 or run.workdir.report.exists()):
        raise UserError(
            f"{run.workdir.path}: metrics.jsonl or report.html tells of a checkpoint, and none is "
            "there; restore checkpoints/ from a copy, or use another --workdir"
        )
    if newest is not None:
        if told > newest:
            gone = f"the checkpoint of iteration {told} is gone"
            yield f"{gone}; what came after iteration {newest} is done again"
        yield f"resuming after iteration {newest} in {run.workdir.path}"
        if lacking := [i for i in range(newest + 1) if not is_whole(run.log, i, newest)]:
            numbers = ", ".join(map(str, lacking))
            yield f"metrics.jsonl lacks rows of iterations {numbers}: what they told is lost"
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
