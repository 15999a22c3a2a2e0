"""Checks of single arguments: each returns the value in one type, or says what is accepted."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from selkit.errors import InvalidInputError, InvalidTypeError


def given(value: object) -> str:
    """A value as it is shown in a message: short, and without the address of an object."""
    if isinstance(value, np.ndarray) or type(value).__module__.startswith("torch"):
        shape = getattr(value, "shape", None)
        return f"{type(value).__name__} of shape {tuple(shape)}" if shape is not None else str(type(value))
    if value is None or isinstance(value, (str, bytes, bool, int, float, complex, list, tuple, dict, Path)):
        try:
            text = repr(value)
        except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
            text = type(value).__name__
        return text if len(text) <= 80 else text[:77] + "..."
    return f"an object of type {type(value).__name__}"


def number(
    value: object,
    name: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    ends: str = "[]",
    finite: bool = True,
) -> float:
    """A real number in a range.

    Parameters
    ----------
    value
        What the user gave.
    name
        How the argument is called.
    low, high
        The range.
    ends
        ``"[]"`` with both ends, ``"()"`` without, or one of each.
    finite
        Whether infinity is refused; NaN always is.

    Raises
    ------
    InvalidTypeError
        For what is not a real number, booleans included.
    InvalidInputError
        For NaN, infinity and numbers outside of the range.
    """
    if (isinstance(value, np.ndarray) and value.ndim == 0) or (
        type(value).__module__ == "torch" and getattr(value, "ndim", 1) == 0
    ):
        value = value.item()  # type: ignore[attr-defined]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.integer, np.floating)):
        raise InvalidTypeError(f"{name} must be {_range(low, high, ends)}; got {given(value)}")
    try:
        found = float(value)
    except (OverflowError, ValueError):
        found = math.inf
    below = found < low or (found == low and ends[0] == "(")
    above = found > high or (found == high and ends[1] == ")")
    if math.isnan(found) or below or above or (finite and math.isinf(found)):
        raise InvalidInputError(f"{name} must be {_range(low, high, ends)}; got {given(value)}")
    return found


def _range(low: float, high: float, ends: str) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(high):
        return f"a finite number {'above' if ends[0] == '(' else 'of at least'} {low:g}"
    if math.isinf(low):
        return f"a finite number {'below' if ends[1] == ')' else 'of at most'} {high:g}"
    return f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"


def integer(value: object, name: str, low: int | None = None, high: int | None = None) -> int:
    """A whole number in a range, ends included; a float is refused even where it is whole.

    Raises
    ------
    InvalidTypeError
        For another type, booleans included.
    InvalidInputError
        For a number outside of the range.
    """
    what = "a whole number"
    if low is not None:
        what += f" of at least {low}" if high is None else f" from {low} to {high}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise InvalidTypeError(f"{name} must be {what}; got {given(value)}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise InvalidInputError(f"{name} must be {what}; got {given(value)}")
    return int(value)


def seed(value: object, name: str = "seed") -> int:
    """A seed that every generator takes: a whole number from 0 to 2**63 - 1."""
    return integer(value, name, 0, 2**63 - 1)


def boolean(value: object, name: str) -> bool:
    """True or False.

    Raises
    ------
    InvalidTypeError
        For anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidTypeError(f"{name} must be True or False; got {given(value)}")
    return bool(value)


def choice(value: Any, name: str, options: Iterable[Any]) -> Any:
    """One of a few values.

    Raises
    ------
    InvalidInputError
        For anything else, of whatever type.
    """
    options = tuple(options)
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    listed = ", ".join(repr(option) for option in options)
    raise InvalidInputError(f"{name} must be one of {listed}; got {given(value)}")


def text(value: object, name: str) -> str:
    """A string.

    Raises
    ------
    InvalidTypeError
        For anything else.
    """
    if not isinstance(value, str):
        raise InvalidTypeError(f"{name} must be text; got {given(value)}")
    return value


def instance(value: Any, name: str, kinds: type | tuple[type, ...], what: str) -> Any:
    """A value of given types.

    Parameters
    ----------
    what
        What is accepted, in words.

    Raises
    ------
    InvalidTypeError
        For anything else.
    """
    if not isinstance(value, kinds):
        raise InvalidTypeError(f"{name} must be {what}; got {given(value)}")
    return value


def as_path(value: object, name: str = "path") -> Path:
    """A path of a file or folder.

    Raises
    ------
    InvalidTypeError
        For what is neither text nor a path.
    InvalidInputError
        For empty text, or a character that no path can have.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise InvalidTypeError(f"{name} must be a path: text or pathlib.Path; got {given(value)}")
    try:
        found = os.fspath(value)
        raw = os.fsencode(found)
    except (UnicodeError, TypeError) as error:
        raise InvalidInputError(f"{name} is no path: {error}") from error
    if not raw or b"\0" in raw or not isinstance(found, str):
        raise InvalidInputError(f"{name} must be a path without null characters; got {given(value)}")
    return Path(found)
