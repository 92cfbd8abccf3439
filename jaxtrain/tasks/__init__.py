"""Problems whose answers can be checked. Stands below the seven stages.

`make_task` is the face of this folder; a new kind of problem is a file of the user's own that
`config.name` names, with a function `make(config, tokenizer) -> Task`, or one beside these and a
line in `MAKERS`.
"""

import hashlib
import json
import os
import runpy
from pathlib import Path

from jaxtrain.errors import UserError
from jaxtrain.files import sha256
from jaxtrain.structs import Tokenizer
from jaxtrain.tasks.base import Demonstration, Problem, Task
from jaxtrain.tasks.config import TasksConfig
from jaxtrain.tasks.countdown import countdown_task
from jaxtrain.tasks.jsonl import jsonl_task, list_parts
from jaxtrain.tasks.reasoning_gym import reasoning_gym_task

MAKERS = {"countdown": countdown_task, "jsonl": jsonl_task, "reasoning_gym": reasoning_gym_task}


def make_task(config: TasksConfig, tokenizer: Tokenizer | None = None) -> Task:
    """Make the task that `config.name` names, with its own tokenizer or the one given."""
    flag = f"--config.tasks.name={config.name}"
    if config.file and not os.path.isfile(config.file):
        raise UserError(f"{flag}: there is no file {config.file}")
    try:
        makers = runpy.run_path(config.file) if config.file else MAKERS
    except SystemExit as error:  # any other error is the user's own to read, with its traceback
        raise UserError(f"{flag}: {config.file} exits with {error}") from error
    make = makers.get(config.name.removeprefix(f"{config.file}:"))
    if not callable(make):
        known = f"{', '.join(sorted(MAKERS))}, and a function in a file as in my_task.py:make"
        raise UserError(f"{flag}: unknown task; known are {known}")
    task = make(config, tokenizer)
    if not isinstance(task, Task):
        raise UserError(f"{flag}: made no Task but {task!r:.40}")
    return task


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
