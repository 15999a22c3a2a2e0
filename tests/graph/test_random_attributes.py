"""Generated attributes and shapes: what onnxruntime runs, selkit runs with the same result."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from selkit.errors import UnsupportedModelError
from selkit.graph import Graph

many = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
OPSETS = st.sampled_from([11, 13, 18, 19, 22, 26])


@st.composite
def windows(
    draw: st.DrawFn, *, transposed: bool = False, pooled: bool = False
) -> tuple[dict, tuple[int, ...]]:
    """Attributes of windows, and the size of each spatial axis."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = dims) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    attributes: dict = {"kernel_shape": each(1, 4 if dims < 3 else 3)}
    if draw(st.booleans()):
        attributes["strides"] = each(1, 3)
    if draw(st.booleans()):
        attributes["dilations"] = each(1, 2)
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto != "NOTSET":
        attributes["auto_pad"] = auto
    elif draw(st.booleans()):
        attributes["pads"] = each(0, 2, 2 * dims)
    if transposed and "strides" in attributes and draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in attributes["strides"]]
    if pooled:
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    return attributes, tuple(each(3, 9 if dims < 3 else 5))


def compare(node: onnx.NodeProto, x: np.ndarray, opset: int, **stored: np.ndarray) -> None:
    """Run both; what onnxruntime refuses is no example."""
    graph = helper.make_graph(
        [node],
        "generated",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape[1:])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        expected = np.stack([session.run(None, {"x": point})[0] for point in x])
    except Exception:  # noqa: BLE001 - its exceptions have no common base
        assume(False)
        return
    assume(0 not in expected.shape)
    try:
        program = Graph.load(model).compile({"x": x.shape[1:]})
    except UnsupportedModelError as error:
        # onnxruntime rounds towards zero and makes a window of what is none; the rest differs from ONNX
        assert re.search("does not fit|with strides beyond the kernel", str(error))  # noqa: PT017
        assume(False)
    for dtype, tolerance in ((torch.float64, 3e-5), (torch.float32, 2e-4)):
        actual = program.to(dtype).run({"x": torch.from_numpy(x).to(dtype)})["y"].numpy()
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@many
@given(placed=windows(), groups=st.integers(1, 3), bias=st.booleans(), opset=OPSETS)
def test_convolutions(placed, groups: int, bias: bool, opset: int):
    attributes, grid = placed
    node = helper.make_node("Conv", ["x", "w", *["b"] * bias], ["y"], group=groups, **attributes)
    stored = {"w": numbers(2 * groups, 2, *attributes["kernel_shape"])} | (
        {"b": numbers(2 * groups)} if bias else {}
    )
    compare(node, numbers(3, 2, 2 * groups, *grid), opset, **stored)


@many
@given(placed=windows(transposed=True), groups=st.integers(1, 2), opset=OPSETS)
def test_transposed_convolutions(placed, groups: int, opset: int):
    attributes, grid = placed
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=groups, **attributes)
    weights = numbers(2 * groups, 3, *attributes["kernel_shape"])
    compare(node, numbers(2, 2, 2 * groups, *grid), opset, w=weights, b=numbers(3 * groups))


@many
@given(placed=windows(pooled=True), opset=OPSETS)
def test_maximum_pooling_of_negative_numbers(placed, opset: int):
    attributes, grid = placed
    assume("SAME" not in attributes.get("auto_pad", "") or 2 not in attributes.get("dilations", ()))
    x = -np.abs(numbers(3, 2, 2, *grid)) - 1
    compare(helper.make_node("MaxPool", ["x"], ["y"], **attributes), x, opset)


@many
@given(placed=windows(pooled=True), padding_counts=st.integers(0, 1), opset=OPSETS)
def test_average_pooling(placed, padding_counts: int, opset: int):
    attributes, grid = placed
    if opset < 19:
        attributes.pop("dilations", None)
        # onnxruntime's own older kernels divide by the elements that rounding up adds
        assume(not (padding_counts and attributes["ceil_mode"]))
    assume("SAME" not in attributes.get("auto_pad", "") or 2 not in attributes.get("dilations", ()))
    node = helper.make_node("AveragePool", ["x"], ["y"], count_include_pad=padding_counts, **attributes)
    compare(node, numbers(3, 2, 2, *grid), opset)


@many
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    coordinates=st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]),
    nearest=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    outside=st.booleans(),
    antialias=st.booleans(),
    size=st.tuples(st.integers(2, 60), st.integers(2, 12)),
    scale=st.tuples(st.floats(0.3, 3.5), st.floats(0.3, 3.5)),
    by_size=st.booleans(),
)
def test_resampling(mode, coordinates, nearest, outside, antialias, size, scale, by_size):
    options = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        options["nearest_mode"] = nearest
    if mode == "cubic":
        options["exclude_outside"] = int(outside)
    assume(not antialias or (mode != "nearest" and coordinates != "align_corners"))
    if antialias:
        options["antialias"] = 1
    if by_size:
        target = np.array(
            [1, 2, *(max(1, int(n * s)) for n, s in zip(size, scale, strict=True))], dtype=np.int64
        )
        node, stored = helper.make_node("Resize", ["x", "", "", "n"], ["y"], **options), {"n": target}
    else:
        factors = np.array([1, 1, *scale], dtype=np.float32)
        node, stored = helper.make_node("Resize", ["x", "", "s"], ["y"], **options), {"s": factors}
    compare(node, numbers(2, 1, 2, *size), 19, **stored)


@many
@given(data=st.data(), opset=st.sampled_from([10, 11, 13, 26]))
def test_slices(data, opset: int):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    limits = st.integers(-7, 7) | st.sampled_from([2**31 - 1, -(2**31), 2**63 - 1, -(2**63)])
    starts, ends = [data.draw(limits) for _ in axes], [data.draw(limits) for _ in axes]
    steps = [data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3])) for _ in axes]
    named = {
        name: np.array(values, dtype=np.int64)
        for name, values in (("a", starts), ("b", ends), ("c", axes), ("d", steps))
    }
    compare(helper.make_node("Slice", ["x", *named], ["y"]), numbers(2, *shape), opset, **named)


@many
@given(data=st.data(), mode=st.sampled_from(["constant", "edge", "reflect", "wrap"]))
def test_padding(data, mode: str):
    """Negative pads cut; what is left is repeated."""
    shape = data.draw(st.lists(st.integers(4, 6), min_size=1, max_size=3))
    pads = [data.draw(st.integers(-2, 3)) for _ in range(2 * len(shape))]
    kept = [n + min(a, 0) + min(b, 0) for n, a, b in zip(shape, pads, pads[len(shape) :], strict=False)]
    # onnxruntime reads beyond what is left
    longest = zip(kept, pads, pads[len(shape) :], strict=False)
    assume(mode == "constant" or all(n > max(a, b, 0) for n, a, b in longest))
    compare(helper.make_node("Pad", ["x", "p"], ["y"], mode=mode), numbers(2, *shape), 19, p=np.array(pads))


@many
@given(
    data=st.data(), name=st.sampled_from(["Sum", "Mean", "Max", "Min", "L1", "L2", "LogSumExp", "SumSquare"])
)
def test_reductions(data, name: str):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), max_size=len(shape), unique=True))
    axes = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    options = {"keepdims": data.draw(st.integers(0, 1)), "noop_with_empty_axes": data.draw(st.integers(0, 1))}
    node = helper.make_node(f"Reduce{name}", ["x", "a"], ["y"], **options)
    compare(node, numbers(2, *shape), 18, a=np.array(axes, dtype=np.int64))


@many
@given(data=st.data(), name=st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Pow"]))
def test_broadcasting(data, name: str):
    full = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))

    def part() -> list[int]:
        kept = full[data.draw(st.integers(0, len(full))) :]
        return [data.draw(st.sampled_from([1, size])) for size in kept]

    left, right = (full, part()) if name == "PRelu" else (part(), part())
    stored = {"c": np.full(right, 2, np.float32)} if name == "Pow" else {"c": numbers(*right) + 3}
    x = np.abs(numbers(2, *left)) + 0.5
    compare(helper.make_node(name, ["x", "c"], ["y"]), x, 13, **stored)


@many
@given(data=st.data())
def test_matrix_products(data):
    inner = data.draw(st.integers(1, 4))
    batch = data.draw(st.lists(st.integers(1, 3), max_size=2))
    some = [data.draw(st.sampled_from([1, size])) for size in batch]
    left = [*batch, data.draw(st.integers(1, 3)), inner] if data.draw(st.booleans()) else [inner]
    right = [*some, inner, data.draw(st.integers(1, 3))] if data.draw(st.booleans()) else [inner]
    if data.draw(st.booleans()):
        compare(helper.make_node("MatMul", ["x", "c"], ["y"]), numbers(2, *left), 13, c=numbers(*right))
    else:
        compare(helper.make_node("MatMul", ["c", "x"], ["y"]), numbers(2, *right), 13, c=numbers(*left))
