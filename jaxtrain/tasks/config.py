"""The config of a task: what all kinds of problems share, and a section for each kind."""

import json
import os
from dataclasses import dataclass
from typing import Any

from jaxtrain.errors import Count, Natural, Section, UserError
from jaxtrain.tasks.countdown import CountdownConfig
from jaxtrain.tasks.jsonl import JsonlConfig
from jaxtrain.tasks.reasoning_gym import ReasoningGymConfig


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
    # traces of D_S0, on further problems; none: 8000, of a file at most 40 % of the rows
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
        if not isinstance(params, dict):
            example = 'a JSON object such as {"max_terms": 3}'
            raise UserError(f"--config.tasks.params={self.params}: must be {example}")
        return params
