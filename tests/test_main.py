"""The door and the command: every mistake is one line and exit code 2, and nothing is written."""

import ast
import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import pytest

import jaxtrain.commands.run
from jaxtrain import __version__
from jaxtrain.config import Config
from jaxtrain.errors import Diverged
from jaxtrain.files import read_json
from jaxtrain.flags import load, parse, read_config
from jaxtrain.main import COMMANDS, main
from jaxtrain.metrics import MetricsLog
from jaxtrain.workdir import open_workdir

ROOT = Path(__file__).parents[1]
CONFIG = """
from jaxtrain.configs.base import get_config as base

def get_config(argument="0"):
    c = base()
    c.seed = int(argument)
    c.tasks.countdown.max_number = 4
    c.tasks.countdown.max_target = 12
    c.tasks.num_dev = c.tasks.num_test = 8
    c.tasks.num_demonstrations = 80
    c.prompts.batch_size = c.updates.policy.batch_size = c.updates.prm.batch_size = 8
    return c
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def run(tmp_path, config_file, capsys):
    """Run the command in this process; returns its exit code, stdout and stderr."""

    def run(*arguments, config=config_file):
        code = main(
            ["main.py", "--config", str(config), "--workdir", str(tmp_path / "run"), *arguments]
        )
        return code, *capsys.readouterr()

    return run


def config_of(path: Path) -> dict:
    return asdict(read_config(load(str(path))))


MISTAKES = {
    "misspelt key": (
        ["--config.search.num_simulation=32"],
        ["--config.search.num_simulation is unknown", "keys of config.search: num_simulations, "],
    ),
    "misspelt section": (
        ["--config.serach.num_simulations=32"],
        ["--config.serach is unknown", "config: search, "],
    ),
    "key of a value": (["--config.seed.x=1"], ["config.seed is a value"]),
    "section as a value": (
        ["--config.search=3"],
        ["--config.search is a section", "num_simulations"],
    ),
    "unknown flag": (["--wrokdir=x"], ["--wrokdir is unknown", "flags: --workdir"]),
    "unknown flag without a key": (["--config_seed=3"], ["--config_seed is unknown", "--config"]),
    "stray argument": (["runs/x"], ["runs/x: is no flag"]),
    "key without a value": (["--config.seed"], ["config.seed", "--help"]),
    "word for an int": (
        ["--config.seed=three"],
        ["--config.seed=three: must be a whole number; --help"],
    ),
    "fraction for an int": (
        ["--config.search.num_candidates=2.5"],
        ["--config.search.num_candidates=2.5: must be a whole number"],
    ),
    "word for a boolean": (
        ["--config.model.is_scanned=maybe"],
        ["--config.model.is_scanned=maybe: must be True or False; --help"],
    ),
    "no data file": (
        ["--config.tasks.name=jsonl"],
        ["cannot read '': no file is named; name a JSON-lines file"],
    ),
    "word for a float": (["--config.search.temperature=hot"], ["--config.search.temperature=hot"]),
    "no number": (
        ["--config.search.temperature=nan"],
        ["--config.search.temperature=nan", "finite"],
    ),
    "unknown task": (
        ["--config.tasks.name=chess"],
        ["--config.tasks.name=chess", "countdown, jsonl"],
    ),
    "missing data file": (
        ["--config.tasks.name=jsonl", "--config.tasks.jsonl.path=no/such.jsonl"],
        ["no/such.jsonl", "--config.tasks.jsonl.path"],
    ),
    "too few problems": (
        ["--config.tasks.num_test=9999"],
        ["config.tasks", "test 9999", "ask for fewer"],
    ),
    "evaluation on nothing": (
        ["--config.tasks.num_dev=0", "--config.evaluation.split=dev"],
        ["no dev problems", "--config.tasks.num_dev"],
    ),
    "prompts all too long": (
        ["--config.prompts.max_prompt_tokens=4"],
        [
            "--config.prompts.max_prompt_tokens=4",
            "no prompt of the train problems",
            "9 takes them all",
        ],
    ),
    "negative seed": (["--config.seed=-1"], ["--config.seed=-1"]),
    "unknown method": (
        ["--config.search.method=mtcs"],
        ["--config.search.method=mtcs", "mcts_star or sample or beam"],
    ),
    "no threshold": (
        ["--config.search.end_threshold=1.5"],
        ["--config.search.end_threshold=1.5", "between 0 and 1"],
    ),
    "word for an optional number": (
        ["--config.search.end_threshold=never"],
        ["--config.search.end_threshold=never", "must be a number or none"],
    ),
    "none for a number": (["--config.search.num_samples=none"], ["num_samples=none", "must be"]),
    "no candidates": (
        ["--config.search.num_candidates=0"],
        ["--config.search.num_candidates=0", "1 or more"],
    ),
    "no simulations": (
        ["--config.search.num_simulations=0"],
        ["--config.search.num_simulations=0"],
    ),
    "no step tokens": (
        ["--config.trace.max_step_tokens=0"],
        ["--config.trace.max_step_tokens=0"],
    ),
    "negative temperature": (
        ["--config.search.temperature=-0.5"],
        ["--config.search.temperature=-0.5"],
    ),
    "negative rollout": (
        ["--config.search.mcts_star.num_rollout_steps=-1"],
        ["--config.search.mcts_star.num_rollout_steps=-1"],
    ),
    "blend": (
        ["--config.search.mcts_star.rollout_blend=1.5"],
        ["--config.search.mcts_star.rollout_blend=1.5", "between 0 and 1"],
    ),
    "greedy votes": (
        ["--config.evaluation.samples.temperature=0"],
        ["--config.evaluation.samples.temperature=0.0: must be above 0"],
    ),
    "unknown strategy": (
        ["--config.evaluation.strategies=greedy,best_of_n"],
        ["--config.evaluation.strategies=greedy,best_of_n: must be some of greedy,"],
    ),
    "no strategy": (["--config.evaluation.strategies="], ["--config.evaluation.strategies=: must"]),
    "votes over trees": (
        ["--config.evaluation.samples.method=mcts_star"],
        ["--config.evaluation.samples.method=mcts_star: must be sample"],
    ),
    "no value before the next flag": (
        ["--config.model.is_scanned", "--config.seed=3"],
        ["write --config.model.is_scanned=VALUE"],
    ),
    "parameters that are no JSON": (
        ["--config.tasks.params={"],
        ["--config.tasks.params={: no JSON"],
    ),
    "no simulations of the search that answers": (
        ["--config.evaluation.search.num_simulations=0"],
        ["--config.evaluation.search.num_simulations=0: must be 1 or more"],
    ),
    "no rollout of the search that answers": (
        ["--config.evaluation.search.mcts_star.num_rollout_steps=-1"],
        ["--config.evaluation.search.mcts_star.num_rollout_steps=-1: must be 0 or more"],
    ),
    "more than an array has room for": (
        ["--config.trace.max_steps=99999999999"],
        ["--config.trace.max_steps=99999999999: must be 1 or more, below 2**31"],
    ),
    "vocabulary": (
        ["--config.model.vocab_size=5"],
        ["--config.model.vocab_size=5", "the tokenizer has"],
    ),
    "scan": (["--config.model.is_rematerialised=True"], ["is_scanned=True"]),
    "boundary": (["--config.trace.boundary="], ["nothing ends a step", "trace.step_tokens"]),
    "width and heads": (["--config.model.num_heads=3"], ["--config.model.width=64", "num_heads=3"]),
    "groups of heads": (
        ["--config.model.num_kv_heads=3"],
        ["--config.model.num_heads=4", "num_kv_heads=3"],
    ),
    "odd head": (["--config.model.width=12"], ["--config.model.width=12", "even"]),
    "unknown dtype": (["--config.model.dtype=float8"], ["--config.model.dtype=float8", "bfloat16"]),
    "batch of prompts": (
        ["--config.prompts.batch_size=12"],
        ["--config.prompts.batch_size=12", "8 devices"],
    ),
    "batch of updates": (
        ["--config.updates.prm.batch_size=9"],
        ["--config.updates.prm.batch_size=9", "8 devices"],
    ),
    "mesh": (["--config.sharding.tp=3"], ["--config.sharding", "8 devices"]),
    "learning rate": (
        ["--config.updates.policy.warm_start.learning_rate=-1"],
        ["--config.updates.policy.warm_start.learning_rate=-1"],
    ),
    "word for a limit": (
        ["--config.updates.policy.fit.max_epochs=all"],
        ["--config.updates.policy.fit.max_epochs=all: must be a number or none; --help"],
    ),
    "labels": (["--config.labels.kind=quantity"], ["--config.labels.kind=quantity", "quality"]),
    "no checkpoints": (["--config.checkpoints.num_kept=0"], ["--config.checkpoints.num_kept=0"]),
    "iterations": (["--config.loop.num_iterations=-1"], ["--config.loop.num_iterations=-1"]),
    "one answer to compare": (
        [
            "--config.updates.policy.objective=grpo",
            "--config.search.method=sample",
            "--config.search.num_samples=1",
        ],
        ["policy.objective=grpo: compares texts", "raise --config.search.temperature, num_samp"],
    ),
    "one candidate to compare": (
        [
            "--config.updates.policy.objective=step_dpo",
            "--config.search.method=puct",
            "--config.search.num_candidates=1",
        ],
        ["policy.objective=step_dpo: compares texts of a problem, and one is drawn or kept"],
    ),
    "equal answers to compare": (
        ["--config.updates.policy.objective=dpo", "--config.search.temperature=0"],
        ["policy.objective=dpo: compares texts"],
    ),
    "one path to compare": (
        ["--config.updates.policy.objective=grpo", "--config.datasets.max_paths_per_problem=1"],
        ["policy.objective=grpo: compares texts", "or datasets.max_paths_per_problem"],
    ),
    "one path of a problem in all": (
        [
            "--config.updates.prm.objective=pairwise",
            "--config.datasets.max_paths_per_problem=1",
            "--config.datasets.paths_rounds=1",
        ],
        ["updates.prm.objective=pairwise: compares texts", "or datasets.max_paths_per_problem"],
    ),
    "no room for a pair": (
        ["--config.updates.prm.objective=pairwise", "--config.updates.prm.batch_size=1"],
        ["prm.batch_size=1: leaves pairwise nothing to compare; choose 2 or more"],
    ),
    "nothing preferred": (
        ["--config.updates.policy.objective=dpo", "--config.updates.policy.beta=0"],
        ["policy.beta=0.0: tells nothing apart by dpo; choose a number above 0"],
    ),
    "a penalty of nothing": (
        ["--config.evaluation.search.checks=penalty", "--config.evaluation.search.check_weight=0"],
        ["--config.evaluation.search.check_weight=0.0: costs nothing; raise it, or take checks"],
    ),
    "a hint that cannot be written": (
        ["--config.prompts.num_hinted=2"],
        ["--config.prompts.hint=The answer is {gold}.: tokenizer: character 'T'"],
    ),
    "workdir in a bucket": (
        ["--workdir=gs://bucket/x"],
        ["gs://bucket/x", "choose another folder"],
    ),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line_and_nothing_is_written(run, tmp_path, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert [word for word in words if word not in err] == [], err
    assert not (tmp_path / "run").exists()


def test_a_reader_that_has_seen_enough_ends_nothing_loudly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "jaxtrain.main", "--config", "quickstart", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


FILE_MISTAKES = {
    "no get_config": ("x = 1", ["tiny.py: has no get_config"]),
    "get_config returns nothing": (
        "def get_config(): pass",
        ["tiny.py: has no get_config that returns a ConfigDict"],
    ),
    "missing module": ("import numpi", ["tiny.py:1: ModuleNotFoundError", "'numpi'"]),
    "misspelt module": (
        CONFIG.replace("configs.base", "configs.bsae"),
        ["tiny.py:2: ModuleNotFoundError", "'jaxtrain.configs.bsae'"],
    ),
    "syntax": ("def get_config(:", ["tiny.py: SyntaxError", "line 1"]),
    "misspelt key": (
        CONFIG.replace("max_number", "max_numbr"),
        ["tasks.countdown.max_numbr is unknown", "max_number, "],
    ),
    "misspelt section": (
        CONFIG.replace("c.tasks.countdown.max_number", "c.taks"),
        ["--config.taks is unknown", "tasks, "],
    ),
    "wrong type": (CONFIG.replace("= 12", "= 'twelve'"), ["tiny.py:8: TypeError"]),
    "empty value": (
        CONFIG.replace("= 12", "= None"),
        ["--config.tasks.countdown.max_target=None: must be a whole number"],
    ),
    "missing key": (
        CONFIG.replace("c.tasks.countdown.max_number = 4", "del c.tasks.countdown.max_number"),
        ["max_number is missing"],
    ),
    "an exit": ("import sys\nsys.exit('no GPU')", ["tiny.py:2: SystemExit: no GPU"]),
    "a value still to be set": (
        CONFIG.replace("= 12", "= config_dict.placeholder(int, required=True)").replace(
            "def get", "from ml_collections import config_dict\ndef get"
        ),
        ["tiny.py: RequiredValueError"],
    ),
    "error in it": (CONFIG.replace("= 4", "= {}['x']"), ["tiny.py:7: KeyError: 'x'"]),
}


@pytest.mark.parametrize(("text", "words"), FILE_MISTAKES.values(), ids=FILE_MISTAKES)
def test_mistake_in_the_config_file_is_one_line(run, config_file, tmp_path, text, words):
    config_file.write_text(text)
    code, _, err = run()
    assert (code, err.count("\n")) == (2, 1), err
    assert [word for word in words if word not in err] == [], err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("{folder}/tinny.py", ["tinny.py: no such file; ", " has tiny.py"]),
        (
            "{folder}/none/tiny.py",
            ["tiny.py: no such config; name a Python file, or one of ours: ", "quickstart"],
        ),
        ("quikstart", ["--config quikstart: no such config; ", "one of ours: quickstart, "]),
        ("quickstart:foo", ["takes 0 positional arguments but 1 was given; leave out :foo"]),
    ],
)
def test_missing_config_names_its_neighbours(run, tmp_path, file, words):
    code, _, err = run(config=file.format(folder=tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert [word for word in words if word not in err] == [], err


@pytest.mark.parametrize(
    ("arguments", "way_on"),
    [
        ([], "for a first run: --config quickstart"),
        (["--config="], "for a first run: --config quickstart"),
    ],
)
def test_missing_config_says_how_to_begin(arguments, way_on, capsys):
    assert main(["main.py", *arguments]) == 2
    assert capsys.readouterr().err == f"jaxtrain: --config: is missing; {way_on}\n"


@pytest.mark.parametrize("command", [["--config", "quickstart"], ["solve", "1 2 3=6"], ["export"]])
def test_the_home_of_nobody_is_one_line(command, capsys):
    assert main(["main.py", *command, "--workdir", "~nobody-of-this-name/run"]) == 2
    assert "~nobody-of-this-name/run: names no folder" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--workdir", "--config"])
def test_a_name_that_is_too_long_is_one_line(run, flag):
    code, _, err = run(flag, "n" * 300)
    assert (code, err.count("\n")) == (2, 1) and "File name too long" in err


def test_workdir_of_another_config_names_the_keys_that_differ(run, config_file, tmp_path):
    with open_workdir(tmp_path / "run", config_of(config_file), {}):
        pass
    code, _, err = run("--config.search.num_candidates=7", "--config.seed=5")
    assert (code, err.count("\n")) == (2, 1)
    assert "search.num_candidates 4 -> 7, seed 0 -> 5" in err


def test_workdir_in_use_names_its_owner(run, config_file, tmp_path):
    with open_workdir(tmp_path / "run", config_of(config_file), {}):
        code, _, err = run()
    assert (code, err.count("\n")) == (2, 1)
    assert f"pid {os.getpid()}" in err


def test_flags_override_the_file_and_defaults_stay(config_file):
    flags = [
        "--config.seed",
        "7",
        "--config.search.temperature=2",
        "--config.datasets.balance_outcomes=false",
    ]
    config, path = parse(["main.py", *flags, f"--config={config_file}"])
    assert (config.seed, config.search.temperature, config.datasets.balance_outcomes) == (
        7,
        2.0,
        False,
    )
    assert isinstance(config.search.temperature, float)
    assert config.tasks.countdown.max_number == 4
    assert config.updates == Config().updates.__class__(
        policy=config.updates.policy.__class__(batch_size=8),
        prm=config.updates.prm.__class__(batch_size=8),
    )
    assert path == "runs/tiny/seed_7"


def test_what_may_be_none_is_set_and_set_back(config_file):
    key = "--config.search.end_threshold"
    for arguments, expected in (
        ([], None),
        (["=1"], 1.0),
        (["=0.5", "=none"], None),
        (["=none", "=0.5"], 0.5),
    ):
        argv = ["", "--config", str(config_file), *(key + value for value in arguments)]
        assert parse(argv)[0].search.end_threshold == expected


def test_what_follows_a_colon_goes_to_get_config(config_file):
    config, path = parse(["main.py", "--config", f"{config_file}:3"])
    assert config.seed == 3
    assert path == "runs/tiny/seed_3"


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("configs/[!_]*.py")))
def test_configs_of_ours_are_read_by_path_and_name(name):
    assert parse(["", "--config", name]) == parse(
        ["", "--config", str(ROOT / "configs" / f"{name}.py")]
    )


def keys_told(out):
    return dict(re.findall(r"^  --config\.([a-z0-9_.]+)=(.*?)  +\S", out, re.MULTILINE))


def test_help_lists_every_key_with_its_default_and_remark(capsys):
    assert main(["main.py", "--config", "base", "--help"]) == 0
    keys = keys_told(capsys.readouterr().out)

    def leaves(value, prefix=""):
        for name, inner in value.items():
            yield from (
                leaves(inner, f"{prefix}{name}.")
                if isinstance(inner, dict)
                else [(prefix + name, str(inner))]
            )

    assert set(keys) == set(dict(leaves(asdict(Config()))))
    assert keys["search.num_simulations"] == "16"


def test_help_alone_lists_the_commands(capsys):
    assert main(["main.py", "--help"]) == 0
    out = capsys.readouterr().out
    assert tuple(re.findall(r"^  (\w+)  +\w", out, re.MULTILINE)) == COMMANDS
    assert keys_told(out) == {}


@pytest.mark.parametrize("command", [[], ["plan"], ["--plan"]])
def test_help_on_a_config_shows_its_values_and_ends_with_the_usage(config_file, command, capsys):
    assert (
        main(
            [
                "main.py",
                *command,
                "--config",
                f"{config_file}:3",
                "--help",
                "--config.tasks.countdown.max_target=5",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    keys = keys_told(out)
    names = ("seed", "tasks.countdown.max_number", "tasks.countdown.max_target")
    assert [keys[name] for name in names] == ["3", "4", "5"]
    assert out.index("Usage: jaxtrain --config") > out.rindex("--config.loop.num_iterations")


@pytest.fixture
def fake_loop(monkeypatch):
    """Replace the loop by something that takes no time."""

    def replace(act):
        monkeypatch.setattr(
            jaxtrain.commands.run, "run_loop", lambda config, task, workdir, *_: act(workdir)
        )

    return replace


def test_run_ends_with_what_came_of_it(run, fake_loop, tmp_path):
    def act(workdir):
        with MetricsLog(workdir.path) as log:
            log.truncate(-1)
            for i, accuracy in enumerate((0.125, 0.25, 0.5)):
                metrics = {
                    "accuracy": accuracy,
                    "low": accuracy - 0.1,
                    "high": accuracy + 0.1,
                    "num_problems": 8,
                }
                log.append(i, {f"evaluation/greedy/{key}": value for key, value in metrics.items()})

    fake_loop(act)
    code, out, _ = run()
    assert code == 0
    assert (
        "12.5% [2.5%, 22.5%] after iteration 0 -> 50.0% [40.0%, 60.0%] after iteration 2 (8 "
        "problems)" in out
    )
    assert str(tmp_path / "run" / "report.html") in out


def test_data_files_are_hashed_and_bad_rows_told(run, fake_loop, tmp_path):
    rows = [
        json.dumps({"question": f"{n} + 1?", "answer": f"add\n#### {n + 1}"}) for n in range(40)
    ]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join([*rows, "no json"]))
    fake_loop(lambda workdir: (_ for _ in ()).throw(KeyboardInterrupt))
    flags = [
        "--config.tasks.name=jsonl",
        f"--config.tasks.jsonl.path={data}",
        "--config.tasks.num_demonstrations=4",
    ]
    flags += ["--config.tasks.jsonl.max_bad_share=0.1"]
    code, _, err = run(*flags)
    assert code == 130
    assert f"1 bad rows skipped; the first: {data}:41: not JSON" in err
    facts = read_json(tmp_path / "run" / "manifest.json")["facts"]
    assert set(facts) == {"tasks.jsonl.path.sha256", "tasks.problems.sha256"}
    data.write_text("\n".join(rows[1:] + rows[:1]))
    code, _, err = run(*flags)
    assert (code, err.count("\n")) == (2, 1)
    assert "belongs to other facts: tasks.jsonl.path.sha256" in err


def test_unexpected_error_keeps_its_traceback_and_ends_with_the_way_on(run, fake_loop, tmp_path):
    fake_loop(lambda workdir: 1 / 0)
    code, _, err = run("--config.seed=2")
    lines = err.splitlines()
    assert code == 1
    assert "ZeroDivisionError: division by zero" in lines
    assert str(tmp_path / "run") in lines[-1]
    assert lines[-1].endswith(f"--workdir {tmp_path / 'run'} --config.seed=2")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory: MemoryError; lower --config.prompts.batch_size, "),
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"
            ),
            "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.; lower "
            "--config.prompts.batch_size, ",
        ),
    ],
)
def test_too_little_memory_is_one_line_with_the_keys_that_count(run, fake_loop, error, told):
    def act(workdir):
        raise error

    fake_loop(act)
    code, _, err = run()
    assert (code, err.count("\n", err.index("jaxtrain: "))) == (2, 1)
    assert f"jaxtrain: {told}" in err and "--config.updates.prm.batch_size; --plan says" in err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("writing /run/checkpoints/1: No space left on device"),
    ],
    ids=["ours", "a library's"],
)
def test_a_full_disk_is_one_line_and_the_same_command_resumes(run, fake_loop, error):
    def act(workdir):
        raise error

    fake_loop(act)
    code, _, err = run()
    told = err[err.index("jaxtrain: ") :]
    assert (code, told.count("\n")) == (2, 1)
    assert (
        "No space left on device; what is finished is kept: put the disk or the folder right, then "
        "start again: python" in told
    )


def test_a_folder_that_the_disk_refuses_is_one_line(run, fake_loop, tmp_path):
    def act(workdir):
        (tmp_path / "file").touch()
        (tmp_path / "file" / "fits").mkdir(parents=True)

    fake_loop(act)
    code, _, err = run()
    told = err[err.index("jaxtrain: ") :]
    assert (code, told.count("\n")) == (2, 1)
    assert f"{tmp_path / 'file' / 'fits'}: Not a directory; what is finished is kept" in told


def test_a_run_that_diverged_has_an_exit_code_of_its_own(run, fake_loop):
    def act(workdir):
        raise Diverged("iteration 3: all 8 trees were set aside")

    fake_loop(act)
    code, _, err = run()
    assert code == 3
    assert err.endswith("jaxtrain: iteration 3: all 8 trees were set aside\n")


@pytest.mark.parametrize("command", [[], ["evaluate"], ["export"]])
def test_too_little_address_space_is_told_before_anything_is_imported(command, tmp_path):
    call = f"{sys.executable} -m jaxtrain {' '.join(command)} --config quickstart"
    limit = f"ulimit -v 2000000; exec {call}"
    done = subprocess.run(["sh", "-c", limit], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        "jaxtrain: ulimit -v allows 1.9 GiB of address space, and the quickstart alone takes 4 "
        "GiB; "
        "raise it with ulimit -v unlimited\n"
    )


def test_a_run_that_diverged_says_so_in_one_line(run, fake_loop):
    def act(workdir):
        raise Diverged("the loss is nan")

    fake_loop(act)
    code, _, err = run()
    assert (code, err.splitlines()[-1]) == (3, "jaxtrain: the loss is nan")


def test_commands_that_need_no_jax_say_what_they_are(capsys):
    assert main(["jaxtrain", "--version"]) == 0
    assert capsys.readouterr().out == f"jaxtrain {__version__}\n"


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_command_on_a_run_says_what_is_missing(command, capsys):
    assert main(["jaxtrain", command, "--to", "x"]) == 2
    expected = "jaxtrain: the following arguments are required: --workdir; --help lists all flags\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("command", ["", "evaluate", "export", "relabel"])
def test_an_unexpected_error_of_any_command_ends_with_the_way_on(
    command, monkeypatch, capsys, tmp_path
):
    name = command or "run"
    arguments = [command] if command else []
    module = importlib.import_module(f"jaxtrain.commands.{name}")
    monkeypatch.setattr(module, "run", lambda *_: 1 / 0)
    assert main(["jaxtrain", *arguments, "--workdir", "x"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: division by zero" in err
    again = "begins again" if command in ("export", "relabel") else "resumes"
    told = [f"the same command {again}: python -m jaxtrain.main", *arguments, "--workdir x"]
    assert err[-1].endswith(" ".join(told))


def test_the_door_imports_nothing_that_takes_time():
    """Signals are heard as soon as it is open."""
    code = "import sys, jaxtrain.main; print(sorted({name.split('.')[0] for name in sys.modules}))"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(ast.literal_eval(told)) & {"jax", "numpy", "absl", "ml_collections", "rich"} == set()


@pytest.mark.parametrize(
    "call", [["jaxtrain"], ["jaxtrain.main"], ["jaxtrain.evaluate"], ["jaxtrain.export"]]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_during_the_imports_is_one_line(call, number, tmp_path):
    """The first module that a command imports takes for ever."""
    (tmp_path / "ml_collections.py").write_text(
        "print('importing', flush=True)\nwhile True: pass\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", *call, "--workdir", str(tmp_path / "run")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        told = process.stderr.read()
        assert process.wait(timeout=60) == 128 + number
    again = "begins again" if call == ["jaxtrain.export"] else "resumes"
    expected = (
        f"jaxtrain: stopped by {number.name}; the same command {again}: python -m jaxtrain.main"
    )
    assert told.startswith(expected)
    assert told.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_ends_a_compiled_call_at_once_in_one_line(config_file, tmp_path, number):
    """The loop is inside C code that no Python signal handler can interrupt, as it is in XLA."""
    code = (
        "import sys, hashlib, jaxtrain.commands.run as lib, jaxtrain.main\n"
        "def loop(config, task, workdir, progress, pretrained):\n"
        "    progress.note('in the loop')\n"
        "    hashlib.pbkdf2_hmac('sha512', b'', b'', 2**31 - 1)\n"
        "lib.run_loop = loop\n"
        "sys.exit(jaxtrain.main.main())\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "--config",
        str(config_file),
        "--workdir",
        str(tmp_path / "run"),
    ]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "in the loop\n" in iter(process.stderr.readline, "")
        process.send_signal(number)
        rest = process.stderr.read()
        code = process.wait(timeout=10)
    assert code == 128 + number
    told = [line for line in rest.splitlines() if not line.startswith("working ...")]
    assert len(told) == 1, rest
    assert told[0].startswith(
        f"jaxtrain: stopped by {number.name}; the same command resumes: python -m jaxtrain.main"
    )
