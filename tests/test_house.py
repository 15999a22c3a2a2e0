"""What the linter does not count: the length of files and functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
LONG: dict[str, str] = {}  # longer ones, each with its reason


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def long_functions(text: str) -> list[str]:
    """Names of the functions that are too long."""
    functions = (
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [node.name for node in functions if lines_of(node) > MOST_FUNCTION_LINES]


def name(path: Path) -> str:
    return path.relative_to(ROOT / "src").as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    if name(path) not in LONG:
        assert len(text.splitlines()) <= MOST_LINES
    assert not long_functions(text)


def test_exceptions_are_needed():
    for path in LONG:
        assert len((ROOT / "src" / path).read_text(encoding="utf-8").splitlines()) > MOST_LINES, path


def test_the_counter_counts_bodies_without_docstrings():
    body = "\n".join("    x = 1" for _ in range(MOST_FUNCTION_LINES))
    doc = '    """' + "text\n" * 50 + '    """\n'
    assert long_functions(f"def f():\n{doc}{body}\n") == []
    assert long_functions(f"def f():\n{doc}{body}\n    x = 2\n") == ["f"]
