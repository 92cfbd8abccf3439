"""A pretrained model through the whole command: from a folder, once around, and out again for
transformers.
"""

from __future__ import annotations

import datetime
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hub_models import write_model
from safetensors.numpy import load_file

from jaxtrain.checkpoints import about_checkpoint
from jaxtrain.commands.evaluate import leave_out
from jaxtrain.errors import UserError
from jaxtrain.files import seal
from jaxtrain.hub import HubConfig, open_pretrained
from jaxtrain.main import main
from jaxtrain.tasks import TasksConfig, make_task

FLAGS = {
    "model.is_scanned": True,
    "tasks.name": "jsonl",
    "tasks.num_dev": 0,
    "tasks.num_test": 4,
    "tasks.num_demonstrations": 4,
    "prompts.batch_size": 8,
    "prompts.num_problems": 8,
    "prompts.num_first_problems": 8,
    "prompts.max_prompt_tokens": 64,
    "trace.answer": "hash",
    "trace.max_steps": 2,
    "trace.max_step_tokens": 8,
    "search.num_simulations": 2,
    "search.num_candidates": 2,
    "updates.policy.batch_size": 8,
    "updates.policy.fit.num_updates": 1,
    "updates.policy.warm_start.num_updates": 30,
    "updates.policy.warm_start.learning_rate": 0.02,
    "updates.policy.fit.learning_rate": 0.02,
    "updates.prm.batch_size": 8,
    "updates.prm.fit.num_updates": 1,
    "updates.prm.warm_start.num_updates": 1,
    "evaluation.num_problems": 4,
    "evaluation.search.num_simulations": 2,
    "evaluation.search.num_candidates": 2,
    "evaluation.samples.num_samples": 2,
    "loop.num_iterations": 1,
}


def run_flags(root, **changes):
    flags = (
        FLAGS
        | {"hub.pretrained": root / "model", "tasks.jsonl.path": root / "train.jsonl"}
        | changes
    )
    flags = [f"--config.{key}={value}" for key, value in flags.items()]
    return ["main", "--config", "configs/base.py", "--workdir", str(root / "run"), *flags]


@pytest.fixture(scope="module")
def root(compile_cache, tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrained")
    write_model(root / "model", "qwen2")
    rows = [{"question": f"a has {n}. how many?", "answer": "it is 7.\n#### 7"} for n in range(24)]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(run_flags(root, **{"prompts.style": "chat"})) == 0
    return root


def metrics_of(root):
    merged = {}
    for line in (root / "run" / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        merged.setdefault(event.pop("iteration"), {}).update(event)
    return merged


def test_the_loop_turns_and_its_traces_are_finished_by_their_text(root):
    metrics = metrics_of(root)
    assert set(metrics) == {0, 1}
    assert metrics[1]["labels/num_correct"] > 0, "thirty updates on one answer teach it"
    assert metrics[1]["updates/policy/num_updates"] == metrics[1]["updates/prm/num_updates"] == 1
    config = json.loads((root / "run" / "config.json").read_text())
    assert (
        config["model"]["width"],
        config["model"]["vocab_size"],
        config["model"]["has_qkv_bias"],
    ) == (32, 96, True)
    facts = json.loads((root / "run" / "manifest.json").read_text())["facts"]
    assert {"hub/config.json", "hub/tokenizer.json", "hub/model.safetensors"} <= facts.keys()


def test_a_run_goes_on_with_the_day_on_which_it_started(root, monkeypatch):
    def day():
        config, manifest = (
            json.loads((root / "run" / f"{name}.json").read_text())
            for name in ("config", "manifest")
        )
        assert config["prompts"]["date"] == manifest["facts"]["prompts.date"]
        return config["prompts"]["date"]

    class Later(datetime.date):
        today = classmethod(lambda cls: datetime.date(2099, 1, 1))

    started = day()
    monkeypatch.setattr("jaxtrain.prompts.datetime", SimpleNamespace(date=Later))
    assert main(run_flags(root, **{"prompts.style": "chat"})) == 0
    assert started == day() != "2099-01-01"


@pytest.mark.parametrize("network", ["policy", "prm"])
def test_both_networks_leave_as_folders_that_open_again(root, tmp_path, network, capsys):
    code = main(
        [
            "jaxtrain",
            "export",
            "--workdir",
            str(root / "run"),
            "--to",
            str(tmp_path / "out"),
            "--network",
            network,
        ]
    )
    assert (code, capsys.readouterr().out) == (0, f"{tmp_path / 'out'}\n")
    config, base = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "out", root / "model")
    )
    assert {key for key in config if config[key] != base.get(key)} <= {
        "architectures",
        "id2label",
        "label2id",
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "iteration 1" in card and "evaluation/greedy/accuracy" in card and "config sha256" in card
    )
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    first = load_file(root / "model" / "model.safetensors")
    assert tensors.keys() - {"score.weight", "score.bias"} == first.keys()
    assert not np.array_equal(tensors["model.norm.weight"], first["model.norm.weight"]), (
        "it has learnt something"
    )
    if network == "policy":
        assert (
            open_pretrained(HubConfig(str(tmp_path / "out"))).config
            == open_pretrained(HubConfig(str(root / "model"))).config
        )


def test_exported_networks_get_the_whole_report_card(root, tmp_path):
    """By a run that learns nothing: greedy decoding answers as it did, the PRM scores as it did."""
    out = {network: tmp_path / network for network in ("policy", "prm")}
    for network, folder in out.items():
        where = ["--workdir", str(root / "run"), "--to", str(folder)]
        assert main(["jaxtrain", "export", *where, "--network", network]) == 0
    (tmp_path / "train.jsonl").symlink_to(root / "train.jsonl")
    nothing = {f"updates.{name}.warm_start.num_updates": 0 for name in out}
    asked = {"hub.pretrained": out["policy"], "hub.prm": out["prm"], "loop.num_iterations": 0}
    assert main(run_flags(tmp_path, **{"prompts.style": "chat"}, **nothing, **asked)) == 0

    (metrics,), before = metrics_of(tmp_path).values(), metrics_of(root)[1]
    for key in ("greedy/outcomes", "greedy/tokens"):
        assert metrics[f"evaluation/{key}"] == before[f"evaluation/{key}"]
    key = "evaluation/prm/"
    names = {name for name in before if name.startswith(key)}
    assert names == {name for name in metrics if name.startswith(key)}
    card = "auroc_within", "auroc_within_first", "skill_depth", "calibration", "samples/gain"
    assert {f"{key}{name}" for name in card} <= names
    ours, theirs = (
        np.load(folder / "run" / "trees" / f"{i}" / "greedy-00000.npz")
        for i, folder in ((0, tmp_path), (1, root))
    )
    np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-6)


def test_a_live_run_can_be_exported(root, tmp_path):
    """While it writes its next checkpoint and a line of its metrics, on another number of devices
    than are here.
    """
    shutil.copytree(root / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["sharding"] |= {"data": 3}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    unfinished = tmp_path / "run" / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "eval')
    assert (
        main(
            [
                "jaxtrain",
                "export",
                "--workdir",
                str(tmp_path / "run"),
                "--to",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert unfinished.exists()


def test_an_export_takes_no_other_tokenizer(root, tmp_path, capsys):
    path = root / "model" / "tokenizer_config.json"
    text = path.read_text()
    path.write_text(text.replace("{", '{"note": 1,', 1))
    try:
        assert (
            main(
                [
                    "jaxtrain",
                    "export",
                    "--workdir",
                    str(root / "run"),
                    "--to",
                    str(tmp_path / "out"),
                ]
            )
            == 2
        )
    finally:
        path.write_text(text)
    assert "hub/tokenizer_config.json is not what it was when" in capsys.readouterr().err
    # A file that was there at the start, and is not any more.
    shutil.copytree(root / "run", tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["facts"]["hub/vocab.txt"] = "0" * 64
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert (
        main(
            [
                "jaxtrain",
                "export",
                "--workdir",
                str(tmp_path / "run"),
                "--to",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "hub/vocab.txt is not what it was when" in capsys.readouterr().err


def test_the_warm_start_is_exported_by_its_number(root, tmp_path):
    arguments = [
        "jaxtrain",
        "export",
        "--workdir",
        str(root / "run"),
        "--to",
        str(tmp_path / "out"),
        "--iteration",
        "0",
    ]
    assert main(arguments) == 0
    assert "iteration 0" in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_scored_again_scores_the_same(root, tmp_path, capsys):
    """On the run's own problems, whole or greedily; on others, the folder says which."""
    arguments = [
        "jaxtrain",
        "evaluate",
        "--workdir",
        str(root / "run"),
        "--to",
        str(tmp_path / "out"),
        "--iteration",
        "0",
    ]
    for _ in range(2):  # the second time all trees are there
        assert main(arguments) == 0
        (row,) = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
        expected = {k: v for k, v in metrics_of(root)[0].items() if k.startswith("evaluation/")}
        assert {key: row[key] for key in expected} == expected
    assert "greedy accuracy" in capsys.readouterr().out
    brief = [*arguments, "--to", str(tmp_path / "brief"), "--config.evaluation.strategies=greedy"]
    assert main(brief) == 0
    (row,) = map(json.loads, (tmp_path / "brief" / "metrics.jsonl").read_text().splitlines())
    scored = {key: value for key, value in row.items() if key.startswith("evaluation/")}
    assert (
        scored == {k: v for k, v in expected.items() if k in scored}
        and "evaluation/greedy/accuracy" in scored
    )
    assert {key.split("/")[1] for key in scored} == {
        "greedy",
        "split",
        "num_too_long",
        "num_errors",
        "num_set_aside",
    }

    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]
    assert facts["evaluated.iteration"] == 0 and len(facts["evaluated.run_key"]) == 64
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000


def test_what_a_run_trained_on_is_not_scored():
    """Other sizes or seeds draw the sets anew: one's test problem is another's demonstration."""
    ran = TasksConfig(num_train=800, num_dev=0, num_test=50, num_demonstrations=200)
    learnt, redrawn = make_task(ran), make_task(replace(ran, seed=1))
    task, num_learnt = leave_out(learnt, redrawn, "test")
    assert {p.prompt for p in task.test}.isdisjoint(
        row.prompt for row in (*learnt.train, *learnt.demonstrations)
    )
    assert 0 < num_learnt < 50 == num_learnt + len(task.test)
    with pytest.raises(UserError, match="trained on all 800 train problems"):
        leave_out(learnt, learnt, "train")


def test_what_differs_from_it_in_names_alone_is_not_scored_either():
    task = make_task(TasksConfig(num_train=8, num_dev=0, num_test=4, num_demonstrations=4))
    train, demonstrations, test = (
        tuple(replace(row, substance=f"{name} {i}") for i, row in enumerate(rows))
        for name, rows in (
            ("train", task.train),
            ("shown", task.demonstrations),
            ("test", task.test),
        )
    )
    twins = replace(test[1], substance="train 3"), replace(test[2], substance="shown 0")
    same_prompt = replace(train[0], substance="another task has no such word for it")
    learnt = replace(task, train=train, demonstrations=demonstrations)
    asked = replace(task, test=(test[0], *twins, same_prompt, replace(test[3], substance="")))
    left, num_learnt = leave_out(learnt, asked, "test")
    assert (left.test, num_learnt) == ((asked.test[0], asked.test[4]), 3)


def test_a_folder_holds_what_is_found_of_one_checkpoint(root, tmp_path, capsys):
    """A run made anew has another policy under the same config and iteration; a copy of the first
    has the same.
    """
    how = [
        "--to",
        str(tmp_path / "out"),
        "--iteration",
        "0",
        "--config.evaluation.strategies=greedy",
    ]
    assert main(["jaxtrain", "evaluate", "--workdir", str(root / "run"), *how]) == 0
    shutil.copytree(root / "run", tmp_path / "run")
    assert main(["jaxtrain", "evaluate", "--workdir", str(tmp_path / "run"), *how]) == 0
    noted = tmp_path / "run" / "checkpoints" / "0" / "save.json"
    noted.write_text(json.dumps("another save"))
    run_key = json.loads((tmp_path / "run" / "manifest.json").read_text())["run_key"]
    seal(noted.parent, about_checkpoint(run_key) | {"number": 0})
    assert main(["jaxtrain", "evaluate", "--workdir", str(tmp_path / "run"), *how]) == 2
    assert "belongs to other facts: evaluated.checkpoint_sha256" in capsys.readouterr().err


def test_a_run_whose_problems_cannot_be_made_again_is_not_scored(root, tmp_path, capsys):
    shutil.copytree(root / "run", tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["facts"]["tasks.problems.sha256"] = "0" * 64
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert (
        main(
            [
                "jaxtrain",
                "evaluate",
                "--workdir",
                str(tmp_path / "run"),
                "--to",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "no longer makes the problems that it trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        *((command, ["--iteration", "7"], "--iteration 7: ") for command in ("export", "evaluate")),
        *(
            (command, ["--workdir", "nowhere"], "holds no config.json, so it is no run")
            for command in ("export", "evaluate")
        ),
        ("export", ["--to", "."], "exists already"),
        (
            "evaluate",
            ["--config.model.width=8"],
            "--config.model: is the run's own; an evaluation may differ in seed, tasks",
        ),
        (
            "evaluate",
            ["--config.tasks.num_tests=8"],
            "--config.tasks.num_tests is unknown; keys of config.tasks: num_test",
        ),
        (
            "evaluate",
            ["--config.tasks.reasoning_gym.is_unseen=True", "--config.tasks.seed=1"],
            "--config.tasks.reasoning_gym.is_unseen=True: other templates are held out with",
        ),
        ("evaluate", ["--num", "8"], "--num is unknown"),
        ("evaluate", ["--it", "0"], "--it is unknown"),
        ("export", ["--it", "0"], "unrecognized arguments: --it 0; --help lists all flags"),
    ],
)
def test_a_mistake_in_a_command_on_a_run_is_one_line(
    root, tmp_path, capsys, command, arguments, message
):
    plain = ["--workdir", str(root / "run"), "--to", str(tmp_path / "out")]
    assert main(["jaxtrain", command, *plain, *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_model_in_the_same_folder_is_refused(root, capsys):
    config = root / "model" / "config.json"
    text = config.read_text()
    config.write_text(text.replace("1000.0", "2000.0"))
    try:
        assert main(run_flags(root, **{"prompts.style": "chat"})) == 2
    finally:
        config.write_text(text)
    assert "belongs to other config: model.rope_theta" in capsys.readouterr().err


def test_a_folder_is_found_again_from_anywhere(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    config = HubConfig("model")
    monkeypatch.chdir(tmp_path)
    assert config.pretrained == str(root / "model") and open_pretrained(config).name == "model"
    # what is no folder here is a hub id, or a package
    assert HubConfig("model").pretrained == "model"
