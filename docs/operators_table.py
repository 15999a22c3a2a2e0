"""Writes the table of supported operators from the registry."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from pathlib import Path

import selkit.graph.ops  # noqa: F401 - registers the operators
from selkit.graph.ops.base import Composite, Kind, Operator, Registration, registrations

TABLE = Path(__file__).with_name("operators-table.md")


def describe(operator: type[object]) -> str:
    """First sentence of an operator's docstring, and its attributes."""
    lines = (operator.__doc__ or "").strip().partition("\n\n")[0].split()
    text = " ".join(lines).replace("|", "\\|")
    fields = [f.name for f in dataclasses.fields(operator)] if dataclasses.is_dataclass(operator) else []
    return text + (f" Attributes: {', '.join(f'`{name}`' for name in fields)}." if fields else "")


def explained(operator: type[Operator]) -> str:
    """Whether an explanation goes through an operator."""
    if operator.KIND is Kind.CONSTANT or operator.LIVE == 0:
        return "nothing to explain"
    if operator.pull is not Operator.pull:
        return "yes"
    return "as its parts" if issubclass(operator, Composite) else "no"


def operators_table() -> str:
    """A Markdown table of every registered operator."""

    def name_of(entry: Registration) -> tuple[str, str]:
        return (entry.domain, entry.name)

    lines = ["| operator | kind | explained | since opset versions | |", "|---|---|---|---|---|"]
    for (domain, name), entries in groupby(sorted(registrations(), key=name_of), key=name_of):
        rows = list(entries)
        since = ", ".join(str(v) for v in sorted(v for row in rows for v in row.since))
        kinds = "; ".join(dict.fromkeys(row.operator.KIND.value for row in rows))
        text = " ".join(dict.fromkeys(describe(row.operator) for row in rows))
        rules = "; ".join(dict.fromkeys(explained(row.operator) for row in rows))
        title = f"`{name}`{f' ({domain})' if domain else ''}"
        lines.append(f"| {title} | {kinds} | {rules} | {since} | {text} |")
    return "\n".join(lines) + "\n"


def write() -> None:
    """Write the table, unless it is there as it should be."""
    text = operators_table()
    if not TABLE.exists() or TABLE.read_text(encoding="utf-8") != text:
        TABLE.write_text(text, encoding="utf-8")
