"""Pictures of attributions: over an image, as bars of a table's features, along a signal.

Everywhere red raises the output and blue lowers it, on a scale that is symmetric about zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selkit.errors import InvalidInputError, MissingExtraError
from selkit.utils.checks import given, integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from selkit.explain.result import Explanation

Kind: TypeAlias = Literal["image", "bars", "signal"]

COLOURS = "RdBu_r"
"""Diverging, and told apart with any colour vision."""

RED, BLUE, GREY = "#b2182b", "#2166ac", "#7f7f7f"

MOST_COLOUR = 99.5
"""Percentile of the sizes that gets the full colour, so that one pixel does not fade all others."""


def plot(
    explanation: Explanation,
    sample: int = 0,
    *,
    target: int | None = None,
    kind: Kind | None = None,
    **options: Any,
) -> Figure:
    """Draw one sample of an explanation in the way that fits its shape.

    Parameters
    ----------
    explanation
        Of a batch.
    sample
        Which one of the batch.
    target
        Which of several targets; not needed where there is one.
    kind
        By default ``"bars"`` for inputs of one axis, ``"signal"`` for two, (channels, length), and
        ``"image"`` for three.
    **options
        Of :func:`plot_image`, :func:`plot_bars` or :func:`plot_signal`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InvalidInputError
        If there is no such sample or target, or the shape fits no kind.
    MissingExtraError
        If matplotlib is not installed.
    """
    sample = integer(sample, "sample")
    if not -len(explanation) <= sample < len(explanation):
        raise InvalidInputError(f"sample is {sample}, but the explanation has {len(explanation)}")
    if target is not None:
        explanation = explanation[sample].for_target(target)
        sample = 0
    elif explanation.several:
        found = explanation.target[:, sample].tolist()
        if len(found) > 1:
            raise InvalidInputError(f"target must be named; the explanation has {found}")
        explanation = explanation.for_target(found[0])
    kinds = {1: "bars", 2: "signal", 3: "image"}
    x, values = explanation.x[sample], explanation.attributions[sample]
    chosen = kinds.get(x.ndim) if kind is None else kind
    draws: dict[str, Any] = {"bars": plot_bars, "signal": plot_signal, "image": plot_image}
    if not isinstance(chosen, str) or chosen not in draws:
        raise InvalidInputError(
            f"kind is {given(kind)} for samples of shape {x.shape}; it must be 'image', 'bars' or 'signal'. "
            "Draw a slice of other shapes: selkit.explain.plots.plot_image(x[0, :, 3], attributions[0, :, 3])"
        )
    title = (
        f"output {explanation.target[sample]}: {explanation.output[sample]:.4g}, "
        f"references {explanation.base_value[sample]:.4g}"
    )
    figure: Figure = draws[chosen](x, values, **{"title": title, **options})
    return figure


def plot_image(
    image: ArrayLike,
    attributions: ArrayLike,
    *,
    channel_axis: int | None = None,
    limit: float | None = None,
    title: str = "",
) -> Figure:
    """Draw attributions over the image, in grey, and alone as a signed heat map with its colour bar.

    Parameters
    ----------
    image
        ``(channels, height, width)``, ``(height, width, channels)`` or ``(height, width)``.
    attributions
        Of the same shape; channels are summed, so that the picture's sum stays what it was.
    channel_axis
        Where the channels are: 0 or -1. By default the last axis if it has length 1, 3 or 4 and the first
        has another one; else the first.
    limit
        Value of the full colour; by default the 99.5th percentile of the sizes.
    title
        Above both.

    Returns
    -------
    matplotlib.figure.Figure
        Three axes: the overlay, the heat map, the colour bar.

    Raises
    ------
    InvalidInputError
        If the shapes differ, or there are not two or three axes.
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> figure = plot_image(np.zeros((3, 4, 4)), np.eye(4) * np.ones((3, 1, 1)))
    >>> figure.axes[1].images[0].get_array()[0].tolist()
    [3.0, 0.0, 0.0, 0.0]
    """
    pixels, values = _pair(image, attributions, (2, 3))
    if pixels.ndim == 3:
        axis = _channel_axis(pixels.shape) if channel_axis is None else channel_axis
        if axis not in (0, 2, -1):
            raise InvalidInputError(f"channel_axis is {channel_axis!r}; it must be 0 or -1")
        pixels, values = pixels.mean(axis=axis), values.sum(axis=axis)
    largest = _limit(values, limit)
    figure: Figure = _figure((8.4, 4.0), title)
    left, right = figure.subplots(1, 2)
    left.imshow(pixels, cmap="gray", interpolation="nearest")
    strength = np.clip(np.abs(values) / largest, 0, 1)
    style = {"cmap": COLOURS, "vmin": -largest, "vmax": largest, "interpolation": "nearest"}
    left.imshow(values, alpha=0.85 * strength, **style)
    drawn = right.imshow(values, **style)
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
    _colour_bar(figure, drawn, values, largest, [left, right])
    return figure


def plot_bars(
    features: ArrayLike,
    attributions: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    top: int = 10,
    title: str = "",
) -> Figure:
    """Draw the largest attributions of a table's row as bars; the rest is summed into one.

    Parameters
    ----------
    features
        ``(D,)``, shown beside their names.
    attributions
        ``(D,)``.
    names
        One for each feature; by default ``x0``, ``x1``, ...
    top
        How many features get a bar of their own.
    title
        Above the bars.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InvalidInputError
        If the shapes differ, or there is not one name for each feature.
    MissingExtraError
        If matplotlib is not installed.

    Examples
    --------
    >>> figure = plot_bars([1.0, 2.0, 3.0], [0.5, -4.0, 1.0], names=["a", "b", "c"], top=1)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['b = 2', '2 others']
    >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
    [-4.0, 1.5]
    """
    row, values = (array.ravel() for array in _pair(features, attributions, range(1, 9)))
    labels = [f"x{place}" for place in range(len(row))] if names is None else [str(name) for name in names]
    if len(labels) != len(row):
        raise InvalidInputError(f"names has {len(labels)} entries for {len(row)} features")
    order = np.argsort(-np.abs(values), kind="stable")
    # A rest of one feature takes no less room than the feature itself.
    shown = order if len(order) == integer(top, "top", 1) + 1 else order[:top]
    texts = [f"{labels[place]} = {row[place]:.4g}" for place in shown]
    widths = values[shown]
    if len(shown) < len(order):
        texts.append(f"{len(order) - len(shown)} others")
        widths = np.append(widths, values[order[len(shown) :]].sum())
    figure: Figure = _figure((6.4, 1.2 + 0.34 * len(texts)), title)
    ax = figure.add_subplot()
    bars = ax.barh(
        range(len(texts)), widths, tick_label=texts, color=[RED if width > 0 else BLUE for width in widths]
    )
    ax.bar_label(bars, labels=[f"{width:+.3g}" for width in widths], padding=3, fontsize="small")
    ax.invert_yaxis()
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.margins(x=0.16)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("attribution")
    return figure


def plot_signal(
    signal: ArrayLike,
    attributions: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    top: int = 6,
    limit: float | None = None,
    title: str = "",
) -> Figure:
    """Draw each channel of a signal over a strip with the colours of its attributions.

    Parameters
    ----------
    signal
        ``(channels, length)`` or ``(length,)``.
    attributions
        Of the same shape.
    names
        One for each channel.
    top
        Draw so many channels at most, those of the largest attributions.
    limit
        Value of the full colour; by default the 99.5th percentile of the sizes.
    title
        Above all.

    Returns
    -------
    matplotlib.figure.Figure
        One axes for each channel, then the colour bar.

    Raises
    ------
    InvalidInputError
        If the shapes differ, or there is not one name for each channel.
    MissingExtraError
        If matplotlib is not installed.
    """
    lines, values = (np.atleast_2d(array) for array in _pair(signal, attributions, (1, 2)))
    if names is not None and len(names) != len(lines):
        raise InvalidInputError(f"names has {len(names)} entries for {len(lines)} channels")
    labels = [f"channel {place}" for place in range(len(lines))] if names is None else list(names)
    order = np.argsort(-np.abs(values).sum(axis=1), kind="stable")
    shown = np.sort(order[: integer(top, "top", 1)])
    largest = _limit(values, limit)
    figure: Figure = _figure((8.4, 1.2 + 1.3 * len(shown)), title)
    panels = np.atleast_1d(figure.subplots(len(shown), 1, sharex=True))
    drawn: Any = None
    for ax, place in zip(panels, shown, strict=True):
        low, high = lines[place].min(), lines[place].max()
        room = 0.08 * (high - low) if high > low else 0.5
        drawn = ax.imshow(
            values[place][None],
            cmap=COLOURS,
            vmin=-largest,
            vmax=largest,
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, lines.shape[1] - 0.5, low - room, high + room),
        )
        ax.plot(np.arange(lines.shape[1]), lines[place], color="black", linewidth=1)
        if len(lines) > 1 or names is not None:
            ax.set_ylabel(labels[place])
    _colour_bar(figure, drawn, values, largest, list(panels))
    return figure


def _pair(
    x: ArrayLike, attributions: ArrayLike, axes: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as float64, of one shape and an accepted number of axes, without NaN."""
    first, second = (
        np.asarray(array.detach().cpu().numpy() if hasattr(array, "detach") else array, dtype=np.float64)
        for array in (x, attributions)
    )
    if first.shape != second.shape or first.ndim not in axes or not first.size:
        raise InvalidInputError(
            f"x has shape {first.shape} and attributions {second.shape}; they must be of one shape, with "
            f"{' or '.join(map(str, axes)) if len(axes) < 4 else 'at least 1'} axes and no batch axis"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InvalidInputError("x or attributions has NaN or infinite values; they cannot be drawn")
    return first, second


def _channel_axis(shape: tuple[int, ...]) -> int:
    few = (1, 3, 4)
    return 2 if shape[2] in few and shape[0] not in few else 0


def _limit(values: NDArray[np.float64], limit: float | None) -> float:
    if limit is None:
        sizes = np.abs(values)
        # The percentile of a picture with only a few attributions is zero.
        found = (float(np.percentile(sizes, MOST_COLOUR)), float(sizes.max()), 1.0)
        return next(size for size in found if size > 0)
    if not 0 < limit < np.inf:
        raise InvalidInputError(f"limit is {limit!r}; it must be a positive number")
    return float(limit)


def _colour_bar(
    figure: Any, drawn: Any, values: NDArray[np.float64], largest: float, axes: Sequence[Any]
) -> None:
    above, below = bool(values.max() > largest), bool(values.min() < -largest)
    extend = {(True, True): "both", (True, False): "max", (False, True): "min"}.get((above, below), "neither")
    figure.colorbar(drawn, ax=list(axes), label="attribution", extend=extend)


def _figure(size: tuple[float, float], title: str) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'selkit[report]'") from error
    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure
