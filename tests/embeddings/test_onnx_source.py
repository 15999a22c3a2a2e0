from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from selkit.embeddings import extract
from selkit.embeddings.onnx import OnnxSource
from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.scores import EnergyScore, EuclideanScore

W = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
V = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
X = torch.randn(10, 6)


def model(batch: str = "N", kind: str = "float") -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        net ({kind}[{batch}, 6] x) => ({kind}[{batch}, 3] logits)
        <{kind}[6, 4] W, {kind}[4, 3] V>
        {{ h = MatMul(x, W)
           r = Relu(h)
           logits = MatMul(r, V) }}"""
    )
    dtype = {"float": np.float32, "double": np.float64}[kind]
    del proto.graph.initializer[:]
    for name, values in (("W", W), ("V", V)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(dtype), name))
    return proto


def hidden(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ torch.tensor(W))


@pytest.mark.parametrize("batch", ["N", "1", "4", "10"])
@pytest.mark.parametrize("kind", ["float", "double"])
def test_inner_values_and_outputs(batch: str, kind: str) -> None:
    proto = model(batch, kind)
    before = proto.SerializeToString()
    torch.testing.assert_close(extract(proto, [X], layer="r").values.float(), hidden(X))
    logits = hidden(X) @ torch.tensor(V)
    torch.testing.assert_close(extract(proto, [X], "logits").values.float(), logits)
    torch.testing.assert_close(extract(proto, [X], layer="logits").values.float(), logits)
    assert proto.SerializeToString() == before


def test_a_path_bytes_and_a_proto_are_the_same(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "net.onnx")
    expected = EuclideanScore(k=2).fit(X=hidden(X)).score(hidden(X + 1))
    forms = [model(), tmp_path / "net.onnx", str(tmp_path / "net.onnx"), model().SerializeToString()]
    for form in forms:
        score = EuclideanScore(k=2).fit(model=form, loaders={"train": [(X, torch.zeros(10))]}, layer="r")
        torch.testing.assert_close(score.score(model=form, loader=[X + 1]), expected)
        torch.testing.assert_close(score.extract(form, X), hidden(X))
    energy = EnergyScore().fit(model=model(), loaders={"val": [X]}).set_threshold(0.5)
    assert energy.select(energy.extract(model(), X))["selected"].sum() == 5


def test_what_is_not_a_usable_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    for bad in (b"no model", tmp_path / "no.onnx", b""):
        with pytest.raises(FileFormatError, match="is not an ONNX model"):
            extract(bad, [X], layer="r")
    with pytest.raises(FileNotFoundError):
        extract(tmp_path / "missing.onnx", [X], layer="r")
    with pytest.raises(
        InvalidInputError, match=r"no value 'relu'; near it are .*, its outputs are \['logits'\]"
    ):
        extract(model(), [X], layer="relu")
    with pytest.raises(InvalidInputError, match="got an array of shape"):
        extract(model(), [X[0]], layer="r")
    with pytest.raises(InvalidTypeError, match="takes one tensor; got dict"):
        OnnxSource(model(), layer="r")({"a": X})
    two = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] a, float[N] b) => (float[N] c) '
        "{ c = Add(a, b) }"
    )
    with pytest.raises(InvalidInputError, match=r"the model takes \['a', 'b'\]; only one input"):
        extract(two, [X], layer="c")
    outputs = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] a) => (float[N] b, float[N] c) '
        "{ b = Neg(a) c = Abs(a) }"
    )
    with pytest.raises(InvalidInputError, match=r"outputs \['b', 'c'\]; say which is the embedding"):
        extract(outputs, [X])
    whole = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[N] a) => (int64[N] b) { b = Neg(a) }'
    )
    with pytest.raises(InvalidTypeError, match=r"takes int64 \(bytes, token ids\), but the batch is float32"):
        extract(whole, [X])
    words = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (string[N] a) => (string[N] b) { b = Identity(a) }'
    )
    with pytest.raises(InvalidTypeError, match=r"the model's input is tensor\(string\); it must be one of"):
        extract(words, [X])


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 10])
def test_a_fixed_batch_gives_each_sample_its_own_row(rows: int) -> None:
    """Whatever the other samples of its piece, and however the last piece was filled up."""
    found = OnnxSource(model("4"), layer="r")(X[:rows])
    torch.testing.assert_close(found, hidden(X[:rows]))


def test_values_without_a_row_for_each_sample_are_refused() -> None:
    summed = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4, 6] x) => (float[1, 6] y) '
        "{ y = ReduceMean<axes = [0]>(x) }"
    )
    with pytest.raises(InvalidInputError, match=r"'y' has the shape \(1, 6\) for 4 samples"):
        extract(summed, [X], layer="y")
    flat = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[1, M] y) '
        "<int64[2] s = {1, -1}> { y = Reshape(x, s) }"
    )
    with pytest.raises(InvalidInputError, match=r"'y' has the shape \(1, 60\) for 10 samples"):
        extract(flat, [X], layer="y")
    with pytest.raises(InvalidInputError, match=r"the batch is empty: its shape is \(0, 6\)"):
        OnnxSource(model("4"), layer="r")(X[:0])
    with pytest.raises(
        InvalidInputError, match=r"onnxruntime cannot run the model, which takes .* shape \(10, 5\)"
    ):
        OnnxSource(model(), layer="r")(X[:, :5])
    broken = model()
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InvalidInputError, match="onnxruntime cannot load the model"):
        OnnxSource(broken, layer="r")


TABLE = np.random.default_rng(2).normal(size=(300, 4)).astype(np.float32)


def tokens(kind: str = "int64", length: str = "L") -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        net ({kind}[N, {length}] ids) => (float[N, 4] e)
        {{ i = Cast<to=7>(ids)  t = Gather(table, i)  e = ReduceMean<axes=[1], keepdims=0>(t) }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(TABLE, "table"))
    return proto


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "uint16", "int8"])
def test_integers_stay_integers(kind: str) -> None:
    ids = torch.from_numpy(np.random.default_rng(3).integers(0, 100, (10, 5)))
    expected = torch.from_numpy(TABLE[ids.numpy()].mean(axis=1))
    for given in (ids, ids.to(torch.int32), ids.to(torch.uint8)):
        torch.testing.assert_close(extract(tokens(kind), [given]).values.float(), expected)
    score = EuclideanScore(k=2).fit(model=tokens(kind), loaders={"train": [(ids, torch.zeros(10))]})
    torch.testing.assert_close(score.score(model=tokens(kind), loader=[ids]), score.score(expected))


def test_integers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="takes uint8, but the batch has values from -1 to 256"):
        extract(tokens("uint8"), [torch.tensor([[-1, 256]])])


def test_nodes_and_inputs_that_the_layer_does_not_need_are_cut() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        net (float[N, 6] x, float[N] other) => (float[N, 6] h, float[N] z)
        { h = Relu(x)  z = own.Thing(h, other) }"""
    )
    torch.testing.assert_close(extract(proto, [X], layer="h").values.float(), X.relu())


def test_a_batch_of_open_size_written_as_minus_one_is_not_cut_to_pieces() -> None:
    proto = model()
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    torch.testing.assert_close(extract(proto, [X], layer="r").values.float(), hidden(X))


def test_probabilities_are_taken_without_their_names() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        net (float[N, 6] x) => (float[N, 6] p)
        { s = Softmax(x)  p = ai.onnx.ml.ZipMap<classlabels_int64s=[0, 1, 2, 3, 4, 5]>(s) }"""
    )
    table = onnx.helper.make_map_type_proto(
        onnx.TensorProto.INT64, onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    )
    proto.graph.output[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(table))
    torch.testing.assert_close(extract(proto, [X], "logits").values.float(), X.softmax(1))


@pytest.mark.parametrize("outside", [True, False])
def test_models_too_large_for_one_piece(
    outside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = extract(model(), [X], layer="r").values
    monkeypatch.setattr("selkit.graph.large.LIMIT", 100)
    monkeypatch.setattr("selkit.graph.large.LARGE", 8)
    form = model()
    if outside:
        onnx.save(form, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        form = tmp_path / "m.onnx"
    torch.testing.assert_close(extract(form, [X], layer="r").values, expected)
    same, other = (OnnxSource(form, layer="r").identity for _ in "ab")
    assert same == other
    changed = model()
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(W + 1, "W"))
    assert OnnxSource(changed, layer="r").identity != same
