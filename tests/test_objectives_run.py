"""Every objective in two iterations of a tiny run, told by one line of a config, and stopped and
resumed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from io import StringIO

import jax
import numpy as np
import pytest
from solver import solutions
from test_iteration import CONFIG as WHOLE

from jaxtrain import iteration
from jaxtrain.build import build
from jaxtrain.config import EvaluationConfig
from jaxtrain.plan import calls_of
from jaxtrain.progress import Progress
from jaxtrain.search import SearchConfig
from jaxtrain.sharding import ShardingConfig, make_mesh
from jaxtrain.tasks import Demonstration, make_task
from jaxtrain.updates import OBJECTIVES, FitConfig
from jaxtrain.workdir import open_workdir

SEARCH = SearchConfig(num_simulations=5, num_candidates=4)
POLICY = replace(WHOLE.updates.policy, fit=FitConfig(num_updates=4, learning_rate=2e-3))
CONFIG = replace(
    WHOLE,
    updates=replace(WHOLE.updates, policy=POLICY),
    prompts=replace(WHOLE.prompts, num_first_problems=16),
    search=SEARCH,
    evaluation=EvaluationConfig(num_problems=8, strategies=("search",), search=SEARCH),
)
pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def task():
    """Countdown whose demonstrations are solutions of its own training problems."""
    task = make_task(CONFIG.tasks)
    asked = [(p.prompt, *p.prompt.split("=")) for p in task.train]
    shown = [
        Demonstration(prompt, solutions(tuple(map(int, numbers.split())), int(target))[0])
        for prompt, numbers, target in asked
    ]
    return replace(task, demonstrations=tuple(shown))


def learning(network, **how):
    """Change how a network learns."""
    learner = replace(getattr(CONFIG.updates, network), **how)
    return replace(CONFIG, updates=replace(CONFIG.updates, **{network: learner}))


def functions(task, config):
    """Build for one device; the search that answers is the one that learns, and compiled once."""
    mesh = make_mesh(ShardingConfig(), jax.devices()[:1])
    fns = build(config, task, Progress(0, StringIO()), mesh=mesh)
    return replace(fns, grow={**fns.grow, "search": fns.grow["train"]})


def run(folder, task, config, num_iterations, fns=None):
    config = replace(config, loop=replace(config.loop, num_iterations=num_iterations))
    fns = fns or functions(task, config)
    with (
        pytest.MonkeyPatch.context() as patch,
        open_workdir(folder, {"seed": config.seed}, {}) as workdir,
        Progress(num_iterations, StringIO()) as progress,
    ):
        patch.setattr(iteration, "build", lambda *_, **__: fns)
        return iteration.run_loop(config, task, workdir, progress)


def rows_of(folder):
    """Merge the metrics of every iteration."""
    merged = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        merged.setdefault(row["iteration"], {}).update(row)
    return merged


@pytest.fixture(scope="module")
def plain(task):
    return functions(task, CONFIG)


@pytest.fixture(scope="module")
def warm(task, plain, tmp_path_factory):
    """A run that stands after iteration 0, which is the same whatever is learnt of trees."""
    folder = tmp_path_factory.mktemp("warm")
    run(folder, task, CONFIG, 0, plain)
    return folder


CASES = {name: dict(objective=name) for name in OBJECTIVES["policy"]}
CASES |= {
    "nll from the warm start": dict(init_from="warm_start"),
    "weighted from the warm start": dict(objective="weighted", init_from="warm_start"),
    "packed": dict(objective="weighted"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_policy_learns_by_every_objective(task, plain, warm, tmp_path, case):
    """And a run that was stopped between its iterations ends where an undisturbed one does."""
    config, folder = learning("policy", **CASES[case]), tmp_path / "run"
    if case == "packed":
        width = 3 * config.max_length
        config = replace(config, datasets=replace(config.datasets, packed_tokens=width))
    shutil.copytree(warm, folder)
    own = functions(task, config)
    # What no objective changes need not be compiled again.
    fns = replace(own, grow=plain.grow, update_prm=plain.update_prm, init_policy=plain.init_policy)
    state = run(folder, task, config, 2, fns)
    rows = rows_of(folder)
    assert rows[2]["updates/policy/num_updates"] == 4, rows[2]
    assert rows[2]["updates/policy/num_skipped"] == 0
    told = rows[1]["updates/policy/losses"]
    if "dpo" in case:
        assert told[0] == pytest.approx(np.log(2), rel=1e-3), "nothing is preferred at first"
    if case == "grpo":
        assert told[0] != 0 and np.isfinite(told).all()
    for name in ("policy", "prm") if case == "packed" else ():
        key = f"datasets/num_{name}_tokens_"
        assert 0 < rows[2][key + "packed"] < rows[2][key + "apart"]

    stopped = tmp_path / "stopped"
    shutil.copytree(warm, stopped)
    run(stopped, task, config, 1, fns)
    jax.tree.map(np.testing.assert_array_equal, run(stopped, task, config, 2, fns), state)


@pytest.mark.parametrize("network", OBJECTIVES)
def test_a_plan_knows_the_rows_of_every_objective(task, network):
    packed = replace(CONFIG.datasets, packed_tokens=3 * CONFIG.max_length)
    for objective in OBJECTIVES[network]:
        config = learning(network, objective=objective)
        if network == "prm":
            config = replace(config, datasets=packed)
        name = {"policy": "policy update", "prm": "PRM update"}[network]
        update, arguments = calls_of(config, functions(task, config))[name]
        learner, told = update.jitted.eval_shape(*arguments)
        assert told["loss"].shape == () and jax.tree.structure(learner) == jax.tree.structure(
            arguments[1]
        )


@pytest.mark.parametrize("objective", OBJECTIVES["prm"])
def test_a_prm_learns_by_every_objective(task, tmp_path, objective):
    config = learning("prm", objective=objective)
    state = run(tmp_path, task, config, 2)
    weight = state.prm.params["head"]["weight"]
    assert weight.shape[1:] == {"squared": (), "bins": (11,)}.get(objective, (2,))
    assert np.abs(weight).max() > 0
    for row in rows_of(tmp_path).values():
        assert row["updates/prm/num_updates"] > 0 and row["updates/prm/num_skipped"] == 0
        assert np.isfinite(row["updates/prm/loss"])
