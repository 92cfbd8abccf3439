"""Searches of real networks grow the same trees whatever is cached: nothing, or steps in chunks."""

from __future__ import annotations

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIG, MODEL, VOCAB, random_like, random_params

from jaxtrain.boundaries import TraceConfig, make_tables
from jaxtrain.nn.reader import make_reader
from jaxtrain.nn.transformer import Transformer
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.search.config import WideningConfig
from jaxtrain.search.frontier_rules import BeamConfig
from jaxtrain.search.mcts_star import MctsStarConfig
from jaxtrain.structs import Kind, Prompts, Tree

SIZE = 5
TRACE = TraceConfig(max_steps=4, max_step_tokens=SIZE)
# two tokens end a step, so that trees grow deep
TEXT = (b"", b"", b".\n", b",\n", *(bytes([97 + i]) for i in range(VOCAB - 4)))
TABLES = make_tables(TEXT, [1], "\n", "end")
HEAD = random_like({"weight": jnp.zeros(16), "bias": jnp.zeros(())}, seed=5)
NUM_PROBLEMS = 12
# What a memory costs is its own.
COSTS = ("policy_tokens", "prm_tokens", "lane_tokens")
SCANNED = Transformer(replace(CONFIG, is_scanned=True, window=4), VOCAB)
# Three steps a rollout: their lanes read their own words again, chunk by chunk.
ALL = SearchConfig(
    num_simulations=7,
    widening=WideningConfig(6, num_more=2),
    mcts_star=MctsStarConfig(num_rollout_steps=3),
)
FEW_LANES = replace(ALL, num_lanes=2, num_trees=5)
PAPER = SearchConfig(num_simulations=6, candidates="independent", ended_leaves="revisited")


def grow(config: SearchConfig, chunk: int | None, model=MODEL) -> Tree:
    rng = np.random.default_rng(0)
    prompts = Prompts(
        rng.integers(3, VOCAB, (NUM_PROBLEMS, 6)).astype(np.int32),
        rng.integers(1, 7, NUM_PROBLEMS).astype(np.int32),
        np.arange(NUM_PROBLEMS, dtype=np.int32),
    )
    keys = np.stack([prompts.problem_id, prompts.problem_id + 1], axis=1).astype(np.uint32)
    reader = make_reader((model, model), TABLES, TRACE, chunk)
    search = jax.jit(make_grow(config, TRACE.max_steps, reader))
    policy, backbone = random_params(model), random_params(model, seed=6)
    prm = {"backbone": backbone, "head": HEAD}
    tree = jax.tree.map(np.asarray, search(policy, prm, prompts, keys, np.float32(1)))
    assert tree.is_ok.all()
    if chunk is not None and config.candidates == "independent":  # else some is drawn in vain
        expected = prompts.length + tree.length.sum(axis=1)
        np.testing.assert_array_equal(tree.policy_tokens, expected)
        np.testing.assert_array_equal(tree.prm_tokens, expected)
    return tree


@pytest.mark.parametrize(
    ("config", "model", "chunks"),
    [
        (ALL, MODEL, (2,)),
        # Lanes that begin while others write know of other siblings, so steps stay whole here.
        (FEW_LANES, MODEL, (SIZE,)),
        (PAPER, SCANNED, (2,)),
        (SearchConfig("beam", num_candidates=3, beam=BeamConfig(2)), SCANNED, (2,)),
        (SearchConfig("sample", num_samples=4, num_lanes=2), MODEL, (2,)),
    ],
    ids=["all", "few lanes", "paper", "beam", "sample"],
)
def test_a_memory_changes_no_tree(config, model, chunks):
    plain = grow(config, None, model)
    parents = np.take_along_axis(plain.parent, np.maximum(plain.parent, 0), axis=1)
    assert ((plain.kind != Kind.EMPTY) & (plain.parent >= 0) & (parents >= 0)).sum() > 8
    # scores, and values that are scores, round as the largest of them do
    atol = 1e-5 * np.abs(plain.score).max()
    for chunk in chunks:
        tree = grow(config, chunk, model)
        for field in fields(Tree):
            x, y = getattr(plain, field.name), getattr(tree, field.name)
            if field.name in COSTS:
                continue
            if x.dtype.kind == "f":
                np.testing.assert_allclose(y, x, rtol=1e-5, atol=atol, err_msg=field.name)
            else:
                np.testing.assert_array_equal(y, x, err_msg=field.name)
