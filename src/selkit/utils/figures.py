"""Where plots are drawn: on axes that pyplot knows, so that notebooks show them."""

from __future__ import annotations

from typing import Any

from selkit.errors import InvalidTypeError, MissingExtraError
from selkit.utils.checks import given


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
        from matplotlib.axes import Axes
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib; install it with: pip install 'selkit[report]'"
        ) from error
    if ax is None:
        from matplotlib import pyplot as plt

        return plt.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise InvalidTypeError(f"ax must be the axes of a matplotlib figure; got {given(ax)}")
    return ax
