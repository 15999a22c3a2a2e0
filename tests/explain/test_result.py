"""What an explanation holds, its sums, and how to take parts of it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from selkit.errors import InvalidInputError, MissingExtraError
from selkit.explain.result import Explanation

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(3, 4))
X = RNG.normal(size=(5, 4))
REFERENCES = RNG.normal(size=(6, 4))


def linear(targets: list[int] | None = None, target: int = 1) -> Explanation:
    """The exact attributions of a linear model."""
    rows = [target] if targets is None else targets
    change = X - REFERENCES.mean(0)
    parts = {
        "attributions": np.stack([change * WEIGHTS[t] for t in rows]),
        "base_value": np.stack([np.full(5, (REFERENCES @ WEIGHTS[t]).mean()) for t in rows]),
        "output": np.stack([X @ WEIGHTS[t] for t in rows]),
        "target": np.stack([np.full(5, t) for t in rows]),
    }
    if targets is None:
        parts = {name: part[0] for name, part in parts.items()}
    return Explanation(**parts, x=X, references=6)


def test_sums_of_a_linear_model_are_exact():
    explanation = linear()
    assert explanation.additivity_error.shape == (5,)
    assert np.abs(explanation.additivity_error).max() < 1e-14
    assert explanation.relative_error.max() < 1e-13


def test_the_error_is_the_sum_minus_the_difference():
    right = linear()
    wrong = Explanation(
        right.attributions + 0.25, right.base_value, right.output, right.target, right.x, right.references
    )
    np.testing.assert_allclose(wrong.additivity_error, 1.0)
    np.testing.assert_allclose(
        wrong.relative_error, 1 / np.maximum(np.abs(right.output), np.abs(right.base_value))
    )


def test_errors_of_single_precision_are_summed_in_double():
    x = np.full((1, 10**5), 0.1, dtype=np.float32)
    explanation = Explanation(
        x, np.zeros(1), np.array([float(np.float32(0.1)) * 10**5]), np.zeros(1, np.int64), x, 1
    )
    assert abs(explanation.additivity_error[0]) < 1e-8


def test_several_targets_have_the_first_axis():
    explanation = linear([2, 0])
    assert explanation.several
    assert explanation.attributions.shape == (2, 5, 4)
    assert explanation.additivity_error.shape == (2, 5)
    for target in (0, 2):
        one = explanation.for_target(target)
        np.testing.assert_array_equal(one.attributions, linear(target=target).attributions)
        np.testing.assert_array_equal(one.output, X @ WEIGHTS[target])
        assert not one.several
    with pytest.raises(InvalidInputError, match=r"target 1 was not explained .* \[0, 2\]"):
        explanation.for_target(1)


def test_the_one_target_is_found_and_mixed_ones_are_not():
    explanation = linear(target=1)
    assert explanation.for_target(1) is explanation
    mixed = Explanation(X, np.zeros(5), X.sum(1), np.array([0, 1, 1, 1, 1]), X, 1)
    with pytest.raises(InvalidInputError, match="not explained for every sample"):
        mixed.for_target(1)


@pytest.mark.parametrize("targets", [None, [0, 2]])
def test_samples_are_taken_with_everything_that_belongs_to_them(targets):
    explanation = linear(targets)
    assert len(explanation) == 5
    part = explanation[1:3]
    assert len(part) == 2
    np.testing.assert_array_equal(part.x, X[1:3])
    np.testing.assert_array_equal(part.attributions, explanation.attributions[..., 1:3, :])
    np.testing.assert_array_equal(part.output, explanation.output[..., 1:3])
    last = explanation[-1]
    assert len(last) == 1
    np.testing.assert_array_equal(last.attributions[..., 0, :], explanation.attributions[..., 4, :])
    assert len(list(explanation)) == 5
    with pytest.raises(IndexError, match="sample 5 of an explanation of 5"):
        explanation[5]


def test_the_summary_has_a_row_for_each_sample_and_target():
    rows = linear([2, 0]).summary()
    assert [(row["target"], row["sample"]) for row in rows] == [(t, n) for t in (2, 0) for n in range(5)]
    for row in rows:
        parts = (X[row["sample"]] - REFERENCES.mean(0)) * WEIGHTS[row["target"]]
        assert row["positive"] == pytest.approx(parts[parts > 0].sum())
        assert row["negative"] == pytest.approx(parts[parts < 0].sum())
        assert row["positive"] + row["negative"] == pytest.approx(row["output"] - row["base_value"])


def test_text_names_the_method_and_the_worst_error():
    assert str(linear([2, 0])).startswith(
        "deepshap of 5 sample(s) of shape (4,), 2 targets each, 6 reference"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attributions": np.zeros((5, 3))},
            r"shape \(5, 3\); it must be that of x, \(5, 4\)",
        ),
        ({"attributions": np.zeros((1, 1, 5, 4))}, "at most one axis for targets"),
        ({"base_value": np.zeros(1)}, r"base_value has shape \(1,\); it must be \(5,\)"),
        ({"output": np.zeros((1, 5))}, "output has shape"),
        ({"target": np.int64(0)}, r"target has shape \(\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    right = linear()
    parts = {name: getattr(right, name) for name in ("attributions", "base_value", "output", "target", "x")}
    with pytest.raises(InvalidInputError, match=message):
        Explanation(**{**parts, **change}, references=6)


def test_shap_takes_it():
    one, several = linear().to_shap(["a", "b", "c", "d"]), linear([2, 0]).to_shap()
    np.testing.assert_array_equal(one.values, linear().attributions)
    assert one.feature_names == ["a", "b", "c", "d"]
    assert several.values.shape == (5, 4, 2)
    np.testing.assert_array_equal(several.values[..., 1], linear(target=0).attributions)


def test_without_shap_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "shap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'selkit\[shap\]'"):
        linear().to_shap()
