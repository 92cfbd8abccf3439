"""The metrics log: no gap, no duplicate, wherever the run was killed."""

import json
import math
import struct
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

# made at import
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from jaxtrain import metrics as metrics_lib
from jaxtrain.config import LoopConfig
from jaxtrain.errors import UserError
from jaxtrain.metrics import MetricsLog


def tensorboard_scalars(folder):
    """All (tag, step, value) of the TensorBoard files, read record by record: length, crc, event,
    crc.
    """
    scalars = []
    for path in (folder / "tensorboard").glob("events.out.tfevents.*"):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            event = Event.FromString(data[position + 12 : position + 12 + length])
            scalars += [
                (value.tag, event.step, value.simple_value) for value in event.summary.value
            ]
            position += length + 16
    return sorted(scalars)


def expected_scalars(rows):
    """What TensorBoard must show for the rows: one point for each number."""
    return sorted(
        (key, row["iteration"], float(np.float32(value)))
        for row in rows
        for key, value in row.items()
        if key != "iteration" and isinstance(value, int | float)
    )


def open_log(folder, iteration=-1):
    log = MetricsLog(folder)
    log.truncate(iteration)
    return log


def play(folder, stop_after):
    """Run a toy loop to its end as the real one would, killed after `stop_after` durable events;
    True if it got there.

    A checkpoint is a file named for its iteration. Events and checkpoints are the only things that
    a kill can separate.
    """
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    budget = [stop_after]

    def spend():
        budget[0] -= 1
        if budget[0] < 0:
            raise KeyboardInterrupt

    def evaluate(log, iteration):
        spend()
        log.append(
            iteration,
            {
                "evaluation/greedy/accuracy": 0.1 * iteration,
                "evaluation/search/accuracy": 0.2 * iteration,
            },
        )

    restored = max((int(path.name) for path in checkpoints.iterdir()), default=-1)
    with MetricsLog(folder) as log:
        is_scored = log.truncate(restored)
        try:
            if restored >= 0 and not is_scored:
                evaluate(log, restored)
            for iteration in range(restored + 1, 4):
                for stage in ("search", "updates"):
                    spend()
                    log.append(iteration, {f"{stage}/count": iteration * 10})
                spend()
                (checkpoints / str(iteration)).touch()
                evaluate(log, iteration)
        except KeyboardInterrupt:
            return False
    return True


def test_event_is_one_line_with_its_iteration(tmp_path):
    with open_log(tmp_path) as log:
        log.append(
            2,
            {
                "search/num_trees": 300,
                "tasks/name": "countdown",
                "evaluation/best_of_k/curve": [[1, 0.5]],
            },
        )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "iteration": 2,
        "search/num_trees": 300,
        "tasks/name": "countdown",
        "evaluation/best_of_k/curve": [[1, 0.5]],
    }


def test_numpy_jax_and_non_finite_values_become_plain_json(tmp_path):
    values = {
        "a/float": np.float32(0.5),
        "a/int": np.int64(7),
        "a/jax": jnp.asarray(1.5, jnp.bfloat16),
        "a/list": (np.float64("nan"), [jnp.arange(2)]),
        "a/nan": float("nan"),
        "a/infinite": jnp.asarray(-jnp.inf),
        "a/flag": np.bool_(True),
        "a/none": None,
    }
    with open_log(tmp_path) as log:
        log.append(0, values)
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {
        "iteration": 0,
        "a/float": 0.5,
        "a/int": 7,
        "a/jax": 1.5,
        "a/list": [None, [[0, 1]]],
        "a/nan": None,
        "a/infinite": None,
        "a/flag": True,
        "a/none": None,
    }


def test_event_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "metrics.jsonl", [], metrics_lib.os.fsync

    def record(number):
        synced.append(path.read_text())
        fsync(number)

    with open_log(tmp_path) as log:
        monkeypatch.setattr(metrics_lib.os, "fsync", record)
        log.append(0, {"a/b": 1})
        assert '{"iteration": 0, "a/b": 1}\n' in synced


@pytest.mark.parametrize("key", ["accuracy", "iteration"])
def test_key_without_stage_is_refused(tmp_path, key):
    with open_log(tmp_path) as log, pytest.raises(ValueError, match="stage/name"):
        log.append(0, {key: 1})


def test_append_before_truncate_is_refused(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(RuntimeError, match="truncate"):
        log.append(0, {"a/b": 1})


def test_truncate_cuts_newer_rows_and_says_whether_the_evaluation_is_there(tmp_path):
    with open_log(tmp_path) as log:
        log.append(0, {"evaluation/greedy/accuracy": 0.1})
        log.append(1, {"search/num_trees": 3})
        log.append(2, {"search/num_trees": 4, "evaluation/greedy/accuracy": 0.2})
    with MetricsLog(tmp_path) as log:
        assert log.truncate(1) is False
        assert [row["iteration"] for row in log.read()] == [0, 1]
        assert log.has(1, "search/") and not log.has(2, "search/")
        assert log.truncate(0) is True
        assert log.truncate(-1) is False
        assert log.read() == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_torn_last_line_is_dropped_at_every_length(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with open_log(tmp_path) as log:
        log.append(0, {"a/b": 1})
        log.append(0, {"a/c": "xyz"})
        rows = log.read()
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        with open_log(tmp_path, 0) as log:
            log.append(0, {"a/c": "xyz"})
        assert path.read_bytes() == whole
        assert MetricsLog(tmp_path).read() == rows


def test_damaged_last_line_is_dropped_and_damage_elsewhere_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 0, "a/b": 1}\n\0\0\0\0\n')
    assert MetricsLog(tmp_path).read() == [{"iteration": 0, "a/b": 1}]
    path.write_bytes(b'{"iteration": 0, "a/b": 1}\n' * 2)
    assert MetricsLog(tmp_path).read() == [{"iteration": 0, "a/b": 1}]
    path.write_bytes(b'{"iteration": 0, "a/b": 1}\n[1]\n{"iteration": 1, "a/b": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is no row of metrics"):
        MetricsLog(tmp_path)


def test_tensorboard_shows_every_number_once(tmp_path):
    with open_log(tmp_path) as log:
        log.append(0, {"a/b": 1, "a/text": "no scalar", "a/nan": math.nan, "a/list": [1, 2]})
        log.append(1, {"a/b": 0.5})
    assert tensorboard_scalars(tmp_path) == [("a/b", 0, 1.0), ("a/b", 1, 0.5)]


def test_tensorboard_shows_the_loss_of_every_update_of_the_run(tmp_path):
    """Steps count through all fits, losses that were not finite too, and again after a restart."""
    key = "updates/policy/losses"
    with open_log(tmp_path) as log:
        log.append(0, {key: [4.0, math.nan, 2.0], "updates/prm/losses": []})
        log.append(1, {key: [1.0], "updates/prm/losses": [0.5]})
        log.append(2, {key: [9.0]})
    with open_log(tmp_path, 1) as log:
        log.append(2, {key: [0.25]})
    steps = [(key, 1, 4.0), (key, 3, 2.0), (key, 4, 1.0), (key, 5, 0.25)]
    assert tensorboard_scalars(tmp_path) == [*steps, ("updates/prm/losses", 1, 0.5)]
    assert MetricsLog(tmp_path).read()[0][key] == [4.0, None, 2.0]


def test_killed_anywhere_metrics_have_no_gap_and_no_duplicate(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    assert play(whole, stop_after=100)
    expected = (whole / "metrics.jsonl").read_bytes()
    assert len(expected.splitlines()) == 12
    for first in range(16):
        for second in (0, 1, 3):
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            play(folder, stop_after=first)
            with (folder / "metrics.jsonl").open("ab") as file:
                file.write(b'{"iteration": 9, "torn')
            play(folder, stop_after=second)
            assert play(folder, stop_after=100)
            assert (folder / "metrics.jsonl").read_bytes() == expected
            assert tensorboard_scalars(folder) == expected_scalars(MetricsLog(folder).read())


@pytest.mark.parametrize(
    "row",
    [
        '{"iteration": "1"}',
        '{"iteration": -5}',
        '{"iteration": 1e999}',
        '{"iteration": 1, "a/b": NaN}',
        '{"iteration": 1, "updates/policy/losses": null}',
        '{"iteration": 0, "a/b": 1}',
    ],
)
def test_a_row_that_no_run_writes_is_one_line(tmp_path, row):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"iteration": 0, "a/b": 1}}\n{row}\n{{"iteration": 2}}\n')
    with pytest.raises(
        UserError, match=r"metrics\.jsonl:2 is no row of metrics .*; remove that line"
    ) as caught:
        MetricsLog(tmp_path)
    assert "\n" not in str(caught.value)


class Service:
    """Stands in for wandb and trackio: writes down what it is asked."""

    def __init__(self):
        self.calls = []

    def init(self, **asked):
        self.calls.append(("init", asked))
        own = {"define_metric": self.define} if "id" in asked else {}
        return SimpleNamespace(log=self.log, finish=self.finish, **own)

    def log(self, values, step=None):
        self.calls.append(("log", values) if step is None else ("log", values, step))

    def define(self, key, step_metric):
        self.calls.append(("define", key, step_metric))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
    monkeypatch.delenv(f"{request.param.upper()}_PROJECT", raising=False)
    fake = Service()
    monkeypatch.setitem(sys.modules, request.param, fake)
    return request.param, fake


def start(folder, name, iteration, *events):
    with MetricsLog(folder, (name,), {"seed": 3}) as log:
        log.truncate(iteration)
        for i, metrics in events:
            log.append(i, metrics)


def test_a_service_is_told_every_event_once_and_goes_on_in_its_run(tmp_path, service):
    """Of a killed run: what the service knows is not sent again."""
    name, fake = service
    folder = tmp_path / "quickstart" / "seed_0"
    folder.mkdir(parents=True)
    losses = {"updates/policy/losses": [4.0, None, 2.0], "a/text": "x"}
    start(folder, name, -1, (0, {"a/b": 1}), (0, losses))
    start(folder, name, 0, (1, {"a/b": 2, "updates/policy/losses": [1.0]}))

    run = json.loads((folder / "writers.json").read_text())[name]
    asked = {"project": "jaxtrain", "resume": "allow", "config": {"seed": 3}}
    known = {"name": f"quickstart-seed_0-{run}"} | ({"id": run} if name == "wandb" else {})
    inits = [call[1] for call in fake.calls if call[0] == "init"]
    assert [{key: x[key] for key in asked | known} for x in inits] == [asked | known] * 2

    key = "updates/policy/losses"
    points = [("iteration", 0, {"a/b": 1}), ("update", 1, {key: 4.0}), ("update", 3, {key: 2.0})]
    points += [("finish",), ("iteration", 1, {"a/b": 2}), ("update", 4, {key: 1.0}), ("finish",)]
    told = [call for call in fake.calls if call[0] in ("log", "finish")]
    if name == "wandb":
        wanted = [x if len(x) == 1 else ("log", {x[0]: x[1], **x[2]}) for x in points]
        defined = {call for call in fake.calls if call[0] == "define"}
        assert defined == {("define", "a/b", "iteration"), ("define", key, "update")}
    else:
        wanted = [x if len(x) == 1 else ("log", x[2], x[1]) for x in points]
    assert told == wanted


def test_a_service_that_is_new_to_a_run_is_told_what_was_kept(tmp_path, service):
    name, fake = service
    start(tmp_path, "tensorboard", -1, (0, {"a/b": 1}), (1, {"a/b": 2}))
    start(tmp_path, name, 0)
    logs = [call[1] for call in fake.calls if call[0] == "log"]
    assert [values["a/b"] for values in logs] == [1]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_and_a_service_that_does_not_start_are_one_line(
    tmp_path, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    told = rf"--config\.loop\.writers={name}: needs pip install 'jaxtrain\[{name}\]'"
    with pytest.raises(UserError, match=told):
        metrics_lib.package(name)
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=lambda **_: 1 / 0))
    with pytest.raises(UserError, match=rf"writers={name}: {name} does not start \(ZeroDiv"):
        start(tmp_path, name, -1)


def test_a_service_that_fails_on_the_way_ends_no_run(tmp_path, service, caplog):
    name, fake = service
    fake.log = fake.finish = lambda *_, **__: 1 / 0
    start(tmp_path, name, -1, (0, {"a/b": 1}), (1, {"a/b": 2}))
    assert [row["a/b"] for row in MetricsLog(tmp_path).read()] == [1, 2]
    told = f"{name} misses what metrics.jsonl has of now, and the run goes on: ZeroDivisionError"
    assert [told in message for message in caplog.messages] == [True] * 3  # two events, the end


def test_an_unknown_writer_is_refused():
    with pytest.raises(
        UserError, match="writers=paper: must be some of tensorboard, wandb, trackio"
    ):
        LoopConfig(writers=("paper",))
    with pytest.raises(UserError, match="writers=wandb,wandb: must be some of .*, each once"):
        LoopConfig(writers=("wandb", "wandb"))


def test_without_writers_the_record_is_all(tmp_path):
    with MetricsLog(tmp_path, ()) as log:
        log.truncate(-1)
        log.append(0, {"a/b": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
