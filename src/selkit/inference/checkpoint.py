"""What was computed so far of many images, one JSON line for each, so that an interrupted run can go on."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from selkit.errors import FileFormatError, InvalidInputError
from selkit.inference.table import COLUMNS, RoiRow
from selkit.utils.fingerprint import fingerprint
from selkit.utils.journal import Journal, Kind

KIND = Kind(
    format="selkit roi table",
    version=2,
    what="checkpoint",
    foreign="is no checkpoint of selkit; give another file",
    other="is of another model, hypothesis, variance or other options; give another file, or delete it",
)

digest = fingerprint


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
        If it was written by a run with another key, or a run that is under way writes to it.
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self._rows: dict[int, tuple[str, RoiRow]] = {}
        self._journal = Journal(path, KIND, key, self._take)
        self.path = self._journal.path

    def _take(self, place: int, number: int, entry: dict[str, Any]) -> None:
        try:
            image = str(entry.pop("image"))
            row = RoiRow(**{name: _number(name, value) for name, value in entry.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"checkpoint, line {number}, is not a row: {error}") from error
        self._rows[row.index] = image, row

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
        self._journal.add({"image": image, **plain})

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


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
