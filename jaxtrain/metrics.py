"""The metrics log: metrics.jsonl is the record, and writers show copies of it.

One line of metrics.jsonl per event: a JSON object with `iteration` (int) and keys `stage/name`. How
the log stays without gap or duplicate when the run is killed at any instant:

1. An event is one line, synced to the disk before `append` returns. A torn line is dropped.
2. What an iteration computes before its checkpoint is appended before that is saved. So a
   checkpoint has all those rows, and `truncate` cuts the rows of an iteration without one.
3. What comes after it (the evaluation) is one event, there whole or not at all: `truncate` says
   which, and the caller scores the restored iteration again where it is missing.

A writer is given every event once, when it is on the disk: its numbers by iteration, and a list
under a key that ends with `/losses` as a scalar at each update of the whole run. One that is new to
a run is given the rows that were kept first. TensorBoard files cannot be cut, so TensorBoard is new
at every start; the services go on in the run that they know, by an id in `writers.json`.
"""

import contextlib
import importlib
import json
import logging
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2 as _event_pb2
from tensorboardX.summary import scalar

from jaxtrain.errors import UserError, explained
from jaxtrain.files import read_json, write_atomic, write_json

_log = logging.getLogger(__name__)
event_pb2: Any = _event_pb2  # generated: it hides its names from a type checker
Row = dict[str, Any]  # "iteration" and the values, plain JSON
Points = list[tuple[int, dict[str, float]]]  # places on an axis, and the values there by key
# What services are asked for besides: neither a terminal of theirs, nor what the machine does.
OPTIONS: dict[str, dict[str, Any]] = {
    "wandb": {"allow_val_change": True, "settings": {"console": "off"}},
    "trackio": {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False},
}


class Writer(Protocol):
    """Show numbers beside the record. Made of the run folder and the config as a dict."""

    is_new: bool  # it knows nothing of this run, so it is given the rows that were kept

    def write(self, axis: str, points: Points) -> None:
        """Show values at places of an axis, `iteration` or `update`."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """Write event files, after deleting those of an earlier start."""

    is_new = True

    def __init__(self, folder: Path, config: Row):
        path = folder / "tensorboard"
        path.mkdir(exist_ok=True)
        for events in path.glob("events.out.tfevents.*"):
            events.unlink()
        # Without a thread of its own, which would die unheard where the disk is full.
        self._events = EventsWriter(str(path / "events"))

    def write(self, axis: str, points: Points) -> None:
        for step, values in points:
            for key, value in values.items():
                summary, now = scalar(key, value), time.time()
                self._events.write_event(event_pb2.Event(summary=summary, step=step, wall_time=now))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class Service:
    """Log to a service, in the run that it knows by an id in the run folder. One that fails on the
    way ends no run: that is told, and what it misses is in the record.
    """

    def __init__(self, name: str, folder: Path, config: Row):
        self._name, path = name, folder / "writers.json"
        ids = read_json(path) if path.exists() else {}
        self.is_new, self._defined = name not in ids, set()
        key = ids.setdefault(name, secrets.token_hex(4))
        asked = {"name": "-".join([*folder.absolute().parts[-2:], key]), "config": dict(config)}
        asked |= {"project": os.environ.get(f"{name.upper()}_PROJECT", "jaxtrain")}
        asked |= {"id": key, "dir": folder} if name == "wandb" else {}
        told, then = f"--config.loop.writers={name}: {name} does not start", "or leave it out"
        with explained(told, then):
            self._run = package(name).init(resume="allow", **asked, **OPTIONS[name])
        write_json(path, ids)

    def write(self, axis: str, points: Points) -> None:
        with self._spared():
            for step, values in points:
                # Steps of wandb may not go back, as those of an iteration that is done again do.
                if hasattr(self._run, "define_metric"):
                    for key in values.keys() - self._defined:
                        self._run.define_metric(key, step_metric=axis)
                    self._defined |= values.keys()
                    self._run.log({axis: step, **values})
                else:
                    self._run.log(values, step=step)

    def close(self) -> None:
        with self._spared():
            self._run.finish()

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = "%s misses what metrics.jsonl has of now, and the run goes on: %s: %s"
            _log.warning(told, self._name, type(error).__name__, " ".join(str(error).split())[:300])


WRITERS: dict[str, Callable[[Path, Row], Writer]] = {"tensorboard": TensorBoard}
WRITERS |= {name: partial(Service, name) for name in OPTIONS}


def package(name: str) -> ModuleType:
    """Import what a writer needs beyond the core. Raises UserError where it is missing."""
    try:
        return importlib.import_module({"tensorboard": "tensorboardX"}.get(name, name))
    except ImportError as error:
        told = f"--config.loop.writers={name}: needs pip install 'jaxtrain[{name}]'"
        raise UserError(told) from error


class MetricsLog(contextlib.AbstractContextManager["MetricsLog"]):
    """Read `metrics.jsonl`, and append to it once `truncate` has cut it to what was restored."""

    def __init__(
        self, folder: Path, writers: Sequence[str] = ("tensorboard",), config: Row | None = None
    ):
        """Open the log of a run folder; writers: names of WRITERS, which are shown the config."""
        self._folder, self._path = folder, folder / "metrics.jsonl"
        self._rows = _read(self._path)
        self._asked, self._config = writers, config or {}
        self._writers: list[Writer] | None = None
        self._num_updates: Counter[str] = Counter()  # those whose losses were shown, by key

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the writers; metrics.jsonl needs no closing."""
        for writer in self._writers or ():
            writer.close()

    def truncate(self, iteration: int, is_told: bool = True) -> bool:
        """Cut all rows newer than the restored iteration, and open the writers.

        Its evaluation is cut too where nothing else tells of it (`is_told` False). Returns whether
        it is there; if not, the caller scores the iteration again.
        """
        rows = [row for row in self._rows if row["iteration"] <= iteration]
        if not is_told:
            rows = [r for r in rows if r["iteration"] < iteration or not _has(r, "evaluation/")]
        self._rows = rows
        write_atomic(self._path, "".join(map(_line, self._rows)).encode())
        self.close()
        self._writers = [WRITERS[name](self._folder, self._config) for name in self._asked]
        self._num_updates.clear()
        for row in self._rows:
            self._show(row, [writer for writer in self._writers if writer.is_new])
        return self.has(iteration, "evaluation/")

    def append(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Append one event, synced to the disk when this returns.

        metrics: `stage/name` -> number, string, None, or list of those; numpy and jax values are
        taken as such, and a float that is not finite is stored as null.
        """
        if self._writers is None:
            raise RuntimeError("call truncate(restored iteration, or -1) before the first append")
        for key in metrics:
            if "/" not in key:
                raise ValueError(f"metric {key!r} is not of the form stage/name")
        row = {"iteration": int(iteration), **{key: _plain(metrics[key]) for key in metrics}}
        with self._path.open("ab") as file:
            file.write(_line(row).encode())
            file.flush()
            os.fsync(file.fileno())
        self._rows.append(row)
        self._show(row, self._writers)

    def read(self) -> list[Row]:
        """Return all rows, oldest first."""
        return [dict(row) for row in self._rows]

    def has(self, iteration: int, prefix: str) -> bool:
        """Return whether some row of the iteration has a key that starts with the prefix."""
        return any(row["iteration"] == iteration and _has(row, prefix) for row in self._rows)

    def last(self, prefix: str) -> int:
        """Return the last iteration that has a key with the prefix, -1 where none has."""
        return max((row["iteration"] for row in self._rows if _has(row, prefix)), default=-1)

    def newest(self, key: str, iteration: int) -> Any:
        """Return the last value of a key up to an iteration, None where it has none."""
        told = [row[key] for row in self._rows if row["iteration"] <= iteration and key in row]
        return told[-1] if told else None

    def _show(self, row: Row, writers: Sequence[Writer]) -> None:
        """Give the numbers of a row to writers."""
        numbers: dict[str, float] = {
            key: x for key, x in row.items() if key != "iteration" and isinstance(x, int | float)
        }
        losses: Points = []
        for key in (key for key in row if key.endswith("/losses")):
            found = enumerate(row[key], start=self._num_updates[key] + 1)
            losses += [(step, {key: loss}) for step, loss in found if loss is not None]
            self._num_updates[key] += len(row[key])
        for writer in writers:
            if numbers:
                writer.write("iteration", [(row["iteration"], numbers)])
            if losses:
                writer.write("update", losses)


def _has(row: Row, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in row)


def _read(path: Path) -> list[Row]:
    """Return the rows of a log; its last line may be torn, no other may."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    whole, rows = lines[:-1], []
    for number, line in enumerate(whole, start=1):
        try:
            row = _checked(json.loads(line, parse_constant=float))
            if row in rows:
                raise ValueError("it stands in an earlier line too")
            rows.append(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(whole):
                break
            told = f"{path}:{number} is no row of metrics ({error})"
            raise UserError(f"{told}; remove that line, then start again") from error
    return rows


def _checked(row: Row) -> Row:
    """Return a row that was read. Raises ValueError where no run writes such a one."""
    iteration = row["iteration"]
    if type(iteration) is not int or iteration < 0:
        raise ValueError(f"its iteration is {iteration!r}")
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is {value}")
        if key.endswith("/losses") and not isinstance(value, list):
            raise ValueError(f"{key} is no list")
    return {"iteration": iteration} | row


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "dtype"):
        array = np.asarray(value)
        # bfloat16 and its kin (kind V) have no Python number of their own.
        return _plain((array.astype(np.float64) if array.dtype.kind == "V" else array).tolist())
    told = "a metric is a number, a string, None or a list of those"
    raise TypeError(f"{told}, not {type(value).__name__}")
