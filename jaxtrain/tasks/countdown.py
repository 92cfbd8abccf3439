"""Countdown: reach a target from three or four numbers with + - * /, each used once. Stands below
the seven stages.

A prompt is `4 6 7=31` and a newline, the numbers in order. A response has one line for each
operation: the operation with its result, a bar, and the numbers that remain, the untouched ones
first:

    4*6=24|7 24
    7+24=31|31

Every line carries all the state that the next one needs, so a small model can learn it and a
verifier can replay it. Results are positive integers throughout: no zero, no negative number, no
remainder. The problems are the solvable pairs of numbers and target. Where they are few they are
enumerated, and a problem's id is its rank. Where they are many they are drawn one after another,
and its id is its place among them. No problem comes twice, so the sets are disjoint by
construction.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations, combinations_with_replacement, permutations
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np

from jaxtrain.errors import Bound, Count, Section, Share, UserError
from jaxtrain.structs import Tokenizer, Verdict
from jaxtrain.tasks.base import Demonstration, Problem, Task, close_sizes, draw_sets
from jaxtrain.tokenizers import character_tokenizer

if TYPE_CHECKING:
    from jaxtrain.tasks import TasksConfig

ALPHABET = "\n 0123456789+-*/=|"
MAX_NUMBER = 99
# of so many numbers up to this the problems are enumerated, which takes some seconds at most
MAX_ENUMERATED = {3: 50, 4: 12}
DRAWS_AT_ONCE = 4096

# Every repetition is bounded, so no line, however long, takes more than a constant time.
NUMBER = "(?:0|[1-9][0-9]{0,8})"
# where a user's words name the target, as in "=29", "make 29" and "the target is 29"
TARGET = re.compile(
    r"(?:=|\b(?:makes?|reach|gets?|equals?|target|total|is)\b)"
    r"(?:[\s:=]|\b(?:to|the|a|number|target|total|of|is)\b)*([0-9]{1,9})\b",
    re.IGNORECASE,
)
LINE = re.compile(rf"({NUMBER})([-+*/])({NUMBER})=({NUMBER})\|({NUMBER}(?: {NUMBER}){{0,2}})")


@dataclass(frozen=True)
class CountdownConfig(Section, at="tasks.countdown"):
    """Which numbers, and how good a player the policy first learns from."""

    # of a problem: 3 or 4
    num_numbers: Annotated[int, Bound(MAX_ENUMERATED.__contains__, "must be 3 or 4")] = 3
    # numbers lie between 1 and this; set num_train above 50 with three numbers, above 12 with four
    max_number: Count = 12
    min_target: Count = 1  # targets lie between this and max_target
    max_target: int = 99  # the largest target, and result that demonstrations prefer
    demonstrations_per_problem: Count = 8  # traces of the weak player on each such problem
    # chance that the weak player's last move is its best one
    demonstration_skill: Share = 1.0

    def check(self) -> None:
        is_met, why = self.max_target >= self.min_target, f"must be {self.min_target} or more"
        self.require(is_met, "max_target", why)
        why = f"countdown goes up to {MAX_NUMBER}"
        self.require(self.max_number <= MAX_NUMBER, "max_number", why)


class Move(NamedTuple):
    left: int
    operator: str
    right: int
    result: int
    remaining: tuple[int, ...]  # what can be used afterwards, sorted


@dataclass(frozen=True)
class CountdownTask(Task):
    """Some numbers, one target; see the module for the format."""

    num_numbers: int = field(kw_only=True)
    commuting: str = "+* "  # operands, and the remaining numbers

    def ask(self, number: int, text: str) -> Problem:
        """Read the numbers and the target out of words such as "Use 3, 7, 8 to make 29"."""
        found = list(TARGET.finditer(text))
        target = found[-1] if found else None
        rest = text[: target.start()] + text[target.end() :] if target else text
        numbers = sorted(map(int, re.findall(r"\d+", rest)))
        is_signed = re.search(r"(?<!\d)-\d", rest) is not None
        if target is None or is_signed or len(numbers) != self.num_numbers:
            example = ", ".join("3789"[: self.num_numbers])
            told = f"countdown needs {self.num_numbers} numbers and what they are to make"
            raise UserError(f'{text[:60]!a}: {told}, as in "Use {example} to make 29"')
        return replace(_make_problem(number, tuple(numbers), int(target[1])), question=text)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Replay every line: known operands, true arithmetic, exact remainder, target reached.

        UNPARSABLE is a text that is not of the format, WRONG one that is and breaks a rule or
        misses the target. The remaining numbers may stand in any order.
        """
        moves = _read_moves(text, self.num_numbers)
        if moves is None:
            return Verdict.UNPARSABLE
        numbers, target = read_prompt(problem.prompt)
        for move in moves:
            if 0 in numbers or not is_legal(move, numbers):
                return Verdict.WRONG
            numbers = move.remaining
        return Verdict.CORRECT if numbers == (target,) else Verdict.WRONG

    def check_step(self, problem: Problem, before: Sequence[str], step: str) -> bool | None:
        """Say whether a line is a legal move with what the line before leaves; None where that is
        not to be read, or holds a zero.
        """
        last = read_move(before[-1]) if before else None
        numbers = last.remaining if last else () if before else read_prompt(problem.prompt)[0]
        return is_legal(read_move(step), numbers) if numbers and 0 not in numbers else None

    def answer(self, text: str) -> str | None:
        """Return the canonical form of every line, so that commuted responses vote together."""
        if _read_moves(text, self.num_numbers) is None:
            return None
        return "\n".join(map(self.canonical_step, text.split("\n")))


def countdown_task(config: "TasksConfig", tokenizer: Tokenizer | None = None) -> CountdownTask:
    """Make the task that a config describes; without a tokenizer, its few characters are tokens.

    Raises UserError if there are too few problems, or if it asks for all where they are drawn.
    """
    c = config.countdown
    num_test, num_dev, num_demonstrations = close_sizes(config)
    num_shown = -(-num_demonstrations // c.demonstrations_per_problem)
    sizes = (num_test, num_dev, num_shown, config.num_train)

    # Draws stay in their order: shuffled, the sets would depend on how many there are.
    if c.max_number <= MAX_ENUMERATED[c.num_numbers]:
        problems = _all_problems(c.num_numbers, c.max_number, c.min_target, c.max_target)
        seed, counts = config.seed, {"solvable": len(problems)}
    elif config.num_train is None:
        told = f"countdown with {c.num_numbers} numbers up to {c.max_number} draws as many problems"
        raise UserError(f"--config.tasks.num_train=none: {told} as asked for; set it")
    else:
        num_asked = num_test + num_dev + num_shown + config.num_train
        problems, seed, counts = _drawn_problems(c, config.seed, num_asked), None, {}
    targets = f"targets from {c.min_target} to {c.max_target}"
    what = f"solvable, with numbers up to {c.max_number} and {targets}"
    sets = draw_sets(problems, sizes, seed, what)

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
        counts=counts,
        num_numbers=c.num_numbers,
    )


def legal_moves(numbers: tuple[int, ...]) -> list[Move]:
    """Return every legal move once, both orders of + and *, in a fixed order."""
    moves = set()
    for i, j in permutations(range(len(numbers)), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for operator in "+-*/":
            if result := result_of(numbers[i], operator, numbers[j]):
                remaining = tuple(sorted([*rest, result]))
                moves.add(Move(numbers[i], operator, numbers[j], result, remaining))
    return sorted(moves)


def is_legal(move: Move | None, numbers: tuple[int, ...]) -> bool:
    """Say whether a move, if it is one, is true of numbers above 0 and leaves what it says."""
    if move is None:
        return False
    rest = list(numbers)
    for used in (move.left, move.right):
        if used not in rest:
            return False
        rest.remove(used)
    result = result_of(move.left, move.operator, move.right)
    return 0 < result == move.result and tuple(sorted([*rest, result])) == move.remaining


def result_of(left: int, operator: str, right: int) -> int:
    """Return what an operation on numbers above 0 makes; 0 where it is not legal."""
    if operator == "-":
        return max(left - right, 0)
    if operator == "/":
        return 0 if left % right else left // right
    return left + right if operator == "+" else left * right


def weak_trace(prompt: str, config: CountdownConfig, rng: random.Random) -> str:
    """Play one game of a weak player: whole, legal, and most often not correct.

    A move is drawn from all legal ones. Only the last one is, with probability
    `demonstration_skill`, the one whose result is nearest to the target (ties at random). Results
    above `max_target` are avoided where that is possible: most problems need none, and the policy
    is spared the larger multiplication tables. Such traces teach the format and arithmetic. They
    leave the choice of the earlier moves, which is what makes a solution, to be found by search.
    """
    numbers, target = read_prompt(prompt)
    lines = []
    while len(numbers) > 1:
        moves = legal_moves(numbers)
        moves = [move for move in moves if move.result <= config.max_target] or moves
        if len(numbers) == 2 and rng.random() < config.demonstration_skill:
            nearest = min(abs(move.result - target) for move in moves)
            moves = [move for move in moves if abs(move.result - target) == nearest]
        move = rng.choice(moves)
        lines.append(write_move(move))
        numbers = move.remaining
    return "\n".join(lines)


def read_prompt(prompt: str) -> tuple[tuple[int, ...], int]:
    """Return the numbers and the target of a prompt."""
    numbers, target = prompt.split("=")
    return tuple(int(number) for number in numbers.split(" ")), int(target)


def read_move(line: str) -> Move | None:
    """Return what a line claims, be it true or not; None where it is not of the format."""
    match = LINE.fullmatch(line)
    if match is None:
        return None
    left, operator, right, result, remaining = match.groups()
    rest = tuple(sorted(map(int, remaining.split(" "))))
    return Move(int(left), operator, int(right), int(result), rest)


def write_move(move: Move) -> str:
    """Return the line of a move: what it left untouched stands first, its result last."""
    untouched = list((Counter(move.remaining) - Counter([move.result])).elements())
    remaining = " ".join(map(str, [*untouched, move.result]))
    return f"{move.left}{move.operator}{move.right}={move.result}|{remaining}"


@cache
def _all_problems(
    num_numbers: int, max_number: int, min_target: int, max_target: int
) -> tuple[Problem, ...]:
    problems = []
    for numbers in combinations_with_replacement(range(1, max_number + 1), num_numbers):
        reached = {numbers}
        for _ in range(num_numbers - 1):
            reached = {move.remaining for rest in reached for move in legal_moves(rest)}
        for (target,) in sorted(reached):
            if min_target <= target <= max_target:
                problems.append(_make_problem(len(problems), numbers, target))
    return tuple(problems)


@cache
def _drawn_problems(config: CountdownConfig, seed: int, num_problems: int) -> tuple[Problem, ...]:
    """Draw different solvable problems in an order of the seed's, whatever their number.

    There are fewer where the last few thousand draws hold nothing new.
    """
    rng = random.Random(f"problems {seed}")
    numbers, bounds = range(1, config.max_number + 1), (config.min_target, config.max_target)
    problems: dict[tuple, Problem] = {}
    num_before = -1
    while num_before < len(problems) < num_problems:
        num_before = len(problems)
        draws = [
            (*sorted(rng.choices(numbers, k=config.num_numbers)), rng.randint(*bounds))
            for _ in range(DRAWS_AT_ONCE)
        ]
        *columns, targets = np.array(draws, float).T
        for draw, is_solvable in zip(draws, _are_solvable(columns, targets), strict=True):
            if is_solvable and draw not in problems:
                problems[draw] = _make_problem(len(problems), draw[:-1], draw[-1])
    return tuple(problems.values())[:num_problems]


def _are_solvable(numbers: list[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """Say which problems have a solution, bool [N]; numbers, each float [N]; targets float [N].

    All moves are tried, on all problems at once; nan is what an illegal one leaves.
    """
    if len(numbers) == 1:
        return numbers[0] == targets
    is_solvable = np.zeros(targets.shape, bool)
    for i, j in combinations(range(len(numbers)), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        low, high = np.minimum(numbers[i], numbers[j]), np.maximum(numbers[i], numbers[j])
        difference = np.where(high > low, high - low, np.nan)
        quotient = np.where(high % low == 0, high / low, np.nan)
        for result in (low + high, low * high, difference, quotient):
            is_solvable |= _are_solvable([*rest, result], targets)
    return is_solvable


def _make_problem(rank: int, numbers: tuple[int, ...], target: int) -> Problem:
    prompt = f"{' '.join(map(str, numbers))}={target}\n"
    return Problem(id=rank, prompt=prompt, gold=str(target))


def _read_moves(text: str, num_numbers: int) -> list[Move] | None:
    """Return what the lines of a whole response claim; None where it is not of the format."""
    moves = []
    for line in text.split("\n", num_numbers):
        move = read_move(line)
        if move is None or len(move.remaining) != num_numbers - 1 - len(moves):
            return None
        moves.append(move)
    return moves if len(moves) == num_numbers - 1 else None
