"""Derivatives, bounds and inverses of smooth functions, against dense tables of the true function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from selkit.graph import ops
from selkit.graph.ops import base
from selkit.graph.ops.base import Smooth, UnsupportedAttribute

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """A smooth operator, its formula in numpy or scipy, and where it is defined."""

    operator: Smooth
    function: Callable[[Array], Array]
    low: float = -12.0
    high: float = 12.0


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _selu(x: Array) -> Array:
    return 1.0507010221481323 * _elu(x, 1.6732631921768188)


def _tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


TRUTHS = [
    Truth(ops.Exp(), np.exp),
    Truth(ops.Log(), np.log, 1e-2),
    Truth(ops.Sqrt(), np.sqrt, 1e-2),
    Truth(ops.Reciprocal(), lambda x: 1 / x, 1e-2),
    Truth(ops.Reciprocal(), lambda x: 1 / x, -12, -1e-2),
    Truth(ops.Power(2.0), np.square),
    Truth(ops.Power(3.0), lambda x: x**3),
    Truth(ops.Power(1.0), lambda x: x),
    Truth(ops.Power(-2.0), lambda x: x**-2.0, 1e-2),
    Truth(ops.Power(0.5), np.sqrt, 1e-2),
    Truth(ops.Power(2.5), lambda x: x**2.5, 0.0),
    Truth(ops.Sin(), np.sin),
    Truth(ops.Cos(), np.cos),
    Truth(ops.Sigmoid(), special.expit),
    Truth(ops.Tanh(), np.tanh),
    Truth(ops.Erf(), special.erf),
    Truth(ops.Atan(), np.arctan),
    Truth(ops.Softplus(), lambda x: np.logaddexp(0, x)),
    Truth(ops.Softsign(), lambda x: x / (1 + np.abs(x))),
    Truth(ops.Elu(), lambda x: _elu(x, 1)),
    Truth(ops.Elu(alpha=0.4), lambda x: _elu(x, 0.4)),
    Truth(ops.Selu(), _selu),
    Truth(ops.Celu(alpha=0.7), lambda x: 0.7 * _elu(x / 0.7, 1)),
    Truth(ops.HardSwish(), lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    Truth(ops.Swish(), lambda x: x * special.expit(x)),
    Truth(ops.Swish(alpha=-1.7), lambda x: x * special.expit(-1.7 * x)),
    Truth(ops.Mish(), lambda x: x * np.tanh(np.logaddexp(0, x))),
    Truth(ops.Gelu(), lambda x: x * special.ndtr(x)),
    Truth(ops.Gelu(approximate="tanh"), _tanh_gelu),
]
every = pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: f"{truth.operator} from {truth.low}")


def tensor(values: Array | float) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def away_from_kinks(truth: Truth, x: Array) -> Array:
    return x[
        np.all([np.abs(x - kink) > 1e-3 for kink in truth.operator.kinks] or [np.ones(len(x))], axis=0) > 0
    ]


def test_every_smooth_operator_has_a_truth():
    known = {entry.operator for entry in base.registrations() if issubclass(entry.operator, Smooth)}
    assert known <= {type(truth.operator) for truth in TRUTHS}


@every
def test_the_function_is_the_formula(truth: Truth):
    x = np.linspace(truth.low, truth.high, 1001)
    np.testing.assert_allclose(
        truth.operator.forward(tensor(x))[0], truth.function(x), rtol=1e-12, atol=1e-14
    )


@every
def test_derivatives_are_those_of_the_formula(truth: Truth):
    x = away_from_kinks(truth, np.linspace(truth.low + 2e-3, truth.high - 2e-3, 601))
    if isinstance(truth.operator, ops.Elu | ops.Celu | ops.Softsign):
        x = x[np.abs(x) > 1e-3]  # the second derivative jumps at 0
    step = 1e-5 * np.maximum(np.abs(x), 0.1)
    f = truth.function
    first = (f(x + step) - f(x - step)) / (2 * step)
    scale = np.abs(first) + np.abs(f(x)) + 1
    assert np.all(np.abs(truth.operator.derivative(tensor(x)).numpy() - first) <= 1e-7 * scale)
    slope = truth.operator.derivative
    second = (slope(tensor(x + step)) - slope(tensor(x - step))).numpy() / (2 * step)
    scale = np.abs(second) + np.abs(first) + 1
    assert np.all(np.abs(truth.operator.second(tensor(x)).numpy() - second) <= 1e-6 * scale)


@every
@given(data=st.data())
def test_bounds_hold_on_dense_tables_and_are_tight(truth: Truth, data):
    ends = st.floats(truth.low, truth.high, allow_nan=False)
    lower, upper = sorted((data.draw(ends), data.draw(ends)))
    width = upper - lower
    if width < 1e-6:
        return
    operator, f = truth.operator, truth.function
    x = np.linspace(lower, upper, 2001)
    y = f(x)
    slope = float(operator.slope(tensor(lower), tensor(upper)))
    rise = np.abs(np.diff(y)) / np.diff(x)
    noise = 1e-12 * (np.abs(y).max() + 1) / (width / 2000)
    assert rise.max() <= slope * (1 + 1e-9) + noise
    curvature = float(operator.curvature(tensor(lower), tensor(upper)))
    inside = any(lower < kink < upper for kink in operator.kinks)
    assert np.isinf(curvature) == inside
    # the certificate that it is for: no value is further from the chord than this bump
    chord = y[0] + (y[-1] - y[0]) * (x - lower) / width
    assert np.abs(y - chord).max() <= curvature * width**2 / 8 * (1 + 1e-9) + 1e-12 * (np.abs(y).max() + 1)
    if not inside and not isinstance(operator, ops.Sin | ops.Cos):
        dense = np.abs(operator.second(tensor(x[1:-1])).numpy()).max()
        assert (
            curvature <= dense * 1.1 + np.abs(operator.second(tensor([lower, upper])).numpy()).max() + 1e-12
        )
        steepest = np.abs(operator.derivative(tensor(x)).numpy()).max()
        assert slope <= steepest * 1.05 + 1e-9 or operator.kinks


@every
def test_bounds_are_infinite_across_poles(truth: Truth):
    operator = truth.operator
    lower, upper = tensor([-1.0, -1e-3, 0.0]), tensor([1.0, 1e-3, 0.0])
    pole = isinstance(operator, ops.Log | ops.Sqrt | ops.Reciprocal) or operator in (
        ops.Power(-2.0),
        ops.Power(0.5),
    )
    if pole:
        assert torch.isinf(operator.curvature(lower, upper)).all()
        assert torch.isinf(operator.slope(lower, upper)).all()
    else:
        assert not torch.isnan(operator.curvature(lower[2:], upper[2:])).any()


@every
def test_inverses_undo_monotone_functions(truth: Truth):
    operator = truth.operator
    x = np.linspace(max(truth.low, -4), min(truth.high, 4), 801)
    y = truth.function(x)
    if operator.monotone:
        assert np.all(np.diff(y) > 0)
        np.testing.assert_allclose(operator.inverse(tensor(y)), x, rtol=1e-7, atol=1e-9)
    else:
        assert not np.all(np.diff(y) > 0) or truth.low > -4
        with pytest.raises(TypeError, match="has no inverse"):
            operator.inverse(tensor(y))


@pytest.mark.parametrize(
    ("operator", "below", "above"),
    [
        (ops.Sigmoid(), -0.1, 1.1),
        (ops.Tanh(), -1.1, 1.1),
        (ops.Erf(), -1.1, 1.1),
        (ops.Atan(), -1.6, 1.6),
        (ops.Softsign(), -1.0, 1.0),
    ],
)
def test_thresholds_beyond_the_range_are_never_and_always_passed(
    operator: Smooth, below: float, above: float
):
    assert operator.inverse(tensor([below, above])).tolist() == [-np.inf, np.inf]


def test_thresholds_below_a_positive_range_are_always_passed():
    for operator in (ops.Exp(), ops.Softplus(), ops.Sqrt(), ops.Power(0.5)):
        assert operator.inverse(tensor([-1.0])).tolist() == [-np.inf]
    assert ops.Elu().inverse(tensor([-2.0])).tolist() == [-np.inf]


def test_parameters_that_mean_nothing_are_refused():
    for wrong in (
        lambda: ops.Celu(alpha=0.0),
        lambda: ops.Gelu(approximate="erf"),
        lambda: ops.Power(np.inf),
    ):
        with pytest.raises(UnsupportedAttribute):
            wrong()
