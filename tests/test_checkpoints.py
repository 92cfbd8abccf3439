"""States to disk and back, on other meshes too, and what stays on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.arms import adopt_checkpoint
from jaxtrain.checkpoints import Checkpoints, CheckpointsConfig, fingerprint
from jaxtrain.errors import UserError
from jaxtrain.sharding import tree_shardings
from jaxtrain.structs import State
from jaxtrain.updates.fits import LearnerConfig, init_learner, make_optimizer

CUBE, ROW, ONE = (2, 2, 2), (8, 1, 1), (1, 1, 1)


def state_on(sizes, iteration=0):
    """Make a state of random numbers, placed as a run places it: (state, abstract state)."""
    axes, devices = ("data", "fsdp", "tp"), jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)
    whole = NamedSharding(mesh, PartitionSpec())
    rng = np.random.default_rng(iteration)

    def random(shape):
        # any bits, NaN and denormals among them
        return rng.integers(0, 2**32, shape, np.uint32).view(np.float32)

    def learner(params):
        fresh = init_learner(params, make_optimizer(LearnerConfig()))
        moments = jax.tree.map(lambda x: random(x.shape) if x.ndim else x, fresh.opt_state)
        return fresh.replace(opt_state=moments, num_updates=np.int32(iteration))

    backbone = {
        "embedding": random((8, 16)),
        "block_0": {"wq": random((16, 4, 4)), "norm": {"scale": random((16,))}},
    }
    state = State(
        np.int32(iteration),
        {},
        learner(backbone),
        learner({"backbone": backbone, "head": random(16)}),
    )
    shardings = State(
        whole,
        {},
        tree_shardings(mesh, state.policy),
        tree_shardings(mesh, state.prm),
    )
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    placed = state.replace(
        policy=jax.device_put(state.policy, shardings.policy),
        prm=jax.device_put(state.prm, shardings.prm),
    )
    return placed, abstract


def bits(x):
    x = np.asarray(x)
    return x.view(np.uint32) if x.dtype == np.float32 else x


def assert_bit_equal(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(bits(a), bits(b), strict=True), one, other
    )


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path, CheckpointsConfig()) as opened:
        yield opened


@pytest.mark.parametrize("sizes", [CUBE, ROW, ONE])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(tmp_path, checkpoints, sizes):
    state, _ = state_on(CUBE, iteration=7)
    checkpoints.save(state)
    _, abstract = state_on(sizes)
    with Checkpoints(tmp_path, CheckpointsConfig()) as reopened:
        assert reopened.newest() == 7
        restored = reopened.restore(7, abstract)
    assert_bit_equal(restored, state)
    for part in ("policy", "prm"):
        jax.tree.map(
            lambda x, a: np.testing.assert_equal(x.sharding, a.sharding),
            getattr(restored, part),
            getattr(abstract, part),
        )


def test_the_iteration_comes_back_on_the_host(checkpoints):
    state, abstract = state_on(ONE, iteration=1)
    checkpoints.save(state)
    iteration = checkpoints.restore(1, abstract).iteration
    assert type(iteration) is np.ndarray and iteration.dtype == np.int32


def test_a_network_comes_back_alone(tmp_path, checkpoints):
    """What is not asked for may be gone, as long as nobody asks whether the checkpoint is good."""
    state, _ = state_on(CUBE, iteration=1)
    checkpoints.save(state)
    _, abstract = state_on(ROW)
    for optimizer in tmp_path.glob("1/*_optimizer"):
        shutil.rmtree(optimizer)
    assert_bit_equal(checkpoints.restore_networks(1, abstract), state.networks)
    shutil.rmtree(tmp_path / "1" / "policy")
    assert_bit_equal(checkpoints.restore_params(1, "prm", abstract), state.prm.params)
    assert checkpoints.fault(1)


def test_a_folder_without_checkpoints_has_no_newest(checkpoints):
    assert checkpoints.newest() is None


def on_disk(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_and_the_warm_start_stay(tmp_path):
    with Checkpoints(tmp_path, CheckpointsConfig(num_kept=2)) as checkpoints:
        for iteration in range(5):
            checkpoints.save(state_on(ONE, iteration)[0])
            checkpoints.prune()
        assert checkpoints.newest() == 4
        assert on_disk(tmp_path) == ["0", "3", "4"]
        items = {path.name for path in (tmp_path / "4").iterdir() if path.is_dir()}
        assert items == {"policy", "policy_optimizer", "prm", "prm_optimizer"}
        first, abstract = state_on(ONE)
        assert_bit_equal(checkpoints.restore(0, abstract), first)


def test_an_interrupted_save_is_no_checkpoint_and_is_swept(tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    def interrupt(*args):
        raise Interrupted

    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        checkpoints.save(state_on(ONE, 0)[0])
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(os, "rename", interrupt)
            checkpoints.save(state_on(ONE, 1)[0])
    assert len(on_disk(tmp_path)) == 2, "the interruption left nothing to sweep"
    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        assert checkpoints.newest() == 0
        state, abstract = state_on(ONE, 3)
        checkpoints.save(state)
        assert_bit_equal(checkpoints.restore(3, abstract), state)
    assert on_disk(tmp_path) == ["0", "3"]


def test_saves_are_told_apart_and_copies_are_not(tmp_path):
    """Two runs of one config that end in the same State, too."""
    for name in ("one", "other"):
        with Checkpoints(tmp_path / name, CheckpointsConfig()) as checkpoints:
            checkpoints.save(state_on(ONE)[0])
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    one, other, copy = (fingerprint(tmp_path / name, 0) for name in ("one", "other", "copy"))
    assert one == copy != other


# Integrity.


def test_every_flipped_bit_is_found_or_harmless(tmp_path):
    """84 flips over all files of a checkpoint: what is not found comes back array-equal."""
    state, abstract = state_on(ONE, 1)
    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        checkpoints.save(state)
    paths = sorted(path for path in (tmp_path / "1").rglob("*") if path.is_file())
    rng, num_found = np.random.default_rng(0), 0
    for k in range(84):
        path = paths[k % len(paths)]
        whole = path.read_bytes()
        spoilt = bytearray(whole)
        spoilt[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoilt)
        with Checkpoints(tmp_path, CheckpointsConfig(), is_read_only=True) as checkpoints:
            try:
                checkpoints.newest()
            except UserError as error:
                num_found += 1
                assert str(path) in str(error) or path.name == "sha256.json"
            else:
                assert_bit_equal(checkpoints.restore(1, abstract), state)
        path.write_bytes(whole)
    assert len(paths) > 10 and num_found >= 80


def test_a_disk_too_full_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        state, abstract = state_on(ONE, 0)
        checkpoints.save(state)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1234))
        for refused in (
            lambda: checkpoints.save(state_on(ONE, 1)[0]),
            lambda: checkpoints.require_space(abstract),
        ):
            with pytest.raises(UserError, match=r"needs [\d,]+ bytes, and 1,234 are free"):
                refused()
        assert on_disk(tmp_path) == ["0"]


def test_a_stray_file_makes_room_for_a_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, CheckpointsConfig()) as checkpoints:
        (folder / "1").write_text("stray")
        assert checkpoints.newest() is None
        checkpoints.save(state_on(ONE, 1)[0])
        assert checkpoints.newest() == 1
    assert (tmp_path / "damaged" / "checkpoints-1").read_text() == "stray"


@pytest.mark.parametrize("name", ["007", "\u0663", "-1", "1.0"])
def test_a_name_that_is_no_number_is_nobodys(tmp_path, name):
    with Checkpoints(tmp_path, CheckpointsConfig(num_kept=1)) as checkpoints:
        checkpoints.save(state_on(ONE, 1)[0])
        shutil.copytree(tmp_path / "1", tmp_path / name)
        assert (checkpoints.newest(), checkpoints.numbers()) == (1, [1])
        checkpoints.prune()
    assert on_disk(tmp_path) == sorted(["1", name])


def test_only_what_a_killed_save_left_is_swept(tmp_path):
    (tmp_path / "3.tmp").touch()
    (tmp_path / "4.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "5.tmp" / "state").mkdir(parents=True)
    (tmp_path / "5.tmp.orbax-checkpoint-tmp-7").mkdir()
    (tmp_path / "5.tmp.bak").mkdir()
    (tmp_path / "elsewhere").mkdir()
    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        checkpoints.save(state_on(ONE, 3)[0])
    assert on_disk(tmp_path) == ["3", "5.tmp.bak", "elsewhere"]


def test_a_seal_tells_what_is_wrong(tmp_path):
    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        checkpoints.save(state_on(ONE, 1)[0])
    (tmp_path / "1" / "x").symlink_to(tmp_path / "nowhere")
    for spoil, said in (
        (lambda: None, "x cannot be read"),
        (
            lambda: (tmp_path / "1" / "sha256.json").write_text('{"files": []}'),
            "is of another kind, number, run",
        ),
        (
            lambda: (tmp_path / "1" / "sha256.json").write_text('{"files": 3}'),
            "sha256.json cannot be read",
        ),
    ):
        spoil()
        with (
            Checkpoints(tmp_path, CheckpointsConfig(), is_read_only=True) as checkpoints,
            pytest.raises(UserError, match=said),
        ):
            checkpoints.newest()


def test_a_checkpoint_adopted_is_the_same_and_of_the_run(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    with Checkpoints(source / "checkpoints", CheckpointsConfig(), "one") as checkpoints:
        checkpoints.save(state_on(ONE)[0])
    (folder / "checkpoints").mkdir(parents=True)
    adopt_checkpoint(source, folder, 0, "other")
    with Checkpoints(folder / "checkpoints", CheckpointsConfig(), "other") as checkpoints:
        assert checkpoints.newest() == 0
    assert fingerprint(folder / "checkpoints", 0) == fingerprint(source / "checkpoints", 0)


def test_a_checkpoint_that_goes_while_it_is_read_is_one_line(tmp_path):
    with (
        Checkpoints(tmp_path, CheckpointsConfig(), is_read_only=True) as checkpoints,
        pytest.raises(UserError, match="1 was removed by its run meanwhile"),
    ):
        checkpoints.restore(1, state_on(ONE)[1])


def test_a_reader_uses_a_good_checkpoint_and_moves_nothing(tmp_path):
    told = []
    with Checkpoints(tmp_path, CheckpointsConfig()) as checkpoints:
        for iteration in range(2):
            checkpoints.save(state_on(ONE, iteration)[0])
    (tmp_path / "1" / "sha256.json").unlink()
    with Checkpoints(
        tmp_path, CheckpointsConfig(), is_read_only=True, note_fn=told.append
    ) as checkpoints:
        assert checkpoints.choose(None) == 0
        with pytest.raises(
            UserError, match="--iteration 1: .*was not finished or .*; choose another one"
        ):
            checkpoints.choose(1)
    assert on_disk(tmp_path) == ["0", "1"]
    assert len(told) == 1 and told[0].endswith("left where it is, and iteration 0 is used")


def test_reading_alone_warns_of_nothing(tmp_path):
    """In a process of its own, where absl writes to stderr as it does for a command."""
    code = (
        "import sys; from pathlib import Path; from jaxtrain.checkpoints import Checkpoints, "
        "CheckpointsConfig\n"
        "with Checkpoints(Path(sys.argv[1]), CheckpointsConfig(), is_read_only=True) as found: "
        "print(found.numbers())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (told.stdout, told.stderr) == ("[]\n", "")
