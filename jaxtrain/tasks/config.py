"""The config of a task: what all kinds of problems share, and a section for each kind."""

import json
import os
from dataclasses import dataclass
from typing import Any

from jaxtrain.errors import UserError, require_at_least
from jaxtrain.tasks.countdown import CountdownConfig
from jaxtrain.tasks.jsonl import JsonlConfig
from jaxtrain.tasks.reasoning_gym import ReasoningGymConfig


@dataclass(frozen=True)
class TasksConfig:
    """Which problems, and how many of them for what."""

    name: str = "countdown"  # countdown | jsonl | reasoning_gym | my_task.py:make, yours
    # problems to self-train on; none: all that the other sets leave
    num_train: int | None = None
    # problems to tune on; none: 256, of a file at most a tenth of the rows
    num_dev: int | None = None
    # problems to report on; none: a whole test file, or 512, of a file at most a tenth of the rows
    num_test: int | None = None
    # traces of D_S0, on further problems; none: 8000, of a file at most 40 % of the rows
    num_demonstrations: int | None = None
    seed: int = 0  # draws the problems and the sets; not the seed of the run
    # a JSON object: parameters of the dataset of reasoning_gym, or of your function
    params: str = ""
    countdown: CountdownConfig = CountdownConfig()
    jsonl: JsonlConfig = JsonlConfig()
    reasoning_gym: ReasoningGymConfig = ReasoningGymConfig()

    def __post_init__(self):
        if self.file:  # found again from any folder
            object.__setattr__(self, "name", os.path.abspath(self.name))
        self.read_params()
        require_at_least(1, "tasks", self, "num_train")
        require_at_least(0, "tasks", self, "num_dev", "num_test", "num_demonstrations")

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
        if not isinstance(params, dict):
            example = 'a JSON object such as {"max_terms": 3}'
            raise UserError(f"--config.tasks.params={self.params}: must be {example}")
        return params
