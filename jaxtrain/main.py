"""The command: `python -m jaxtrain.main --config configs/quickstart.py [--workdir DIR] [--config.section.key=value]`.

`--plan` says what the run would need and compiles it, without running (`plan.py`).
The same command resumes, after any interruption. Whatever a user can put right ends as one line and exit code 2, before
anything is written.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxtrain.build import Config, check
from jaxtrain.errors import UserError
from jaxtrain.flags import list_keys, parse, read_config
from jaxtrain.hub import Pretrained, open_pretrained, resolve
from jaxtrain.iteration import run_loop
from jaxtrain.metrics import MetricsLog
from jaxtrain.plan import plan
from jaxtrain.progress import Progress
from jaxtrain.prompts import fix_date
from jaxtrain.sharding import ShardingConfig
from jaxtrain.tasks import Task, digest, file_hashes, make_task
from jaxtrain.workdir import Workdir, open_workdir, read_json


def main(argv: Sequence[str]) -> int:
    """Run or resume. Returns the exit code: 0 done, 1 an error of ours, 2 of the user's, 130 or 143 stopped."""
    command = shlex.join(["python", "-m", "jaxtrain.main", *argv[1:]])
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(usage())
        return 0
    if "--plan" in argv:
        return tell_plan([argument for argument in argv if argument != "--plan"])
    path = "the run folder"
    try:
        config, path = parse(argv)
        config, pretrained = open_model(config)
        config = replace(config, prompts=fix_date(config.prompts, date_of(path)))
        task = make_task(config.tasks, pretrained.tokenizer if pretrained else None)
        check(config, task)
        with (
            open_workdir(path, asdict(config), list_facts(config, task, pretrained)) as workdir,
            Progress(config.loop.num_iterations) as progress,
            leave_at_signal(command, progress.close),
        ):
            tell_what_is_odd(task, workdir, progress)
            run_loop(config, task, workdir, progress, pretrained)
        print(summary(workdir))
    except UserError as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        complain(f"stopped; start again with: {command}")
        return 130
    except Exception:
        traceback.print_exc()
        complain(f"an unexpected error; {path} keeps all that is finished, and the same command resumes: {command}")
        return 1
    return 0


def tell_plan(argv: Sequence[str]) -> int:
    """Print what a run would need. Returns the exit code: 0 it fits, 2 it does not or cannot be known."""
    try:
        config, _ = parse(argv)
        try:
            config, _ = open_model(config)
        except UserError as error:
            if not config.model.vocab_size:
                raise
            print(f"planned by the shape in the config, since the model cannot be opened: {error}\n")
        if not config.model.vocab_size:
            config = replace(
                config, model=replace(config.model, vocab_size=make_task(config.tasks).tokenizer.vocab_size)
            )
        with Progress(0) as progress:
            for line in plan(config, progress):
                print(line, flush=True)
    except UserError as error:
        complain(error)
        return 2
    return 0


def open_model(config: Config) -> tuple[Config, Pretrained | None]:
    """Open the pretrained model that a config names, and take over its shape. Raises UserError."""
    if not config.hub.pretrained:
        return config, None
    pretrained = open_pretrained(config.hub)
    return replace(config, model=resolve(config.model, pretrained)), pretrained


def date_of(path: str) -> str:
    """Return the day that the run in a folder tells its chats; empty where there is none."""
    config = Path(path) / "config.json"
    return read_json(config).get("prompts", {}).get("date", "") if config.is_file() else ""


def list_facts(config: Config, task: Task, pretrained: Pretrained | None) -> dict[str, Any]:
    """List what a run depends on besides its config: hashes of its data, its problems and its pretrained model."""
    hashes = {**file_hashes(config.tasks), "tasks.problems.sha256": digest(task)}
    hashes |= {"prompts.date": config.prompts.date} if config.prompts.date else {}
    return hashes | dict(pretrained.hashes if pretrained else {})


def open_run(path: Path) -> tuple[Config, dict[str, Any], Pretrained | None]:
    """Open a run that is there, to read it alone. Returns (its config, its manifest, the model it started from).

    The config is for the devices here. Raises UserError where it is no run, or its model is not what it was.
    """
    for name in ("config.json", "manifest.json"):
        if not (path / name).is_file():
            raise UserError(f"--workdir {path}: holds no {name}, so it is no run")
    config, manifest = read_config(ConfigDict(read_json(path / "config.json"))), read_json(path / "manifest.json")
    pretrained = open_pretrained(config.hub) if config.hub.pretrained else None
    hashes = pretrained.hashes if pretrained else {}
    started = {name: value for name, value in manifest["facts"].items() if name.startswith("hub/")}
    for name in sorted(started.keys() | hashes.keys()):
        if started.get(name) != hashes.get(name):
            raise UserError(f"{config.hub.pretrained}: {name} is not what it was when {path} started from it")
    return replace(config, sharding=ShardingConfig()), manifest, pretrained


def open_task(path: Path, config: Config, manifest: dict[str, Any], pretrained: Pretrained | None) -> Task:
    """Make the task of a run anew. Raises UserError where its problems are not those that it trained on."""
    task = make_task(config.tasks, pretrained.tokenizer if pretrained else None)
    if digest(task) != manifest["facts"]["tasks.problems.sha256"]:
        raise UserError(
            f"--workdir {path}: its config no longer makes the problems that it trained on, so none can be told to be "
            "held out; take the jaxtrain and the data of its manifest.json"
        )
    return task


def usage() -> str:
    """Say what the command does, and list all keys with their defaults and remarks."""
    return f"{inspect.cleandoc(__doc__ or '')}\n\nKeys, their defaults, and what they are:\n\n" + "\n".join(list_keys())


def tell_what_is_odd(task: Task, workdir: Workdir, progress: Progress) -> None:
    """Note what changed since the last start, and the rows of the data that were skipped."""
    for notice in workdir.notices:
        progress.note(f"changed since the last start: {notice}")
    if task.notice:
        progress.note(task.notice)


def summary(workdir: Workdir) -> str:
    """Say in two lines what came of a run."""
    with MetricsLog(workdir.path) as log:
        rows = [row for row in log.read() if "evaluation/greedy/accuracy" in row]

    def told(row: dict[str, Any]) -> str:
        share, low, high = (row[f"evaluation/greedy/{name}"] for name in ("accuracy", "low", "high"))
        return f"{share:.1%} [{low:.1%}, {high:.1%}] after iteration {row['iteration']}"

    told_rows = " -> ".join(told(row) for row in (rows[:1] if len(rows) < 2 else (rows[0], rows[-1])))
    return f"greedy accuracy {told_rows} ({rows[-1]['evaluation/greedy/num_problems']} problems)\n{workdir.report}"


@contextlib.contextmanager
def leave_at_signal(command: str, close_fn: Callable[[], None]) -> Iterator[None]:
    """Leave at once on SIGINT or SIGTERM, with one line: `close_fn` clears the terminal, exit code 128 + signal.

    A Python signal handler waits for the compiled call that is under way, which may take minutes; a thread that is
    woken through a pipe does not. A run may be killed at any instant, so it has nothing else to put in order.
    """
    leaving = (signal.SIGINT, signal.SIGTERM)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        while number := os.read(reader, 1):
            if number[0] in leaving:
                close_fn()
                complain(f"stopped by {signal.Signals(number[0]).name}; the same command resumes: {command}")
                os._exit(128 + number[0])
        os.close(reader)

    old_handlers = {number: signal.signal(number, lambda *_: None) for number in leaving}
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=wait, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(writer)


def complain(what: object) -> None:
    """Write one line to stderr."""
    print("jaxtrain:", " ".join(str(what).split()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
