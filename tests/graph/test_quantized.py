"""Quantized models: as they are beside onnxruntime, and without their rounding along a line."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import selkit
from selkit.errors import InvalidInputError, NotAvailableError, UnsupportedModelError
from selkit.graph import Graph


def parse(text: str, opset: int = 21) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')


def stored(model: onnx.ModelProto, **values: np.ndarray) -> onnx.ModelProto:
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in values.items())
    return model


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """As the nodes say, without onnxruntime's own fusions of quantized nodes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.stack([session.run(None, {"x": one})[0] for one in x])


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    made = graph.compile({"x": x.shape[1:]})
    return made.run({"x": torch.from_numpy(x).double()})["y"].numpy()


RNG = np.random.default_rng(3)
WEIGHTS = RNG.integers(-60, 60, (4, 1, 3, 3)).astype(np.int8)
LAST = RNG.integers(-60, 60, (1, 4, 3, 3)).astype(np.int8)
SCALES = np.float32([0.01, 0.012, 0.009, 0.011])


def weights_only() -> onnx.ModelProto:
    """Stored weights are integers; nothing else is rounded."""
    return stored(
        parse("""agraph (float[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y) {
            a = DequantizeLinear<axis=0>(w, s)  h = Conv<pads=[1, 1, 1, 1]>(x, a)  r = Relu(h)
            b = DequantizeLinear(v, t, z)  y = Conv<pads=[1, 1, 1, 1]>(r, b) }"""),
        w=WEIGHTS,
        s=SCALES,
        v=LAST,
        t=np.float32(0.02),
        z=np.int8(3),
    )


def static(pad: str = "1, 1, 1, 1") -> onnx.ModelProto:
    """Quantize-dequantize pairs around every convolution, as static quantization writes them."""
    return stored(
        parse(f"""agraph (float[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y) {{
            qx = QuantizeLinear(x, xs, xz)  dx = DequantizeLinear(qx, xs, xz)
            a = DequantizeLinear<axis=0>(w, s)  h = Conv<pads=[{pad}]>(dx, a)  r = Relu(h)
            qr = QuantizeLinear(r, rs, rz)  p = MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(qr)
            dr = DequantizeLinear(p, rs, rz)
            b = DequantizeLinear(v, t)  y = Conv<pads=[1, 1, 1, 1]>(dr, b) }}"""),
        w=WEIGHTS, s=SCALES, v=LAST, t=np.float32(0.02), xs=np.float32(0.02), xz=np.uint8(120),
        rs=np.float32(0.03), rz=np.uint8(0),
    )  # fmt: skip


def dynamic() -> onnx.ModelProto:
    """Integer products with a range that follows the input, as dynamic quantization writes them."""
    return stored(
        parse("""agraph (float[1, 16] x) => (float[1, 3] y) {
            q, s, z = DynamicQuantizeLinear(x)
            i = MatMulInteger(q, w, z, wz)  f = Cast<to=1>(i)  k = Mul(s, ws)  g = Mul(f, k)
            h = Add(g, b)  y = Relu(h) }"""),
        w=RNG.integers(0, 120, (16, 3)).astype(np.uint8), wz=np.uint8(60), ws=np.float32(0.02),
        b=np.float32([0.1, -0.2, 0.3]),
    )  # fmt: skip


def operators() -> onnx.ModelProto:
    """QLinear operators."""
    return stored(
        parse("""agraph (float[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y) {
            q = QuantizeLinear(x, xs, xz)
            h = QLinearConv<pads=[1, 1, 1, 1]>(q, xs, xz, w, s, wz, hs, hz, b)
            d = DequantizeLinear(h, hs, hz)  y = ReduceMax<keepdims=1>(d, axis) }"""),
        w=WEIGHTS, s=SCALES, wz=np.zeros(4, np.int8), xs=np.float32(0.02), xz=np.uint8(120),
        hs=np.float32(0.03),
        hz=np.uint8(10), b=np.int32([100, -200, 300, 0]), axis=np.int64([1]),
    )  # fmt: skip


def test_stored_weights_are_exact_and_leave_no_trace():
    model, x = weights_only(), images(3, 1, 1, 6, 6)
    graph = Graph.load(model)
    np.testing.assert_allclose(run(graph, x), reference(model, x), rtol=1e-5, atol=1e-5)
    steps = graph.compile({"x": (1, 1, 6, 6)}).steps
    assert [type(step.operator).__name__ for step in steps] == ["Conv", "Relu", "Conv"]
    assert graph.notes == ()


def test_p_values_of_a_network_with_quantized_weights_are_those_of_its_real_ones():
    model, x = weights_only(), images(1, 1, 6, 6)
    real = parse("""agraph (float[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y) {
        h = Conv<pads=[1, 1, 1, 1]>(x, a)  r = Relu(h)  y = Conv<pads=[1, 1, 1, 1]>(r, b) }""")
    stored(real, a=WEIGHTS * SCALES.reshape(4, 1, 1, 1), b=(LAST.astype(np.float32) - 3) * np.float32(0.02))
    both = [selkit.load(m, selkit.BackMeanDiff(threshold=0.0)).inference(x, var=1.0) for m in (model, real)]
    assert abs(both[0].p_value - both[1].p_value) < 1e-6


@pytest.mark.parametrize(
    ("make", "shape"), [(static, (1, 1, 6, 6)), (dynamic, (1, 16)), (operators, (1, 1, 6, 6))]
)
def test_rounded_activations_are_run_as_they_are(make, shape):
    model, x = make(), images(20, *shape)
    actual, expected = run(Graph.load(model), x), reference(model, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(run(Graph.load(model, quantization="ignore"), x) - expected).max() > 1e-3


@pytest.mark.parametrize("make", [static, operators])
def test_a_test_of_rounded_activations_is_refused_and_says_what_to_do(make):
    with pytest.raises(NotAvailableError, match=r"QuantizeLinear \(step.*quantization='ignore'"):
        selkit.load(make(), selkit.BackMeanDiff(threshold=0.0)).inference(images(1, 1, 6, 6), var=1.0)


def without_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The oracle: each pair of quantize and dequantize is a Clip to what can be represented."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
    for node in copy.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (float(values[name]) for name in node.input[1:])
            stored(
                copy,
                **{
                    f"{node.output[0]}_lo": np.float32(-zero * scale),
                    f"{node.output[0]}_hi": np.float32((255 - zero) * scale),
                },
            )
            node.op_type = "Clip"
            node.input[1:] = [f"{node.output[0]}_lo", f"{node.output[0]}_hi"]
        elif node.op_type == "DequantizeLinear" and node.input[0] not in values:
            node.op_type = "Identity"
            del node.input[1:]
    return copy


def test_without_rounding_it_is_the_network_with_limits():
    model, x = static(), images(10, 1, 1, 6, 6) * 3
    graph = Graph.load(model, quantization="ignore")
    np.testing.assert_allclose(run(graph, x), reference(without_rounding(model), x), rtol=1e-5, atol=1e-4)
    assert "not rounded" in graph.notes[0]
    assert Graph.load(weights_only(), quantization="ignore").notes == ()


def test_without_rounding_the_truncation_set_is_that_of_a_grid():
    model, x = static(), images(1, 1, 6, 6, seed=5)
    test = selkit.load(model, selkit.BackMeanDiff(threshold=0.0), quantization="ignore")
    result = test.inference(x, var=1.0, inference_mode="exhaustive")
    assert result.exact
    assert "quantization='ignore'" in result.notes[0]
    grid = np.linspace(*result.searched_intervals[0], 4001)[1:-1]
    outputs = reference(without_rounding(model), result.image_at(grid).astype(np.float32))
    same = ((outputs > 0).squeeze() == result.roi).all(axis=(1, 2))
    ends = result.truncated_intervals
    inside = ((grid[:, None] >= ends[:, 0]) & (grid[:, None] <= ends[:, 1])).any(1)
    near = (np.abs(grid[:, None] - ends.ravel()) < 1e-3 * np.ptp(grid)).any(1)
    assert 0 < inside.sum() < len(grid)
    assert (inside == same)[~near].all()


def test_dynamic_quantization_without_rounding_is_the_real_network():
    model, x = dynamic(), images(5, 1, 16)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    real = (values["w"].astype(np.float64) - 60) * np.float64(values["ws"])
    expected = np.maximum(x.astype(np.float64) @ real + values["b"], 0)
    graph = Graph.load(model, quantization="ignore")
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-6)
    made = graph.compile({"x": (1, 16)}, decompose=True)
    assert {step.kind.value for step in made.steps} <= {"affine", "piecewise linear"}


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("quantization", ["keep", "ignore"])
def test_explanations_are_additive(per: str, quantization: str):
    scale, zero = (
        (np.float32([0.02, 0.05, 0.03]), np.uint8([100, 128, 90]))
        if per == "channel"
        else (np.float32(0.02), np.uint8(100))
    )
    model = stored(
        parse("""agraph (float[N, 3] x) => (float[N, 2] y) {
            q = QuantizeLinear<axis=1>(x, s, z)  d = DequantizeLinear<axis=1>(q, s, z)
            b = DequantizeLinear(w, t)  h = MatMul(d, b)  r = Relu(h)
            p = QuantizeLinear(r, t, u)  y = DequantizeLinear(p, t, u) }"""),
        s=scale, z=zero, w=RNG.integers(-60, 60, (3, 2)).astype(np.int8), t=np.float32(0.02), u=np.uint8(5),
    )  # fmt: skip
    x, given = images(20, 3) * 2, images(4, 3, seed=1)
    explainer = selkit.Explainer(model, given, target=1, quantization=quantization)
    result = explainer.explain(x)
    np.testing.assert_allclose(result.additivity_error, 0, atol=2e-4)
    assert explainer.verify(x).output_difference < 1e-5
    if quantization == "keep":
        np.testing.assert_allclose(result.output, reference(model, x[:, None])[:, 0, 1], atol=1e-5)
    else:
        assert "not rounded" in result.notes[0]


def test_a_range_that_follows_the_input_is_explained_without_rounding_only():
    model = dynamic()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    with pytest.raises(UnsupportedModelError, match=r"DynamicQuantizeLinear.*quantization='ignore'"):
        selkit.Explainer(model, images(3, 16), target=0)
    explainer = selkit.Explainer(model, images(3, 16), target=0, quantization="ignore")
    np.testing.assert_allclose(explainer.explain(images(4, 16, seed=1)).additivity_error, 0, atol=1e-4)


@pytest.mark.parametrize(
    "kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2]
)
def test_weights_of_few_bits_are_exact(kind: int):
    numbers = RNG.integers(0 if kind == TensorProto.UINT4 else -7, 8, (4, 6)).astype(np.float32)
    model = parse(
        "agraph (float[2, 4] x) => (float[2, 6] y) { "
        "d = DequantizeLinear<axis=0, block_size=2>(w, s)  y = MatMul(x, d) }"
    )
    scales = RNG.uniform(0.1, 1, (2, 6)).astype(np.float32)
    stored(model, s=scales)
    model.graph.initializer.append(helper.make_tensor("w", kind, numbers.shape, numbers.ravel()))
    x = images(2, 2, 4)
    expected = x.astype(np.float64) @ (numbers * np.repeat(scales, 2, axis=0))
    np.testing.assert_allclose(run(Graph.load(model), x), expected, rtol=1e-6)


def test_four_bit_activations_are_limited_to_four_bits():
    model = parse(
        "agraph (float[2, 4] x) => (float[2, 4] y) { "
        "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"
    )
    stored(model, s=np.float32(0.5))
    model.graph.initializer.append(helper.make_tensor("z", TensorProto.INT4, (), [1]))
    x = images(3, 2, 4) * 5
    expected = (np.clip(np.round(x / 0.5) + 1, -8, 7) - 1) * 0.5
    np.testing.assert_allclose(run(Graph.load(model), x), expected)
    np.testing.assert_allclose(run(Graph.load(model, quantization="ignore"), x), np.clip(x, -4.5, 3))


def test_wrong_arguments_say_what_is_possible():
    with pytest.raises(
        InvalidInputError, match=r"quantization is 'round'; it must be one of \['keep', 'ignore'\]"
    ):
        Graph.load(static(), quantization="round")
    with pytest.raises(InvalidInputError, match="quantization is no argument of method='permutation'"):
        selkit.Explainer(static(), images(2, 1, 6, 6), method="permutation", quantization="ignore")
    model = stored(
        parse(
            "agraph (float[1, 4] x) => (float[1, 4] y) { "
            "q = QuantizeLinear(x, s)  y = DequantizeLinear(q, s) }"
        ),
        s=np.float32(-1),
    )
    with pytest.raises(UnsupportedModelError, match="scale that is not positive"):
        Graph.load(model).compile({"x": (1, 4)})
