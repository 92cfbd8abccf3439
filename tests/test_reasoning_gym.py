"""Problems of reasoning-gym, and the worker that judges them: it can hang, die and misbehave without harm."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

import pytest

from jaxtrain.errors import UserError
from jaxtrain.structs import Verdict
from jaxtrain.tasks import TasksConfig, make_task
from jaxtrain.tasks.reasoning_gym import ReasoningGymTask
from jaxtrain.verifiers.worker import Worker

try:
    metadata.version("reasoning_gym")
except metadata.PackageNotFoundError:
    pytest.skip("reasoning-gym needs the extra [tasks]", allow_module_level=True)

SUMS = TasksConfig(
    name="reasoning_gym",
    dataset="chain_sum",
    params='{"max_terms": 3, "max_digits": 2}',
    num_train=20,
    num_dev=5,
    num_test=10,
    num_demonstrations=5,
)


@pytest.fixture(scope="module")
def sums():
    return make_task(SUMS)


def value_of(question):
    """Add up the sum that a question asks for."""
    terms = question.split(": ")[1].rstrip(" =").replace("- ", "-").replace("+ ", "").split()
    return sum(map(int, terms))


def test_sets_are_distinct_and_golds_are_right(sums):
    problems = [*sums.train, *sums.dev, *sums.test]
    assert len({p.question for p in problems} | {d.question for d in sums.demonstrations}) == 40
    assert all(int(p.gold) == value_of(p.question) for p in problems)
    assert make_task(SUMS).test == sums.test


def test_verdicts(sums):
    problem = sums.test[0]
    right = value_of(problem.question)
    assert sums.verify(problem, f"So it is\n#### {right}") == Verdict.CORRECT
    assert sums.verify(problem, f"It is \\boxed{{{right}}}.") == Verdict.CORRECT
    assert sums.verify(problem, f"#### {right + 1}") == Verdict.WRONG
    assert sums.verify(problem, f"It is {right}") == Verdict.UNPARSABLE


def test_templates_held_out_are_in_no_set():
    """Whatever the sizes of the sets; an item's variables name its template."""
    sizes = {"num_train": 40, "num_dev": 5, "num_test": 20, "num_demonstrations": 5}
    common = TasksConfig(name="reasoning_gym", dataset="gsm_symbolic", unseen_share=0.325)
    worker = Worker("gsm_symbolic", {"seed": 0, "size": 1000})
    seen, unseen = (make_task(replace(common, is_unseen=is_unseen, **sizes)) for is_unseen in (False, True))
    templates = [
        {worker.item(p.id)["template"] for p in (*task.train, *task.dev, *task.test)} for task in (seen, unseen)
    ]
    assert min(map(len, templates)) > 15 and not templates[0] & templates[1]
    assert seen.counts["held_out"] > 0 and unseen.counts["held_out"] > 0
    worker.close()


def test_no_two_problems_differ_in_names_alone():
    """Numbers are new in every set: an answer cannot be recited for a test problem from a train problem."""
    worker = Worker("gsm_symbolic", {"seed": 0, "size": 2000})
    config = TasksConfig(
        name="reasoning_gym", dataset="gsm_symbolic", num_train=250, num_dev=20, num_test=200, num_demonstrations=0
    )
    task = make_task(config)
    problems = [*task.train, *task.dev, *task.test]
    numbers = ["".join(c if c.isdigit() else " " for c in p.question).split() for p in problems]
    alike = {(worker.item(p.id)["template"], *found, p.gold) for p, found in zip(problems, numbers, strict=True)}
    worker.close()
    assert len(alike) == len(problems) == len({p.question for p in problems}) == len({p.substance for p in problems})
    assert task.counts["repeated"] > 0


def test_reference_solutions_are_split_into_steps():
    task = make_task(
        TasksConfig(
            name="reasoning_gym", dataset="gsm_symbolic", num_train=1, num_dev=0, num_test=1, num_demonstrations=3
        )
    )
    assert isinstance(task, ReasoningGymTask)
    assert task.verify(task.train[0], task.solution(task.train[0]).response) == Verdict.CORRECT
    assert task.solution(task.train[0]).prompt == task.train[0].prompt
    for demonstration in task.demonstrations:
        lines = demonstration.response.split("\n")
        assert len(lines) > 1 and all(line.strip() == line != "" for line in lines)
        assert lines[-1].startswith("#### ") and "####" not in "".join(lines[:-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "chain_smu"}, "chain_smu"),
        ({"params": '{"max_trems": 3}'}, "max_trems"),
        ({"params": "{"}, "is not JSON"),
        ({"params": "[3]"}, "must be a JSON object"),
        ({"num_train": 0}, "num_train=0"),
        ({"unseen_share": 0.5}, "chain_sum is not made of templates"),
        ({"is_unseen": True}, "is_unseen=True: no template is held out"),
        ({"dataset": "rush_hour", "params": ""}, "different questions with a gold of rush_hour"),
        (
            {"params": '{"max_terms": 2, "max_digits": 1}', "num_train": 5000},
            "different questions with a gold of chain_sum",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(changes, message):
    from dataclasses import replace

    with pytest.raises(UserError, match=message) as caught:
        make_task(replace(SUMS, **changes))
    assert "\n" not in str(caught.value)


HOSTILE = """
import os, sys, time
class Dataset:
    def __getitem__(self, index):
        return {"question": "?", "answer": "1", "metadata": {}}
    def score_answer(self, answer, entry):
        return float(self.judge(eval(answer)))  # what the worker is for
    def judge(self, value):
        return value
def create_dataset(name, **params):
    return Dataset()
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A worker whose scorer runs whatever the answer says."""
    from pathlib import Path

    from jaxtrain.verifiers import worker as worker_lib

    source = Path(worker_lib.__file__).read_text()
    (tmp_path / "worker.py").write_text(source.replace("import reasoning_gym", "import fake_gym as reasoning_gym", 1))
    (tmp_path / "worker.py").write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        + (tmp_path / "worker.py").read_text().replace("from __future__ import annotations", "", 1)
    )
    (tmp_path / "fake_gym.py").write_text(HOSTILE)
    monkeypatch.setattr(worker_lib, "__file__", str(tmp_path / "worker.py"))
    worker = Worker("any", {}, timeout=1.0)
    yield worker
    worker.close()


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('time').sleep(60)",
        "(lambda f: f(f))(lambda f: f(f))",
        "__import__('os')._exit(0)",
        "__import__('os').kill(__import__('os').getpid(), 9)",
        "bytearray(4 * 2**30)",
        "9**9**9**9",
        "__import__('sys').exit()",
        "not python",
        "'text'",
        "[]",
        "float('nan')",
        "exec('import os, time\\nwhile True: os.write(3, b\" \"); time.sleep(0.3)')",
        "[__import__('os').fork() for _ in range(3)] and __import__('time').sleep(60)",
    ],
)
def test_a_scorer_that_hangs_or_dies_is_an_error_and_the_next_works(hostile, answer):
    assert hostile.score(0, "1") == 1.0
    assert hostile.score(0, answer) is None
    assert hostile.score(0, "0.5") == 0.5


def test_an_answer_changes_no_verdict_but_its_own(hostile):
    patch = "exec('import fake_gym\\nfake_gym.Dataset.judge = lambda *_: 1.0') or 0.5"
    assert hostile.score(0, patch) in (0.5, 1.0)
    assert hostile.score(0, "0.25") == 0.25
    hostile.score(0, "[__import__('os').write(fd, b'{\"score\": 1.0}\\n') for fd in range(3, 20)]")
    assert hostile.score(0, "0.25") == 0.25


def test_items_are_the_same_in_every_process():
    """Some generators iterate over sets, so a hash seed that changes would change what an index means."""
    worker = Worker("isomorphic_strings", {"seed": 0, "size": 5})
    first = [worker.item(i) for i in range(5)]
    worker.close()
    assert [worker.item(i) for i in range(5)] == first
    worker.close()


def test_what_a_scorer_prints_is_no_answer(hostile):
    assert hostile.score(0, "print('{\"score\": 1}') or 0") == 0.0


def test_a_scorer_sees_no_environment_and_writes_no_files(hostile, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hostile.close()
    assert hostile.score(0, "'HF_TOKEN' in __import__('os').environ") == 0.0
    target = tmp_path / "written"
    hostile.score(0, f"open({str(target)!r}, 'w').write('x' * 10000)")
    assert not target.exists() or target.stat().st_size == 0


def test_a_worker_leaves_with_its_owner(hostile):
    assert hostile.score(0, "1") == 1.0
    process = hostile._process
    hostile.close()
    assert process.poll() is not None
