"""Shared by the tests of the graph room: the table of cases, and onnxruntime as the oracle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for graph_cases


def run_onnxruntime(model: onnx.ModelProto | bytes, points: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run one point after another; inputs and outputs are stacked."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    count = max((len(value) for value in points.values()), default=1)
    results = [session.run(None, {n: np.asarray(v[k]) for n, v in points.items()}) for k in range(count)]
    names = [output.name for output in session.get_outputs()]
    return {name: np.stack([result[j] for result in results]) for j, name in enumerate(names)}


@pytest.fixture(scope="session")
def onnxruntime_of() -> Callable[..., dict[str, np.ndarray]]:
    return run_onnxruntime
