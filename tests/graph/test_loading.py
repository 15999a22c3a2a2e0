"""What files look like: open axes, branches nobody needs, half precision, functions, large ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import selkit
from selkit.errors import UnsupportedModelError
from selkit.graph import Graph
from selkit.graph.files import read


def parse(text: str, opset: int = 17, more: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{more}]> {text}')


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TWICE = "agraph (float[N, 2] x) => (float[N, 2] y) { h = Relu(x)  y = Add(h, x) }"


@pytest.mark.parametrize("size", [-1, -7])
def test_a_negative_size_is_an_open_axis(size: int, onnxruntime_of):
    model = parse(TWICE)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = size
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [size, 2]))
    graph = Graph.load(model)
    assert graph.inputs[0].shape == graph.outputs[0].shape == (None, 2)
    x = numbers(2, 3, 2)
    actual = graph.compile({"x": (3, 2)}).run({"x": torch.from_numpy(x).double()})["y"]
    np.testing.assert_allclose(actual.numpy(), onnxruntime_of(model, {"x": x})["y"], rtol=1e-6)


def test_a_size_of_zero_is_open_where_a_result_is_declared():
    model = parse(TWICE)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 0
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [0, 2]))
    assert Graph.load(model).outputs[0].shape == (None, 2)
    assert not any(
        d.HasField("dim_value") for d in read(model).graph.value_info[0].type.tensor_type.shape.dim[:1]
    )
    model.graph.input[0].type.tensor_type.shape.dim[
        0
    ].dim_value = 0  # onnxruntime wants no row, so does selkit
    assert Graph.load(model).inputs[0].shape == (0, 2)


def paddle() -> onnx.ModelProto:
    """A heat map as PaddlePaddle writes it: every open axis is -1, in inner values too."""
    model = parse("""agraph (float[N, 1, H, W] x) => (float[N, 1, H, W] y)
        <float[1, 1, 3, 3] w = {1, 2, 1, 2, 4, 2, 1, 2, 1}> {
            c = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(c)  y = Sigmoid(r) }""")
    for value in (model.graph.input[0], model.graph.output[0]):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_value = -1
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [-1, 1, -1, -1]))
    return model


def test_a_file_with_negative_sizes_is_tested_as_one_with_names():
    model, x = paddle(), numbers(1, 1, 6, 6)
    named = paddle()
    for value in (named.graph.input[0], named.graph.output[0]):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"a{axis}"
    del named.graph.value_info[:]
    tested = [
        selkit.load(m, selkit.BackMeanDiff(threshold=0.9)).inference(x, var=1.0) for m in (model, named)
    ]
    assert tested[0].p_value == tested[1].p_value


BRANCHES = """agraph (float[1, 1, 4, 4] x, float[2] unused) =>
    (float[1, 1, 4, 4] map, float[P] odd, float[Q] other)
    <float two = {2}> {
        h = Relu(x)
        map = Mul(h, two)
        d = NoSuchOperator(h)
        odd = Det(d)
        other = foreign.domain.Thing(x, bad)
    }"""


def with_branches() -> onnx.ModelProto:
    model = parse(BRANCHES, more=', "foreign.domain" : 1')
    model.graph.initializer.append(
        TensorProto(name="bad", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"])
    )
    return model


def test_nodes_that_a_wanted_output_does_not_need_are_not_refused():
    model = with_branches()
    graph = Graph.load(model)
    assert graph.compile({"x": (1, 1, 4, 4)}, ["map"], live=["x"]).outputs == ("map",)
    assert {node.op_type for node in graph.obstacles(["odd"])} == {"NoSuchOperator", "Det"}
    assert {(node.op_type, node.domain) for node in graph.obstacles(["other"])} == {
        ("Thing", "foreign.domain"),
        ("initializer", ""),
    }
    Graph.load(model, ["map"])
    for name, text in (
        ("odd", r"(?s)2 node.*NoSuchOperator.*Det"),
        ("other", r"(?s)2 node.*STRING.*foreign"),
    ):
        with pytest.raises(UnsupportedModelError, match=text):
            Graph.load(model, [name])
        with pytest.raises(UnsupportedModelError, match=r"NoSuchOperator|STRING"):
            graph.compile({"x": (1, 1, 4, 4)}, [name], live=["x"], constants={"unused": torch.zeros(2)})


def test_a_model_of_which_no_output_can_be_computed_is_refused_with_all_reasons():
    model = with_branches()
    del model.graph.output[0]
    with pytest.raises(UnsupportedModelError, match=r"(?s)4 node") as caught:
        Graph.load(model)
    assert {node.op_type for node in caught.value.nodes} == {"NoSuchOperator", "Det", "Thing", "initializer"}


def test_tests_look_only_at_what_the_score_map_needs():
    model = with_branches()
    del model.graph.input[1]
    x = numbers(1, 1, 4, 4)
    result = selkit.load(model, selkit.BackMeanDiff(threshold=0.5)).inference(x, var=1.0)
    alone = parse(
        "agraph (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] map) "
        "<float two = {2}> { h = Relu(x)  map = Mul(h, two) }"
    )
    assert (
        result.p_value == selkit.load(alone, selkit.BackMeanDiff(threshold=0.5)).inference(x, var=1.0).p_value
    )
    with pytest.raises(UnsupportedModelError, match=r"(?s)2 node.*NoSuchOperator.*Det"):
        selkit.load(model, selkit.BackMeanDiff(threshold=0.5, o_idx=1))


def test_explanations_look_only_at_what_their_output_needs():
    model = parse("""agraph (float[N, 3] x) => (float[N, 2] y, float[M] z)
        <float[3, 2] w = {1, 2, 3, 4, 5, 6}> {
        h = Relu(x)  y = MatMul(h, w)  z = NoSuchOperator(h) }""")
    x = numbers(2, 3)
    result = selkit.Explainer(model, numbers(4, 3, seed=1), "y").explain(x)
    np.testing.assert_allclose(result.additivity_error, 0, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="NoSuchOperator"):
        selkit.Explainer(model, numbers(4, 3, seed=1), "z")


def test_the_command_looks_only_at_what_the_output_needs(tmp_path: Path, capsys):
    from selkit.cli.app import main

    model = with_branches()
    del model.graph.input[1]
    onnx.save(model, tmp_path / "model.onnx")
    assert main(["ops", str(tmp_path / "model.onnx"), "--output-index", "0"]) == 0
    assert "NoSuchOperator" not in capsys.readouterr().out
    assert main(["ops", str(tmp_path / "model.onnx")]) == 0  # of all outputs, one can be used
    listed, _, uses = capsys.readouterr().out.partition("output map")
    assert "NoSuchOperator" not in listed
    assert "NoSuchOperator" in uses  # why the others cannot
    assert main(["ops", str(tmp_path / "model.onnx"), "--output-index", "1"]) == 4
    assert "NoSuchOperator" in capsys.readouterr().out


HALF = """agraph ({half}[N, 3] x) => ({half}[N, 2] y) <float[2] b = {{0.1, 0.2}}> {{
    h = MatMul(x, w)  f = Cast<to=1>(h)  g = Add(f, b)  c = Cast<to={to}>(g)  y = Relu(c) }}"""


def half(name: str, kind: int) -> onnx.ModelProto:
    model = parse(HALF.format(half=name, to=kind))
    values = np.array([[1.5, -2], [0.3, 4], [5, -6.1]], np.float32)
    stored = values.astype(helper.tensor_dtype_to_np_dtype(kind))
    model.graph.initializer.append(numpy_helper.from_array(stored, "w"))
    return model


def test_half_precision_is_computed_in_more_and_said_so(onnxruntime_of):
    model = half("float16", TensorProto.FLOAT16)
    graph = Graph.load(model)
    assert graph.notes == ("numbers that the file has as float16 are computed in higher precision",)
    assert graph.inputs[0].dtype == torch.float32
    x = numbers(4, 2, 3).astype(np.float16)
    actual = graph.compile({"x": (2, 3)}).run({"x": torch.from_numpy(x).double()})["y"].numpy()
    np.testing.assert_allclose(actual, onnxruntime_of(model, {"x": x})["y"], rtol=2e-3, atol=2e-3)


def test_bfloat16_is_read_exactly():
    model = half("bfloat16", TensorProto.BFLOAT16)
    graph = Graph.load(model)
    assert "bfloat16" in graph.notes[0]
    stored = onnx.numpy_helper.to_array(model.graph.initializer[1]).astype(np.float32)
    assert graph.initializers["w"].dtype == torch.float32
    np.testing.assert_array_equal(graph.initializers["w"].numpy(), stored)


def test_constants_in_half_precision_are_folded_without_its_rounding(onnxruntime_of):
    model = parse("""agraph (float16[1, 2] x) => (float16[1, 2] y)
        { c = Mul(a, b)  d = Sqrt(c)  y = Add(x, d) }""")
    for name, values in (("a", [0.1, 0.2]), ("b", [3000, 1000])):
        model.graph.initializer.append(numpy_helper.from_array(np.float16(values), name))
    x = np.zeros((1, 1, 2), np.float16)
    actual = Graph.load(model).compile({"x": (1, 2)}).run({"x": torch.from_numpy(x).double()})["y"].numpy()
    np.testing.assert_allclose(actual, onnxruntime_of(model, {"x": x})["y"], rtol=2e-3)
    exact = np.sqrt(np.float16([0.1, 0.2]).astype(float) * np.array([3000, 1000.0]))
    np.testing.assert_allclose(actual[0, 0], exact, rtol=1e-6)


def test_half_precision_is_said_in_results():
    model = parse("agraph (float16[1, 1, 4, 4] x) => (float16[1, 1, 4, 4] y) { y = Relu(x) }")
    result = selkit.load(model, selkit.BackMeanDiff(threshold=0.5)).inference(numbers(1, 1, 4, 4), var=1.0)
    assert "float16" in result.notes[0]
    flat = parse("agraph (float16[N, 3] x) => (float16[N, 2] y) { y = MatMul(x, w) }")
    flat.graph.initializer.append(numpy_helper.from_array(np.arange(6, dtype=np.float16).reshape(3, 2), "w"))
    explained = selkit.Explainer(flat, numbers(2, 3), target=0).explain(numbers(2, 3, seed=1))
    assert explained.attributions.dtype == np.float32
    assert "float16" in explained.notes[0]


FUNCTIONS = """
    agraph (float[N, 2] x) => (float[N, 2] y) {{ {body} }}
    <domain: "own", opset_import: ["" : 17, "own" : 1]>
    scaled <alpha> (a) => (b) {{ k = Constant<value_float: float = @alpha>()  b = Mul(a, k) }}
    <domain: "own", opset_import: ["" : 17, "own" : 1]>
    leaky <slope> (a) => (b) {{ n = LeakyRelu<alpha: float = @slope>(a)
        m = own.scaled<alpha: float = @slope>(n)  b = Add(m, a) }}
"""


@pytest.mark.parametrize(
    "body",
    [
        "y = own.leaky<slope=0.25>(x)",
        "h = own.leaky<slope=0.25>(x)  g = own.leaky<slope=0.5>(h)  y = own.scaled<alpha=3.0>(g)",
        "c = Constant<value: tensor = bool {1}>()  y = If(c) <"
        "then_branch = a () => (float[N, 2] t) { t = own.leaky<slope=0.1>(x) }, "
        "else_branch = b () => (float[N, 2] t) { t = Neg(x) }>",
    ],
)
def test_local_functions_with_attributes_nest(body: str, onnxruntime_of):
    model = parse(FUNCTIONS.format(body=body), more=', "own" : 1')
    x = numbers(3, 1, 2)
    actual = Graph.load(model).compile({"x": (1, 2)}).run({"x": torch.from_numpy(x).double()})["y"].numpy()
    np.testing.assert_allclose(actual, onnxruntime_of(model, {"x": x})["y"], rtol=1e-6)


def test_probabilities_come_without_their_names():
    model = parse(
        """agraph (float[N, 2] x) => (float[N, 2] p, int64[N] l) {
        s = Softmax(x)  l = ArgMax<axis=1, keepdims=0>(x)
        p = ai.onnx.ml.ZipMap<classlabels_int64s=[3, 5]>(s) }""",
        more=', "ai.onnx.ml" : 3',
    )
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    model.graph.output[0].type.CopyFrom(kind)
    x = numbers(1, 3, 2)
    actual = Graph.load(model).compile({"x": (3, 2)}, ["p"]).run({"x": torch.from_numpy(x).double()})["p"]
    expected = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)
    import onnxruntime

    named = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x[0]})[0]
    np.testing.assert_allclose(actual[0].numpy(), [[row[3], row[5]] for row in named], rtol=1e-5)
    np.testing.assert_allclose(
        selkit.Explainer(model, x[0], "p").explain(x[0]).additivity_error, 0, atol=1e-5
    )


def test_layouts_for_one_processor_are_refused_with_advice():
    model = parse(
        "agraph (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y) { y = com.microsoft.nchwc.Conv(x, x) }",
        more=', "com.microsoft.nchwc" : 1',
    )
    with pytest.raises(UnsupportedModelError, match="save the model without layout optimizations"):
        Graph.load(model)


def large(folder: Path, size: int) -> Path:
    """A model with one sparse file of zeros beside it, except for the first and the last number."""
    rows = size // 16
    model = parse("""agraph (float[N, 4] x) => (float[N, 4] y) <int64[2] p = {0, -1}> {
        g = Gather(w, p)  s = ReduceSum<keepdims=1>(g, a)  y = Add(x, s) }""")
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[rows, 4], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(16 * rows))):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.extend([tensor, numpy_helper.from_array(np.array([0]), "a")])
    with (folder / "w.bin").open("wb") as file:
        file.truncate(16 * rows)
        file.write(np.float32(1).tobytes())
        file.seek(16 * rows - 4)
        file.write(np.float32(2).tobytes())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def free_memory() -> int:
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if "MemAvailable" in line), 0)


def test_a_file_of_more_than_two_gibibytes_is_read(tmp_path: Path):
    size = 2**31 + 2**20
    if shutil.disk_usage(tmp_path).free < 2 * size or free_memory() < 4 * size:
        pytest.skip("needs 9 GiB of memory and 4 GiB of disk")
    graph = Graph.load(large(tmp_path, size))
    assert graph.initializers["w"].shape == (size // 16, 4)
    result = graph.compile({"x": (1, 4)}).run({"x": torch.zeros(1, 1, 4).double()})["y"]
    assert result.tolist() == [[[1, 0, 0, 2]]]


def test_data_in_other_files_is_held_beside_the_model_and_still_checked(tmp_path: Path):
    from selkit.errors import FileFormatError
    from selkit.graph.files import read_apart

    path = large(tmp_path, 160)
    model, arrays = read_apart(path)
    assert arrays["w"].shape == (10, 4)
    assert model.ByteSize() < 1000
    assert numpy_helper.to_array(read(path).graph.initializer[1]).sum() == 3
    with (tmp_path / "w.bin").open("ab") as file:
        file.truncate(100)
    with pytest.raises(FileFormatError, match="claims bytes 0 to 160"):
        Graph.load(path)
