"""The plan: what it counts is what is there, and what does not fit is refused with the keys that
would shrink it.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain import plan as plan_lib
from jaxtrain.build import build
from jaxtrain.errors import UserError
from jaxtrain.flags import parse
from jaxtrain.main import main
from jaxtrain.memory import machine_memory
from jaxtrain.plan import plan, stand_in
from jaxtrain.progress import Progress
from jaxtrain.search import SearchConfig
from jaxtrain.search.work import work_of
from jaxtrain.sharding import make_mesh
from jaxtrain.tasks import Task
from jaxtrain.tokenizers import byte_tokenizer

TINY = ["main", "--config", "configs/tpu_v4.py:tiny", "--config.hub.pretrained="]
GPU = ["--config.sharding.topology=h100:1", "--config.sharding.fsdp=1"]
HERE = [
    *TINY,
    "--config.sharding.topology=cpu",
    "--config.sharding.fsdp=8",
    "--config.model.num_layers=1",
]


def config_of(arguments, *more):
    return parse([*arguments, *more])[0]


def told(config):
    with Progress(0) as progress:
        return list(plan(config, progress))


def figures(lines, start):
    """Read the numbers of the first line that starts so."""
    line = next(line for line in lines if line.strip().startswith(start))
    return [
        float(number.replace(",", ""))
        for number in re.findall(r"[\d.,]*\d", line.strip().removeprefix(start))
    ]


@pytest.fixture(scope="module")
def here():
    config = config_of(HERE)
    return config, told(config)


def test_parameters_and_memory_are_those_of_a_real_start(here):
    config, lines = here
    with Progress(0) as progress:
        fns = build(config, stand_in(config), progress)
        policy = fns.init_policy(np.zeros(2, np.uint32))
        prm = fns.init_prm(policy.params)
    count = sum(x.size for x in jax.tree.leaves(policy.params))
    assert figures(lines, "policy") == [count] and figures(lines, "PRM") == [
        count + config.model.width + 1
    ]

    def on_first_device(tree):
        shards = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(tree)]
        return sum(x.nbytes for x in shards) / 2**30

    for name, part in (("parameters", "params"), ("optimizer", "opt_state")):
        both = [on_first_device(getattr(learner, part)) for learner in (policy, prm)]
        np.testing.assert_allclose(figures(lines, name), [*both, sum(both)], atol=6e-4)


def test_every_program_is_measured_and_every_stage_bounded(here):
    _, lines = here
    for name in ("search", "sampling", "policy update", "PRM update"):
        assert len(figures(lines, name)) >= 3
    for start in ("iteration", "in all", "disk"):
        assert any(line.strip().startswith(start) for line in lines), start


@pytest.mark.parametrize(
    ("method", "num_prefixes", "num_rows", "num_turns", "num_lanes"),
    [
        # 9 expansions of 8 candidates, each with a rollout of one step
        ("mcts_star", 18, 81, 18, 8),
        ("sample", 1, 32, 2, 16),  # 16 traces of two steps, all at once
        # the prompt, then four prefixes; four times 8 candidates in either turn
        ("beam", 5, 64, 2, 32),
        ("dvts", 5, 64, 2, 32),
        # 9 expansions of 8 candidates, without a rollout
        ("puct", 9, 72, 9, 8),
        ("gumbel", 9, 72, 9, 8),
        ("best_first", 9, 72, 9, 8),
        ("dfs", 9, 72, 9, 8),
    ],
)
def test_every_method_has_a_plan_of_its_own(method, num_prefixes, num_rows, num_turns, num_lanes):
    config = SearchConfig(method, num_simulations=9, num_candidates=8, num_samples=16)
    work = work_of(config, max_steps=2)
    found = (work.num_prefixes, work.num_rows, work.num_turns, work.num_lanes)
    assert found == (num_prefixes, num_rows, num_turns, num_lanes)


def test_tokens_of_samples_are_those_of_one_prefix_and_its_traces():
    lines = told(config_of(TINY, *GPU, "--config.search.method=sample"))
    # 2048 problems, both networks: a prompt of 256 and 16 traces of two steps of 64
    start = next(i for i, line in enumerate(lines) if line.startswith("iteration"))
    assert figures(lines[start:], "search")[0] == 2 * 2048 * (256 + 16 * 2 * 64)


def test_what_devices_of_this_machine_share_is_its_memory(here):
    needed, there = figures(here[1], "memory")
    assert 0 < needed < there == pytest.approx(machine_memory() / 2**30 / 8, abs=0.01)


def test_a_container_may_have_less_memory_than_its_machine(monkeypatch):
    whole = machine_memory()
    for told, expected in (("1073741824\n", 2**30), ("max\n", None)):
        monkeypatch.setattr(Path, "read_text", lambda *_, told=told: told)
        assert machine_memory() == expected if expected else machine_memory() >= whole


def test_a_plan_larger_than_this_machine_is_refused(monkeypatch):
    """What compiles anywhere may run nowhere: 3,618 GiB are told, and there is no such laptop."""
    huge = plan_lib.Program(temporaries=3618 * 2**30, results=0)
    monkeypatch.setattr(plan_lib, "programs", lambda *_: [("search", huge)])
    with pytest.raises(
        UserError, match=r"the search: needs 3,?618\.\d\d GiB per device, and there are"
    ):
        told(config_of(HERE))


def test_a_gpu_is_planned_from_shapes():
    lines = told(config_of(TINY, *GPU))
    assert any("from shapes, not compiled" in line for line in lines)
    assert figures(lines, "memory")[1] == pytest.approx(74.51)


def test_a_calculator_is_planned_like_any_other():
    """Of the stand-in's tokens some are digits, which results are written by."""
    flags = ["--config.model.vocab_size=258", "--config.trace.calculator=True", *GPU]
    told(config_of(["main", "--config", "configs/gsm8k_scratch.py", *flags]))


def test_a_vocabulary_may_be_larger_than_that_of_the_tokenizer():
    """Ids that no text has are read as what occurs in none."""
    flags = ["--config.model.vocab_size=512", "--config.trace.calculator=True"]
    config = config_of(["main", "--config", "configs/gsm8k_scratch.py", *flags])
    mesh = make_mesh(config.sharding)
    with Progress(0) as progress:
        fns = build(config, Task("", byte_tokenizer()), progress, mesh=mesh)
    fn, arguments = plan_lib.calls_of(config, fns, mesh)["search"]
    assert fn.jitted.eval_shape(*arguments).chosen.shape == (config.prompts.batch_size,)


def test_a_search_that_answers_is_planned_where_it_is_the_larger_one():
    def flags(num_simulations, num_candidates):
        sizes = {"simulations": num_simulations, "candidates": num_candidates}
        return [f"--config.evaluation.search.num_{key}={n}" for key, n in sizes.items()]

    with pytest.raises(UserError, match="the answering: needs .*evaluation.search.num_simulations"):
        told(config_of(TINY, *GPU, *flags(16384, 64)))
    lines = told(config_of(TINY, *GPU, *flags(1, 1)))
    assert not any(line.strip().startswith("answering") for line in lines)


def test_trees_on_disk_are_whole_batches_of_all_that_grow():
    """One problem fills a file of its batch, and trees of evaluations are kept as well."""

    def gib_of_trees(*flags):
        return figures(told(config_of(TINY, *GPU, *flags)), "disk")[-1]

    batch, two = (f"--config.prompts.num_problems={n}" for n in (1, 257))
    size = ("--config.prompts.batch_size=256", "--config.evaluation.num_problems=256")
    alone = gib_of_trees(*size, batch, "--config.evaluation.strategies=greedy")
    assert alone < gib_of_trees(*size, batch, "--config.evaluation.strategies=search")
    assert alone < gib_of_trees(*size, two, "--config.evaluation.strategies=greedy")


def test_what_does_not_fit_is_refused_with_what_would_shrink_it():
    flags = ["main", "--config", "configs/h100.py", "--config.updates.policy.batch_size=512"]
    with pytest.raises(UserError) as caught:
        told(config_of(flags))
    message = str(caught.value)
    assert re.search(
        r"the policy update: needs [\d.]+ GiB per device, and there are 74.51", message
    )
    assert "--config.updates.policy.batch_size" in message and "\n" not in message


def test_the_config_for_one_h100_fits():
    told(config_of(["main", "--config", "configs/h100.py"]))


@pytest.mark.parametrize("topology", ["v9:2x2", "tpu", "h99:1", "cpu:4"])
def test_an_unknown_topology_is_refused(topology):
    with pytest.raises(UserError, match=f"topology={topology}: unknown; known are v4, v5e"):
        told(config_of(TINY, f"--config.sharding.topology={topology}"))


def test_batches_that_the_mesh_cannot_split_are_refused():
    with pytest.raises(UserError, match="batch_size=12: cannot be split over data x fsdp = 8"):
        told(
            config_of(
                TINY,
                "--config.sharding.topology=h100:8",
                "--config.sharding.fsdp=8",
                "--config.prompts.batch_size=12",
            )
        )


def test_a_model_that_cannot_be_opened_is_planned_by_no_other_shape(capsys):
    flags = ["--plan", "--config.hub.pretrained=./nowhere", "--config.sharding.topology=h100:1"]
    assert main(["main", "--config", "configs/base.py", *flags]) == 2
    assert "./nowhere: no such folder" in capsys.readouterr().err


def test_a_mesh_that_is_not_the_topology_is_refused():
    with pytest.raises(UserError, match="does not make 2 devices"):
        told(config_of(TINY, "--config.sharding.topology=h100:2", "--config.sharding.fsdp=3"))


def test_a_model_that_is_not_here_is_planned_by_its_shape(capsys):
    """The command, with the hub id that nobody has fetched."""
    assert main([*TINY[:3], "--plan", *GPU]) == 0
    assert "from shapes" in capsys.readouterr().out


@pytest.fixture
def libtpu():
    try:
        metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        pytest.skip("compiling for a TPU needs the extra [plan]")


def test_a_tpu_is_compiled_for_without_one(libtpu):
    lines = told(config_of(TINY))
    assert any("GiB per device, compiled" in line for line in lines)
    needed, there = figures(lines, "memory")
    assert 0 < needed < there == 32


def test_a_size_that_no_tpu_has_is_refused(libtpu):
    with pytest.raises(UserError, match="topology=v4:7x1x1: cannot be compiled for"):
        told(config_of(TINY, "--config.sharding.topology=v4:7x1x1"))
