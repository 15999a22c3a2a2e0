"""What plots draw, against values found in other ways."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from scipy import ndimage, stats

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError, MissingExtraError
from selkit.inference import BackMeanDiff, RoiResult
from selkit.inference.plots import plot_line, plot_p_values, plot_qq, plot_region

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra 'report')")


def smooth(shape: str, kernel: str) -> onnx.ModelProto:
    """A moving average of an input of this shape."""
    pads = ", ".join(["1"] * 2 * len(kernel.split(",")))
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[{shape}] x) => (float[{shape}] y) {{
            y = AveragePool<kernel_shape = [{kernel}], pads = [{pads}]>(x)
        }}"""
    )


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(1, 1, 6, 7))
    x[0, 0, 1:4, 2:5] += 2.0
    return x


@pytest.fixture(scope="module")
def result(image: np.ndarray) -> RoiResult:
    return selkit.load(smooth("1, 1, 6, 7", "3, 3"), BackMeanDiff(0.6), var=1.0).inference(image)


P = np.array([0.02, 0.31, np.nan, 0.33, 0.99, 1.0, 0.0, 0.5])


def test_histograms_count_p_values() -> None:
    ax = plot_p_values(P, bins=5)
    heights = [bar.get_height() for bar in ax.patches]
    known = P[~np.isnan(P)]
    counts = [int(((known >= k / 5) & ((known < (k + 1) / 5) | (k == 4))).sum()) for k in range(5)]
    assert sum(counts) == 7
    np.testing.assert_allclose(heights, np.array(counts) / 7 * 5)
    np.testing.assert_allclose([bar.get_x() for bar in ax.patches], np.arange(5) / 5, atol=1e-12)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.0, 1.0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["7 p-values", "uniform"]


def test_qq_plots_and_their_band() -> None:
    p = np.random.default_rng(1).uniform(size=30)
    ax = plot_qq(np.append(p, np.nan), confidence=0.9)
    points = ax.lines[1]
    np.testing.assert_allclose(points.get_ydata(), np.sort(p))
    np.testing.assert_allclose(points.get_xdata(), (np.arange(30) + 0.5) / 30)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])
    assert f"KS p = {stats.kstest(p, 'uniform').pvalue:.3g}" in points.get_label()


def band_of(ax: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the drawn band at each point."""
    vertices = ax.collections[0].get_paths()[0].vertices
    middle = ax.lines[1].get_xdata()
    columns = [vertices[np.isclose(vertices[:, 0], x), 1] for x in middle]
    return np.array([c.min() for c in columns]), np.array([c.max() for c in columns])


def test_the_band_holds_with_its_confidence() -> None:
    """All points lie inside exactly if Kolmogorov and Smirnov do not reject, which is how often they must."""
    lower, upper = band_of(plot_qq(np.linspace(0, 1, 12), confidence=0.8))
    inside, accepted = [], []
    for seed in range(300):
        p = np.random.default_rng(seed).uniform(size=12)
        ordered = np.sort(p)
        inside.append(bool(np.all((ordered >= lower) & (ordered <= upper))))
        accepted.append(bool(stats.kstest(p, "uniform").pvalue > 0.2))
    assert inside == accepted
    assert abs(np.mean(inside) - 0.8) < 3 * np.sqrt(0.8 * 0.2 / 300)


def outline_length(region: np.ndarray) -> int:
    """Number of pixel sides between inside and outside."""
    padded = np.pad(region, 1).astype(int)
    return int(np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum())


def test_regions_are_outlined(image: np.ndarray, result: RoiResult) -> None:
    ax = plot_region(image, result)
    np.testing.assert_array_equal(ax.images[0].get_array(), image[0, 0])
    segments = ax.collections[0].get_segments()
    assert len(segments) == outline_length(result.roi)
    drawn = np.zeros((6, 7), bool)
    for row in range(6):
        # A pixel is inside if a ray to its left crosses an odd number of upright sides.
        for column in range(7):
            crossed = [
                s for s in segments if s[0][0] == s[1][0] < column and min(s[:, 1]) < row < max(s[:, 1])
            ]
            drawn[row, column] = len(crossed) % 2 == 1
    np.testing.assert_array_equal(drawn, result.roi)
    level = [s for s in segments if s[0][1] == s[1][1]]
    assert len(level) == int(np.abs(np.diff(np.pad(result.roi, 1).astype(int), axis=0)).sum())
    assert ax.get_title() == f"p = {result.p_value:.3g} (naive {result.naive_p_value():.3g})"
    again = plot_region(torch.as_tensor(image[0]), result)
    np.testing.assert_array_equal(again.images[0].get_array(), image[0, 0])


def test_regions_of_signals() -> None:
    x = np.random.default_rng(2).normal(size=(1, 1, 24))
    x[0, 0, [3, 4, 5, 15, 16]] += 3.0
    result = selkit.load(smooth("1, 1, 24", "3"), BackMeanDiff(0.7), var=1.0).inference(x)
    ax = plot_region(x, result)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), x[0, 0])
    labels, count = ndimage.label(result.roi)
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    expected = [np.flatnonzero(labels == k + 1)[[0, -1]] + [-0.5, 0.5] for k in range(count)]
    assert count >= 2
    np.testing.assert_allclose(spans, expected)


def test_one_channel_or_slice_is_drawn(image: np.ndarray, result: RoiResult) -> None:
    stack = np.concatenate([image[0], 2 * image[0], 3 * image[0]])
    drawn = plot_region(stack, result, channel=2).images[0].get_array()
    np.testing.assert_array_equal(drawn, 3 * image[0, 0])
    x = np.random.default_rng(3).normal(size=(1, 1, 4, 5, 6))
    volume = selkit.load(smooth("1, 1, 4, 5, 6", "3, 3, 3"), BackMeanDiff(0.2), var=1.0).inference(x)
    ax = plot_region(x, volume, channel=1)
    np.testing.assert_array_equal(ax.images[0].get_array(), x[0, 0, 1])
    assert len(ax.collections[0].get_segments()) == outline_length(volume.roi[1])
    with pytest.raises(InvalidInputError, match="channel is 7, but the image has 4"):
        plot_region(x, volume, channel=7)


def test_the_line_has_the_truncated_density(result: RoiResult) -> None:
    ax = plot_line(result, points=4001)
    before, given, observed = ax.lines
    x = before.get_xdata()
    np.testing.assert_allclose(before.get_ydata(), stats.norm.pdf(x, scale=result.scale))
    assert observed.get_xdata()[0] == result.stat
    inside = np.zeros(len(x), bool)
    mass = 0.0
    for low, high in result.truncated_intervals:
        inside |= (x >= low) & (x <= high)
        mass += stats.norm.cdf(high, scale=result.scale) - stats.norm.cdf(low, scale=result.scale)
    y = given.get_ydata()
    np.testing.assert_array_equal(np.isfinite(y), inside)
    np.testing.assert_allclose(y[inside], stats.norm.pdf(x[inside], scale=result.scale) / mass)
    # The area of the drawn density is 1 and its tails beyond the observation are the p-value.
    z = np.where(inside, y, 0.0)
    edges = np.diff(x) * (inside[1:] & inside[:-1])
    assert np.sum((z[1:] + z[:-1]) / 2 * edges) == pytest.approx(1, abs=2e-3)
    right = np.sum(((z[1:] + z[:-1]) / 2 * edges)[x[:-1] >= result.stat - 1e-12])
    assert 2 * min(right, 1 - right) == pytest.approx(result.p_value, abs=2e-3)
    low, high = ax.get_xlim()
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    clipped = np.clip(result.truncated_intervals, low, high)
    np.testing.assert_allclose(spans, clipped[clipped[:, 0] < clipped[:, 1]])


def test_the_line_of_a_null_value(image: np.ndarray) -> None:
    test = selkit.load(smooth("1, 1, 6, 7", "3, 3"), BackMeanDiff(0.6), var=1.0)
    shifted = test.inference(image, null_value=1.5)
    before = plot_line(shifted).lines[0]
    np.testing.assert_allclose(
        before.get_ydata(), stats.norm.pdf(before.get_xdata(), loc=1.5, scale=shifted.scale)
    )


def test_given_axes_are_used(image: np.ndarray, result: RoiResult) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots(2, 2).ravel()
    assert plot_p_values(P, ax=axes[0]) is axes[0]
    assert plot_qq(P, ax=axes[1]) is axes[1]
    assert plot_region(image, result, ax=axes[2]) is axes[2]
    assert plot_line(result, ax=axes[3]) is axes[3]
    for ax in axes:
        ax.figure.draw_without_rendering()


def test_bad_input(image: np.ndarray, result: RoiResult) -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: plot_p_values([np.nan]), "p has no p-value"),
        (lambda: plot_qq([]), "p has no p-value"),
        (lambda: plot_p_values([0.1, 1.2]), r"p must lie in \[0, 1\]; got 0.1 to 1.2"),
        (lambda: plot_p_values(P, bins=0), "bins"),
        (lambda: plot_qq(P, confidence=1.0), "confidence must be a fraction"),
        (lambda: plot_region(image[..., :5], result), r"does not fit the region's \(6, 7\)"),
        (lambda: plot_region(np.zeros(42), result), "does not fit"),
        (lambda: plot_line(result, points=1), "points"),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, image: np.ndarray, result: RoiResult) -> None:
    known = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (
        lambda: plot_p_values(P),
        lambda: plot_qq(P),
        lambda: plot_region(image, result),
        lambda: plot_line(result),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'selkit\[report\]'"):
            call()


def test_new_axes_are_those_of_pyplot_which_notebooks_show():
    from matplotlib import pyplot as plt

    from selkit.scores import RandomScore

    score = RandomScore().fit(Y=np.zeros((5, 2)))
    for ax in (plot_p_values([0.2, 0.4]), plot_qq([0.2, 0.4]), score.plot()):
        assert ax.figure.number in plt.get_fignums()
        plt.close(ax.figure)
    with pytest.raises(InvalidTypeError, match="ax must be the axes of a matplotlib figure; got 'a'"):
        plot_p_values([0.2], ax="a")
