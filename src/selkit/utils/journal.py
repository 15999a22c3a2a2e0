"""What was computed so far, one JSON line for each step, so that an interrupted run can go on.

Each line carries a checksum, and the file is locked while a run writes to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from selkit.errors import FileFormatError, InvalidInputError
from selkit.utils.checks import as_path

fcntl: Any = None  # Windows has none
with contextlib.suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

_SYNC = 1.0  # seconds between two requests to bring lines to the disk
_LINE = 2**28  # bytes of a line: longer ones nobody has written
_open: weakref.WeakSet[Journal] = weakref.WeakSet()


class Kind(NamedTuple):
    """What kind of file a journal is, and how its errors speak of it.

    Attributes
    ----------
    format, version
        In its first line.
    what
        How the file is called, such as "checkpoint"; may be empty.
    foreign
        Said of a file that is something else.
    other
        Said of a file of another run, with what to do.
    """

    format: str
    version: int
    what: str
    foreign: str
    other: str


class Journal:
    """A file of finished steps, for one run and one process at a time.

    Parameters
    ----------
    path
        The file; made if it does not exist.
    kind
        What it is.
    key
        Says what is run. A file of another run is refused.
    take
        Called with the place, the number and the content of every line that the file has.

    Raises
    ------
    FileFormatError
        If the file is something else, or damaged elsewhere than in its last line.
    InvalidInputError
        If it was written by a run with another key, or a run that is under way writes to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: Kind,
        key: str,
        take: Callable[[int, int, dict[str, Any]], None],
    ) -> None:
        self.path = as_path(path, kind.what or "path")
        self._kind, self._key = kind, key
        self._name = f"{kind.what} {self.path}".strip()
        self._head = {"format": kind.format, "version": kind.version, "key": key}
        self._handle = locked(self.path, self._name)
        _open.add(self)
        self._synced = time.monotonic()
        try:
            self._end = self._read(take)
            os.ftruncate(self._handle, self._end)
            if not self._end:
                self._line(self._head)
        except BaseException:
            self.close()
            raise

    def _read(self, take: Callable[[int, int, dict[str, Any]], None]) -> int:
        """Read what is there, and return where the last whole line ends."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LINE), b""), start=1):
                if not line.endswith(b"\n"):  # an interrupted run may have written half a line
                    if number == 1 and not _dumps(self._head).startswith(line):
                        raise FileFormatError(f"{self._name} {self._kind.foreign}")
                    break
                entry = self._parse(line, number)
                if number == 1:
                    self._check_head(entry)
                elif entry.pop("check", None) != self._check(entry):
                    raise FileFormatError(
                        f"{self._name}, line {number}, was changed or damaged: its checksum does not fit; "
                        "delete that line, and it is computed again"
                    )
                else:
                    take(end, number, entry)
                end += len(line)
        return end

    def _check_head(self, head: Mapping[str, Any]) -> None:
        kind, version = self._kind, head.get("version")
        if head.get("format") != kind.format:
            raise FileFormatError(f"{self._name} {kind.foreign}")
        if version != kind.version or isinstance(version, (bool, float)):
            raise FileFormatError(
                f"{self._name} has version {version!r}; this selkit reads {kind.version}: finish it with the "
                "selkit that wrote it, or delete it"
            )
        if head.get("key") != self._key:
            raise InvalidInputError(f"{self._name} {kind.other}")

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{self._name}, line {number}, is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise FileFormatError(f"{self._name}, line {number}, is not a JSON object")
        return entry

    def _check(self, entry: Mapping[str, Any]) -> str:
        """A checksum of a step in this run: a line of another file does not fit."""
        return hashlib.sha256(self._key.encode() + _dumps(entry)).hexdigest()[:16]

    def add(self, entry: Mapping[str, Any]) -> int:
        """Write a finished step at once, and return the place of its line."""
        return self._line({**entry, "check": self._check(entry)})

    def _line(self, entry: Mapping[str, Any]) -> int:
        start, rest = self._end, _dumps(entry) + b"\n"
        try:
            os.lseek(self._handle, start, os.SEEK_SET)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, start)  # on a full disk: half a line is none
            if isinstance(error, OSError) and error.filename is None:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            raise
        self._end = os.lseek(self._handle, 0, os.SEEK_CUR)
        if time.monotonic() - self._synced > _SYNC:
            os.fsync(self._handle)
            self._synced = time.monotonic()
        return start

    def at(self, place: int) -> dict[str, Any]:
        """The step whose line starts there."""
        with self.path.open("rb") as file:
            file.seek(place)
            entry = self._parse(file.readline(), 0)
        entry.pop("check", None)
        return entry

    def close(self) -> None:
        """Close the file, keep it, and let others use it."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._handle)
            os.close(self._handle)
        self._handle = -1

    def remove(self) -> None:
        """Delete the file: the run is finished."""
        _unlink(self.path, self._handle)
        self._handle = -1

    def leave(self) -> None:
        """In a forked child: let go of the file, so that the lock ends with the parent."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def locked(path: Path, name: str) -> int:
    """Open a file and lock it; the lock ends with the process, however that ends.

    Raises
    ------
    InvalidInputError
        If another process, or another run in this one, has locked it.
    FileFormatError
        If the file cannot be opened.
    """
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise FileFormatError(f"{name} cannot be opened: {error.strerror}") from error
        try:
            _lock(handle)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise
            raise InvalidInputError(
                f"{name} is in use: another run writes to it; wait until that has ended, or give another file"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        os.close(handle)  # another run has finished and removed it in the meantime


def forget(path: Path) -> None:
    """Delete the file of an interrupted run, if there is one.

    Raises
    ------
    InvalidInputError
        If the run is not interrupted but under way.
    """
    if not path.exists():
        return
    handle = locked(path, str(path))
    _unlink(path, handle)


def _unlink(path: Path, handle: int) -> None:
    if fcntl is None:  # Windows deletes no open file
        os.close(handle)
        path.unlink(missing_ok=True)
        return
    path.unlink(missing_ok=True)  # while it is locked, so that nobody goes on with a finished run
    os.close(handle)


def _dumps(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True).encode()


def _lock(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    msvcrt: Any = importlib.import_module("msvcrt")
    # beyond the end of any file, so that nobody is kept from reading
    os.lseek(handle, 2**40, os.SEEK_SET)
    msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)


def _in_child() -> None:
    for journal in list(_open):
        journal.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
