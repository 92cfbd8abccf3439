"""Every search that is complete finds the best finished trace, given a budget for the whole tree.

The world is small enough to list: behind every prefix stand six steps, of which three finish, and a
trace has three of them. The optimum is found by listing all traces in plain Python.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_mcts_star as oracle
import pytest
from toy_worlds import HEALTHY, Step, fingerprint, make_prompts, mix, score_text, toy_grow

from jaxtrain.boundaries import TraceConfig
from jaxtrain.search import SearchConfig
from jaxtrain.search.config import WideningConfig

NUM_TREES, MAX_STEPS = 24, 3
STEPS = [(*word, end) for word in ((), (2,), (3,)) for end in (oracle.NEWLINE, oracle.END)]
NUM_INNER = 1 + 3 + 9  # prefixes that can be opened
WORLD = oracle.HashWorld(max_step_tokens=2, num_words=2, grid=2**24)


def draw_step(_, prefix, keys, number) -> Step:
    """Draw the steps in an order that depends on the prefix; six draws name each of them once."""
    text = fingerprint(prefix.tokens, prefix.length, jnp.zeros_like(prefix.length))
    which = (mix(text) % len(STEPS) + number.astype(jnp.uint32)) % len(STEPS)
    padded = jnp.array([(*step, 0)[:2] for step in STEPS])
    length = jnp.array([len(step) for step in STEPS])[which]
    is_finished = jnp.array([step[-1] == oracle.END for step in STEPS])[which]
    return Step(padded[which], length, is_finished, which < 0, which >= 0)


def traces(prefix: tuple[int, ...], depth: int = 1) -> list[tuple[int, ...]]:
    """List all finished traces behind a prefix."""
    found = []
    for step in STEPS:
        text = prefix + step
        if step[-1] == oracle.END:
            found.append(text)
        elif depth < MAX_STEPS:
            found += traces(text, depth + 1)
    return found


def spelt(tree, b: int, row: int) -> tuple[int, ...]:
    """Write out the steps that lead to a row."""
    if row < 0:
        return ()
    step = tree.tokens[b, row, : tree.length[b, row]].tolist()
    return spelt(tree, b, int(tree.parent[b, row])) + tuple(step)


FULL = dict(num_candidates=len(STEPS), num_simulations=NUM_INNER)
COMPLETE = {
    **{
        method: SearchConfig(method, **FULL)
        for method in ("mcts_star", "puct", "gumbel", "best_first", "dfs")
    },
    # each of the four further candidates of a prefix costs a simulation
    **{
        f"{method}, widening": SearchConfig(
            method,
            num_candidates=2,
            num_simulations=5 * NUM_INNER,
            widening=WideningConfig(max_candidates=len(STEPS)),
        )
        for method in ("mcts_star", "puct", "gumbel")
    },
}


@pytest.mark.parametrize("name", COMPLETE)
def test_the_optimum_is_found_given_budget_enough(name):
    prompts, config = make_prompts(NUM_TREES, seed=0), COMPLETE[name]
    trace = TraceConfig(MAX_STEPS, WORLD.max_step_tokens)
    grow = jax.jit(toy_grow(config, trace, draw_step, partial(score_text, world=WORLD)))
    keys = np.zeros((NUM_TREES, 2), np.uint32)
    tree = jax.tree.map(np.asarray, grow(HEALTHY, HEALTHY, prompts, keys, np.float32(1)))
    for b in range(NUM_TREES):
        prompt = tuple(prompts.tokens[b, : prompts.length[b]].tolist())
        best = max(traces(prompt), key=WORLD.score)
        assert prompt + spelt(tree, b, int(tree.chosen[b])) == best, f"tree {b}"
    # Nothing was drawn twice, and no simulation was without news.
    assert ((tree.kind > 0).sum(axis=1) >= NUM_INNER * len(STEPS)).all()
    assert not tree.num_wasted.any()
