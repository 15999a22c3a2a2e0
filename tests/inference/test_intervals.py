"""Unions of intervals against membership on a dense grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selkit.inference.intervals import (
    EMPTY,
    LINE,
    around,
    as_intervals,
    complement,
    contains,
    intersection,
    length,
    union,
)

rows = st.lists(st.tuples(st.integers(-20, 20), st.integers(-3, 12)), max_size=8).map(
    lambda pairs: np.array([(begin, begin + size) for begin, size in pairs], dtype=float).reshape(-1, 2)
)
# Between the integers, where no end lies: membership is a plain question there.
GRID = np.arange(-25, 35) + 0.5


def members(intervals: np.ndarray, points: np.ndarray = GRID) -> np.ndarray:
    return np.array([any(low <= point <= high for low, high in intervals) for point in points], dtype=bool)


def check_canonical(intervals: np.ndarray) -> None:
    flat = intervals.reshape(-1)
    assert intervals.dtype == np.float64
    assert np.all(intervals[:, 0] <= intervals[:, 1])
    assert np.all(np.diff(flat.reshape(-1, 2), axis=0)[:, 0] > 0) if len(intervals) > 1 else True
    assert np.all(intervals[1:, 0] > intervals[:-1, 1])


@settings(max_examples=200, deadline=None)
@given(rows, rows)
def test_operations_agree_with_membership(first: np.ndarray, second: np.ndarray) -> None:
    np.testing.assert_array_equal(members(as_intervals(first)), members(first))
    first, second = as_intervals(first), as_intervals(second)
    for result, expected in [
        (as_intervals(first), members(first)),
        (union(first, second), members(first) | members(second)),
        (intersection(first, second), members(first) & members(second)),
        (complement(first), ~members(first)),
        (complement(first, second), members(second) & ~members(first)),
    ]:
        check_canonical(result)
        np.testing.assert_array_equal(members(result), expected)
        np.testing.assert_array_equal(contains(result, GRID), expected)


def test_the_canonical_check_fails_on_overlap() -> None:
    with pytest.raises(AssertionError):
        check_canonical(np.array([[0.0, 2.0], [1.0, 3.0]]))


def test_touching_rows_merge_and_points_stay() -> None:
    np.testing.assert_array_equal(as_intervals([(0, 1), (1, 2), (5, 5), (4, 3)]), [[0, 2], [5, 5]])


def test_complement_has_no_single_points() -> None:
    assert len(complement(np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]]))) == 0
    np.testing.assert_array_equal(complement(EMPTY), LINE)
    assert len(complement(LINE)) == 0


def test_around_and_length() -> None:
    some = np.array([[0.0, 1.0], [2.0, 4.0]])
    assert around(some, 2.0) == (2.0, 4.0)
    assert around(some, 1.5) is None
    assert around(EMPTY, 0.0) is None
    assert length(some) == 3.0
    assert not contains(EMPTY, np.array([0.0])).any()
