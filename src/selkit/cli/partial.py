"""What a run has done so far, one JSON line for each chunk, so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selkit.cli.console import plain
from selkit.errors import FileFormatError, InvalidInputError

FORMAT, VERSION = "selkit chunks", 1
SUFFIX = ".partial"


def partial_path(output: Path) -> Path:
    """Where the unfinished rows of an output are."""
    return output.with_name(output.name + SUFFIX)


class Partial:
    """A file of finished chunks.

    Parameters
    ----------
    path
        The file; made if it does not exist.
    key
        Says what is run. A file of another run is refused.

    Raises
    ------
    FileFormatError
        If the file is something else.
    InvalidInputError
        If it was written by a run with another key.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._chunks: dict[int, tuple[int, str]] = {}  # where a chunk's line is, and its mark
        self.rows = 0
        end = self._read(key) if path.exists() else 0
        self._file = path.open("r+b" if end else "wb")
        self._file.truncate(end)  # half a line of an interrupted run
        self._file.seek(end)
        if not end:
            self._write({"format": FORMAT, "version": VERSION, "key": key})

    def _read(self, key: str) -> int:
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                entry = self._entry(line, number + 1)
                if number == 0:
                    self._check(entry, key)
                else:
                    self._chunks[entry["start"]] = end, entry["mark"]
                    self.rows += len(entry["rows"])
                end += len(line)
        if not end and self.path.stat().st_size > 1000:
            raise FileFormatError(f"{self.path} is no file of an interrupted run; move it away")
        return end

    def _entry(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            whole = number == 1 or {"start", "mark", "rows"} <= set(entry)
        except (ValueError, TypeError) as error:
            raise FileFormatError(f"{self.path}, line {number}, is not JSON: {error}") from error
        if not isinstance(entry, dict) or not whole:
            raise FileFormatError(f"{self.path}, line {number}, is no chunk of an interrupted run")
        return entry

    def _check(self, entry: Mapping[str, Any], key: str) -> None:
        if entry.get("format") != FORMAT or entry.get("version") != VERSION:
            raise FileFormatError(f"{self.path} is no file of an interrupted run; move it away")
        if entry.get("key") != key:
            raise InvalidInputError(
                f"{self.path} is of an interrupted run with another score, model or other options; "
                "say --restart to forget it"
            )

    def has(self, start: int, mark: str) -> bool:
        """Whether a chunk was finished before.

        Raises
        ------
        InvalidInputError
            If the chunk had another content then.
        """
        if start not in self._chunks:
            return False
        if mark != self._chunks[start][1]:
            raise InvalidInputError(
                f"samples from {start} on are not those of the interrupted run in {self.path}; "
                "say --restart to forget it"
            )
        return True

    def add(self, start: int, mark: str, rows: list[dict[str, Any]]) -> None:
        """Write a finished chunk at once."""
        where = self._file.tell()
        self._write({"start": start, "mark": mark, "rows": rows})
        self._chunks[start] = where, mark
        self.rows += len(rows)

    def all_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all chunks, in their order, read from the file."""
        for start in sorted(self._chunks):
            yield from self._rows_at(self._chunks[start][0])

    def _rows_at(self, where: int) -> list[dict[str, Any]]:
        with self.path.open("rb") as file:
            file.seek(where)
            rows: list[dict[str, Any]] = json.loads(file.readline())["rows"]
        return rows

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(plain(entry), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file and keep it."""
        self._file.close()

    def remove(self) -> None:
        """Close and delete the file: the run is finished."""
        self._file.close()
        self.path.unlink(missing_ok=True)
