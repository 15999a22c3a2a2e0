"""ONNX' own test of each operator: every case of an operator that selkit claims passes, or is listed here."""

from __future__ import annotations

import re
import warnings

import numpy as np
import onnx
import pytest
import torch

from selkit.errors import UnsupportedModelError
from selkit.graph import Graph
from selkit.graph.ops import base
from selkit.graph.ops.types import to_tensor

REASONS = {
    r"test_(batchnorm|training_dropout).*": "normalizes by the batch, or drops at random: training",
    r"test_bernoulli.*_expanded": "compares random numbers",
    r"test_maxpool_with_argmax.*": "the Indices output is not offered",
    r"test_reduce_(max|min)_empty_set.*": "a maximum over nothing",
    r"test_mod_.*": "schema version 28, newer than onnxruntime",
    r"test_range_.*": "schema version 27, newer than onnxruntime",
    r"test_resize_downsample_scales_(linear|cubic)_align_corners": "onnxruntime takes the rounded size",
    r"test_(equal_string|identity_(sequence|opt)).*": "strings, sequences and optional values",
    r"test_(de)?quantizelinear_(e4m3fn.*|e5m2|u?int[24]|float4e2m1)": "types that only stored values have",
    r"test_(cast|castlike)_.*(FLOAT8|INT4|INT2|FLOAT4|UINT2|E8M0).*": "number types of quantized models",
}
SKIPPED = re.compile("|".join(f"({pattern})$" for pattern in REASONS))


def collect() -> list:
    """Cases whose nodes all are claimed operators of ONNX' own domain."""
    from onnx.backend.test.loader import load_model_tests

    claimed = {entry.name for entry in base.registrations()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    chosen = []
    for one in cases:
        nodes = one.model.graph.node
        if all(node.op_type in claimed and not node.domain for node in nodes):
            chosen.append(pytest.param(one, id=one.name))
    return chosen


ALL = collect()


def as_tensor(value: np.ndarray | onnx.TensorProto) -> torch.Tensor:
    if isinstance(value, onnx.TensorProto):
        return to_tensor(value)
    return to_tensor(onnx.numpy_helper.from_array(np.asarray(value)))


def element_type(value: np.ndarray | onnx.TensorProto) -> int:
    if isinstance(value, onnx.TensorProto):
        return value.data_type
    return onnx.helper.np_dtype_to_tensor_dtype(value.dtype)


def evaluate(graph: Graph, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run with as many live inputs as the operators allow."""
    real = [name for name, value in values.items() if value.is_floating_point()]
    readers = {name: (node, place) for node in graph.nodes for place, name in enumerate(node.inputs)}
    free = []
    for name in real:
        node, place = readers.get(name, (None, 0))
        if node is None or node.operator.LIVE is None or place < node.operator.LIVE:
            free.append(name)
    for live in (free, free[:1], []):
        fixed = {name: value for name, value in values.items() if name not in live}
        shapes = {name: tuple(values[name].shape) for name in live}
        try:
            made = graph.compile(shapes, live=live, constants=fixed)
        except UnsupportedModelError:
            if not live:
                raise
            continue
        results = made.run({name: values[name].double().unsqueeze(0) for name in made.inputs})
        return {name: value[0] for name, value in results.items()}
    raise AssertionError("unreachable")


@pytest.mark.parametrize("one", [param for param in ALL if not SKIPPED.match(param.id)])
def test_onnx_says_the_same(one):
    graph = Graph.load(one.model)
    names = [value.name for value in one.model.graph.input]
    for inputs, outputs in one.data_sets:
        actual = evaluate(graph, dict(zip(names, map(as_tensor, inputs), strict=True)))
        for spec, output in zip(graph.outputs, outputs, strict=True):
            expected = as_tensor(output)
            result = actual[spec.name].to(expected.dtype)
            assert result.shape == expected.shape
            rtol = {10: 2e-3, 16: 2e-2}.get(element_type(output), one.rtol)
            torch.testing.assert_close(result, expected, rtol=rtol, atol=1e-6, equal_nan=True)


def test_most_cases_are_run():
    run = [param for param in ALL if not SKIPPED.match(param.id)]
    assert len(run) > 1200
    assert len(ALL) - len(run) < len(ALL) / 6  # most of them convert to and from types of a few bits


def test_each_reason_still_excludes_something():
    for pattern in REASONS:
        assert any(re.fullmatch(pattern, param.id) for param in ALL), pattern
