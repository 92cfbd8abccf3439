"""The calculator of decoding: which sums it reads, that no result is wrong, and its law."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_distinct import assert_law, in_order
from tiny_models import Bigram

from jaxtrain.boundaries import TraceConfig, make_tables
from jaxtrain.calculator import RESULT, make_calculator
from jaxtrain.errors import UserError
from jaxtrain.nn.arithmetic import DUE, LARGEST, advance, character, length_of, no_sums
from jaxtrain.nn.reader import make_reader
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.search.mcts_star import MctsStarConfig
from jaxtrain.structs import Prompts, Tree

BYTES = [bytes([i]) for i in range(256)]
CALCULATOR = make_calculator(BYTES)
WIDTH = 128  # of the texts that are read together


@jax.jit
def read(rows):
    """Read texts [b WIDTH], 0 behind each: (is a result due?, its length, its characters)."""

    def turn(sums, token):
        new = advance(CALCULATOR, sums, token)
        return jax.tree.map(
            lambda x, y: jnp.where((token > 0).reshape(-1, *(1,) * (x.ndim - 1)), x, y), new, sums
        ), None

    sums, _ = jax.lax.scan(turn, no_sums(len(rows)), rows.T)
    chars = jnp.stack([character(sums.result, jnp.full(len(rows), at)) for at in range(16)], 1)
    return sums.stage == DUE, length_of(sums.result), chars


def results_of(texts: list[str]) -> list[str | None]:
    """Say what the calculator would write behind each text."""
    rows = np.zeros((len(texts), WIDTH), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text.encode())] = list(text.encode())
    told = zip(*map(np.asarray, read(rows)), strict=True)
    return ["".join(RESULT[c] for c in chars[:n]) if is_due else None for is_due, n, chars in told]


OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


NAMES = {"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div}


class Refused(Exception):
    """A sum that the calculator need not know."""


def value_of(node: ast.AST) -> Fraction:
    """Evaluate what Python reads; raises Refused where a part of it does not fit."""
    if isinstance(node, ast.Constant):
        value = Fraction(str(node.value))
    elif isinstance(node, ast.UnaryOp):
        value = -value_of(node.operand)
    else:
        assert isinstance(node, ast.BinOp)
        left, right = value_of(node.left), value_of(node.right)
        if isinstance(node.op, ast.Div) and right == 0:
            raise Refused
        value = OPERATIONS[type(node.op)](left, right)
        is_product = isinstance(node.op, ast.Mult) and 0 not in (left, right)
        if is_product and abs(mantissa(left) * mantissa(right)) > LARGEST:
            raise Refused
    if abs(mantissa(value)) > 10**8:
        raise Refused
    return value


def mantissa(value: Fraction) -> int:
    """Return the digits of a decimal without zeros at its end; raises Refused for other numbers."""
    ends = [value * 10**n for n in range(10) if (value * 10**n).denominator == 1]
    if not ends:
        raise Refused
    return int(str(int(ends[0])).rstrip("0") or 0)


def draw_sum(rng, depth=0) -> str:
    """Draw an expression in Python's words."""
    parts, signs = [], ["+", "-", "*", "/"]
    for _ in range(int(rng.integers(2, 5 - depth))):
        if depth < 2 and rng.random() < 0.15:
            inside = draw_sum(rng, depth + 1)
            parts.append(f"({'-' if rng.random() < 0.2 else ''}{inside})")
        elif rng.random() < 0.25:
            parts.append(f"{rng.integers(0, 50)}.{rng.integers(0, 100)}")
        else:
            parts.append(str(rng.integers(0, 10 ** int(rng.integers(1, 5)))))
        parts.append(str(rng.choice(signs)))
    return ("-" if depth == 0 and rng.random() < 0.1 else "") + "".join(parts[:-1])


def dress(rng, text: str) -> str:
    """Write an expression as people do: spaces, other signs, commas, dollars, words in front."""
    signs = {"*": str(rng.choice(["*", "x", "×"])), "/": str(rng.choice(["/", "÷"]))}
    space = " " * int(rng.integers(2))

    def number(match: re.Match) -> str:
        whole, point, rest = match[0].partition(".")
        whole = f"{int(whole):,}" if rng.random() < 0.5 else whole
        return ("$" if rng.random() < 0.1 else "") + whole + point + rest

    # A minus that is no operator stands close to its number.
    written = re.sub(r"(?<=[\d)])[-+*/]", lambda m: space + signs.get(m[0], m[0]) + space, text)
    written = re.sub(r"[\d.]+", number, written)
    front = ["", "<<", "= "] + ["She has ", "Now, ", "It is 5. So "] * (text[0] != "-")
    return str(rng.choice(front)) + written + space + "="


def test_no_result_of_ten_thousand_sums_is_wrong_or_refused():
    rng, expected = np.random.default_rng(0), {}
    while len(expected) < 10_000:
        drawn = draw_sum(rng)
        if not {*drawn} & {*"+-"} and rng.random() < 0.3:
            drawn = re.sub(r"[\d.]+", r"\g<0>%", drawn, count=1)
        text = dress(rng, drawn)
        exact = re.sub(r"([\d.]+)%", r"(\1/100)", drawn)
        try:
            value = value_of(ast.parse(exact, mode="eval").body)
        except Refused:
            continue
        if len(text.encode()) <= WIDTH:
            expected[text] = value
    found = dict(zip(expected, results_of(list(expected)), strict=True))
    assert [text for text, result in found.items() if result is None] == []
    wrong = {t: r for t, r in found.items() if r is not None and Fraction(r) != expected[t]}
    assert wrong == {}
    # Written as a person would.
    form = re.compile(r"-?(0|[1-9]\d*)(\.\d*[1-9])?")
    assert [result for result in found.values() if result and not form.fullmatch(result)] == []
    assert "-0" not in found.values()
    assert sum("." in result for result in found.values() if result) > 500
    assert sum("%" in text for text in found) > 300


def test_what_does_not_fit_is_refused_and_never_wrong():
    """Numbers of any size: most of the products are too large."""
    rng, expected = np.random.default_rng(1), {}
    for _ in range(10_000):
        a, b = (int(10 ** rng.uniform(0, 10)) for _ in range(2))
        sign = "+-*/"[rng.integers(4)]
        expected[f"{a}{sign}{b}="] = OPERATIONS[NAMES[sign]](Fraction(a), b)
    found = dict(zip(expected, results_of(list(expected)), strict=True))
    assert {t: r for t, r in found.items() if r is not None and Fraction(r) != expected[t]} == {}
    assert 2000 < sum(result is None for result in found.values()) < 8000


@pytest.mark.parametrize(
    ("text", "result"),
    [
        # what is one
        ("48/2=", "24"),
        ("48/2 = <<48/2=", "24"),
        ("<<5*3=15>>15. Then 2 + 2 =", "4"),
        ("She pays $1,250 x (3 + 0.5) =", "4375"),
        ("20% * 50 =", "10"),
        ("1 + 1 = 2 * 3 =", "6"),
        ("Step 1: 4 + 5 =", "9"),
        ("-5 + 3 =", "-2"),
        ("1/8=", "0.125"),
        ("7 - 7.0 =", "0"),
        ("Find x. It is 3 + 4 =", "7"),
        ("x = 3 + 4 =", "7"),
        ("The box 3 x 4 =", "12"),
        ("2000000000 - 1 =", "1999999999"),
        ("300000 * 400000 =", "120000000000"),
        ("It is 5. 3 + 4 =", "7"),
        ("so he has 10 - 4 =", "6"),
        ("0.5 + 007 =", "7.5"),
        ("<<48/2=24>>", "24"),
        ("48/2 = <<48/2=24>> $", "24"),
        # where nothing is sure
        ("1/3 =", None),
        ("5/0 =", None),
        ("5 =", None),
        ("(3 + 4 =", None),
        ("2000000001 + 200000001 =", None),
        ("12 apples * 3 + 4 =", None),
        ("half of 10 + 2 =", None),
        ("10% of 50 + 2 =", None),
        ("3 times 4 + 2 =", None),
        ("- 5 + 3 =", None),
        ("2x-3 =", None),
        ("x + 3 + 4 =", None),
        ("35 questions x 2/5 =", None),
        ("The $70 tax x (20/100) =", None),
        ("X 3 + 4 =", None),
        ("5 apples x 3 x 2 =", None),
        ("x - 3 =", None),
        ("3:30 + 1 =", None),
        ("2,5 + 1 =", None),
        ("1000,000 + 1 =", None),
        ("1.2.3 + 1 =", None),
        ("2**3 =", None),
        ("2^3 + 1 =", None),
        ("3! + 1 =", None),
        ("5(3 + 4) =", None),
        ("5 \u2212 3 + 2 =", None),
        ("3e5 + 2 =", None),
        ("5 + 3 ==", None),
        ("5 + 3 = 8", None),
        ("100 + 10% =", None),
        ("5 3 + 4 =", None),
        ("0,500 + 0,250 =", None),
        ("00,500 + 1 =", None),
        ("1 and 1/2 + 3 =", None),
        ("14, 400 / 80 =", None),
        ("3 . 4 + 1 =", None),
        ("Step 1 - 5 x 3 =", None),
        ("negative 3 + 4 =", None),
        ("Negative 3 + 4 =", None),
        ("sqrt 16 + 3 =", None),
        ("17 mod 5 + 2 =", None),
        ("2 thousand 3 + 4 =", None),
        ("<<48/2=24>", None),
        ("<<48/2=24>>24", None),
        ("48/2=24 >>", None),
        ("48=48>>", None),
    ],
)
def test_what_is_a_sum(text, result):
    assert results_of([text]) == [result]


def test_tokens_are_read_by_their_bytes():
    """Words cut anywhere, and long ones: as if every byte were a token."""
    rng = np.random.default_rng(2)
    pieces = ["12", " 3", "+ 4", " x ", "(5", ")", "half", " of", " apples", "1,0", "00", ".5"]
    pieces += [" considerably", "xylophones", " Negative", "="]
    tokens = [*BYTES, *(piece.encode() for piece in pieces)]
    many = make_calculator(tokens)
    rows = rng.integers(256, len(tokens) - 1, (6000, 6))
    rows[:, -1] = len(tokens) - 1
    texts = [b"".join(tokens[i] for i in row) for row in rows]
    sums, turn = no_sums(len(rows)), jax.jit(partial(advance, many))
    for column in rows.T:
        sums = turn(sums, column)
    found = results_of([text.decode() for text in texts])
    # Only the end counts, and both know the same.
    np.testing.assert_array_equal(np.asarray(sums.stage == DUE), [x is not None for x in found])
    assert sum(x is not None for x in found) > 10


def test_a_tokenizer_that_cannot_write_a_result_is_refused():
    with pytest.raises(UserError, match="no token for '7'"):
        make_calculator([text for text in BYTES if text != b"7"])
    # Without a point, no result has one.
    whole = make_calculator([b"" if text == b"." else text for text in BYTES])
    for text, is_due in ((b"6/3=", True), (b"5/2=", False), (b"2-5=", True)):
        sums, turn = no_sums(1), jax.jit(partial(advance, whole))
        for byte in text:
            sums = turn(sums, jnp.array([byte]))
        assert (sums.stage == DUE).item() is is_due


@pytest.mark.parametrize("how", [{"step_tokens": 8}, {"boundary": "."}])
def test_steps_that_are_no_lines_are_refused(how):
    with pytest.raises(UserError, match="newline"):
        TraceConfig(calculator=True, **how)


# A policy of single characters that likes wrong sums: behind `=` mostly 1.
END, NEWLINE, SIZE = 1, 2, 6
CHARS = ["", "", "\n", *RESULT, "+", "=", "a"]
TEXT = tuple(char.encode() for char in CHARS)
V = len(TEXT)
IDS = {char: i for i, char in enumerate(CHARS) if char}
LAWS = {
    "a": {"2": 0.6, "1": 0.4},
    "1": {"=": 0.5, "+": 0.2, "3": 0.2, "\n": 0.1},
    "2": {"+": 0.5, "=": 0.2, "\n": 0.3},
    "+": {"1": 0.6, "2": 0.4},
    "=": {"1": 0.5, "2": 0.2, "\n": 0.2, "a": 0.1},
    "3": {"+": 0.1, "1": 0.5, "\n": 0.4},
    **{char: {"\n": 0.7, "1": 0.3} for char in "0456789-."},
    "\n": {"1": 1.0},
}


def table() -> np.ndarray:
    out = np.full((V, V), -1e9, np.float32)
    for char, law in LAWS.items():
        out[IDS[char], [IDS[new] for new in law]] = np.log(list(law.values()))
    return out


def steps_behind(text="a", tokens=(), share=1.0) -> dict[tuple[int, ...], float]:
    """List all steps of the policy with a calculator, character by character."""
    if tokens and (tokens[-1] == NEWLINE or len(tokens) == SIZE):
        return {tokens: share}
    sum_ = re.search(r"(?:^a|=)((?:\d+\+)+\d+)=(\d*)$", text)
    law = dict(LAWS[text[-1]])
    if sum_:
        right = str(sum(map(int, sum_[1].split("+"))))
        number = {char for char in law if char.isdigit()}
        if sum_[2] == right:
            law = {char: p for char, p in law.items() if char not in number}
        elif not sum_[2]:
            mass = sum(law.pop(char) for char in number)
            law[right[0]] = mass
        else:
            assert right.startswith(sum_[2])
            law = {right[len(sum_[2])]: 1.0}
    found = {}
    for char, p in law.items():
        new = (*tokens, IDS[char])
        found |= steps_behind(text + char, new, share * p / sum(law.values()))
    return found


NUM_TREES = 3000


@cache
def compiled(chunk: int | None):
    mcts_star = MctsStarConfig(num_rollout_steps=0)
    config = SearchConfig(num_simulations=1, num_candidates=2, num_lanes=1, mcts_star=mcts_star)
    trace = TraceConfig(max_steps=2, max_step_tokens=SIZE, calculator=True)
    tables = make_tables(TEXT, [END], trace.boundary, trace.answer, trace.calculator)
    reader = make_reader((Bigram(), Bigram()), tables, trace, chunk)
    return jax.jit(make_grow(config, trace.max_steps, reader))


def grow(chunk: int | None, temperature: float) -> Tree:
    """Draw two steps behind the prompt "a", the same in all trees."""
    one, zero = np.ones(NUM_TREES, np.int32), np.zeros((V, V), np.float32)
    prompts = Prompts(IDS["a"] * one[:, None], one, np.arange(NUM_TREES, dtype=np.int32))
    keys = np.stack([prompts.problem_id, 7 * one], axis=1).astype(np.uint32)
    prm = {"backbone": zero, "head": {"weight": zero[0], "bias": zero[0, 0]}}
    tree = compiled(chunk)(table(), prm, prompts, keys, np.float32(temperature))
    return jax.tree.map(np.asarray, tree)


def words(tree: Tree, b: int) -> list[tuple[int, ...]]:
    return [tuple(tree.tokens[b, row, : tree.length[b, row]].tolist()) for row in range(2)]


def test_the_law_is_that_of_a_policy_whose_sums_are_right():
    """Siblings too: what they hold behind a result that is certain is all its mass."""
    steps, tree = steps_behind(), grow(2, 1.0)
    assert sum(steps.values()) == pytest.approx(1) and len(steps) > 50
    found = [tuple(words(tree, b)) for b in range(NUM_TREES)]
    assert_law([pair[0] for pair in found], steps)
    assert_law(found, in_order(steps, 2))
    # The log-probability that a row tells is the law's.
    told = dict(zip((s for pair in found for s in pair), tree.log_prob.ravel(), strict=True))
    assert {s: np.exp(x) for s, x in told.items()} == pytest.approx({s: steps[s] for s in told})


def test_both_memories_write_the_same_and_a_greedy_policy_is_mended():
    trees = [grow(chunk, 1.0) for chunk in (None, 2)]
    np.testing.assert_array_equal(trees[0].tokens, trees[1].tokens)
    for chunk in (None, 2):
        step = words(grow(chunk, 0.0), 0)[0]
        # Its likeliest word behind the first `=` is 1.
        assert "".join(CHARS[i] for i in step) == "2+1=3\n"
