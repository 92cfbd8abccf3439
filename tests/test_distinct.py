"""Candidates that are distinct follow the law of sampling without replacement over whole steps.

A `Bigram` over two words has five steps of at most three tokens, so every set of candidates has a
probability that can be written down.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import combinations, permutations

import jax
import numpy as np
import pytest
from tiny_models import VOCAB, Bigram

from jaxtrain.boundaries import TraceConfig, make_tables
from jaxtrain.nn.reader import make_reader
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.search.config import WideningConfig
from jaxtrain.search.frontier_rules import BeamConfig, DvtsConfig
from jaxtrain.search.mcts_star import MctsStarConfig
from jaxtrain.search.rows import PriorConfig
from jaxtrain.structs import CheckFn, Kind, Prompts, Tree

END, NEWLINE, WORD, OTHER, SIZE = 1, 2, 3, 4, 3
TEXT = (b"", b"", b".\n", *(bytes([97 + i]) for i in range(VOCAB - 3)))
NUM_TREES = 6000
BIGRAM = Bigram()
Words = tuple[int, ...]


def table_of(laws: dict[int, dict[int, float]], size: int = VOCAB) -> np.ndarray:
    """Make a Bigram: what follows each token, with which probability."""
    table = np.full((size, size), -1e9, np.float32)
    for token, law in laws.items():
        table[token, list(law)] = np.log(list(law.values()))
    return table


def steps_behind(table: np.ndarray, token: int, at=0, size=SIZE) -> dict[Words, float]:
    """List all steps behind a token, with their probabilities."""
    law, steps = np.exp(table[token].astype(float)), {}
    for new in np.flatnonzero(law > 1e-6).tolist():
        is_over = new in (END, NEWLINE) or at + 1 == size
        below = {(): 1.0} if is_over else steps_behind(table, new, at + 1, size)
        steps |= {(new, *rest): law[new] / law.sum() * share for rest, share in below.items()}
    return steps


def in_order(steps: dict[Words, float], num: int) -> dict[tuple[Words, ...], float]:
    """Give the probability of every sequence of `num` draws without replacement."""
    found = {}
    for drawn in permutations(steps, num):
        left, share = 1.0, 1.0
        for step in drawn:
            share, left = share * steps[step] / left, left - steps[step]
        found[drawn] = share
    return found


@cache
def compiled(config: SearchConfig, chunk: int | None, size: int, check: CheckFn | None):
    trace = TraceConfig(max_steps=2, max_step_tokens=size)
    reader = make_reader((BIGRAM, BIGRAM), make_tables(TEXT, [END], "\n", "end"), trace, chunk)
    return jax.jit(make_grow(config, trace.max_steps, reader, check))


def grow(
    table, num_trees=NUM_TREES, chunk=None, temperature=1.0, size=SIZE, check=None, **settings
) -> Tree:
    """Search behind the prompt WORD, the same in all trees; without rollouts."""
    plain = dict(num_simulations=1, mcts_star=MctsStarConfig(num_rollout_steps=0))
    config = SearchConfig(**plain | settings)
    one, zero = np.ones(num_trees, np.int32), np.zeros((VOCAB, VOCAB), np.float32)
    prompts = Prompts(WORD * one[:, None], one, np.arange(num_trees, dtype=np.int32))
    keys = np.stack([prompts.problem_id, 7 * one], axis=1).astype(np.uint32)
    prm = {"backbone": zero, "head": {"weight": zero[0], "bias": zero[0, 0]}}
    tree = compiled(config, chunk, size, check)(table, prm, prompts, keys, np.float32(temperature))
    return jax.tree.map(np.asarray, tree)


def words(tree: Tree, b: int) -> list[Words]:
    """List the steps behind the prompt, in the order of their rows."""
    rows = np.flatnonzero((tree.kind[b] != Kind.EMPTY) & (tree.parent[b] < 0))
    return [tuple(tree.tokens[b, row, : tree.length[b, row]].tolist()) for row in rows]


def assert_law(found: list, law: dict) -> None:
    """Compare counts with a law: chi-square, rare outcomes taken together."""
    assert set(found) <= law.keys(), "these can never be drawn"
    expected = np.array([len(found) * share for share in law.values()])
    counted = Counter(found)
    counts = np.array([counted[outcome] for outcome in law])
    is_rare = expected < 8
    expected = np.append(expected[~is_rare], expected[is_rare].sum() + 1e-9)
    counts = np.append(counts[~is_rare], counts[is_rare].sum())
    assert expected.sum() == pytest.approx(len(found), rel=1e-5)
    freedom = len(expected) - 1
    chi = ((counts - expected) ** 2 / np.maximum(expected, 1)).sum()
    assert chi < freedom + 4 * np.sqrt(2 * freedom), f"{chi:.1f} for {freedom} degrees of freedom"


# What two lanes say alike here leaves half of a branch, and all of it if it were counted twice.
FIVE = table_of({WORD: {OTHER: 0.8, END: 0.2}, OTHER: {NEWLINE: 0.5, END: 0.3, WORD: 0.2}})


def test_one_lane_draws_without_replacement_in_order_and_no_token_in_vain():
    tree = grow(FIVE, num_candidates=3, num_lanes=1, chunk=2)
    law = in_order(steps_behind(FIVE, WORD), 3)
    assert len(law) == 60 and sum(law.values()) == pytest.approx(1)
    assert_law([tuple(words(tree, b)) for b in range(NUM_TREES)], law)
    assert (tree.kind == Kind.CANDIDATE).all() and not tree.num_exhausted.any()
    # The prompt is read once, and every step.
    np.testing.assert_array_equal(tree.policy_tokens, 1 + tree.length.sum(axis=1))


@pytest.mark.parametrize(("num_lanes", "chunk"), [(2, None), (2, 1), (3, None)])
def test_lanes_side_by_side_draw_the_same_sets(num_lanes, chunk):
    """Their order may tell which of them was drawn again."""
    tree = grow(FIVE, num_candidates=3, num_lanes=num_lanes, chunk=chunk)
    steps = in_order(steps_behind(FIVE, WORD), 3)
    law = {
        frozenset(some): sum(steps[order] for order in permutations(some))
        for some in combinations(steps_behind(FIVE, WORD), 3)
    }
    found = [words(tree, b) for b in range(NUM_TREES)]
    assert_law([frozenset(some) for some in found], law)
    assert (tree.kind[:, :3] == Kind.CANDIDATE).all() and not tree.num_exhausted.any()
    # What is drawn first is drawn from the law itself.
    assert_law([some[0] for some in found], steps_behind(FIVE, WORD))


def test_what_a_node_draws_when_it_widens_follows_the_same_law():
    config = dict(num_candidates=1, num_simulations=3, widening=WideningConfig(3, exponent=1.0))
    tree = grow(FIVE, chunk=2, **config)
    two = [tuple(words(tree, b)[:2]) for b in range(NUM_TREES)]
    assert_law([pair for pair in two if len(pair) == 2], in_order(steps_behind(FIVE, WORD), 2))


def test_subtrees_that_begin_alike_share_what_there_is_to_say():
    """Steps of one token, of which there are fewer than three subtrees ask for together."""
    config = dict(method="dvts", num_candidates=8, dvts=DvtsConfig(3), size=1)
    tree = grow(np.zeros((VOCAB, VOCAB), np.float32), 200, 1, **config)
    share = (tree.kind[:, :24] == Kind.CANDIDATE).reshape(200, 3, 8).sum(axis=2).mean(axis=0)
    assert share.sum() == pytest.approx(VOCAB) and share.min() > 0.8 * share.max()
    # the prompt has too few steps, and is one node; what stands behind it has enough
    assert (tree.num_exhausted == 1).all()


@pytest.mark.parametrize("num_lanes", [4, None])
def test_a_node_with_fewer_steps_than_asked_says_so(num_lanes):
    """Steps of one token: there are as many as tokens, and two more are asked for."""
    config = dict(num_candidates=VOCAB + 2, num_lanes=num_lanes, size=1)
    for temperature in (1.0, 0.0):
        tree = grow(np.zeros((VOCAB, VOCAB), np.float32), 64, 1, temperature, **config)
        assert all(sorted(words(tree, b)) == [(i,) for i in range(VOCAB)] for b in range(64))
        assert (tree.kind <= Kind.CANDIDATE).all() and (tree.num_exhausted == 1).all()
        assert tree.is_ok.all()


def stopped(law: dict[tuple[Words, ...], float], steps: dict[Words, float], top_p: float):
    """Cut sequences of draws behind the step with which they hold the share top_p, and add up."""
    found = Counter()
    for drawn, share in law.items():
        masses = np.cumsum([steps[step] for step in drawn])
        found[drawn[: 1 + int((masses < top_p).sum())]] += share
    return found


def test_no_step_is_drawn_once_the_others_hold_most_of_the_probability():
    steps, top_p = steps_behind(FIVE, WORD), 0.62
    tree = grow(FIVE, num_candidates=4, num_lanes=1, chunk=2, top_p=top_p)
    found = [tuple(words(tree, b)) for b in range(NUM_TREES)]
    assert_law(found, stopped(in_order(steps, 4), steps, top_p))
    assert {len(drawn) for drawn in found} == {2, 3, 4}
    # A node that drew less than it was asked for says so, and widens no more.
    np.testing.assert_array_equal(tree.num_exhausted, [len(drawn) < 4 for drawn in found])
    config = dict(num_candidates=1, num_simulations=6, widening=WideningConfig(4, exponent=1.0))
    tree = grow(FIVE, chunk=2, top_p=top_p, **config)
    for b in range(NUM_TREES):
        masses = np.cumsum([steps[step] for step in words(tree, b)])
        assert (masses[:-1] < top_p).all()


def test_what_lanes_say_alike_is_not_drawn_again_where_it_is_enough():
    steps, top_p = steps_behind(FIVE, WORD), 0.62
    tree = grow(FIVE, 512, num_candidates=4, top_p=top_p)
    masses = np.array([sum(steps[step] for step in set(words(tree, b))) for b in range(512)])
    num_repeats = (tree.kind == Kind.DUPLICATE).sum(axis=1)
    assert ((masses >= top_p) | (num_repeats == 0)).all() and np.ptp(num_repeats) == 2
    np.testing.assert_array_equal(tree.num_exhausted, num_repeats > 0)


def has_newline(problem_id: int, steps: tuple[bytes, ...]) -> int:
    """Call the likeliest of the five steps false, (OTHER, NEWLINE)."""
    return sum(NEWLINE in np.frombuffer(step, np.int32) for step in steps)


@pytest.mark.parametrize("num_lanes", [1, None])
def test_false_steps_are_drawn_once_and_those_left_hold_most_of_what_is_left(num_lanes):
    steps = {step: share for step, share in steps_behind(FIVE, WORD).items() if NEWLINE not in step}
    told = dict(num_candidates=4, num_lanes=num_lanes, checks="filter", check=has_newline)
    tree = grow(FIVE, 512, **told)
    assert all(len(set(words(tree, b))) == 4 for b in range(512))
    # One of the sound ones at least, unless a false one holds nearly all.
    tree = grow(FIVE, 512, top_p=0.38, **told)
    sound = [[step for step in set(words(tree, b)) if step in steps] for b in range(512)]
    masses = np.array([sum(map(steps.get, drawn)) for drawn in sound])
    left = 1 - 0.4 * (tree.kind == Kind.FALSE).any(axis=1)
    assert (masses >= 0.38 * left).all() and min(map(len, sound)) == 1
    assert (left < 1).any() and (left == 1).any()


def test_the_prompt_is_as_likely_behind_every_place_of_a_beam():
    """Places that share a prefix share what is drawn behind it."""
    steps = steps_behind(FIVE, WORD)
    beam = dict(method="beam", beam=BeamConfig(width=2), num_candidates=2, num_lanes=1)
    tree = grow(FIVE, chunk=3, top_p=0.7, **beam)
    masses = np.array([sum(steps[step] for step in words(tree, b)) for b in range(NUM_TREES)])
    num_drawn = np.array([len(words(tree, b)) for b in range(NUM_TREES)])
    assert ((num_drawn == 4) | (masses >= 0.7)).all() and (num_drawn < 4).any()


@pytest.mark.parametrize("normalises_length", [False, True])
def test_what_answers_is_ranked_by_score_and_probability(normalises_length):
    """Scores are 0 here, so the likeliest trace answers, or the one with the likeliest tokens."""
    prior = PriorConfig(weight=0.5, normalises_length=normalises_length)
    tree = grow(FIVE, 64, num_candidates=5, num_simulations=4, num_lanes=1, chunk=2, prior=prior)
    for b in range(64):
        ranks = {}
        for row in np.flatnonzero(tree.is_finished[b]):
            path = [row]
            while (above := tree.parent[b, path[-1]]) >= 0:
                path.append(above)
            log_prob, length = (x[b, path].sum() for x in (tree.log_prob, tree.length))
            ranks[row] = log_prob / length if normalises_length else log_prob
        assert ranks[tree.chosen[b]] == pytest.approx(max(ranks.values()), abs=1e-6)


def test_a_policy_that_hardly_varies_still_says_something_new_in_every_candidate():
    """At temperature 0 too, where all lanes begin with the same step."""
    table = table_of({WORD: {token: 100.0**-token for token in range(3, VOCAB)}})
    for token in range(4, VOCAB):
        table[token] = table_of({token: {NEWLINE: 1.0}})[token]
    for temperature in (1.0, 0.0):
        tree = grow(table, 64, 2, temperature, num_candidates=7)
        assert (tree.kind == Kind.CANDIDATE).all() and tree.is_ok.all()
        assert all(len(set(words(tree, b))) == 7 for b in range(64))
        assert not tree.num_exhausted.any()
