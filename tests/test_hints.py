"""Unsolved problems asked again with their answers in the prompt, and what is learnt of that."""

import zlib
from dataclasses import dataclass, fields, replace
from io import StringIO

import jax
import numpy as np
import pytest
from test_iteration import Interrupted, InterruptedProgress, assert_same_run
from test_objectives_run import CONFIG as WHOLE
from test_objectives_run import functions, rows_of, run

from jaxtrain import datasets, phases
from jaxtrain.checkpoints import Checkpoints
from jaxtrain.config import check
from jaxtrain.errors import UserError
from jaxtrain.metrics import MetricsLog
from jaxtrain.progress import Progress
from jaxtrain.structs import Verdict
from jaxtrain.tasks import make_task
from jaxtrain.tasks.countdown import CountdownTask
from jaxtrain.workdir import open_workdir, run_key

CONFIG = replace(
    WHOLE,
    prompts=replace(WHOLE.prompts, num_hinted=24, hint="{gold}", max_prompt_tokens=12),
    evaluation=replace(WHOLE.evaluation, strategies=("greedy",)),
)
pytestmark = pytest.mark.usefixtures("compile_cache")


@dataclass(frozen=True)
class Lottery(CountdownTask):
    """A problem takes one text of eight, whatever it says, so that trees miss and hints hit."""

    def verify(self, problem, text):
        is_hit = zlib.crc32(f"{problem.id} {text}".encode()) % 8 == 0
        return Verdict.CORRECT if is_hit else Verdict.WRONG


@pytest.fixture(scope="module")
def task():
    made = make_task(CONFIG.tasks)
    return Lottery(**{field.name: getattr(made, field.name) for field in fields(made)})


@pytest.fixture(scope="module")
def fns(task):
    return functions(task, CONFIG)


@pytest.fixture(scope="module")
def straight(task, fns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return run(folder, task, CONFIG, 2, fns), folder


@pytest.fixture(scope="module")
def rounds(straight, task, fns):
    """The shards of every iteration, read back: those of searches, and those of hints."""
    with open_workdir(straight[1], {"seed": CONFIG.seed}, {}) as workdir:
        key = run_key({"seed": CONFIG.seed}, {})
        with Checkpoints(workdir.checkpoints, CONFIG.checkpoints, key) as checkpoints:
            log, progress = MetricsLog(straight[1]), Progress(0, StringIO())
            made = phases.Run(CONFIG, task, fns, workdir, log, progress, checkpoints)
            found = {i: phases.read_round(made, i) for i in range(3)}
            num_searched = {i: len(phases.draw(made, i)[0]) for i in range(3)}
    parts = {
        i: (shards[: num_searched[i]], shards[num_searched[i] :]) for i, shards in found.items()
    }
    return {k: {i: part[k] for i, part in parts.items()} for k in (0, 1)}


def problems_of(shards, is_solved=None):
    """The ids of the problems of trees: all, or those with or without a correct answer."""
    found = []
    for _, tree, judged in shards:
        solved = (judged.verdict == Verdict.CORRECT).any(axis=1)
        kept = np.full(solved.shape, True) if is_solved is None else solved == is_solved
        found += tree.problem_id[kept & (tree.problem_id >= 0)].tolist()
    return sorted(found)


def test_what_no_tree_solved_is_asked_again_and_nothing_else(rounds, straight):
    searched, hinted = rounds[0], rounds[1]
    assert hinted[0] == [] and problems_of(searched[0], is_solved=False)
    for i in (1, 2):
        assert problems_of(hinted[i]) == problems_of(searched[i], is_solved=False) != []
        told = rows_of(straight[1])[i]
        assert told["hints/num_trees"] == len(problems_of(hinted[i]))
        assert told["hints/num_trees_solved"] == len(problems_of(hinted[i], is_solved=True)) > 0
        assert told["labels/num_trees"] == len(problems_of(searched[i]))


def test_the_policy_learns_what_hints_led_to_without_them(rounds, task):
    both = {i: [*rounds[0][i], *rounds[1][i]] for i in rounds[0]}
    learnt, _, _ = datasets.collect(both, CONFIG.datasets, CONFIG.max_length, CONFIG.seed)
    of_hints = {(i, id) for i in (1, 2) for id in problems_of(rounds[1][i], is_solved=True)}
    taught = {*zip(learnt.iteration.tolist(), learnt.problem_id.tolist(), strict=True)}
    assert of_hints & taught
    for tokens, weight, until, id in zip(
        learnt.rows.tokens, learnt.rows.weight, learnt.rows.until, learnt.problem_id, strict=True
    ):
        start, end = int(np.argmax(weight > 0)), int(np.count_nonzero(until))
        problem = task.problems[int(id)]
        assert task.tokenizer.decode(tokens[:start]) == problem.prompt
        assert task.verify_tokens(problem.id, tokens[start:end]) == Verdict.CORRECT


def test_the_prm_learns_of_searches_alone(rounds):
    both = {i: [*rounds[0][i], *rounds[1][i]] for i in rounds[0]}
    given, alone = (
        datasets.collect(x, CONFIG.datasets, CONFIG.max_length, CONFIG.seed)[1]
        for x in (both, rounds[0])
    )
    jax.tree.map(np.testing.assert_array_equal, given, alone)


@pytest.mark.parametrize("num_done", [0, 1])
def test_a_run_stopped_among_hints_ends_where_a_straight_one_does(
    task, fns, straight, tmp_path, num_done
):
    progress = InterruptedProgress(
        lambda name, i, done: name == "hints" and i == 2 and done >= num_done
    )
    with pytest.raises(Interrupted):
        run(tmp_path, task, CONFIG, 2, fns, progress)
    assert_same_run(run(tmp_path, task, CONFIG, 2, fns), tmp_path, straight)


def test_hints_that_make_no_sense_are_one_line(task):
    with pytest.raises(UserError, match=r"prompts.hint=told: must say \{gold\}"):
        replace(CONFIG.prompts, hint="told")
    learner = replace(CONFIG.updates.policy, objective="dpo")
    with pytest.raises(UserError, match="num_hinted=24: gives traces alone.*objective nll"):
        replace(CONFIG, updates=replace(CONFIG.updates, policy=learner))
    for prompts, why in (
        (replace(CONFIG.prompts, hint="it is {gold}"), "character 'i' at position 0"),
        (replace(CONFIG.prompts, max_prompt_tokens=9), "no prompt of the hinted train problems"),
    ):
        with pytest.raises(UserError, match=why):
            check(replace(CONFIG, prompts=prompts), task)
