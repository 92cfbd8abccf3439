"""Flags in, a Config out: what every command shares.

A config is a Python file whose `get_config` returns a ConfigDict; it becomes frozen dataclasses at
once, and nothing else has heard of flags. What a key may hold, the type of its field says.
"""

import inspect
import math
import re
import runpy
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from types import NoneType
from typing import Any

from ml_collections import ConfigDict

from jaxtrain.config import Config
from jaxtrain.errors import Section, UserError, require

FLAGS = ("config", "workdir", "plan", "help", "version")
# a link to the checkout's configs/, and a package when installed
CONFIGS = Path(__file__).parent / "configs"
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def parse(argv: Sequence[str]) -> tuple[Config, str]:
    """Read a command line. Returns the config and the run folder. Raises UserError."""
    values = read_flags(argv[1:])
    file, folder = values.pop("config", ""), values.pop("workdir", "")
    require(file != "", "--config", "is missing; for a first run: --config quickstart")
    config = override(load(file), values)
    return config, folder or f"runs/{Path(file.split(':')[0]).stem}/seed_{config.seed}"


def read_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Read `--flag=value` and `--flag value` into a dict of texts by key. Raises UserError."""
    values, rest = {}, iter(arguments)
    for argument in rest:
        name, equals, text = argument.lstrip("-").partition("=")
        told = "--config names a config, --config.key=value sets a value; see jaxtrain --help"
        require(argument.startswith("-"), argument, f"is no flag and no command; {told}")
        if name not in ("config", "workdir"):
            find_key(name)
        if not equals and ((text := next(rest, "--")).startswith("--")):
            raise UserError(f"--{name}: write --{name}=VALUE; --help lists all keys")
        values[name] = text
    return values


def override(values: dict[str, Any], changes: Mapping[str, str]) -> Config:
    """Set keys of a config, `config.section.key` to the text of its value. Raises UserError."""
    for key, text in changes.items():
        (*sections, name), hint = find_key(key)
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = parse_value(text, hint, key)
    return read_config(values)


def find_key(key: str) -> tuple[list[str], Any]:
    """Find a flag such as config.section.key. Returns (its path below `config`, its type)."""
    section, *names = key.split(".")
    if section != "config":
        told = ", ".join(f"--{name}" for name in nearest(section, FLAGS))
        raise UserError(f"--{key} is unknown; flags: {told}")
    cls: Any = Config
    for name in names:
        if not is_dataclass(cls):
            raise UserError(f"--{key} is unknown: {section} is a value, not a section")
        hints = typing.get_type_hints(cls)
        if name not in hints:
            raise UserError(unknown_key(section, name, hints))
        section, cls = f"{section}.{name}", hints[name]
    if is_dataclass(cls):
        told = ", ".join(field.name for field in fields(cls))
        raise UserError(f"--{section} is a section; its keys: {told}")
    return names, cls


def parse_value(text: str, hint: Any, key: str) -> Any:
    """Read the text of a value by its type: `none`, `True`, `3`, `0.5`, `a,b`. Raises UserError."""
    kind, is_optional, is_tuple = kind_of(hint)
    if is_optional and text.lower() == "none":
        return None
    if is_tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        told = f"must be {describe(hint)}; --help lists all keys"
        raise UserError(f"--{key}={text}: {told}") from error


def format_value(value: Any) -> str:
    """Write a value as `parse_value` reads it."""
    if isinstance(value, tuple):
        return ",".join(value)
    text = "none" if value is None else str(value)
    return text if text.isprintable() else repr(text)


def kind_of(hint: Any) -> tuple[Any, bool, bool]:
    """Take int, int | None or tuple[str, ...] apart: (kind, may it be None, is it a tuple)."""
    kinds = typing.get_args(hint)
    return kinds[0] if kinds else hint, NoneType in kinds, typing.get_origin(hint) is tuple


def describe(hint: Any) -> str:
    """Say what a value of a type is."""
    kind, is_optional, is_tuple = kind_of(hint)
    told = "names with commas between" if is_tuple else KINDS[kind]
    return f"{told} or none" if is_optional else told


def load(file: str) -> dict[str, Any]:
    """Call `get_config` of a Python file, or of a config of ours, with what follows a colon."""
    path, *argument = file.split(":", 1)
    if re.fullmatch(r"\w+", path):
        path = str(CONFIGS / f"{path}.py")
    if not Path(path).is_file():
        raise UserError(no_such_config(file.split(":")[0], Path(path)))
    try:
        value = runpy.run_path(path).get("get_config", lambda *_: None)(*argument)
        values = value.to_dict() if isinstance(value, ConfigDict) else None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f":{frame.lineno}" for frame in frames if frame.filename == path]
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == "configs":
            hint = "; ours are in jaxtrain.configs"
        if isinstance(error, TypeError) and argument and not lines:  # the call itself
            hint = f"; leave out :{argument[0]}"
        told = f"{type(error).__name__}: {error}{hint}"
        raise UserError(f"--config {path}{''.join(lines[-1:])}: {told}") from error
    if values is None:
        told = f"has no get_config that returns a ConfigDict; see {CONFIGS / 'quickstart.py'}"
        raise UserError(f"--config {path}: {told}")
    return values


def no_such_config(name: str, path: Path) -> str:
    """Say what is there instead: files of the folder that was named, or configs of ours."""
    others = nearest(path.name, (other.name for other in path.parent.glob("[!_]*.py")))
    if others and path.parent != CONFIGS:
        return f"--config {name}: no such file; {path.parent} has {', '.join(others)}"
    ours = nearest(path.stem, (other.stem for other in CONFIGS.glob("[!_]*.py")))
    return f"--config {name}: no such config; name a Python file, or one of ours: {', '.join(ours)}"


def read_config(
    values: Mapping[str, Any], cls: type[Section] = Config, section: str = "config"
) -> Any:
    """Turn nested dicts into frozen dataclasses. Raises UserError for what does not belong."""
    hints = typing.get_type_hints(cls)
    if unknown := [name for name in values if name not in hints]:
        raise UserError(unknown_key(section, unknown[0], hints))
    if missing := [name for name in hints if name not in values]:
        told = "is missing; a config starts from configs/base.py"
        raise UserError(f"--{section}.{missing[0]} {told}")
    keys = {name: f"{section}.{name}" for name in hints}
    read = {name: read_value(values[name], hints[name], key) for name, key in keys.items()}
    try:
        return cls(**read)
    except UserError as error:  # a class that makes several sections speaks of the first of them
        told = str(error).replace(f"--config.{cls.at}.", f"--{section}.", 1)
        raise UserError(told) from error


def read_value(value: Any, hint: Any, key: str) -> Any:
    """Check one value of a config against the type of its field. Raises UserError."""
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"--{key}={value!r}: is a section, not a value")
        return read_config(value, typing.cast(type, hint), key)
    kind, is_optional, is_tuple = kind_of(hint)
    if value is None and is_optional:
        return None
    if is_tuple and isinstance(value, list | tuple) and all(type(part) is kind for part in value):
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if is_tuple or type(value) is not kind:
        raise UserError(f"--{key}={value!r}: must be {describe(hint)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{key}={value}: must be a finite number")
    return value


def unknown_key(section: str, name: str, known: Iterable[str]) -> str:
    """Name the neighbours of a misspelt key, nearest first."""
    return f"--{section}.{name} is unknown; keys of {section}: {', '.join(nearest(name, known))}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Sort names by likeness to one."""
    return sorted(known, key=lambda other: -SequenceMatcher(None, name, other).ratio())


def list_keys(config: Any, section: str = "config") -> Iterator[str]:
    """Yield a line for every key of a config: its value and the remark at its field."""
    # What a class inherits is remarked where it stands; `object` has no source.
    kinds = reversed(type(config).__mro__[:-1])
    remarks = read_remarks("\n".join(map(inspect.getsource, kinds)))
    for name, value in vars(config).items():
        if is_dataclass(value):
            yield from list_keys(value, f"{section}.{name}")
        else:
            yield f"  {f'--{section}.{name}={format_value(value)}':50}  {remarks[name]}"


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
