"""Files that are written whole or not at all: under a new name in the same folder, and renamed last."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selkit.utils.checks import as_path

UNFINISHED = ".part"
"""How the name of an unfinished file ends."""

_LONGEST = 180  # of a name in bytes: what is added must stay below the 255 of common file systems


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` only if all goes well.

    What was at ``path`` stays until the new file is complete and on the disk; an exception, a full disk
    or a killed process leaves it as it was, and a process that holds it open keeps reading the old bytes.
    A symbolic link keeps pointing to the same file, and the permissions of an existing file stay. What
    a killed process has left unfinished is removed when the same file is written again.

    Parameters
    ----------
    path
        The file to make or to replace. Devices and pipes are written to directly.

    Yields
    ------
    Path
        An empty file in the same folder; its name ends with :data:`UNFINISHED`, so give a writer that
        guesses from the name an open file or the format.

    Raises
    ------
    InvalidTypeError
        If ``path`` is not a path.
    OSError
        If the folder is missing, the disk is full and so on, as the operating system says.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from selkit.utils.atomic import replacing
    >>> path = Path(tempfile.mkdtemp(), "rows.txt")
    >>> with replacing(path) as new:
    ...     _ = new.write_text("all of it")
    >>> path.read_text(), [file.name for file in path.parent.iterdir()]
    ('all of it', ['rows.txt'])
    """
    target = Path(os.path.realpath(as_path(path, "path")))
    mode = _mode(target)
    if mode is None:
        yield target  # a device or a pipe has no old content to keep
        return
    _sweep(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=_prefix(target), suffix=UNFINISHED)
    os.close(handle)
    unfinished = Path(name)
    try:
        try:
            yield unfinished
        except Exception as error:
            raise _of_system(error, target) from error
        unfinished.chmod(mode)  # mkstemp lets the owner alone read it
        _flush(unfinished)
        unfinished.replace(target)
        _flush(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a whole file at once; see :func:`replacing`."""
    with replacing(path) as new:
        new.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str, errors: str = "strict") -> None:
    """Write a whole UTF-8 file at once, line ends as they are; see :func:`replacing`."""
    write_bytes(path, text.encode("utf-8", errors=errors))


def reserved(path: str | os.PathLike[str], shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A new array in an .npy file, mapped to memory, whose place on the disk is taken at once.

    Writing to a mapped file on a full disk would end the process (SIGBUS).

    Raises
    ------
    OSError
        If the disk has not enough space.
    """
    array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:  # noqa: PTH123 - any path
            size = os.fstat(file.fileno()).st_size
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
    return array


def write_array(path: str | os.PathLike[str], array: npt.NDArray[Any]) -> None:
    """Write an array to an .npy file, whole or not at all; see :func:`replacing`."""
    with replacing(path) as new, new.open("wb") as file:
        np.save(file, array)


def _mode(target: Path) -> int | None:
    """Permissions for the new file; None for what cannot be replaced by a rename."""
    try:
        found = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "No such folder", str(target.parent)) from None
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
    if stat.S_ISDIR(found):
        raise IsADirectoryError(errno.EISDIR, "Is a directory; give a file", str(target))
    if not stat.S_ISREG(found):
        return None
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "Permission denied", str(target))
    return stat.S_IMODE(found)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _stem(target: Path) -> str:
    """The name, or something short that stands for it."""
    encoded = os.fsencode(target.name)
    return target.name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()[:32]


def _prefix(target: Path) -> str:
    return f".{_stem(target)}.{_host()}-{os.getpid()}-"


def _sweep(target: Path) -> None:
    """Remove what processes of this machine that are dead have left of this file."""
    pattern = re.compile(re.escape(f".{_stem(target)}.{_host()}-") + r"(\d+)-\w+" + re.escape(UNFINISHED))
    with os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".")]
    for name in names:
        found = pattern.fullmatch(name)
        if found and not alive(int(found[1])):
            (target.parent / name).unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether a process of this machine with that number runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # of another user, or no number of a process here: nothing to decide about
    return True


def _flush(path: Path) -> None:
    """Ask the operating system to bring a file, or the names in a folder, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # a folder that may be written to but not read: the rename itself is done
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise  # these three: the file system has no such request
    finally:
        os.close(handle)


def _of_system(error: Exception, target: Path) -> Exception:
    """What a library reports of the operating system in its own words, as an ``OSError``."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        return type(error)(error.errno, error.strerror, str(target))  # of a write: it knows no name
    found = re.search(r"os error (\d+)", str(error))
    if isinstance(error, OSError) or found is None:
        return error
    return OSError(int(found[1]), os.strerror(int(found[1])), str(target))
