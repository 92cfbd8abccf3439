"""The command: `python -m jaxtrain.main --config configs/quickstart.py [--workdir DIR] [--config.section.key=value]`.

Flags become frozen dataclasses at once; nothing below this file has heard of flags. The same command resumes. Whatever
a user can put right ends as one line and exit code 2.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxtrain.build import Config
from jaxtrain.errors import UserError
from jaxtrain.iteration import run_loop
from jaxtrain.progress import Progress
from jaxtrain.tasks import make_task
from jaxtrain.workdir import open_workdir

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config(); then --config.section.key=value", flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string("workdir", None, "run folder; the same command resumes in it", flag_values=FLAGS)


def read_config(value: Any, cls: type = Config, where: str = "config") -> Any:
    """Turn a ConfigDict into frozen dataclasses. Raises UserError for keys that are missing or too many."""
    hints = typing.get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    odd = sorted(names ^ set(value.keys()))
    if odd:
        verb = "is missing" if odd[0] in names else "is unknown"
        raise UserError(f"{where}.{odd[0]} {verb}; keys of {where}: {', '.join(sorted(names))}")
    nested = {
        name: read_config(value[name], hints[name], f"{where}.{name}") if is_dataclass(hints[name]) else value[name]
        for name in names
    }
    return cls(**nested)


def parse(argv: Sequence[str]) -> tuple[Config, Path]:
    """Read the command line. Returns the config and the run folder. Raises UserError in one line."""
    try:
        FLAGS(list(argv), known_only=False)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    except (AttributeError, KeyError) as error:  # a key that the config does not have
        raise UserError(unknown_key(argv, error)) from error
    except (OSError, ImportError) as error:
        raise UserError(f"--config cannot be read ({error}); give a file such as configs/quickstart.py") from error
    if CONFIG.value is None:
        raise UserError("--config is missing; for a first run: --config configs/quickstart.py")
    config = read_config(CONFIG.value)
    stem = Path(str(FLAGS["config"].config_filename).split(":")[0]).stem
    return config, Path(WORKDIR.value or f"runs/{stem}/seed_{config.seed}")


def unknown_key(argv: Sequence[str], error: Exception) -> str:
    """Name a misspelt key with its neighbours."""
    return f"{' '.join(str(error).split())}"


def main(argv: Sequence[str]) -> int:
    """Run; returns the exit code."""
    try:
        config, path = parse(argv)
        task = make_task(config.tasks)
        with open_workdir(path, asdict(config), {}) as workdir, Progress(config.loop.num_iterations) as progress:
            for notice in workdir.notices:
                progress.note(f"changed since the last start: {notice}")
            run_loop(config, task, workdir, progress)
        print(f"done; the report is {workdir.report}")
    except UserError as error:
        print(f"jaxtrain: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
