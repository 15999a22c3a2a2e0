"""Where plots are drawn: on axes that pyplot knows, so that notebooks show them."""

from __future__ import annotations

from typing import Any

from selkit.errors import InvalidTypeError, MissingExtraError
from selkit.utils.checks import given

_MISSING = "plots need matplotlib; install it with: pip install 'selkit[report]'"


def lone_axes(size: tuple[float, float] = (6.4, 4.4)) -> Any:
    """Axes of a figure that is returned itself: notebooks show it once, as the value of a cell."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(_MISSING) from error
    return Figure(figsize=size, layout="constrained").add_subplot()


def axes(ax: Any = None, size: tuple[float, float] = (6.4, 4.4)) -> Any:
    """The given axes, or those of a new figure of pyplot.

    Parameters
    ----------
    ax
        ``matplotlib.axes.Axes``, or None.
    size
        Of a new figure, in inches.

    Raises
    ------
    InvalidTypeError
        If ``ax`` is something else.
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot as plt
        from matplotlib.axes import Axes
    except ImportError as error:
        raise MissingExtraError(_MISSING) from error
    if ax is None:
        return plt.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise InvalidTypeError(f"ax must be the axes of a matplotlib figure; got {given(ax)}")
    return ax
