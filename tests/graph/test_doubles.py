"""Double precision where onnxruntime has no kernel: formulas against SciPy, and additivity of operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
import torch

from selkit.explain import Explainer
from selkit.graph import doubles

ALPHA = 1.67326319217681884765625
SEVEN = float(np.float32(0.7))  # as the file stores it
FUNCTIONS = {
    "Atan": ("", np.arctan),
    "Celu": ("<alpha = 0.7>", lambda x: np.where(x > 0, x, SEVEN * np.expm1(np.minimum(x, 0) / SEVEN))),
    "Elu": ("<alpha = 0.5>", lambda x: np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0)))),
    "Erf": ("", scipy.special.erf),
    "HardSigmoid": ("<alpha = 0.25, beta = 0.5>", lambda x: np.clip(0.25 * x + 0.5, 0, 1)),
    "HardSwish": ("", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "LeakyRelu": ("<alpha = 0.125>", lambda x: np.where(x > 0, x, 0.125 * x)),
    "Mish": ("", lambda x: x * np.tanh(np.logaddexp(x, 0))),
    "Selu": (
        "",
        lambda x: 1.05070102214813232421875 * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))),
    ),
    "Softplus": ("", lambda x: np.logaddexp(x, 0)),
    "Softsign": ("", lambda x: x / (1 + np.abs(x))),
    "ThresholdedRelu": ("<alpha = 0.5>", lambda x: np.where(x > 0.5, x, 0)),
}
POINTS = np.concatenate(
    [np.linspace(-12, 12, 4001), [0.0, 0.66, -0.66, 1 + np.sqrt(2), 1e-9, -1e-9, 30.0, -30.0, 1e6, -1e6]]
)


def parse(text: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>' + text)


def explained(model: onnx.ModelProto, x: np.ndarray, references: np.ndarray, **options):
    return Explainer(model, references, target="all", threads=1, **options).explain(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementwise_functions(name):
    """Outputs as by SciPy, and attributions that are exact: the change of each entry."""
    attributes, function = FUNCTIONS[name]
    width = 16
    points = POINTS if name != "ThresholdedRelu" else POINTS[POINTS != 0.5]
    x = np.resize(points, (-(-len(points) // width), width))
    model = parse(
        f"agraph (double[N, {width}] x) => (double[N, {width}] y) {{ y = {name} {attributes} (x) }}"
    )
    reference = np.full((1, width), 0.3)
    found = explained(model, x, reference)
    expected = function(x)
    np.testing.assert_allclose(found.output.T, expected, rtol=4e-15, atol=4e-15)
    change = expected - function(reference)
    diagonal = np.stack([found.attributions[i, :, i] for i in range(width)], axis=1)
    np.testing.assert_allclose(diagonal, change, rtol=1e-9, atol=1e-9)
    assert (np.abs(found.additivity_error) <= 1e-9 * np.maximum(1, np.abs(found.output))).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    x = np.resize(POINTS[np.abs(POINTS) < 100], (250, 16))
    model = parse(
        f'agraph (double[N, 16] x) => (double[N, 16] y) {{ y = Gelu <approximate = "{approximate}"> (x) }}',
        20,
    )
    expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate).numpy()
    found = explained(model, x, np.zeros((1, 16)))
    np.testing.assert_allclose(found.output.T, expected, rtol=1e-13, atol=4e-15)
    assert np.abs(found.additivity_error).max() < 1e-9


LAYERS = {
    "y = PRelu(x, s)": "double[1, 2, 1] s = {0.5, -0.25}",
    "y = GlobalMaxPool(x)": "",
    "y = GlobalAveragePool(x)": "",
    "h = Neg(x)  g = Relu(x)  y = Mean(x, h, g)": "",
}
SINGLE = {
    "y = Conv <pads = [1, 1]> (x, w)": "double[2, 2, 3] w = {1, 2, 3, 0, 1, -1, 2, 0.1, 1, 1, -2, 0.3}",
    "y = ConvTranspose <strides = [2]> (x, w)": "double[2, 1, 2] w = {1, 2.1, -3, 0.7}",
    "y = AveragePool <kernel_shape = [3], pads = [1, 1]> (x)": "",
}


@pytest.mark.parametrize(("text", "weights"), [*LAYERS.items(), *SINGLE.items()], ids=[*LAYERS, *SINGLE])
def test_layers(text, weights):
    """Held to the same model in single precision by onnxruntime; convolutions add up as that does."""
    stored = f"<{weights}>" if weights else ""
    model = parse(f"agraph (double[N, 2, 5] x) => (double[N, a, b] y) {stored} {{ {text} }}")
    x = np.random.default_rng(0).standard_normal((4, 2, 5))
    found = Explainer(model, x[2:], target="all", reduce="sum", class_axis=1, threads=1).explain(x[:2])
    small = parse(
        f"agraph (float[N, 2, 5] x) => (float[N, a, b] y) {stored.replace('double', 'float')} {{ {text} }}"
    )
    session = onnxruntime.InferenceSession(small.SerializeToString())
    expected = session.run(None, {"x": x[:2].astype(np.float32)})[0].sum(axis=2)
    np.testing.assert_allclose(found.output.T, expected, atol=1e-5)
    assert found.attributions.dtype == np.float64
    assert np.abs(found.additivity_error).max() < (1e-5 if text in SINGLE else 1e-12)


def test_every_case_is_tested():
    assert doubles.ELEMENTWISE.keys() == {*FUNCTIONS, "Gelu"}
    assert {text.split("= ")[1].split(" ")[0].split("(")[0] for text in SINGLE} == doubles.SINGLE
