"""Live progress: what the run is doing, how fast, and when it will be done.

A run is never silent for long: besides the loop, which reports what is finished, a thread beats
every second and shows the state again while the loop is inside a long compiled call or the compiler
(both leave the interpreter free): on a terminal one live bar below the finished phases, elsewhere a
plain line every few seconds. Progress never fails a run, and no number of it goes back into it.
"""

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

import rich.progress
from rich.console import Console
from rich.table import Column

Clock = Callable[[], float]
BEAT = 1.0  # seconds between two looks of the thread, at most
TIMED = ("tokens",)  # sums that are shown as a speed
# sums that are shown as a share of another
SHARES = {"solved": "attempted", "lanes": "lane_tokens"}


@dataclass
class Phase:
    """A stretch of the loop whose work can be counted; made by `Progress.phase`."""

    name: str
    iteration: int | None
    total: int | None
    unit: str
    clock: Clock
    start: float
    done: int = 0
    restored: int = 0  # of it, what an earlier process did
    sums: Counter[str] = field(default_factory=Counter)
    loss: float | None = None
    compile_seconds: float = 0.0  # spent in the phase, but no part of its speed
    seconds: float = 0.0  # of the whole phase once it has ended, compilation apart
    worked_seconds: float = 0.0  # without compilation, until the last advance

    def advance(
        self, amount: int = 1, *, loss: float | None = None, is_restored: bool = False, **sums: int
    ) -> None:
        """Count what has just been done; `sums` may be tokens, and any pair of SHARES.

        What is only restored counts as done and solved, but tells nothing of the speed.
        """
        self.done += amount
        if is_restored:
            self.restored += amount
            sums = {name: n for name, n in sums.items() if name not in TIMED}
        self.sums.update(sums)
        self.loss = self.loss if loss is None else loss
        self.worked_seconds = max(self.clock() - self.start - self.compile_seconds, 1e-9)

    def describe(self) -> list[str]:
        """Return the parts of a line about the phase: speed, shares, loss."""
        # Work arrives in chunks: a speed as of the last does not sag while the next is under way.
        counts = {self.unit: self.done - self.restored} | {name: self.sums[name] for name in TIMED}
        parts = [f"{_rate(n / self.worked_seconds)} {name}/s" for name, n in counts.items() if n]
        for name, whole in SHARES.items():
            if self.sums[whole]:
                parts.append(f"{name} {self.sums[name] / self.sums[whole]:.1%}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        return parts

    def outlook(self) -> str:
        """Return "ETA 0:12" where the work so far tells it and time agrees, else "0:12 so far"."""
        seconds = self.clock() - self.start - self.compile_seconds
        if self.total and (done := self.done - self.restored):
            left = (self.total - self.restored) * self.worked_seconds / done - seconds
            if left >= 0:
                return f"ETA {_duration(left)}"
        return f"{_duration(seconds)} so far"


class Progress(contextlib.AbstractContextManager["Progress"]):
    """Show phases: one bar on a terminal, elsewhere plain lines at most `interval` seconds apart.

    with Progress(num_iterations) as progress:
        with progress.phase("search", iteration=2, total=2048) as phase:
            phase.advance(256, tokens=70_000, solved=31, attempted=256)
    """

    def __init__(
        self,
        num_iterations: int,
        stream: TextIO | None = None,
        interval: float = 5.0,
        clock: Clock = time.monotonic,
    ):
        self._num_iterations = num_iterations
        self._stream = stream or sys.stderr
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        # When something was last written; when the last phase ended.
        self._last = self._idle_since = clock()
        self._phase: Phase | None = None
        self._compiling: tuple[str, float] | None = None
        self._compile_seconds = 0.0  # not yet taken
        self._bar: rich.progress.Progress | None = None
        if self._stream.isatty():
            self._bar = _make_bar(self._stream)
            self._task = self._bar.add_task("starting", total=None, facts="")
            self._bar.start()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="progress", daemon=True)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and take the bar off the terminal."""
        self._is_closed.set()
        self._thread.join()
        with self._writing():
            if self._bar:
                self._bar.update(self._task, visible=False)
                self._bar.stop()

    def note(self, text: str) -> None:
        """Write one line at once."""
        with self._writing():
            self._write(text)

    @contextlib.contextmanager
    def phase(
        self,
        name: str,
        *,
        total: int | None = None,
        unit: str = "problems",
        iteration: int | None = None,
    ) -> Iterator[Phase]:
        """Show a phase, which holds no other, and say one line about it at its end."""
        phase = Phase(name, iteration, total, unit, self._clock, self._clock())
        self._phase = phase
        self.beat()
        word = "stopped"
        try:
            yield phase
            word = "done"
        finally:
            self._phase, self._idle_since = None, self._clock()
            seconds = self._idle_since - phase.start
            phase.seconds = seconds - phase.compile_seconds
            took = f"{word} in {_duration(seconds)}"
            self.note(" | ".join([self._head(phase), took, *phase.describe()]))
            self.beat()

    @contextlib.contextmanager
    def compiling(self, name: str) -> Iterator[None]:
        """Announce a compilation, and how long it took, which the phase's speed leaves out."""
        start = self._clock()
        self._compiling = (name, start)
        self.note(f"compiling {name} ...")
        try:
            yield
        finally:
            self._compiling = None
            seconds = self._clock() - start
            self._compile_seconds += seconds
            if self._phase:
                self._phase.compile_seconds += seconds
        self.note(f"compiled {name} in {seconds:.1f} s")

    def take_compile_seconds(self) -> float:
        """Return the seconds that were spent on compilation since they were last taken."""
        seconds, self._compile_seconds = self._compile_seconds, 0.0
        return seconds

    def beat(self) -> None:
        """Show the state again: on a terminal at once, elsewhere after `interval` s of silence."""
        # read once: the loop may end either meanwhile
        compiling, phase = self._compiling, self._phase
        with self._writing():
            told = self._describe(compiling, phase)
            if self._bar:
                work = None if compiling else phase
                self._bar.update(
                    self._task,
                    description=told[0],
                    facts=" | ".join(told[1:]),
                    total=work and work.total,
                    completed=work.done if work else 0,
                    refresh=True,
                )
            elif self._clock() - self._last >= self._interval:
                self._write(" | ".join(told))

    def _keep_beating(self) -> None:
        while not self._is_closed.wait(min(BEAT, self._interval / 2)):
            self.beat()

    def _describe(self, compiling: tuple[str, float] | None, phase: Phase | None) -> list[str]:
        if compiling:
            name, start = compiling
            return [f"compiling {name} ... {_duration(self._clock() - start)}"]
        if phase is None:
            return [f"working ... {_duration(self._clock() - self._idle_since)}"]
        # a narrow terminal cuts the end of a line
        return [self._head(phase), phase.outlook(), *phase.describe()]

    def _head(self, phase: Phase) -> str:
        i, total = phase.iteration, f"/{phase.total:,}" if phase.total else ""
        where = "" if i is None else f"iteration {i}/{self._num_iterations}: "
        return f"{where}{phase.name} {phase.done:,}{total} {phase.unit}"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock. Whoever reads may have gone (`| head`, a terminal); the run goes on."""
        try:
            with self._lock:
                yield
        except (OSError, ValueError):
            self._bar = None  # it would keep all that it cannot show

    def _write(self, text: str) -> None:
        self._last = self._clock()
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()


def _make_bar(stream: TextIO) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=10),
        rich.progress.TextColumn(
            "{task.fields[facts]}", markup=False, table_column=Column(no_wrap=True, ratio=1)
        ),
        console=Console(file=stream),
        expand=True,
        refresh_per_second=4,
    )


def _rate(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
