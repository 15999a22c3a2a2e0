"""Finite unions of closed intervals, as sorted arrays.

A union is a float64 array of shape ``(n, 2)``: rows ``[lower, upper]`` with ``lower <= upper``, ascending
and apart from each other. All functions are pure and accept any rows that describe intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Intervals = NDArray[np.float64]
EMPTY: Intervals = np.empty((0, 2))
LINE: Intervals = np.array([[-np.inf, np.inf]])


def as_intervals(rows: Iterable[Sequence[float]] | Intervals) -> Intervals:
    """Sort rows, drop empty ones, and merge those that overlap or touch.

    Parameters
    ----------
    rows
        Pairs ``(lower, upper)``; rows with ``lower > upper`` are empty.

    Returns
    -------
    ndarray of shape (n, 2), float64

    Examples
    --------
    >>> as_intervals([(2, 3), (0, 1), (0.5, 2)])
    array([[0., 3.]])
    """
    array = np.asarray(rows if isinstance(rows, np.ndarray) else list(rows), dtype=np.float64).reshape(-1, 2)
    array = array[array[:, 0] <= array[:, 1]]
    if len(array) < 2:
        return array
    array = array[np.argsort(array[:, 0], kind="stable")]
    reach = np.maximum.accumulate(array[:, 1])
    first = np.concatenate([[True], array[1:, 0] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.column_stack([array[first, 0], reach[last]])


def union(*parts: Intervals) -> Intervals:
    """Return the union of several unions."""
    return as_intervals(np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in parts]))


def intersection(first: Intervals, second: Intervals) -> Intervals:
    """Return the intersection of two unions, whose rows are sorted and do not overlap.

    Examples
    --------
    >>> intersection(np.array([[0., 2.], [3., 5.]]), np.array([[1., 4.]]))
    array([[1., 2.],
           [3., 4.]])
    """
    if not len(first) or not len(second):
        return EMPTY
    # Each row of ``first`` meets a contiguous run of rows of ``second``: both are sorted and disjoint.
    begin = np.searchsorted(second[:, 1], first[:, 0], side="left")
    end = np.searchsorted(second[:, 0], first[:, 1], side="right")
    counts = np.maximum(end - begin, 0)
    mine = np.repeat(np.arange(len(first)), counts)
    theirs = (
        np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(begin, counts)
    )
    result = np.empty((len(mine), 2))
    np.maximum(first[mine, 0], second[theirs, 0], out=result[:, 0])
    np.minimum(first[mine, 1], second[theirs, 1], out=result[:, 1])
    return result


def complement(intervals: Intervals, within: Intervals = LINE) -> Intervals:
    """Return the closure of what ``within`` has outside ``intervals``; single points are dropped.

    Both have sorted rows that do not overlap.

    Examples
    --------
    >>> complement(np.array([[0., 1.]]))
    array([[-inf,   0.],
           [  1.,  inf]])
    """
    intervals = intervals[intervals[:, 0] < intervals[:, 1]]  # the closure of what is left fills points
    bounds = np.empty((len(intervals) + 1, 2))
    bounds[0, 0], bounds[-1, 1] = -np.inf, np.inf
    bounds[1:, 0], bounds[:-1, 1] = intervals[:, 1], intervals[:, 0]
    gaps = bounds[bounds[:, 0] < bounds[:, 1]]
    if within is LINE:
        return gaps
    gaps = intersection(gaps, within)
    return gaps[gaps[:, 0] < gaps[:, 1]]


def contains(intervals: Intervals, points: float | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each point lies in the union (its ends included)."""
    points = np.asarray(points, dtype=np.float64)
    index = np.searchsorted(intervals[:, 0], points, side="right") - 1
    inside = index >= 0
    return (
        np.asarray(inside & (points <= np.where(inside, intervals[np.maximum(index, 0), 1], -np.inf)))
        if len(intervals)
        else np.zeros(points.shape, dtype=bool)
    )


def around(intervals: Intervals, point: float) -> tuple[float, float] | None:
    """Return the interval that contains ``point``, or ``None``."""
    hit = (intervals[:, 0] <= point) & (point <= intervals[:, 1])
    rows = intervals[hit]
    return (float(rows[0, 0]), float(rows[0, 1])) if len(rows) else None


def length(intervals: Intervals) -> float:
    """Total length of the union."""
    return float(np.sum(intervals[:, 1] - intervals[:, 0]))
