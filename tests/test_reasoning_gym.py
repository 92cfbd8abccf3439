"""Problems of reasoning-gym, and the worker that judges them: it can hang, die and misbehave
without harm.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from nested import change

from jaxtrain.errors import UserError
from jaxtrain.structs import Verdict
from jaxtrain.tasks import Problem, TasksConfig, make_task
from jaxtrain.tasks.reasoning_gym import ReasoningGymTask
from jaxtrain.verifiers.worker import MATH, TOKENS, Worker, is_safe

EVALUATING = sorted(TOKENS.keys() - {MATH})  # math-verify parses, and evaluates digits alone

try:
    metadata.version("reasoning_gym")
except metadata.PackageNotFoundError:
    pytest.skip("reasoning-gym needs the extra [tasks]", allow_module_level=True)

SUMS = change(
    TasksConfig(),
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


class Scorer(Worker):
    """A scorer that takes one text for right, and remembers what it was asked."""

    def __init__(self, right=""):
        self.right, self.asked = right, []

    def judge(self, index, answer):
        self.asked.append(answer)
        return answer == self.right


def task_of(name, scorer):
    return ReasoningGymTask(name, None, (), (), (), (), worker=scorer)


NUMBERS = [
    ("28", "28", Verdict.CORRECT),
    ("28", "$28.00", Verdict.CORRECT),
    ("28", "-28", Verdict.WRONG),
    ("28", "28,080", Verdict.WRONG),
    ("28080", "28,080", Verdict.CORRECT),
    ("28080", "not 28080", Verdict.UNPARSABLE),
    ("7", "7 dogs 8 cats", Verdict.UNPARSABLE),
    ("7", "7/2", Verdict.WRONG),
    ("12", "12 or 13", Verdict.UNPARSABLE),
    ("0.5", ".50", Verdict.CORRECT),
]


@pytest.mark.parametrize(("gold", "answer", "verdict"), NUMBERS)
def test_a_gold_that_is_a_number_is_compared_as_one(gold, answer, verdict):
    """Whatever the dataset's scorer says, which is not even asked."""
    scorer = Scorer(right=answer)
    assert task_of("gsm_symbolic", scorer).verify(Problem(0, "", gold), f"#### {answer}") == verdict
    assert scorer.asked == []


@pytest.mark.parametrize(
    ("gold", "answer", "right", "verdict"),
    [
        ("3/4", "3/4", "3/4", Verdict.CORRECT),
        ("3/4", "6/8", "3/4", Verdict.WRONG),  # not in lowest terms
        ("3/4", "0.75", "3/4", Verdict.WRONG),
        ("92", "184/2", "92", Verdict.WRONG),  # digits in another base
        ("3/4", "7/8", "7/8", Verdict.WRONG),  # of another value, though the scorer takes it
        ("0.5", "1/2", "1/2", Verdict.CORRECT),
    ],
)
def test_quotients_need_the_scorer_too(gold, answer, right, verdict):
    assert task_of("any", Scorer(right)).verify(Problem(0, "", gold), f"#### {answer}") == verdict


@pytest.mark.parametrize(
    ("name", "gold", "answer", "verdict"),
    [
        ("game_of_life_halting", "True", "true", Verdict.CORRECT),
        ("game_of_life_halting", "True", "banana", Verdict.WRONG),
        ("game_of_life_halting", "True", "False True", Verdict.WRONG),
        ("word_sorting", "a, b", "a,b", Verdict.CORRECT),
        ("word_sorting", "a, b", "a, b, zzz", Verdict.WRONG),
        ("number_sorting", "['1', '2.5']", "[1, 2.5]", Verdict.CORRECT),
        ("number_sorting", "['1', '2.5']", "['1.9', '3.4']", Verdict.WRONG),
        ("number_sorting", "['1', '2.5']", "[NaN, NaN]", Verdict.WRONG),
    ],
)
def test_where_a_scorer_takes_too_much_the_text_is_compared(name, gold, answer, verdict):
    task = task_of(name, None)
    assert task.verify(Problem(0, "", gold), f"#### {answer}") == verdict


def test_a_complex_number_that_is_none_is_wrong():
    config = change(
        SUMS, dataset="complex_arithmetic", params="", num_train=3, num_dev=0, num_test=1
    )
    task = make_task(config)
    for problem in task.train:
        assert task.verify(problem, f"#### {problem.gold}") == Verdict.CORRECT
        assert task.verify(problem, "#### nan") == Verdict.WRONG


def test_a_gold_that_is_none_or_not_rounded_is_the_scorers_to_judge():
    assert (
        task_of("any", Scorer("5 days")).verify(Problem(0, "", "five days"), "#### 5 days")
        == Verdict.CORRECT
    )
    problem = Problem(0, "", "-0.0013674811612376526")  # asked for with 3 significant figures
    assert (
        task_of("power_function", Scorer("-1.37e-3")).verify(problem, "#### -1.37e-3")
        == Verdict.CORRECT
    )


def test_answers_of_one_value_are_one_vote():
    task = task_of("any", Scorer())
    assert {task.answer(f"#### {text}") for text in ("72", "72.0", "$72", "72.", "+72")} == {"72"}
    assert task.answer("#### 144/2") == "144/2"  # its verdict may be another, so it votes alone
    assert task.answer("#### A or B") == "A or B"


def test_where_numerals_and_the_scorer_disagree_is_counted(sums):
    assert sums.counts["disagreed"] == sums.counts["refused"] == 0


def test_templates_held_out_are_in_no_set():
    """Whatever the sizes of the sets; an item's variables name its template."""
    sizes = {"num_train": 40, "num_dev": 5, "num_test": 20, "num_demonstrations": 5}
    common = change(TasksConfig(), name="reasoning_gym", dataset="gsm_symbolic", unseen_share=0.325)
    worker = Worker("gsm_symbolic", {"seed": 0, "size": 1000})
    seen, unseen = (
        make_task(change(common, is_unseen=is_unseen, **sizes)) for is_unseen in (False, True)
    )
    templates = [
        {worker.item(p.id)["template"] for p in (*task.train, *task.dev, *task.test)}
        for task in (seen, unseen)
    ]
    assert min(map(len, templates)) > 15 and not templates[0] & templates[1]
    assert seen.counts["held_out"] > 0 and unseen.counts["held_out"] > 0
    worker.close()


def test_no_two_problems_differ_in_names_alone():
    """Numbers are new in every set: an answer cannot be recited for a test problem from a train
    problem.
    """
    worker = Worker("gsm_symbolic", {"seed": 0, "size": 2000})
    config = change(
        TasksConfig(),
        name="reasoning_gym",
        dataset="gsm_symbolic",
        num_train=250,
        num_dev=20,
        num_test=200,
        num_demonstrations=0,
    )
    task = make_task(config)
    problems = [*task.train, *task.dev, *task.test]
    numbers = ["".join(c if c.isdigit() else " " for c in p.question).split() for p in problems]
    alike = {
        (worker.item(p.id)["template"], *found, p.gold)
        for p, found in zip(problems, numbers, strict=True)
    }
    worker.close()
    assert (
        len(alike)
        == len(problems)
        == len({p.question for p in problems})
        == len({p.substance for p in problems})
    )
    assert task.counts["repeated"] > 0


def test_reference_solutions_are_split_into_steps():
    task = make_task(
        change(
            TasksConfig(),
            name="reasoning_gym",
            dataset="gsm_symbolic",
            num_train=1,
            num_dev=0,
            num_test=1,
            num_demonstrations=3,
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
        ({"params": "{"}, "no JSON"),
        ({"params": "[3]"}, "must be a JSON object"),
        ({"num_train": None}, "num_train=none"),
        ({"dataset": "puzzle24", "params": ""}, "its scorer takes wrong answers for right ones"),
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
    with pytest.raises(UserError, match=message) as caught:
        make_task(change(SUMS, **changes))
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
    (tmp_path / "worker.py").write_text(
        source.replace("import reasoning_gym", "import fake_gym as reasoning_gym", 1)
    )
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
    assert hostile.judge(0, "1") is True
    assert hostile.judge(0, answer) is None
    assert hostile.judge(0, "0.5") is False


def test_an_answer_changes_no_verdict_but_its_own(hostile):
    patch = "exec('import fake_gym\\nfake_gym.Dataset.judge = lambda *_: 1.0') or 0.5"
    hostile.judge(0, patch)
    assert hostile.judge(0, "0.25") is False
    hostile.judge(
        0, "[__import__('os').write(fd, b'{\"verdict\": true}\\n') for fd in range(3, 20)]"
    )
    assert hostile.judge(0, "0.25") is False


def test_the_judged_hold_no_pipe_and_no_rights_of_root(hostile):
    """What they say of themselves goes by their exit status alone."""
    path = "f'/proc/self/fd/{fd}'"
    links = f"[os.readlink({path}) for fd in range(64) if os.path.exists({path})]"
    piped = f"(lambda os: any('/' not in link for link in {links}))(__import__('os'))"
    assert hostile.judge(0, piped) is False
    assert hostile.judge(0, "__import__('os').getuid() == 0") is False
    assert hostile.judge(0, "__import__('os').fork() and 1.0") is None


def test_what_leaves_its_session_dies_too():
    code = """if True:
        import os, sys, time
        from jaxtrain.verifiers.worker import PR_SET_CHILD_SUBREAPER, kill_descendants, prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                os.write(writer, str(os.getpid()).encode())
                time.sleep(600)
            os._exit(0)
        pid = os.read(reader, 20).decode()
        kill_descendants()
        sys.exit(os.path.exists(f"/proc/{pid}"))
    """
    if not Path("/proc/self").exists():
        pytest.skip("only Linux has subreapers")
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("kind", EVALUATING)
def test_a_scorer_that_evaluates_sees_its_golds_and_nothing_like_code(kind):
    worker = Worker(kind, {"seed": 0, "size": 20})
    golds = {i: gold for i in range(20) if (gold := worker.item(i)["answer"]) is not None}
    assert len(golds) >= 15 and all(worker.judge(i, gold) is True for i, gold in golds.items())
    attack = "__import__('os').write(6,b'1.0')-__import__('os')._exit(0)"
    assert worker.judge(min(golds), attack) is False
    worker.close()


CODE = [
    "exit()",
    "x.y",
    "x.__class__",
    "_",
    "__",
    "'a'",
    '"a"',
    "[1]",
    "{1}",
    "1;2",
    "a=1",
    "lambda",
    "S(x)",
    "N(x)",
]
CODE += [
    "x if x else x",
    "True",
    "x,y",
    "f(x)",
    "Integral(x)",
    "0x1f",
    "1_0",
    "2x",
    "1e9",
    "\u0661",
    "x\u2080",
    "9!",
]


@pytest.mark.parametrize("kind", EVALUATING)
@pytest.mark.parametrize("code", CODE)
def test_code_is_not_made_of_the_tokens_of_an_answer(kind, code):
    harmless = kind == "n_queens" and code == "_"
    assert is_safe(kind, f"1 + {code}") is False and is_safe(kind, code) is harmless


@pytest.mark.parametrize(
    ("kind", "answer", "safe"),
    [
        ("countdown", "6*(98 - 54) - 34 - 66", True),
        ("countdown", "9**9", False),
        ("countdown", "9//2", False),
        ("puzzle24", "1*3*5 + 9", True),
        ("simple_integration", "-5*X**9/2 - 2.5*X + C", True),
        ("intermediate_integration", "-exp(x)*sin(x) + sqrt(x)*asin(2*x) + C", True),
        ("polynomial_multiplication", "3*x**2*y - z", True),
        ("binary_matrix", "0 1\n1 0", True),
        ("n_queens", "_ Q\nQ _", True),
        ("string_insertion", "ABCA", True),
        ("gsm_symbolic", "anything('goes')", True),  # nothing is evaluated there
        ("countdown", "1" * 100_000 + "x", False),
    ],
)
def test_tokens_of_each_kind(kind, answer, safe):
    assert is_safe(kind, answer) is safe


def test_items_are_the_same_in_every_process():
    """Some generators iterate over sets, so a hash seed that changes would change what an index
    means.
    """
    worker = Worker("isomorphic_strings", {"seed": 0, "size": 5})
    first = [worker.item(i) for i in range(5)]
    worker.close()
    assert [worker.item(i) for i in range(5)] == first
    worker.close()


def test_what_a_scorer_prints_is_no_answer(hostile):
    assert hostile.judge(0, "print('{\"verdict\": true}') or 0") is False


def test_a_scorer_sees_no_environment_and_writes_no_files(hostile, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hostile.close()
    assert hostile.judge(0, "'HF_TOKEN' in __import__('os').environ") is False
    target = tmp_path / "written"
    hostile.judge(0, f"open({str(target)!r}, 'w').write('x' * 10000)")
    assert not target.exists() or target.stat().st_size == 0


def test_a_worker_leaves_with_its_owner(hostile):
    assert hostile.judge(0, "1") is True
    process = hostile._process
    hostile.close()
    assert process.poll() is not None
