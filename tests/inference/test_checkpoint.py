"""A checkpoint belongs to one run and one process, and a killed run loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import selkit
from selkit.errors import FileFormatError, InvalidInputError
from selkit.inference import inference_batch

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[1, 1, 8] x) => (float[1, 1, 8] y) { y = Relu(x) }"""
TEST = selkit.load(onnx.parser.parse_model(MODEL), selkit.BackMeanDiff(threshold=0.5))
IMAGES = np.random.default_rng(3).normal(size=(6, 1, 8))
SIGMA = 1.0


def constant(value: float) -> Any:
    return lambda x: value


def of_global(x: np.ndarray) -> float:
    return SIGMA


def of_another(x: np.ndarray) -> float:
    return of_global(x)


def with_default(x: np.ndarray, k: float = 1.0) -> float:
    return k


class Noise:
    def __init__(self, var: float) -> None:
        self.var = var

    def __repr__(self) -> str:
        return "Noise"  # says nothing about its variance

    def __call__(self, x: np.ndarray) -> float:
        return self.var

    def of(self, x: np.ndarray) -> float:
        return self.var


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: 1.0, lambda x: 4.0),
        (lambda x: float(np.var(x)), lambda x: float(np.std(x))),
        (constant(1.0), constant(4.0)),
        (with_default, partial(with_default, k=4.0)),
        (partial(with_default, k=1.0), partial(with_default, k=4.0)),
        (Noise(1.0), Noise(4.0)),
        (Noise(1.0).of, Noise(4.0).of),
        ({1: 1.0}.get, {1: 4.0}.get),
        (lambda x: max(1.0 for _ in x), lambda x: max(4.0 for _ in x)),
    ],
    ids=["constant", "name", "closure", "partial", "keyword", "object", "method", "builtin", "inner"],
)
def test_another_function_is_another_run(first: Any, second: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    inference_batch(TEST, IMAGES, first, checkpoint=file)
    before = file.read_bytes()
    with pytest.raises(InvalidInputError, match="is of another model, hypothesis, variance or other"):
        inference_batch(TEST, IMAGES, second, checkpoint=file)
    assert file.read_bytes() == before
    inference_batch(TEST, IMAGES, first, checkpoint=file)
    assert file.read_bytes().count(b"\n") >= before.count(b"\n")


@pytest.mark.parametrize("function", [of_global, of_another])
def test_a_changed_global_is_another_run(function: Any, tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "rows.jsonl"
    inference_batch(TEST, IMAGES, function, checkpoint=file)
    monkeypatch.setattr(sys.modules[__name__], "SIGMA", 4.0)
    with pytest.raises(InvalidInputError, match="is of another model"):
        inference_batch(TEST, IMAGES, function, checkpoint=file)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: float(np.load("noise.npy")), "uses 'load'"),
        (
            lambda x: float(eval("1.0")),  # noqa: S307 - what is refused
            "uses 'eval'",
        ),
        (partial(lambda lock, x: 1.0, threading.Lock()), "of type lock cannot be told"),
    ],
    ids=["file", "text", "lock"],
)
def test_what_cannot_be_pinned_down_is_refused(function: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        inference_batch(TEST, IMAGES, function, checkpoint=tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    whole = inference_batch(TEST, IMAGES, 1.0, checkpoint=file).p_values
    content = file.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(content) - 1, 150):
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        file.write_bytes(bytes(changed))
        try:
            again = inference_batch(TEST, IMAGES, 1.0, checkpoint=file).p_values
        except (FileFormatError, InvalidInputError):
            refused += 1
        else:  # a space, or a row that is computed again
            np.testing.assert_array_equal(again, whole)
    assert refused > 100


def test_a_line_of_another_run_does_not_fit(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file, var in zip(files, (1.0, 4.0), strict=True):
        inference_batch(TEST, IMAGES, var, checkpoint=file)
    (head, *_), (_, *rows) = (file.read_bytes().splitlines(keepends=True) for file in files)
    files[0].write_bytes(head + b"".join(rows))
    with pytest.raises(FileFormatError, match="line 2, was changed or damaged"):
        inference_batch(TEST, IMAGES, 1.0, checkpoint=files[0])


RUN = """
import sys, time
import numpy as np, onnx, selkit
from selkit.inference import inference_batch
test = selkit.load(onnx.parser.parse_model('''%s'''), selkit.BackMeanDiff(threshold=0.5))
images = np.random.default_rng(3).normal(size=(6, 1, 8))
class Slow:
    def __len__(self): return len(images)
    def __getitem__(self, k):
        if k == 3:
            print("at 3", flush=True)
            time.sleep(float(sys.argv[2]))
        return images[k]
table = inference_batch(test, Slow(), 1.0, checkpoint=sys.argv[1])
print(table.n_tested)
"""


def start(file: Path, wait: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN % MODEL, str(file), str(wait)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at 3\n"
    end = time.monotonic() + 30
    while file.read_bytes().count(b"\n") < 3 and time.monotonic() < end:  # joblib reads ahead of the rows
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_keeps_its_rows_and_its_lock_ends(how: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    process = start(file, 60.0)
    try:
        with pytest.raises(InvalidInputError, match="is in use: another run writes to it"):
            inference_batch(TEST, IMAGES, 1.0, checkpoint=file)
    finally:
        os.kill(process.pid, how)
        process.communicate()
    kept = file.read_bytes().count(b"\n") - 1
    assert kept >= 2
    whole = inference_batch(TEST, IMAGES, 1.0)
    again = inference_batch(TEST, IMAGES, 1.0, checkpoint=file)
    np.testing.assert_array_equal(again.p_values, whole.p_values)


def test_a_full_disk_loses_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    limited = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited + RUN % MODEL, str(file), "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert file.read_bytes().endswith(b"\n")
    kept = file.read_bytes().count(b"\n") - 1
    assert kept >= 1
    again = inference_batch(TEST, IMAGES, 1.0, checkpoint=file)
    np.testing.assert_array_equal(again.p_values, inference_batch(TEST, IMAGES, 1.0).p_values)
