"""Conditions that together are continuous become one exact step; others stay what they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selkit.graph import Graph
from selkit.graph.ops import Pieces
from selkit.graph.ops.base import Kind
from selkit.graph.piecewise import Curve

NUMBERS = {"zero": 0.0, "one": 1.0, "half": 0.5, "slope": 0.1, "low": -0.5, "six": 6.0}


def graph(body: str, size: int = 9) -> tuple[onnx.ModelProto, Graph]:
    stored = ", ".join(f"float {name} = {{{value}}}" for name, value in NUMBERS.items())
    head = '<ir_version: 8, opset_import: ["" : 20]>'
    text = f"{head} agraph (float[N, {size}] x) => (float[N, {size}] y) <{stored}> {{ {body} }}"
    made = onnx.parser.parse_model(text)
    return made, Graph.load(made)


CONTINUOUS = {
    "leaky": "c = Greater(x, zero)  a = Mul(x, slope)  y = Where(c, x, a)",
    "turned": "c = LessOrEqual(x, zero)  a = Mul(slope, x)  y = Where(c, a, x)",
    "absolute": "s = Sign(x)  y = Mul(x, s)",
    "gate": "c = Greater(x, zero)  m = Cast<to=1>(c)  y = Mul(m, x)",
    "shrink": """g = Greater(x, half)  l = Less(x, low)  p = Sub(x, half)  n = Add(x, half)
        i = Where(l, n, zero)  y = Where(g, p, i)""",
    "relu six": "g = Greater(x, six)  r = Relu(x)  y = Where(g, six, r)",
    "between": """g = GreaterOrEqual(x, low)  l = LessOrEqual(x, half)  b = And(g, l)
        c = Clip(x, low, half)  y = Where(b, x, c)""",
    "outside": "n = Neg(x)  g = Greater(x, n)  o = Not(g)  y = Where(o, n, x)",
    "maximum": "m = Max(x, zero)  d = Div(m, half)  g = Less(d, one)  y = Where(g, d, one)",
    "leaky twice": "l = LeakyRelu<alpha=0.2>(x)  a = Abs(l)  g = Xor(t, f)  y = Where(t, a, l)",
}
CONTINUOUS["leaky twice"] = "l = LeakyRelu<alpha=0.2>(x)  c = Less(l, zero)  n = Neg(l)  y = Where(c, n, l)"


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_choices_are_one_exact_step(name: str, onnxruntime_of):
    model, loaded = graph(CONTINUOUS[name])
    program = loaded.compile({"x": (1, 9)})
    assert [step.kind for step in program.steps] == [Kind.PIECEWISE_LINEAR]
    operator = program.steps[0].operator
    assert isinstance(operator, Pieces)
    points = np.random.default_rng(0).uniform(-8, 8, (40, 1, 9)).astype(np.float32)
    expected = onnxruntime_of(model, {"x": points})["y"]
    np.testing.assert_allclose(
        program.run({"x": torch.from_numpy(points).double()})["y"], expected, atol=1e-6
    )
    assert list(operator.knots()) == sorted(operator.knots())


@pytest.mark.parametrize(
    "body",
    [
        "c = Greater(x, half)  y = Where(c, x, zero)",
        "c = Greater(x, zero)  a = Exp(x)  y = Where(c, x, a)",
        "c = Greater(x, zero)  y = Cast<to=1>(c)",
        "s = Sign(x)  a = Add(x, one)  y = Mul(s, a)",
        "c = Cast<to=7>(x)  d = Cast<to=1>(c)  y = Mul(d, x)",
        "y = Mul(x, x)",
        "a = ReduceMax<keepdims=1>(x)  c = Greater(x, a)  y = Where(c, a, x)",
    ],
)
def test_what_jumps_or_bends_stays(body: str, onnxruntime_of):
    model, loaded = graph(body)
    program = loaded.compile({"x": (1, 9)})
    assert not any(isinstance(step.operator, Pieces) for step in program.steps)
    points = np.random.default_rng(0).uniform(-8, 8, (5, 1, 9)).astype(np.float32)
    expected = onnxruntime_of(model, {"x": points})["y"]
    np.testing.assert_allclose(
        program.run({"x": torch.from_numpy(points).double()})["y"], expected, rtol=1e-5
    )


def test_choices_between_channels_keep_their_shape():
    body = (
        "c = Greater(x, zero)  s = Constant<value_ints=[3, 1, 9]>()  e = Expand(zero, s)  y = Where(c, x, e)"
    )
    _, loaded = graph(body)
    program = loaded.compile({"x": (1, 9)})
    assert program.shapes["y"] == (3, 1, 9)
    assert not any(isinstance(step.operator, Pieces) for step in program.steps)


@st.composite
def expressions(draw: st.DrawFn) -> str:
    """Random elementwise graphs of one value."""
    real, truth, lines = ["x"], [], []
    for k in range(draw(st.integers(2, 9))):
        number = st.sampled_from(list(NUMBERS))
        value = st.sampled_from(real)
        kinds = [
            "Add",
            "Sub",
            "Mul",
            "Neg",
            "Relu",
            "Abs",
            "LeakyRelu",
            "Max",
            "Min",
            "Greater",
            "Less",
            "Sign",
        ]
        if truth:
            kinds += ["Where", "Where", "Where", "Not", "Cast"]
        kind = draw(st.sampled_from(kinds))
        name = f"v{k}"
        if kind in ("Neg", "Relu", "Abs", "LeakyRelu", "Sign"):
            text = f"{kind}({draw(value)})"
        elif kind == "Cast":
            text = f"Cast<to=1>({draw(st.sampled_from(truth))})"
        elif kind == "Not":
            text = f"Not({draw(st.sampled_from(truth))})"
        elif kind == "Where":
            text = f"Where({draw(st.sampled_from(truth))}, {draw(value)}, {draw(value | number)})"
        elif kind == "Mul":
            text = f"Mul({draw(value)}, {draw(number | value)})"
        else:
            text = f"{kind}({draw(value)}, {draw(value | number)})"
        lines.append(f"{name} = {text}")
        (truth if kind in ("Greater", "Less", "Not") else real).append(name)
    return "  ".join(lines) + f"  y = Identity({real[-1]})"


@settings(max_examples=150)
@given(body=expressions())
def test_random_graphs_keep_their_values(body: str):
    _, loaded = graph(body, size=1)
    program = loaded.compile({"x": (1, 1)})
    inner = [node.outputs[0] for node in loaded.nodes]
    plain = step_by_step(loaded, inner)
    grid = torch.linspace(-7.03, 7.01, 501, dtype=torch.float64).reshape(-1, 1, 1)
    torch.testing.assert_close(program.run({"x": grid})["y"], plain(grid), rtol=1e-9, atol=1e-9)
    for step in program.steps:
        if isinstance(step.operator, Pieces):
            fine = torch.linspace(-50, 50, 20001, dtype=torch.float64).reshape(1, -1)
            rise = step.operator.forward(fine)[0].diff().abs().max()
            assert float(rise) <= max(map(abs, step.operator.slopes)) * 0.00501 + 1e-9


def step_by_step(loaded: Graph, names: list[str]):
    """Evaluate every node by itself, so that nothing is joined."""

    def run(x: torch.Tensor) -> torch.Tensor:
        values = {"x": x} | {name: value.double().unsqueeze(0) for name, value in loaded.initializers.items()}
        for node in loaded.nodes:
            result = node.operator.forward(*[values[name] for name in node.inputs])[0]
            values[node.outputs[0]] = result.double() if result.is_floating_point() else result
        return values["y"].expand(len(x), 1, 1)

    return run


def test_curves_know_their_pieces():
    curve = Curve((-1.0, 2.0), ((0.0, -1.0), (1.0, 0.0), (0.0, 2.0)))
    assert curve.continuous()
    assert curve.line(5.0) == (0.0, 2.0)
    assert curve.cut((0.5,)).lines == ((0.0, -1.0), (1.0, 0.0), (1.0, 0.0), (0.0, 2.0))
    assert curve.cut((0.5,)).simplified() == curve
    assert not Curve((0.0,), ((0.0, 0.0), (0.0, 1.0))).continuous()
    made = Pieces(curve.breaks, (0.0, 1.0, 0.0), -1.0)
    x = torch.tensor([-torch.inf, -3.0, 0.0, 2.0, 9.0], dtype=torch.float64)
    assert made.forward(x)[0].tolist() == [-1.0, -1.0, 0.0, 2.0, 2.0]
