"""Problems whose answers can be checked. Stands below the seven stages.

`make_task` is the face of this folder; a new kind of problem is a file of the user's own that
`config.name` names, with a function `make(config, tokenizer) -> Task`, or one beside these and a
line in `MAKERS`.
"""

import hashlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.errors import Count, Natural, Section, UserError, require
from jaxtrain.files import sha256
from jaxtrain.structs import Tokenizer
from jaxtrain.tasks.base import Demonstration, Problem, Task
from jaxtrain.tasks.countdown import CountdownConfig, countdown_task
from jaxtrain.tasks.jsonl import JsonlConfig, jsonl_task, list_parts
from jaxtrain.tasks.reasoning_gym import ReasoningGymConfig, reasoning_gym_task

MAKERS = {"countdown": countdown_task, "jsonl": jsonl_task, "reasoning_gym": reasoning_gym_task}


@dataclass(frozen=True)
class TasksConfig(Section, at="tasks"):
    """Which problems, and how many of them for what."""

    name: str = "countdown"  # countdown | jsonl | reasoning_gym | my_task.py:make, yours
    # problems to self-train on; none: all that the other sets leave
    num_train: Count | None = None
    # problems to tune on; none: 256, of a file at most a tenth of the rows
    num_dev: Natural | None = None
    # problems to report on; none: a whole test file, or 512, of a file at most a tenth of the rows
    num_test: Natural | None = None
    # demonstrations, on further problems; none: 8000, of a file at most 40 % of the rows
    num_demonstrations: Natural | None = None
    seed: int = 0  # draws the problems and the sets; not the seed of the run
    # a JSON object: parameters of the dataset of reasoning_gym, or of your function
    params: str = ""
    countdown: CountdownConfig = CountdownConfig()
    jsonl: JsonlConfig = JsonlConfig()
    reasoning_gym: ReasoningGymConfig = ReasoningGymConfig()

    def check(self) -> None:
        if self.file:  # found again from any folder
            object.__setattr__(self, "name", os.path.abspath(self.name))
        self.read_params()

    @property
    def file(self) -> str:
        """The Python file of a task of the user's own; empty for the tasks that are here."""
        return self.name.rpartition(":")[0]

    def read_params(self) -> dict[str, Any]:
        """Return the parameters as a dict. Raises UserError where they are no JSON object."""
        try:
            params = json.loads(self.params or "{}")
        except ValueError as error:
            raise UserError(f"--config.tasks.params={self.params}: no JSON ({error})") from error
        told = 'must be a JSON object such as {"max_terms": 3}'
        require(isinstance(params, dict), f"--config.tasks.params={self.params}", told)
        return params


def make_task(config: TasksConfig, tokenizer: Tokenizer | None = None) -> Task:
    """Make the task that `config.name` names, with its own tokenizer or the one given."""
    flag, file = f"--config.tasks.name={config.name}", config.file
    require(not file or os.path.isfile(file), flag, f"there is no file {file}")
    with own_code(flag) if file else nullcontext():
        sys.path += [os.path.dirname(file)] * bool(file)  # for what it imports beside it
        makers = runpy.run_path(file) if file else MAKERS
        make: Any = makers.get(config.name.removeprefix(f"{file}:"))
        known = f"{', '.join(sorted(MAKERS))}, and a function in a file as in my_task.py:make"
        require(callable(make), flag, f"unknown task; known are {known}")
        task = make(config, tokenizer)
        require(isinstance(task, Task), flag, f"made no Task but {task!r:.40}")
    told = "made a Task without a tokenizer; from scratch give it one, such as byte_tokenizer()"
    require(task.tokenizer is not None, flag, told)
    signs = task.commuting
    is_met = signs.isascii() and not any(sign.isalnum() for sign in signs)
    require(is_met, flag, f"commuting={signs!r} must be ASCII signs, no letters or digits")
    problems = (*task.train, *task.dev, *task.test)
    is_met = all(isinstance(p, Problem) and type(p.prompt) is type(p.gold) is str for p in problems)
    require(is_met, flag, "train, dev and test must hold Problems, with prompt and gold as texts")
    told = "an id must be an int from 0 on, below 2**31, and belong to one problem of all sets"
    is_met = all(type(p.id) is int and 0 <= p.id < 2**31 for p in problems)
    require(is_met and all(task.problems[p.id] == p for p in problems), flag, told)
    with own_code(flag) if file else nullcontext():
        try_verify(task)
    return task


@contextmanager
def own_code(flag: str) -> Iterator[None]:
    """Show where code of the user's own raises what it does, and end in one line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        told = f"ends with {type(error).__name__}: {error}; the lines above say where"
        raise UserError(f"{flag}: {told}") from error


def try_verify(task: Task) -> None:
    """Raise what a verifier raises on each of the first demonstrations, however unlike the problem:
    if it does so on all answers, too, a run would end with it behind the warm start.
    """
    failure = None
    for problem, shown in zip(task.train, task.demonstrations[:8], strict=False):
        try:
            task.verify(problem, shown.response)
            return
        except Exception as error:
            failure = error
    if failure:
        raise failure


def digest(task: Task) -> str:
    """Hash the problems of a task and their golds: a run belongs to them, whatever made them."""
    problems = [(p.id, p.prompt, p.gold) for p in (*task.train, *task.dev, *task.test)]
    return hashlib.sha256(json.dumps(problems).encode()).hexdigest()


def file_hashes(config: TasksConfig) -> dict[str, str]:
    """Hash the files of a task, code of the user's own too. Raises UserError."""
    hashes, files = {}, config.jsonl
    named = {"name": config.file, "jsonl.path": files.path, "jsonl.test_path": files.test_path}
    for key, path in named.items():
        try:
            parts = [sha256(part) for part in list_parts(path)] if path else []
            hashes |= {f"tasks.{key}.sha256": "-".join(parts)} if parts else {}
        except OSError as error:
            told = f"--config.tasks.{key}={path}: cannot be read ({error.strerror})"
            raise UserError(told) from error
    return hashes
