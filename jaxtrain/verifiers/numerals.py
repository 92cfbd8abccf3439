"""Find and read the number that a text gives as its answer. Imports nothing of ours.

What a model wrote is hostile input. Only a bounded tail is searched, only a bounded piece of it is
read, digits are ASCII after normalisation, and what is not surely a number is none: a verifier that
guesses rewards whoever fools it.
"""

import re
import unicodedata
from fractions import Fraction

MARKER = "####"
BOX = "\\boxed{"
MAX_TAIL = 4096  # characters at the end of a text in which an answer is looked for
MAX_NUMBER = 64  # characters of an answer; a longer one is no number

CURRENCY = r"(?:\\?\$|[\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}\N{INDIAN RUPEE SIGN}])?"
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
NUMBER = re.compile(
    rf"(?P<sign>[-+]?){CURRENCY} ?(?P<sign2>[-+]?)"
    rf"(?:(?P<decimal>{DIGITS}(?:\.[0-9]+)?|\.[0-9]+)|(?P<over>{DIGITS})/(?P<under>{DIGITS}))"
    rf" ?{CURRENCY}(?:\\?%)?\.?"
)
LONE_BOX = re.compile(r"\$?\\boxed\{([^{}]*)\}\$?\.?")
BRACE = re.compile(r"\\boxed\{|[{}]")
# Other compatibility characters change the number they stand in: NFKC reads a superscript as a
# further digit.
SAFE_FORMS = ("<wide>", "<narrow>", "<small>", "<font>", "<noBreak>")


def extract_answer(text: str) -> str | None:
    """Return what a text gives as its answer, None if it gives none.

    It is the rest of the line after the last `####`, or what the last `\\boxed{...}` holds that
    stands in no other, where it comes after that line: `####` is a heading, too. Only the last
    MAX_TAIL characters are searched.

    >>> extract_answer("3 + 4 = 7\\n#### 7"), extract_answer("so x is 7")
    ('7', None)
    """
    tail = text[-MAX_TAIL:]
    _, marker, rest = tail.rpartition(MARKER)
    line, _, after = rest.partition("\n")
    box = _last_box(after if marker else tail) if BOX in rest else None
    if box is not None or not marker:
        return box
    lone = LONE_BOX.fullmatch(line.strip())
    return (lone[1] if lone else line).strip()


def read_number(text: str) -> Fraction | None:
    """Return the exact value of an integer, a decimal or a fraction `a/b`, None for anything else.

    Leaves out commas between thousands, one currency sign, a percent sign (50% reads as 50) and a
    trailing period.

    >>> read_number("$1,200.50."), read_number("about 3")
    (Fraction(2401, 2), None)
    """
    text = text.strip()
    if len(text) > MAX_NUMBER:
        return None
    if not text.isascii():
        forms = (unicodedata.decomposition(character).split(" ")[0] for character in text)
        if any(form.startswith("<") and form not in SAFE_FORMS for form in forms):
            return None
        text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-")
    match = NUMBER.fullmatch(text)
    if match is None or (match["sign"] and match["sign2"]):
        return None
    over = Fraction((match["over"] or match["decimal"]).replace(",", ""))
    under = int((match["under"] or "1").replace(",", ""))
    if under == 0:
        return None
    value = over / under
    return -value if "-" in match["sign"] + match["sign2"] else value


def write_number(value: Fraction) -> str:
    """Write a number whose decimals end in the one form that equal numbers share."""
    if value.denominator == 1:
        return str(value.numerator)
    whole, decimals = divmod(abs(value) * 10**MAX_NUMBER // 1, 10**MAX_NUMBER)
    return f"{'-' * (value < 0)}{whole}.{decimals:0{MAX_NUMBER}d}".rstrip("0")


def _last_box(text: str) -> str | None:
    """Return what the box holds that closes last, None where a box is left open.

    A box that holds nothing but a box is one with it.
    """
    opened, box, inside = [], None, None  # spans: of the box that closed last, of what it holds
    for match in BRACE.finditer(text):
        if match[0] != "}":
            opened.append(match)
        elif opened and (start := opened.pop())[0] == BOX:
            if box != (start.end(), match.start()):
                inside = start.end(), match.start()
            box = start.start(), match.end()
    if inside is None or any(match[0] == BOX for match in opened):
        return None
    return text[slice(*inside)].strip()
