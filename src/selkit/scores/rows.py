"""Rows to search or learn from: a tensor, or a file that is larger than memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.utils.arrays import check_finite

BLOCK = 16384
Transform = Callable[[Tensor], Tensor]


@runtime_checkable
class Rows(Protocol):
    """A matrix that is read a block at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        ...

    def block(self, start: int, stop: int) -> Tensor:
        """Some neighbouring rows."""
        ...

    def take(self, index: Tensor) -> Tensor:
        """Rows by number; the shape of ``index`` and one more axis."""
        ...

    def mapped(self, transform: Transform) -> Rows:
        """The same rows, transformed; those of a file each time they are read."""
        ...


class TensorRows:
    """Rows in memory."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    def block(self, start: int, stop: int) -> Tensor:
        """A view of some neighbouring rows."""
        return self.values[start:stop]

    def take(self, index: Tensor) -> Tensor:
        """Rows by number."""
        flat = self.values.index_select(0, index.flatten().to(self.values.device))
        return flat.view(*index.shape, -1)

    def mapped(self, transform: Transform) -> TensorRows:
        """The transformed rows."""
        return TensorRows(transform(self.values))


class FileRows:
    """Rows of a memory-mapped file, of which only a block is in memory at a time.

    Parameters
    ----------
    array
        A ``numpy.memmap`` of floating numbers, shape ``(N, D)``.
    transform
        Applied to every block that is read.

    Raises
    ------
    InvalidInputError
        For another shape, NaN or infinity.
    InvalidTypeError
        For numbers that are not floating.
    """

    def __init__(self, array: np.memmap[Any, Any], transform: Transform | None = None) -> None:
        self.array, self.transform = array, transform

    @classmethod
    def checked(cls, array: np.memmap[Any, Any], name: str) -> FileRows:
        """The rows, after one pass that looks for NaN and infinity."""
        if array.ndim != 2 or not array.size:
            raise InvalidInputError(f"{name} must have shape (samples, features); got {array.shape}")
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise InvalidTypeError(f"{name} must hold floating numbers; the file has {array.dtype}")
        rows = cls(array)
        for where, block in blocks_of(rows):
            check_finite(block, f"{name}[{where.start}:{where.stop}]")
        return rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns, before the transform."""
        return int(self.array.shape[0]), int(self.array.shape[1])

    def block(self, start: int, stop: int) -> Tensor:
        """Some neighbouring rows, read now."""
        return self._read(slice(start, stop))

    def take(self, index: Tensor) -> Tensor:
        """Rows by number; each is read once."""
        unique, inverse = np.unique(index.cpu().numpy(), return_inverse=True)
        return self._read(unique)[torch.from_numpy(inverse.reshape(index.shape))]

    def mapped(self, transform: Transform) -> FileRows:
        """The same file with one transform more."""
        inner = self.transform
        if inner is None:
            return FileRows(self.array, transform)
        return FileRows(self.array, lambda block: transform(inner(block)))

    def _read(self, which: slice | npt.NDArray[np.int64]) -> Tensor:
        copied = np.array(self.array[which], dtype=_native(self.array.dtype))
        block = torch.from_numpy(copied)
        return block if self.transform is None else self.transform(block)

    def address(self) -> Tensor:
        """Where the file is and what it looks like, as bytes for a ``state_dict``."""
        if self.array.filename is None or not self.array.flags.c_contiguous:
            raise InvalidTypeError("a memory-mapped array can only be saved as a whole file in C order")
        spec = {
            "path": str(self.array.filename),
            "dtype": self.array.dtype.str,
            "shape": list(self.array.shape),
            "offset": int(self.array.offset),
        }
        return torch.from_numpy(np.frombuffer(json.dumps(spec).encode(), dtype=np.uint8).copy())

    @classmethod
    def at(cls, address: Tensor) -> FileRows:
        """Open what :meth:`address` described.

        Raises
        ------
        FileFormatError
            If the file is gone or too short.
        """
        spec = json.loads(address.cpu().numpy().tobytes())
        path = Path(spec["path"])
        try:
            array: np.memmap[Any, Any] = np.memmap(
                path, np.dtype(spec["dtype"]), "r", spec["offset"], tuple(spec["shape"])
            )
        except (OSError, ValueError) as error:
            raise FileFormatError(
                f"the references were in {path}, which cannot be read any more: {error}"
            ) from error
        return cls(array)


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def blocks_of(rows: Tensor | Rows, size: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
    """All rows, a block at a time, with their place."""
    count = rows.shape[0]
    for start in range(0, count, size):
        where = slice(start, min(start + size, count))
        yield where, (rows[where] if isinstance(rows, Tensor) else rows.block(where.start, where.stop))


def as_rows(rows: Tensor | Rows) -> Rows:
    """A tensor as rows."""
    return TensorRows(rows) if isinstance(rows, Tensor) else rows
