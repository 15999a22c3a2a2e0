"""Arguments of the wrong kind, anywhere, end in one of selkit's own errors."""

from __future__ import annotations

import datetime as dt
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from selkit.errors import InvalidInputError, NotFiniteError, SelkitError
from selkit.explain import (
    Explainer,
    Explanation,
    IntegratedGradientsExplainer,
    PermutationExplainer,
    read_references,
    summarize,
)

MODEL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> agraph (float[N, 2] x) => (float[N, 3] y) '
    "<float[2, 3] w = {1,2,3,4,5,6}> { h = MatMul(x, w)  y = Relu(h) }"
)
REFERENCES = np.array([[0.5, -1.0], [0.0, 2.0]], np.float32)
X = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)

STRANGE: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "text": lambda: "text",
    "empty text": lambda: "",
    "bytes": lambda: b"text",
    "true": lambda: True,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "minus one": lambda: -1,
    "huge": lambda: 10**30,
    "half": lambda: 0.5,
    "fraction": lambda: Fraction(1, 3),
    "complex": lambda: 1 + 2j,
    "object": object,
    "list": lambda: [1, "a", None],
    "empty list": list,
    "nested": lambda: [[[1.0], 2.0]],
    "dictionary": lambda: {"a": 1},
    "set": lambda: {1, 2},
    "type": lambda: int,
    "function": lambda: len,
    "date": lambda: dt.date(2020, 1, 1),
    "path": lambda: Path("/nowhere/at/all"),
    "text array": lambda: np.array(["a", "b"]),
    "object array": lambda: np.array([None, 1], dtype=object),
    "complex array": lambda: np.ones((2, 2), complex),
    "complex tensor": lambda: torch.ones((2, 2), dtype=torch.complex64),
    "nan array": lambda: np.full((2, 2), np.nan, np.float32),
    "integer array": lambda: np.ones((2, 2), int),
    "empty array": lambda: np.zeros((0, 2), np.float32),
    "scalar array": lambda: np.array(0.5),
    "scalar tensor": lambda: torch.tensor(2.5),
    "meta tensor": lambda: torch.empty((2, 2), device="meta"),
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "structured": lambda: np.zeros(2, dtype=[("a", float)]),
    "generator": lambda: (value for value in (1, "a")),
}
MADE = {
    "deepshap": Explainer(MODEL, REFERENCES, target=0, threads=1),
    "integrated_gradients": IntegratedGradientsExplainer(MODEL, REFERENCES, target=0),
}
EXPLANATION = MADE["deepshap"].explain(X)
ARGUMENTS = (
    *("output", "target", "method", "input", "fixed", "reduce", "position", "mask", "class_axis", "weights"),
    *("cache", "chunk", "threads", "key"),
)
CALLS: dict[str, Callable[[object], object]] = {
    "model": lambda v: Explainer(v, REFERENCES),
    "references": lambda v: Explainer(MODEL, v),
    **{
        name: lambda v, name=name: Explainer(MODEL, REFERENCES, **{"threads": 1, name: v})
        for name in ARGUMENTS
    },
    **{
        f"integrated {name}": lambda v, name=name: IntegratedGradientsExplainer(
            MODEL, REFERENCES, **{name: v}
        )
        for name in (*ARGUMENTS[:2], *ARGUMENTS[3:10], "tolerance", "budget", "key")
    },
    "integrated references": lambda v: IntegratedGradientsExplainer(MODEL, v),
    "load": Explainer.load,
    "load threads": lambda v: Explainer.load(MODEL, threads=v),
    "explain": MADE["deepshap"].explain,
    "explain target": lambda v: MADE["deepshap"].explain(X, target=v),
    "integrated explain": MADE["integrated_gradients"].explain,
    "integrated explain target": lambda v: MADE["integrated_gradients"].explain(X, target=v),
    "export external": lambda v: MADE["deepshap"].export("/dev/null", external=v),
    "verify": MADE["deepshap"].verify,
    "read_references": read_references,
    "summarize": lambda v: summarize(v, 1),
    "summarize k": lambda v: summarize(X, v),
    "summarize seed": lambda v: summarize(X, 1, seed=v),
    "for_target": EXPLANATION.for_target,
    "for_input": EXPLANATION.for_input,
    "plot sample": EXPLANATION.plot,
    "plot target": lambda v: EXPLANATION.plot(target=v),
    "plot kind": lambda v: EXPLANATION.plot(kind=v),
    "explanation": lambda v: Explanation(v, np.zeros(2), np.zeros(2), np.zeros(2, int), v, 1),
    "explanation x": lambda v: Explanation(X, np.zeros(2), np.zeros(2), np.zeros(2, int), v, 1),
    "explanation output": lambda v: Explanation(X, np.zeros(2), v, np.zeros(2, int), X, 1),
}


@pytest.mark.parametrize("call", CALLS)
def test_nothing_but_our_own_errors(call):
    """Every strange value either works or is refused by name."""
    foreign = []
    for name, make in STRANGE.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                CALLS[call](make())
            except SelkitError as error:
                if not str(error) or " at 0x" in str(error):
                    foreign.append(f"{name}: {error}")
            except Exception as error:  # noqa: BLE001 - what is looked for
                foreign.append(f"{name}: {type(error).__name__}: {error}")
    assert not foreign, "\n".join(foreign)


@pytest.mark.parametrize("value", [object(), None, 3, b"x", ["a"]], ids=lambda value: type(value).__name__)
def test_paths(value):
    with pytest.raises(SelkitError, match="path"):
        MADE["deepshap"].export(value)


def test_permutation_arguments():
    pytest.importorskip("shap")
    foreign = []
    for argument in ("output", "target", "reduce", "position", "mask", "class_axis", "permutations", "seed"):
        for name, make in STRANGE.items():
            try:
                PermutationExplainer(MODEL, REFERENCES, **{"permutations": 1, argument: make()})
            except SelkitError:
                pass
            except Exception as error:  # noqa: BLE001 - what is looked for
                foreign.append(f"{argument} {name}: {type(error).__name__}: {error}")
    assert not foreign, "\n".join(foreign)


TARGETS = [1, np.int32(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.int32)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{type(t).__name__} {getattr(t, 'dtype', '')}")
@pytest.mark.parametrize("method", MADE)
def test_whole_numbers_of_any_library_are_targets(method, target):
    expected = MADE[method].explain(X, target=1).attributions
    np.testing.assert_array_equal(MADE[method].explain(X, target=target).attributions, expected)
    made = Explainer(MODEL, REFERENCES, target=target, method=method).explain(X)
    np.testing.assert_array_equal(made.attributions, expected)
    assert made.target.tolist() == [1, 1]


@pytest.mark.parametrize("method", MADE)
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=lambda k: k.__name__)
def test_another_target_for_each_sample(kind, method):
    found = MADE[method].explain(X, target=kind([2, 1]))
    for row, target in enumerate((2, 1)):
        alone = MADE[method].explain(X[row : row + 1], target=target)
        np.testing.assert_array_equal(found.attributions[row], alone.attributions[0])
    again = MADE[method].explain(X, target=found.target)
    np.testing.assert_array_equal(again.attributions, found.attributions)
    several = Explainer(MODEL, REFERENCES, target=kind([2, 0]), method=method)
    both = several.explain(X, target=kind([[2, 1], [0, 2]]))
    np.testing.assert_array_equal(both.attributions[0], found.attributions)
    assert both.target.tolist() == [[2, 1], [0, 2]]
    with pytest.raises(InvalidInputError, match="twice"):
        several.explain(X, target=kind([[2, 1], [2, 0]]))


@pytest.mark.parametrize("method", MADE)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bad, method):
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[1, 2] = bad
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    with pytest.raises(InvalidInputError, match="NaN" if np.isnan(bad) else "weights are infinite"):
        Explainer(model, REFERENCES, method=method)


@pytest.mark.parametrize("method", MADE)
def test_inputs_that_overflow_are_named(method):
    text = "agraph (float[N, 1] x) => (float[N, 1] y) { h = Exp(x)  g = Exp(h)  y = Neg(g) }"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    explainer = Explainer(model, np.zeros((1, 1), np.float32), target=0, method=method)
    with pytest.raises(NotFiniteError, match="1 of 3 samples, first for number 1"):
        explainer.explain([[0.0], [50.0], [1.0]])
    with pytest.raises(NotFiniteError, match="1 of 1 references"):
        Explainer(model, np.full((1, 1), 50.0, np.float32), target=0, method=method)


def test_masks_of_minus_infinity_are_no_fault():
    """Attention masks are infinite weights, and mean what they say."""
    text = """agraph (float[N, 3] x) => (float[N, 3] y) <float[1, 3] m>
        { h = Add(x, m)  y = Softmax <axis = 1> (h) }"""
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[0, -np.inf, 0]], np.float32), "m"))
    del model.graph.input[1:]
    for method in MADE:
        found = Explainer(model, np.zeros((1, 3), np.float32), target=0, method=method).explain(
            [[1.0, 5.0, 2.0]]
        )
        assert np.abs(found.additivity_error).max() < 1e-5
        assert found.attributions[0, 1] == 0
