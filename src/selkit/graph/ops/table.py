"""The table of supported operators, made from the registry: ``python -m selkit.graph.ops.table``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import selkit.graph.ops as _registered  # noqa: F401 - importing it fills the registry
from selkit.graph.ops.base import Kind, Registration, registrations

LINE = {
    Kind.CONSTANT: "evaluated once",
    Kind.AFFINE: "exact",
    Kind.PIECEWISE_LINEAR: "exact",
    Kind.MAXIMUM: "exact",
    Kind.SMOOTH: "exact where it can be undone, else refined",
    Kind.PRODUCT: "refined",
    Kind.COMPOSITE: "as its parts",
    Kind.STEP: "refused",
}


@dataclass(frozen=True)
class Row:
    """One operator of the table.

    Attributes
    ----------
    name
        Of the ONNX operator; one that ONNX does not define has its domain in front.
    versions
        Schema versions that are covered.
    kind
        What kind of function it is.
    line
        How it is followed along a line.
    what
        What it does, and what is not covered.
    """

    name: str
    versions: tuple[int, ...]
    kind: str
    line: str
    what: str


def supported_operators() -> list[Row]:
    """Return one row for each supported ONNX operator, by name.

    Examples
    --------
    >>> {row.name: row.kind for row in supported_operators()}["MaxPool"]
    'maximum'
    """
    grouped: dict[str, list[Registration]] = {}
    for entry in registrations():
        name = f"{entry.domain}.{entry.name}" if entry.domain else entry.name
        grouped.setdefault(name, []).append(entry)
    return [_row(name, grouped[name]) for name in sorted(grouped)]


def _row(name: str, entries: list[Registration]) -> Row:
    newest = max(entries, key=lambda entry: max(entry.since)).operator
    versions = tuple(sorted(version for entry in entries for version in entry.since))
    summary = " ".join((newest.__doc__ or "").strip().split("\n\n")[0].split())
    limits = "constant inputs only" if newest.LIVE == 0 else ""
    notes = "; ".join(filter(None, (newest.NOTE, limits)))
    what = f"{summary} ({notes})" if notes else summary
    return Row(name, versions, newest.KIND.value, LINE[newest.KIND], what.replace("``", "`"))


def markdown() -> str:
    """The table as Markdown."""
    lines = [
        "| operator | schema versions | kind | along a line | what it does |",
        "|---|---|---|---|---|",
    ]
    for row in supported_operators():
        versions = ", ".join(map(str, row.versions))
        what = row.what.replace("|", "\\|")
        lines.append(f"| {row.name} | {versions} | {row.kind} | {row.line} | {what} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
