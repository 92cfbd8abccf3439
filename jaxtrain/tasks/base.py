"""What a task is: problems whose answers can be checked. Stands below the seven stages.

A task owns its problems, its text format and the word on a finished trace. Nothing of the loop
knows more about it than this file says, so another kind of problem is another subclass of `Task`.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxtrain.errors import UserError, require_at_least, require_one_of, require_share
from jaxtrain.structs import Verdict

Row = TypeVar("Row")

NUM_NAMED = 3  # bad rows that a message names
# Of the sets whose size is left open (-1): the usual size, and its share of a file's rows at most.
OPEN_SIZES = {"num_dev": (256, 0.1), "num_test": (512, 0.1), "num_demonstrations": (8000, 0.4)}


@dataclass(frozen=True)
class TasksConfig:
    name: str = "countdown"  # countdown | jsonl | reasoning_gym | my_task.py:make, yours
    path: str = ""  # jsonl: the train file; JSON lines, one JSON array, or .parquet
    # jsonl: the test file; empty: the test problems are held out of the train file
    test_path: str = ""
    question_field: str = "question"  # jsonl: the field of a row with its question
    answer_field: str = "answer"  # jsonl: its gold, bare, boxed, or behind reasoning and ####
    answer_kind: str = "number"  # jsonl: number | choice (one letter) | text (as it is)
    num_train: int = 0  # problems to self-train on; 0: all that the other sets leave
    num_dev: int = -1  # problems to tune on; -1: 256, of a file at most a tenth of the rows
    num_test: int = -1  # problems to report on; 0: all of test_path; -1: 512, at most a tenth
    num_demonstrations: int = -1  # traces of D_S0, on further problems; -1: 8000, at most 40 %
    demonstrations_per_problem: int = 8  # countdown: traces of the weak player on each such problem
    # countdown: chance that the weak player's second move is its best one
    demonstration_skill: float = 1.0
    max_number: int = 12  # countdown: numbers are drawn from 1 to this
    max_target: int = 99  # countdown: targets lie between 1 and this
    seed: int = 0  # draws the problems and the sets; not the seed of the run
    dataset: str = "chain_sum"  # reasoning_gym: which of its datasets
    params: str = ""  # a JSON object: parameters of the reasoning_gym dataset, or of your function
    # reasoning_gym: share of the templates that are held out of every set
    unseen_share: float = 0.0
    # reasoning_gym: make all sets of the templates held out, to evaluate on
    is_unseen: bool = False
    max_row_bytes: int = 16384  # jsonl: a longer line is a bad row
    # jsonl: keep the calculator annotations <<...>> in the demonstrations
    is_annotated: bool = False
    # jsonl: skip bad rows up to this share of a file, then refuse the file
    max_bad_share: float = 0.01

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

    def __post_init__(self):
        if self.file:  # found again from any folder
            object.__setattr__(self, "name", os.path.abspath(self.name))
        require_at_least(0, "tasks", self, "num_train")
        require_at_least(-1, "tasks", self, "num_dev", "num_test", "num_demonstrations")
        require_one_of("tasks", self, answer_kind=("number", "choice", "text"))
        require_at_least(
            1,
            "tasks",
            self,
            "demonstrations_per_problem",
            "max_number",
            "max_target",
            "max_row_bytes",
        )
        require_share("tasks", self, "demonstration_skill", "max_bad_share", "unseen_share")


@dataclass(frozen=True)
class Problem:
    """A question with its gold answer.

    Ids are unique across the sets of a task and do not depend on their sizes.
    """

    id: int
    # in the task's own form; ends with a newline: the response starts on a line of its own
    prompt: str
    gold: str
    question: str = ""  # alone, as one would ask it in a chat
    # what problems that differ in names only share; empty: nothing but the prompt
    substance: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A trace that the warm start imitates.

    It need not be correct: the task says what its demonstrations are.
    """

    prompt: str
    response: str  # steps separated by newlines, without the end token
    question: str = ""
    substance: str = ""


@dataclass(frozen=True)
class Task:
    """Hold the problems of a task; subclasses add `verify`, and `answer` where it is shorter."""

    name: str
    tokenizer: Any  # tokenizers.Tokenizer or hub.HubTokenizer, which have one face
    train: tuple[Problem, ...]
    dev: tuple[Problem, ...]
    test: tuple[Problem, ...]
    demonstrations: tuple[Demonstration, ...]
    # rows read and dropped, by reason; reported as metrics
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()  # one line "file:line: reason" for each bad row

    def verify(self, problem: Problem, text: str) -> Verdict | bool:
        """Judge a finished response: all its steps, separated by newlines, without the end token.

        Total: any text gets CORRECT (or True), WRONG (or False) or UNPARSABLE, in time linear in
        its length. Where it raises, that answer is an ERROR; where it raises on all, the run stops.
        """
        raise NotImplementedError

    def answer(self, text: str) -> str | None:
        """Return what votes are counted over, None where there is no answer; here the whole text.

        Two responses to a problem that have the same answer have the same verdict.
        """
        return text or None

    @cached_property
    def problems(self) -> dict[int, Problem]:
        """All problems by their ids."""
        return {p.id: p for p in (*self.train, *self.dev, *self.test)}

    def verify_tokens(self, problem_id: int, tokens: np.ndarray) -> Verdict | bool:
        """Judge a finished response of tokens [n] int to the problem of an id; see `verify`."""
        return self.verify(self.problems[problem_id], self.tokenizer.decode(tokens.tolist()))

    def answer_tokens(self, problem_id: int, tokens: np.ndarray) -> str | None:
        """Return what votes are counted over of a response of tokens [n] int; see `answer`."""
        return self.answer(self.tokenizer.decode(tokens.tolist()))

    @property
    def notice(self) -> str:
        """Say which rows were skipped, the first few by name; empty where none was."""
        first = "; ".join(self.skipped[:NUM_NAMED])
        return f"{len(self.skipped)} bad rows skipped; the first: {first}" if self.skipped else ""


def close_sizes(config: TasksConfig, num_rows: int | None = None) -> TasksConfig:
    """Fill in the sizes that are left open, for a file of so many rows, or for problems made."""
    sizes = {}
    for name, (size, share) in OPEN_SIZES.items():
        if getattr(config, name) < 0:
            sizes[name] = size if num_rows is None else min(size, math.ceil(share * num_rows))
    return replace(config, **sizes)


class Sets(NamedTuple):
    test: Sequence
    dev: Sequence
    demonstrations: Sequence
    train: Sequence


def draw_sets(rows: Sequence[Row], sizes: tuple[int, int, int, int], seed: int, what: str) -> Sets:
    """Draw disjoint sets of the given sizes (test, dev, demonstrations, train) from rows, in an
    order of the seed's.

    A train size of 0 takes all that is left; train comes last, so that its size changes no other
    set. `what` names the rows in the UserError that says there are too few.
    """
    num_test, num_dev, num_demonstrations, num_train = sizes
    num_asked = num_test + num_dev + num_demonstrations + max(num_train, 1)
    if num_asked > len(rows):
        raise UserError(
            f"--config.tasks: the sets need {num_asked} problems (test {num_test}, dev {num_dev}, "
            f"demonstrations {num_demonstrations}, train at least {max(num_train, 1)}), but only "
            f"{len(rows)} exist: {what}; ask for fewer"
        )
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    dev, demonstrations = num_test + num_dev, num_test + num_dev + num_demonstrations
    end = demonstrations + num_train if num_train else len(rows)
    return Sets(
        shuffled[:num_test],
        shuffled[num_test:dev],
        shuffled[dev:demonstrations],
        shuffled[demonstrations:end],
    )
