"""Adjusted p-values and rejections against their definitions, by brute force and by scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selkit import calibration
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.inference.adjust import (
    METHODS,
    adjusted_p_values,
    benjamini_hochberg,
    benjamini_yekutieli,
    rejected,
)

P_VALUES = st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), max_size=12)


def step_up(values: np.ndarray, alpha: float, penalty: float) -> np.ndarray:
    """The step-up procedure as the papers state it, one k at a time."""
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    last = 0
    for k in range(1, len(order) + 1):
        if values[order[k - 1]] <= alpha * k / len(order) / penalty:
            last = k
    out = np.zeros(len(values), bool)
    if last:
        out[tested] = values[tested] <= values[order[last - 1]]
    return out


@settings(max_examples=60, deadline=None)
@given(P_VALUES, st.floats(0.01, 0.5))
def test_rejections_are_those_of_the_step_up_procedure(p: list[float], alpha: float) -> None:
    values = np.array(p)
    count = int((~np.isnan(values)).sum())
    harmonic = float(np.sum(1 / np.arange(1, max(count, 1) + 1)))
    np.testing.assert_array_equal(benjamini_hochberg(values, alpha), step_up(values, alpha, 1.0))
    np.testing.assert_array_equal(benjamini_yekutieli(values, alpha), step_up(values, alpha, harmonic))


@settings(max_examples=40, deadline=None)
@given(P_VALUES, st.sampled_from(METHODS))
def test_adjusted_values_reject_at_the_same_levels(p: list[float], method: str) -> None:
    values = np.array(p)
    adjusted = adjusted_p_values(values, method)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.isnan(adjusted), np.isnan(values))
    for alpha in (0.03, 0.1, 0.4):
        clear = ~(np.abs(adjusted - alpha) < 1e-12)  # ties with the level may round either way
        flags = rejected(values, alpha, method)  # type: ignore[arg-type]
        np.testing.assert_array_equal(flags[clear], (adjusted <= alpha)[clear])


def test_adjusted_values_against_scipy_and_by_hand() -> None:
    values = np.random.default_rng(0).uniform(size=30) ** 3
    with_gaps = np.insert(values, [0, 7, 30], np.nan)
    kept = ~np.isnan(with_gaps)
    for method in ("bh", "by"):
        expected = stats.false_discovery_control(values, method=method)
        np.testing.assert_allclose(adjusted_p_values(with_gaps, method)[kept], expected)  # type: ignore[arg-type]
    np.testing.assert_allclose(adjusted_p_values([0.01, 0.5, 0.9], "bonferroni"), [0.03, 1.0, 1.0])
    np.testing.assert_allclose(adjusted_p_values([0.01, 0.5], "none"), [0.01, 0.5])
    np.testing.assert_array_equal(
        benjamini_hochberg(with_gaps, 0.1)[kept], calibration.benjamini_hochberg(values, 0.1)
    )


def test_nothing_tested_rejects_nothing() -> None:
    for method in METHODS:
        assert not rejected([np.nan, np.nan], 0.05, method).any()
        assert rejected([], 0.05, method).shape == (0,)
        assert np.isnan(adjusted_p_values([np.nan], method)).all()


def test_bad_p_values() -> None:
    with pytest.raises(InvalidInputError, match=r"p_values must lie in \[0, 1\]; got -0.1 to 0.5"):
        adjusted_p_values([0.5, -0.1])
    with pytest.raises(InvalidInputError, match=r"p_values must lie"):
        benjamini_hochberg([0.5, np.inf], 0.1)
    with pytest.raises(InvalidInputError, match=r"shape \(1, 2\)"):
        benjamini_yekutieli([[0.1, 0.2]], 0.1)
    with pytest.raises(InvalidInputError, match="alpha must be a fraction"):
        rejected([0.1], 1.5)
    with pytest.raises(InvalidInputError, match="one of bh, by, bonferroni, none"):
        rejected([0.1], 0.05, "holm")  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="p_values must be numbers"):
        adjusted_p_values(["small"])  # type: ignore[list-item]
