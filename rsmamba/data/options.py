"""Checks of option values: one line that names the option, its value and what is allowed."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, get_args

from rsmamba.errors import ConfigError


def positive(name: str, value: float | None) -> None:
    """Refuse sizes and counts below 1; None passes, as it stands for a default.

    Raises:
        ConfigError: If the value is less.
    """
    at_least(name, value, 1)


def at_least(name: str, value: float | None, least: float) -> None:
    """Refuse what is less than ``least``, or no number; None passes.

    Raises:
        ConfigError: If the value is less.
    """
    if value is not None and not value >= least:
        raise ConfigError(f"{name}={value} must be at least {least}")


def share(name: str, value: float, *, whole: bool = False) -> None:
    """Refuse what is no share of a whole.

    Args:
        name: Of the option.
        value: Its value.
        whole: Whether 1 is allowed.

    Raises:
        ConfigError: If the value is outside [0, 1), or [0, 1].
    """
    if not (0 <= value < 1 or (whole and value == 1)):
        raise ConfigError(f"{name}={value} must lie in [0, 1{']' if whole else ')'}")


def one_of(name: str, value: Any, known: Any) -> None:
    """Refuse a value that is not among those known.

    Args:
        name: Of the option.
        value: Its value.
        known: A Literal, or a sequence.

    Raises:
        ConfigError: If the value is not known.
    """
    values = get_args(known) or tuple(known)
    if value not in values:
        raise ConfigError(f"{name}={value!r}: expected one of {', '.join(map(repr, values))}")


def finite(name: str, values: Sequence[float]) -> None:
    """Refuse NaN and infinity.

    Raises:
        ConfigError: If a value is either.
    """
    if not all(isfinite(value) for value in values):
        raise ConfigError(f"{name}={list(values)}: all values must be finite numbers")


def distinct(name: str, values: Sequence[str] | None) -> None:
    """Refuse names that occur more than once; None passes.

    Raises:
        ConfigError: If one does.
    """
    if twice := [v for i, v in enumerate(values or ()) if v in list(values or ())[:i]]:
        listed = ", ".join(map(str, values or ()))
        raise ConfigError(f"{name}=[{listed}] has {twice[0]} twice; each must be another one")


def chosen_bands(name: str, indexes: Sequence[int] | None) -> None:
    """Refuse an empty choice of bands, and numbers below 1; None passes, for all of them.

    Raises:
        ConfigError: If the choice is empty, or a number is too low.
    """
    if indexes is not None and (not indexes or not min(indexes) >= 1):
        raise ConfigError(
            f"{name}={list(indexes)}: expected at least one band; bands are counted from 1"
        )
