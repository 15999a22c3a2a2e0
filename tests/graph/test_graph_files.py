"""Files that nobody vouches for: damaged, hostile, inconsistent or from the future."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graph_cases import CASES
from onnx import TensorProto, helper, numpy_helper

from selkit.errors import FileFormatError, InvalidTypeError, SelkitError, UnsupportedModelError
from selkit.graph import Graph

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N, 2] x) => (float[N, 2] y)
<float[2] w = {1.0, -2.0}> { y = Mul(x, w) }"""


def model(text: str = TEXT) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def with_initializer(tensor: TensorProto) -> onnx.ModelProto:
    made = model()
    del made.graph.initializer[:]
    tensor.name = "w"
    made.graph.initializer.append(tensor)
    return made


def test_paths_bytes_and_models_load_alike(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    for source in (path, str(path), path.read_bytes(), model()):
        graph = Graph.load(source)
        result = graph.compile({"x": (1, 2)}).run({"x": torch.ones(1, 1, 2).double()})
        assert result["y"].tolist() == [[[1.0, -2.0]]]


def test_other_types_are_refused():
    with pytest.raises(
        InvalidTypeError, match=r"model is a int; expected a path, bytes or an onnx\.ModelProto"
    ):
        Graph.load(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"this is no model" * 10, "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), r"not an ONNX model|has no graph"),
        (onnx.ModelProto().SerializeToString() + b"\x08\x08", "no graph"),
    ],
)
def test_what_is_no_model_is_refused(content: bytes, text: str, tmp_path: Path):
    with pytest.raises(FileFormatError, match=text):
        Graph.load(content)
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"model\.onnx.*({text})"):
        Graph.load(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path):
    with pytest.raises(FileFormatError, match="does not exist; expected the path of an ONNX file"):
        Graph.load(tmp_path / "nowhere.onnx")
    with pytest.raises(FileFormatError, match="is a folder"):
        Graph.load(tmp_path)


def test_no_truncation_passes_or_escapes():
    content = model().SerializeToString()
    for end in range(len(content)):
        with pytest.raises((FileFormatError, UnsupportedModelError)):
            Graph.load(content[:end])


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def test_no_flipped_byte_escapes():
    rng = np.random.default_rng(0)
    contents = [model().SerializeToString()] * 500
    contents += [one.model(max(one.versions())).SerializeToString() for one in CASES for _ in range(2)]
    refused = 0
    for content in contents:
        try:
            graph = Graph.load(flipped(content, rng))
            sizes = {spec.name: tuple(size or 1 for size in spec.shape or ()) for spec in graph.inputs}
            graph.compile(sizes, seed=0)
        except SelkitError:
            refused += 1
    assert 0.2 < refused / len(contents) < 1


def test_a_model_without_opset_is_refused():
    made = model()
    del made.opset_import[:]
    with pytest.raises(FileFormatError, match="does not say which opset"):
        Graph.load(made)


def test_an_opset_from_the_future_is_refused():
    made = model()
    made.opset_import[0].version = 99
    with pytest.raises(FileFormatError, match="uses opset 99; the installed onnx knows 1 to"):
        Graph.load(made)


def external(location: str, offset: int | None = None, length: int | None = None) -> onnx.ModelProto:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return with_initializer(tensor)


def test_external_data_beside_the_model_is_read(tmp_path: Path):
    (tmp_path / "weights.bin").write_bytes(bytes(4) + np.array([3.0, 4.0], np.float32).tobytes() + bytes(4))
    onnx.save(external("weights.bin", 4, 8), tmp_path / "model.onnx")
    assert Graph.load(tmp_path / "model.onnx").initializers["w"].tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "", ".", "link.bin"]
)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path):
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    onnx.save(external(location), folder / "model.onnx")
    with pytest.raises(FileFormatError, match="outside the model's folder; refused"):
        Graph.load(folder / "model.onnx")


@pytest.mark.parametrize(
    ("offset", "length", "text"),
    [
        (0, 100, "claims bytes 0 to 100"),
        (-4, 8, "claims bytes -4"),
        (6, None, "has 2 bytes of data"),
        (0, 4, "has 4 bytes"),
    ],
)
def test_external_data_that_is_not_there_is_refused(
    offset: int, length: int | None, text: str, tmp_path: Path
):
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    onnx.save(external("weights.bin", offset, length), tmp_path / "model.onnx")
    with pytest.raises(FileFormatError, match=text):
        Graph.load(tmp_path / "model.onnx")
    onnx.save(external("absent.bin"), tmp_path / "model.onnx")
    with pytest.raises(FileFormatError, match=r"'absent\.bin', which does not exist beside the model"):
        Graph.load(tmp_path / "model.onnx")


def test_external_data_needs_a_path():
    with pytest.raises(FileFormatError, match="load the model from its path"):
        Graph.load(external("weights.bin").SerializeToString())


def test_an_external_offset_that_is_no_number_is_refused(tmp_path: Path):
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    made = external("weights.bin")
    made.graph.initializer[0].external_data.add(key="offset", value="many")
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(FileFormatError, match="that is no number"):
        Graph.load(tmp_path / "model.onnx")


@pytest.mark.parametrize("dims", [[2**40, 2**40], [10**15], [-1], [3]])
def test_shapes_that_the_data_does_not_fill_are_refused(dims: list[int]):
    raw = TensorProto(data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(8))
    typed = TensorProto(data_type=TensorProto.FLOAT, dims=dims, float_data=[1, 2])
    none = TensorProto(data_type=TensorProto.FLOAT, dims=dims)
    for tensor in (raw, typed, none):
        with pytest.raises(FileFormatError, match=r"negative size|damaged or hostile file"):
            Graph.load(with_initializer(tensor))


def test_tensors_in_attributes_are_checked_too():
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[10**15], raw_data=bytes(8))
    node = helper.make_node("Constant", [], ["y"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    made = model()
    made.graph.node[0].CopyFrom(node)
    with pytest.raises(FileFormatError, match="has 8 bytes of data; damaged or hostile file"):
        Graph.load(made)


@pytest.mark.parametrize(
    "body",
    [
        "y = ConstantOfShape(s)",
        "y = Expand(x, s)",
        "y = RandomNormal<shape=[100000, 100000, 100000]>()",
        "a = Constant<value_float=1e30>() b = Constant<value_float=0.0>() "
        "c = Constant<value_float=1.0>() y = Range(b, a, c)",
        "y = Tile(x, s)",
    ],
)
def test_values_of_absurd_size_are_refused_before_they_are_made(body: str):
    made = model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 1, 1] x) => (float y) <int64[3] s = {{100000, 100000, 100000}}> {{ {body} }}""")
    with pytest.raises(UnsupportedModelError, match="would have over"):
        Graph.load(made).compile({"x": (1, 1, 1)}, seed=0)


def test_declared_sizes_must_be_possible():
    made = model()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40
    with pytest.raises(FileFormatError, match="x declares the size 1099511627776"):
        Graph.load(made)


def nodes(body: str, stored: str = "float[2] w = {1.0, -2.0}") -> onnx.ModelProto:
    return model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N, 2] x) => (float[N, 2] y) <{stored}> {{ {body} }}""")


def test_nodes_in_any_order_are_sorted():
    graph = Graph.load(nodes("y = Add(a, b)  b = Mul(a, w)  a = Neg(x)"))
    assert [node.op_type for node in graph.nodes] == ["Neg", "Mul", "Add"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("a = Neg(b)  b = Neg(a)  y = Add(a, x)", "depend on each other in a circle"),
        ("y = Add(x, nothing)", "nodes read values that nothing defines: nothing"),
        ("y = Neg(x)  y = Abs(x)", "the value 'y' is defined twice"),
        ("w = Neg(x)  y = Abs(w)", "the value 'w' is defined twice"),
        ("z = Neg(x)", "no node computes the model's output\\(s\\) y"),
    ],
)
def test_inconsistent_graphs_are_refused(body: str, text: str):
    with pytest.raises(FileFormatError, match=text):
        Graph.load(nodes(body))


def test_all_unsupported_nodes_are_listed_at_once():
    made = nodes("""
        a = NoSuchOperator(x)
        [second] b = Conv<no_such_attribute=3>(x, w)
        c = Hardmax(x)
        d = Add(x)
        e = MaxPool(x)
        f = BatchNormalization<training_mode=1>(x, w, w, w, w)
        g = ThresholdedRelu(x)
        h, i = MaxPool<kernel_shape=[2]>(x)
        j = other.domain.Thing(x)
        k = Cast<to=8>(x)
        l = Pad<mode="spiral">(x, w)
        m = Gather<axis="one">(x, w)
        y = Concat<axis=0>(a, b, c, d, e, f, g, h, i, j, k, l, m)""")
    with pytest.raises(UnsupportedModelError) as caught:
        Graph.load(made)
    reasons = {node.op_type: node.reason for node in caught.value.nodes}
    listed = "\n".join(f"{node.op_type}: {node.reason}" for node in caught.value.nodes)
    assert len(caught.value.nodes) == 11
    assert "this operator is not supported" in reasons["NoSuchOperator"]
    assert "second: Conv (opset 17): unknown attribute 'no_such_attribute'" in str(caught.value)
    assert "has 1 inputs; 2 to 2 are possible" in reasons["Add"]
    assert "required attribute(s) kernel_shape are missing" in listed
    assert "output(s) i are not supported" in listed
    assert "export the model in eval mode" in reasons["BatchNormalization"]
    assert "does not import the operator domain 'other.domain'" in reasons["Thing"]
    assert "number type STRING" in reasons["Cast"]
    assert "mode='spiral'" in reasons["Pad"]
    assert "'axis' is of the wrong type" in reasons["Gather"]


def test_schema_versions_that_are_not_covered_say_which_are():
    made = model()
    made.opset_import[0].version = 6
    with pytest.raises(UnsupportedModelError, match="schema version 6 is not covered; supported: 7, 13, 14"):
        Graph.load(made)


def test_strings_sequences_and_sparse_tensors_are_refused():
    made = model()
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(UnsupportedModelError, match="number type STRING is not supported"):
        Graph.load(made)
    made = model()
    made.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    with pytest.raises(UnsupportedModelError, match="only tensors are supported"):
        Graph.load(made)
    made = model()
    del made.graph.initializer[:]
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32), "w"),
            numpy_helper.from_array(np.zeros(1, np.int64)),
            [5],
        )
    )
    with pytest.raises(UnsupportedModelError, match="sparse tensors are not supported"):
        Graph.load(made)


def test_local_functions_are_inlined():
    made = model("""
        <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[N, 2] x) => (float[N, 2] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 17]>
        twice (a) => (b) { b = Add(a, a) }""")
    graph = Graph.load(made)
    assert [node.op_type for node in graph.nodes] == ["Add"]
    assert made.functions  # the given model is not changed
    result = graph.compile({"x": (1, 2)}).run({"x": torch.ones(1, 1, 2).double()})
    assert result["y"].tolist() == [[[2.0, 2.0]]]
