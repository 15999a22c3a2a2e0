"""What a run has done so far, one JSON line for each chunk, so that an interrupted run can go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selkit.cli.console import plain
from selkit.errors import FileFormatError, InvalidInputError
from selkit.utils.journal import Journal, Kind

KIND = Kind(
    format="selkit chunks",
    version=2,
    what="",
    foreign="is no file of an interrupted run; move it away",
    other="is of an interrupted run with another score, model or other options; say --restart to forget it",
)
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
        self._journal = Journal(path, KIND, key, self._take)

    def _take(self, place: int, number: int, entry: dict[str, Any]) -> None:
        if not {"start", "mark", "rows"} <= set(entry):
            raise FileFormatError(f"{self.path}, line {number}, is no chunk of an interrupted run")
        self._chunks[entry["start"]] = place, entry["mark"]
        self.rows += len(entry["rows"])

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
        place = self._journal.add(plain({"start": start, "mark": mark, "rows": rows}))
        self._chunks[start] = place, mark
        self.rows += len(rows)

    def all_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all chunks, in their order, read from the file."""
        for start in sorted(self._chunks):
            yield from self._journal.at(self._chunks[start][0])["rows"]

    def close(self) -> None:
        """Close the file and keep it."""
        self._journal.close()

    def remove(self) -> None:
        """Delete the file: the run is finished."""
        self._journal.remove()
