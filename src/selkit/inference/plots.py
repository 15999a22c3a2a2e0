"""Plots of tests: p-values of many images, a region over its image, and the line of one test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.inference.intervals import Intervals
from selkit.inference.result import RoiResult
from selkit.utils.arrays import as_tensor, check_count, check_fraction
from selkit.utils.boundary import public
from selkit.utils.checks import given, integer
from selkit.utils.figures import axes
from selkit.utils.text import p_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#7f7f7f"
"""Told apart with any colour vision, and in grey."""

MOST = 1_000_000
"""Points or bins: more than any picture shows."""

REACH, BEYOND = 4.5, 1.5
"""How many standard deviations :func:`plot_line` shows around the null value, and beyond the observation."""


@public
def plot_p_values(p: ArrayLike, *, bins: int = 20, ax: Axes | None = None) -> Axes:
    """Draw a histogram of p-values, with the density that they have where nothing is there: uniform.

    Parameters
    ----------
    p
        P-values, of shape (N,); NaN is left out.
    bins
        Number of bins of [0, 1].
    ax
        Where to draw; by default a new figure of pyplot, ``ax.figure``, which notebooks show.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidInputError
        If there is no p-value, or one is outside [0, 1].
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> ax = plot_p_values([0.01, 0.2, 0.6, 0.9], bins=4)
    >>> [float(bar.get_height()) for bar in ax.patches]
    [2.0, 0.0, 1.0, 1.0]
    """
    values = _p_values(p)
    ax = axes(ax)
    check_count(bins, "bins")
    integer(bins, "bins", 1, MOST)
    ax.hist(
        values, bins=bins, range=(0, 1), density=True, color=BLUE, alpha=0.7, label=f"{len(values)} p-values"
    )
    ax.axhline(1.0, color=ORANGE, linestyle="--", label="uniform")
    ax.set(xlim=(0, 1), xlabel="p-value", ylabel="density")
    ax.legend(frameon=False)
    return ax


@public
def plot_qq(p: ArrayLike, *, confidence: float = 0.95, ax: Axes | None = None) -> Axes:
    """Draw sorted p-values against the quantiles of the uniform distribution.

    Under the null all points lie inside the band at once with probability ``confidence``: it is that of the
    Kolmogorov-Smirnov test, exact for this number of p-values.

    Parameters
    ----------
    p, ax
        As for :func:`plot_p_values`.
    confidence
        Of the band, in (0, 1).

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidInputError
        If there is no p-value, or one is outside [0, 1].
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> ax = plot_qq([0.9, 0.1])
    >>> ax.lines[1].get_ydata()
    array([0.1, 0.9])
    """
    values = np.sort(_p_values(p))
    count = len(values)
    width = float(stats.kstwo.ppf(check_fraction(confidence, "confidence", zero=False, one=False), count))
    test = float(stats.kstest(values, "uniform").pvalue)
    ax = axes(ax)
    # The empirical distribution jumps at each point, from (k-1)/n to k/n: both must be within the distance.
    order = np.arange(1, count + 1) / count
    middle = order - 0.5 / count
    lower = np.clip(order - width, 0, 1)
    upper = np.clip(order - 1 / count + width, 0, 1)
    ax.plot([0, 1], [0, 1], color=ORANGE, linestyle="--", label="uniform")
    ax.plot(
        middle,
        values,
        color=BLUE,
        marker=".",
        linestyle="none",
        label=f"{count} p-values (KS p = {test:.3g})",
    )
    ax.fill_between(
        middle, lower, upper, color=GREY, alpha=0.25, linewidth=0, label=f"{confidence:.0%} Kolmogorov band"
    )
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="uniform quantile", ylabel="p-value", aspect="equal")
    ax.legend(frameon=False, loc="upper left")
    return ax


@public
def plot_region(image: ArrayLike, result: RoiResult, *, channel: int = 0, ax: Axes | None = None) -> Axes:
    """Draw an image and the outline of the region that was tested, with its p-value.

    Parameters
    ----------
    image
        The tested image, or any of its size.
    result
        Of the test.
    channel
        Which channel to draw where there are several, or which slice of a volume.
    ax
        As for :func:`plot_p_values`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidInputError
        If the image does not fit the region, or has more axes than one channel can leave.
    MissingExtraError
        If matplotlib is not installed.
    """
    result = _result(result)
    pixels = np.squeeze(as_tensor(image, "image").double().cpu().numpy())
    region = np.asarray(result.roi, dtype=bool)
    pixels, region = _channels_first(pixels, result), _channels_first(region, result)
    if pixels.ndim == region.ndim + 1:
        pixels = _channel(pixels, channel, "image")
    if pixels.shape == region.shape and pixels.ndim == 3:
        pixels, region = _channel(pixels, channel, "image"), _channel(region, channel, "region")
    if pixels.shape != region.shape or pixels.ndim not in (1, 2):
        raise InvalidInputError(
            f"image has shape {np.shape(image)}, which does not fit the region's {result.roi.shape}; give "
            "the tested image"
        )
    ax = axes(ax)
    if pixels.ndim == 1:
        ax.plot(np.arange(len(pixels)), pixels, color=GREY)
        for start, end in _runs(region):
            ax.axvspan(start - 0.5, end - 0.5, color=ORANGE, alpha=0.3, linewidth=0)
    else:
        from matplotlib.collections import LineCollection

        ax.imshow(pixels, cmap="gray", interpolation="nearest")
        ax.add_collection(LineCollection(list(_outline(region)), colors=ORANGE, linewidths=1.8))
        ax.set(xticks=[], yticks=[])
    ax.set_title(f"p = {p_text(result.p_value, 3)} (naive {p_text(result.naive_p_value(), 3)})")
    return ax


@public
def plot_line(result: RoiResult, *, points: int = 1000, ax: Axes | None = None) -> Axes:
    """Draw the null distribution of the contrast, the truncation set, and where the observation lies.

    The selective p-value compares the observation with the filled part alone: values of the contrast at
    which the same region is selected.

    Parameters
    ----------
    result
        Of the test.
    points
        At how many points the densities are drawn.
    ax
        As for :func:`plot_p_values`.

    Returns
    -------
    matplotlib.axes.Axes
        Lines: the density before selection, that given the selection, the observation.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    result = _result(result)
    ax = axes(ax)
    scale, distribution = result.scale, result.distribution
    center = float(getattr(distribution, "mean", 0.0))
    low = max(min(center - REACH, result.z_score - BEYOND), float(distribution.support[0, 0]))
    high = max(center + REACH, result.z_score + BEYOND)
    # The observation and the ends of the set are among the points, so that steps are drawn where they are.
    truncated = np.asarray(result.truncated_intervals) / scale
    ends = truncated[(truncated >= low) & (truncated <= high)]
    grid = np.linspace(low, high, integer(points, "points", 2, MOST))
    z = np.unique(np.concatenate([grid, ends, [result.z_score]]))
    density = np.exp(distribution.log_density(z)) / scale
    ax.plot(z * scale, density, color=GREY, linestyle="--", label="before selection")
    log_mass = float(np.logaddexp.reduce(distribution.log_mass(truncated)))
    given = _given(z, truncated)
    with np.errstate(over="ignore"):
        selected = np.where(given, np.exp(distribution.log_density(z) - log_mass) / scale, np.nan)
    ax.plot(z * scale, selected, color=BLUE, label="given the region")
    for start, end in np.clip(truncated, low, high):
        if start < end:
            ax.axvspan(start * scale, end * scale, color=BLUE, alpha=0.15, linewidth=0)
    ax.axvline(result.stat, color=ORANGE, label=f"observed, p = {p_text(result.p_value, 3)}")
    ax.set(xlim=(low * scale, high * scale), xlabel="contrast", ylabel="density")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def _given(z: NDArray[np.float64], truncated: Intervals) -> NDArray[np.bool_]:
    """Whether the set has a whole neighbourhood of each point on one side at least."""
    index = np.searchsorted(truncated[:, 0], z, side="right") - 1
    return np.asarray((index >= 0) & (z <= truncated[np.maximum(index, 0), 1]))


def _result(result: object) -> RoiResult:
    if not isinstance(result, RoiResult):
        raise InvalidTypeError(f"result must be what a test of a region returns; got {given(result)}")
    return result


def _p_values(p: ArrayLike) -> NDArray[np.float64]:
    values: NDArray[np.float64] = as_tensor(p, "p").double().cpu().numpy().reshape(-1)
    values = values[~np.isnan(values)]
    if not len(values):
        raise InvalidInputError("p has no p-value; give at least one that is not NaN")
    if not (values.min() >= 0 and values.max() <= 1):
        raise InvalidInputError(f"p must lie in [0, 1]; got {values.min():g} to {values.max():g}")
    return values


def _channel(array: NDArray[Any], channel: int, name: str) -> NDArray[Any]:
    if not -len(array) <= integer(channel, "channel") < len(array):
        raise InvalidInputError(f"channel is {channel}, but the {name} has {len(array)}")
    return np.asarray(array[channel])


def _channels_first(array: NDArray[Any], result: RoiResult) -> NDArray[Any]:
    """Bring the channels of an image or a region to the front, axes of length one removed."""
    axes, shape = result.axes, tuple(result.line.a.shape)
    if axes is None or not result.channels_last or axes.channels(shape) == 1:
        return array
    sides = sum(size != 1 for size in axes.sizes(shape))
    behind = array.ndim == sides + 1 and array.shape[-1] == axes.channels(shape)
    return np.moveaxis(array, -1, 0) if behind else array


def _runs(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the begin and end (not included) of each run of True."""
    steps = np.diff(np.concatenate([[0], flags.astype(np.int64), [0]]))
    return np.column_stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)])


def _outline(region: NDArray[np.bool_]) -> list[list[tuple[float, float]]]:
    """Return the edges between pixels inside and outside as segments ((x, y), (x, y))."""
    padded = np.pad(region, 1)
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = [[(c - 0.5, r - 1.5), (c - 0.5, r - 0.5)] for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:] != padded[:-1])
    level = [[(c - 1.5, r - 0.5), (c - 0.5, r - 0.5)] for r, c in zip(rows, columns, strict=True)]
    return [[(float(x), float(y)) for x, y in segment] for segment in upright + level]
