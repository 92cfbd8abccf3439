"""The whole loop on files in the form of GSM8K, through the command: what goes in is accounted for,
to the last row.

Each run is made once, and all share their shapes and a compilation cache, so that only the first
has to compile.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from jaxtrain import datasets, prompts
from jaxtrain.config import Config
from jaxtrain.files import read_json
from jaxtrain.flags import parse
from jaxtrain.labels import TARGETS
from jaxtrain.main import main
from jaxtrain.structs import Examples, Kind, Labels, Shard, Tree
from jaxtrain.tasks import Task, make_task
from jaxtrain.trees import TreeFiles

CONFIG = Path(__file__).parents[1] / "configs" / "gsm8k_scratch.py"
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
TINY = {
    "prompts.batch_size": 8,
    "prompts.num_problems": "none",
    "prompts.num_first_problems": "none",
    "prompts.max_prompt_tokens": 192,
    "model.width": 16,
    "model.mlp_width": 32,
    "model.num_layers": 1,
    "trace.max_steps": 2,
    "trace.max_step_tokens": 12,
    "search.num_simulations": 2,
    "search.num_candidates": 2,
    "updates.policy.batch_size": 8,
    "updates.policy.fit.num_updates": 2,
    "updates.policy.warm_start.num_updates": 1,
    "updates.prm.batch_size": 8,
    "updates.prm.fit.num_updates": 2,
    "updates.prm.warm_start.num_updates": 2,
    "evaluation.num_problems": 32,
    "evaluation.search.num_simulations": 2,
    "evaluation.search.num_candidates": 2,
    "evaluation.samples.num_samples": 2,
    "loop.num_iterations": 1,
}
OWN = {
    "tasks.num_dev": 0,
    "tasks.num_demonstrations": 8,
    "tasks.num_test": "none",
    "tasks.jsonl.max_bad_share": 0.2,
}
REAL = {
    "tasks.num_dev": 0,
    "tasks.num_test": 32,
    "tasks.num_demonstrations": 32,
    "tasks.num_train": 48,
}

QUESTION = "Ada has {} pens and lends {}. How many are left?"
LONG = "Ada, who likes pens, " * 8 + QUESTION
BAD_ROWS = {
    "not_json": [b'{"question": "Half', b"nan"],
    "empty": [b""],
    "no_fields": [b'["question", "answer"]'],
    "no_gold": [b'{"question": "How many?", "answer": "Many."}'],
}


def row(number: int, question: str = QUESTION) -> bytes:
    """One row; every third answer is 9, the others 7: a very small network is soon right, and soon
    wrong, often.
    """
    gold = 7 if number % 3 else 9
    answer = f"It is <<{gold}={gold}>>{gold}.\n#### {gold}"
    return json.dumps({"question": question.format(number, number - 7), "answer": answer}).encode()


def own_files(folder: Path) -> tuple[Path, Path]:
    """Write 38 train rows: 27 good ones, 5 of them too long, 5 bad ones, 2 duplicates, 4 of the 10
    test questions.
    """
    good = [row(number) for number in range(10, 32)] + [
        row(number, LONG) for number in range(40, 45)
    ]
    bad = [line for lines in BAD_ROWS.values() for line in lines]
    test = [row(number) for number in range(60, 69)] + [row(70, LONG)]
    train, twice = [*good[:11], *bad, *good[11:], *test[:4]], good[:2]
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, rows in zip(paths, ([*train, *twice], test), strict=True):
        path.write_bytes(b"".join(line + b"\n" for line in rows))
    return paths


def text_of(tokens: np.ndarray) -> str:
    """Read ids without the tokenizer: a byte's id is the byte and 2."""
    return (tokens - 2).astype(np.uint8).tobytes().decode(errors="replace")


@dataclass(frozen=True)
class Run:
    """What a run has left behind."""

    config: Config
    task: Task
    workdir: Path
    said: str

    @cached_property
    def metrics(self) -> dict[int, dict]:
        """The metrics of each iteration, from all its events."""
        merged: dict[int, dict] = {}
        for line in (self.workdir / "metrics.jsonl").read_text().splitlines():
            event = json.loads(line)
            known = merged.setdefault(event.pop("iteration"), {})
            assert not known.keys() & event.keys()
            known |= event
        return merged

    def trees(self, iteration: int) -> dict[str, np.ndarray]:
        """All trees of an iteration, padding apart, as the files have them."""
        shards = [
            np.load(path)
            for path in sorted((self.workdir / "trees" / str(iteration)).glob("search-*.npz"))
        ]
        trees = {
            name: np.concatenate([shard[name] for shard in shards]) for name in shards[0].files
        }
        return {name: values[trees["problem_id"] >= 0] for name, values in trees.items()}

    def learnt(self) -> tuple[Examples, Examples]:
        """What both networks were fitted to last, made anew from the files."""
        newest, c = max(self.metrics), self.config
        key = read_json(self.workdir / "manifest.json")["run_key"]
        files = TreeFiles(self.workdir, key, "")
        encode = prompts.make_encode(c.prompts, self.task.tokenizer, ())
        rounds: dict[int, list[Shard]] = {i: [] for i in range(newest + 1)}
        for place in files.training():
            tree = files.load(place)
            assert tree is not None
            made = files.load_labels(place, tree, c.labels.kind)
            assert made is not None
            problems = [self.task.problems[k] for k in tree.problem_id if k >= 0]
            size = len(tree.problem_id)
            (batch,), _ = prompts.encode(problems, encode, c.prompts.max_prompt_tokens, size)
            rounds[place.iteration].append(Shard(batch, tree, made))
        return datasets.collect(rounds, c.datasets, c.max_length, c.seed)[:2]


def run(name: str, folder: Path, paths: tuple[Path, Path], settings: dict) -> Run:
    """Run the command to its end, in this process."""
    keys = TINY | settings | {"tasks.jsonl.path": paths[0], "tasks.jsonl.test_path": paths[1]}
    argv = ["main", "--config", str(CONFIG), "--workdir", str(folder / name)]
    argv += [f"--config.{key}={value}" for key, value in keys.items()]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(argv) == 0, said.getvalue()
    config, _ = parse(argv)
    return Run(config, make_task(config.tasks), folder / name, said.getvalue())


@pytest.fixture(scope="module")
def untrained(compile_cache, tmp_path_factory) -> Run:
    """A policy of one update solves nothing."""
    folder = tmp_path_factory.mktemp("untrained")
    return run("run", folder, own_files(folder), OWN)


@pytest.fixture(scope="module")
def trained(compile_cache, tmp_path_factory) -> Run:
    """The answers of our own rows are all the same: a few updates learn some of it."""
    folder = tmp_path_factory.mktemp("trained")
    fits = {
        "updates.policy.warm_start.num_updates": 60,
        "updates.policy.warm_start.learning_rate": 0.02,
        "updates.policy.fit.learning_rate": 0.02,
    }
    return run("run", folder, own_files(folder), OWN | fits)


@pytest.fixture(scope="module")
def real(compile_cache, tmp_path_factory) -> Run:
    if not GSM8K.is_dir():
        pytest.skip(f"the GSM8K files are not beside the checkout, in {GSM8K}")
    return run(
        "run", tmp_path_factory.mktemp("real"), (GSM8K / "train.jsonl", GSM8K / "test.jsonl"), REAL
    )


@pytest.fixture(params=["untrained", "trained", "real"])
def any_run(request) -> Run:
    return request.getfixturevalue(request.param)


def test_every_row_of_the_files_is_counted(trained):
    metrics = trained.metrics[0]
    assert metrics["tasks/rows"] == 38 + 10
    assert {name: metrics[f"tasks/{name}"] for name in BAD_ROWS} == {
        name: len(rows) for name, rows in BAD_ROWS.items()
    }
    assert (metrics["tasks/duplicate"], metrics["tasks/in_test_file"]) == (2, 4)
    assert len(trained.task.train) + len(trained.task.demonstrations) == 27
    assert "7 bad rows skipped" in trained.said


def test_every_problem_is_a_tree_or_too_long(any_run):
    limit, task = any_run.config.prompts.max_prompt_tokens, any_run.task
    too_long = {problem.id for problem in task.train if len(problem.prompt.encode()) > limit}
    assert too_long
    for i, metrics in any_run.metrics.items():
        ids = any_run.trees(i)["problem_id"]
        assert sorted(ids) == sorted({problem.id for problem in task.train} - too_long)
        assert metrics["prompts/num_too_long"] == len(too_long)
        fates = ("num_trees_solved", "num_trees_without_correct", "num_set_aside")
        assert (
            metrics["labels/num_trees"]
            == sum(metrics[f"labels/{fate}"] for fate in fates)
            == len(ids)
        )
        num_tested = metrics["evaluation/greedy/num_problems"]
        assert num_tested + metrics["evaluation/num_too_long"] == len(task.test)


def test_every_finished_trace_has_a_verdict_and_every_step_is_labelled_or_not(any_run):
    for i, metrics in any_run.metrics.items():
        trees = any_run.trees(i)
        is_step = np.isin(trees["kind"], (Kind.CANDIDATE, Kind.ROLLOUT))
        verdicts = ("num_correct", "num_wrong", "num_unparsable", "num_errors")
        assert (
            sum(metrics[f"labels/{name}"] for name in verdicts)
            == (is_step & trees["is_finished"]).sum()
        )
        assert metrics["labels/num_labelled"] + metrics["labels/num_unlabelled"] == is_step.sum()
        assert metrics["search/num_duplicates"] == (trees["kind"] == Kind.DUPLICATE).sum()
        assert metrics["search/num_steps"] - metrics["search/num_duplicates"] == is_step.sum()


def test_every_verified_trace_is_kept_or_dropped_for_a_reason(any_run):
    for metrics in any_run.metrics.values():
        fates = ("new", "too_long", "duplicate", "over_cap")
        assert (
            sum(metrics[f"datasets/num_traces_{fate}"] for fate in fates)
            == metrics["labels/num_correct"]
        )


def test_whatever_the_policy_learns_from_is_correct_when_judged_again(trained):
    """Read bytes and gold answers without the project's tokenizer, task and verifier."""
    lines = Path(trained.config.tasks.jsonl.path).read_bytes().split(b"\n")
    rows = [json.loads(line) for line in lines if b"#### " in line]
    golds = {row["question"]: row["answer"].partition("#### ")[2] for row in rows}
    rows = trained.learnt()[0].rows
    assert len(rows.tokens) > 10
    for tokens, weight in zip(rows.tokens, rows.weight, strict=True):
        start, end = np.flatnonzero(weight)[[0, -1]]
        assert tokens[end] == 1 and not tokens[end + 1 :].any()
        question = text_of(tokens[:start]).removeprefix("Q: ").removesuffix("\nA:\n")
        given = text_of(tokens[start:end]).rpartition("####")[2].partition("\n")[0]
        assert re.sub(r"[ $.%]", "", given) == golds[question]


def test_paths_of_the_prm_begin_with_their_prompt_byte_for_byte(trained):
    asked = {problem.id: problem.prompt for problem in trained.task.train}
    _, paths = trained.learnt()
    assert len(paths.problem_id) > 10
    for tokens, until, i in zip(paths.rows.tokens, paths.rows.until, paths.problem_id, strict=True):
        assert text_of(tokens[until > 0]).startswith(asked[i])


def test_both_networks_learn_from_solved_trees(trained):
    assert all(
        metrics["labels/num_correct"] and metrics["labels/num_wrong"]
        for metrics in trained.metrics.values()
    )
    assert [m["updates/policy/num_updates"] for m in trained.metrics.values()] == [60, 2]
    assert [m["updates/prm/num_updates"] for m in trained.metrics.values()] == [2, 2]


def test_without_a_correct_leaf_both_fits_are_skipped_and_said_to_be(untrained):
    assert [m["labels/num_trees_solved"] for m in untrained.metrics.values()] == [0, 0]
    assert [m["updates/policy/is_skipped_fit"] for m in untrained.metrics.values()] == [0, 1]
    assert [m["updates/prm/is_skipped_fit"] for m in untrained.metrics.values()] == [1, 1]
    assert "the policy has no data" in untrained.said and "the prm has no data" in untrained.said
    page = (untrained.workdir / "report.html").read_text()
    assert "the policy had no data" in page and "the prm had no data" in page
    assert [len(examples.problem_id) for examples in untrained.learnt()] == [0, 0]


def test_the_real_files_are_read_whole(real):
    assert real.metrics[0]["tasks/rows"] == 7473 + 1319
    assert sorted(real.metrics) == [0, 1]


def test_without_a_path_one_line_names_the_key(capsys, tmp_path):
    assert main(["main", "--config", str(CONFIG), "--workdir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "--config.tasks.jsonl.path" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("new", [kind for kind in TARGETS if kind != "quality"])
def test_stored_trees_are_labelled_anew_and_nothing_is_judged(trained, capsys, new):
    """The second time too, for an iteration alone; what the run learnt from stays as it is."""
    folder, kind = trained.workdir / "labels", trained.config.labels.kind
    before = {path: path.read_bytes() for path in folder.glob(f"*/search-*.{kind}.npz")}
    for more in ([], ["--iteration", "1"]):
        command = ["main", "relabel", "--workdir", str(trained.workdir), "--kind", new]
        assert main([*command, *more]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert len(before) > 1 and f"{len(before)} shards labelled" in capsys.readouterr().out
    for path in before:
        made = Labels(**np.load(path.with_name(path.name.replace(kind, new))))
        tree = Tree(
            **np.load(trained.workdir / "trees" / path.parent.name / f"{path.name[:12]}.npz")
        )
        known = np.load(path)["verdict"]
        np.testing.assert_array_equal(made.verdict, known)
        assert np.isin(made.target[known != 0], (0, 1)).all()
        assert made.is_labelled.sum() > 0 and made.is_labelled.shape == tree.parent.shape


def test_a_round_without_trees_names_those_that_are_there(trained, capsys):
    where = ["--workdir", str(trained.workdir), "--iteration", "99"]
    assert main(["main", "relabel", *where, "--kind", "hard"]) == 2
    told = "--iteration 99: has no trees; rounds with trees: 0, 1\n"
    assert capsys.readouterr().err.endswith(told)


def test_trees_without_verdicts_are_left_out_and_said_to_be(trained, capsys, tmp_path):
    folder = shutil.copytree(trained.workdir, tmp_path / "run")
    next((folder / "labels" / "0").glob("search-*.quality.npz")).unlink()
    assert main(["main", "relabel", "--workdir", str(folder), "--kind", "mc_return"]) == 0
    assert "is not judged yet; the run makes up for it" in capsys.readouterr().out
    shutil.rmtree(folder / "labels")
    assert main(["main", "relabel", "--workdir", str(folder), "--kind", "mc_return"]) == 2
    assert "no trees there that are judged" in capsys.readouterr().err
