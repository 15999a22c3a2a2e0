"""Operators that are made of others along a line: values, bounds, and regions against onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from roi_networks import check_truncation, export, run, sharpen
from test_line import check_trace
from torch import Tensor, nn

import selkit
from selkit.graph import Graph, Program
from selkit.graph.ops.base import Kind
from selkit.inference import BackMeanDiff
from selkit.inference.bounds import Bounder
from selkit.inference.line import Follower, Line

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))  # for graph_cases

from graph_cases import Case
from graph_cases_parts import CASES

STRAIGHT = {Kind.AFFINE, Kind.PIECEWISE_LINEAR, Kind.MAXIMUM}


def parts_of(one: Case) -> Program:
    return Graph.load(one.model(max(one.versions()))).compile(one.live, decompose=True)


def rows(*, straight: bool) -> list:
    """Rows with one live input, those that are piecewise linear or the others; a few of each operator."""
    chosen, seen = [], {}
    for one in CASES:
        if set(one.live) != {"x"} or one.op_type == "CastLike":
            continue
        kinds = {step.kind for step in parts_of(one).steps}
        seen[one.op_type] = seen.get(one.op_type, 0) + 1
        if (kinds - {Kind.STEP} <= STRAIGHT) is straight and seen[one.op_type] <= 6:
            chosen.append(pytest.param(one, id=one.node))
    return chosen


def path_of(one: Case, seed: int) -> Line:
    middle, spread = (one.low + one.high) / 2, (one.high - one.low) / 2
    drawn = np.random.default_rng(seed).uniform(-1, 1, (2, *one.live["x"]))
    return Line(torch.as_tensor(middle + 0.4 * spread * drawn[0]), torch.as_tensor(0.15 * spread * drawn[1]))


@pytest.mark.parametrize("one", rows(straight=True))
def test_values_are_linear_between_breakpoints(one: Case) -> None:
    made = parts_of(one)
    program = made.prune(made.outputs[:1])
    for trace in Follower(program, 64).follow(path_of(one, 3), [(-3.0, -1.0), (-0.2, 0.3), (1.0, 3.0)]):
        check_trace(trace, program, path_of(one, 3))


@pytest.mark.parametrize("one", rows(straight=True) + rows(straight=False))
def test_bands_contain_every_value(one: Case) -> None:
    made, line = parts_of(one), path_of(one, 5)
    program = made.prune(made.outputs[:1])
    output = program.outputs[0]
    for width in (0.01, 0.5, 2.0):
        starts = torch.linspace(-3, 1, 5, dtype=torch.float64)
        band = Bounder(program).bound(line, torch.stack([starts, starts + width], 1))[output]
        for place in torch.linspace(0, 1, 21, dtype=torch.float64):
            exact = program.run({"x": line.at(starts + width * place)})[output]
            chord = torch.lerp(band.left, band.right, place)
            assert bool((exact - chord <= band.upper + 1e-9).all())
            assert bool((exact - chord >= band.lower - 1e-9).all())


class Rows(nn.Module):
    """The rows of an image as a sequence."""

    def __init__(self, layer: nn.Module, wide: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(wide, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0])[0])[:, None]


class Largest(nn.Module):
    """The sum of the two largest channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).topk(2, dim=1).values.sum(1, keepdim=True)


class Curved(nn.Module):
    """A map that is read along a fixed grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.last = nn.Conv2d(2, 1, 3, padding=1)
        places = torch.linspace(-0.8, 0.8, 6)
        self.register_buffer(
            "grid", torch.stack(torch.meshgrid(places, places, indexing="ij"), -1)[None] * 0.8
        )

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.grid_sample(torch.relu(self.first(x)), self.grid, align_corners=False)
        return self.last(h)


ATTENTION = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y)
<int64[3] rows = {1, 6, 6}, int64[4] map = {1, 1, 6, 6}>
{
    r = Reshape(x, rows)
    q = MatMul(r, wq)
    k = MatMul(r, wk)
    v = MatMul(r, wv)
    a = Attention<q_num_heads=2, kv_num_heads=1, is_causal=1>(q, k, v)
    o = MatMul(a, wo)
    y = Reshape(o, map)
}"""


def attention() -> onnx.ModelProto:
    model = onnx.parser.parse_model(ATTENTION)
    rng = np.random.default_rng(0)
    for name, shape in (("wq", (6, 8)), ("wk", (6, 4)), ("wv", (6, 4)), ("wo", (8, 6))):
        weight = (rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model


def network(name: str) -> onnx.ModelProto:
    if name == "attention":
        return attention()
    torch.manual_seed(0)
    made = {
        "lstm": lambda: Rows(nn.LSTM(6, 3, bidirectional=True, batch_first=True), 6),
        "gru": lambda: Rows(nn.GRU(6, 3, batch_first=True), 3),
        "rnn": lambda: Rows(nn.RNN(6, 4, nonlinearity="relu", batch_first=True), 4),
        "largest": Largest,
        "curved": Curved,
    }[name]()
    return export(sharpen(made, 1, 1.0), (1, 1, 6, 6))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "largest", "curved", "attention"])
def test_truncation_sets(name: str) -> None:
    model = network(name)
    x = np.random.default_rng(0).normal(size=(1, 1, 6, 6))
    threshold = float(np.quantile(run(model, x), 0.75))
    result = selkit.load(model, BackMeanDiff(threshold)).inference(x, var=1.0)
    assert result.exact == (name in ("rnn", "largest", "curved"))
    assert result.sup_p - result.inf_p < 1e-3
    assert check_truncation(result, model, lambda y, x: y, threshold) > 20


MASKED = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y)
<int64[1] channels = {1}>
{ h = Conv<pads = [1, 1, 1, 1]>(x, w)  m = Where(c, h, low)  y = ReduceMax(m, channels) }"""


@pytest.mark.parametrize("low", [-1e9, -1e30, -np.inf])
def test_what_a_mask_puts_in_place_of_a_value_decides_nothing(low: float) -> None:
    rng = np.random.default_rng(0)
    allowed = rng.random((1, 4, 6, 6)) < 0.7
    allowed[:, 0] = True
    stored = {
        "w": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "c": allowed,
    }
    results = []
    for value in (-100.0, low):
        model = onnx.parser.parse_model(MASKED)
        for name, array in {**stored, "low": np.array(value, np.float32)}.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        x = np.random.default_rng(1).normal(size=(1, 1, 6, 6))
        threshold = float(np.quantile(run(model, x), 0.75))
        results.append(selkit.load(model, BackMeanDiff(threshold)).inference(x, var=1.0))
        assert check_truncation(results[-1], model, lambda y, x: y, threshold) > 20
    small, large = results
    np.testing.assert_allclose(large.truncated_intervals, small.truncated_intervals, rtol=1e-9)
    assert large.p_value == pytest.approx(small.p_value, rel=1e-9)
