"""Step-level beam search against one in plain Python, on the toy worlds of `oracle_mcts_star`."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import oracle_mcts_star as oracle
import pytest
from toy_worlds import hash_grow, make_prompts

from jaxtrain.boundaries import TraceConfig
from jaxtrain.search import SearchConfig
from jaxtrain.search.beam import BeamConfig
from jaxtrain.structs import Kind, Prompts, Tree

NUM_TREES, NUM_CANDIDATES, MAX_STEPS = 96, 3, 4


@dataclass(frozen=True)
class Beam:
    """A prefix that is kept; `row` names the step it ends with."""

    row: int
    prefix: tuple[int, ...]
    score: float
    is_finished: bool
    is_ended: bool


def run(world: oracle.HashWorld, prompt: tuple[int, ...], width: int) -> tuple[dict, int, int]:
    """Search: rows (parent, kind, tokens, score, finished, ended), tokens read, lanes opened."""
    rows, num_tokens, num_lanes = {}, 0, 0
    beams = [Beam(-1, prompt, 0.0, False, False)] * width
    for depth in range(MAX_STEPS):
        pool, seen = [beam for beam in beams if beam.is_ended], set()
        for w, beam in enumerate(beams):
            if beam.is_ended:
                continue
            num_tokens, num_lanes = num_tokens + len(beam.prefix), num_lanes + NUM_CANDIDATES
            for a in range(NUM_CANDIDATES):
                step = world.draw(beam.prefix, a)
                prefix = beam.prefix + step.tokens
                is_ended = step.is_finished or step.is_cut or depth + 1 == MAX_STEPS
                row = (depth * width + w) * NUM_CANDIDATES + a
                new = Beam(row, prefix, world.score(prefix), step.is_finished, is_ended)
                kind = Kind.DUPLICATE if (beam.row, step.tokens) in seen else Kind.CANDIDATE
                seen.add((beam.row, step.tokens))
                rows[row] = (beam.row, kind, step.tokens, new.score, new.is_finished, is_ended)
                num_tokens += len(step.tokens)
                pool += [new] * (kind == Kind.CANDIDATE)
        beams = sorted(pool, key=lambda beam: -beam.score)[:width]  # stable: first of equals
        if all(beam.is_ended for beam in beams):
            break
    return rows, num_tokens, num_lanes


def rows_of(tree: Tree, b: int) -> dict:
    """Read the same out of a tree."""
    return {
        row: (
            int(tree.parent[b, row]),
            tree.kind[b, row],
            tuple(tree.tokens[b, row, : tree.length[b, row]].tolist()),
            tree.score[b, row],
            tree.is_finished[b, row],
            tree.is_ended[b, row],
        )
        for row in np.flatnonzero(tree.kind[b]).tolist()
    }


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("grid", [8, 2**24], ids=["ties", "fine"])
def test_beam_equals_plain_python(width, grid):
    world = oracle.HashWorld(grid=grid)
    config = SearchConfig(
        "beam", num_candidates=NUM_CANDIDATES, candidates="independent", beam=BeamConfig(width)
    )
    prompts = make_prompts(NUM_TREES, seed=width)
    tree = hash_grow(config, TraceConfig(MAX_STEPS, world.max_step_tokens), world)(prompts)
    num_kept = 0
    for b in range(NUM_TREES):
        prompt = tuple(prompts.tokens[b, : prompts.length[b]].tolist())
        rows, num_tokens, num_lanes = run(world, prompt, width)
        assert rows_of(tree, b) == rows, f"tree {b}"
        assert tree.policy_tokens[b] == tree.prm_tokens[b] == num_tokens, f"tree {b}: tokens"
        assert tree.num_simulations[b] == num_lanes, f"tree {b}: lanes"
        answers = [(-row[3], n) for n, row in rows.items() if row[4] and row[1] == Kind.CANDIDATE]
        assert tree.chosen[b] == (min(answers)[1] if answers else -1), f"tree {b}: chosen"
        num_kept += any(row[4] for n, row in rows.items() if n < max(rows) - width * NUM_CANDIDATES)
    assert tree.is_ok.all() and num_kept > NUM_TREES // 8, "some must finish before others"


def test_a_beam_does_not_depend_on_its_neighbours():
    """Neither on their draws, nor on those that are padding or meet a logit that is not finite."""
    world, config = oracle.HashWorld(), SearchConfig("beam", num_candidates=3, beam=BeamConfig(2))
    grow = hash_grow(config, TraceConfig(MAX_STEPS, world.max_step_tokens), world, is_keyed=True)
    prompts = make_prompts(NUM_TREES, seed=0)
    trees = grow(prompts)

    def assert_same(one: Tree, other: Tree) -> None:
        """All but what the lanes cost: that depends on how long the batch goes on."""
        one, other = one.replace(lane_tokens=0), other.replace(lane_tokens=0)
        jax.tree.map(np.testing.assert_array_equal, one, other)

    def take(tree: Tree | Prompts, rows):
        return jax.tree.map(lambda x: x[rows], tree)

    order = np.random.default_rng(1).permutation(NUM_TREES)
    assert_same(grow(take(prompts, order)), take(trees, order))
    is_padding = np.arange(NUM_TREES) % 3 == 0
    tree = grow(prompts.replace(problem_id=np.where(is_padding, -1, prompts.problem_id)))
    assert_same(take(tree, ~is_padding), take(trees, ~is_padding))
    assert not tree.kind[is_padding].any() and not tree.policy_tokens[is_padding].any()
    faults = [(grow(prompts, bad_logits=prompts.tokens[b, 0]), b) for b in range(24)]
    for tree, b in faults:
        others = np.arange(NUM_TREES) != b
        assert_same(take(tree, others), take(trees, others))
    assert {bool(tree.is_ok[b]) for tree, b in faults} == {True, False}
