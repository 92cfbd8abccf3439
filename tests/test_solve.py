"""Problems asked of a tiny run and of a tiny pretrained model, and the pieces in a script alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hub_models import write_model
from test_budgets import CONFIG
from tiny_models import random_like

from benchmarks import first_errors
from jaxtrain.commands.solve import choose_folder, tell
from jaxtrain.errors import UserError
from jaxtrain.hub import HubConfig, open_pretrained
from jaxtrain.hub.export import write_network
from jaxtrain.main import main
from jaxtrain.nn.transformer import Transformer, abstract_params
from jaxtrain.runs import open_run
from jaxtrain.tasks import Task, TasksConfig, make_task
from jaxtrain.tokenizers import byte_tokenizer

ASKED = "Use 4, 2, 3 to make 10"
# a chat template is no part of the tiny models, and their vocabulary is small
WIDE = ["--method", "puct", "--config.evaluation.search.num_candidates=4"]
PLAIN = ["--config.prompts.style=plain", "--config.trace.max_steps=2"]
PLAIN += ["--config.trace.max_step_tokens=8", "--config.prompts.max_prompt_tokens=48"]


@pytest.fixture(scope="module")
def root(compile_cache, tmp_path_factory):
    """A run whose policy knows the format, a pretrained model, and a PRM of two labels for it."""
    root = tmp_path_factory.mktemp("solve")
    (root / "tiny.py").write_text(CONFIG)
    how = ["--config", str(root / "tiny.py"), "--workdir", str(root / "run")]
    learning = "--config.updates.policy.warm_start."
    how += [f"{learning}num_updates=600", f"{learning}learning_rate=0.02"]
    assert main(["jaxtrain", *how]) == 0
    policy = open_pretrained(HubConfig(str(write_model(root / "model", "llama2"))))
    model = Transformer(policy.config, policy.config.vocab_size)
    head = {"weight": jnp.linspace(-1, 1, 64).reshape(32, 2), "bias": jnp.zeros(2)}
    prm = {"backbone": random_like(abstract_params(model), 5), "head": head}
    write_network(root / "prm", "prm", prm, model.config, policy.tokenizer, 64, "", policy)
    return root


def solve(capsys, *arguments):
    """Run the command with --json. Returns what it prints, read."""
    assert main(["jaxtrain", "solve", "--json", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def load(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_an_answer_is_what_its_tree_says(root, tmp_path, capsys):
    to = tmp_path / "out"
    (answer,) = solve(capsys, "--workdir", root / "run", "--to", to, ASKED)
    tree, path = load(to / "trees" / "0" / "solve-00000.npz"), []
    row = int(tree["chosen"][0])
    assert row >= 0 or answer["answer"] is None
    row = row if row >= 0 else int(np.flatnonzero(tree["kind"][0])[-1])
    while row >= 0:
        path, row = [row, *path], int(tree["parent"][0, row])
    assert [step["score"] for step in answer["steps"]] == tree["score"][0, path].tolist()
    costs = tree["policy_tokens"].tolist(), tree["prm_tokens"].tolist()
    assert ([answer["policy_tokens"]], [answer["prm_tokens"]]) == costs
    assert answer["problem"] == ASKED and len(path) > 0
    assert (to / "answers.jsonl").read_text() == json.dumps(answer) + "\n"
    assert "2 3 4=10" in (to / "tree-0.html").read_text()

    how = ["--workdir", root / "run", "--to", tmp_path / "mended", "--config.trace.calculator=True"]
    (mended,) = solve(capsys, *how, ASKED)
    assert mended.keys() - answer.keys() == {"has_calculator"} and mended["has_calculator"]


def test_the_draws_are_those_of_the_seed_whoever_asks_besides(root, tmp_path, capsys):
    (tmp_path / "asked.jsonl").write_text(
        json.dumps({"question": ASKED}) + "\n\n" + json.dumps({"question": "1 1 2=4"}) + "\n"
    )
    (tmp_path / "asked.txt").write_text(f"{ASKED}\n1 1 2=4\n")
    how = "--workdir", root / "run"
    (alone,) = solve(capsys, *how, "--to", tmp_path / "a", ASKED)
    both = solve(capsys, *how, "--to", tmp_path / "b", "--file", tmp_path / "asked.jsonl")
    assert both == solve(capsys, *how, "--to", tmp_path / "c", "--file", tmp_path / "asked.txt")
    assert both[0] == alone and both[1]["problem"] == "1 1 2=4"
    drawn = [load(tmp_path / name / "trees/0/solve-00000.npz")["tokens"][0] for name in "ab"]
    np.testing.assert_array_equal(*drawn)
    solve(capsys, *how, "--to", tmp_path / "d", "--config.seed=5", ASKED)
    others = load(tmp_path / "d/trees/0/solve-00000.npz")["tokens"][0]
    assert not np.array_equal(drawn[0], others)


@pytest.mark.parametrize(
    ("method", "budget", "expected"),
    [
        # 88 tokens are a prompt and a trace of the greatest length, in both networks
        ("greedy", (), 1),
        ("best_of_k", ("--budget", "176"), 3),
        ("self_consistency", ("--budget", "88"), 3),  # the same program
        ("beam", ("--budget", "400"), None),
        ("best_first", ("--budget", "200"), None),
        ("puct", ("--budget", "200"), None),
        ("gumbel", ("--budget", "200"), None),
    ],
)
def test_every_method_answers_within_its_budget(root, tmp_path, capsys, method, budget, expected):
    how = "--workdir", root / "run", "--to", tmp_path / "out", "--method", method, *budget
    (answer,) = solve(capsys, *how, "1 2 3=6")
    tree = load(tmp_path / "out/trees/0/solve-00000.npz")
    if expected is not None:  # 2 (12 + 24 k) <= 176, and of one network 12 + 24 k <= 88
        assert (tree["parent"][0][tree["kind"][0] > 0] < 0).sum() == expected
    assert (answer["prm_tokens"] == 0) == (method in ("greedy", "self_consistency"))
    if budget:
        assert answer["policy_tokens"] + answer["prm_tokens"] <= int(budget[1])


def test_a_pretrained_model_is_asked_with_a_prm_or_without(root, tmp_path, capsys):
    how = ["--model", root / "model", *PLAIN]
    (bare,) = solve(capsys, *how, "--to", tmp_path / "a", "how many?")
    assert bare["steps"] and {step["score"] for step in bare["steps"]} == {None}
    assert bare["prm_tokens"] == 0
    arguments = ["solve", *map(str, how), "--method", "puct", "how many?"]
    assert main(["jaxtrain", *arguments]) == 2
    told = "asks a PRM, and there is none; name its folder by --prm, or take greedy or self_con"
    assert told in capsys.readouterr().err.splitlines()[-1]
    how += ["--prm", root / "prm", "--config.evaluation.search.num_simulations=2"]
    (answer,) = solve(capsys, *how, "--to", tmp_path / "b", "how many?")
    scores = [step["score"] for step in answer["steps"]]
    assert all(0 < score < 1 and score != 0.5 for score in scores) and answer["prm_tokens"] > 0


def test_first_errors_of_a_run_are_judged_by_the_scores_of_its_search(
    root, tmp_path, monkeypatch, capsys
):
    """A trace that search has ended has, read anew, the values of its steps."""
    solve(capsys, "--workdir", root / "run", *WIDE, "--to", tmp_path / "out", ASKED)
    tree, path = load(tmp_path / "out" / "trees" / "0" / "solve-00000.npz"), []
    row = int(np.flatnonzero(tree["is_finished"][0])[0])
    while row >= 0:
        path, row = [row, *path], int(tree["parent"][0, row])
    decode = open_run(root / "run").task.tokenizer.decode
    texts = [decode(tree["tokens"][0, k, : tree["length"][0, k]].tolist()) for k in path]
    line = {"problem": ASKED, "steps": texts, "label": -1}
    (tmp_path / "solutions.jsonl").write_text(json.dumps(line))
    found, score = [], first_errors.score
    monkeypatch.setattr(first_errors, "score", lambda *told: found.extend(score(*told)) or found)
    how = ["--workdir", root / "run", "--file", tmp_path / "solutions.jsonl"]
    monkeypatch.setattr("sys.argv", ["first_errors", *map(str, how)])
    first_errors.main()
    np.testing.assert_allclose(found[0], tree["score"][0, path], atol=1e-5)


def test_an_exported_prm_is_told_where_it_sees_the_first_error(root, tmp_path, monkeypatch, capsys):
    """The same text as right and as wrong: its first step is right twice, its last one once."""
    lines = [{"problem": "how many?", "steps": ["a", "b"], "label": k} for k in (-1, 1)]
    file = tmp_path / "solutions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = ["--model", root / "model", "--prm", root / "prm", *PLAIN, "--file", file]
    monkeypatch.setattr("sys.argv", ["first_errors", *map(str, how)])
    first_errors.main()
    told = dict(re.findall(r"\| (\w+) \| (\S+) \|", capsys.readouterr().out))
    assert (told["num_wrong"], told["num_right"]) == ("1", "1")
    assert told["auroc"] in ("0.8333", "0.1667")  # the last one is below the first, or above
    for arguments in (["--model", "m"], ["--workdir", "w", "--prm", "p"]):
        monkeypatch.setattr("sys.argv", ["first_errors", *arguments, "--file", str(file)])
        with pytest.raises(SystemExit, match="--prm: name the PRM of --model"):
            first_errors.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "pukt", ASKED], "invalid choice: 'pukt'"),
        (["--method", "pass_at_k", ASKED], "invalid choice: 'pass_at_k'"),
        ([], "nothing is asked"),
        (["--model", "m", ASKED], "--workdir, --model: name either a run or a model"),
        (["make 3"], "countdown needs 3 numbers and what they are to make, as in"),
        (["123456 123456 123456=9"], "its prompt has 23 tokens, and --config.prompts.max_prompt"),
        (["--file", "nowhere.txt"], "--file nowhere.txt: cannot be read"),
        (["--file", "bad.jsonl"], "bad.jsonl:2: holds no JSON object with a text in question"),
        (
            ["--budget", "9", ASKED],
            "--budget: 9 tokens do not pay for one sample, which costs 72 of both networks at most",
        ),
        (["--budget", "90", *WIDE, ASKED], "do not pay for one turn of puct, which"),
        (["--prm", "p", ASKED], "--prm: a run has its own; leave it out"),
        (["--config", "ask", ASKED], "--config: a run has its own; leave it out"),
        (
            ["--config.evaluation.search.checks=filter", "--config.trace.boundary=;", ASKED],
            "needs a task with a check_step, and steps that end with a line",
        ),
        (["--budget", "x", ASKED], "--budget=x: must be tokens a problem"),
        (["--budget", "1k,2k", ASKED], "--budget 1k,2k: must be one number below 2**31"),
        (["--budget", "9000m", ASKED], "--budget 9000m: must be one number below 2**31"),
        (["--to", "bad.jsonl", ASKED], "--to bad.jsonl: can be no folder"),
        (["--to", "", ASKED], "a path: is empty"),
        (["--budget", "9k", "--method", "greedy", ASKED], "greedy decoding is one trace"),
        (["--config.model.width=8", ASKED], "--config.model: is the run's own"),
        (["--to", "done", ASKED], "--to done: holds answers already"),
        (["--iteration", "7", ASKED], "--iteration 7: "),
    ],
)
def test_a_mistake_is_one_line(root, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    lines = '{"question": "1 1 1=3"}\n{"question": 3}\n'
    (tmp_path / "bad.jsonl").write_text(lines, "utf-8-sig")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "answers.jsonl").write_text("")
    assert main(["jaxtrain", "solve", "--workdir", str(root / "run"), *arguments]) == 2
    told = capsys.readouterr()
    assert message in told.err.splitlines()[-1] and told.out == ""
    assert not (root / "run" / "solved").exists()


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Use 3, 7, 8 to make 29", "3 7 8=29\n"),
        ("make 29 from 8, 7 and 3.", "3 7 8=29\n"),
        ("3 7 8=29\n", "3 7 8=29\n"),
        ("Reach the target of 29 using 3 7 8", "3 7 8=29\n"),
        ("The numbers are 7, 3, 8; the target is 29.", "3 7 8=29\n"),
        ("How do you get to 29 with 3, 8 and 7?", "3 7 8=29\n"),
    ],
)
def test_countdown_is_asked_in_words(text, prompt):
    problem = make_task(TasksConfig(num_train=1, num_dev=0, num_test=1)).ask(5, text)
    assert (problem.id, problem.prompt, problem.question) == (5, prompt, text)


@pytest.mark.parametrize(
    "text", ["", "3 7 8 29", "3 7 to make 29", "3, 7, 8, 9 make 29", "-3 7 8=29"]
)
def test_what_is_no_countdown_is_told(text):
    task = make_task(TasksConfig(num_train=1, num_dev=0, num_test=1))
    with pytest.raises(UserError, match='as in "Use 3, 7, 8 to make 29"'):
        task.ask(0, text)


def test_a_task_of_ones_own_is_asked_in_its_own_form():
    assert Task("", byte_tokenizer()).ask(3, "1+2").prompt == "1+2\n"


def test_two_calls_at_once_have_folders_of_their_own(tmp_path, monkeypatch):
    assert choose_folder(None, tmp_path).name == "0001"
    found = iter([[], [tmp_path / "0001"]])  # the first look was before the other call
    monkeypatch.setattr(Path, "glob", lambda *_: next(found))
    assert choose_folder(None, tmp_path).name == "0002"


def test_text_of_a_model_cannot_write_to_the_terminal():
    steps = [{"text": "a\x1b[31mb\nc\u202e", "score": 0.5}, {"text": "d", "score": None}]
    told = tell({"problem": "\x07?", "steps": steps, "answer": "x\x1b]0;y\x07"})
    assert all(line.isprintable() for line in told.split("\n"))
    assert "  0.50  a\\x1b[31mb\n        c\\u202e\n        d\n" in told
    assert "none was found" in tell({"problem": "", "steps": [], "answer": None})


def test_the_pieces_serve_in_a_script_of_ten_lines(root, tmp_path, monkeypatch):
    """The lines that docs/own-parts.md shows, run as they stand but for the name of the run."""
    text = Path("docs/own-parts.md").read_text("utf-8")
    code = text.split("## The pieces alone")[1].split("```python\n")[1].split("```")[0]
    assert len(code.strip().replace("\n\n", "\n").split("\n")) <= 10
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code.replace("runs/quickstart/seed_0", str(root / "run")), found)
    assert (tmp_path / "tree.html").stat().st_size > 1000
    assert set(found["tree"].problem_id.tolist()) - {-1} == {
        problem.id for problem in found["model"].task.test[:4]
    }


def test_a_run_opened_twice_grows_the_same_trees(root):
    grown = []
    for _ in range(2):
        model = open_run(root / "run").load()
        grown.append(model.grow(model.encode(model.task.dev[:2])))
    np.testing.assert_array_equal(grown[0].tokens, grown[1].tokens)
