"""The metrics log: metrics.jsonl is the record, the TensorBoard events are a copy of it.

One line of metrics.jsonl per event: a JSON object with `iteration` (int) and keys `stage/name`. How
the log stays without gap or duplicate when the run is killed at any instant:

1. An event is one line, synced to the disk before `append` returns. A torn line is dropped.
2. What an iteration computes before its checkpoint is appended before that is saved. So a
   checkpoint has all those rows, and `truncate` cuts the rows of an iteration without one.
3. What comes after it (the evaluation) is one event, there whole or not at all: `truncate` says
   which, and the caller scores the restored iteration again where it is missing.

TensorBoard files cannot be cut, so each start deletes them and replays the rows that were kept. A
list under a key that ends with `/losses` is shown as a scalar at each update of the whole run.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2 as _event_pb2
from tensorboardX.summary import scalar

from jaxtrain.errors import UserError
from jaxtrain.files import write_atomic

event_pb2: Any = _event_pb2  # generated: it hides its names from a type checker
Row = dict[str, Any]  # "iteration" and the values, plain JSON


class MetricsLog:
    """Read `metrics.jsonl`, and append to it once `truncate` has cut it to what was restored."""

    def __init__(self, folder: Path):
        self._path = folder / "metrics.jsonl"
        self._tensorboard = folder / "tensorboard"
        self._rows = _read(self._path)
        self._writer: EventsWriter | None = None
        self._num_updates: Counter[str] = Counter()  # those whose losses TensorBoard has, by key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the TensorBoard file; metrics.jsonl needs no closing."""
        if self._writer is not None:
            self._writer.close()

    def truncate(self, iteration: int, is_told: bool = True) -> bool:
        """Cut all rows newer than the restored iteration and rebuild the TensorBoard events.

        Its evaluation is cut too where nothing else tells of it (`is_told` False). Returns whether
        it is there; if not, the caller scores the iteration again.
        """
        rows = [row for row in self._rows if row["iteration"] <= iteration]
        if not is_told:
            rows = [r for r in rows if r["iteration"] < iteration or not _has(r, "evaluation/")]
        self._rows = rows
        write_atomic(self._path, "".join(map(_line, self._rows)).encode())
        self.close()
        self._tensorboard.mkdir(exist_ok=True)
        for events in self._tensorboard.glob("events.out.tfevents.*"):
            events.unlink()
        # Without a thread of its own, which would die unheard where the disk is full.
        self._writer = EventsWriter(str(self._tensorboard / "events"))
        self._num_updates.clear()
        for row in self._rows:
            self._copy(row)
        return self.has(iteration, "evaluation/")

    def append(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Append one event, synced to the disk when this returns.

        metrics: `stage/name` -> number, string, None, or list of those; numpy and jax values are
        taken as such, and a float that is not finite is stored as null.
        """
        if self._writer is None:
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
        self._copy(row)

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

    def _copy(self, row: Row) -> None:
        """Send the numbers of a row to TensorBoard."""
        assert self._writer is not None
        points = []
        for key, value in row.items():
            if key != "iteration" and isinstance(value, int | float):
                points.append((key, value, row["iteration"]))
            elif key.endswith("/losses"):
                first = self._num_updates[key] + 1
                points += [(key, loss, first + k) for k, loss in enumerate(value)]
                self._num_updates[key] += len(value)
        for key, value, step in points:
            if value is not None:
                summary, now = scalar(key, value), time.time()
                self._writer.write_event(event_pb2.Event(summary=summary, step=step, wall_time=now))
        self._writer.flush()


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
            rows.append(_checked(json.loads(line, parse_constant=float)))
            if rows[-1] in rows[:-1]:
                raise ValueError("it stands in an earlier line too")
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
