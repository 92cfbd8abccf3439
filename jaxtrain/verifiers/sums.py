"""Which sums in a text are false. Stands below the tasks.

What is a sum is what the calculator takes for one (`calculator`), computed here without a limit. A
result is judged where it surely is one: a number that no operator, digit, percent sign or colon
follows, of a sum that no number or `x` precedes (`35 questions x 2/5`). A rounded result is never
false: one that is less than a unit of its own last digit away says nothing, or is right where it is
as near as that digit allows. Nor is one that may be in another unit (`25 * 4 = $1`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from jaxtrain.calculator import (
    CLOSE,
    EQUALS,
    FRACTION,
    MINUS,
    NEGATE,
    NOTHING,
    OPEN,
    OUTSIDE,
    OVER,
    PERCENT,
    PLUS,
    START,
    TIMES,
    following,
)

MAX_BYTES = 1024  # of a step that are read
RESULT = re.compile(
    rb" *(?P<unit>\$?) ?(?P<number>-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,18})(?:\.[0-9]{1,18})?)"
    rb"(?P<word> ?(?!x\b)[A-Za-z]+)?(?![0-9A-Za-z]|[.,:][0-9]| *[-+*/x%^:(=0-9\x80-\xff])"
)
# What stands before a sum that is more than it looks, and a number that is a time of day.
GOES_ON = re.compile(rb"(?:[0-9],? *|\bx *)$", re.I)
CLOCK = re.compile(rb"(?<![0-9.,])0[0-9]")
# Numbers that are not decimal, or go round: a line that names them is not judged.
OTHER = re.compile(rb"\b(?:base|binary|hex\w*|octal|mod\w*)\b|[0-9] ?(?:[ap]\.?m|o'clock)\b", re.I)
# A result in another unit (hours, feet, dollars, dozens, thousands) is such a number of times off.
UNITS = {3, 4, 7, 12, 16, 24, 30, 52, 60, 100, 365, 1000, 3600, 10**6}


def check_sums(text: str) -> bool | None:
    """Say False where a sum in a text is certainly wrong, True where all are right, None where
    there is none that can be told.
    """
    told = list(judge_sums(text))
    return None if not told or (None in told and False not in told) else False not in told


def judge_sums(text: str) -> Iterator[bool | None]:
    """Judge every sum in a text that has a result; None where it cannot be told."""
    data = text.encode(errors="replace")[:MAX_BYTES]
    if b"=" not in data or OTHER.search(data) or CLOCK.search(data):
        return
    state, actions, begin = START, [], 0
    for at, byte in enumerate(data):
        if state[0] in OUTSIDE:
            actions, begin = [], at
        state, action = following(state, chr(byte))
        actions += [action] * (action != NOTHING)
        if action == EQUALS and (match := RESULT.match(data, at + 1)):
            right = None if GOES_ON.search(data[:begin]) else value_of(actions)
            yield None if right is None else judge_result(right, match)


def judge_result(right: Fraction, match: re.Match[bytes]) -> bool | None:
    """Compare a stated result with the right one."""
    number = match["number"].replace(b",", b"").decode()
    unit = Fraction(1, 10 ** len(number.partition(".")[2]))  # of its last digit
    stated = Fraction(number)
    gap = abs(right - stated) / unit
    if gap < 1:
        return True if gap <= Fraction(1, 2) else None
    is_converted = (match["unit"] or match["word"]) and right and stated
    if is_converted and not UNITS.isdisjoint((right / stated, stated / right)):
        return None
    return False


def value_of(actions: Sequence[int]) -> Fraction | None:
    """Compute a sum from the calculator's actions, exactly; None for none, for a division by zero
    or by what may be a fraction (`3 / 1/4`), and for percents that are added.
    """
    # Of every open bracket: total + product (* or /) the number.
    total, product, is_over, before = Fraction(0), Fraction(1), False, []
    number, place = Fraction(0), 1
    for action in actions:
        if action < NOTHING:
            place = place * 10 if action >= FRACTION else 1
            digit = action % 10
            number = number + Fraction(digit, place) if place > 1 else number * 10 + digit
            continue
        if action == PERCENT:
            number /= 100
            continue
        if action in (NEGATE, OPEN):
            before += [(total, product, is_over)] * (action == OPEN)
            total, product, is_over = Fraction(0), Fraction(1 - 2 * (action == NEGATE)), False
        else:
            # An operator, a closed bracket and the end come to a product, most of them to a total.
            if is_over and (not number or action == OVER):
                return None
            product = product / number if is_over else product * number
            total = total if action in (TIMES, OVER) else total + product
        number, place = Fraction(0), 1
        if action in (TIMES, OVER):
            is_over = action == OVER
        elif action in (PLUS, MINUS):
            product, is_over = Fraction(1 - 2 * (action == MINUS)), False
        elif action == CLOSE:
            number = total
            total, product, is_over = before.pop()
    is_added = PERCENT in actions and not {PLUS, MINUS}.isdisjoint(actions)
    is_sum = not {PLUS, MINUS, TIMES, OVER}.isdisjoint(actions)
    return total if is_sum and not is_added else None
