"""Where a step and an answer end, decided on text and usable inside `jit`.

A boundary or a marker may lie across tokens, or in the middle of one. So both are automata over
bytes, compiled once to tables over tokens: `state = table[state, token]` is all that decoding does.
A step ends with the token that completes its boundary, never inside an answer, so every step starts
in state 0 and a prefix carries no state.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxtrain.calculator import Calculator, make_calculator, tabulate
from jaxtrain.errors import Count, Section, UserError

START, OVER = 0, 1  # of the step's automaton
# of the answer's: complete is a closed box whose line goes on
NO_ANSWER, FINISHED, COMPLETE = 0, 1, 2
BOX = b"\\boxed{"
HASH = b"####"
MAX_DEPTH = 8  # braces inside a box; deeper ones are not counted
MAX_BOUNDARY = 60  # bytes


@dataclass(frozen=True)
class TraceConfig(Section, at="trace"):
    """What a step and a trace are: where they end, and where they are cut."""

    max_steps: Count = 8  # D: depth at which an unfinished branch is cut
    max_step_tokens: Count = 32  # S: tokens at which an unfinished step is cut
    # text that ends a step; "\n\n": a blank line; empty: only an end token or step_tokens
    boundary: str = "\n"
    step_tokens: Count | None = None  # tokens at which a step ends, whatever its text; None: never
    # what finishes a trace: end: an end token alone; hash: also the line of ####; boxed: \boxed{}
    answer: str = "end"
    # the results of sums are computed and not the policy's, in search and evaluation alike
    calculator: bool = False

    def check(self) -> None:
        self.require(self.answer in ANSWERS, "answer", f"must be {' or '.join(ANSWERS)}")
        if len(self.boundary.encode()) > MAX_BOUNDARY:
            told = f"has more than {MAX_BOUNDARY} bytes"
            raise UserError(f"--config.trace.boundary={self.boundary[:20]!r}...: {told}")
        is_met = self.boundary != "" or self.step_tokens is not None
        why = "nothing ends a step; set it, or --config.trace.step_tokens"
        self.require(is_met, "boundary", why)
        # No result may be cut in two.
        why = (
            "reads steps that end with a line; leave --config.trace.step_tokens out, and let "
            "--config.trace.boundary end with a newline"
        )
        self.require(self.is_by_line or not self.calculator, "calculator", why)

    @property
    def is_by_line(self) -> bool:
        """Whether steps are whole lines: what stands before one does not go on in it."""
        return self.step_tokens is None and self.boundary.endswith("\n")


class Tables(NamedTuple):
    """The next state for every state and token; small integers."""

    step: np.ndarray  # [states V] int8
    answer: np.ndarray  # [states V] int8
    calculator: Calculator | None = None


def make_tables(
    token_bytes: Sequence[bytes],
    end_ids: Sequence[int],
    boundary: str,
    answer: str,
    calculator: bool = False,
) -> Tables:
    """Compile the automata; a boundary ends a step that holds more than white space."""
    _, steps = tabulate([(False, b""), OVER], step_automaton(boundary.encode()))
    _, answers = tabulate([(b"", 0), FINISHED, COMPLETE], ANSWERS[answer])
    step, answers = over_tokens(steps, token_bytes), over_tokens(answers, token_bytes)
    answers[:, list(end_ids)] = FINISHED
    return Tables(step, answers, make_calculator(token_bytes) if calculator else None)


def step_automaton(boundary: bytes) -> Callable:
    """Make the automaton of a step; a state: (is there text?, what was read of the boundary)."""

    def following(state: Hashable, byte: int) -> Hashable:
        if not isinstance(state, tuple) or not boundary:
            return state
        has_text = state[0] or not bytes([byte]).isspace()
        read = state[1] + bytes([byte])
        if read == boundary:
            return OVER if has_text else (False, b"")
        return has_text, longest_start(read, boundary)

    return following


def hash_automaton(state: Hashable, byte: int) -> Hashable:
    """Read `####`, then the rest of its line; a state: (what was read of the marker, inside?)."""
    if not isinstance(state, tuple):
        return state
    read, is_inside = state
    if is_inside:
        return FINISHED if byte == ord("\n") else state
    read = longest_start(read + bytes([byte]), HASH + b"\0")
    return (b"", 1) if read == HASH else (read, 0)


def boxed_automaton(state: Hashable, byte: int) -> Hashable:
    """Read `\\boxed{`, then to its brace; a state: (what was read of the marker, open braces)."""
    if state == COMPLETE:
        return FINISHED if byte == ord("\n") else COMPLETE
    if not isinstance(state, tuple):
        return state
    read, depth = state
    if depth:
        depth = min(depth + {ord("{"): 1, ord("}"): -1}.get(byte, 0), MAX_DEPTH)
        return (b"", depth) if depth else COMPLETE
    read = longest_start(read + bytes([byte]), BOX + b"\0")
    return (b"", 1) if read == BOX else (read, 0)


def longest_start(read: bytes, text: bytes) -> bytes:
    """Return the longest end of `read` with which `text` starts, all of `text` apart."""
    ends = (read[i:] for i in range(len(read) + 1))
    return next(end for end in ends if text.startswith(end) and end != text)


# What finishes a trace besides an end token: nothing, the line of `####`, that of a closed box.
ANSWERS: dict[str, Callable[[Hashable, int], Hashable]] = {
    "end": lambda state, byte: state,
    "hash": hash_automaton,
    "boxed": boxed_automaton,
}


def over_tokens(by_byte: np.ndarray, token_bytes: Sequence[bytes]) -> np.ndarray:
    """Turn a table over bytes into one over tokens: [states V] int8."""
    by_byte = by_byte.astype(np.int8)  # MAX_BOUNDARY keeps the states below 128
    lengths = np.array([len(token) for token in token_bytes])
    table = np.repeat(np.arange(len(by_byte), dtype=np.int8)[:, None], len(lengths), axis=1)
    for at in range(lengths.max()):
        longer = np.flatnonzero(lengths > at)
        table[:, longer] = by_byte[table[:, longer], [token_bytes[i][at] for i in longer.tolist()]]
    return table
