"""The command as a whole: help, versions, exit codes, errors in one line, signals and pipes."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import selkit as package
from selkit.cli import main, ops
from selkit.cli.app import COMMANDS, build_parser

ROOT = Path(__file__).parents[2]
NAMES = [module.__name__.rpartition(".")[2].replace("roi", "test") for module in COMMANDS]


def test_version_and_module(selkit):
    assert selkit("--version").out == f"selkit {package.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "selkit", "--version"], capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode()) == (0, f"selkit {package.__version__}\n")


def test_the_entry_point_is_main():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, name = declared["selkit"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_help_is_light():
    script = (
        "import sys; from selkit.cli import main; assert main(['test', '--help']) == 0; "
        "heavy = {'torch', 'numpy', 'onnx', 'scipy', 'sklearn', 'tqdm', 'PIL'}; "
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_help_with_examples(selkit, name):
    ended = selkit(name, "--help")
    assert ended.code == 0
    assert f"examples:\n  selkit {name}" in ended.out
    assert name in build_parser().format_help()


@pytest.mark.parametrize("name", NAMES)
def test_examples_parse(name):
    """The help's own examples are command lines that the parser takes."""
    import shlex

    (module,) = [m for m in COMMANDS if m.__name__.endswith(name.replace("test", "roi"))]
    lines = module.EXAMPLES.replace("\\\n", " ").strip().splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])
        assert words[:2] == ["selkit", name]
        assert build_parser().parse_args(words[1:]).command == name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["select"], "the following arguments are required: SCORE.safetensors, INPUTS"),
        (["select", "a", "b", "--chunk", "0"], "'0' is no whole number of at least 1"),
        (["select", "a", "b", "--fail-below-coverage", "2"], "'2' is no number between 0 and 1"),
        (["select", "a", "b", "--resize", "8xx"], "'8xx' is no size such as 64x48"),
        (["select", "a", "b", "--mean", "a,b"], "'a,b' is no list of numbers"),
        (["select", "a", "b", "--std", "inf"], "'inf' has a number that is not finite"),
        (
            ["fit", "a", "-o", "b", "--score", "euclidean"],
            "one of the arguments --coverage --risk --quantile",
        ),
        (
            ["fit", "a", "-o", "b", "--score", "euclidean", "-p", "k", "--quantile", "1"],
            "no setting such as k=5",
        ),
        (["test", "a", "b", "--threshold", "1"], "one of the arguments --var --var-from is required"),
        (
            ["test", "a", "b", "--threshold", "1", "--var", "1", "--post", "blur"],
            "'blur' is none of",
        ),
        (["ops", "m", "--shape", "1,0"], "'1,0' is no shape such as 1,3,64,64"),
    ],
)
def test_a_wrong_command_line_ends_with_2(selkit, arguments, text):
    ended = selkit(*arguments)
    assert ended.code == 2
    assert text in ended.err
    assert ended.out == ""


def test_an_error_is_one_line_and_with_debug_a_traceback(selkit, tmp_path):
    ended = selkit("ops", tmp_path / "missing.onnx")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count("\n") == 1
    assert "missing.onnx does not exist" in ended.complaint
    with pytest.raises(package.errors.FileFormatError):
        main(["ops", str(tmp_path / "missing.onnx"), "--debug"])


def test_an_error_is_json_too_on_request(selkit, tmp_path):
    ended = selkit("ops", tmp_path / "missing.onnx", "--json")
    assert ended.json["error"]["type"] == "FileFormatError"
    assert "does not exist" in ended.json["error"]["message"]


def test_a_fault_of_selkit_says_so(selkit, monkeypatch):
    def faulty(_options: object, _console: object) -> int:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(ops, "run", faulty)
    ended = selkit("ops")
    assert ended.code == 70
    assert "ZeroDivisionError: boom (a fault of selkit" in ended.complaint


def test_a_closed_pipe_is_no_error():
    import os

    with subprocess.Popen(
        [sys.executable, "-u", "-m", "selkit", "ops"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        os.close(process.stdout.fileno())
        process.stdout = None
        _, said = process.communicate()
    assert (process.returncode, said) == (141, b"")


def test_no_traceback_of_onnxruntime(selkit, data, models, tmp_path):
    """Its errors have no common base class, and are recognized all the same."""
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((4, 1, 9, 9), np.float32))
    ended = selkit(
        "fit", images, "--score", "euclidean", "--quantile", "1", "--model", models["classifier"],
        "--layer", "embedding", "-o", tmp_path / "s.safetensors",
    )  # fmt: skip
    assert ended.code == 1
    assert "Got invalid dimensions for input: x" in ended.complaint
