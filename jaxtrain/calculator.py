"""What of a text is a sum, decided on bytes and usable inside `jit`.

A sum is the longest arithmetic expression that ends at `=` and stands alone: `48 / 2`,
`$1,250 x (3 + 0.5)`, `20% * 50`. It may begin a line, follow `<<`, `=`, `>` or a word. What could
be more than it looks is none: behind a word with an operator (`3 boys + 4`, `35 words x 2/5`) or a
word that counts (`half of 3 + 4`), a bullet (`- 3 + 4`), a time (`3:30 + 1`), a list (`1,2 + 3`),
an unknown sign. There is no power, no implied product and no minus but at the front and behind a
bracket.

An automaton over bytes reads it; every byte has an *action* on the registers of `nn.arithmetic`.
"""

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from jaxtrain.errors import require

# Actions; 0 to 9 are digits, and FRACTION + 0 to 9 are those behind a point.
FRACTION, NOTHING, PERCENT, TIMES, OVER, PLUS, MINUS = range(10, 80, 10)
NEGATE, OPEN, CLOSE, EQUALS = range(80, 120, 10)
RESULT = "0123456789-."  # characters of a result
MAX_OPEN = 2  # brackets inside each other
MAX_BYTES = 8  # of a token that are read; no longer one holds a sum
OPERATORS = {"+": PLUS, "-": MINUS, "*": TIMES, "x": TIMES, "/": OVER}
# Words in front of a sum that make it a part of a longer one, or number what it is a part of; an x
# may be a sign behind a word, and what follows `2 and` a fraction.
WORDS = """x of times by over plus minus less half halving twice thrice double doubling triple
    quadruple dozen thousand negative squared cubed power sqrt root log ln sin cos tan abs mod
    choose point step line option case part day week #and"""
COUNTING = frozenset(WORDS.split())
LONG_WORD = re.compile(rb"[A-Za-z]{7,}")
BENIGN = "'\".,:;?!"  # signs that words stand between

# Tokens that begin a result, behind what may stand in front of it, and that go on with one.
LEAD = b" $"
BEGINS = re.compile(rb"[ $]*([-+]?\.?\d|[-+]$)")
GOES_ON = re.compile(rb"[.,]*[\d%]")

State = tuple  # (where, brackets that are open, more)
START, WORD, LOST = ("start", 0, ""), ("word", 0, ""), ("lost", 0, "")
LISTED = ("letters", 0, ",")
OUTSIDE = ("start", "word", "letters", "lost")  # of a sum


class Calculator(NamedTuple):
    """Tables of the automaton and of the tokens."""

    state: np.ndarray  # [states 256] int32, the next one
    action: np.ndarray  # [states 256] int32
    is_outside: np.ndarray  # [states] bool, no sum has begun
    level: np.ndarray  # [states] int32, brackets that are open
    spelt: np.ndarray  # [V T] int32, bytes of a token, -1 behind them
    begins: np.ndarray  # [V] bool, it begins a number
    goes_on: np.ndarray  # [V] bool, it goes on with one
    result: np.ndarray  # [12] int32, the tokens of RESULT; -1: no result has this sign


def make_calculator(token_bytes: Sequence[bytes]) -> Calculator:
    """Compile the automaton. Raises UserError for a tokenizer that cannot write every number."""
    # A result is written character by character. Without a sign or a point, none has it.
    ids = {text: i for i, text in reversed(list(enumerate(token_bytes)))}
    missing = "".join(char for char in RESULT[:10] if char.encode() not in ids)
    told = f"the tokenizer has no token for {missing[:1]!r} alone, and results are written by"
    then = "characters; leave the calculator out"
    require(not missing, "--config.trace.calculator=True", f"{told} {then}")

    # Of a word or of spaces the first says all; of what is still long the end is read, behind a
    # sign that ends every sum.
    texts = [re.sub(rb" +", b" ", LONG_WORD.sub(shorter, text)) for text in token_bytes]
    texts = [t if len(t) <= MAX_BYTES else b"\0" + t[1 - MAX_BYTES :] for t in texts]
    texts = [text or b"\0" for text in texts]  # one without text is a sign of its own
    spelt = np.array([*zip_longest(*texts, fillvalue=-1)], np.int32).T

    states, table = tabulate([START], lambda state, byte: following(state, chr(byte))[0])
    actions = [[following(state, chr(byte))[1] for byte in range(256)] for state in states]
    return Calculator(
        state=table,
        action=np.array(actions, np.int32),
        is_outside=np.array([where in OUTSIDE for where, *_ in states]),
        level=np.array([level for _, level, _ in states], np.int32),
        spelt=spelt,
        begins=np.array([bool(BEGINS.match(text)) for text in token_bytes]),
        goes_on=np.array([bool(GOES_ON.match(text)) for text in token_bytes]),
        result=np.array([ids.get(char.encode(), -1) for char in RESULT], np.int32),
    )


def shorter(word: re.Match[bytes]) -> bytes:
    """Stand in for a long word: one that counts, or one that does not."""
    return b"of" if word[0].decode().lower() in COUNTING else word[0][:1] + b"zz"


def tabulate(states: Sequence[Any], following: Callable) -> tuple[list[Any], np.ndarray]:
    """Number the states that are reached, the given ones first: [states 256] int32, the next."""
    states, rows = list(states), []
    for state in states:  # grows while it is walked
        row = [following(state, byte) for byte in range(256)]
        states += [new for new in dict.fromkeys(row) if new not in states]
        rows.append([states.index(new) for new in row])
    return states, np.array(rows, np.int32)


def following(state: State, char: str) -> tuple[State, int]:
    """Return the next state and the action of a byte, as the character of its number."""
    where, level, more = state
    if char == "=":
        is_sum = level == 0 and (where == "done" or (where == "number" and is_whole(more)))
        return START, EQUALS if is_sum else NOTHING
    if char in "\n<>":
        return START, NOTHING
    if where in ("start", "word"):
        return begin(where, char)
    if where in ("letters", "lost"):
        return outside(where, more, char), NOTHING
    if where == "cross":  # the second byte of a sign that Latin-1 has, too
        action = {"\x97": TIMES, "\xb7": OVER}.get(char)
        return (("operand", level, ""), action) if action else (LOST, NOTHING)
    return (operand if where == "operand" else operator)(state, char)


def begin(where: str, char: str) -> tuple[State, int]:
    """Read what may be the first character of a sum."""
    if char in " $":
        return (where, 0, ""), NOTHING
    if char == "-":
        # With a space behind it, it would be a bullet.
        return (("operand", 0, "sign"), NEGATE) if where == "start" else (LOST, NOTHING)
    if char.isdecimal() or char == "(":
        return operand(("operand", 0, ""), char)
    return outside("letters", "", char, is_first=True), NOTHING


def outside(where: str, word: str, char: str, is_first: bool = False) -> State:
    """Read what stands before a sum; a sentence that is lost may be found again at its end.

    `word` is the beginning of one of COUNTING, or `,` where another number would make a list.
    """
    if where == "lost":
        return ("letters", 0, "") if char in BENIGN else LOST
    word, is_first = ("", True) if word == "," else (word, is_first)
    if char == " ":
        return LOST if word in COUNTING else WORD
    if char in BENIGN:
        # A stop ends a word, an apostrophe does not.
        return LOST if word in COUNTING and char in "'\"" else ("letters", 0, "")
    if char == "-" and not is_first:
        return ("letters", 0, "")
    if not (char.isascii() and char.isalpha()):
        return LOST
    longer = word + char.lower()
    is_begun = (is_first or word) and any(name.startswith(longer) for name in COUNTING)
    return ("letters", 0, longer if is_begun else "")


def operand(state: State, char: str) -> tuple[State, int]:
    """Read the beginning of a number or a bracket."""
    _, level, more = state
    if char.isascii() and char.isdecimal():
        return ("number", level, "1" if int(char) else "0"), int(char)
    if char == "(" and level < MAX_OPEN:
        return ("operand", level + 1, "open"), OPEN
    if char == "-" and more == "open":
        return ("operand", level, "sign"), NEGATE
    if char == "$" or (char == " " and more != "sign"):
        return ("operand", level, more), NOTHING
    return LOST, NOTHING


def operator(state: State, char: str) -> tuple[State, int]:
    """Read what may follow in or behind a number, or behind a bracket.

    What was read of a number: `0`, one that begins so; `1` to `4`, that many digits or more; `,0`
    to `,3`, those behind a comma; `,`, which parts no thousands; `.`; `f`, digits behind a point.
    """
    where, level, more = state
    # Digits, commas between three of them, and a point.
    if where == "number":
        if char.isascii() and char.isdecimal():
            return digit(level, more, int(char))
        if char == ",":
            return ("number", level, ",0" if more in ("1", "2", "3", ",3") else ","), NOTHING
        if char == "." and more in ("0", "1", "2", "3", "4", ",3"):
            return ("number", level, "."), NOTHING
        # A comma or a point was a stop, or no number is written so.
        if not is_whole(more):
            is_stop = char == " " and more in (".", ",", ",0")
            return (LOST if not is_stop else WORD if more == "." else LISTED), NOTHING
        if char == "%":
            return ("done", level, ""), PERCENT

    # What joins it to another number.
    if char in OPERATORS:
        return ("operand", level, ""), OPERATORS[char]
    if char == "\xc3":
        return ("cross", level, ""), NOTHING
    if char == ")" and level:
        return ("done", level - 1, ""), CLOSE
    if char == " ":
        return ("done", level, ""), NOTHING

    # It was no part of a sum.
    if char.isalpha() or (char in BENIGN and not (where == "done" and char in ":!,.")):
        word = "#" if where == "done" and char == "a" else ""
        return outside("letters", word, char, is_first=True), NOTHING
    return LOST, NOTHING


def digit(level: int, more: str, value: int) -> tuple[State, int]:
    """Read one more digit of a number."""
    if more in (".", "f"):
        return ("number", level, "f"), FRACTION + value
    if more[0] == ",":
        is_group = "," < more < ",3"
        return (("number", level, f",{int(more[1]) + 1}"), value) if is_group else (LOST, NOTHING)
    return ("number", level, more if more in ("0", "4") else str(int(more) + 1)), value


def is_whole(more: str) -> bool:
    """Tell whether a number may end here."""
    return more in ("0", "1", "2", "3", "4", ",3", "f")
