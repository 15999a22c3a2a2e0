"""Densities of scores, and where the threshold lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from selkit.errors import InvalidInputError
from selkit.utils.arrays import ArrayLike, as_vector, check_count
from selkit.utils.figures import axes as new_axes

if TYPE_CHECKING:
    from selkit.scores.thresholds import Thresholds


def plot_scores(
    score: Thresholds, query_scores: ArrayLike | None = None, bins: int = 100, ax: Any = None
) -> Any:
    """Draw the densities of calibration and query scores over common bins, with the threshold.

    Parameters
    ----------
    score
        With calibration scores, or with a threshold and ``query_scores``.
    query_scores
        Scores to compare with those of the calibration set.
    bins
        Number of bins.
    ax
        Matplotlib axes; new ones are made without.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    InvalidInputError
        If there is nothing to draw.
    """
    series = {}
    if score.calibration_scores is not None:
        series["calibration"] = as_vector(score.calibration_scores, "calibration_scores")
    if query_scores is not None:
        series["query"] = as_vector(query_scores, "query_scores")
    if not series:
        raise InvalidInputError("there is nothing to draw: fit with a calibration set, or give query_scores=")
    edges = np.histogram_bin_edges(np.concatenate(list(series.values())), check_count(bins, "bins"))
    axes = new_axes(ax)
    for name, values in series.items():
        axes.stairs(np.histogram(values, edges, density=True)[0], edges, label=name)
    if score.threshold is not None:
        for place in np.atleast_1d(score.threshold.double().cpu().numpy()):
            axes.axvline(place, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"{type(score).__name__} (higher is less like the training data)")
    axes.set_ylabel("density")
    axes.legend()
    return axes
