"""Arguments of the wrong kind are named; what is not theirs to explain passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.utils.boundary import checked_fields, fits, public


@public
def fails(
    x: float = 1.0,
    count: int = 1,
    mode: Literal["a", "b"] = "a",
    path: str | Path = "p",
    parts: Sequence[float] = (),
    loss: Callable[[float], float] | None = None,
    error: BaseException | None = None,
) -> None:
    if error is not None:
        raise error
    raise TypeError("of another library")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"x": "a"}, InvalidTypeError, "x must be a number; got 'a'"),
        ({"x": 10**400}, InvalidInputError, "x must be a number"),
        ({"x": float("nan")}, InvalidInputError, "x must be a finite number; got nan"),
        ({"count": 1.0}, InvalidInputError, r"count must be a whole number; got 1\.0"),
        ({"count": True}, InvalidTypeError, "count must be a whole number; got True"),
        ({"count": 2**63}, InvalidInputError, "count must be a whole number"),
        ({"mode": "c"}, InvalidInputError, "mode must be one of 'a', 'b'; got 'c'"),
        ({"mode": 3}, InvalidTypeError, "mode must be one of 'a', 'b'; got 3"),
        ({"path": 3.5}, InvalidTypeError, r"path must be text or a path; got 3\.5"),
        ({"parts": [1.0, "a"]}, InvalidTypeError, "parts must be a sequence, each a number"),
        ({"loss": 3}, InvalidTypeError, "loss must be a function or None; got 3"),
    ],
)
def test_the_argument_that_does_not_fit_is_named(given, kind, message):
    with pytest.raises(kind, match=message) as caught:
        fails(**given)
    assert isinstance(caught.value.__cause__, TypeError)


def test_what_no_argument_explains_passes():
    with pytest.raises(TypeError, match="of another library"):
        fails(x=2.0)
    with pytest.raises(NotFittedError, match="own"):
        fails(x="a", error=NotFittedError("own"))
    with pytest.raises(FileNotFoundError):
        fails(x="a", error=FileNotFoundError(2, "gone"))
    with pytest.raises(TypeError, match="unexpected keyword"):
        fails(y=1)


def test_messages_have_no_addresses():
    with pytest.raises(InvalidTypeError, match="x must be a number; got an object of type object") as caught:
        fails(x=object())
    assert " at 0x" not in str(caught.value)


def test_fields_of_records_are_checked():
    @checked_fields
    @dataclass(frozen=True)
    class Record:
        size: int = 1
        limit: float | None = None
        table: Mapping[str, float] | None = None

    assert Record(np.int64(3), np.float32(0.5)).size == 3
    assert Record(limit=float("nan")).limit != 0
    with pytest.raises(InvalidTypeError, match="limit must be a number or None; got 'a'"):
        Record(limit="a")


@pytest.mark.parametrize(
    ("value", "annotation", "found"),
    [
        (1, float, True), (np.float32(1), float, True), (True, float, False), (np.array(1.5), float, True),
        ("a", Sequence[str], False), (["a"], Sequence[str], True), (None, int | None, True),
        ({"a": 1.0}, Mapping[str, float], True), ({"a": "b"}, Mapping[str, float], False),
        (True, Literal[1], False), (1, Literal[1], True),
    ],
)  # fmt: skip
def test_what_fits(value, annotation, found):
    assert fits(value, annotation) is found
