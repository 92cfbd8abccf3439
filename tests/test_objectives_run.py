"""Every objective in two iterations of a tiny run, told by one line of a config, and stopped and
resumed.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, fields, replace
from io import StringIO

import jax
import numpy as np
import pytest
from solver import solutions
from test_iteration import CONFIG as WHOLE
from test_iteration import Interrupted, InterruptedProgress, assert_same_run

from jaxtrain import iteration, labels
from jaxtrain import learning as learning_side
from jaxtrain.build import build
from jaxtrain.config import EvaluationConfig, check
from jaxtrain.errors import UserError
from jaxtrain.plan import calls_of
from jaxtrain.progress import Progress
from jaxtrain.search import SearchConfig
from jaxtrain.sharding import ShardingConfig, make_mesh
from jaxtrain.structs import Verdict
from jaxtrain.tasks import Demonstration, make_task
from jaxtrain.tasks.countdown import CountdownTask
from jaxtrain.updates import OBJECTIVES, FitConfig
from jaxtrain.verifiers.sums import check_sums
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


def run(folder, task, config, num_iterations, fns=None, progress=None):
    config = replace(config, loop=replace(config.loop, num_iterations=num_iterations))
    fns = fns or functions(task, config)
    with (
        pytest.MonkeyPatch.context() as patch,
        open_workdir(folder, {"seed": config.seed}, {}) as workdir,
        progress or Progress(num_iterations, StringIO()) as progress,
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
        calls = calls_of(config, functions(task, config), make_mesh(config.sharding))
        update, arguments = calls[name]
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


def test_no_sum_of_a_run_with_a_calculator_is_false(task, warm, tmp_path):
    """In the trees that it learns from and in those that answer; its rows tell that it had one. A
    line that was cut has no result yet, and this task's tokens cannot write one with a point.
    """
    config = replace(CONFIG, trace=replace(CONFIG.trace, calculator=True))
    run(tmp_path, task, config, 2)
    said = {warm: Counter(), tmp_path: Counter()}
    for folder, counter in said.items():
        for tree in map(np.load, folder.glob("trees/*/*.npz")):
            texts = map(task.tokenizer.decode, tree["tokens"][tree["length"] > 0].tolist())
            lines = (line for text in texts for line, end, _ in [text.partition("\n")] if end)
            counter.update(check_sums(line) for line in lines if "/" not in line)
    assert said[warm][False] > 20 and said[tmp_path][True] > 100
    assert said[tmp_path][False] == 0
    assert [row["evaluation/has_calculator"] for row in rows_of(tmp_path).values()] == [1, 1, 1]


@dataclass(frozen=True)
class Solved(CountdownTask):
    """Countdown that knows how its problems are solved."""

    def solution(self, problem):
        return next(shown for shown in self.demonstrations if shown.prompt == problem.prompt)


def solved(task: CountdownTask) -> Solved:
    return Solved(**{field.name: getattr(task, field.name) for field in fields(task)})


def test_a_prm_learns_references_with_dropout_beside_language_and_keeps_the_best(task, tmp_path):
    """And a fit that was interrupted goes back to where it ranked best, bit for bit."""
    config = learning("prm", dropout=0.2, lm_weight=0.1, held_out=0.5)
    config = replace(config, datasets=replace(config.datasets, learn_references=True))
    task, straight, folder = solved(task), tmp_path / "straight", tmp_path / "stopped"
    fns = functions(task, config)
    state, num_kept = run(straight, task, config, 2, fns), 0
    for row in rows_of(straight).values():
        told = {key: row[f"updates/prm/{key}"] for key in ("num_updates", "held_out_auroc_within")}
        curve, kept = told["held_out_auroc_within"], row["updates/prm/num_updates_kept"]
        assert kept == np.argmax(curve) + 1 if curve else kept == told["num_updates"]
        assert row["datasets/num_reference_paths"] > 0 == row["updates/prm/num_skipped"]
        assert 1 <= row["updates/prm/num_problems_held_out"] <= 8
        num_kept += kept
    assert int(state.prm.num_updates) == num_kept < 6 + 4 + 4 and len(curve) == 4

    # without what was saved the best would be lost
    is_end = lambda name, i, done: (name, i, done) == ("prm updates", 0, 5)  # noqa: E731
    with pytest.raises(Interrupted):
        run(folder, task, config, 2, fns, InterruptedProgress(is_end))
    assert {path.name for path in folder.glob("fits/0/prm/*")} >= {"4"}
    assert_same_run(run(folder, task, config, 2, fns), folder, (state, straight))
    assert not (folder / "fits").exists()


def test_what_is_ranked_is_no_reference_and_no_older_path_where_rows_are_packed(
    task, tmp_path, monkeypatch
):
    config, ranked = learning("prm", held_out=0.5), []
    data = replace(CONFIG.datasets, learn_references=True, packed_tokens=3 * CONFIG.max_length)
    monkeypatch.setattr(learning_side, "rank_ends", lambda *told: ranked.append(told[-1]) or 0.5)
    run(tmp_path, solved(task), replace(config, datasets=data), 1)
    iteration = [set(held.iteration.tolist()) for held in ranked]
    assert iteration == sorted(iteration, key=max) and {0} in iteration and {1} in iteration
    for held in ranked:
        length = (held.rows.until > 0).sum(axis=1, keepdims=True)
        is_token = held.rows.until > 0
        assert (held.rows.until == is_token * length).all(), "a row is one text"


LEARNT = ("learn_references", "learn_wrong_steps")


def test_wrong_steps_are_those_of_other_problems_and_none_ends_right(task, tmp_path, monkeypatch):
    data = replace(CONFIG.datasets, **dict.fromkeys(LEARNT, True))
    texts, task, references = [], solved(task), learning_side.references

    def kept(*told):
        texts.extend(found := references(*told))
        return found

    monkeypatch.setattr(learning_side, "references", kept)
    run(tmp_path, task, replace(learning("prm"), datasets=data), 0)
    wrong = [text for text in texts if not text.is_correct]
    assert len(texts) > len(wrong) > 0
    for text in wrong:
        response, depth = text.tokens[text.prompt_length :], text.steps[0].depth
        problem = task.problems[text.problem_id]
        own = task.solution(problem).response.split("\n")
        said = task.tokenizer.decode(response.tolist()).rstrip("\n").split("\n")
        assert said[:-1] == own[:depth] and said[-1] != own[depth] and len(text.steps) == 1
        assert task.verify(problem, "\n".join(said)) != Verdict.CORRECT
        told = labels.of_reference(len(own), CONFIG.labels, depth)[-1]
        assert text.steps[0].target == told

    # a packed row has room for all that is told of a problem
    asked = [
        replace(data, packed_tokens=10**6, **dict.fromkeys(LEARNT, on)) for on in (False, True)
    ]
    none, room = (replace(CONFIG, datasets=c).labels_per_row for c in asked)
    num_told = Counter(text.problem_id for text in texts for _ in text.steps)
    assert max(num_told.values()) <= room - none == 2 * CONFIG.trace.max_steps


def test_references_need_a_task_that_knows_some(task):
    config = replace(CONFIG, datasets=replace(CONFIG.datasets, learn_references=True))
    with pytest.raises(UserError, match="learn_references=True: needs a task with a sol") as caught:
        check(config, task)
    assert "\n" not in str(caught.value)
    check(config, solved(task))
    alone = replace(config.datasets, learn_references=False, learn_wrong_steps=True)
    with pytest.raises(UserError, match="learn_wrong_steps=True: needs learn_references=True"):
        check(replace(config, datasets=alone), solved(task))
