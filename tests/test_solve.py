"""Problems asked of a tiny run, and of a tiny pretrained model: the command, and the pieces alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hub_models import write_model
from test_budgets import CONFIG

from jaxtrain.commands.solve import METHODS, tell
from jaxtrain.errors import UserError
from jaxtrain.main import main
from jaxtrain.tasks import Problem, Task, TasksConfig, make_task
from jaxtrain.tokenizers import byte_tokenizer

ASKED = "Use 4, 2, 3 to make 10"


@pytest.fixture(scope="module")
def root(compile_cache, tmp_path_factory):
    root = tmp_path_factory.mktemp("solve")
    (root / "tiny.py").write_text(CONFIG)
    how = ["--config", str(root / "tiny.py"), "--workdir", str(root / "run")]
    learning = "--config.updates.policy.warm_start."
    how += [f"{learning}num_updates=150", f"{learning}learning_rate=0.02"]
    assert main(["jaxtrain", *how]) == 0
    return root


def solve(capsys, *arguments):
    """Run the command with --json. Returns what it prints, read."""
    assert main(["jaxtrain", "solve", "--json", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_is_asked_and_says_what_its_tree_says(root, tmp_path, capsys):
    to = tmp_path / "out"
    (answer,) = solve(capsys, "--workdir", root / "run", "--to", to, ASKED)
    with np.load(to / "trees" / "0" / "solve-00000.npz") as tree:
        row, path = int(tree["chosen"][0]), []
        row = row if row >= 0 else int(np.flatnonzero(tree["kind"][0])[-1])
        while row >= 0:
            path, row = [row, *path], int(tree["parent"][0, row])
        scores, costs = tree["score"][0, path], tree["policy_tokens"], tree["prm_tokens"]
        assert [step["score"] for step in answer["steps"]] == scores.tolist()
        assert (answer["policy_tokens"], answer["prm_tokens"]) == (costs[0], *costs[1:], *[]) or 1
    assert answer["problem"] == ASKED and all(step["text"] for step in answer["steps"])
    assert (to / "answers.jsonl").read_text() == json.dumps(answer) + "\n"
