"""What was computed so far of many images, one JSON line for each, so that an interrupted run can go on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy import sparse

from selkit.errors import FileFormatError, InvalidInputError
from selkit.inference.table import COLUMNS, RoiRow

FORMAT, VERSION = "selkit roi table", 1


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digest(*values: object) -> str:
    """Return a hash of what values say: of arrays, models, hypotheses and options.

    Equal values have equal digests in every process. Functions are told apart by name and code, not by what
    they refer to.

    Examples
    --------
    >>> digest(np.arange(3)) == digest(np.arange(3)) != digest(np.arange(4))
    True
    """
    state = hashlib.sha256()
    _feed(state, values)
    return state.hexdigest()[:32]


def _feed(state: _Hash, value: object) -> None:
    """Add a value to a hash, preceded by its type, so that ``(1, "2")`` and ``("1", 2)`` differ."""
    state.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, torch.Tensor):
        _feed(state, value.detach().cpu().numpy())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        state.update(f"{value.dtype.str}{value.shape}".encode())
        state.update(np.ascontiguousarray(value).tobytes())
    else:
        parts = _parts(value)
        if parts is None:
            state.update(repr(value).encode())
        for part in parts or ():
            _feed(state, part)


def _parts(value: object) -> Iterable[object] | None:
    """Return what a value consists of; None where its text says it all."""
    if sparse.issparse(value):
        matrix: Any = sparse.csr_array(value)  # type: ignore[call-overload]
        return matrix.shape, matrix.data, matrix.indices, matrix.indptr
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value)]
    if isinstance(value, torch.nn.Module):  # a score: its text says nothing about what it was fitted on
        value = {"text": repr(value), "threshold": getattr(value, "threshold", None), **value.state_dict()}
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in sorted(value, key=str)]
    if isinstance(value, list | tuple | np.ndarray):
        return list(value)
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if callable(value) and hasattr(value, "__qualname__"):
        code = getattr(value, "__code__", None)
        return value.__module__, value.__qualname__, b"" if code is None else code.co_code
    if type(value).__repr__ is object.__repr__:  # its text would be an address
        return type(value).__qualname__, getattr(value, "__dict__", {})
    return None


class Checkpoint:
    """A file of rows, and the rows that it already has.

    Parameters
    ----------
    path
        The file; made if it does not exist.
    key
        Says what was run: model, hypothesis, variance and options. A file with another key is refused.

    Raises
    ------
    FileFormatError
        If the file is not a checkpoint, or damaged elsewhere than in its last line.
    InvalidInputError
        If it was written by a run with another key.
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self.path = Path(path)
        self._rows: dict[int, tuple[str, RoiRow]] = {}
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise FileFormatError(f"checkpoint {self.path} cannot be read: {error}") from error
        # An interrupted run may have written half a line: only what ends with a line break counts.
        whole = content[: content.rfind(b"\n") + 1]
        if whole:
            self._read(whole.decode("utf-8", errors="replace").splitlines(), key)
        elif content and not json.dumps(self._header(key)).encode().startswith(content):
            raise FileFormatError(f"checkpoint {self.path} is no checkpoint of selkit; give another file")
        self._file = self.path.open("r+b" if content else "wb")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        if not whole:
            self._write(self._header(key))

    @staticmethod
    def _header(key: str) -> dict[str, object]:
        return {"format": FORMAT, "version": VERSION, "key": key}

    def _read(self, lines: list[str], key: str) -> None:
        head = self._parse(lines[0], 1)
        if head.get("format") != FORMAT:
            raise FileFormatError(f"checkpoint {self.path} is no checkpoint of selkit; give another file")
        if head.get("version") != VERSION:
            raise FileFormatError(
                f"checkpoint {self.path} has version {head.get('version')!r}; this selkit reads {VERSION}"
            )
        if head.get("key") != key:
            raise InvalidInputError(
                f"checkpoint {self.path} is of another model, hypothesis, variance or other options; give "
                "another file, or delete it"
            )
        for number, line in enumerate(lines[1:], start=2):
            entry = self._parse(line, number)
            try:
                image = str(entry.pop("image"))
                row = RoiRow(**{name: _number(name, value) for name, value in entry.items()})
            except (KeyError, TypeError, ValueError) as error:
                raise FileFormatError(
                    f"checkpoint {self.path}, line {number}, is not a row: {error}"
                ) from error
            self._rows[row.index] = image, row

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise FileFormatError(f"checkpoint {self.path}, line {number}, is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise FileFormatError(f"checkpoint {self.path}, line {number}, is not a JSON object")
        return entry

    def find(self, index: int, image: str) -> RoiRow | None:
        """Return the row of an image that was tested before, if it was; failed images are tried again.

        Parameters
        ----------
        index, image
            Position and digest of the image.

        Raises
        ------
        InvalidInputError
            If the file has another image at this position.
        """
        known = self._rows.get(index)
        if known is None or known[1].failed:
            return None
        if known[0] != image:
            raise InvalidInputError(
                f"image {index} or its mask is not the one that checkpoint {self.path} has there; give the "
                "images of the first run in the same order, or another file"
            )
        return known[1]

    def add(self, row: RoiRow, image: str) -> None:
        """Write a row to the file at once."""
        values = {name: getattr(row, name) for name in COLUMNS}
        # JSON has no NaN.
        plain = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in values.items()
        }
        self._write({"image": image, **plain})

    def _write(self, entry: Mapping[str, object]) -> None:
        self._file.write(json.dumps(entry, allow_nan=True).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_NUMBERS = frozenset(
    {
        "p_value",
        "inf_p",
        "sup_p",
        "stat",
        "scale",
        "naive_p_value",
        "seconds",
        "score",
        "p_value_unconditioned",
    }
)


def _number(name: str, value: object) -> Any:
    """Return a field's value from its JSON form."""
    if name in _NUMBERS:
        return np.nan if value is None else float(value)  # type: ignore[arg-type]
    return value
