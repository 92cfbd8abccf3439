import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from nested import change

from jaxtrain.errors import UserError
from jaxtrain.structs import Verdict
from jaxtrain.tasks import Problem, TasksConfig, file_hashes, make_task
from jaxtrain.tasks.jsonl import KINDS, JsonlConfig, JsonlTask
from jaxtrain.verifiers.worker import MATH, Expressions, Worker, is_safe

GSM8K = Path(__file__).parents[1].parent / "shared" / "data" / "gsm8k"
PROBLEM = Problem(id=0, prompt="Q: How many?\nA:\n", gold="1,200")


def row(number, question=None, answer=None):
    question = f"Ada has {number} boxes of 3 pens. How many pens?" if question is None else question
    answer = (
        f"Each box has 3.\n{number}*3=<<{number}*3={3 * number}>>{3 * number}.\n#### {3 * number}"
        if answer is None
        else answer
    )
    return {"question": question, "answer": answer}


def write(path, rows):
    path.write_bytes(
        b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)
    )
    return str(path)


@pytest.fixture
def config(tmp_path):
    """Forty good train rows and ten test rows."""
    return change(
        TasksConfig(),
        name="jsonl",
        path=write(tmp_path / "train.jsonl", [row(number) for number in range(40)]),
        test_path=write(tmp_path / "test.jsonl", [row(number) for number in range(100, 110)]),
        num_dev=5,
        num_demonstrations=7,
    )


def numbers_of(rows):
    return {int(row.prompt.split()[3]) for row in rows}


def test_sets_share_no_problem_and_use_every_row(config):
    task = make_task(config)
    train, dev, shown = (
        numbers_of(task.train),
        numbers_of(task.dev),
        numbers_of(task.demonstrations),
    )
    assert (len(train), len(dev), len(shown)) == (28, 5, 7)
    assert train | dev | shown == set(range(40))
    assert numbers_of(task.test) == set(range(100, 110))


def test_without_a_test_file_the_test_set_is_held_out(config):
    task = make_task(change(config, test_path="", num_test=6))
    assert len(task.test) == 6
    assert numbers_of(task.train).isdisjoint(numbers_of(task.test))
    assert len(task.train) == 40 - 5 - 6 - 7


def test_the_seed_decides_the_draw(config):
    config = change(config, num_test=4)
    assert make_task(config) == make_task(config)
    other = make_task(change(config, seed=1))
    assert other.dev != make_task(config).dev
    assert other.test != make_task(config).test


def test_an_id_is_the_place_of_the_row(config):
    task = make_task(config)
    assert all(problem.id == int(problem.prompt.split()[3]) for problem in task.train + task.dev)
    assert {problem.id for problem in task.test} == set(range(40, 50))


def test_prompt_gold_and_reference_are_written_in_one_form(config):
    task = make_task(config)
    problem = task.train[0]
    number = int(problem.prompt.split()[3])
    assert problem.prompt == f"Q: Ada has {number} boxes of 3 pens. How many pens?\nA:\n"
    assert problem.gold == str(3 * number)
    shown = task.demonstrations[0]
    number = int(shown.prompt.split()[3])
    assert shown.response == f"Each box has 3.\n{number}*3={3 * number}.\n#### {3 * number}"


def test_calculator_annotations_are_kept_on_request(config):
    shown = make_task(change(config, is_annotated=True)).demonstrations[0]
    assert "<<" in shown.response


def test_blank_lines_are_no_steps(config, tmp_path):
    rows = [row(number, answer=f"One.\n\n  \n Two.\r\n#### {number}\n") for number in range(20)]
    task = make_task(change(config, path=write(tmp_path / "blank.jsonl", rows)))
    assert all(shown.response.split("\n")[:2] == ["One.", "Two."] for shown in task.demonstrations)
    assert all(len(shown.response.split("\n")) == 3 for shown in task.demonstrations)


def test_the_last_marker_of_a_row_is_its_gold(config, tmp_path):
    rows = [row(number, answer="Not #### 1\n#### 2") for number in range(20)]
    task = make_task(change(config, path=write(tmp_path / "marks.jsonl", rows)))
    assert {problem.gold for problem in task.train} == {"2"}
    assert {shown.response for shown in task.demonstrations} == {"Not #### 1\n#### 2"}


GOLDS = [
    ("number", "72", "72", ""),
    ("number", 72, "72", ""),
    ("number", 0.5, "0.5", ""),
    ("number", " $1,200. ", "$1,200.", ""),
    ("number", "8*9=72.\n#### 72", "72", "8*9=72.\n"),
    ("number", r"So it is $\boxed{72}$.", "72", "So it is $72$.\n"),
    ("number", r"\boxed{72}", "72", ""),
    ("choice", "B", "B", ""),
    ("choice", "(b)", "(b)", ""),
    ("choice", "It is B since A is not.\n#### B)", "B)", "It is B since A is not.\n"),
    ("choice", r"\boxed{B}", "B", ""),
    ("text", "Mount Everest", "Mount Everest", ""),
    ("text", "Nepal has it.\n#### Mount Everest", "Mount Everest", "Nepal has it.\n"),
]


@pytest.mark.parametrize(("kind", "answer", "gold", "reasoning"), GOLDS, ids=range(len(GOLDS)))
def test_golds_stand_bare_in_a_box_or_behind_the_marker(
    config, tmp_path, kind, answer, gold, reasoning
):
    path = write(
        tmp_path / "own.jsonl", [{"problem": f"What, {n}?", "solution": answer} for n in range(9)]
    )
    changes = {"path": path, "test_path": "", "num_test": 1, "num_dev": 1, "num_demonstrations": 1}
    names = {"question_field": "problem", "answer_field": "solution", "answer_kind": kind}
    task = make_task(change(config, **changes, **names))
    assert {problem.gold for problem in task.train} == {gold} and len(task.train) == 6
    (shown,) = task.demonstrations
    assert shown.response == f"{reasoning}#### {gold}"
    assert task.verify(task.train[0], shown.response) == Verdict.CORRECT


@pytest.mark.parametrize(
    ("kind", "gold", "given", "verdict"),
    [
        ("choice", "B", "#### (B)", Verdict.CORRECT),
        ("choice", "(B)", r"\boxed{b}", Verdict.CORRECT),
        ("choice", "B", "#### [B].", Verdict.CORRECT),
        ("choice", "B", "#### C", Verdict.WRONG),
        ("choice", "B", "#### A or B", Verdict.UNPARSABLE),
        ("choice", "B", "#### BB", Verdict.UNPARSABLE),
        ("choice", "B", "#### 2", Verdict.UNPARSABLE),
        ("text", "Mount Everest", "####  Mount   Everest ", Verdict.CORRECT),
        ("text", "Mount Everest", "#### mount everest", Verdict.WRONG),
        ("text", "Mount Everest", "#### not Mount Everest", Verdict.WRONG),
        ("text", "Mount Everest", "####", Verdict.UNPARSABLE),
        ("text", "Mount Everest", "Mount Everest", Verdict.UNPARSABLE),
    ],
)
def test_choices_and_texts_are_compared_as_such(kind, gold, given, verdict):
    task = JsonlTask("own", None, (), (), (), (), kind=kind)
    assert task.verify(Problem(0, "", gold), given) == verdict


def test_a_file_of_forty_rows_starts_with_the_defaults(config):
    task = make_task(change(TasksConfig(), name="jsonl", path=config.jsonl.path))
    assert [len(part) for part in (task.test, task.dev, task.demonstrations, task.train)] == [
        4,
        4,
        16,
        16,
    ]
    task = make_task(
        change(
            TasksConfig(), name="jsonl", path=config.jsonl.path, test_path=config.jsonl.test_path
        )
    )
    assert [len(part) for part in (task.test, task.dev, task.demonstrations, task.train)] == [
        10,
        4,
        16,
        20,
    ]


def test_an_array_holds_the_same_rows_as_lines(config, tmp_path):
    (tmp_path / "array.json").write_text(
        json.dumps([row(number) for number in range(40)], indent=1)
    )
    assert make_task(change(config, path=str(tmp_path / "array.json"))) == make_task(config)


def test_parquet_holds_the_same_rows_as_lines(config, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "rows.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([row(number) for number in range(40)]), path)
    assert make_task(change(config, path=path)) == make_task(config)
    Path(path).write_bytes(b"PAR0" * 10)
    with pytest.raises(UserError, match=r"cannot read '.*rows\.parquet': .*[Pp]arquet"):
        make_task(change(config, path=path))
    with pytest.raises(UserError, match=r"cannot read '.*nowhere\.parquet'"):
        make_task(change(config, path="nowhere.parquet"))


def test_text_that_parquet_calls_bytes_is_text(config, tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path, rows = str(tmp_path / "rows.parquet"), [row(number) for number in range(40)]
    raw = [{key: text.encode() for key, text in r.items()} for r in rows]
    parquet.write_table(pyarrow.Table.from_pylist(raw), path)
    assert make_task(change(config, path=path)) == make_task(config)
    raw[0]["question"] = b"\xff?"
    parquet.write_table(pyarrow.Table.from_pylist(raw), path)
    assert make_task(change(config, path=path, max_bad_share=0.1)).counts["not_text"] == 1

    def fail(path):
        raise pyarrow.ArrowNotImplementedError("Integers with more than 64 bits")

    monkeypatch.setattr(parquet, "read_table", fail)
    with pytest.raises(UserError, match=r"cannot read '.*': Integers with more than 64"):
        make_task(change(config, path=path))


def test_parquet_without_its_reader_names_the_extra(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'jaxtrain\[parquet\]'"):
        make_task(change(config, path="any.parquet"))


def test_a_folder_of_datasets_holds_the_same_rows_as_lines(config, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    for part in range(2):  # as save_to_disk names and writes them
        table = pyarrow.Table.from_pylist([row(20 * part + number) for number in range(20)])
        with pyarrow.ipc.new_stream(
            folder / f"data-{part:05}-of-00002.arrow", table.schema
        ) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text("{}")
    asked = change(config, path=str(folder))
    assert make_task(asked) == make_task(config)
    before = file_hashes(asked)
    (folder / "data-00001-of-00002.arrow").write_bytes(b"ARR0" * 10)
    assert file_hashes(asked) != before
    with pytest.raises(UserError, match=r"cannot read '.*train': "):
        make_task(asked)


def test_a_folder_without_tables_says_what_to_name(config, tmp_path):
    with pytest.raises(UserError, match=r"no \*\.arrow files; name a part"):
        make_task(change(config, path=str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (r"$\frac{1}{2}$.", r"\frac{1}{2}"),
        ("x = 5", "5"),
        ("0.50", "1/2"),
        ("8=7", "8=7"),
        ("2x = 5", "2x = 5"),
        ("x = y = 5", "x = y = 5"),
        (" $ ", None),
        ("1+" * 200, None),
    ],
)
def test_an_expression_is_written_bare(text, written):
    assert KINDS["math"](text) == written


@pytest.mark.parametrize(
    ("text", "is_seen"),
    [
        (r"\frac{1}{2}+\sqrt[3]{x}", True),
        (r"\left(-\infty,2\right]\cup\{5\}", True),
        ("2*sqrt(2)", True),
        ("7 8", False),
        ("7~8", False),
        ("7?8", False),
        (r"7 \approx 8", False),
        (r"\ldots 7", False),
        (r"7 \\ 8", False),
        ("x := 7", False),
        ("7 \N{HORIZONTAL ELLIPSIS} 8", False),
    ],
)
def test_math_verify_sees_what_it_reads_as_a_whole(text, is_seen):
    assert is_safe(MATH, text) == is_seen


@pytest.fixture(scope="module")
def expressions():
    """A task whose answers are expressions; the worker is started once."""
    pytest.importorskip("math_verify")
    task = JsonlTask("own", None, (), (), (), (), kind="math", worker=Worker(MATH, {}, 60.0))
    yield task
    task.worker.close()


@pytest.mark.parametrize(
    ("gold", "given", "verdict"),
    [
        (r"\frac{1}{2}", "#### 1/2", Verdict.CORRECT),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", Verdict.CORRECT),
        ("x^2+2x+1", "#### $(x+1)^2$", Verdict.CORRECT),
        ("(1, 2)", "#### (2, 1)", Verdict.WRONG),
        ("7", "#### 8=7", Verdict.WRONG),
        ("12_{5}", "#### 12_5", Verdict.CORRECT),
        ("7", "#### 7 dogs 8 cats", Verdict.WRONG),
        ("1", "#### 1.0000001", Verdict.WRONG),
        ("7", "#### ", Verdict.UNPARSABLE),
    ],
)
def test_expressions_are_compared_by_what_they_are_worth(expressions, gold, given, verdict):
    assert expressions.verify(Problem(0, "", gold), given) == verdict


def test_an_expression_that_hangs_is_an_error_and_not_the_last_answer(expressions):
    hasty = replace(expressions, worker=Worker(MATH, {}, 1.0))
    assert hasty.verify(Problem(0, "", "7"), "#### 9^{9^{9^{9}}}") == Verdict.ERROR
    assert hasty.verify(Problem(0, "", "7"), "#### 7.0") == Verdict.CORRECT
    hasty.worker.close()


def test_expressions_are_compared_without_a_further_import():
    """A child that judges as nobody may not reach the packages of root."""
    pytest.importorskip("math_verify")
    code = (
        "import sys; from jaxtrain.verifiers.worker import Expressions; made = Expressions()\n"
        "known = set(sys.modules)\n"
        r"pairs = (r'2\sqrt{2}', r'\sqrt{8}'), ('x^2+2x+1', '(x+1)^2'), (r'\{1,2\}', r'\{2,1\}')"
        "\nassert all(made.score_answer(given, made[gold]) for gold, given in pairs)\n"
        "print(sorted(set(sys.modules) - known))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_math_verify_is_asked_without_its_own_clock(monkeypatch):
    """Its clock needs the main thread and does not stop every hang; the worker's does."""
    calls = []
    fake = SimpleNamespace(
        parse=lambda text, parsing_timeout: calls.append((text, parsing_timeout)) or text,
        verify=lambda gold, given, timeout_seconds: calls.append(timeout_seconds) or True,
    )
    monkeypatch.setitem(sys.modules, "math_verify", fake)
    scorer = Expressions()
    calls.clear()
    assert scorer.score_answer("1/2", scorer["0.5"]) == 1.0
    assert calls == [("$0.5$", None), ("$1/2$", None), None]


def test_math_that_does_not_start_names_the_extra(config, monkeypatch):
    """Whether its package is missing, or is where the worker does not see it."""
    monkeypatch.setattr(Worker, "ask", lambda *_, **__: {"error": "ModuleNotFoundError: no"})
    told = r"answer_kind=math: .*ModuleNotFoundError: no.*needs pip install 'jaxtrain\[math\]'"
    with pytest.raises(UserError, match=told):
        make_task(change(config, answer_kind="math"))


def test_an_unknown_kind_of_answer_is_refused():
    with pytest.raises(UserError, match="answer_kind=letter: must be number or choice or text or "):
        JsonlConfig(answer_kind="letter")


GOOD = [row(number) for number in range(20)]
BAD_ROWS = [
    ("not_json", b'{"question": "a", "answer": "#### 1"', "not JSON"),
    ("not_json", b"[" * 10_000, "not JSON"),
    ("not_json", b'{"question": "a", "answer": ' + b"1" * 5_000 + b"}", "not JSON"),
    ("no_fields", ["question", "answer"], "not an object"),
    ("no_fields", None, "not an object"),
    ("no_fields", {"question": "a"}, "not an object"),
    ("no_fields", {"answer": "#### 1"}, "not an object"),
    ("no_fields", {"question": "a", "answer": [72]}, "not an object"),
    ("no_fields", {"question": "a", "answer": True}, "not an object"),
    ("no_fields", {"\x1b[31m\ud800\n": 1, "": 2}, r"it has '\x1b[31m\ud800\n', ''"),
    ("no_gold", {"question": "a", "answer": "It is 72."}, "no gold of"),
    ("no_gold", {"question": "a", "answer": "#### "}, "no gold of"),
    ("no_gold", {"question": "a", "answer": "#### many"}, "no gold of"),
    ("no_gold", {"question": "a", "answer": "#### 1\nor #### 2?\n#### 3 4"}, "no gold of"),
    ("no_gold", {"question": "a", "answer": ""}, "no gold of"),
    ("empty", b"", "empty"),
    ("empty", b"  \r", "empty"),
    ("empty", {"question": " \n", "answer": "#### 1"}, "empty"),
    ("duplicate", GOOD[0], "earlier line"),
    (
        "duplicate",
        {"question": " " + GOOD[0]["question"].replace(" ", "\n "), "answer": "#### 5"},
        "earlier line",
    ),
    ("too_long", {"question": "a" * 20_000, "answer": "#### 1"}, "max_row_bytes"),
    ("not_utf8", b'{"question": "a\xff", "answer": "#### 1"}', "UTF-8"),
    ("not_text", {"question": "a\0b", "answer": "#### 1"}, "NUL"),
    ("not_text", {"question": "a", "answer": "half \ud83d\n#### 1"}, "surrogate"),
]


@pytest.mark.parametrize(("reason", "bad", "words"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_is_skipped_counted_and_named(config, tmp_path, reason, bad, words):
    path = write(tmp_path / "some.jsonl", [*GOOD, bad, row(21)])
    task = make_task(change(config, path=path, max_bad_share=0.05))
    assert [task.counts[name] for name in ("rows", reason)] == [32, 1]
    assert sum(task.counts.values()) == 33
    (line,) = task.skipped
    assert line.startswith(f"{path}:21: ")
    assert words in line
    assert len(task.train) + len(task.dev) + len(task.demonstrations) == 21


def test_more_bad_rows_than_the_stated_share_refuse_the_file(config, tmp_path):
    path = write(tmp_path / "bad.jsonl", [*GOOD, b"{", b"", b"[1]", b"nan"])
    with pytest.raises(UserError) as error:
        make_task(change(config, path=path, max_bad_share=0.1))
    message = str(error.value)
    assert (
        f"{path}: 4 of 24 rows (16.7%) are bad, more than --config.tasks.jsonl.max_bad_share=0.1"
        in message
    )
    assert (
        f"{path}:21: not JSON; {path}:22: empty line or empty question; {path}:23: not an object"
        in message
    )
    assert "\n" not in message and f"{path}:24" not in message


def test_bad_rows_of_the_test_file_count_too(config, tmp_path):
    path = write(tmp_path / "bad.jsonl", [*GOOD[:10], b"{"])
    assert (
        make_task(change(config, path=config.jsonl.path, test_path=path, max_bad_share=0.1)).counts[
            "not_json"
        ]
        == 1
    )
    with pytest.raises(UserError, match=r"bad\.jsonl: .* are bad"):
        make_task(change(config, test_path=path, max_bad_share=0.05))


def test_questions_of_the_test_file_are_never_trained_on(config, tmp_path):
    same = [row(3), row(0, question="  Ada has 4  boxes of 3 pens.\nHow many pens?"), row(200)]
    task = make_task(change(config, test_path=write(tmp_path / "same.jsonl", same)))
    assert task.counts["in_test_file"] == 2
    assert len(task.test) == 3
    assert numbers_of(task.train + task.dev) | numbers_of(task.demonstrations) == set(range(40)) - {
        3,
        4,
    }


def test_other_line_separators_stay_inside_a_row(config, tmp_path):
    rows = [
        f'{{"question": "a\u2028b\u0085 {n}", "answer": "#### {n}"}}'.encode() for n in range(20)
    ]
    task = make_task(change(config, path=write(tmp_path / "lines.jsonl", rows)))
    assert task.counts["rows"] == 30
    assert "a\u2028b\u0085" in task.train[0].prompt


def test_a_byte_order_mark_and_windows_line_ends_are_no_error(config, tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(r).encode() for r in GOOD))
    assert make_task(change(config, path=str(path))).skipped == ()


@pytest.mark.parametrize("key", ["path", "test_path"])
def test_a_missing_file_is_named_with_its_key(config, key):
    with pytest.raises(
        UserError,
        match=rf"cannot read '.*/nowhere\.jsonl': No such file .* --config\.tasks\.jsonl\.{key}=",
    ):
        make_task(change(config, **{key: "nowhere.jsonl"}))


def test_files_are_found_again_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = JsonlConfig(path="train.jsonl")
    assert (config.path, config.test_path) == (str(tmp_path / "train.jsonl"), "")


def test_no_path_at_all_names_the_key(config):
    with pytest.raises(UserError, match=r"cannot read ''.* --config\.tasks\.jsonl\.path="):
        make_task(change(config, path=""))


def test_too_few_rows_say_how_many_there_are(config):
    with pytest.raises(
        UserError, match=r"need 51 problems .* only 40 exist: good rows of .*train\.jsonl"
    ):
        make_task(change(config, num_train=39))
    with pytest.raises(UserError, match=r"num_test=11: .*test\.jsonl has 10 good rows"):
        make_task(change(config, num_test=11))


def test_empty_files_are_errors(config, tmp_path):
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match="only 0 exist"):
        make_task(change(config, path=empty))
    with pytest.raises(UserError, match="has 0 good rows"):
        make_task(change(config, test_path=empty))


VERDICTS = [
    ("Think.\n#### 1200", Verdict.CORRECT),
    ("#### $1,200.", Verdict.CORRECT),
    ("#### 2400/2", Verdict.CORRECT),
    (r"So \boxed{1200}", Verdict.CORRECT),
    ("#### 5\n#### 1200", Verdict.CORRECT),
    ("#### 1200\n#### 5", Verdict.WRONG),
    ("#### 120", Verdict.WRONG),
    ("#### -1200", Verdict.WRONG),
    ("#### 1200.0001", Verdict.WRONG),
    ("", Verdict.UNPARSABLE),
    ("1200", Verdict.UNPARSABLE),
    ("####", Verdict.UNPARSABLE),
    ("#### 1200 or 5", Verdict.UNPARSABLE),
    ("#### 12e2", Verdict.UNPARSABLE),
    ("#### 600*2", Verdict.UNPARSABLE),
    ("#### \u0661\u0662\u0660\u0660", Verdict.UNPARSABLE),
    ("#### 1200\ufffd", Verdict.UNPARSABLE),
    ("#### " + "," * 20_000, Verdict.UNPARSABLE),
    ("#### " + "9" * 30_000, Verdict.UNPARSABLE),
    (r"\boxed{" * 100_000, Verdict.UNPARSABLE),
]


@pytest.mark.parametrize(("text", "verdict"), VERDICTS, ids=range(len(VERDICTS)))
def test_the_verdict_compares_the_last_answer_exactly(config, text, verdict):
    task = make_task(config)
    assert task.verify(PROBLEM, text) == verdict
    assert (task.answer(text) is None) == (verdict == Verdict.UNPARSABLE)


def test_equal_numbers_vote_together(config):
    task = make_task(config)
    assert task.answer("Half.\n#### 0.50") == task.answer("#### 2/4") == "1/2"


def test_a_training_problem_has_the_solution_of_its_row(config):
    task = make_task(config)
    for problem in task.train:
        shown = task.solution(problem)
        assert shown.prompt == problem.prompt and len(shown.response.split("\n")) == 3
        assert task.verify(problem, shown.response) == Verdict.CORRECT
    assert task.solution(task.test[0]) is None and task.solution(task.dev[0]) is None


def test_every_reference_is_correct(config):
    task = make_task(change(config, num_demonstrations=30, num_dev=0))
    for shown in task.demonstrations:
        number = int(shown.prompt.split()[3])
        assert (
            task.verify(Problem(0, shown.prompt, str(3 * number)), shown.response)
            == Verdict.CORRECT
        )


@pytest.mark.skipif(
    not GSM8K.is_dir(), reason=f"the GSM8K files are not beside the checkout, in {GSM8K}"
)
def test_every_row_of_gsm8k_is_read_and_its_reference_is_correct():
    paths = [GSM8K / "train.jsonl", GSM8K / "test.jsonl"]
    task = make_task(
        change(
            TasksConfig(),
            name="jsonl",
            path=str(paths[0]),
            test_path=str(paths[1]),
            num_dev=0,
            num_demonstrations=0,
        )
    )
    assert (len(task.train), len(task.test), task.counts["rows"]) == (7473, 1319, 8792)
    rows = [
        json.loads(line) for path in paths for line in path.read_text("utf-8").split("\n") if line
    ]
    for problem in task.train + task.test:
        assert rows[problem.id]["question"].strip() in problem.prompt
        assert task.verify(problem, rows[problem.id]["answer"]) == Verdict.CORRECT


@pytest.mark.parametrize(
    "answer", ["think\n#### 72\nDone.", r"think so\n#### \boxed{72}", "72", r"it is \boxed{72}"]
)
def test_a_gold_is_read_as_an_answer_is(config, tmp_path, answer):
    path = write(tmp_path / "own.jsonl", [row(number, answer=answer) for number in range(40)])
    task = make_task(change(config, path=path, test_path="", num_test=5))
    assert task.test[0].gold == "72"


def test_rows_of_an_array_are_as_long_as_lines(config, tmp_path):
    """In bytes of UTF-8, and not of the escapes that JSON may write them in."""
    rows = [row(number, question=f"{number} " + "\u4e2d" * 3000) for number in range(40)]
    (tmp_path / "array.json").write_text(json.dumps(rows))
    how = dict(path=str(tmp_path / "array.json"), test_path="", num_test=5, max_row_bytes=10_000)
    assert not make_task(change(config, **how)).skipped


def test_a_gold_that_no_response_could_give_is_a_bad_row(config, tmp_path):
    path = write(tmp_path / "own.jsonl", [row(number, answer="x" * 5000) for number in range(40)])
    with pytest.raises(UserError, match="40 of 40 rows"):
        make_task(change(config, path=path, test_path="", num_test=5, answer_kind="text"))


def test_blank_lines_around_the_rows_are_nothing(config, tmp_path):
    rows = [row(number) for number in range(40)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "\n \n")
    (tmp_path / "array.json").write_text("\n\n" + json.dumps(rows))
    for name in ("own.jsonl", "array.json"):
        task = make_task(change(config, path=str(tmp_path / name), test_path="", num_test=5))
        assert task.counts["rows"] == 40 and not task.skipped
