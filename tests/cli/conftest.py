"""What the tests of the command share: running it, and small data and models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from selkit.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line of an error."""
        lines = [line for line in self.err.splitlines() if line.startswith("selkit: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def selkit(capsys):
    """Run the command in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "selkit", *map(str, arguments)]


def stop_after(lines: int, partial: Path, number: signal.Signals, *arguments: object) -> Ended:
    """Start the command in a process of its own, and send a signal once its file has some lines."""
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if partial.exists() and partial.read_bytes().count(b"\n") >= lines:
                process.send_signal(number)
                break
            time.sleep(0.005)
        out, err = process.communicate(timeout=60)
    return Ended(process.returncode, out, err)


CLASSIFIER = """
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[N, 1, 6, 6] x) => (float[N, 3] embedding, float[N, 2] logits) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu(a)
        p = GlobalAveragePool(r)
        embedding = Flatten(p)
        logits = Gemm(embedding, h, c)
    }"""

AVERAGE = """
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1, 1, 8, 8] x) => (float[1, 1, 8, 8] y) {
        y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
    }"""


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A small classifier, and a model that averages over windows."""
    folder = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(0)
    classifier = onnx.parser.parse_model(CLASSIFIER)
    shapes = {"w": (3, 1, 3, 3), "b": (3,), "h": (3, 2), "c": (2,)}
    classifier.graph.initializer.extend(
        onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    found = {"classifier": classifier, "average": onnx.parser.parse_model(AVERAGE)}
    for name, model in found.items():
        onnx.save(model, folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in found}


@pytest.fixture
def data(tmp_path) -> dict[str, Path]:
    """References, a calibration set and queries, as files."""
    random = np.random.default_rng(1)
    found = {}
    for name, size in {"train": 60, "calibration": 40, "new": 25}.items():
        found[name] = tmp_path / f"{name}.npy"
        np.save(found[name], random.normal(size=(size, 5)).astype(np.float32))
    return found
