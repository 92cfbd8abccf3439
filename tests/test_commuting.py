"""Steps that are the same but for words that changed places, as the host and the device see them;
no search goes on from two of them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from test_distinct import assert_law, steps_behind, table_of
from tiny_models import Bigram

from jaxtrain import commuting
from jaxtrain.boundaries import TraceConfig, make_tables
from jaxtrain.commuting import make_form
from jaxtrain.nn.reader import make_reader
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.search.config import WideningConfig
from jaxtrain.search.frontier_rules import BeamConfig
from jaxtrain.search.mcts_star import MctsStarConfig
from jaxtrain.structs import Kind, Prompts, Tree
from jaxtrain.tasks.countdown import ALPHABET, CountdownTask
from jaxtrain.tokenizers import character_tokenizer

IDS = character_tokenizer(ALPHABET)
TASK = CountdownTask("countdown", IDS, (), (), (), (), num_numbers=3)
SIZE, END, (NEWLINE, PLUS, MINUS, THREE, FIVE) = 6, IDS.end_id, IDS.encode("\n+-35")
# sums and differences of two small numbers, mostly
LAW = table_of(
    {
        THREE: {PLUS: 0.5, MINUS: 0.1, NEWLINE: 0.2, FIVE: 0.1, END: 0.1},
        FIVE: {PLUS: 0.4, MINUS: 0.1, NEWLINE: 0.3, END: 0.2},
        PLUS: {THREE: 0.6, FIVE: 0.4},
        MINUS: {THREE: 0.5, FIVE: 0.5},
        NEWLINE: {THREE: 0.5, FIVE: 0.5},
    },
    IDS.vocab_size,
)
TREE = SearchConfig(
    num_simulations=6, num_candidates=4, mcts_star=MctsStarConfig(num_rollout_steps=0)
)
SEARCHES = {
    "one lane": SearchConfig(num_simulations=6, num_candidates=4, num_lanes=1, chunk_tokens=2),
    "read anew": SearchConfig(num_simulations=6, num_candidates=4, memory="recompute"),
    "widening": SearchConfig(num_simulations=9, num_candidates=3, widening=WideningConfig(6)),
    "independent": SearchConfig(num_simulations=6, candidates="independent"),
    "beam": SearchConfig(method="beam", num_candidates=3, beam=BeamConfig(width=3)),
}


@cache
def compiled(config: SearchConfig, max_steps: int, commute: str):
    trace = TraceConfig(max_steps=max_steps, max_step_tokens=SIZE)
    tables = make_tables(IDS.token_bytes, IDS.end_ids, "\n", "end")
    form = make_form(IDS.token_bytes, commute)
    reader = make_reader((Bigram(), Bigram()), tables, trace, config.chunk, form)
    return jax.jit(make_grow(config, max_steps, reader))


def inputs(num_trees: int) -> tuple:
    one, zero = np.ones(num_trees, np.int32), np.zeros_like(LAW)
    prompts = Prompts(NEWLINE * one[:, None], one, np.arange(num_trees, dtype=np.int32))
    keys = np.stack([prompts.problem_id, 7 * one], axis=1).astype(np.uint32)
    prm = {"backbone": zero, "head": {"weight": zero[0], "bias": zero[0, 0]}}
    return LAW, prm, prompts, keys, np.float32(1)


def grow(config: SearchConfig, num_trees: int, max_steps=3, commute=TASK.commuting) -> Tree:
    return jax.tree.map(np.asarray, compiled(config, max_steps, commute)(*inputs(num_trees)))


def shared(tokens: list[int]) -> tuple:
    """Return what steps that are the same share."""
    end = tokens[-1] if tokens[-1] in (END, NEWLINE) else None
    return TASK.canonical_step(IDS.decode(tokens).rstrip("\n")), end


def form(tree: Tree, b: int, row: int) -> tuple:
    """Return what a row shares with those that are the same behind the same prefix."""
    tokens = tree.tokens[b, row, : tree.length[b, row]].tolist()
    return int(tree.parent[b, row]), *shared(tokens)


def candidates(tree: Tree, b: int, *kinds: Kind) -> list[int]:
    return np.flatnonzero(np.isin(tree.kind[b], kinds)).tolist()


@pytest.mark.parametrize("name", SEARCHES)
def test_no_search_goes_on_from_two_that_are_the_same(name):
    tree = grow(SEARCHES[name], 64)
    num_twins = 0
    for b in range(64):
        rows = candidates(tree, b, Kind.CANDIDATE)
        forms = [form(tree, b, row) for row in rows if not tree.is_ended[b, row]]
        assert len(set(forms)) == len(forms)
        said = [(tree.parent[b, row], *tree.tokens[b, row].tolist()) for row in rows]
        assert len(set(said)) == len(said)
        # One that has ended may be a twin, and teaches.
        ended = [form(tree, b, row) for row in rows if tree.is_ended[b, row]]
        num_twins += len(ended) - len(set(ended))
        forms += ended
        # What is marked has a fellow that is not, and nothing stands behind it.
        for row in candidates(tree, b, Kind.DUPLICATE):
            assert form(tree, b, row) in forms and row not in tree.parent[b]
            num_twins += 1
    assert num_twins > 5 and tree.is_ok.all()


def test_searches_that_know_no_twins_have_some():
    tree = grow(SEARCHES["one lane"], 64, commute="")
    forms = [[form(tree, b, row) for row in candidates(tree, b, Kind.CANDIDATE)] for b in range(64)]
    assert sum(len(some) - len(set(some)) for some in forms) > 5
    assert not (tree.kind == Kind.DUPLICATE).any()


def test_what_is_not_the_same_is_drawn_without_replacement():
    """What is the same has the mass of all its spellings, and loses it once one of them is said."""
    config = replace(TREE, num_simulations=1, num_candidates=2)
    tree, law = grow(config, 3000), defaultdict(float)
    for step, share in steps_behind(LAW, NEWLINE, 0, SIZE).items():
        law[shared(list(step))] += share
    rows = [candidates(tree, b, Kind.CANDIDATE) for b in range(3000)]
    found = [[form(tree, b, row)[1:] for row in some] for b, some in enumerate(rows)]
    assert_law([some[0] for some in found], law)
    said = "3+5", NEWLINE
    left = {what: share / (1 - law[said]) for what, share in law.items() if what != said}
    behind = [some[1] for some in found if some[0] == said and len(some) == 2]
    assert len(behind) > 100
    assert_law(behind, left)


def test_a_search_that_meets_no_twins_grows_the_same_trees():
    told, untold = (grow(SEARCHES["one lane"], 64, commute=commute) for commute in ("*", ""))
    for name in vars(told):
        np.testing.assert_array_equal(getattr(told, name), getattr(untold, name), err_msg=name)


def test_a_search_calls_nobody_on_the_host():
    """So the compiled program can be kept, and runs wherever tensors are split."""
    text = compiled(TREE, 3, TASK.commuting).lower(*inputs(4)).as_text()
    assert "while" in text and "callback" not in text


TOKENS = [
    b"",
    b"",
    *(bytes([ord(c)]) for c in ALPHABET),
    b"+5",
    b"3+",
    b"=8|",
    b"12",
    b" 1",
    b"5\n",
]


@pytest.mark.parametrize("commute", ["+* ", "+", "=|]^-", ""])
def test_the_device_tells_apart_what_the_host_does(commute):
    """Whatever the text, be it a line of the game or none, and however it falls into tokens."""
    rng = random.Random(0)
    pieces = [b"3", b"5", b"12", b"+", b"*", b"-", b"=", b"|", b" ", b"21"]
    texts = {b"".join(rng.choices(pieces, k=rng.randint(0, 5))) for _ in range(4000)}
    texts |= {b"3+5=8|8 12", b"5+3=8|12 8", b"3+12=5|5", b"12+3=5|5"}
    steps = [tokenise(text, rng) for text in sorted(texts) for _ in range(2)]
    size = max(map(len, steps))
    tokens = np.array([step + [0] * (size - len(step)) for step in steps], np.int32)
    told = make_form(TOKENS, commute)(tokens, np.array(list(map(len, steps))))
    device, host = defaultdict(set), defaultdict(set)
    for step, code in zip(steps, np.asarray(told).tolist(), strict=True):
        text = b"".join(TOKENS[i] for i in step).decode()
        shared = commuting.in_order(text, commute) if commute else tuple(step)
        device[tuple(code)].add(shared)
        host[shared].add(tuple(code))
    assert len(host) == len(device) and all(len(x) == 1 for x in (*host.values(), *device.values()))
    assert len(host) < len(texts) or not commute


def tokenise(text: bytes, rng: random.Random) -> list[int]:
    """Cut a text into tokens, one of those that fit at every place."""
    tokens = []
    while text:
        fits = [i for i, token in enumerate(TOKENS) if token and text.startswith(token)]
        tokens.append(rng.choice(fits))
        text = text[len(TOKENS[tokens[-1]]) :]
    return tokens


def test_a_step_that_ends_the_answer_is_not_one_that_goes_on():
    rows = [[*IDS.encode("3+5"), end] for end in (NEWLINE, END, IDS.pad_id)]
    told = make_form(IDS.token_bytes, "+")(np.array(rows, np.int32), np.full(3, 4))
    assert len({tuple(code) for code in np.asarray(told).tolist()}) == 3
