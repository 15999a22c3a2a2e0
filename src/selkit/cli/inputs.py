"""Samples from files, a chunk at a time: arrays that stay on disk, and image folders."""

from __future__ import annotations

import hashlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError

Array: TypeAlias = NDArray[Any]

MOST_BYTES = 2**28
"""Of one sample, and of the samples that are read together."""


@dataclass(frozen=True)
class Loaded:
    """The samples of a chunk that could be read, and why the others could not.

    Attributes
    ----------
    values
        Shape ``(n, ...)``, one entry for each position in ``good``.
    good
        Positions within the chunk.
    bad
        Reasons by position.
    """

    values: Array
    good: tuple[int, ...]
    bad: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """Neighbouring samples.

    Attributes
    ----------
    start, size
        Position of the first, and how many there are.
    mark
        A hash of their content.
    load
        Returns them.
    """

    start: int
    size: int
    mark: str
    load: Callable[[], Loaded]


class Samples(Protocol):
    """A known number of samples, read from the first to the last."""

    where: str

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Array]: ...

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All samples, ``size`` at a time."""
        ...

    def name(self, position: int) -> str:
        """What a sample is called; empty for entries of an array."""
        ...


def _hash(values: Array) -> str:
    content = np.ascontiguousarray(values)
    return hashlib.sha256(f"{content.dtype.str}{content.shape}".encode() + content.tobytes()).hexdigest()[:32]


def _array_chunk(start: int, values: Array) -> Chunk:
    return Chunk(
        start, len(values), _hash(values), lambda: Loaded(np.array(values), tuple(range(len(values))))
    )


class ArraySamples:
    """The entries of an array along its first axis; the array may be mapped from a file.

    Parameters
    ----------
    array
        Shape ``(N, ...)``.
    where
        What it was read from, for messages.
    """

    def __init__(self, array: Array, where: str) -> None:
        self.array, self.where = array, where

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, position: int) -> Array:
        return np.array(self.array[position])

    def __iter__(self) -> Iterator[Array]:
        return (self[position] for position in range(len(self)))

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All samples, ``size`` at a time."""
        size = at_once(size, self.array[:1].nbytes)
        for start in range(0, len(self), size):
            yield _array_chunk(start, self.array[start : start + size])

    def name(self, position: int) -> str:
        """Nothing: entries of an array have no names."""
        return ""


class PackedSamples:
    """The entries of an array in an .npz file, decompressed as they are read.

    Parameters
    ----------
    path
        The .npz file.
    member
        Name of the array in it.
    """

    def __init__(self, path: Path, member: str) -> None:
        self.path, self.member = path, member
        self.where = f"{path}:{member}"
        with _readable(self.where), zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{member}.npy")
            with archive.open(info) as file:
                self.shape, fortran, self.dtype = _header(file, self.where)
                _check(self.shape, self.dtype, self.where)
                expected = file.tell() + math.prod(self.shape) * self.dtype.itemsize
            if info.file_size != expected:
                raise FileFormatError(
                    f"{self.where} has {info.file_size} bytes; its header says {expected}: damaged file"
                )
        if fortran and len(self.shape) > 1:
            raise FileFormatError(
                f"{self.where} is stored column by column, which cannot be read sample by sample; save it "
                "with numpy.savez(..., numpy.ascontiguousarray(array))"
            )

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Array]:
        for values in self._read(64):
            yield from values

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All samples, ``size`` at a time."""
        start = 0
        for values in self._read(size):
            yield _array_chunk(start, values)
            start += len(values)

    def name(self, position: int) -> str:
        """Nothing: entries of an array have no names."""
        return ""

    def _read(self, size: int) -> Iterator[Array]:
        each = math.prod(self.shape[1:]) * self.dtype.itemsize
        size = at_once(size, each)
        with (
            _readable(self.where),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.member}.npy") as file,
        ):
            _header(file, self.where)
            for start in range(0, len(self), size):
                rows = min(size, len(self) - start)
                content = file.read(rows * each)
                if len(content) < rows * each:
                    raise FileFormatError(f"{self.where} ends before its last sample: damaged file")
                values = np.frombuffer(content, dtype=self.dtype)
                yield values.reshape(rows, *self.shape[1:])


def at_once(size: int, each: int) -> int:
    """How many samples are read together, so that a chunk does not take more than :data:`MOST_BYTES`."""
    return max(1, min(size, MOST_BYTES // max(each, 1)))


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Say of a damaged archive or header that it is one, in one kind of error."""
    try:
        yield
    except (FileFormatError, InvalidInputError, InvalidTypeError, FileNotFoundError, PermissionError):
        raise
    # what zipfile, zlib and NumPy's reader of headers raise for files that nobody wrote
    except (
        ValueError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, EOFError, OSError,
        RuntimeError, LookupError, ArithmeticError, TypeError, MemoryError,
    ) as error:  # fmt: skip
        raise FileFormatError(f"{where} is damaged: {error}") from error


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array in .npy format; the file is left at its first byte."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"version {version} of the .npy format is not supported")
        return readers[version](file)
    except (
        ValueError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, EOFError,
        RecursionError, TypeError, LookupError, ArithmeticError, MemoryError,
    ) as error:  # fmt: skip
        raise FileFormatError(f"{where} is not an array in .npy format: {error}") from error


def _check(shape: Sequence[int], dtype: np.dtype[Any], where: str) -> None:
    if dtype.hasobject:
        raise FileFormatError(
            f"{where} holds Python objects (pickle), which could run code when they are read; "
            "save an array of numbers"
        )
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise InvalidTypeError(f"{where} has dtype {dtype}; real numbers of at most 64 bits are needed")
    if not shape:
        raise InvalidInputError(f"{where} is a single number; its first axis must be the samples")
    if any(type(side) is not int or side < 0 for side in shape):
        raise FileFormatError(f"{where} is damaged: its header says the shape {tuple(shape)}")
    each = math.prod(shape[1:]) * dtype.itemsize
    if each > MOST_BYTES:
        raise InvalidInputError(
            f"{where} has samples of shape {tuple(shape[1:])}, {each / 2**20:.0f} MiB each; at most "
            f"{MOST_BYTES // 2**20} MiB are read: cut them into tiles, or use selkit from Python"
        )
    if 0 in shape:
        raise InvalidInputError(f"{where} is empty: its shape is {tuple(shape)}")


def split_member(where: str) -> tuple[Path, str | None]:
    """Split ``data.npz:name``.

    Examples
    --------
    >>> split_member("data.npz:train")[1], split_member("data.npy")[1]
    ('train', None)
    """
    head, colon, member = where.rpartition(":")
    if colon and head.lower().endswith(".npz"):
        return Path(head), member
    return Path(where), None


def open_array(where: str) -> ArraySamples | PackedSamples:
    """Open an .npy file, or an array of an .npz file; nothing but the header is read.

    Raises
    ------
    FileFormatError
        If it is another kind of file, damaged, or holds Python objects.
    InvalidInputError
        If an .npz file has several arrays and none is named, or the array is empty.
    """
    path, member = split_member(where)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if path.suffix.lower() == ".npz":
        return PackedSamples(path, _member(path, member))
    with path.open("rb") as file:
        shape, _, dtype = _header(file, where)
    _check(shape, dtype, where)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, ArithmeticError) as error:
        raise FileFormatError(f"{where} is shorter than its header says: damaged file ({error})") from error
    return ArraySamples(array, where)


def _member(path: Path, member: str | None) -> str:
    with _readable(str(path)):
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except zipfile.BadZipFile as error:
            raise FileFormatError(f"{path} is not a readable .npz file: {error}") from error
    if member is None and len(names) == 1:
        return names[0]
    if member is None or member not in names:
        listed = ", ".join(names) or "none"
        what = "say which array" if member is None else f"there is no array {member!r}"
        raise InvalidInputError(f"{path}: {what}, as {path}:NAME; it has: {listed}")
    return member


def read_vector(where: str, name: str, length: int) -> Array:
    """One number for each sample, from an .npy or .npz file, or a text file with one in each line.

    Parameters
    ----------
    where
        The file.
    name, length
        What it is for, and how many numbers are needed.

    Raises
    ------
    FileFormatError
        If it cannot be read.
    InvalidInputError
        If there are not as many numbers as samples.
    """
    if split_member(where)[0].suffix.lower() in (".npy", ".npz"):
        values = np.stack(list(open_array(where)))
    else:
        try:
            values = np.loadtxt(where, ndmin=1, encoding="utf-8-sig")
        except (ValueError, OverflowError, RecursionError) as error:
            raise FileFormatError(
                f"{name}: {where} is no text file with one number in each line: {error}"
            ) from error
    if values.ndim != 1 or len(values) != length:
        raise InvalidInputError(f"{name}: {where} has shape {values.shape}; one number for each of {length}")
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.round(values)).all():
        return values.astype(np.int64)
    return values
