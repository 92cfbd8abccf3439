"""The errors that a user, not a programmer, is meant to read, and what a config may hold."""

import typing
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, NamedTuple


class UserError(Exception):
    """Say in one line what is wrong, where, and what to do next; exit code 2."""


class Diverged(Exception):
    """Say in one line that training cannot go on; exit code 3, the checkpoints stay."""


@contextmanager
def explained(what: str, then: str = "fetch the model again") -> Iterator[None]:
    """Turn what foreign code raises for input that it cannot read into `what` (why); `then`."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{what} ({told}); {then}") from error


def require(is_met: bool, where: object, told: str) -> None:
    """Refuse an input, in one line: where it is, and what is wrong with it. Raises UserError."""
    if not is_met:
        raise UserError(f"{where}: {told}")


class Bound(NamedTuple):
    """What values of a field are taken, and how that is told; None always is."""

    is_met: Callable[[Any], bool]
    why: str


def at_least(least: float) -> Bound:
    """Take numbers from `least` on that int32 has room for."""
    return Bound(lambda value: least <= value < 2**31, f"must be {least} or more, below 2**31")


def one_of(*choices: str) -> Bound:
    """Take one of the texts."""
    return Bound(choices.__contains__, f"must be {' or '.join(choices)}")


def some_of(choices: Collection[str]) -> Bound:
    """Take a tuple of some of the texts, each once."""
    why = f"must be some of {', '.join(choices)}, each once"
    return Bound(lambda value: 0 < len(value) == len({*value} & {*choices}), why)


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
NotNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, Bound(lambda value: value > 0, "must be above 0")]
Share = Annotated[float, Bound(lambda value: 0 <= value <= 1, "must lie between 0 and 1")]
Part = Annotated[float, Bound(lambda value: 0 <= value < 1, "must be below 1, and 0 or more")]


class Section:
    """A section of the config, a frozen dataclass. It refuses what the types of its fields say, and
    then what its own `check` does. Raises UserError.
    """

    at = ""  # its name below `config`, or the first one of several

    def __init_subclass__(cls, at: str = ""):
        cls.at = at

    def __post_init__(self):
        for name, bound in bounds_of(type(self)):
            value = getattr(self, name)
            self.require(value is None or bound.is_met(value), name, bound.why)
        self.check()

    def check(self) -> None:
        """Refuse what only several fields tell together."""

    def require(self, is_met: bool, name: str, why: str) -> None:
        """Refuse a field, or one of a section below, such as lora.rank. Raises UserError."""
        if not is_met:
            value, keys = attrgetter(name)(self), filter(None, (self.at, name))
            told = ",".join(value) if isinstance(value, tuple) else value
            raise UserError(f"--config.{'.'.join(keys)}={told}: {why}")


@cache
def bounds_of(cls: type[Section]) -> list[tuple[str, Bound]]:
    """List the fields of a section that have a bound, with it."""
    hints = typing.get_type_hints(cls, include_extras=True).items()
    parts = [(name, part) for name, hint in hints for part in (hint, *typing.get_args(hint))]
    return [(name, x) for name, part in parts for x in getattr(part, "__metadata__", ())]
