"""What the command says, where, and how it ends."""

from __future__ import annotations

import enum
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selkit.errors import SelkitError


class Exit(enum.IntEnum):
    """Exit codes, for pipelines."""

    OK = 0
    WRONG_INPUT = 1
    USAGE = 2
    SOME_FAILED = 3
    CHECK_FAILED = 4
    BUG = 70
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class TerminatedError(BaseException):
    """SIGTERM came; like KeyboardInterrupt, no handler of errors may swallow it."""


@dataclass
class Console:
    """Results go to standard output, everything else to standard error.

    Attributes
    ----------
    quiet
        Only errors on standard error.
    as_json
        One JSON object on standard output, nothing else.
    kept
        What an interrupt leaves, and how to go on.
    """

    quiet: bool = False
    as_json: bool = False
    kept: str = ""

    def say(self, text: str) -> None:
        """Tell a person what happens."""
        if not self.quiet:
            sys.stderr.write(f"{text}\n")

    def complain(self, text: str) -> None:
        """Tell a person what went wrong, in one line."""
        sys.stderr.write(f"selkit: {text}\n")

    def out(self, text: str) -> None:
        """Write a result for people, unless JSON was asked for."""
        if not self.as_json:
            sys.stdout.write(text if text.endswith("\n") else f"{text}\n")

    def result(self, values: Mapping[str, Any]) -> None:
        """Write the result for machines, if it was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(values), allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON knows it: no NaN, no infinity, no numbers of NumPy.

    Examples
    --------
    >>> plain({"a": float("nan"), "b": (1, float("inf"))})
    {'a': None, 'b': [1, 'inf']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "item") and not isinstance(value, str):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else repr(value)
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def one_line(error: BaseException) -> str:
    """An error's text in one line.

    Examples
    --------
    >>> one_line(FileNotFoundError(2, "No such file or directory", "x.npy"))
    'x.npy: No such file or directory'
    """
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, SelkitError):
        return f"{error.filename}: {error.strerror}"
    parts = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    return "; ".join(parts) or type(error).__name__
