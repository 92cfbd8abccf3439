"""Cases are tables: what a text says, and what may be read from it."""

from fractions import Fraction

import pytest

from jaxtrain.verifiers.numerals import extract_answer, read_number

NUMBERS = [
    ("72", 72),
    ("  72\n", 72),
    ("-3", -3),
    ("+3", 3),
    ("007", 7),
    ("0", 0),
    ("-0", 0),
    ("72.", 72),
    ("0.50", Fraction(1, 2)),
    (".5", Fraction(1, 2)),
    ("6/4", Fraction(3, 2)),
    ("-6/4", Fraction(-3, 2)),
    ("1,000/2", 500),
    ("1,234", 1234),
    ("1,234,567.25", Fraction(123456725, 100)),
    ("$1,080", 1080),
    ("$ 5", 5),
    (r"\$5", 5),
    ("$5$", 5),
    ("-$5", -5),
    ("$-5", -5),
    ("$.5", Fraction(1, 2)),
    ("5\u20ac", 5),
    ("5 \u20ac.", 5),
    ("50%", 50),
    ("\uff11\uff12", 12),  # full-width digits
    ("\U0001d7d7", 9),  # mathematical bold nine
    ("\u22125", -5),  # minus sign
    ("$\u00a05", 5),  # no-break space
    ("9" * 64, int("9" * 64)),
]

NOT_NUMBERS = [
    "",
    " ",
    ".",
    "-",
    "$",
    "%",
    "seventy",
    "72 clips",
    "1 2",
    "12 000",
    "1,2",
    "1,23,456",
    ",123",
    "1,234,",
    "1234,567",
    "1.2.3",
    "1..",
    "1e3",
    "0x10",
    "1_000",
    "--5",
    "-$-5",
    "5-",
    "1/0",
    "0/0",
    "1/0,000",
    "1/-2",
    "1/2/3",
    "1.5/2",
    "1//2",
    "1 1/2",
    "2\u00b2",  # superscript two: NFKC would make it 22
    "1\u2082",  # subscript two
    "\u00bd",  # one half
    "1\u00bd",  # one and a half: NFKC would make it 11/2
    "\u2460",  # circled one
    "\u24885",  # digit one full stop, then 5
    "\u0663",  # Arabic-Indic three
    "\u096b",  # Devanagari five
    "\u4e09",  # the word three in Chinese
    "nan",
    "inf",
    "5\ufffd",
    "5\0",
    "9" * 65,
    "9" * 30_000,
    "," * 20_000,
    "1" + ",000" * 20_000,
    "1/" * 20_000,
    "0." + "0" * 100_000,
    " " * 100_000 + "x",
    "\ufdfa" * 64,  # one character that NFKC makes eighteen
    "-" * 100_000,
]

ANSWERS = [
    ("#### 72", "72"),
    ("She has 70 + 2 = 72.\n#### 72", "72"),
    ("#### 1\n#### 2", "2"),
    ("#### 1 #### 2", "2"),
    ("##### 5", "5"),
    ("####5\r\nand more", "5"),
    ("#### ", ""),
    ("#### 7 ####", ""),
    (r"\boxed{5}", "5"),
    (r"\boxed{1} or \boxed{2}", "2"),
    (r"\boxed{a{b}c}", "a{b}c"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"#### 1 and \boxed{2}", r"1 and \boxed{2}"),
    (r"\boxed{2}" + "\n#### 1", "1"),
    (r"\boxed{5", None),
    (r"\boxed{{5}", None),
    (r"\boxed", None),
    ("72", None),
    ("### 72", None),
    ("", None),
    ("#### 5" + " " * 100_000, None),  # further back than is searched
    (r"\boxed{" * 100_000, None),
    (r"\boxed{" + "{" * 100_000 + "}" * 100_000, None),
    ("}" * 100_000 + r"\boxed{5}", "5"),
    ("#" * 100_000 + " 5", "5"),
    ("#### 4\n" * 100_000 + "#### 5", "5"),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS, ids=range(len(NUMBERS)))
def test_a_number_is_read_exactly(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize("text", NOT_NUMBERS, ids=range(len(NOT_NUMBERS)))
def test_what_is_not_surely_a_number_is_none(text):
    assert read_number(text) is None


@pytest.mark.parametrize(("text", "answer"), ANSWERS, ids=range(len(ANSWERS)))
def test_the_last_answer_of_the_tail_is_found(text, answer):
    assert extract_answer(text) == answer


def test_every_fraction_is_read_back():
    for over in range(-40, 41):
        for under in range(1, 25):
            assert read_number(f"{over}/{under}") == Fraction(over, under)


def test_separators_between_thousands_do_not_change_a_number():
    for exponent in range(0, 40):
        number = 7 * 10**exponent + 3
        assert read_number(f"{number:,}") == number
