"""Following a line against plain evaluation at dense points, and bounds against the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roi_networks import Autoencoder, Cam, Unet, export, sharpen
from torch import Tensor, nn

from selkit.graph import Graph, Program
from selkit.inference.bounds import Bounder
from selkit.inference.line import Crossings, Follower, Line, Trace

NETWORKS = {"cam": (Cam, 2), "unet": (Unet, 2), "autoencoder": (Autoencoder, 2)}


class Odd(nn.Module):
    """Overlapping and padded pooling of negatives, several knots, a maximum of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.slope = nn.PReLU(3)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.max_pool2d(self.first(x) - 2.0, 3, stride=1, padding=1)
        h = torch.maximum(self.slope(self.second(h)), h) + nn.functional.hardtanh(self.first(x), -0.5, 0.7)
        return h.amax(1, keepdim=True) - h.amin(1, keepdim=True) + h.abs().sum(1, keepdim=True)


def compiled(name: str, seed: int) -> Program:
    network = {"cam": Cam, "unet": Unet, "autoencoder": Autoencoder, "odd": Odd}[name]
    model = export(sharpen(network(), seed), (1, 1, 8, 8))
    return Graph.load(model).compile({"x": (1, 1, 8, 8)}, decompose=True)


def random_line(seed: int) -> Line:
    return Line(*torch.as_tensor(np.random.default_rng(seed).normal(size=(2, 1, 1, 8, 8))))


def check_trace(trace: Trace, program: Program, line: Line) -> None:
    """Every value between two joined breakpoints lies on the straight line between theirs."""
    output = program.outputs[0]
    value = trace.values[output]
    assert bool((trace.z[1:] >= trace.z[:-1]).all())
    scale = float(value.abs().max())
    for place in (0.0, 0.21, 0.5, 0.83):
        z = torch.lerp(trace.z[:-1], trace.z[1:], place)[trace.joined]
        exact = program.run({"x": line.at(z)})[output]
        chord = torch.lerp(value[:-1], value[1:], place)[trace.joined]
        assert float((exact - chord).abs().max()) < 1e-9 * scale


@pytest.mark.parametrize("name", ["cam", "unet", "autoencoder", "odd"])
@pytest.mark.parametrize("limit", [8, 64, 100_000])
def test_values_are_linear_between_breakpoints(name: str, limit: int) -> None:
    program, line = compiled(name, 0), random_line(1)
    windows = [(-2.0, -1.5), (-0.3, 0.4), (0.4, 1.1), (2.0, 5.0)]
    traces = list(Follower(program, limit).follow(line, windows))
    for trace in traces:
        check_trace(trace, program, line)
    covered = sum(float((trace.z[1:] - trace.z[:-1])[trace.joined].sum()) for trace in traces)
    assert covered == pytest.approx(sum(high - low for low, high in windows))
    if limit == 8:
        assert len(traces) > 4


def test_the_trace_check_fails_on_a_missing_breakpoint() -> None:
    program, line = compiled("cam", 0), random_line(1)
    (trace,) = Follower(program, 100_000).follow(line, [(-2.0, 2.0)])
    keep = torch.tensor([0, len(trace.z) - 1])
    values = {name: value[keep] for name, value in trace.values.items()}
    with pytest.raises(AssertionError):
        check_trace(Trace(trace.z[keep], trace.joined[:1], values), program, line)


@settings(max_examples=40)
@given(st.sampled_from(["cam", "unet", "autoencoder", "odd"]), st.integers(0, 3), st.integers(0, 1000))
def test_bands_contain_every_value(name: str, network: int, seed: int) -> None:
    program, line = compiled(name, network), random_line(seed)
    rng = np.random.default_rng(seed)
    starts = torch.as_tensor(rng.uniform(-4, 4, 6))
    widths = torch.as_tensor(10.0 ** rng.uniform(-3, 0.5, 6))
    windows = torch.stack([starts, starts + widths], 1)
    output = program.outputs[0]
    band = Bounder(program).bound(line, windows)[output]
    scale = 1e-9 * float(band.left.abs().max())
    for place in np.linspace(0, 1, 23):
        exact = program.run({"x": line.at(starts + widths * place)})[output]
        away = exact - torch.lerp(band.left, band.right, float(place))
        assert bool((away <= band.upper + scale).all())
        assert bool((away >= band.lower - scale).all())


def test_bands_are_exact_without_a_breakpoint_and_shrink_with_the_width() -> None:
    program, line = compiled("cam", 0), random_line(2)
    output = program.outputs[0]
    (trace,) = Follower(program, 100_000).follow(line, [(-1.0, 1.0)])
    longest = int(torch.argmax(trace.z[1:] - trace.z[:-1]))
    inside = trace.z[longest : longest + 2].clone()
    inside += torch.tensor([1e-6, -1e-6], dtype=torch.float64)
    assert float(Bounder(program).bound(line, inside[None])[output].radius.max()) < 1e-9
    wide, narrow = (
        Bounder(program).bound(line, torch.tensor([[0.0, width]], dtype=torch.float64))[output].radius.max()
        for width in (1.0, 0.1)
    )
    assert float(narrow) < 0.1 * float(wide)


def test_crossings_are_sorted_and_merged() -> None:
    found = Crossings.of(torch.tensor([2, 0, 0, 0]), torch.tensor([0.5, 0.9, 0.2, 0.2]))
    assert found.pair.tolist() == [0, 0, 2]
    assert found.weight.tolist() == pytest.approx([0.2, 0.9, 0.5])


def test_equal_candidates_do_not_take_turns() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 4] x) => (float[1, 1] y)
        <float[4, 3] w = {1, 1, 1, 1, 1, 1, -1, -1, -1, 0.5, 0.5, 0.5}> {
            h = MatMul(x, w)
            y = ReduceMax <axes = [1], keepdims = 1> (h)
        }"""
    )
    program = Graph.load(model).compile({"x": (1, 4)})
    rng = np.random.default_rng(0)
    line = Line(*torch.as_tensor(rng.normal(size=(2, 1, 4))))
    (trace,) = Follower(program, 64).follow(line, [(-5.0, 5.0)])
    assert len(trace.z) < 6
