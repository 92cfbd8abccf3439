"""Cases are tables: what a text says, and what may be read from it; then texts at random whose
value is known.
"""

import random
from fractions import Fraction

import pytest

from jaxtrain.structs import Verdict
from jaxtrain.tasks import Problem
from jaxtrain.tasks.jsonl import JsonlTask
from jaxtrain.tasks.reasoning_gym import ReasoningGymTask
from jaxtrain.verifiers.numerals import extract_answer, read_number, write_number
from jaxtrain.verifiers.worker import Worker

NUMBERS = [
    (r"72\%", 72),
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
    (r"\boxed{\boxed{\boxed{3}}}", "3"),
    (r"\boxed{\boxed{7} 8}", r"\boxed{7} 8"),
    (r"\boxed{8 \boxed{7}}", r"8 \boxed{7}"),
    (r"\boxed{\boxed{7} 8", None),
    (r"\boxed{1} \boxed{2", None),
    (r"\boxed{5 \boxed{6}} \boxed{7}", "7"),
    (r"{\boxed{7}", "7"),
    (r"\boxed{" * 500 + "7" + "}" * 500, "7"),
    (r"#### 1 and \boxed{2}", r"1 and \boxed{2}"),
    (r"\boxed{2}" + "\n#### 1", "1"),
    ("#### 1.\nfirst\n" + r"\boxed{5}", "5"),
    ("#### Final answer\n" + r"so $\boxed{72}$.", "72"),
    ("#### 72\nas in " + r"\boxed{7", "72"),
    (r"#### \boxed{72}", "72"),
    (r"#### $\boxed{ 72 }$.", "72"),
    ("#### 72\nDone.", "72"),
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


def test_equal_numbers_are_written_alike():
    for text, written in [
        ("72.0", "72"),
        ("$1,080.50", "1080.5"),
        ("-.5", "-0.5"),
        ("-0", "0"),
        ("007", "7"),
    ]:
        number = read_number(text)
        assert number is not None and write_number(number) == written
        assert read_number(written) == number


# each as it is and spoilt; a plain generator, since hypothesis takes minutes for as many
NUM_CASES = 12_000
FULL_WIDTH = str.maketrans(
    "0123456789", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19"
)


def draw_number(rng):
    """Write a number in one of its accepted forms. Returns (text, value)."""
    whole = rng.randrange(10 ** rng.randint(1, 12))
    text, value = f"{whole:,}" if rng.random() < 0.4 else str(whole), Fraction(whole)
    kind = rng.randrange(4)
    if kind == 0:
        under = rng.randint(1, 999)
        text, value = f"{text}/{under}", value / under
    elif kind == 1:
        places = rng.randint(1, 6)
        decimals = rng.randrange(10**places)
        text, value = f"{text}.{decimals:0{places}d}", value + Fraction(decimals, 10**places)
    sign = rng.choice(["", "", "-", "+", "\u2212"])
    before, after = rng.choice(
        [("", ""), ("", ""), ("$", ""), ("\\$", ""), ("\u20ac", ""), ("", " \u20ac"), ("", "%")]
    )
    text = f"{sign}{before}{text}{after}{rng.choice(['', '', '.'])}"
    if rng.random() < 0.1:
        text = text.translate(FULL_WIDTH)
    return text, -value if sign in ("-", "\u2212") else value


def spoil(text, rng):
    """Make a text of a number that is none."""
    other = rng.randrange(1000)
    forms = [
        f"{text} or {other}",
        f"{text} {other}",
        f"{other}, {text}",
        f"not {text}",
        f"{text} dogs {other} cats",
    ]
    forms += [
        f"--{text}",
        f"{text}\u00b2",
        f"{text}e3",
        f"{text}*1",
        f"{text}=={text}",
        f"{text}!",
        f"({text})",
    ]
    forms += [
        f"x={text}",
        f"{text}/0",
        f"1,{other:03d}0,{text}",
        f"{text}_{other}",
        f"0x{text}",
        f"{text} - {other}",
    ]
    forms += [f"{text}\u0663", f"{text}\u00bd", f"{text}\0", f"\\boxed{{{text}}} {other}"]
    return rng.choice(forms)


def draw_response(answer, rng):
    """Give an answer in one of the forms of a whole response."""
    reasoning = rng.choice(["", "So 3 + 4 = 7.\n", "#### 5\nNo.\n", "It is \\boxed{5}.\n"])
    forms = [f"#### {answer}", f"####{answer}\nDone: 5", f"##### {answer}"]
    if "####" not in reasoning and "\\boxed" not in answer:
        forms += [
            f"\\boxed{{{answer}}}",
            f"It is $\\boxed{{ {answer} }}$, {{5}}.",
            f"\\boxed{{\\boxed{{{answer}}}}}",
        ]
    return reasoning + rng.choice(forms)


def test_verdicts_follow_the_value_alone():
    """Against exact fractions: every form of a right number is taken for it, and nothing else."""
    rng = random.Random(0)
    ours = JsonlTask("jsonl", None, (), (), (), ())
    theirs = ReasoningGymTask(
        "gsm_symbolic", None, (), (), (), (), worker=Worker("gsm_symbolic", {})
    )
    for _ in range(NUM_CASES):
        text, value = draw_number(rng)
        given = draw_response(text, rng)
        gold = rng.choice(
            [value, value, -value, value + 1, value * 10, 1 / value if value else value, abs(value)]
        )
        right = Verdict.CORRECT if gold == value else Verdict.WRONG
        problem = Problem(0, "", write_number(gold) if 10**6 % gold.denominator == 0 else str(gold))
        assert ours.verify(problem, given) == right, (given, gold)
        if "/" not in text + problem.gold:  # the scorer has a say in quotients
            assert theirs.verify(problem, given) == right, (given, gold)
            assert theirs.answer(given) == write_number(value)

        spoilt = draw_response(spoil(text, rng), rng)
        assert ours.verify(problem, spoilt) == Verdict.UNPARSABLE, spoilt
        if "/" not in problem.gold:
            assert theirs.verify(problem, spoilt) == Verdict.UNPARSABLE, spoilt
