"""What the linter does not count: the length of files and functions, documentation not counted."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MOST_LINES = 340
MOST_FUNCTION_LINES = 60
LONG: dict[str, str] = {}  # longer ones, each with its reason


def code_lines(text: str) -> int:
    """Lines of code in a file: no docstrings, no comments, no blank lines."""
    silent = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A string that stands alone is documentation: a docstring, or that of an attribute.
        text_alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text_alone and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


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
        assert code_lines(text) <= MOST_LINES
    assert not long_functions(text)


def test_exceptions_are_needed():
    for path in LONG:
        assert code_lines((ROOT / "src" / path).read_text(encoding="utf-8")) > MOST_LINES, path


def test_the_counter_counts_bodies_without_docstrings():
    body = "\n".join("    x = 1" for _ in range(MOST_FUNCTION_LINES))
    doc = '    """' + "text\n" * 50 + '    """\n'
    assert long_functions(f"def f():\n{doc}{body}\n") == []
    assert long_functions(f"def f():\n{doc}{body}\n    x = 2\n") == ["f"]


def test_the_counter_of_files_counts_code():
    text = '"""Text\nof two lines."""\n\nX = 1\n"""What it is."""\n# a comment\ny = """a\nb"""\n'
    assert code_lines(text) == 3
