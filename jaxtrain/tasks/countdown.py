"""Countdown: reach a target from three numbers with + - * /, each used once. Stands below the seven
stages.

A prompt is `4 6 7=31` and a newline, the numbers in order. A response has one line for each
operation: the operation with its result, a bar, and the numbers that remain, the untouched one
first:

    4*6=24|7 24
    7+24=31|31

Every line carries all the state that the next one needs, so a small model can learn it and a
verifier can replay it. Results are positive integers throughout: no zero, no negative number, no
remainder. The problems are the solvable pairs of numbers and target, enumerated, so the sets are
disjoint by construction and a problem's id is its rank.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, permutations
from typing import TYPE_CHECKING, NamedTuple

from jaxtrain.errors import require, require_at_least, require_share
from jaxtrain.structs import Tokenizer, Verdict
from jaxtrain.tasks.base import Demonstration, Problem, Task, close_sizes, draw_sets
from jaxtrain.tokenizers import character_tokenizer

if TYPE_CHECKING:
    from jaxtrain.tasks.config import TasksConfig

ALPHABET = "\n 0123456789+-*/=|"
MAX_NUMBER = 50  # the enumeration grows with its cube: some seconds here

# Every repetition is bounded, so no text, however long, takes more than a constant time.
NUMBER = "(0|[1-9][0-9]{0,8})"
MOVE = rf"{NUMBER}([-+*/]){NUMBER}={NUMBER}"
RESPONSE = re.compile(rf"{MOVE}\|{NUMBER} {NUMBER}\n{MOVE}\|{NUMBER}")


@dataclass(frozen=True)
class CountdownConfig:
    """Which numbers, and how good a player the policy first learns from."""

    max_number: int = 12  # numbers are drawn from 1 to this
    max_target: int = 99  # targets lie between 1 and this
    demonstrations_per_problem: int = 8  # traces of the weak player on each such problem
    # chance that the weak player's second move is its best one
    demonstration_skill: float = 1.0

    def __post_init__(self):
        at_least_one = ("demonstrations_per_problem", "max_number", "max_target")
        require_at_least(1, "tasks.countdown", self, *at_least_one)
        require_share("tasks.countdown", self, "demonstration_skill")
        is_met, why = self.max_number <= MAX_NUMBER, f"countdown goes up to {MAX_NUMBER}"
        require(is_met, "tasks.countdown", self, "max_number", why)


class Move(NamedTuple):
    left: int
    operator: str
    right: int
    result: int
    remaining: tuple[int, ...]  # what can be used afterwards, sorted


class CountdownTask(Task):
    """Three numbers, one target; see the module for the format."""

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Replay every line: operands taken from the line before, true arithmetic, exact remainder,
        target reached.

        UNPARSABLE is a text that is not of the format, WRONG one that is and breaks a rule or
        misses the target. The remaining numbers may stand in any order.
        """
        moves = _read_moves(text)
        if moves is None:
            return Verdict.UNPARSABLE
        numbers, target = _read_prompt(problem.prompt)
        for move in moves:
            if move not in legal_moves(numbers):
                return Verdict.WRONG
            numbers = move.remaining
        return Verdict.CORRECT if numbers == (target,) else Verdict.WRONG

    def answer(self, text: str) -> str | None:
        """Return the moves with the operands of + and * in order, so that commuted responses vote
        together.
        """
        moves = _read_moves(text)
        return None if moves is None else ";".join(_write_move(_commuted(move)) for move in moves)


def countdown_task(config: TasksConfig, tokenizer: Tokenizer | None = None) -> CountdownTask:
    """Make the task that a config describes; its few characters are the tokens unless told
    otherwise.

    Raises UserError if there are fewer problems than it asks for.
    """
    c = config.countdown
    problems = _all_problems(c.max_number, c.max_target)
    num_test, num_dev, num_demonstrations = close_sizes(config)
    num_shown = -(-num_demonstrations // c.demonstrations_per_problem)
    what = f"solvable, with numbers up to {c.max_number} and targets up to {c.max_target}"
    sizes = (num_test, num_dev, num_shown, config.num_train)
    sets = draw_sets(problems, sizes, config.seed, what)

    rng = random.Random(f"demonstrations {config.seed}")
    demonstrations = [
        Demonstration(problem.prompt, weak_trace(problem.prompt, c, rng))
        for problem in sets.demonstrations
        for _ in range(c.demonstrations_per_problem)
    ]
    return CountdownTask(
        name="countdown",
        tokenizer=tokenizer or character_tokenizer(ALPHABET),
        train=sets.train,
        dev=sets.dev,
        test=sets.test,
        demonstrations=tuple(demonstrations[:num_demonstrations]),
        counts={"solvable": len(problems)},
    )


def legal_moves(numbers: tuple[int, ...]) -> list[Move]:
    """Return every legal move once, in a fixed order: both orders of + and *, results positive
    integers.
    """
    moves = set()
    for i, j in permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        results = {"+": a + b, "*": a * b}
        if a > b:
            results["-"] = a - b
        if a % b == 0:
            results["/"] = a // b
        moves.update(
            Move(a, op, b, result, tuple(sorted([*rest, result]))) for op, result in results.items()
        )
    return sorted(moves)


def solutions(numbers: tuple[int, ...], target: int) -> list[str]:
    """Return every correct response to a problem, in a fixed order."""
    lines = []
    for move in legal_moves(numbers):
        if len(move.remaining) > 1:
            lines += [f"{_write_move(move)}\n{rest}" for rest in solutions(move.remaining, target)]
        elif move.result == target:
            lines.append(_write_move(move))
    return lines


def weak_trace(prompt: str, config: CountdownConfig, rng: random.Random) -> str:
    """Play one game of a weak player: whole, legal, and most often not correct.

    The first move is drawn from all legal ones. With probability `demonstration_skill` the second
    is the one whose result is nearest to the target (ties at random), else any. Results above
    `max_target` are avoided where that is possible: few problems need one, and the policy is spared
    the larger multiplication tables. Such traces teach the format and arithmetic and leave the
    choice of the first move, which is what makes a solution, to be found by search.
    """

    def comfortable(numbers: tuple[int, ...]) -> list[Move]:
        moves = legal_moves(numbers)
        return [move for move in moves if move.result <= config.max_target] or moves

    numbers, target = _read_prompt(prompt)
    first = rng.choice(comfortable(numbers))
    seconds = comfortable(first.remaining)
    if rng.random() < config.demonstration_skill:
        nearest = min(abs(move.result - target) for move in seconds)
        seconds = [move for move in seconds if abs(move.result - target) == nearest]
    return f"{_write_move(first)}\n{_write_move(rng.choice(seconds))}"


@cache
def _all_problems(max_number: int, max_target: int) -> tuple[Problem, ...]:
    problems = []
    for numbers in combinations_with_replacement(range(1, max_number + 1), 3):
        pairs = {first.remaining for first in legal_moves(numbers)}
        targets = {second.result for pair in pairs for second in legal_moves(pair)}
        for target in sorted(target for target in targets if target <= max_target):
            prompt = f"{' '.join(map(str, numbers))}={target}\n"
            problems.append(Problem(id=len(problems), prompt=prompt, gold=str(target)))
    return tuple(problems)


def _read_prompt(prompt: str) -> tuple[tuple[int, ...], int]:
    numbers, target = prompt.split("=")
    return tuple(int(number) for number in numbers.split(" ")), int(target)


def _read_moves(text: str) -> list[Move] | None:
    match = RESPONSE.fullmatch(text)
    if match is None:
        return None
    a, op, b, c, rest, result, a2, op2, b2, c2, last = match.groups()
    first = Move(int(a), op, int(b), int(c), tuple(sorted((int(rest), int(result)))))
    return [first, Move(int(a2), op2, int(b2), int(c2), (int(last),))]


def _write_move(move: Move) -> str:
    untouched = list((Counter(move.remaining) - Counter([move.result])).elements())
    remaining = " ".join(map(str, [*untouched, move.result]))
    return f"{move.left}{move.operator}{move.right}={move.result}|{remaining}"


def _commuted(move: Move) -> Move:
    if move.operator in "+*" and move.left > move.right:
        return move._replace(left=move.right, right=move.left)
    return move
