"""The run folder: one owner, one config, and files that are complete or absent."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from benchmarks.arms import adopt_trees
from jaxtrain import workdir as workdir_lib
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.files import disk_fault, read_json, write_atomic
from jaxtrain.runs import open_run
from jaxtrain.structs import Labels, Tree
from jaxtrain.trees import Damaged, Place
from jaxtrain.workdir import open_workdir

CONFIG = {
    "seed": 3,
    "loop": {"num_iterations": 3},
    "search": {"num_simulations": 16, "sizes": (1, 2)},
    "tasks": {"name": "jsonl", "jsonl": {"path": "here.jsonl"}},
}
FACTS = {"train_sha256": "abc"}


def start(path: str | Path, config: dict, facts: dict) -> None:
    """Open a run folder and leave it again."""
    with open_workdir(path, config, facts):
        pass


def make_tree(num_problems: int = 2, seed: int = 0) -> Tree:
    """A tree of random values; only that every field comes back matters here."""
    rng = np.random.default_rng(seed)
    shapes = {"tokens": (num_problems, 3, 4)} | dict.fromkeys(
        (
            "problem_id",
            "chosen",
            "is_ok",
            "num_simulations",
            "num_wasted",
            "policy_tokens",
            "prm_tokens",
            "lane_tokens",
        ),
        (num_problems,),
    )
    arrays = {}
    for field in fields(Tree):
        shape = shapes.get(field.name, (num_problems, 3))
        if field.name.startswith("is_"):
            arrays[field.name] = rng.random(shape) < 0.5
        elif field.name in ("score", "value"):
            arrays[field.name] = rng.random(shape, np.float32)
        else:
            arrays[field.name] = rng.integers(0, 9, shape, dtype=np.int32)
    return Tree(**arrays)


def equal(left: Tree, right: Tree) -> bool:
    pairs = [(getattr(left, field.name), getattr(right, field.name)) for field in fields(Tree)]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def change(config: dict, dotted: str, value: object) -> dict:
    config = json.loads(json.dumps(config))
    *path, last = dotted.split(".")
    inner = config
    for name in path:
        inner = inner[name]
    inner[last] = value
    return config


def test_new_folder_describes_itself(tmp_path):
    with open_workdir(tmp_path / "a" / "run", CONFIG, FACTS) as workdir:
        assert read_json(workdir.path / "config.json") == json.loads(json.dumps(CONFIG))
        manifest = workdir.manifest
    assert manifest["seed"] == 3
    assert manifest["facts"] == FACTS
    assert manifest["versions"]["jax"]
    assert manifest["devices"]["count"] >= 1
    assert len(manifest["config_sha256"]) == 64
    assert len(manifest["starts"]) == 1


def test_config_json_is_sorted_and_indented(tmp_path):
    start(tmp_path / "run", {"seed": 0, "b": 1, "a": {"d": 2, "c": 3}}, {})
    text = (tmp_path / "run" / "config.json").read_text()
    assert text == '{\n  "a": {\n    "c": 3,\n    "d": 2\n  },\n  "b": 1,\n  "seed": 0\n}\n'


def test_same_config_opens_again_and_free_keys_may_change(tmp_path):
    start(tmp_path, CONFIG, FACTS)
    longer = change(change(CONFIG, "loop.num_iterations", 9), "tasks.jsonl.path", "moved.jsonl")
    longer["checkpoints"] = {"num_kept": 9}
    with open_workdir(tmp_path, longer, FACTS) as workdir:
        assert read_json(tmp_path / "config.json")["loop"]["num_iterations"] == 9
        assert workdir.notices == ()
        assert len(workdir.manifest["starts"]) == 2


def test_free_key_frees_no_longer_name(tmp_path):
    config = change(CONFIG, "tasks.pathology", 1)
    start(tmp_path, config, FACTS)
    with pytest.raises(UserError, match="tasks.pathology 1 -> 2"):
        start(tmp_path, change(config, "tasks.pathology", 2), FACTS)


def test_other_config_is_refused_in_one_line_and_nothing_changes(tmp_path):
    start(tmp_path, CONFIG, FACTS)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    other = change(change(CONFIG, "seed", 4), "search.num_simulations", 64) | {"extra": True}
    with pytest.raises(UserError) as caught:
        start(tmp_path, other, FACTS)
    message = str(caught.value)
    assert "\n" not in message
    assert "extra (absent) -> true, search.num_simulations 16 -> 64, seed 3 -> 4" in message
    assert "choose another folder" in message
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before


def test_other_facts_are_refused(tmp_path):
    start(tmp_path, CONFIG, FACTS)
    with pytest.raises(UserError, match='train_sha256 "abc" -> "xyz"'):
        start(tmp_path, CONFIG, {"train_sha256": "xyz"})


def test_changed_versions_are_a_notice(tmp_path, monkeypatch):
    start(tmp_path, CONFIG, FACTS)
    monkeypatch.setattr(
        workdir_lib, "_version", lambda package: "99" if package == "mctx" else None
    )
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        (told,) = [notice for notice in workdir.notices if "versions.mctx" in notice]
    assert told.startswith("changed since the last start: versions.mctx") and told.endswith(
        '-> "99"'
    )


def test_what_changes_no_training_may_change_and_is_told(tmp_path):
    config = CONFIG | {"evaluation": {"num_samples": 16}, "sharding": {"data": -1}}
    start(tmp_path, config, FACTS)
    other = change(change(config, "evaluation.num_samples", 32), "sharding.data", 4)
    with open_workdir(tmp_path, other, FACTS) as workdir:
        assert workdir.notices == (
            "changed from here on: evaluation.num_samples 16 -> 32",
            "changed from here on: sharding.data -1 -> 4",
        )


def test_a_manifest_that_is_gone_is_told(tmp_path):
    start(tmp_path, CONFIG, FACTS)
    (tmp_path / "manifest.json").unlink()
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        assert len(workdir.notices) == 1 and workdir.notices[0].startswith("manifest.json was gone")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ('{"facts": {}}', "has no starts, versions, devices"),
        ("{}", "has no facts, starts"),
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path, content, said):
    start(tmp_path, CONFIG, FACTS)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        start(tmp_path, CONFIG, FACTS)
    assert "manifest.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.lock", "config.json", "manifest.json", "report.html.tmp"])
def test_a_folder_where_a_file_belongs_is_one_line(tmp_path, name):
    start(tmp_path, CONFIG, FACTS)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} cannot be .*Is a directory"):
        start(tmp_path, CONFIG, FACTS)


@pytest.mark.parametrize("name", ["open", "mkdir"])
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, monkeypatch, name):
    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(UserError, match="Read-only file system.*choose another folder"):
        start(tmp_path / "run" if name == "mkdir" else tmp_path, CONFIG, FACTS)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_workdir("~/run", CONFIG, FACTS) as workdir:
        assert workdir.path == tmp_path / "run"


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no config.json"):
        start(tmp_path, CONFIG, FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_start_killed_before_the_config_was_written_begins_anew(tmp_path):
    (tmp_path / "run.lock").write_text("host a, pid 1, since then\n")
    (tmp_path / "config.json.tmp").write_text("{")
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        assert read_json(workdir.path / "config.json")["seed"] == 3


@pytest.mark.parametrize("path", ["gs://bucket/run", "{file}/run", "{file}"])
def test_impossible_folder_is_one_line(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        start(path.replace("{file}", str(tmp_path / "file")), CONFIG, FACTS)


def test_damaged_config_is_one_line(tmp_path):
    start(tmp_path, CONFIG, FACTS)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not a JSON object"):
        start(tmp_path, CONFIG, FACTS)


def test_live_owner_is_named_and_its_end_frees_the_folder(tmp_path):
    told = rf"in use by host .*, pid {os.getpid()}, since 20"
    with open_workdir(tmp_path, CONFIG, FACTS), pytest.raises(UserError, match=told):
        start(tmp_path, CONFIG, FACTS)
    start(tmp_path, CONFIG, FACTS)


def test_refused_start_gives_the_lock_back(tmp_path):
    start(tmp_path, CONFIG, FACTS)
    with pytest.raises(UserError):
        start(tmp_path, change(CONFIG, "seed", 4), FACTS)
    start(tmp_path, CONFIG, FACTS)


def test_killed_owner_leaves_no_lock(tmp_path):
    code = (
        "import fcntl, signal, sys\n"
        "lock = open(sys.argv[1], 'a+')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print('locked', flush=True)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="in use by"):
            start(tmp_path, CONFIG, FACTS)
        owner.send_signal(signal.SIGKILL)
    start(tmp_path, CONFIG, FACTS)


def test_trees_come_back_bit_equal_by_iteration_shard_and_purpose(tmp_path):
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        places = [
            (i, shard, purpose)
            for i in (0, 1)
            for shard in (0, 7)
            for purpose in ("search", "evaluation")
        ]
        trees = {place: make_tree(seed=seed) for seed, place in enumerate(places)}
        for (iteration, shard, purpose), tree in trees.items():
            workdir.trees.save(Place(iteration, shard, purpose), tree)
        for place, tree in trees.items():
            loaded = workdir.trees.load(Place(*place))
            assert loaded is not None and equal(loaded, tree)
        assert workdir.trees.load(Place(2, 0)) is None
    assert (tmp_path / "trees" / "1" / "evaluation-00007.npz").exists()


def test_trees_are_read_by_plain_numpy(tmp_path):
    tree = make_tree()
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        workdir.trees.save(Place(1, 0), tree)
    with np.load(tmp_path / "trees" / "1" / "search-00000.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == sorted(field.name for field in fields(Tree))
        assert np.array_equal(arrays["tokens"], tree.tokens)


def load_or_none(workdir, *place) -> Tree | None:
    """Load a shard; None where it is set aside."""
    try:
        return workdir.trees.load(Place(*place))
    except Damaged:
        return None


def test_damaged_shard_is_never_believed(tmp_path):
    """Every single flipped byte and every truncation is found, or leaves the very same tree."""
    tree = make_tree(num_problems=1)
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        workdir.trees.save(Place(1, 0), tree)
        path = workdir.trees.path(Place(1, 0))
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        for position in rng.permutation(len(whole))[:600]:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            loaded = load_or_none(workdir, 1, 0)
            assert loaded is None or equal(loaded, tree)
            shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        for length in range(0, len(whole), 97):
            path.write_bytes(whole[:length])
            assert load_or_none(workdir, 1, 0) is None
            shutil.rmtree(tmp_path / "damaged")


def alter(arrays):
    return arrays | {"visits": arrays["visits"] + 1}


def leave_out(arrays):
    return {name: array for name, array in arrays.items() if name != "score"}


@pytest.mark.parametrize("spoil", [alter, leave_out])
def test_an_altered_or_partial_shard_is_set_aside_and_told(tmp_path, spoil):
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        workdir.trees.save(Place(1, 0), make_tree())
        path = workdir.trees.path(Place(1, 0))
        with np.load(path) as arrays:
            with zipfile.ZipFile(path) as file:
                comment = file.comment
            np.savez(path, **spoil(dict(arrays)))
            with zipfile.ZipFile(path, "a") as file:
                file.comment = comment
        with pytest.raises(
            Damaged, match=r"set aside in damaged/trees-1-search-00000.npz, and its trees are grown"
        ):
            workdir.trees.load(Place(1, 0))
        assert (tmp_path / "damaged" / "trees-1-search-00000.npz").exists()
        assert workdir.trees.load(Place(1, 0)) is None


def test_a_folder_in_the_place_of_a_shard_is_set_aside(tmp_path):
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        workdir.trees.path(Place(1, 0)).mkdir(parents=True)
        assert load_or_none(workdir, 1, 0) is None
        assert (tmp_path / "damaged" / "trees-1-search-00000.npz").is_dir()


@pytest.mark.parametrize("place", [(2, 0, "search"), (1, 1, "search"), (1, 0, "solve")])
def test_a_shard_in_the_place_of_another_is_set_aside(tmp_path, place):
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        workdir.trees.save(Place(1, 0), make_tree())
        workdir.trees.save(Place(*place), make_tree())
        shutil.copy(workdir.trees.path(Place(1, 0)), workdir.trees.path(Place(*place)))
        assert load_or_none(workdir, 1, 0) is not None
        assert load_or_none(workdir, *place) is None


def test_a_shard_of_other_settings_is_set_aside(tmp_path):
    """Trees of an evaluation depend on its settings, those of training do not; a longer run changes
    neither.
    """
    config = CONFIG | {"evaluation": {"num_samples": 16}}
    with open_workdir(tmp_path, config, FACTS) as workdir:
        for purpose in ("search", "sample"):
            workdir.trees.save(Place(1, 0, purpose), make_tree())
    with open_workdir(tmp_path, change(config, "loop.num_iterations", 9), FACTS) as workdir:
        assert all(load_or_none(workdir, 1, 0, purpose) for purpose in ("search", "sample"))
    with open_workdir(tmp_path, change(config, "evaluation.num_samples", 32), FACTS) as workdir:
        assert load_or_none(workdir, 1, 0, "search") is not None
        assert load_or_none(workdir, 1, 0, "sample") is None
    with open_workdir(tmp_path / "other", change(config, "seed", 4), FACTS) as other:
        other.trees.path(Place(1, 0)).parent.mkdir(parents=True)
        shutil.copy(tmp_path / "trees" / "1" / "search-00000.npz", other.trees.path(Place(1, 0)))
        assert load_or_none(other, 1, 0) is None


def make_labels(tree: Tree, seed: int = 0) -> Labels:
    rng = np.random.default_rng(seed)
    shape = tree.parent.shape
    return Labels(
        verdict=rng.integers(0, 5, shape, dtype=np.int32),
        is_correct=rng.random(shape) < 0.5,
        target=rng.random(shape, np.float32),
        is_labelled=rng.random(shape) < 0.5,
    )


def test_labels_come_back_by_kind_and_for_their_trees_alone(tmp_path):
    tree, other = make_tree(), make_tree(seed=1)
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        files = workdir.trees
        made = {kind: make_labels(tree, seed) for seed, kind in enumerate(("quality", "soft"))}
        for kind, labels in made.items():
            files.save_labels(Place(1, 0), tree, labels, kind)
        for kind, labels in made.items():
            loaded = files.load_labels(Place(1, 0), tree, kind)
            assert loaded is not None and vars(loaded).keys() == vars(labels).keys()
            for name, array in vars(labels).items():
                np.testing.assert_array_equal(getattr(loaded, name), array, strict=True)
        assert files.load_labels(Place(1, 1), tree, "quality") is None
        assert not list((tmp_path / "trees").glob("*/*")), "a reader of trees meets no labels"

        # those of other trees, or of another kind, are not taken
        with pytest.raises(Damaged, match="set aside in damaged/labels-1-search-00000.quality.npz"):
            files.load_labels(Place(1, 0), other, "quality")
        shutil.copy(files.path(Place(1, 0), kind="soft"), files.path(Place(1, 0), kind="quality"))
        with pytest.raises(Damaged, match="its trees are judged again"):
            files.load_labels(Place(1, 0), tree, "quality")
        assert files.load_labels(Place(1, 0), tree, "soft") is not None


def test_trees_are_adopted_with_their_labels(tmp_path):
    tree = make_tree()
    with open_workdir(tmp_path / "one", CONFIG, FACTS) as source:
        for i in (0, 1):
            source.trees.save(Place(i, 0), tree)
            source.trees.save_labels(Place(i, 0), tree, make_labels(tree), "quality")
        with open_workdir(tmp_path / "other", change(CONFIG, "seed", 4), FACTS) as workdir:
            adopt_trees(source.trees, workdir.trees, 0, "quality")
            shutil.copytree(workdir.path / "trees" / "0", workdir.path / "trees" / "0.bak")
            assert workdir.trees.training() == [Place(0, 0)]
            adopted = workdir.trees.load(Place(0, 0))
            assert adopted is not None and equal(adopted, tree)
            assert workdir.trees.load_labels(Place(0, 0), tree, "quality") is not None


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        workdir.trees.save(Place(1, 0), make_tree())
    leftovers = [tmp_path / "metrics.jsonl.tmp", tmp_path / "trees" / "1" / "search-00001.npz.tmp"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    (tmp_path / "notes.tmp").mkdir()  # of nobody here, and in nobody's way
    with open_workdir(tmp_path, CONFIG, FACTS) as workdir:
        assert not any(leftover.exists() for leftover in leftovers)
        assert (tmp_path / "notes.tmp").is_dir()
        assert workdir.trees.load(Place(1, 0)) is not None


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_atomic(tmp_path / "report.html", b"")
    assert disk_fault(caught.value) == f"{tmp_path / 'report.html'}: Is a directory"


def test_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_atomic(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_commit_is_that_of_this_checkout_or_none():
    root = Path(workdir_lib.__file__).resolve().parents[1]
    commit = workdir_lib._git_commit()
    if not (root / ".git").exists():
        assert commit is None
    else:
        assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_a_run_folder_of_an_earlier_layout_is_refused_in_one_line(tmp_path):
    """A section that moved is not there under its new name."""
    config = asdict(Config())
    del config["trace"]
    with open_workdir(tmp_path, config, FACTS):
        pass
    with pytest.raises(UserError, match="is no config of this version .*config.trace") as caught:
        open_run(tmp_path)
    assert "take the jaxtrain that wrote it" in str(caught.value) and "\n" not in str(caught.value)
