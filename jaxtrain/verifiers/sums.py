"""Which sums in a text are false. Stands below the tasks.

What is a sum is what the calculator takes for one (`calculator`), computed here without a limit. A
result is judged where it surely is one: a number that no operator, digit, percent sign or colon
follows. A rounded result is never false: one that is less than a unit of its own last digit away
says nothing, or is right where it is as near as that digit allows. Nor is one that may be in
another unit (`25 * 4 = $1`).
"""

import ast
import operator
import re
from collections.abc import Iterator
from fractions import Fraction

from jaxtrain.calculator import EQUALS, OUTSIDE, START, following

MAX_BYTES = 1024  # of a step; a longer one is not judged
RESULT = re.compile(
    rb" *(?P<unit>\$?) ?"
    rb"(?P<number>-?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,18})(?:\.[0-9]{1,18})?)"
    rb"(?P<word> ?(?!x\b)[A-Za-z]+)?+(?![0-9A-Za-z]|[.,:][0-9]| *[-+*/x%^:(=0-9\x80-\xff])"
)
# Times of day, carries, and numbers that are not decimal or go round: such a line is not judged.
OTHER = re.compile(
    rb"(?<![0-9.,])0[0-9]|\b(?:base|binary|hex\w*|octal|mod\w*|carry|morning|afternoon|evening)\b"
    rb"|[0-9] ?(?:[ap]\.?m|o'clock)\b",
    re.I,
)
# A result in another unit (hours, feet, dollars, dozens, thousands, 1.500) is so many times off.
UNITS = {3, 4, 7, 8, 12, 16, 24, 25, 28, 30, 31, 36, 52, 60, 100, 144, 168, 365, 1440, 1760, 2000}
UNITS |= {1000, 3600, 5280, 86400, 10**6, 10**9}

SIGNS = str.maketrans({"x": "*", "×": "*", "÷": "/", "$": "", ",": "", " ": ""})
OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def check_sums(text: str) -> bool | None:
    """Say False where a sum is certainly wrong, True where all are right, else None.

    >>> check_sums("2 + 3 * 4 = 14"), check_sums("7 - 9 = 2"), check_sums("x = 3")
    (True, False, None)
    """
    told = set(judge_sums(text))
    return next((said for said in (False, None, True) if said in told), None)


def judge_sums(text: str) -> Iterator[bool | None]:
    """Judge all results of the sums in a text, behind `>>` too; None where it cannot be told."""
    data = text.encode(errors="replace")
    if b"=" not in data or len(data) > MAX_BYTES or OTHER.search(data):
        return
    state, begin = START, 0
    for at, byte in enumerate(data):
        begin = at if state[0] in OUTSIDE else begin
        state, action = following(state, chr(byte))
        if action == EQUALS and (match := RESULT.match(data, at + 1)):
            right = value_of(data[begin:at].decode())
            is_annotated = data[begin - 2 : begin] == b"<<" and data.startswith(b">>", match.end())
            again = RESULT.match(data, match.end() + 2) if is_annotated else None
            for stated in filter(None, (match, again)):
                yield None if right is None else judge_result(right, stated)


def judge_result(right: Fraction, match: re.Match[bytes]) -> bool | None:
    """Compare a stated result with the right one."""
    number = match["number"].replace(b",", b"").decode()
    stated, num_digits = Fraction(number), len(number.partition(".")[2])
    gap = abs(right - stated) * 10**num_digits  # in units of its last digit
    if gap < 1:
        return True if gap <= Fraction(1, 2) else None
    is_converted = (match["unit"] or match["word"] or num_digits == 3) and right and stated
    if is_converted and not UNITS.isdisjoint((right / stated, stated / right)):
        return None
    return False


def value_of(text: str) -> Fraction | None:
    """Compute what the calculator takes for a sum, exactly; None for a lone number, for a division
    by zero or by what may be a fraction (`3 / 1/4`), and for percents that are added.
    """
    plain = text.translate(SIGNS)
    is_added = "%" in plain and ("+" in plain or "-" in plain)
    if is_added or not re.search(r".[-+*/]", plain) or re.search(r"/[\d.%]+/", plain):
        return None
    exact = re.sub(r"([\d.]+)%", r"(\1/100)", plain)
    try:
        return compute(ast.parse(exact, mode="eval").body, exact)
    except ZeroDivisionError:
        return None


def compute(node: ast.AST, text: str) -> Fraction:
    """Evaluate what Python reads of a text, in fractions."""
    if isinstance(node, ast.UnaryOp):
        return -compute(node.operand, text)
    if isinstance(node, ast.BinOp):
        left, right = compute(node.left, text), compute(node.right, text)
        return OPERATIONS[type(node.op)](left, right)
    assert isinstance(node, ast.Constant)
    return Fraction(text[node.col_offset : node.end_col_offset])
