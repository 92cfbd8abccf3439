"""The door: `jaxtrain COMMAND ...`, or `python -m jaxtrain.main COMMAND ...`; see COMMANDS.

`main` alone turns what happens into a line and an exit code. It imports next to nothing, so that
signals are heard from the start: a command, and jax with it, takes seconds to import.
"""

import contextlib
import importlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from jaxtrain import __version__
from jaxtrain.commands import command_line
from jaxtrain.errors import Diverged, UserError
from jaxtrain.files import disk_fault
from jaxtrain.memory import check_address_space, is_exhausted, shrink

COMMANDS = ("run", "plan", "solve", "evaluate", "relabel", "export", "report", "view")
RESUMED = ("run", "evaluate")  # the others begin again


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command. Returns 0; 1 for our error, 2 the user's, 3 diverged, 130 stopped, 141
    if nobody reads what it prints.
    """
    name, *arguments = read_command((sys.argv if argv is None else argv)[1:])
    command = command_line(name, arguments)
    again = f"the same command {'resumes' if name in RESUMED else 'begins again'}: {command}"
    if "--version" in arguments:
        print(f"jaxtrain {__version__}")
        return 0

    # Whatever ends a command is told in one line.
    try:
        check_address_space()
        with contextlib.ExitStack() as leaving, leave_at_signal(again, leaving.close):
            importlib.import_module(f"jaxtrain.commands.{name}").run(arguments, leaving)
            sys.stdout.flush()
    except (UserError, Diverged) as error:
        complain(error)
        return 2 if isinstance(error, UserError) else 3
    except KeyboardInterrupt:
        complain(f"stopped; {again}")
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and has_no_reader():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + signal.SIGPIPE
        kept = "what is finished is kept"
        if told := disk_fault(error):
            then = f"put the disk or the folder right, then start again: {command}"
            complain(f"{told}; {kept}: {then}")
            return 2
        if is_exhausted(error):
            told = str(error).split("\n")[0] or type(error).__name__
            complain(f"out of memory: {told}; lower {shrink()}; --plan says what is needed")
            return 2
        traceback.print_exc()
        complain(f"an unexpected error; {kept}, and {again}")
        return 1
    return 0


def has_no_reader() -> bool:
    """Say whether stdout is a pipe whose reader has seen enough, such as `head`."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def read_command(arguments: Sequence[str]) -> list[str]:
    """Return a command's name, which may be left out or be the flag --plan, and its arguments."""
    if arguments and arguments[0] in COMMANDS:
        return list(arguments)
    name = "plan" if "--plan" in arguments else "run"
    return [name, *(argument for argument in arguments if argument != "--plan")]


@contextlib.contextmanager
def leave_at_signal(again: str, close_fn: Callable[[], None]) -> Iterator[None]:
    """Leave at once on SIGINT or SIGTERM, with one line and exit code 128 + signal.

    `close_fn` clears the terminal; a run may be killed at any instant, so nothing else is to be put
    in order. A Python signal handler would wait for the import or the compiled call under way,
    which may take minutes, and raise in the midst of it; a thread woken through a pipe does not.
    """
    leaving = (signal.SIGINT, signal.SIGTERM)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        while number := os.read(reader, 1):
            if number[0] in leaving:
                try:
                    close_fn()
                    name = signal.Signals(number[0]).name
                    complain(f"stopped by {name}; {again}")
                finally:
                    os._exit(128 + number[0])
        os.close(reader)

    old_handlers = {number: signal.signal(number, lambda *_: None) for number in leaving}
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=wait, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(writer)


def complain(what: object) -> None:
    """Write one line to stderr."""
    print("jaxtrain:", " ".join(str(what).split()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
