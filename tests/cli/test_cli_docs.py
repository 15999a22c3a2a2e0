"""docs/cli.md names every command, option and exit code, and no others; its examples are command lines."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from selkit.cli.app import build_parser
from selkit.cli.console import Exit
from selkit.cli.fit import SCORES
from selkit.cli.hypothesis import STEPS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(text: str) -> set[str]:
    """Options in the first column of the tables."""
    cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    return {option for cell in cells for option in OPTION.findall(cell)}


def test_there_is_a_section_for_each_command():
    told = [name for name in sections() if name == name.lower()]
    assert sorted(told) == sorted(commands())


COMMON = named(sections()["Output"]) | named(sections()["Inputs"])


@pytest.mark.parametrize("name", commands())
def test_each_option_is_told_and_each_that_is_told_exists(name):
    known = {option for action in commands()[name]._actions for option in action.option_strings}
    own = named(sections()[name])
    assert own <= known
    assert known - own <= COMMON
    everywhere = named(sections()["Output"])
    assert everywhere <= known


def test_the_check_sees_what_is_missing():
    assert named("| `-o`, `--output` | a |\n| other | `--no` |\n| `--some-thing` | b |") == {
        "-o",
        "--output",
        "--some-thing",
    }


def test_exit_codes_are_those_of_the_command():
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", sections()["Exit codes"], flags=re.MULTILINE)}
    assert told == {int(code) for code in Exit}
    in_help = {
        int(code) for code in re.findall(r"(?<![\w])(\d+) ", build_parser().epilog.partition("example")[0])
    }
    assert told <= in_help


def test_scores_and_steps_are_complete():
    for score in SCORES:
        assert f"`{score}`" in sections()["fit"]
    for step in STEPS:
        assert re.search(rf"`{step}[:`]", sections()["test"])


def examples() -> list[str]:
    found = []
    for path in (ROOT / "docs" / "cli.md", ROOT / "README.md"):
        for body in re.findall(
            r"^```bash\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            lines = body.replace("\\\n", " ").splitlines()
            found += [line.partition(" #")[0].strip() for line in lines if line.startswith("selkit ")]
    return found


@pytest.mark.parametrize("line", examples())
def test_examples_are_command_lines(line):
    words = shlex.split(line)[1:]
    if words[-1] == "--help":
        words.pop()
        assert not words or words[0] in commands()
        return
    assert build_parser().parse_args(words).command == words[0]


def test_there_are_examples_in_both():
    assert len(examples()) > 10
    assert "selkit fit" in (ROOT / "README.md").read_text(encoding="utf-8")
