"""Rows to and from CSV, JSON and JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from selkit.cli.console import plain
from selkit.errors import FileFormatError, InvalidInputError
from selkit.utils.atomic import replacing

FORMATS = (".csv", ".json", ".jsonl")


def check_output(path: Path, suffixes: Sequence[str] = FORMATS) -> None:
    """Refuse, before anything is computed, a file that could not be written at the end.

    Raises
    ------
    InvalidInputError
        If the suffix says nothing.
    OSError
        If the folder is missing or cannot be written to.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise InvalidInputError(f"{path}: the name must end with one of {', '.join(suffixes)}")
    if path.is_dir():
        raise IsADirectoryError(21, "Is a directory; give a file", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "No such folder", str(path.parent))
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(13, "Permission denied", str(path))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to a file whose suffix says the format; an existing file is replaced at the end."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        dump_rows(file, path.suffix.lower(), columns, rows)


def dump_rows(file: IO[str], suffix: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as they come; NaN is an empty cell, or null."""
    if suffix == ".csv":
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
        return
    lines = (json.dumps(plain({name: row.get(name) for name in columns}), allow_nan=False) for row in rows)
    if suffix == ".jsonl":
        file.writelines(f"{line}\n" for line in lines)
        return
    between = "[\n"
    for line in lines:
        file.write(between + line)
        between = ",\n"
    file.write("[]\n" if between == "[\n" else "\n]\n")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return harmless(value) if isinstance(value, str) else str(value)


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula: where it begins like one, an apostrophe comes before.

    A text that begins with apostrophes before such a sign gets one more, so that :func:`read_rows` gives back
    what was written.

    Examples
    --------
    >>> harmless("=1+1.png"), harmless("a.png"), harmless("'=1")
    ("'=1+1.png", 'a.png', "''=1")
    """
    return f"'{text}" if _FORMULA.match(text) else text


_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # full-width signs too: some spreadsheets read them alike


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that :func:`write_rows` wrote.

    Raises
    ------
    FileFormatError
        If it is something else.
    """
    readers: dict[str, Callable[[str], Any]] = {
        ".csv": _read_csv,
        ".json": json.loads,
        ".jsonl": lambda text: [json.loads(line) for line in text.splitlines() if line],
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise FileFormatError(f"{path}: results end with one of {', '.join(FORMATS)}")
    try:
        # some editors put a mark of the encoding before the text
        rows: Any = readers[suffix](path.read_text(encoding="utf-8-sig"))
    except (ValueError, csv.Error, RecursionError) as error:
        raise FileFormatError(f"{path} is not readable as {suffix[1:]}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "index" in row for row in rows):
        raise FileFormatError(f"{path} has no rows with an index; give what select or test has written")
    found: list[dict[str, Any]] = rows
    return found


_TEXT = frozenset({"name", "error", "error_type"})


def _read_csv(text: str) -> list[Any]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    return [{name: _value(name, cell) for name, cell in row.items()} for row in reader]


def _value(name: str, cell: str | None) -> Any:
    if not isinstance(cell, str):
        raise ValueError("a row has too few cells, or too many")
    if name in _TEXT:
        return (cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell) or None
    if cell in ("true", "false", ""):
        return {"true": True, "false": False, "": None}[cell]
    return int(cell) if cell.lstrip("-").isdigit() else float(cell)
