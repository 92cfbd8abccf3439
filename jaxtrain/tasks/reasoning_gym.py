"""Problems that reasoning-gym makes, judged by its own scorers. Stands below the seven stages.

A response gives its answer as everywhere, after `####` or in `\\boxed{}`. Where the gold is a
number, the answer must be one too, of the same value (`verifiers/numerals.py`): many a scorer takes
the first number that it finds. The scorer is asked where the gold is none, and where the form
counts besides the value; only full marks are correct. Generators and scorers run in a worker
process that can be killed (`verifiers/worker.py`): some execute code found in the answer.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jaxtrain.errors import Section, Share, UserError
from jaxtrain.structs import Tokenizer, Verdict
from jaxtrain.tasks.base import Demonstration, Problem, Row, WordTask, close_sizes, draw_sets
from jaxtrain.tokenizers import byte_tokenizer
from jaxtrain.verifiers.numerals import MARKER, extract_answer, read_number, write_number
from jaxtrain.verifiers.worker import Worker

if TYPE_CHECKING:
    from jaxtrain.tasks import TasksConfig

SECTION = "tasks.reasoning_gym"  # of the config
MAX_ANSWER = 4096  # characters of an answer that is put to a scorer
# Their golds are not rounded as their questions ask for; their scorers read the answer as a whole.
ROUNDED = ("power_function",)
# Their scorers take any text, further words, or numbers that are near: the text itself is compared.
EXACT = ("game_of_life_halting", "word_sorting", "number_sorting")
# Its scorer never looks at the numbers of the puzzle.
UNSOUND = ("puzzle24",)


@dataclass(frozen=True)
class ReasoningGymConfig(Section, at=SECTION):
    """Which dataset, and which of its templates."""

    dataset: str = "chain_sum"  # the name of one of its datasets
    unseen_share: Share = 0.0  # share of the templates that are held out of every set
    is_unseen: bool = False  # make all sets of the templates held out, to evaluate on


@dataclass(frozen=True)
class ReasoningGymTask(WordTask):
    """Questions of one dataset; a problem's id is its index there."""

    worker: Worker = field(kw_only=True)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Compare numbers, ask the dataset's scorer about the rest; ERROR where that fails."""
        answer = self.answer(text)
        if answer is None:
            return Verdict.UNPARSABLE
        if self.name in EXACT:
            return Verdict.CORRECT if bare(answer) == bare(problem.gold) else Verdict.WRONG
        gold = None if self.name in ROUNDED else read_number(problem.gold)
        if gold is not None:
            number = read_number(answer)
            if number is None:
                return Verdict.UNPARSABLE
            # 6/8 is not 3/4 in lowest terms, and in another base a quotient is another number.
            if number != gold or "/" not in answer + problem.gold:
                return Verdict.CORRECT if number == gold else Verdict.WRONG
        is_right = self.worker.judge(problem.id, answer)
        if is_right is None:
            return Verdict.ERROR
        return Verdict.CORRECT if is_right else Verdict.WRONG

    def answer(self, text: str) -> str | None:
        """Return the answer that a response gives, None if there is none or one too long to judge.

        Numbers are written by their value, so that they vote together; quotients stay as they are.
        """
        answer = extract_answer(text)
        if not answer or len(answer) > MAX_ANSWER:
            return None
        number = None if "/" in answer else read_number(answer)
        return answer if number is None else write_number(number)

    def solution(self, problem: Problem) -> Demonstration:
        """Return the dataset's own solution. No stage of the loop asks for it."""
        return read_item(problem.id, self.worker.item(problem.id)).demonstration


def bare(text: str) -> str:
    """Return a text without the spaces, quotes and case in which lists and words are spelt."""
    return re.sub(r"[\s'\"]", "", text).casefold()


def reasoning_gym_task(config: TasksConfig, tokenizer: Tokenizer | None = None) -> ReasoningGymTask:
    """Make the task that a config describes. Raises UserError for a dataset that is not known."""
    c = config.reasoning_gym
    if config.num_train is None:
        raise UserError(
            "--config.tasks.num_train=none: reasoning_gym makes as many as asked for; set it"
        )
    why = "its scorer takes wrong answers for right ones; choose another"
    c.require(c.dataset not in UNSOUND, "dataset", why)
    why = f"no template is held out; set --config.{SECTION}.unseen_share"
    c.require(not c.is_unseen or c.unseen_share > 0, "is_unseen", why)
    sizes = (*close_sizes(config), config.num_train)
    size = sum(sizes)
    # Generators repeat themselves, and templates may be held out: more is drawn than is needed.
    share = c.unseen_share if c.is_unseen else 1 - c.unseen_share
    most = int(4 * size / max(share, 0.01))
    worker = Worker(c.dataset, config.read_params() | {"seed": config.seed, "size": most})
    rows, counts = draw_rows(config, worker, size, most)
    sets = draw_sets(rows, sizes, config.seed, f"different questions with a gold of {c.dataset}")
    parts = sets.train, sets.dev, sets.test
    train, dev, test = (tuple(row.problem for row in rows) for rows in parts)
    tokenizer = tokenizer or byte_tokenizer()
    task = ReasoningGymTask(c.dataset, tokenizer, train, dev, test, (), worker=worker)
    # A solution that its own scorer does not take in the form of responses would teach nonsense.
    shown = [(row.problem, row.demonstration) for row in sets.demonstrations]
    passing = tuple(
        shot for problem, shot in shown if task.verify(problem, shot.response) == Verdict.CORRECT
    )
    why = f"none of its own answers passes its scorer behind {MARKER} or in a box"
    c.require(bool(passing) or not shown, "dataset", f"{why}; choose another dataset")
    # Numerals judge these alone, so it shows here where the dataset's scorer would not have agreed.
    numbers = [problem for problem, _ in shown if read_number(problem.gold) is not None]
    counts["refused"] = len(shown) - len(passing)
    counts["disagreed"] = sum(not worker.judge(problem.id, problem.gold) for problem in numbers)
    return replace(task, demonstrations=passing, counts=counts)


def draw_rows(
    config: TasksConfig, worker: Worker, size: int, most: int
) -> tuple[list[Row], dict[str, int]]:
    """Take items in the order of their index, at most `most`, until `size` differ.

    Returns them, and counts by reason of those left out. Raises UserError where there is no such
    dataset, or it is not made of the templates that are to be held out.
    """
    c = config.reasoning_gym
    rows: dict[str, Row] = {}
    counts = {"repeated": 0, "without_gold": 0, "held_out": 0}
    for index in range(most):
        if len(rows) == size:
            break
        try:
            item = worker.item(index)
        except RuntimeError as error:
            raise UserError(
                f"--config.{SECTION}.dataset={c.dataset}: {error}; it needs pip install "
                "'jaxtrain[tasks]', a dataset of reasoning-gym, and --config.tasks.params for it"
            ) from error
        why = f"{c.dataset} is not made of templates"
        c.require(not c.unseen_share or bool(item["template"]), "unseen_share", why)
        if is_unseen(item["template"], config) != c.is_unseen:
            counts["held_out"] += 1
        elif item["answer"] is None:
            counts["without_gold"] += 1
        elif (key := substance(item)) in rows:
            counts["repeated"] += 1
        else:
            rows[key] = read_item(index, item)
    return list(rows.values()), counts


def substance(item: dict[str, str]) -> str:
    """Return what two items share that are the same to a solver.

    Of a template that is numbers and gold: a model may recite what differs in names only.
    """
    if not item["template"]:
        return item["question"]
    return " ".join([item["template"], *re.findall(r"\d+", item["question"]), item["answer"]])


def is_unseen(template: str, config: TasksConfig) -> bool:
    """Say whether a template is held out: by its hash, whatever else was drawn."""
    number = int(hashlib.sha256(f"{config.seed} {template}".encode()).hexdigest()[:16], 16)
    return number < config.reasoning_gym.unseen_share * 2**64


def read_item(index: int, item: dict[str, str]) -> Row:
    """Take what is needed of an item."""
    reasoning = item["solution"].rpartition(MARKER)[0]
    return Row(index, item["question"].strip(), reasoning, item["answer"], substance(item))
