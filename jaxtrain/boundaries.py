"""Where a step and an answer end, decided on text and usable inside `jit`.

A boundary or a marker may lie across tokens, or in the middle of one. So both are automata over
bytes, compiled once to tables over tokens: `state = table[state, token]` is all that decoding does.
A step ends with the token that completes its boundary, never inside an answer, so every step starts
in state 0 and a prefix carries no state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxtrain.errors import UserError, require_at_least, require_one_of

START, OVER = 0, 1  # of the step's automaton
# of the answer's: complete is a closed box whose line goes on
NO_ANSWER, FINISHED, COMPLETE = 0, 1, 2
BOX = b"\\boxed{"
HASH = b"####"
MAX_DEPTH = 8  # braces inside a box; deeper ones are not counted
ANSWERS = ("end", "hash", "boxed")
MAX_BOUNDARY = 60  # bytes


@dataclass(frozen=True)
class TraceConfig:
    """What a step and a trace are: where they end, and where they are cut."""

    max_steps: int = 8  # D: depth at which an unfinished branch is cut
    max_step_tokens: int = 32  # S: tokens at which an unfinished step is cut
    # text that ends a step; "\n\n": a blank line; empty: only an end token or step_tokens
    boundary: str = "\n"
    step_tokens: int | None = None  # tokens at which a step ends, whatever its text; None: never
    # what finishes a trace: end: an end token alone; hash: also the line of ####; boxed: \boxed{}
    answer: str = "end"

    def __post_init__(self):
        require_at_least(1, "trace", self, "max_steps", "max_step_tokens", "step_tokens")
        require_one_of("trace", self, answer=ANSWERS)
        if len(self.boundary.encode()) > MAX_BOUNDARY:
            raise UserError(
                f"--config.trace.boundary={self.boundary[:20]!r}...: "
                f"has more than {MAX_BOUNDARY} bytes"
            )
        if not self.boundary and self.step_tokens is None:
            raise UserError(
                "--config.trace.boundary='': nothing ends a step; "
                "set it, or --config.trace.step_tokens"
            )


class Tables(NamedTuple):
    """The next state for every state and token; small integers."""

    step: np.ndarray  # [states V] int8
    answer: np.ndarray  # [states V] int8


def make_tables(
    token_bytes: Sequence[bytes], end_ids: Sequence[int], boundary: str, answer: str
) -> Tables:
    """Compile both automata.

    boundary: the text that ends a step once the step holds more than white space; empty: none does.
    answer: what finishes a trace besides an end token, one of ANSWERS: `end` nothing, `hash` the
    line of `####`, `boxed` the line in which `\\boxed{...}` closes.
    """
    step = over_tokens(
        explore([(False, b""), OVER], step_automaton(boundary.encode())), token_bytes
    )
    first = [(b"", 0), FINISHED, COMPLETE]
    following = {
        "end": lambda state, byte: state,
        "hash": hash_automaton,
        "boxed": boxed_automaton,
    }[answer]
    answers = over_tokens(explore(first, following), token_bytes)
    answers[:, list(end_ids)] = FINISHED
    return Tables(step, answers)


def step_automaton(boundary: bytes) -> Callable:
    """Make the automaton of a step; a state is (is there text?, how much of the boundary was just
    read).
    """

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
    """Read `####`, then the rest of its line; a state is (how much of the marker was read,
    inside?).
    """
    if not isinstance(state, tuple):
        return state
    read, is_inside = state
    if is_inside:
        return FINISHED if byte == ord("\n") else state
    read = longest_start(read + bytes([byte]), HASH + b"\0")
    return (b"", 1) if read == HASH else (read, 0)


def boxed_automaton(state: Hashable, byte: int) -> Hashable:
    """Read `\\boxed{`, then to its closing brace; a state is (how much of the marker was read, open
    braces).
    """
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


def explore(states: list[Hashable], following: Callable) -> np.ndarray:
    """Number the states reachable from the first, the given ones first, and tabulate: [states 256]
    int8.
    """
    states, rows = list(states), []
    for state in states:  # grows while it is walked
        row = [following(state, byte) for byte in range(256)]
        states += [new for new in dict.fromkeys(row) if new not in states]
        rows.append([states.index(new) for new in row])
    return np.array(rows, np.int8)  # MAX_BOUNDARY keeps the states below 128


def over_tokens(by_byte: np.ndarray, token_bytes: Sequence[bytes]) -> np.ndarray:
    """Turn a table over bytes into one over tokens: [states V] int8."""
    order = np.argsort([-len(token) for token in token_bytes], kind="stable")
    lengths = np.array([len(token_bytes[i]) for i in order])
    padded = np.zeros((len(order), max(int(lengths[0]), 1)), np.uint8)
    for row, i in enumerate(order):
        padded[row, : lengths[row]] = np.frombuffer(token_bytes[i], np.uint8)
    table = np.zeros((len(by_byte), len(order)), np.int8)
    for state in range(len(by_byte)):
        reached = np.full(len(order), state, np.int8)
        for at in range(int(lengths[0])):
            num_longer = int(np.searchsorted(-lengths, -at, side="left"))
            reached[:num_longer] = by_byte[reached[:num_longer], padded[:num_longer, at]]
        table[state, order] = reached
    return table
