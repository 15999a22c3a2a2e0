"""The explainer's own interface: files, targets, bad input, and what others run without selkit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from selkit.errors import (
    FileFormatError,
    InvalidInputError,
    InvalidTypeError,
    NotAvailableError,
    UnsupportedModelError,
)
from selkit.explain import Explainer, build, files, storage
from selkit.explain.question import Choice

sys.path.insert(0, str(Path(__file__).parent))
import networks

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


LINEAR = parse(
    "agraph (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((12, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def content(images) -> bytes:
    torch.manual_seed(0)
    model = networks.NETWORKS["overlapping_pool"]().eval()
    return networks.export(model, torch.from_numpy(images[:1]), dynamo=False)


@pytest.fixture(scope="module")
def explainer(content, images) -> Explainer:
    return Explainer(content, images[5:], threads=1)


CLEAN = """
import sys, json
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "selkit", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
x = np.load(sys.argv[2])
sums = {}
for count in (1, 7):
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: x[:count]})))
    a = found["attributions"]
    assert a.shape == x[:count].shape, a.shape
    rows = np.arange(count)
    change = found["y"][rows, found["targets"]] - found["base_values"]
    sums[count] = [a.sum(axis=(1, 2, 3), dtype=float).tolist(), change.astype(float).tolist(), a[0].tolist()]
print(json.dumps(sums))
"""


@pytest.mark.parametrize("external", [None, True], ids=["one file", "data beside it"])
def test_plain_onnxruntime_runs_the_file_in_batches_of_1_and_7(external, explainer, images, tmp_path):
    explainer.export(tmp_path / "e.onnx", external=external)
    assert len(list(tmp_path.glob("e.onnx.*.data"))) == bool(external)
    np.save(tmp_path / "x.npy", images)
    command = [sys.executable, "-c", CLEAN, str(tmp_path / "e.onnx"), str(tmp_path / "x.npy")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed)
    for sums, change, _ in found.values():
        np.testing.assert_allclose(sums, change, rtol=1e-4, atol=1e-6)
    assert found["1"][2] == found["7"][2]
    np.testing.assert_allclose(found["1"][2], explainer.explain(images[:1]).attributions[0], atol=1e-7)


def test_the_file_is_pinned_to_versions_that_many_runtimes_read(explainer, tmp_path):
    explainer.export(tmp_path / "e.onnx")
    model = onnx.load(tmp_path / "e.onnx")
    onnx.checker.check_model(model)
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_a_loaded_file_explains_the_same_and_can_be_written_again(explainer, images, tmp_path):
    expected = explainer.explain(images[:3])
    explainer.export(tmp_path / "a.onnx", external=True)
    loaded = Explainer.load(tmp_path / "a.onnx", threads=1)
    loaded.export(tmp_path / "b.onnx")
    for source in (tmp_path / "a.onnx", str(tmp_path / "b.onnx"), (tmp_path / "b.onnx").read_bytes()):
        again = Explainer.load(source, threads=1)
        np.testing.assert_array_equal(again.explain(images[:3]).attributions, expected.attributions)
        assert again.facts == explainer.facts
    assert "references" in repr(loaded)


def test_verify_reports_small_differences(explainer, images, tmp_path):
    found = explainer.verify(images[:4])
    assert found.additivity_error < 1e-5
    assert found.output_difference is not None
    assert found.output_difference < 1e-5
    assert found.batch_difference == 0
    assert found.file_difference == 0
    assert "additivity error" in str(found)
    explainer.export(tmp_path / "e.onnx")
    assert Explainer.load(tmp_path / "e.onnx").verify(images[:2]).output_difference is None


def test_verify_notices_a_graph_that_was_changed(explainer, images, content):
    package = explainer._package
    arrays = {
        name: array * 1.01 if "Relu" in name or "Conv" in name else array
        for name, array in package.arrays.items()
    }
    changed = Explainer.__new__(Explainer)
    changed._model, changed._choice = content, Choice()
    proto = onnx.ModelProto()
    proto.CopyFrom(package.proto)
    base = next(t for t in proto.graph.initializer if t.name == "selkit.base")
    values = onnx.numpy_helper.to_array(base) + 1
    base.CopyFrom(onnx.numpy_helper.from_array(values, base.name))
    changed._start(storage.Package(proto, arrays, package.facts), 1)
    assert changed.verify(images[:2]).additivity_error > 0.01


def test_targets(content, images):
    x = images[:4]
    outputs = onnxruntime.InferenceSession(content).run(None, {"x": x[:1]})[0]
    top = Explainer(content, images[5:8], threads=1)
    assert top.explain(x[:1]).target.tolist() == [int(outputs.argmax())]
    one = Explainer(content, images[5:8], target=3, threads=1).explain(x)
    several = Explainer(content, images[5:8], target=[3, 0], threads=1)
    both = several.explain(x)
    assert both.attributions.shape == (2, *x.shape)
    np.testing.assert_array_equal(both.attributions[0], one.attributions)
    np.testing.assert_array_equal(top.explain(x, target=3).attributions, one.attributions)
    every = Explainer(content, images[5:8], target="all", threads=1).explain(x)
    assert every.attributions.shape == (10, *x.shape)
    np.testing.assert_array_equal(every.attributions[3], one.attributions)
    np.testing.assert_array_equal(several.explain(x, target="all").attributions, every.attributions)
    with pytest.raises(InvalidInputError, match="made for one target"):
        top.explain(x, target=[1, 2])
    for wrong in (10, -1, "best", [1, 1], [], 1.5):
        with pytest.raises(InvalidInputError, match="target is"):
            Explainer(content, images[5:8], target=wrong)
    with pytest.raises(InvalidInputError, match="0 to 9"):
        top.explain(x, target=10)


def test_the_exported_target_is_an_optional_input(content, images, tmp_path):
    Explainer(content, images[5:8], threads=1).export(tmp_path / "one.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")
    assert session.run(["targets"], {"x": images[:2], "target": np.array([4])})[0].tolist() == [4, 4]
    Explainer(content, images[5:8], target=[1, 2], threads=1).export(tmp_path / "two.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "two.onnx")
    found = session.run(["targets", "attributions"], {"x": images[:2], "target": np.array([4, 5, 6])})
    assert found[0].tolist() == [[4, 4], [5, 5], [6, 6]]
    assert found[1].shape == (3, 2, 1, 8, 8)


def test_a_linear_model_is_its_weights_times_the_difference():
    references = np.array([[1.0, 0.0], [3.0, 0.0]], np.float32)
    found = Explainer(LINEAR, references, target=1, threads=1).explain([[1.0, 1.0]])
    np.testing.assert_allclose(found.attributions, [[2 * (1 - 2), 5 * 1]])
    assert found.base_value.tolist() == [4.0]
    assert found.output.tolist() == [7.0]


def test_double_precision_stays():
    model = parse(
        """agraph (double[N, 2] x) => (double[N, 1] y) <double[2, 1] w = {1, 2}> {
            h = Tanh(x)  y = MatMul(h, w) }"""
    )
    x = np.random.default_rng(0).standard_normal((3, 2))
    found = Explainer(model, x[:2], target=0).explain(x)
    assert found.attributions.dtype == np.float64
    assert np.abs(found.additivity_error).max() < 1e-10


def test_references_from_a_loader(content, images):
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(images[5:]), torch.zeros(7)), batch_size=3
    )
    found = Explainer(content, loader, threads=1).explain(images[:1]).attributions
    expected = Explainer(content, images[5:], threads=1).explain(images[:1]).attributions
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("references", "error", "text"),
    [
        (np.zeros((3, 1, 8, 9), np.float32), InvalidInputError, "references has shape"),
        (np.zeros((1, 8, 8), np.float32), InvalidInputError, "without an axis for samples"),
        (np.zeros((0, 1, 8, 8), np.float32), InvalidInputError, "empty"),
        ([], InvalidInputError, "references"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), InvalidInputError, "NaN or infinite"),
        (np.zeros((2, 1, 8, 8), np.int64), InvalidTypeError, "int64"),
        (None, InvalidTypeError, "references is a NoneType"),
    ],
)
def test_bad_references(references, error, text, content):
    with pytest.raises(error, match=text):
        Explainer(content, references)


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (np.zeros((2, 1, 8, 7), np.float32), InvalidInputError, "x has shape"),
        (np.zeros((0, 1, 8, 8), np.float32), InvalidInputError, "empty"),
        (np.full((1, 1, 8, 8), np.inf, np.float32), InvalidInputError, "NaN or infinite"),
        (np.zeros((1, 1, 8, 8), np.uint8), InvalidTypeError, "uint8"),
    ],
)
def test_bad_x(x, error, text, explainer):
    with pytest.raises(error, match=text):
        explainer.explain(x)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "lime"}, "method is 'lime'"),
        ({"cache": "maybe"}, "cache is 'maybe'"),
        ({"chunk": 0}, "chunk"),
        ({"threads": 0}, "threads"),
        ({"weights": [1.0, 2.0]}, "one positive number"),
        ({"weights": [1.0, -1.0, 1.0]}, "one positive number"),
        ({"output": "z"}, "output is 'z'"),
    ],
)
def test_bad_options(options, text, content, images):
    with pytest.raises(InvalidInputError, match=text):
        Explainer(content, images[:3], **options)


@pytest.mark.parametrize(
    ("text", "shape", "error", "match"),
    [
        (
            "agraph (float[N, 2, 3] x) => (float[N, 2, 3] y) { y = Relu(x) }",
            (2, 3),
            InvalidInputError,
            "class_axis=1, class_axis=2",
        ),
        (
            "agraph (float[N, 2, 5, 5] x) => (float[N, 2, 5, 5] y) { y = Relu(x) }",
            (2, 5, 5),
            InvalidInputError,
            "reduce='max', 'mean' or 'sum'",
        ),
        (
            "agraph (float[4, 2] x) => (float[4, 2] y) { y = Relu(x) }",
            (2,),
            InvalidInputError,
            "fixed batch size",
        ),
        (
            "agraph (float[N, 2] x, float[N, 2] z) => (float[N, 2] y) { y = Add(x, z) }",
            (2,),
            InvalidTypeError,
            r"a mapping with an array for each explained input \('x', 'z'\)",
        ),
        ("agraph (int64[N, 2] x) => (int64[N, 2] y) { y = Neg(x) }", (2,), InvalidInputError, "no real"),
        (
            "agraph (float[N, 2] x) => (float[N, 2] y) <float[1, 2] w = {1, 2}> { y = Relu(w) }",
            (2,),
            InvalidInputError,
            "does not depend",
        ),
        (
            "agraph (float[N, 2] x) => (float[N, 2] targets) { targets = Relu(x) }",
            (2,),
            InvalidInputError,
            "rename it",
        ),
        ("agraph (float[N, 2] x) => (float[N, 2] y) { y = Det(x) }", (2,), UnsupportedModelError, "Det"),
    ],
)
def test_models_that_cannot_be_explained(text, shape, error, match):
    with pytest.raises(error, match=match):
        Explainer(parse(text), np.zeros((2, *shape), np.float32), target=0)


def test_all_operators_without_a_rule_are_listed_at_once():
    model = parse(
        """agraph (float[N, 2] x) => (float[N, 2] y) {
            a = Mod <fmod = 1> (x, x)  c = Cast <to = 7> (a)  d = Cast <to = 1> (c)  e = Relu(d)
            i = ArgMax <axis = 1> (x)  f = Cast <to = 1> (i)  y = Add(e, f) }"""
    )
    with pytest.raises(UnsupportedModelError, match="explain this model") as caught:
        Explainer(model, np.zeros((1, 2), np.float32), target=0)
    assert {"Mod", "ArgMax"} <= {node.op_type for node in caught.value.nodes}
    assert all(node.opset == 17 for node in caught.value.nodes)


def test_files_that_are_no_explainers(tmp_path, explainer):
    onnx.save(LINEAR, tmp_path / "model.onnx")
    with pytest.raises(FileFormatError, match="not an explainer"):
        Explainer.load(tmp_path / "model.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(FileFormatError, match=r"text\.onnx"):
        Explainer.load(tmp_path / "text.onnx")
    with pytest.raises(FileFormatError, match="does not exist"):
        Explainer.load(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "facts",
    [
        "{",
        "[]",
        '{"format": 99}',
        '{"format": 1}',
        '{"format": 2.0}',
        '{"format": true}',
        '{"format": 2}',
        '{"format": 2, "target": 0, "inputs": []}',
        '{"format": 2, "target": 0, "inputs": 3}',
        '{"format": 2, "target": 0, "inputs": [{"name": "z", "shape": [2], "dtype": "float32"}], '
        '"output": "y", "classes": 3, "references": 1, "cached": true}',
    ],
)
def test_files_that_describe_themselves_wrongly(facts, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(LINEAR)
    model.metadata_props.append(onnx.StringStringEntryProto(key=files.KEY, value=facts))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(FileFormatError):
        Explainer.load(tmp_path / "model.onnx")


def test_data_outside_the_folder_is_refused(explainer, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    explainer.export(inner / "e.onnx", external=True)
    (data,) = inner.glob("e.onnx.*.data")
    data.rename(tmp_path / data.name)
    model = onnx.load(inner / "e.onnx", load_external_data=False)

    def move(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"../{data.name}"
        for node in graph.node:
            for attribute in node.attribute:
                move(attribute.g)

    move(model.graph)
    (inner / "e.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError, match="outside"):
        Explainer.load(inner / "e.onnx")


@pytest.mark.parametrize("external", [None, True, False])
def test_a_large_graph_lives_in_a_file_and_is_the_same(external, content, images, tmp_path, monkeypatch):
    small = Explainer(content, images[5:8], threads=1).explain(images[:2]).attributions
    monkeypatch.setattr(storage, "IN_MEMORY", 1000)
    large = Explainer(content, images[5:8], threads=1)
    np.testing.assert_array_equal(large.explain(images[:2]).attributions, small)
    large.export(tmp_path / "e.onnx", external=external)
    place = Path(large._package.folder.name)
    assert place.exists()
    del large
    assert not place.exists()
    found = Explainer.load(tmp_path / "e.onnx", threads=1)
    np.testing.assert_array_equal(found.explain(images[:2]).attributions, small)


def test_what_fits_in_memory_is_stored_by_default(content, images, monkeypatch):
    assert Explainer(content, images[5:8], threads=1).facts.cached
    monkeypatch.setattr(build, "MOST_STORED", 1000)
    assert not Explainer(content, images[5:8], threads=1).facts.cached


def test_the_permutation_method_has_no_graph():
    pytest.importorskip("shap")
    explainer = Explainer(LINEAR, np.zeros((2, 2), np.float32), target=0, method="permutation")
    np.testing.assert_allclose(explainer.explain([[1.0, 1.0]]).attributions, [[1, 4]], atol=1e-6)
    with pytest.raises(NotAvailableError, match="permutation"):
        explainer.export("x.onnx")
    with pytest.raises(NotAvailableError, match="permutation"):
        explainer.verify([[1.0, 1.0]])
    assert "permutation" in repr(explainer)


def test_an_inner_output_can_be_named(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(-1)).eval()
    content = networks.export(model, torch.from_numpy(images[:1]), dynamo=False)
    graph = onnx.load_from_string(content).graph
    inner = next(node.output[0] for node in graph.node if node.op_type == "Gemm")
    found = Explainer(content, images[5:7], inner, target=2, threads=1).explain(images[:2])
    weights = model[1].weight[2].detach().numpy()
    expected = (images[:2] - images[5:7].mean(0)).reshape(2, -1) * weights
    np.testing.assert_allclose(found.attributions.reshape(2, -1), expected, atol=1e-5)
