"""The rules with a prior, PUCT and Gumbel, against selection in plain Python on the toy worlds, and
the halving of visits against mctx's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import oracle_mcts_star as oracle
import pytest
from test_search import Settings, assert_same
from toy_worlds import hash_grow, make_prompts

from jaxtrain.boundaries import TraceConfig
from jaxtrain.search import SearchConfig
from jaxtrain.search.prior_rules import GumbelConfig, PuctConfig, make_gumbel
from jaxtrain.search.rows import PriorConfig, empty_rows
from jaxtrain.structs import Kind

NUM_TREES = 96


@dataclass(frozen=True)
class RuleSettings(Settings):
    """The settings of a search with a prior, as the oracle reads them."""

    method: str = "puct"
    num_rollout_steps: int = 0
    num_rollout_candidates: int = 1
    prior_temperature: float = 1.0
    normalises_length: bool = False
    num_considered: int = 16
    visit_offset: float = 50.0
    value_scale: float = 0.1

    @property
    def configs(self) -> tuple[SearchConfig, TraceConfig]:
        search, trace = super().configs
        gumbel = GumbelConfig(self.num_considered, self.visit_offset, self.value_scale)
        prior = PriorConfig(self.prior_temperature, self.normalises_length)
        puct = PuctConfig(self.exploration)
        return replace(search, method=self.method, puct=puct, gumbel=gumbel, prior=prior), trace


def logits_of(valid: list[oracle.Node], settings: RuleSettings) -> list[float]:
    lengths = [len(child.tokens) if settings.normalises_length else 1 for child in valid]
    return [
        child.log_prob / length / settings.prior_temperature
        for child, length in zip(valid, lengths, strict=True)
    ]


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def puct_bounds(node, valid, settings) -> list[float]:
    """Q + c * prior * sqrt(n_parent) / (1 + n), the prior over what is closed as well."""
    drawn = [child for child in node.children if not child.is_duplicate]
    share = dict(zip(map(id, drawn), softmax(logits_of(drawn, settings)), strict=True))
    reach = settings.exploration * math.sqrt(node.visits)
    return [child.value + reach * share[id(child)] / (1 + child.visits) for child in valid]


def gumbel_bounds(node, valid, settings) -> list[float]:
    """At the root the best of those whose turn it is, below it the one most short of visits."""
    visits = [child.visits for child in valid]
    scale = (settings.visit_offset + max(visits)) * settings.value_scale
    mixed = [
        logit + scale * child.value
        for child, logit in zip(valid, logits_of(valid, settings), strict=True)
    ]
    if node.parent is not None:
        return [p - n / (1 + sum(visits)) for p, n in zip(softmax(mixed), visits, strict=True)]
    # What ended when it was drawn takes part only where it can be selected.
    drawn = [child for child in node.children if not child.is_duplicate]
    num_there = sum(any(child is other for other in valid) or not child.is_ended for child in drawn)
    num_considered = min(num_there, settings.num_considered)
    due = turns_of(num_considered, settings.num_simulations - 1)[node.visits - 1]
    wanted = min((n for n in visits if n >= due), default=max(visits))
    return [m if n == wanted else -1e6 for m, n in zip(mixed, visits, strict=True)]


def turns_of(num_arms: int, budget: int) -> list[int]:
    """List the visits that the arm pulled in each turn has: sequential halving, arm by arm."""
    pulls, turns, alive = [0] * num_arms, [], num_arms
    num_rounds = max(1, math.ceil(math.log2(num_arms)))
    while len(turns) < budget:
        for _ in range(max(1, budget // (num_rounds * alive))):
            for arm in range(alive):
                turns.append(pulls[arm])
                pulls[arm] += 1
        alive = min(max(2, alive // 2), num_arms)
    return turns[:budget]


PUCT = RuleSettings(exploration=1.25)
GUMBEL = replace(PUCT, method="gumbel")
FINE = oracle.HashWorld(grid=2**24)
SETTINGS = {
    "puct": (PUCT, FINE),
    "puct, ties": (replace(PUCT, num_simulations=24, max_steps=5), oracle.HashWorld(grid=8)),
    "puct, prior of a token, cooler": (
        replace(PUCT, normalises_length=True, prior_temperature=0.5, end_threshold=0.9),
        oracle.HashWorld(overshoot=0.125),
    ),
    "gumbel": (GUMBEL, FINE),
    "gumbel, ties": (replace(GUMBEL, max_steps=5), oracle.HashWorld(grid=8)),
    "gumbel, three of six considered": (
        replace(
            GUMBEL, num_candidates=6, num_considered=3, value_scale=0.05, prior_temperature=2.0
        ),
        oracle.HashWorld(grid=2**24, num_words=4, finished_of_16=2),
    ),
}


CLOSED = dict(candidates="distinct", ended_leaves="closed", max_steps=5, num_simulations=24)
SETTINGS |= {
    f"{rule.method}, {name}": (replace(rule, **CLOSED, **more), FINE)
    for rule in (PUCT, GUMBEL)
    for name, more in {
        "closed": {},
        "widening": dict(num_candidates=2, max_candidates=6, exponent=0.4),
    }.items()
}


@pytest.mark.parametrize("name", SETTINGS)
def test_rules_with_a_prior_equal_plain_python(name):
    config, world = SETTINGS[name]
    prompts = make_prompts(NUM_TREES, seed=len(name))
    tree = hash_grow(*config.configs, world)(prompts)
    bounds_of = {"puct": puct_bounds, "gumbel": gumbel_bounds}[config.method]
    num_compared = 0
    for b in range(NUM_TREES):
        prompt = tuple(prompts.tokens[b, : prompts.length[b]].tolist())
        search = oracle.run(world, prompt, config, bounds_of)
        if search.closest > oracle.ROUNDING:
            assert_same(tree, b, prompt, search, config)
            num_compared += 1
    assert num_compared >= 0.9 * NUM_TREES, f"{NUM_TREES - num_compared} trees hang on rounding"


def halving(num_considered: int, num_simulations: int, rng: np.random.Generator):
    """Make a prompt with six candidates, and our selection and mctx's for it."""
    shape = (1, 6)
    log_prob = rng.normal(size=shape).astype(np.float32)
    candidates = empty_rows(*shape)._replace(kind=np.full(shape, Kind.CANDIDATE), log_prob=log_prob)
    zeros = np.zeros(shape, np.float32)
    tree = mctx.Tree(
        node_visits=np.ones(1, np.int32),
        raw_values=zeros[:, 0],
        node_values=zeros[:, 0],
        parents=np.full(1, -1),
        action_from_parent=np.full(1, -1),
        children_index=np.full(shape, -1),
        children_prior_logits=log_prob,
        children_values=rng.uniform(size=shape).astype(np.float32),
        children_visits=np.zeros(shape, np.int32),
        children_rewards=zeros,
        children_discounts=zeros + 1,
        embeddings=(),
        root_invalid_actions=np.zeros(6),
        extra_data=SimpleNamespace(candidates=candidates, root_gumbel=zeros[0]),
    )
    config = GumbelConfig(num_considered)

    def theirs(tree):
        def sigma(tree, node):
            scale = (config.visit_offset + jnp.max(tree.children_visits)) * config.value_scale
            return scale * tree.children_values[node]

        return mctx.gumbel_muzero_root_action_selection(
            jax.random.key(0),
            tree,
            jnp.int32(0),
            num_simulations=num_simulations - 1,
            max_num_considered_actions=num_considered,
            qtransform=sigma,
        )

    return tree, make_gumbel(config, PriorConfig(), num_simulations).select, theirs


def visited(tree, action: int, value: float):
    """Visit a candidate once more, after which its value is another."""
    visits, values = tree.children_visits.copy(), tree.children_values.copy()
    visits[0, action] += 1
    values[0, action] = value
    return tree.replace(
        children_visits=visits, children_values=values, node_visits=tree.node_visits + 1
    )


@pytest.mark.parametrize(("num_considered", "num_simulations"), [(6, 31), (4, 17), (16, 9), (1, 5)])
def test_visits_are_halved_as_mctx_does_it(num_considered, num_simulations):
    rng = np.random.default_rng(num_simulations)
    tree, ours, theirs = halving(num_considered, num_simulations, rng)
    for turn in range(num_simulations - 1):
        action = int(ours(tree, jnp.int32(0), jnp.ones(6, bool)))
        assert action == int(theirs(tree)), f"turn {turn}"
        tree = visited(tree, action, rng.uniform())


def test_what_closes_leaves_the_halving():
    """The first two visits go to the best two of four; when one of them closes, its later visits go
    to the others: none that is closed is chosen, and the best one left has most.
    """
    tree, select, _ = halving(4, 25, np.random.default_rng(0))
    is_open = np.ones(6, bool)
    for turn in range(24):
        if turn == 2:
            closed = int(np.argmax(tree.children_visits))
            is_open[closed] = False
        action = int(select(tree, jnp.int32(0), jnp.asarray(is_open)))
        assert is_open[action]
        tree = visited(tree, action, float(tree.children_values[0, action]))
    score = np.where(is_open, tree.children_values[0] * 5 + tree.children_prior_logits[0], -np.inf)
    best = np.argsort(-score)
    assert tree.children_visits[0, closed] == 1
    assert tree.children_visits[0, best[0]] == tree.children_visits[0].max()
    assert (tree.children_visits[0, best[:3]] > 1).all()
