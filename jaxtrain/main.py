"""The command: `python -m jaxtrain.main --config configs/quickstart.py [--workdir DIR] [--config.section.key=value]`.

The same command resumes, after any interruption. Flags become frozen dataclasses at once; nothing below this file has
heard of flags. Whatever a user can put right ends as one line and exit code 2, before anything is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import os
import re
import runpy
import shlex
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxtrain.build import Config, check
from jaxtrain.errors import UserError
from jaxtrain.iteration import run_loop
from jaxtrain.metrics import MetricsLog
from jaxtrain.progress import Progress
from jaxtrain.tasks import Task, TasksConfig, make_task
from jaxtrain.workdir import Workdir, open_workdir

EXAMPLE = "--config configs/quickstart.py"
FLAGS = ("config", "workdir", "help")


def main(argv: Sequence[str]) -> int:
    """Run or resume. Returns the exit code: 0 done, 1 an error of ours, 2 of the user's, 130 or 143 stopped."""
    command = shlex.join(["python", "-m", "jaxtrain.main", *argv[1:]])
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(usage())
        return 0
    path = "the run folder"
    try:
        config, path = parse(argv)
        task = make_task(config.tasks)
        check(config, task)
        with (
            open_workdir(path, asdict(config), file_hashes(config.tasks)) as workdir,
            Progress(config.loop.num_iterations) as progress,
            leave_at_signal(command, progress.close),
        ):
            tell_what_is_odd(task, workdir, progress)
            run_loop(config, task, workdir, progress)
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


def parse(argv: Sequence[str]) -> tuple[Config, str]:
    """Read the command line, program name first. Returns the config and the run folder. Raises UserError."""
    try:
        ours = flags.FlagValues()
        ours.set_gnu_getopt(True)
        file = flags.DEFINE_string("config", None, "", flag_values=ours)
        folder = flags.DEFINE_string("workdir", None, "", flag_values=ours)
        rest = ours(list(argv), known_only=True)
        for argument in rest[1:]:
            check_argument(argument)
        if not file.value:
            raise UserError(f"--config is missing; for a first run: {EXAMPLE}")
        overrides = flags.FlagValues()
        overrides.set_gnu_getopt(True)
        values = config_flags.DEFINE_config_dict("config", load(file.value), flag_values=overrides, sys_argv=rest)
        stray = overrides(rest)[1:]
    except flags.Error as error:
        raise UserError(f"{error}; --help lists all keys") from error
    if stray:
        raise UserError(f"{stray[0]} is no flag; a config file is named by --config, a value set by --config.key=value")
    config = read_config(values.value)
    stem = Path(file.value.split(":")[0]).stem
    return config, folder.value or f"runs/{stem}/seed_{config.seed}"


def load(file: str) -> ConfigDict:
    """Call `get_config` of a Python file; what follows a colon in `file` is its argument. Raises UserError."""
    path, *argument = file.split(":", 1)
    if not Path(path).is_file():
        others = nearest(Path(path).name, (other.name for other in Path(path).parent.glob("*.py")))
        there = f"; {Path(path).parent} has {', '.join(others)}" if others else f"; for a first run: {EXAMPLE}"
        raise UserError(f"--config {path}: no such file{there}")
    try:
        names = runpy.run_path(path)
        value = names["get_config"](*argument) if "get_config" in names else None
    except Exception as error:
        lines = [f":{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        is_elsewhere = isinstance(error, ModuleNotFoundError) and error.name == "configs"
        hint = "; start from the folder that holds configs/" if is_elsewhere else ""
        raise UserError(f"--config {path}{''.join(lines[-1:])}: {type(error).__name__}: {error}{hint}") from error
    if not isinstance(value, ConfigDict):
        raise UserError(f"--config {path}: has no get_config that returns a ConfigDict; see configs/quickstart.py")
    return value


def read_config(value: ConfigDict, cls: type = Config, section: str = "config") -> Any:
    """Turn a ConfigDict into frozen dataclasses. Raises UserError for a key or a value that does not belong."""
    hints = typing.get_type_hints(cls)
    for name in value:
        if name not in hints:
            raise UserError(unknown_key(section, name, hints))
    for name in hints:
        if name not in value:
            raise UserError(f"--{section}.{name} is missing from the config file; see configs/base.py")
    return cls(**{name: read_value(value[name], hint, f"{section}.{name}") for name, hint in hints.items()})


def read_value(value: Any, hint: Any, key: str) -> Any:
    """Check one value of a config against the type of its field. Raises UserError."""
    if isinstance(value, ConfigDict) and hint not in (bool, int, float, str):
        return read_config(value, hint, key)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"--{key}={value!r}: must be of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{key}={value}: must be a finite number")
    return value


def check_argument(argument: str) -> None:
    """Refuse a flag that is neither ours nor a key of the config. Raises UserError naming its neighbours."""
    match = re.fullmatch(r"--?([a-zA-Z][^=]*)(=.*)?", argument, re.DOTALL)
    if match is None:
        return
    section, *names = re.sub(r"^noconfig\.", "config.", match[1]).split(".")
    if section != "config":
        raise UserError(f"--{match[1]} is unknown; flags: {', '.join(f'--{name}' for name in nearest(section, FLAGS))}")
    cls: Any = Config
    for name in names:
        if not is_dataclass(cls):
            raise UserError(f"--{match[1]} is unknown: {section} is a value, not a section")
        hints = typing.get_type_hints(cls)
        if name not in hints:
            raise UserError(unknown_key(section, name, hints))
        section, cls = f"{section}.{name}", hints[name]
    if is_dataclass(cls):
        raise UserError(f"--{section} is a section; its keys: {', '.join(f.name for f in fields(cls))}")


def unknown_key(section: str, name: str, known: Iterable[str]) -> str:
    """Name the neighbours of a misspelt key, nearest first."""
    return f"--{section}.{name} is unknown; keys of {section}: {', '.join(nearest(name, known))}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Sort names by likeness to one."""
    return sorted(known, key=lambda other: -SequenceMatcher(None, name, other).ratio())


def usage() -> str:
    """Say what the command does, and list all keys with their defaults and remarks."""
    return f"{inspect.cleandoc(__doc__ or '')}\n\nKeys, their defaults, and what they are:\n\n" + "\n".join(list_keys())


def list_keys(config: Any = None, section: str = "config") -> Iterator[str]:
    """Yield a line for every key of a config; the remarks are those beside the fields."""
    config = Config() if config is None else config
    remarks = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(type(config)), re.MULTILINE))
    for name, value in vars(config).items():
        if is_dataclass(value):
            yield from list_keys(value, f"{section}.{name}")
        else:
            yield f"  {f'--{section}.{name}={value}':50}  {remarks.get(name, '')}".rstrip()


def file_hashes(config: TasksConfig) -> dict[str, str]:
    """Hash the data files of a task: a run belongs to their content. Raises UserError for one that cannot be read."""
    hashes = {}
    for key, path in (("path", config.path), ("test_path", config.test_path)):
        if path:
            try:
                with open(path, "rb") as file:
                    hashes[f"tasks.{key}.sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"--config.tasks.{key}={path}: cannot be read ({error.strerror})") from error
    return hashes


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
