"""Integrated gradients against closed forms, captum's formula and brute force; and what they state."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from selkit.errors import InvalidInputError, NotAvailableError, NotFiniteError, UnsupportedModelError
from selkit.explain import Explainer, IntegratedGradientsExplainer

sys.path.insert(0, str(Path(__file__).parent))
import networks

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
PIECEWISE = ("relu_pool", "overlapping_pool", "prelu", "relu6", "functional", "dense")
SMOOTH = ("silu", "normalized", "squeeze_excite", "attention", "softmax")


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)


def network(name: str, images: np.ndarray, *, dynamo: bool = False) -> tuple[nn.Module, bytes]:
    torch.manual_seed(0)
    model = networks.NETWORKS[name]().eval()
    content = networks.export(model, torch.from_numpy(images[:1]), dynamo=dynamo)
    return model.double(), content


def by_formula(
    model: nn.Module, x, reference, target: int, at: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """A weighted sum of gradients at places of the path: what captum and others compute."""
    start, end = (torch.from_numpy(v).double() for v in (reference, x))
    total = torch.zeros_like(start)
    for places, shares in zip(np.array_split(at, 8), np.array_split(weights, 8), strict=True):
        shape = (-1, *(1,) * start.ndim)
        points = (start + torch.from_numpy(places).reshape(shape) * (end - start)).requires_grad_()
        (found,) = torch.autograd.grad(model(points)[:, target].sum(), points)
        total += (found * torch.from_numpy(shares).reshape(shape)).sum(0)
    return ((end - start) * total).numpy()


def riemann(steps: int) -> tuple[np.ndarray, np.ndarray]:
    return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)


def gauss(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """captum's default rule."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    return (at + 1) / 2, weights / 2


def test_one_hidden_layer_in_closed_form():
    """Each unit is on for a part of the path, which is solved for; the integral is that part of weights."""
    rng = np.random.default_rng(1)
    w, b, v = rng.standard_normal((5, 40)), rng.standard_normal(40), rng.standard_normal((40, 3))
    model = onnx.parser.parse_model(
        HEAD + "agraph (double[N, 5] x) => (double[N, 3] y) <double[5, 40] w, double[40] b, double[40, 3] v> "
        "{ h = MatMul(x, w)  g = Add(h, b)  r = Relu(g)  y = MatMul(r, v) }"
    )
    for name, value in (("w", w), ("b", b), ("v", v)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for value in list(model.graph.input)[1:]:
        model.graph.input.remove(value)
    x, reference = rng.standard_normal((2, 5)), rng.standard_normal((1, 5))
    found = IntegratedGradientsExplainer(model, reference, target="all").explain(x)
    for row in range(2):
        start, end = reference[0] @ w + b, x[row] @ w + b
        cross = start / (start - end)
        on = np.where(
            (start > 0) & (end > 0),
            1.0,
            np.where((start <= 0) & (end <= 0), 0.0, np.where(end > 0, 1 - cross, cross)),
        )
        expected = (x[row] - reference[0])[:, None] * (w * on) @ v
        np.testing.assert_allclose(found.attributions[:, row].T, expected, rtol=1e-11, atol=1e-12)
    assert (found.integration_error == 0).all()
    assert np.abs(found.additivity_error).max() < 1e-12


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [*((name, False) for name in PIECEWISE), ("overlapping_pool", True), ("functional", True)],
)
def test_piecewise_linear_networks_are_complete_where_fifty_steps_are_not(name, dynamo, images):
    model, content = network(name, images, dynamo=dynamo)
    explainer = IntegratedGradientsExplainer(content, images[4:5], target=3)
    assert explainer.exact
    found = explainer.explain(images[:1])
    scale = np.abs(found.attributions).max()
    change = float((found.output - found.base_value)[0])
    assert abs(found.additivity_error[0]) < 1e-10 * abs(change)
    dense = by_formula(model, images[0], images[4], 3, *riemann(5000))
    np.testing.assert_allclose(found.attributions[0], dense, atol=1e-3 * scale)
    for rule in (riemann(50), gauss(50)):
        usual = by_formula(model, images[0], images[4], 3, *rule)
        assert abs(usual.sum() - change) > 1e-4 * abs(change)
        assert np.abs(usual - found.attributions[0]).max() > 2e-3 * scale


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_networks_state_their_error(name, images):
    model, content = network(name, images)
    found = IntegratedGradientsExplainer(content, images[4:5], target=3).explain(images[:1])
    expected = by_formula(model, images[0], images[4], 3, *gauss(400))
    off = np.abs(found.attributions[0] - expected).max()
    scale = max(abs(found.output[0]), abs(found.base_value[0]))
    assert found.integration_error[0] <= 1e-6 * scale
    if name != "squeeze_excite":  # has knots, where the oracle is worse
        assert off <= found.integration_error[0] + 1e-11 * scale
    assert off <= 1e-5 * scale
    assert abs(found.additivity_error[0]) <= found.integration_error[0] + 1e-12 * scale


def test_a_tighter_tolerance_is_kept(images):
    _, content = network("silu", images)
    wide, tight = (
        IntegratedGradientsExplainer(content, images[4:5], target=3, tolerance=t).explain(images[:1])
        for t in (1e-3, 1e-11)
    )
    assert tight.integration_error[0] < 1e-10
    off = np.abs(wide.attributions - tight.attributions).max()
    assert off <= wide.integration_error[0]


def test_a_budget_that_is_too_small_is_seen_in_the_error(images):
    _model, content = network("functional", images)
    full = IntegratedGradientsExplainer(content, images[4:5], target=3).explain(images[:1])
    small = IntegratedGradientsExplainer(content, images[4:5], target=3, budget=100).explain(images[:1])
    off = np.abs(small.attributions - full.attributions).max()
    assert off > 0
    assert small.integration_error[0] >= off
    assert "integration error" in str(small)


TIES = {
    "the same twice": "{ h = Max(x, x)  y = Relu(h) }",
    "a maximum of copies": "{ h = Concat <axis = 1> (x, x)  y = ReduceMax <axes = [1], keepdims = 1> (h) }",
    "two forms of one": "{ h = Neg(x)  a = Max(x, h)  b = Abs(x)  y = Sub(a, b) }",
    "on a knot all along": "<float z = {0}> { h = Mul(x, z)  g = Relu(h)  y = Add(g, x) }",
    "a window of copies": """<int64[3] s = {1, 1, 3}, int64[1] a = {2}> { r = Reshape(x, s)
        h = Concat <axis = 2> (r, r)  p = MaxPool <kernel_shape = [3]> (h)
        y = ReduceSum <keepdims = 0> (p, a) }""",
    "tied with a constant": """<float z = {0}, float[3] w = {1, 0, -1}>
        { h = Mul(x, w)  m = Max(h, z)  y = Relu(m) }""",
}


@pytest.mark.parametrize("text", TIES.values(), ids=TIES)
def test_ties_along_the_whole_path_are_complete(text):
    """Equal candidates, and values that stay on a knot: either choice has the same slope along the path."""
    model = parse(f"agraph (float[N, 3] x) => (float[N, k] y) {text}")
    x = np.array([[1.0, -2.0, 0.0], [0.5, 0.5, 0.5]], np.float32)
    found = IntegratedGradientsExplainer(model, np.array([[-1.0, 1.0, 0.0]], np.float32), target=0).explain(x)
    assert np.abs(found.additivity_error).max() < 1e-12
    alone = [
        IntegratedGradientsExplainer(model, np.array([[-1.0, 1.0, 0.0]], np.float32), target=0).explain(
            row[None]
        )
        for row in x
    ]
    np.testing.assert_array_equal(found.attributions, np.concatenate([one.attributions for one in alone]))


def test_a_sample_that_is_the_reference_gets_nothing(images):
    _, content = network("relu_pool", images)
    found = IntegratedGradientsExplainer(content, images[:1]).explain(images[:1])
    assert not found.attributions.any()


def test_references_are_averaged_with_their_weights(images):
    _, content = network("relu_pool", images)
    singles = [
        IntegratedGradientsExplainer(content, images[i : i + 1], target=[0, 3]).explain(images[:2])
        for i in (4, 5)
    ]
    both = IntegratedGradientsExplainer(content, images[4:], target=[0, 3], weights=[3.0, 1.0]).explain(
        images[:2]
    )
    expected = 0.75 * singles[0].attributions + 0.25 * singles[1].attributions
    np.testing.assert_allclose(both.attributions, expected, atol=1e-13)
    np.testing.assert_allclose(both.base_value, 0.75 * singles[0].base_value + 0.25 * singles[1].base_value)
    assert np.abs(both.additivity_error).max() < 1e-12
    assert both.attributions.shape == (2, 2, 1, 8, 8)
    assert both.references == 2


def test_a_linear_model_is_explained_as_by_deepshap():
    model = parse(
        "agraph (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"
    )
    references, x = np.array([[1.0, 0.0], [3.0, 0.0]], np.float32), np.array([[1.0, 1.0]], np.float32)
    one, other = (
        Explainer(model, references, target=1, method=m).explain(x)
        for m in ("integrated_gradients", "deepshap")
    )
    np.testing.assert_allclose(one.attributions, other.attributions, atol=1e-6)
    assert one.method == "integrated_gradients"
    assert (one.output[0], one.base_value[0]) == (7.0, 4.0)


def test_another_method_is_another_class(images):
    _, content = network("relu_pool", images)
    made = Explainer(content, images[4:], method="integrated_gradients", tolerance=1e-8)
    assert type(made) is IntegratedGradientsExplainer
    assert made.method == "integrated_gradients"
    assert "exact" in repr(made)
    for call in (lambda: made.export("x.onnx"), lambda: made.verify(images), lambda: made.facts):
        with pytest.raises(
            NotAvailableError, match=r"integrated_gradients.*cut where its own activations switch"
        ):
            call()
    with pytest.raises(InvalidInputError, match="cache is no argument of method='integrated_gradients'"):
        Explainer(content, images[4:], method="integrated_gradients", cache=True)
    with pytest.raises(InvalidInputError, match="tolerance is no argument of method='deepshap'"):
        Explainer(content, images[4:], tolerance=1e-3)


def test_what_jumps_or_has_an_infinite_slope_is_refused():
    jumps = parse("agraph (float[N, 2] x) => (float[N, 2] y) { h = Floor(x)  s = Sign(x)  y = Add(h, s) }")
    with pytest.raises(UnsupportedModelError, match="integrate the gradients") as caught:
        IntegratedGradientsExplainer(jumps, np.zeros((1, 2), np.float32))
    assert {node.op_type for node in caught.value.nodes} == {"Floor", "Sign"}
    root = parse("agraph (float[N, 2] x) => (float[N, 2] y) { h = Abs(x)  y = Sqrt(h) }")
    explainer = IntegratedGradientsExplainer(root, np.zeros((1, 2), np.float32), target=0)
    with pytest.raises(NotFiniteError, match="infinite slope"):
        explainer.explain(np.array([[0.0, 0.0]], np.float32))


def test_targets_of_each_sample(images):
    _, content = network("relu_pool", images)
    explainer = IntegratedGradientsExplainer(content, images[4:5])
    x = images[:3]
    found = explainer.explain(x, target=torch.tensor([2, 0, 2]))
    for row, target in enumerate((2, 0, 2)):
        alone = explainer.explain(x[row : row + 1], target=target)
        np.testing.assert_array_equal(found.attributions[row], alone.attributions[0])
    assert found.target.tolist() == [2, 0, 2]
