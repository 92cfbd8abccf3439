"""Searches over a frontier against one in plain Python, on the toy worlds of `oracle_mcts_star`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
import oracle_mcts_star as oracle
import pytest
from toy_worlds import hash_grow, make_prompts

from jaxtrain.boundaries import TraceConfig
from jaxtrain.search import SearchConfig
from jaxtrain.search.frontier_rules import BeamConfig, BestFirstConfig, DfsConfig, DvtsConfig
from jaxtrain.search.rows import PriorConfig
from jaxtrain.structs import Kind, Prompts, Tree

NUM_TREES, NUM_CANDIDATES, MAX_STEPS, NUM_TURNS = 96, 3, 4, 9


@dataclass
class Prefix:
    """What may go on; `row` names the step it ends with."""

    row: int
    tokens: tuple[int, ...]
    score: float = 0.0
    depth: int = 0
    turn: int = -1  # in which it was drawn
    place: int = -1  # of the frontier, behind which it was drawn
    is_finished: bool = False
    is_ended: bool = False
    is_opened: bool = False

    @property
    def can_go_on(self) -> bool:
        return not self.is_ended and not self.is_opened


# all prefixes, the frontier so far, the turn -> the next frontier
ChooseFn = Callable[[list[Prefix], list[Prefix | None], int], list[Prefix | None]]


def run(
    world: oracle.HashWorld,
    prompt: tuple[int, ...],
    width: int,
    num_turns: int,
    choose: ChooseFn,
    budget: float = np.inf,
    threshold: float = np.inf,
) -> tuple[dict, int, int]:
    """Search: rows (parent, kind, tokens, score, finished, ended), tokens read, lanes opened."""
    rows, pool, num_tokens, num_lanes = {}, [], 0, 0
    frontier: list[Prefix | None] = [Prefix(-1, prompt)] * width
    for turn in range(num_turns):
        seen = set()
        for w, at in enumerate(frontier):
            if at is None or at.is_ended:
                continue
            at.is_opened = True
            num_tokens, num_lanes = num_tokens + len(at.tokens), num_lanes + NUM_CANDIDATES
            for a in range(NUM_CANDIDATES):
                step = world.draw(at.tokens, a)
                tokens, depth = at.tokens + step.tokens, at.depth + 1
                is_ended = step.is_finished or step.is_cut or depth == MAX_STEPS
                row = (turn * width + w) * NUM_CANDIDATES + a
                new = Prefix(
                    row, tokens, world.score(tokens), depth, turn, w, step.is_finished, is_ended
                )
                kind = Kind.DUPLICATE if (at.row, step.tokens) in seen else Kind.CANDIDATE
                seen.add((at.row, step.tokens))
                rows[row] = (at.row, kind, step.tokens, new.score, new.is_finished, is_ended)
                num_tokens += len(step.tokens)
                pool += [new] * (kind == Kind.CANDIDATE)
        frontier = choose(pool, frontier, turn)
        num_sampled = sum(len(row[2]) for row in rows.values())
        if num_sampled >= budget or any(at.is_finished and at.score >= threshold for at in pool):
            break
        if all(at is None or at.is_ended for at in frontier):
            break
    return rows, num_tokens, num_lanes


def by_score(prefixes) -> list[Prefix]:
    """Sort the best first, and of equals the first."""
    return sorted(prefixes, key=lambda prefix: (-prefix.score, prefix.row))


def best_of(prefixes, width: int) -> list[Prefix | None]:
    """Take the best for the places of a frontier, which may be more."""
    best = by_score(prefixes)[:width]
    return best + [None] * (width - len(best))


def beam(pool, frontier, turn):
    """Keep the best of what is new and of what had finished in the frontier."""
    kept = [at for at in frontier if at is not None and at.is_ended]
    return best_of(kept + [at for at in pool if at.turn == turn], len(frontier))


def best_first(pool, frontier, turn):
    """Open the best of all that is not opened."""
    return best_of((at for at in pool if at.can_go_on), len(frontier))


def dvts(pool, frontier, turn):
    """Go on in every place with the best of what was drawn behind it."""
    new = [[at for at in pool if (at.turn, at.place) == (turn, w)] for w in range(len(frontier))]
    return [best_of(mine, 1)[0] for mine in new]


def make_dfs(min_value):
    """Walk as the recursion of the paper does: a stack, the best sibling on top."""
    stack = []

    def dfs(pool, frontier, turn):
        new = [at for at in pool if at.turn == turn and not at.is_ended]
        stack.extend(reversed(by_score(at for at in new if at.score >= min_value)))
        return [stack.pop() if stack else None]

    return dfs


def config_of(method: str, **sections) -> SearchConfig:
    """Make the config of a search whose candidates the oracle can tell."""
    sizes = dict(num_candidates=NUM_CANDIDATES, num_simulations=NUM_TURNS)
    return SearchConfig(method, **sizes, candidates="independent", **sections)


# name -> the search, its width, its turns, and what makes its choice in plain Python
METHODS = {
    **{
        f"beam {w}": (config_of("beam", beam=BeamConfig(w)), w, MAX_STEPS, lambda: beam)
        for w in (1, 2, 4)
    },
    **{
        f"best first {w}": (
            config_of("best_first", best_first=BestFirstConfig(w)),
            w,
            NUM_TURNS,
            lambda: best_first,
        )
        for w in (1, 3)
    },
    **{
        f"dvts {w}": (config_of("dvts", dvts=DvtsConfig(w)), w, MAX_STEPS, lambda: dvts)
        for w in (1, 3)
    },
    **{
        f"dfs {v}": (config_of("dfs", dfs=DfsConfig(v)), 1, NUM_TURNS, lambda v=v: make_dfs(v))
        for v in (0.0, 0.5)
    },
}


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [8, 2**24], ids=["ties", "fine"])
def test_a_frontier_equals_plain_python(method, grid):
    world, (config, width, num_turns, make_choose) = oracle.HashWorld(grid=grid), METHODS[method]
    prompts = make_prompts(NUM_TREES, seed=width)
    tree = hash_grow(config, TraceConfig(MAX_STEPS, world.max_step_tokens), world)(prompts)
    num_early = 0
    for b in range(NUM_TREES):
        prompt = tuple(prompts.tokens[b, : prompts.length[b]].tolist())
        rows, num_tokens, num_lanes = run(world, prompt, width, num_turns, make_choose())
        assert rows_of(tree, b) == rows, f"tree {b}"
        assert tree.policy_tokens[b] == tree.prm_tokens[b] == num_tokens, f"tree {b}: tokens"
        assert tree.num_simulations[b] == num_lanes, f"tree {b}: lanes"
        answers = [(-row[3], n) for n, row in rows.items() if row[4] and row[1] == Kind.CANDIDATE]
        assert tree.chosen[b] == (min(answers)[1] if answers else -1), f"tree {b}: chosen"
        num_early += any(
            row[4] for n, row in rows.items() if n < max(rows) - width * NUM_CANDIDATES
        )
    assert tree.is_ok.all() and num_early > NUM_TREES // 8, "some must finish before others"


@pytest.mark.parametrize("name", ["beam 2", "best first 3", "dvts 3", "dfs 0.0"])
@pytest.mark.parametrize("limit", [{"num_tokens": 14}, {"end_threshold": 0.7}], ids=str)
def test_a_budget_of_tokens_and_a_threshold_end_a_tree(name, limit):
    world, (config, width, num_turns, make_choose) = oracle.HashWorld(), METHODS[name]
    limits = limit.get("num_tokens", np.inf), limit.get("end_threshold", np.inf)
    trace = TraceConfig(MAX_STEPS, world.max_step_tokens)
    prompts, num_rows = make_prompts(NUM_TREES, seed=width), [0, 0]
    # the policy's own word says nothing against a leaf that ends the tree
    prior = PriorConfig(weight=0.5)
    tree = hash_grow(replace(config, **limit, prior=prior), trace, world)(prompts)
    for b in range(NUM_TREES):
        prompt = tuple(prompts.tokens[b, : prompts.length[b]].tolist())
        rows, *_ = run(world, prompt, width, num_turns, make_choose(), *limits)
        assert rows_of(tree, b) == rows, f"tree {b}"
        whole, *_ = run(world, prompt, width, num_turns, make_choose())
        num_rows = np.add(num_rows, (len(rows), len(whole)))
        leaves = [(row[3], -n) for n, row in rows.items() if row[4] and row[1] == Kind.CANDIDATE]
        best, place = max(leaves, default=(-np.inf, 0))
        assert best < limits[1] or tree.chosen[b] == -place, f"tree {b}: chosen"
    assert 0 < num_rows[0] < num_rows[1], "some trees must end early"


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


def test_prefixes_that_begin_alike_say_different_things():
    """All places of a beam begin behind the prompt, with one lane each: in this world every round
    of draws brings one new step, so it takes as many rounds as there are places.
    """
    world, width = oracle.HashWorld(num_words=8), 5
    config = SearchConfig("beam", num_candidates=1, beam=BeamConfig(width))
    tree = hash_grow(config, TraceConfig(MAX_STEPS, world.max_step_tokens), world)(
        make_prompts(NUM_TREES, seed=0)
    )
    first = tree.kind[:, :width]
    np.testing.assert_array_equal(first, np.full_like(first, Kind.CANDIDATE))
