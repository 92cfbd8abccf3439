"""The commands, a module each, whose `run(arguments, leaving)` does what was asked for.

`arguments` are without its name. `main` closes `leaving`, an ExitStack, however the process ends,
so a command enters there what must clear the terminal.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxtrain.errors import UserError, explained, require

# transformers would warn that PyTorch is not here, which we have no use for.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

NEWEST = "the checkpoint; the newest one by default"


class Parser(argparse.ArgumentParser):
    """Read the flags of a command on a finished run. Raises UserError."""

    def __init__(
        self,
        description: str | None,
        to: str = "",
        iteration: str = NEWEST,
        needs_run: bool = True,
    ):
        how = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=how, allow_abbrev=False)
        self.add_argument("--workdir", required=needs_run, type=home_path, help="the run folder")
        if iteration:
            self.add_argument("--iteration", type=int, help=iteration)
        if to:
            self.add_argument("--to", required=True, type=home_path, help=to)

    def error(self, message: str) -> NoReturn:
        """Say it as every other mistake is said."""
        raise UserError(f"{message}; --help lists all flags")


def home_path(text: str) -> Path:
    """Read a path; `~` is the home folder, which a shell does not know behind an equals sign."""
    require(text != "", "a path", "is empty")
    with explained(f"{text}: names no folder", "write it out"):
        return Path(text).expanduser()


def page_path(text: str) -> Path:
    """Read the path of a page to write, whose folder must be there."""
    path = home_path(text)
    told = f"there is no folder {path.parent}; make it first"
    require(path.parent.is_dir(), f"--to {path}", told)
    return path


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Return what starts a command again."""
    return shlex.join(
        ["python", "-m", "jaxtrain.main", *([] if name == "run" else [name]), *arguments]
    )
