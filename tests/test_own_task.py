"""A task of the user's own: a Python file that the config names, and nothing else."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.structs import Verdict
from jaxtrain.tasks import Problem, TasksConfig, file_hashes, make_task

OWN = """
from dataclasses import dataclass

from jaxtrain.tasks import Problem, Task
from jaxtrain.tokenizers import byte_tokenizer

SIZE = 4

@dataclass(frozen=True)
class Doubling(Task):
    factor: int = 2

    def verify(self, problem, text):
        return int(text) == self.factor * int(problem.gold)  # raises for what is no number

def make(config, tokenizer):
    problems = tuple(Problem(i, f"{i}\\n", str(i)) for i in range(3 * SIZE))
    sets = [problems[k * SIZE : (k + 1) * SIZE] for k in range(3)]
    return Doubling("doubling", tokenizer or byte_tokenizer(), *sets, (), **config.read_params())

def nothing(config, tokenizer):
    return None

def of(*problems):
    sets = problems[:1], (), problems[1:]
    return lambda config, tokenizer: Doubling("doubling", byte_tokenizer(), *sets)

shared = of(Problem(0, "1\\n", "1"), Problem(0, "2\\n", "2"))
negative = of(Problem(-1, "1\\n", "1"))
named = of(Problem("a", "1\\n", "1"))
numbered = of(Problem(0, "1\\n", 1))

def mute(config, tokenizer):
    return Doubling("doubling", tokenizer)

def signed(config, tokenizer):
    return Doubling("doubling", byte_tokenizer(), commuting="+x")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return TasksConfig(name="my_task.py:make")


def test_a_file_and_a_function_make_a_task(own):
    task = make_task(replace(own, params='{"factor": 3}'))
    assert (task.name, len(task.train), len(task.test)) == ("doubling", 4, 4)
    assert (task.answer("15"), task.answer("")) == ("15", None)
    assert (
        task.verify(Problem(0, "", "5"), "15") is True
        and task.verify(Problem(0, "", "5"), "10") is False
    )


def test_the_file_is_found_from_other_folders(own, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert own.name == f"{tmp_path}/my_task.py:make" and make_task(own).name == "doubling"


def test_a_run_belongs_to_the_code_of_its_task(own):
    assert file_hashes(own) == {"tasks.name.sha256": hashlib.sha256(OWN.encode()).hexdigest()}


def test_the_loop_takes_its_word(own):
    """True and False are verdicts, and what it raises is the error of that answer alone."""
    from jaxtrain import labels
    from tests.test_labels import Row, plant

    task = make_task(own)
    texts = {1: "4", 2: "5", 3: "four"}

    def verify(problem_id: int, tokens: np.ndarray) -> Verdict | bool:
        return task.verify(Problem(problem_id, "", "2"), texts[int(tokens[-1])])

    tree, _ = plant(
        [
            [
                Row(-1, (1,), Verdict.CORRECT),
                Row(-1, (2,), Verdict.WRONG),
                Row(-1, (3,), Verdict.ERROR),
            ]
        ]
    )
    assert labels.judge(tree, verify).tolist() == [[Verdict.CORRECT, Verdict.WRONG, Verdict.ERROR]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("your_task.py:make", "there is no file .*your_task.py"),
        ("my_task.py:made", "my_task.py:made: unknown task"),
        ("my_task.py:SIZE", "my_task.py:SIZE: unknown task"),
        ("my_task.py:nothing", "my_task.py:nothing: made no Task but None"),
        ("my_task.py", "known are countdown, jsonl, reasoning_gym, and a function in a file"),
        ("count", "known are countdown"),
        ("my_task.py:shared", "an id must .* belong to one problem of all sets"),
        ("my_task.py:negative", "an id must be an int from 0 on"),
        ("my_task.py:named", "an id must be an int from 0 on"),
        ("my_task.py:mute", "made a Task without a tokenizer; from scratch give it one"),
        ("my_task.py:signed", "commuting='\\+x' must be ASCII signs"),
        ("my_task.py:numbered", "must hold Problems, with prompt and gold as texts"),
    ],
)
def test_what_makes_no_task_is_refused_in_one_line(own, name, message):
    with pytest.raises(UserError, match=message) as caught:
        make_task(TasksConfig(name=name))
    assert "\n" not in str(caught.value)


def test_a_file_may_import_what_stands_beside_it(own, tmp_path, monkeypatch):
    (tmp_path / "beside_my_task.py").write_text(OWN)
    (tmp_path / "my_task.py").write_text("from beside_my_task import make")
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert make_task(own).name == "doubling"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "ends with ZeroDivisionError: division by zero; the lines above"),
        ("import sys; sys.exit(3)", "ends with SystemExit: 3;"),
        ("def make(config, tokenizer): return tokenizer.nothing", "ends with AttributeError: "),
    ],
)
def test_what_the_file_itself_raises_is_shown_and_told_in_one_line(
    own, tmp_path, capsys, code, message
):
    (tmp_path / "my_task.py").write_text(code)
    with pytest.raises(UserError, match=f"my_task.py:make: {message}"):
        make_task(own)
    shown = capsys.readouterr().err
    assert 'my_task.py", line 1' in shown and shown.startswith("Traceback")


def test_a_verifier_that_fails_on_all_demonstrations_begins_no_run(own, tmp_path):
    """It would fail on all answers, and be found out only behind the warm start."""
    shown = "tuple(Demonstration('1', x) for x in {})"
    code = OWN.replace("import Problem", "import Demonstration, Problem")
    (tmp_path / "my_task.py").write_text(code.replace("(), **", f"{shown.format(['a', 'b'])}, **"))
    with pytest.raises(UserError, match="ends with ValueError: invalid literal for int"):
        make_task(own)
    # what is no problem is told first
    (tmp_path / "my_task.py").write_text(
        code.replace("(), **", f"{shown.format(['a', 'b'])}, **").replace("str(i))", "i)")
    )
    with pytest.raises(UserError, match="must hold Problems, with prompt and gold as texts"):
        make_task(own)
    # one that it can read says nothing against it
    (tmp_path / "my_task.py").write_text(code.replace("(), **", f"{shown.format(['a', '1'])}, **"))
    assert make_task(own).name == "doubling"
