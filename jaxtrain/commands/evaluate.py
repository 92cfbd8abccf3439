"""The command: `python -m jaxtrain.evaluate --workdir W --to DIR [--iteration K]
[--config.section.key=value]`.

Scores one checkpoint of a run on other problems, or with another budget, than the run did: other
templates or files by `--config.tasks...`, another split or more samples by
`--config.evaluation...`. Problems that the run trained on are left out. DIR becomes a run folder of
its own, with config, manifest, trees, metrics and report.html; the same command resumes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace

from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints, fingerprint
from jaxtrain.commands import Parser, command_line
from jaxtrain.compilation import keep_compiled
from jaxtrain.config import Config, check
from jaxtrain.errors import UserError
from jaxtrain.flags import override, read_flags
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import Run, score
from jaxtrain.progress import Progress
from jaxtrain.runs import list_facts, open_run, open_task, summary
from jaxtrain.tasks import Task, make_task
from jaxtrain.tasks.base import make_check
from jaxtrain.workdir import open_workdir

FREE = (
    "seed",
    "tasks",
    "prompts",
    "trace",
    "search",
    "evaluation",
    "sharding",
    "compilation",
)  # sections that may differ from the run's


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Score one checkpoint and write the report. Raises UserError."""
    parser = Parser(__doc__, to="the folder for what is found")
    options, overrides = parser.parse_known_args(arguments)
    path, iteration = options.workdir, options.iteration
    ran, manifest, pretrained = open_run(path)
    config = change(ran, overrides)
    learnt = open_task(path, ran, manifest, pretrained)
    asked = learnt if config.tasks == ran.tasks else make_task(config.tasks, learnt.tokenizer)
    task, num_learnt = leave_out(learnt, asked, config.evaluation.split)
    # Tokens and shots stay those that the run had.
    task = replace(task, demonstrations=learnt.demonstrations)
    check(config, task)
    told = [keep_compiled(config.compilation)]
    folder, key = path / "checkpoints", manifest["run_key"]
    with Checkpoints(
        folder, ran.checkpoints, key, is_read_only=True, note_fn=told.append
    ) as checkpoints:
        iteration = checkpoints.choose(iteration)
        facts = list_facts(config, task, pretrained)
        facts |= {
            "evaluated.run_key": manifest["run_key"],
            "evaluated.iteration": iteration,
            "evaluated.checkpoint_sha256": fingerprint(folder, iteration),
        }
        command = command_line("evaluate", arguments)
        with (
            open_workdir(options.to, asdict(config), facts, command) as workdir,
            MetricsLog(workdir.path) as log,
        ):
            progress = leaving.enter_context(Progress(iteration))
            for line in (*told, *workdir.notices):
                progress.note(line)
            # The shapes of a State are the run's; the problems may have others.
            here = replace(ran, sharding=config.sharding)
            started = build(here, learnt.tokenizer, progress, pretrained)
            abstract, base = started.abstract_state, started.init_base()
            networks = checkpoints.restore_networks(iteration, abstract, base)
            log.truncate(-1)
            if num_learnt:
                split = config.evaluation.split
                notice = f"{num_learnt} {split} problems are left out: the run trained on them"
                log.append(iteration, {"tasks/num_left_out": num_learnt, "tasks/notice": notice})
                progress.note(notice)
            told = {"commuting": task.commuting, "check": make_check(task, config.trace)}
            fns = build(config, learnt.tokenizer, progress, **told)
            run = Run(config, task, fns, workdir, log, progress, checkpoints)
            score(run, iteration, networks, MetricsLog(path))
            leaving.close()
    print(summary(workdir))


def leave_out(learnt: Task, task: Task, split: str) -> tuple[Task, int]:
    """Drop from a split what a run may have trained on. Returns (the task, how many problems were
    dropped).

    Raises UserError where nothing is left.
    """
    known = {
        text
        for row in (*learnt.train, *learnt.demonstrations)
        for text in (row.prompt, row.substance)
        if text
    }
    problems = getattr(task, split)
    kept = tuple(
        problem for problem in problems if known.isdisjoint((problem.prompt, problem.substance))
    )
    if problems and not kept:
        raise UserError(
            f"--config.tasks: the run trained on all {len(problems)} {split} problems; choose "
            "others"
        )
    return replace(task, **{split: kept}), len(problems) - len(kept)


def change(ran: Config, overrides: Sequence[str]) -> Config:
    """Apply overrides to a run's config.

    Raises UserError for a section that an evaluation cannot change, and for unseen templates that
    it may have seen.
    """
    config = override(asdict(ran), read_flags(overrides))
    for section in (field.name for field in fields(Config)):
        if section not in FREE and getattr(config, section) != getattr(ran, section):
            raise UserError(
                f"--config.{section}: is the run's own; an evaluation may differ in "
                f"{', '.join(FREE)}"
            )
    kinds = [replace(c.tasks.reasoning_gym, is_unseen=True) for c in (config, ran)]
    is_redrawn = kinds[0] != kinds[1] or config.tasks.seed != ran.tasks.seed
    if config.tasks.reasoning_gym.is_unseen and is_redrawn:
        raise UserError(
            "--config.tasks.reasoning_gym.is_unseen=True: other templates are held out with "
            "another dataset, unseen_share or tasks.seed than the run's; leave these three as they "
            "are"
        )
    return config
