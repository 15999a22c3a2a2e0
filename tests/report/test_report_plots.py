"""What the plots draw, read back from the SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy.stats import gaussian_kde

from selkit.report import Curve, plots


def points(svg: str, selector: str) -> np.ndarray:
    """The pixels of the first path with these classes."""
    for path in ET.fromstring(svg).iter("path"):  # noqa: S314 - our own text
        if path.get("class") == selector:
            return np.array(re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d")), dtype=float)
    raise AssertionError(f"no path {selector!r}")


def test_the_curve_is_drawn_where_its_values_are():
    coverage, risk = np.array([0.25, 0.5, 1.0]), np.array([0.0, 0.2, 0.4])
    svg = plots.risk_coverage_plot(Curve(coverage, risk), "error", 0.5)
    drawn = points(svg, "line s0")
    width = plots.WIDTH - plots.LEFT - plots.RIGHT
    height = plots.HEIGHT - plots.TOP - plots.BOTTOM
    np.testing.assert_allclose((drawn[:, 0] - plots.LEFT) / width, coverage, atol=2e-4)
    np.testing.assert_allclose((plots.HEIGHT - plots.BOTTOM - drawn[:, 1]) / height * 0.42, risk, atol=2e-4)
    assert "coverage is 50% and error is 0.2" in svg


def test_a_long_curve_keeps_its_ends():
    n = 100_000
    drawn = points(
        plots.risk_coverage_plot(Curve(np.linspace(0, 1, n), np.linspace(0, 1, n)), "risk", None), "line s0"
    )
    assert len(drawn) == plots.MOST_POINTS
    assert drawn[0, 0] == plots.LEFT
    assert drawn[-1, 0] == plots.WIDTH - plots.RIGHT


def test_the_band_is_drawn_where_its_ends_are():
    coverage = np.array([0.25, 0.5, 1.0])
    curve = Curve(coverage, np.array([0.1, 0.2, 0.4]), np.array([0.0, 0.1, 0.3]), np.array([0.2, 0.35, 0.5]))
    svg = plots.risk_coverage_plot(curve, "error", None)
    drawn = points(svg, "area band s0")
    height = plots.HEIGHT - plots.TOP - plots.BOTTOM
    values = (plots.HEIGHT - plots.BOTTOM - drawn[:, 1]) / height * 0.525
    np.testing.assert_allclose(values, [0.2, 0.35, 0.5, 0.3, 0.1, 0.0], atol=3e-4)
    assert "from 0.3 to 0.5" in svg


def test_changed_p_values_are_drawn_where_they_are():
    pairs = [(0.1, 0.4), (1.0, 0.0)]
    drawn = points(plots.change_plot(pairs, 0.05), "dots")
    width = plots.WIDTH - plots.LEFT - plots.RIGHT
    height = plots.HEIGHT - plots.TOP - plots.BOTTOM
    np.testing.assert_allclose((drawn[:, 0] - plots.LEFT) / width, [0.1, 1.0], atol=2e-4)
    np.testing.assert_allclose((plots.HEIGHT - plots.BOTTOM - drawn[:, 1]) / height, [0.4, 0.0], atol=2e-4)
    assert "by 0.65 on average and by at most 1" in plots.change_plot(pairs, 0.05)


@pytest.mark.parametrize("risk", [0.0, 1.0, -2.0])
def test_a_constant_or_negative_risk_can_be_drawn(risk):
    svg = plots.risk_coverage_plot(Curve(np.array([0.5, 1.0]), np.array([risk, risk])), "risk", 1.0)
    assert "nan" not in svg.lower().replace("nance", "")
    ET.fromstring(svg)  # noqa: S314 - our own text


@pytest.mark.parametrize("seed", [0, 1])
def test_density_agrees_with_scipy(seed):
    values = np.random.default_rng(seed).normal(3, 2, 200)
    low, high = values.min() - 4, values.max() + 4
    spread = min(values.std(), (np.percentile(values, 75) - np.percentile(values, 25)) / 1.34)
    bandwidth = 0.9 * spread * len(values) ** -0.2
    expected = gaussian_kde(values, bandwidth / values.std(ddof=1))(np.linspace(low, high, plots.GRID))
    got = plots.density(values, low, high)
    np.testing.assert_allclose(got, expected, atol=4e-3 * expected.max())
    assert got.sum() * (high - low) / (plots.GRID - 1) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "values",
    [[1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 5.0], [1e-3, 1e3], [-1.0, float("nan"), float("inf"), 2.0]],
)
def test_any_finite_scores_can_be_drawn(values):
    svg = plots.density_plot({"a": np.array(values)}, 1.0)
    assert np.isfinite(points(svg, "line s0")).all()
    assert "threshold 1" in svg


def test_without_a_finite_score_there_is_no_plot():
    assert plots.density_plot({"a": np.array([np.nan]), "b": np.array([])}, 1.0) == ""


def test_names_are_escaped():
    svg = plots.density_plot({'<b>"&': np.array([1.0, 2.0])}, None)
    assert "<b>" not in svg
    assert '<b>"& (median 1.5)' in ET.fromstring(svg).get("aria-label")  # noqa: S314 - our own text


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3, 7, False, [-2, 0, 2, 4, 6]),
        (0.15, 25, True, [0.2, 0.5, 1, 2, 5, 10, 20]),
        (1e-3, 1e3, True, [1e-3, 1e-2, 1e-1, 1, 10, 100, 1000]),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    assert plots.Scale(low, high, 0, 1, log).ticks() == pytest.approx(expected)
