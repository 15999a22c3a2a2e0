"""Outputs of any rank: positions chosen, masked and reduced, as NumPy does it with onnxruntime's outputs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.explain import Explainer, PermutationExplainer
from selkit.explain.heads import read_head

sys.path.insert(0, str(Path(__file__).parent))
import networks

METHODS = ("deepshap", "integrated_gradients")


class Maps(nn.Module):
    """A segmentation network: one map for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module", params=[False, True], ids=["torchscript", "dynamo"])
def maps(request) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A model, inputs, and onnxruntime's outputs."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((5, 3, 6, 7)).astype(np.float32)
    content = networks.export(Maps(), torch.from_numpy(x[:1]), dynamo=request.param, dynamic=True)
    session = onnxruntime.InferenceSession(content)
    name = session.get_inputs()[0].name
    return content, x, session.run(None, {name: x})[0].astype(np.float64)


MASK = np.zeros((6, 7), bool)
MASK[1:4, 2:5] = True
CASES = {
    "max": ({"reduce": "max"}, lambda y: y.max((2, 3))),
    "mean": ({"reduce": "mean"}, lambda y: y.mean((2, 3))),
    "sum of a mask": ({"reduce": "sum", "mask": MASK}, lambda y: (y * MASK).sum((2, 3))),
    "max of a mask of rows": (
        {"reduce": "max", "mask": torch.from_numpy(MASK[:, 3:4])},
        lambda y: y[:, :, 1:4].max((2, 3)),
    ),
    "position": ({"position": (2, -1)}, lambda y: y[:, :, 2, 6]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_maps(case, method, maps):
    options, expected = CASES[case]
    content, x, outputs = maps
    numbers = expected(outputs)
    found = Explainer(content, x[3:], target=[1, 3], method=method, **options).explain(x[:3])
    np.testing.assert_allclose(found.output.T, numbers[:3][:, [1, 3]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.base_value[:, 0], numbers[3:].mean(0)[[1, 3]], rtol=1e-4, atol=1e-5)
    assert np.abs(found.additivity_error).max() < (1e-10 if method != "deepshap" else 1e-4)
    assert found.attributions.shape == (2, *x[:3].shape)


def test_a_position_reads_its_receptive_field_alone(maps):
    content, x, _ = maps
    found = Explainer(content, x[3:], target=0, position=(2, 3), threads=1).explain(x[:2])
    outside = np.ones((6, 7), bool)
    outside[1:4, 2:5] = False
    assert not found.attributions[:, :, outside].any()
    assert found.attributions[:, :, ~outside].any()


def test_the_exported_file_predicts_the_whole_map(maps, tmp_path):
    content, x, outputs = maps
    explainer = Explainer(content, x[3:], target=2, reduce="max", threads=1)
    explainer.export(tmp_path / "e.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx")
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: x[:3]}), strict=True))
    np.testing.assert_allclose(found[names[0]], outputs[:3], atol=1e-4)
    np.testing.assert_allclose(found["output_values"], outputs[:3, 2].max((1, 2)), atol=1e-4)
    sums = found["attributions"].sum(axis=(1, 2, 3))
    np.testing.assert_allclose(sums, found["output_values"] - found["base_values"], atol=1e-4)
    loaded = Explainer.load(tmp_path / "e.onnx", threads=1)
    np.testing.assert_array_equal(loaded.explain(x[:2]).attributions, found["attributions"][:2])
    assert explainer.verify(x[:2]).output_difference < 1e-5


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)


@pytest.mark.parametrize("method", [*METHODS, "permutation"])
def test_classes_with_axes_of_one_element_need_no_word(method):
    """(N, 1000, 1, 1) is (N, 1000)."""
    if method == "permutation":
        pytest.importorskip("shap")
    model = parse(
        "agraph (float[N, 4] x) => (float[N, 7, 1, 1] y) <float[4, 7] w, int64[2] a = {2, 3}> "
        "{ h = MatMul(x, w)  y = Unsqueeze(h, a) }"
    )
    weights = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    del model.graph.input[1:]
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    found = Explainer(model, x[3:], target=6, method=method).explain(x[:3])
    np.testing.assert_allclose(found.attributions, (x[:3] - x[3:].mean(0)) * weights[:, 6], atol=1e-5)


@pytest.mark.parametrize(("axis", "position"), [(2, -1), (1, 0)])
def test_sequences(axis, position):
    """The last position of a sequence of (length, classes), and of (classes, length)."""
    layout = "y = Identity(h)" if axis == 2 else "y = Transpose <perm = [0, 2, 1]> (h)"
    model = parse(f"agraph (float[N, 5, 3] x) => (float[N, a, b] y) {{ h = Relu(x)  {layout} }}")
    x = np.random.default_rng(1).standard_normal((4, 5, 3)).astype(np.float32)
    found = Explainer(model, x[2:], target=1, position=position, class_axis=axis).explain(x[:2])
    expected = np.zeros((2, 5, 3))
    expected[:, position, 1] = (np.maximum(x[:2], 0) - np.maximum(x[2:], 0).mean(0))[:, position, 1]
    np.testing.assert_allclose(found.attributions, expected, atol=1e-6)


def test_one_number_for_each_sample_and_maps_without_classes():
    model = parse(
        "agraph (float[N, 3] x) => (float[N] y) <int64[1] a = {1}> { y = ReduceSum <keepdims = 0> (x, a) }"
    )
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    found = Explainer(model, np.zeros((1, 3), np.float32), target=0).explain(x)
    np.testing.assert_allclose(found.attributions, x, atol=1e-6)
    model = parse("agraph (float[N, 3, 3] x) => (float[N, 3, 3] y) { y = Relu(x) }")
    found = Explainer(model, np.zeros((1, 3, 3), np.float32), reduce="sum", class_axis="none").explain(
        np.ones((2, 3, 3))
    )
    np.testing.assert_allclose(found.attributions, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "inputs", "axis"),
    [
        ((1, 10), [(1, 4)], 1),
        ((1, 10, 1, 1), [(1, 3, 8, 8)], 1),
        ((1, 1, 1, 10), [(1, 8, 8, 3)], 3),
        ((1, 21, 8, 8), [(1, 3, 8, 8)], 1),
        ((1, 8, 8, 21), [(1, 8, 8, 3)], 3),
        ((1, 21, 4, 4), [(1, 3, 16, 16)], 1),
        ((1, 4, 4, 21), [(1, 16, 16, 3)], 3),
        ((1, 3, 8, 8), [(1, 3, 8, 8)], 1),
        ((1, 8, 8, 3), [(1, 8, 8, 3)], 3),
        ((1, 1, 8, 8), [(1, 1, 8, 8)], 1),
        ((1, 8, 8, 1), [(1, 8, 8, 1)], 3),
        ((1, 5, 4, 6, 6), [(1, 2, 4, 6, 6)], 1),
        ((1, 12, 5), [(1, 12, 3)], 2),
        ((1, 5, 12), [(1, 3, 12)], 1),
        ((1,), [(1, 3)], None),
    ],
)
def test_the_axis_of_classes_is_found_where_shapes_tell_it(shape, inputs, axis):
    head = read_head(shape, inputs, "y", reduce="mean" if len(shape) > 2 else None)
    assert head.class_axis == axis


@pytest.mark.parametrize(
    ("shape", "options", "text"),
    [
        ((1, 5, 7), {"reduce": "max"}, "class_axis=1, class_axis=2"),
        ((1, 4, 6, 5), {"reduce": "max"}, "class_axis=1, class_axis=3"),
        ((1, 4, 8, 8), {}, "reduce='max', 'mean' or 'sum'"),
        ((1, 4, 8, 8), {"reduce": "min"}, "reduce must be one of"),
        ((1, 4, 8, 8), {"position": 3}, "position must be 2 whole"),
        ((1, 4, 8, 8), {"position": (3, 8)}, "position must be a whole number from -8 to 7"),
        ((1, 4, 8, 8), {"position": (0, 0), "reduce": "max"}, "not both"),
        ((1, 4, 8, 8), {"mask": np.ones((8, 8), bool)}, "mask= needs reduce"),
        ((1, 4, 8, 8), {"mask": np.zeros((8, 8), bool), "reduce": "max"}, "False everywhere"),
        ((1, 4, 8, 8), {"mask": np.ones((7, 8), bool), "reduce": "max"}, r"mask has shape \(7, 8\)"),
        ((1, 4, 8, 8), {"mask": np.ones((8, 8)), "reduce": "max"}, "boolean"),
        ((1, 4, 8, 8), {"class_axis": 0, "reduce": "max"}, "axis of samples"),
        ((1, 4, 8, 8), {"class_axis": 4, "reduce": "max"}, "class_axis"),
        ((1, 4, 8, 8), {"class_axis": "last", "reduce": "max"}, "class_axis"),
        ((3, 4), {}, "first axis"),
        ((1, 0), {}, "empty"),
    ],
)
def test_what_is_not_clear_is_refused(shape, options, text):
    with pytest.raises((InvalidInputError, InvalidTypeError), match=text):
        read_head(shape, [(1, 3, 9, 11)], "y", **options)


def test_trees_and_others_by_permutation():
    pytest.importorskip("shap")
    model = parse(
        "agraph (float[N, 4] x) => (float[N, 2, 2] y) <int64[3] s = {0, 2, 2}> "
        "{ h = Relu(x)  y = Reshape(h, s) }"
    )
    x = np.abs(np.random.default_rng(0).standard_normal((3, 4))).astype(np.float32)
    found = PermutationExplainer(
        model, np.zeros((1, 4), np.float32), target=[0, 1], reduce="sum", class_axis=1, permutations=2
    ).explain(x)
    np.testing.assert_allclose(found.attributions[0], x * [1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.attributions[1], x * [0, 0, 1, 1], atol=1e-6)
