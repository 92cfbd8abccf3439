"""The mesh, and the compiled functions of `build` on it: eight devices do what one does, and search
keeps to itself.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from tiny_models import random_like

from jaxtrain import build, sharding
from jaxtrain.boundaries import TraceConfig
from jaxtrain.build import Announced, Functions
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.prompts import PromptsConfig
from jaxtrain.search import SearchConfig
from jaxtrain.search.mcts_star import MctsStarConfig
from jaxtrain.sharding import ShardingConfig, make_mesh, spec_of
from jaxtrain.structs import Kind, Prompts, TokenRows
from jaxtrain.tasks import Problem, Task
from jaxtrain.tokenizers import character_tokenizer
from jaxtrain.updates import PolicyConfig, PrmConfig, UpdatesConfig

TOKENIZER = character_tokenizer("\nabcde")
VOCAB = TOKENIZER.vocab_size  # 8
TASK = Task("", TOKENIZER)
SILENT = SimpleNamespace(compiling=lambda name: nullcontext())
CONFIG = Config(
    model=ModelConfig(num_layers=1, width=16, num_heads=4, num_kv_heads=2, mlp_width=24),
    prompts=PromptsConfig(max_prompt_tokens=6, batch_size=16),
    trace=TraceConfig(max_steps=3, max_step_tokens=4),
    search=SearchConfig(
        num_simulations=5, num_candidates=3, mcts_star=MctsStarConfig(num_rollout_steps=2)
    ),
    updates=UpdatesConfig(policy=PolicyConfig(batch_size=8), prm=PrmConfig(batch_size=8)),
)
LENGTH = CONFIG.max_length
AXES = ("data", "fsdp", "tp")


def mesh_of(*sizes):
    """Make a mesh over the first devices; `make_mesh` always takes all of them."""
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def build_on(*sizes, config=CONFIG, task=TASK) -> Functions:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda config: mesh_of(*sizes))
        return build.build(config, task, SILENT)


@pytest.fixture(scope="module")
def one():
    return build_on(1, 1, 1)


@pytest.fixture(scope="module")
def cube():
    return build_on(2, 2, 2)


@pytest.fixture(scope="module")
def row():
    return build_on(8, 1, 1)


# The mesh and its table.


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((None, 1, 1), (8, 1, 1)),
        ((2, None, 2), (2, 2, 2)),
        ((1, 2, None), (1, 2, 4)),
        ((8, 1, None), (8, 1, 1)),
        ((2, 4, 1), (2, 4, 1)),
    ],
)
def test_a_mesh_takes_all_devices(sizes, expected):
    mesh = make_mesh(ShardingConfig(*sizes))
    assert tuple(mesh.shape[axis] for axis in AXES) == expected
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert sharding.num_shards(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize(
    "sizes",
    [(3, 1, 1), (None, 3, 1), (16, 1, 1), (None, None, 2), (4, 1, 1), (0, 8, 1), (-2, -4, 1)],
)
def test_sizes_that_do_not_make_the_devices_are_refused(sizes):
    with pytest.raises(UserError, match=r"does not make 8 devices; set --config\.sharding"):
        make_mesh(ShardingConfig(*sizes))


def test_a_dimension_that_its_axis_does_not_divide_stays_whole():
    mesh = mesh_of(2, 2, 2)
    assert spec_of("embedding", (8, 16), mesh) == PartitionSpec("tp", "fsdp")
    assert spec_of("embedding", (7, 16), mesh) == PartitionSpec(None, "fsdp")
    assert spec_of("block_0/wk", (16, 1, 4), mesh) == PartitionSpec("fsdp", None, None)
    assert spec_of("blocks/wk", (2, 16, 1, 4), mesh) == PartitionSpec(None, "fsdp", None, None)


SPECS = {
    "embedding": ("tp", "fsdp"),
    "wq": ("fsdp", "tp", None),
    "wk": ("fsdp", "tp", None),
    "wv": ("fsdp", "tp", None),
    "wo": ("tp", None, "fsdp"),
    "gate": ("fsdp", "tp"),
    "up": ("fsdp", "tp"),
    "down": ("tp", "fsdp"),
}


def test_parameters_and_moments_land_on_their_specs(cube):
    policy = cube.init_policy(np.array([1, 2], np.uint32))
    prm = cube.init_prm(policy.params)
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path((policy, prm)):
        name = str(getattr(path[-1], "key", ""))
        spec = SPECS.get(name, ())
        assert tuple(leaf.sharding.spec) == spec, jax.tree_util.keystr(path)
        part = [
            n // (2 if axis else 1)
            for n, axis in zip(leaf.shape, spec or leaf.ndim * [None], strict=True)
        ]
        assert leaf.addressable_shards[0].data.shape == tuple(part)
        found.add((name, str(getattr(path[1], "name", ""))))
    assert {(name, part) for name in SPECS for part in ("params", "opt_state")} <= found


def test_the_first_parameters_do_not_depend_on_the_mesh(one, cube):
    learners = [fns.init_policy(np.array([1, 2], np.uint32)) for fns in (one, cube)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), *learners)


# Updates.


def policy_batches(num):
    rng = np.random.default_rng(1)
    place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (8, LENGTH))
    for _ in range(num):
        prompt_length = rng.integers(2, 7, (8, 1))
        length = prompt_length + rng.integers(1, 13, (8, 1))
        yield TokenRows(
            tokens=rng.integers(1, VOCAB, (8, LENGTH)).astype(np.int32),
            position=place,
            until=np.where(place < length, length, 0).astype(np.int32),
            target=np.zeros((8, LENGTH), np.float32),
            weight=((place >= prompt_length) & (place < length)).astype(np.float32),
            group=np.full((8, LENGTH), -1, np.int32),
        )


def prm_batches(num):
    rng = np.random.default_rng(2)
    for batch in policy_batches(num):
        # values that lie together, so that a few updates find them
        target = rng.uniform(0.8, 1, (8, LENGTH)).astype(np.float32)
        weight = rng.uniform(size=(8, LENGTH)).astype(np.float32)
        is_step_end = (batch.weight > 0) & (rng.uniform(size=weight.shape) < 0.3)
        yield batch.replace(target=target, weight=np.where(is_step_end, weight, 0))


def start(fns: Functions, which: str):
    policy = fns.init_policy(np.array([1, 2], np.uint32))
    return policy if which == "policy" else fns.init_prm(policy.params)


UPDATES = {"policy": policy_batches, "prm": prm_batches}


def assert_both_learn_alike(one: Functions, other: Functions, which: str, num_updates: int) -> None:
    losses, learners = [], []
    for fns in (one, other):
        learner, found = start(fns, which), []
        for batch in UPDATES[which](num_updates):
            learner, info = getattr(fns, f"update_{which}")({}, learner, batch, np.float32(0.01))
            found.append(float(info["loss"]))
        losses.append(found)
        learners.append(jax.device_get(learner))
    assert losses[0][-1] < 0.97 * losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(learner.params) for learner in learners), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


@pytest.mark.parametrize("which", UPDATES)
def test_eight_devices_learn_what_one_learns(one, cube, which):
    assert_both_learn_alike(one, cube, which, 5)


def test_stacked_layers_are_sharded_too():
    config = replace(
        CONFIG, model=replace(CONFIG.model, num_layers=2, is_scanned=True, is_rematerialised=True)
    )
    cube = build_on(2, 2, 2, config=config)
    wq = cube.init_policy(np.array([1, 2], np.uint32)).params["blocks"]["wq"]
    assert (wq.shape, wq.addressable_shards[0].data.shape) == ((2, 16, 4, 4), (2, 8, 2, 4))
    assert_both_learn_alike(build_on(1, 1, 1, config=config), cube, "policy", 5)


@pytest.mark.parametrize("which", UPDATES)
def test_what_lies_past_a_length_is_never_learnt(one, which):
    batch = next(UPDATES[which](1))
    past = batch.until == 0
    garbled = batch.replace(tokens=np.where(past, (batch.tokens + 3) % VOCAB, batch.tokens))
    update = getattr(one, f"update_{which}")
    learners = [update({}, start(one, which), b, np.float32(0.01))[0] for b in (batch, garbled)]
    jax.tree.map(np.testing.assert_array_equal, *learners)


# Search.


def grown(fns: Functions):
    """Grow trees with random networks: (tree, text of the compiled program)."""
    abstract = fns.abstract_state
    params = [
        jax.device_put(
            random_like(learner.params, seed=5), jax.tree.map(lambda x: x.sharding, learner.params)
        )
        for learner in (abstract.policy, abstract.prm)
    ]
    rng = np.random.default_rng(3)
    length = rng.integers(1, 7, 16).astype(np.int32)
    tokens = rng.integers(2, VOCAB, (16, 6)).astype(np.int32)
    prompts = Prompts(tokens, length, np.arange(16, dtype=np.int32))
    grow, keys = fns.grow["train"], fns.problem_keys(0, 1, prompts.problem_id)
    tree = grow({}, *params, prompts, keys, np.float32(1))
    assert isinstance(grow, Announced)
    return jax.device_get(tree), next(iter(grow._compiled.values())).as_text()


@pytest.fixture(scope="module")
def grown_on_row(row):
    return grown(row)


def test_eight_devices_grow_the_trees_of_one(one, grown_on_row):
    assert_same_trees(grown(one)[0], grown_on_row[0])


def test_eight_devices_ask_one_host_about_steps():
    config = replace(CONFIG, search=replace(CONFIG.search, checks="filter"))
    problems = tuple(Problem(i, "", "") for i in range(16))

    class WithoutA(Task):
        def check_step(self, problem, before, step):
            return "a" not in step

    task = WithoutA("without a", TOKENIZER, problems)
    word = TOKENIZER.encode("a")[0]
    alone, tree = (
        grown(build_on(*sizes, config=config, task=task))[0] for sizes in ((1, 1, 1), (8, 1, 1))
    )
    assert_same_trees(alone, tree)
    # What was cut is no step to judge.
    last = np.take_along_axis(tree.tokens, np.maximum(tree.length - 1, 0)[..., None], axis=2)
    is_whole = np.isin(last[..., 0], [*TOKENIZER.encode("\n"), TOKENIZER.end_id])
    is_asked = is_whole & (tree.kind > 0) & (tree.parent < 0)
    is_false = is_asked & (tree.kind == Kind.FALSE)
    np.testing.assert_array_equal(is_false, is_asked & (tree.tokens == word).any(axis=2))
    assert is_false.any()


def assert_same_trees(alone, tree) -> None:
    assert len(np.unique(tree.length)) > 3 and tree.num_closed.any() and tree.is_finished.any()
    for name in vars(tree):
        if name in ("score", "value", "log_prob"):
            np.testing.assert_allclose(
                getattr(tree, name), getattr(alone, name), rtol=1e-5, atol=1e-5
            )
        elif name != "lane_tokens":  # lanes wait for the longest of their own device
            np.testing.assert_array_equal(getattr(tree, name), getattr(alone, name), err_msg=name)


def test_search_split_over_data_holds_no_collectives(grown_on_row):
    _, text = grown_on_row
    assert "num_partitions=8" in text
    assert re.findall(r" (all-|reduce-scatter|collective-)[\w-]*\(", text) == []


def ops_in_loops(text: str) -> set[tuple[tuple[int, ...], str]]:
    """List the (shape, operation) of everything that the loops of a compiled program compute."""
    bodies: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            lines = bodies.setdefault(line.removeprefix("ENTRY ").split()[0].lstrip("%"), [])
        elif line.startswith("  "):
            lines.append(line)
    waiting, seen = re.findall(r"body=%([\w.-]+)", text), set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [
                n for n in re.findall(r"%([\w.-]+)", "\n".join(bodies[name])) if n in bodies
            ]
    found = re.findall(
        r"= \w+\[([\d,]*)\]\S* ([\w-]+)\(",
        "\n".join(line for name in seen for line in bodies[name]),
    )
    return {(tuple(int(n) for n in dims.split(",") if n), op) for dims, op in found}


# An array passes through these as it is; scatter and dynamic-update-slice write a part of it in
# place.
IN_PLACE = {
    "parameter",
    "get-tuple-element",
    "bitcast",
    "fusion",
    "call",
    "scatter",
    "pad",  # of mctx's statistics, when a tree leaves
    "dynamic-update-slice",
}


def assert_trees_stay_in_place(
    text: str, num_trees: int, num_nodes: int, num_candidates: int
) -> None:
    """Require that loops touch what nodes hold, tokens of every kind, in one place a simulation and
    never as a whole.

    Such an array leads with [trees nodes] and has more numbers a node than the statistics of its
    candidates. A copy, or a select over the whole array, would be many times the traffic of a
    simulation. Fusions are looked into.
    """
    ops = {
        (shape, op)
        for shape, op in ops_in_loops(text)
        if shape[:2] == (num_trees, num_nodes) and np.prod(shape[2:]) > num_candidates
    }
    assert {op for _, op in ops} & {"scatter", "dynamic-update-slice"}, (
        "the arrays are not to be recognised any more"
    )
    assert {(shape, op) for shape, op in ops if op not in IN_PLACE} == set()


def test_search_never_copies_whole_trees(grown_on_row):
    """Neither what nodes hold nor the text of the 5 rows of each."""
    assert_trees_stay_in_place(grown_on_row[1], num_trees=2, num_nodes=5, num_candidates=3)
    assert_trees_stay_in_place(grown_on_row[1], num_trees=2, num_nodes=5 * 5, num_candidates=3)


@pytest.mark.parametrize("fault", ["copy", "select"])
def test_a_whole_tree_copy_would_be_seen(fault):
    def step(i, trees):
        new = trees.at[:, i].set(trees[:, i - 1] + 1)
        return (
            jnp.where(new[:, :1, :1] > 5, trees, new)
            if fault == "select"
            else jnp.roll(new, 1, axis=0)
        )

    text = (
        jax.jit(partial(jax.lax.fori_loop, 1, 5, step))
        .lower(jnp.zeros((2, 5, 9)))
        .compile()
        .as_text()
    )
    with pytest.raises(AssertionError, match="2, 5, 9"):
        assert_trees_stay_in_place(text, num_trees=2, num_nodes=5, num_candidates=3)
