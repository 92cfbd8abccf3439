"""The errors that a user, not a programmer, is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager


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


def require(is_met: bool, section: str, config: object, name: str, why: str) -> None:
    """Refuse a field of a config, in the same words for every section. Raises UserError."""
    if not is_met:
        raise UserError(f"--config.{section}.{name}={getattr(config, name)}: {why}")


def require_at_least(least: float, section: str, config: object, *names: str) -> None:
    """Refuse fields of a config below a bound; None passes. Raises UserError."""
    for name in names:
        value = getattr(config, name)
        is_met = value is None or value >= least
        require(is_met, section, config, name, f"must be {least} or more")


def require_share(section: str, config: object, *names: str) -> None:
    """Refuse fields of a config outside [0, 1]; None passes. Raises UserError."""
    for name in names:
        value = getattr(config, name)
        is_met = value is None or 0 <= value <= 1
        require(is_met, section, config, name, "must lie between 0 and 1")


def require_one_of(section: str, config: object, **choices: tuple[str, ...]) -> None:
    """Refuse fields of a config that are none of their choices. Raises UserError."""
    for name, known in choices.items():
        is_met = getattr(config, name) in known
        require(is_met, section, config, name, f"must be {' or '.join(known)}")
