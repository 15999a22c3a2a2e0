"""What the pictures show is what the attributions are."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from selkit.errors import InvalidInputError, MissingExtraError
from selkit.explain.plots import plot, plot_bars, plot_image, plot_signal
from selkit.explain.result import Explanation

RNG = np.random.default_rng(0)


def explanation(*shape: int, targets: int | None = None) -> Explanation:
    x = RNG.normal(size=(2, *shape))
    lead = (2,) if targets is None else (targets, 2)
    values = RNG.normal(size=(*lead, *shape))
    index = np.arange(7, 7 + (targets or 1))[:, None].repeat(2, axis=1)
    return Explanation(
        values, np.zeros(lead), np.ones(lead), index[0] if targets is None else index, x, references=3
    )


def test_images_show_summed_channels_on_a_symmetric_scale():
    e = explanation(3, 5, 6)
    figure = e.plot(1)
    overlay, heat, bar = figure.axes
    total = e.attributions[1].sum(0)
    np.testing.assert_allclose(heat.images[0].get_array(), total)
    grey, colours = overlay.images
    np.testing.assert_allclose(grey.get_array(), e.x[1].mean(0))
    np.testing.assert_allclose(colours.get_array(), total)
    low, high = heat.images[0].get_clim()
    assert high == -low == pytest.approx(np.percentile(np.abs(total), 99.5))
    assert colours.get_clim() == (low, high)
    assert bar.get_ylabel() == "attribution"
    assert figure.get_suptitle() == "output 7: 1, references 0"


def test_the_overlay_is_clear_where_nothing_is_attributed():
    values = np.zeros((4, 4))
    values[1, 2], values[3, 3] = 2.0, -1.0
    figure = plot_image(np.ones((4, 4)), values, limit=2)
    alpha = figure.axes[0].images[1].get_alpha()
    np.testing.assert_allclose(alpha, 0.85 * np.abs(values) / 2)


@pytest.mark.parametrize(
    ("shape", "axis", "summed"),
    [
        ((3, 4, 5), None, 0),
        ((6, 5, 3), None, 2),
        ((8, 4, 5), None, 0),
        ((3, 4, 3), None, 0),
        ((3, 4, 3), -1, 2),
    ],
)
def test_the_axis_of_the_channels_is_found_or_given(shape, axis, summed):
    values = RNG.normal(size=shape)
    heat = plot_image(np.zeros(shape), values, channel_axis=axis).axes[1].images[0].get_array()
    np.testing.assert_allclose(heat, values.sum(summed))


@pytest.mark.parametrize(
    ("values", "high"), [(np.zeros((30, 30)), 1.0), (np.eye(30)[:1] * 5 + np.zeros((30, 30)), 5.0)]
)
def test_empty_and_sparse_pictures_have_a_scale(values, high):
    sparse = values * (np.arange(30)[:, None] == 0)
    assert plot_image(np.zeros((30, 30)), sparse).axes[1].images[0].get_clim() == (-high, high)


def test_the_colour_bar_says_where_it_is_cut():
    values = np.linspace(-1, 3, 100).reshape(10, 10)
    for limit, extend in ((5, "neither"), (2, "max"), (0.5, "both")):
        figure = plot_image(values, values, limit=limit)
        assert figure.axes[1].images[0].colorbar.extend == extend


def test_bars_are_the_largest_and_the_rest_is_summed():
    e = explanation(12)
    figure = e.plot(0, top=4)
    widths = np.array([bar.get_width() for bar in figure.axes[0].patches])
    order = np.argsort(-np.abs(e.attributions[0]))
    np.testing.assert_allclose(widths[:4], e.attributions[0][order[:4]])
    assert widths.sum() == pytest.approx(e.attributions[0].sum())
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == f"x{order[0]} = {e.x[0][order[0]]:.4g}"
    assert labels[-1] == "8 others"


@pytest.mark.parametrize(("top", "bars"), [(1, 2), (2, 3), (3, 3), (10, 3)])
def test_a_rest_of_one_feature_is_the_feature(top, bars):
    figure = plot_bars([1, 2, 3], [3.0, 2.0, 1.0], top=top)
    assert len(figure.axes[0].patches) == bars


def test_equal_names_keep_their_own_bars():
    bars = plot_bars([1.0, 1.0], [1.0, -2.0], names=["a", "a"]).axes[0].patches
    assert len({bar.get_y() for bar in bars}) == 2
    assert bars[0].get_facecolor() != bars[1].get_facecolor()


def test_signals_show_each_channel_over_its_colours():
    e = explanation(2, 20)
    figure = e.plot()
    for channel, ax in enumerate(figure.axes[:2]):
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), e.x[0, channel])
        np.testing.assert_array_equal(ax.images[0].get_array()[0], e.attributions[0, channel])
        assert ax.images[0].get_clim()[0] == -ax.images[0].get_clim()[1]
        assert ax.get_ylabel() == f"channel {channel}"


def test_signals_of_many_channels_show_those_that_matter_most():
    values = np.ones((5, 8)) * np.array([[0.1], [3.0], [0.2], [-4.0], [0.3]])
    figure = plot_signal(np.zeros((5, 8)), values, top=2, names=list("abcde"))
    assert [ax.get_ylabel() for ax in figure.axes[:2]] == ["b", "d"]
    one = plot_signal(torch.zeros(8), torch.ones(8))
    assert len(one.axes) == 2


def test_a_kind_can_be_asked_for():
    e = explanation(4, 5)
    assert len(e.plot(kind="image").axes) == 3
    assert len(e.plot(kind="bars").axes) == 1
    assert len(explanation(20).plot(kind="signal").axes) == 2


def test_one_of_several_targets_is_drawn():
    e = explanation(3, targets=2)
    widths = sorted(bar.get_width() for bar in e.plot(1, target=8).axes[0].patches)
    np.testing.assert_allclose(widths, np.sort(e.attributions[1, 1]))
    with pytest.raises(InvalidInputError, match=r"target must be named; the explanation has \[7, 8\]"):
        e.plot()
    with pytest.raises(InvalidInputError, match="target 3 was not explained"):
        e.plot(target=3)
    assert explanation(3, targets=1).plot().get_suptitle().startswith("output 7")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explanation(3).plot(2), "sample is 2, but the explanation has 2"),
        (
            lambda: explanation(2, 3, 4, 5).plot(),
            r"kind is None for samples of shape \(2, 3, 4, 5\).*a slice",
        ),
        (lambda: plot(explanation(3), kind="pie"), "kind is 'pie'"),
        (lambda: explanation(3).plot(kind="image"), r"x has shape \(3,\).*2 or 3 axes"),
        (lambda: plot_image(np.ones((2, 2)), np.ones((2, 3))), r"attributions \(2, 3\); they must be of one"),
        (lambda: plot_image(np.ones((0, 2)), np.ones((0, 2))), r"x has shape \(0, 2\)"),
        (lambda: plot_image(np.ones((1, 2, 2)), np.full((1, 2, 2), np.nan)), "NaN"),
        (lambda: plot_image(np.ones((1, 2, 2)), np.ones((1, 2, 2)), channel_axis=1), "channel_axis is 1"),
        (lambda: plot_image(np.ones((2, 2)), np.ones((2, 2)), limit=0), "limit is 0; it must be a positive"),
        (lambda: plot_bars([1.0], [1.0], names=["a", "b"]), "names has 2 entries for 1 features"),
        (lambda: plot_bars([1.0], [1.0], top=0), "top must be a whole number"),
        (lambda: plot_signal([1.0], [1.0], names=["a", "b"]), "names has 2 entries for 1 channels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'selkit\[report\]'"):
        explanation(3).plot()


def test_pictures_can_be_saved(tmp_path):
    for shape in ((3,), (2, 9), (3, 6, 6)):
        path = tmp_path / f"{len(shape)}.png"
        explanation(*shape).plot().savefig(path)
        assert path.read_bytes()[:4] == b"\x89PNG"
