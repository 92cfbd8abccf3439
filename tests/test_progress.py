"""Live progress: what a line says, and that a run is never silent."""

import errno
import io
import re
import time

import pytest

from jaxtrain.progress import Progress


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(text)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def progress(stream, clock):
    with Progress(3, stream, clock=clock) as progress:
        yield progress


def test_line_shows_phase_iteration_speed_solve_rate_and_eta(progress, stream, clock):
    with progress.phase("search", iteration=2, total=2048) as phase:
        clock.now += 10
        told = {"tokens": 1_000_000, "lanes": 830, "lane_tokens": 1000}
        phase.advance(512, solved=64, attempted=512, **told)
        progress.beat()
    assert stream.getvalue().splitlines()[0] == (
        "iteration 2/3: search 512/2,048 problems | ETA 0:30 | 51 problems/s | 100k tokens/s | "
        "solved 12.5% | lanes 83.0%"
    )


def test_eta_counts_down_and_speed_holds_between_two_advances(progress, stream, clock):
    with progress.phase("search", total=100) as phase:
        clock.now += 10
        phase.advance(20)
        clock.now += 15
        progress.beat()
    assert stream.getvalue().splitlines()[0] == "search 20/100 problems | ETA 0:25 | 2 problems/s"


def test_eta_that_has_passed_is_not_repeated(progress, clock):
    with progress.phase("search", total=100) as phase:
        clock.now += 10
        phase.advance(50)
        clock.now += 10
        assert phase.outlook() == "ETA 0:00"
        clock.now += 60
        assert phase.outlook() == "1:20 so far"


def test_what_is_restored_tells_nothing_of_the_speed(progress, stream, clock):
    with progress.phase("search", total=100) as phase:
        phase.advance(60, tokens=9000, solved=15, attempted=60, is_restored=True)
        assert (phase.describe(), phase.outlook()) == (["solved 25.0%"], "0:00 so far")
        clock.now += 10
        phase.advance(20, tokens=400, solved=5, attempted=20)
        clock.now += 5
        progress.beat()
    assert (
        stream.getvalue().splitlines()[0]
        == "search 80/100 problems | ETA 0:05 | 2 problems/s | 40 tokens/s | solved 25.0%"
    )


def test_phase_ends_with_one_line(progress, stream, clock):
    with progress.phase("updates", iteration=1, total=600, unit="updates") as phase:
        for loss in (2.0, 1.25):
            clock.now += 1
            phase.advance(300, loss=loss)
    assert (
        stream.getvalue()
        == "iteration 1/3: updates 600/600 updates | done in 0:02 | 300 updates/s | loss 1.25\n"
    )


def test_interrupted_phase_says_so(progress, stream, clock):
    with pytest.raises(KeyboardInterrupt), progress.phase("search", total=8) as phase:
        clock.now += 70
        phase.advance(2)
        raise KeyboardInterrupt
    assert stream.getvalue() == "search 2/8 problems | stopped in 1:10 | 0.029 problems/s\n"


def test_many_advances_write_one_line_an_interval(progress, stream, clock):
    with progress.phase("search", total=1000) as phase:
        for _ in range(1000):
            clock.now += 0.01
            phase.advance()
            progress.beat()
    assert len(stream.getvalue().splitlines()) == 2 + 1


def test_compilation_is_announced_timed_and_kept_out_of_the_speed(progress, stream, clock):
    with progress.phase("search", total=100) as phase:
        with progress.compiling("search"):
            clock.now += 12.3
            progress.beat()
        clock.now += 5
        phase.advance(50)
        progress.beat()
    lines = stream.getvalue().splitlines()
    assert lines[:3] == [
        "compiling search ...",
        "compiling search ... 0:12",
        "compiled search in 12.3 s",
    ]
    assert lines[3] == "search 50/100 problems | ETA 0:05 | 10 problems/s"


def test_ended_phase_keeps_its_seconds_and_compilation_has_its_own(progress, stream, clock):
    with progress.compiling("policy init"):
        clock.now += 3
    with progress.phase("search", total=100) as phase:
        with progress.compiling("search"):
            clock.now += 12
        clock.now += 5
    clock.now += 100
    assert "done in 0:17" in stream.getvalue(), "who waits waits for both"
    assert (phase.seconds, progress.take_compile_seconds()) == (5, 15)
    assert progress.take_compile_seconds() == 0, "a second is told once"


def test_a_compilation_that_fails_has_taken_its_time(progress, clock):
    with pytest.raises(MemoryError), progress.compiling("search"):
        clock.now += 7
        raise MemoryError
    assert progress.take_compile_seconds() == 7


def test_note_is_written_at_once_and_as_it_is(progress, stream):
    progress.note("resumed from iteration 1 [bold]")
    assert stream.getvalue() == "resumed from iteration 1 [bold]\n"


def test_blocked_loop_is_not_silent(stream):
    """Real time: a phase, a compilation and the time between show lines while the loop does
    nothing.
    """
    with Progress(1, stream, interval=0.02) as progress:
        for wait in (progress.phase("search"), progress.compiling("search")):
            with wait:
                time.sleep(0.1)
        time.sleep(0.1)
    text = stream.getvalue()
    assert text.count("search 0 problems | 0:00 so far") >= 2
    assert text.count("compiling search ... 0:00") >= 2
    assert text.count("working ...") >= 2


def test_closed_progress_writes_no_more(stream, clock):
    progress = Progress(1, stream, interval=0.01, clock=clock)
    progress.close()
    clock.now += 60
    time.sleep(0.05)
    assert stream.getvalue() == ""


def test_reader_that_has_gone_does_not_stop_the_run(clock):
    with Progress(1, Gone(), clock=clock) as progress, progress.phase("search", total=1) as phase:
        progress.note("hello")
        phase.advance()


def test_a_terminal_that_has_gone_does_not_stop_the_run(clock, monkeypatch):
    def refuse(text):
        raise OSError(errno.EIO, text)

    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Progress(1, terminal, clock=clock) as progress:
        monkeypatch.setattr(terminal, "write", refuse)
        with progress.phase("search", total=1) as phase:
            progress.note("hello")
            phase.advance()


def test_terminal_shows_a_bar_and_keeps_the_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    terminal = Terminal()
    with Progress(3, terminal, clock=clock) as progress:
        with progress.phase("search", iteration=2, total=64) as phase:
            clock.now += 4
            phase.advance(32, solved=8, attempted=32)
            progress.beat()
            progress.note("half [way]")
        progress.beat()
    text = terminal.getvalue()
    assert "half [way]" in text
    assert "\u2501" in text  # a piece of rich's bar
    assert (
        "iteration 2/3: search 32/64 problems | done in 0:04 | 8 problems/s | solved 25.0%" in text
    )
    assert "ETA 0:04" in text


def test_a_narrow_terminal_keeps_what_is_done_and_when_it_ends(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    with (
        Progress(3, terminal, clock=clock) as progress,
        progress.phase("search", iteration=2, total=3072) as phase,
    ):
        clock.now += 10
        phase.advance(512, tokens=10**6, solved=64, attempted=512, lanes=83, lane_tokens=100)
        progress.beat()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    bars = [line for line in re.split(r"[\r\n]", shown) if "search 512/3,072 problems" in line]
    assert "ETA 0:50 | 51 problems/s" in bars[0]
    assert len(bars[0]) <= 80
