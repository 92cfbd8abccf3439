"""Flags in, a Config out: what every command shares.

A config is a Python file whose `get_config` returns a ConfigDict; it becomes frozen dataclasses at
once, and nothing else has heard of flags. Whatever is misspelt, missing or of another type is a
UserError of one line that names the key and its neighbours.
"""

from __future__ import annotations

import inspect
import math
import re
import runpy
import traceback
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxtrain.build import Config
from jaxtrain.errors import UserError

EXAMPLE = "--config quickstart"
FLAGS = ("config", "workdir", "plan", "help", "version")
# a link to the checkout's configs/, and a package when installed
CONFIGS = Path(__file__).parent / "configs"


def parse(argv: Sequence[str]) -> tuple[Config, str]:
    """Read the command line, program name first. Returns the config and the run folder.

    Raises UserError.
    """
    try:
        ours = flags.FlagValues()
        ours.set_gnu_getopt(True)
        file = flags.DEFINE_string("config", None, "", flag_values=ours)
        folder = flags.DEFINE_string("workdir", None, "", flag_values=ours)
        rest = ours(list(argv), known_only=True)
    except flags.Error as error:
        raise UserError(f"{error}; --help lists all keys") from error
    if not file.value:
        for argument in rest[1:]:
            check_argument(argument)
        named = [argument for argument in rest[1:2] if not argument.startswith("-")]
        raise UserError(
            f"--config is missing; {f'write --config {named[0]}' if named else f'for a first run: {EXAMPLE}'}"
        )
    config = override(load(file.value), rest[1:])
    stem = Path(file.value.split(":")[0]).stem
    return config, folder.value or f"runs/{stem}/seed_{config.seed}"


def override(value: ConfigDict, arguments: Sequence[str]) -> Config:
    """Apply `--config.section.key=value` arguments to a ConfigDict. Raises UserError."""
    for argument in arguments:
        check_argument(argument)
    argv = ["", *arguments]
    try:
        overrides = flags.FlagValues()
        overrides.set_gnu_getopt(True)
        values = config_flags.DEFINE_config_dict(
            "config", value, flag_values=overrides, sys_argv=argv
        )
        stray = overrides(argv)[1:]
    except flags.Error as error:
        told = re.sub(r"\('Non-boolean .*\)", "must be True or False", str(error))
        raise UserError(f"{told}; --help lists all keys") from error
    if stray:
        raise UserError(
            f"{stray[0]} is no flag; a config file is named by --config, a value set by --config.key=value"
        )
    return read_config(values.value)


def load(file: str) -> ConfigDict:
    """Call `get_config` of a Python file, or of the config of ours that a bare word names.

    What follows a colon in `file` is its argument. Raises UserError.
    """
    path, *argument = file.split(":", 1)
    if re.fullmatch(r"\w+", path):
        path = str(CONFIGS / f"{path}.py")
    if not Path(path).is_file():
        raise UserError(no_such_config(file.split(":")[0], Path(path)))
    try:
        value = runpy.run_path(path).get("get_config", lambda *_: None)(*argument)
    except Exception as error:
        lines = [
            f":{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == "configs":
            hint = "; ours are in jaxtrain.configs"
        if isinstance(error, TypeError) and argument and not lines:  # the call itself
            hint = f"; leave out :{argument[0]}"
        raise UserError(
            f"--config {path}{''.join(lines[-1:])}: {type(error).__name__}: {error}{hint}"
        ) from error
    if not isinstance(value, ConfigDict):
        raise UserError(
            f"--config {path}: has no get_config that returns a ConfigDict; see {CONFIGS / 'quickstart.py'}"
        )
    return value


def no_such_config(name: str, path: Path) -> str:
    """Say what is there instead: files of the folder that was named, nearest first, or configs of
    ours.
    """
    others = nearest(path.name, (other.name for other in path.parent.glob("[!_]*.py")))
    if others and path.parent != CONFIGS:
        return f"--config {name}: no such file; {path.parent} has {', '.join(others)}"
    ours = nearest(path.stem, (other.stem for other in CONFIGS.glob("[!_]*.py")))
    return f"--config {name}: no such config; name a Python file, or one of ours: {', '.join(ours)}"


def read_config(value: ConfigDict, cls: type = Config, section: str = "config") -> Any:
    """Turn a ConfigDict into frozen dataclasses.

    Raises UserError for a key or a value that does not belong.
    """
    hints = typing.get_type_hints(cls)
    for name in value:
        if name not in hints:
            raise UserError(unknown_key(section, name, hints))
    for name in hints:
        if name not in value:
            raise UserError(
                f"--{section}.{name} is missing from the config file; see configs/base.py"
            )
    return cls(
        **{name: read_value(value[name], hint, f"{section}.{name}") for name, hint in hints.items()}
    )


def read_value(value: Any, hint: Any, key: str) -> Any:
    """Check one value of a config against the type of its field. Raises UserError."""
    if isinstance(value, ConfigDict) and hint not in (bool, int, float, str):
        return read_config(value, hint, key)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"--{key}={value!r}: must be of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{key}={value}: must be a finite number")
    return value


def check_argument(argument: str) -> None:
    """Refuse a flag that is neither ours nor a key of the config.

    Raises UserError naming its neighbours.
    """
    match = re.fullmatch(r"--?([a-zA-Z][^=]*)(=.*)?", argument, re.DOTALL)
    if match is None:
        return
    section, *names = re.sub(r"^noconfig\.", "config.", match[1]).split(".")
    if section != "config":
        raise UserError(
            f"--{match[1]} is unknown; flags: {', '.join(f'--{name}' for name in nearest(section, FLAGS))}"
        )
    cls: Any = Config
    for name in names:
        if not is_dataclass(cls):
            raise UserError(f"--{match[1]} is unknown: {section} is a value, not a section")
        hints = typing.get_type_hints(cls)
        if name not in hints:
            raise UserError(unknown_key(section, name, hints))
        section, cls = f"{section}.{name}", hints[name]
    if is_dataclass(cls):
        raise UserError(
            f"--{section} is a section; its keys: {', '.join(f.name for f in fields(cls))}"
        )


def unknown_key(section: str, name: str, known: Iterable[str]) -> str:
    """Name the neighbours of a misspelt key, nearest first."""
    return f"--{section}.{name} is unknown; keys of {section}: {', '.join(nearest(name, known))}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Sort names by likeness to one."""
    return sorted(known, key=lambda other: -SequenceMatcher(None, name, other).ratio())


def list_keys(config: Any, section: str = "config") -> Iterator[str]:
    """Yield a line for every key of a config: its value and the remark at its field."""
    remarks = read_remarks(inspect.getsource(type(config)))
    for name, value in vars(config).items():
        if is_dataclass(value):
            yield from list_keys(value, f"{section}.{name}")
        else:
            value = value if str(value).isprintable() else repr(value)
            yield f"  {f'--{section}.{name}={value}':50}  {remarks.get(name, '')}".rstrip()


def read_remarks(source: str) -> dict[str, str]:
    """Find the remark of every field of a dataclass: behind it, or in the lines above it."""
    remarks, above = {}, []
    for line in source.splitlines():
        comment = re.fullmatch(r"    # (.*)", line)
        field = re.match(r"    (\w+): (.*)", line)
        if field:
            _, mark, behind = field[2].partition("  # ")
            remarks[field[1]] = behind if mark else " ".join(above)
        above = [*above, comment[1]] if comment else []
    return remarks
