"""What a task is: problems whose answers can be checked. Stands below the seven stages.

A task owns its problems, its text format and the word on a finished trace. Nothing of the loop
knows more about it than this file says, so another kind of problem is another subclass of `Task`.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxtrain.boundaries import TraceConfig
from jaxtrain.commuting import in_order
from jaxtrain.errors import require
from jaxtrain.structs import CheckFn, Tokenizer, Verdict
from jaxtrain.verifiers.numerals import BOX, MARKER
from jaxtrain.verifiers.sums import check_sums

if TYPE_CHECKING:
    from jaxtrain.tasks import TasksConfig  # made of the configs of all tasks

NUM_NAMED = 3  # bad rows that a message names
NUM_REMEMBERED = 2**17  # steps, and paths, that a check has judged


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
    """A trace that the warm start imitates; it need not be correct."""

    prompt: str
    response: str  # steps separated by newlines, without the end token
    question: str = ""
    substance: str = ""


@dataclass(frozen=True)
class Task:
    """Hold the problems of a task; subclasses add `verify`, and `answer` where it is shorter."""

    name: str
    tokenizer: Tokenizer
    train: tuple[Problem, ...] = ()
    dev: tuple[Problem, ...] = ()
    test: tuple[Problem, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    # rows read and dropped, by reason; reported as metrics
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()  # one line "file:line: reason" for each bad row
    # ASCII characters, no letters or digits: words with one of them between may change places in a
    # step without changing a verdict, so no search goes on from two steps that differ in that alone
    commuting: str = ""

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

    def ask(self, number: int, text: str) -> Problem:
        """Make the problem, without a gold answer, that a user asks in words; here the text is the
        prompt. Raises UserError where the task cannot tell what is asked.
        """
        return Problem(number, text.rstrip("\n") + "\n", "", text)

    def check_step(self, problem: Problem, before: Sequence[str], step: str) -> bool | None:
        """Judge a step behind others without the gold answer: False where it is certainly wrong,
        True where it holds, None where nothing can be said; here always.

        Total, and a pure function: a search may ask it of every step that it draws.
        """
        return None

    def solution(self, problem: Problem) -> Demonstration | None:
        """Return a correct response to a training problem; None where none is known, as here."""
        return None

    def canonical_step(self, step: str) -> str:
        """Return the form of a step, a line without newline, that commuting does not change."""
        return in_order(step, self.commuting)

    @cached_property
    def problems(self) -> dict[int, Problem]:
        """All problems by their ids."""
        return {p.id: p for p in (*self.train, *self.dev, *self.test)}

    def verify_tokens(self, problem_id: int, tokens: np.ndarray) -> Verdict | bool:
        """Judge a finished response of tokens [n] int to the problem of an id; see `verify`."""
        return self.verify(self.problems[problem_id], self.tokenizer.decode(tokens.tolist()))

    def answer_tokens(self, tokens: np.ndarray) -> str | None:
        """Return what votes are counted over of a response of tokens [n] int; see `answer`."""
        return self.answer(self.tokenizer.decode(tokens.tolist()))

    @property
    def notice(self) -> str:
        """Say which rows were skipped, the first few by name; empty where none was."""
        first = "; ".join(self.skipped[:NUM_NAMED])
        return f"{len(self.skipped)} bad rows skipped; the first: {first}" if self.skipped else ""


class WordTask(Task):
    """Hold questions in words, whose prompt is the question between two short marks."""

    def ask(self, number: int, text: str) -> Problem:
        """Take the text for the question."""
        return Row(number, text.strip(), "", "").problem

    def check_step(self, problem: Problem, before: Sequence[str], step: str) -> bool | None:
        """Judge the sums of a step; see `verifiers/sums.py`."""
        return check_sums(step)


def make_check(task: Task, trace: TraceConfig) -> CheckFn | None:
    """Make the function that counts the false steps of a path; None where the task has no check, or
    steps are not lines. A step that was cut is not judged.
    """
    has_check = type(task).check_step is not Task.check_step
    if not has_check or not trace.is_by_line:
        return None
    end_ids = set(task.tokenizer.end_ids)

    @lru_cache(NUM_REMEMBERED)
    def read(step: bytes) -> tuple[str, bool]:
        tokens = np.frombuffer(step, np.int32).tolist()
        text = task.tokenizer.decode(tokens)
        return text.rstrip("\n"), text.endswith("\n") or not end_ids.isdisjoint(tokens)

    @lru_cache(NUM_REMEMBERED)
    def count_false(problem_id: int, steps: tuple[bytes, ...]) -> int:
        if not steps:
            return 0
        lines, is_whole = zip(*map(read, steps), strict=True)
        said = task.check_step(task.problems[problem_id], lines[:-1], lines[-1])
        return count_false(problem_id, steps[:-1]) + (is_whole[-1] and said is False)

    return count_false


def close_sizes(config: "TasksConfig", num_rows: int | None = None) -> tuple[int, int, int]:
    """Return the sizes of test, dev and demonstrations, of a file's num_rows or problems made."""
    asked = config.num_test, config.num_dev, config.num_demonstrations
    usual = 512, 256, 8000
    if num_rows is not None:
        shares = 0.1, 0.1, 0.4
        usual = [min(n, math.ceil(x * num_rows)) for n, x in zip(usual, shares, strict=True)]
    test, dev, shown = (n if x is None else x for x, n in zip(asked, usual, strict=True))
    return test, dev, shown


class Row(NamedTuple):
    """A question in words with its answer, as it was read or made."""

    id: int
    question: str
    reasoning: str
    gold: str
    substance: str = ""  # see Problem

    @property
    def problem(self) -> Problem:
        prompt = f"Q: {self.question}\nA:\n"
        return Problem(self.id, prompt, self.gold, self.question, self.substance)

    @property
    def demonstration(self) -> Demonstration:
        """Its answer in the form of responses: lines, the last of which gives the gold."""
        steps = [line.strip() for line in self.reasoning.split("\n")]
        answer = f"{BOX}{self.gold}}}" if "\n" in self.gold else f"{MARKER} {self.gold}"
        response = "\n".join([*filter(None, steps), answer])
        return Demonstration(self.problem.prompt, response, self.question, self.substance)


class Sets(NamedTuple):
    test: tuple
    dev: tuple
    demonstrations: tuple
    train: tuple


def draw_sets(
    rows: Sequence[Any], sizes: tuple[int, int, int, int | None], seed: int | None, what: str
) -> Sets:
    """Draw disjoint sets of the given sizes (test, dev, demonstrations, train) from rows, in an
    order of the seed's, or as they come where that is None.

    A train size of None takes all that is left; train comes last, so that its size changes no other
    set. `what` names the rows in the UserError that says there are too few.
    """
    num_test, num_dev, num_demonstrations, num_train = sizes
    num_asked = num_test + num_dev + num_demonstrations + (num_train or 1)
    told = (
        f"the sets need {num_asked} problems (test {num_test}, dev {num_dev}, demonstrations "
        f"{num_demonstrations}, train at least {(num_train or 1)}), but only {len(rows)} exist"
    )
    then = "ask for fewer by num_test, num_dev, num_demonstrations, num_train"
    require(num_asked <= len(rows), "--config.tasks", f"{told}: {what}; {then}")
    shuffled = list(rows)
    if seed is not None:
        random.Random(seed).shuffle(shuffled)
    rest = iter(shuffled)
    return Sets(*(tuple(islice(rest, size)) for size in sizes))
