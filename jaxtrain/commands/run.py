"""The command: `jaxtrain --config configs/quickstart.py [--workdir DIR] [--config.section.key=value] [--plan]`.

The same command resumes, after any interruption. `--plan` says what the run would need and compiles it, without
running (`plan.py`). Whatever a user can put right ends as one line and exit code 2, before anything is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from jaxtrain.build import check
from jaxtrain.commands import command_line
from jaxtrain.flags import list_keys, parse
from jaxtrain.iteration import run_loop
from jaxtrain.progress import Progress
from jaxtrain.prompts import fix_date
from jaxtrain.runs import list_facts, open_model, summary
from jaxtrain.tasks import Task, make_task
from jaxtrain.workdir import Workdir, open_workdir, read_old


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Run or resume. Raises UserError."""
    if {"--help", "-help", "-h"} & set(arguments):
        print(usage())
        return
    config, path = parse(["jaxtrain", *arguments])
    config, pretrained = open_model(config)
    # A chat template may tell the day: it stays that of the first start.
    old_config, _ = read_old(Path(path).expanduser())
    config = replace(config, prompts=fix_date(config.prompts, old_config.get("prompts", {}).get("date", "")))
    task = make_task(config.tasks, pretrained.tokenizer if pretrained else None)
    check(config, task)
    facts = list_facts(config, task, pretrained)
    with open_workdir(path, asdict(config), facts, command_line("run", arguments)) as workdir:
        progress = leaving.enter_context(Progress(config.loop.num_iterations))
        tell_what_is_odd(task, workdir, progress)
        run_loop(config, task, workdir, progress, pretrained)
        leaving.close()
    print(summary(workdir))


def usage() -> str:
    """Say what the command does, and list all keys with their defaults and remarks."""
    return f"{inspect.cleandoc(__doc__ or '')}\n\nKeys, their defaults, and what they are:\n\n" + "\n".join(list_keys())


def tell_what_is_odd(task: Task, workdir: Workdir, progress: Progress) -> None:
    """Note what changed since the last start or is missing, and the rows of the data that were skipped."""
    for notice in workdir.notices:
        progress.note(notice)
    if task.notice:
        progress.note(task.notice)
