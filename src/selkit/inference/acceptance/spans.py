"""Sets on many pieces at once: for each row any number of intervals within [0, 1], kept as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Spans:
    """Intervals of several rows.

    Attributes
    ----------
    row
        To which row each interval belongs, int64 of shape (M,).
    low, high
        Its ends, float64 of shape (M,); intervals of positive length within [0, 1].
    count
        How many rows there are.
    """

    row: Index
    low: Floats
    high: Floats
    count: int

    @staticmethod
    def of(row: Index, low: Floats, high: Floats, count: int) -> Spans:
        """Clip intervals to [0, 1] and drop those that are empty (``NaN`` included) or a point."""
        low, high = np.maximum(low, 0.0), np.minimum(high, 1.0)
        keep = low < high
        return Spans(row[keep], low[keep], high[keep], count)

    @staticmethod
    def where(mask: Mask) -> Spans:
        """Whole rows, where a mask of shape (rows,) is set."""
        row = np.flatnonzero(mask).astype(np.int64)
        return Spans(row, np.zeros(len(row)), np.ones(len(row)), len(mask))

    def moved(self, rows: Index, count: int) -> Spans:
        """Give the rows other numbers: row ``i`` becomes ``rows[i]`` of ``count``."""
        return Spans(rows[self.row], self.low, self.high, count)

    def complement(self) -> Spans:
        """What a union of disjoint intervals, sorted within rows, leaves of each row."""
        rows = np.arange(self.count, dtype=np.int64)
        row = np.concatenate([self.row, rows])
        begin = np.concatenate([self.high, np.zeros(self.count)])
        stop = np.concatenate([self.low, np.ones(self.count)])
        # Each gap begins at an end (or at 0) and stops at the next start (or at 1).
        begin = begin[np.lexsort((begin, row))]
        order = np.lexsort((stop, row))
        return Spans.of(row[order], begin, stop[order], self.count)


def covered(spans: Spans, need: NDArray[np.integer] | int = 1) -> Spans:
    """Return where at least ``need`` intervals of a row overlap, as sorted and disjoint intervals.

    Parameters
    ----------
    spans
        Intervals, which may overlap.
    need
        A number for each row, at least 1; or one for all.

    Examples
    --------
    >>> found = covered(Spans.of(np.array([0, 0]), np.array([0.0, 0.5]), np.array([0.7, 1.0]), 1), 2)
    >>> found.low.tolist(), found.high.tolist()
    ([0.5], [0.7])
    """
    size = len(spans.row)
    if not size:
        return spans
    wanted = np.broadcast_to(np.asarray(need, dtype=np.int64), (spans.count,))
    row = np.concatenate([spans.row, spans.row])
    place = np.concatenate([spans.low, spans.high])
    step = np.concatenate([np.ones(size, dtype=np.int64), -np.ones(size, dtype=np.int64)])
    # At one place starts come before ends, so that intervals that touch leave no gap.
    order = np.lexsort((-step, place, row))
    row, place = row[order], place[order]
    # Every interval that starts in a row ends in it: the sum is zero again where the next row begins.
    inside = np.cumsum(step[order]) >= wanted[row]
    first = inside & ~np.concatenate([[False], inside[:-1]])
    last = ~inside & np.concatenate([[False], inside[:-1]])
    return Spans.of(row[first], place[first], place[last], spans.count)


def together(parts: Sequence[Spans], need: int = 1) -> Spans:
    """Return where at least ``need`` of several sets hold: 1 for their union, all for what they share.

    Parameters
    ----------
    parts
        Sets over the same rows, each of disjoint intervals.
    need
        How many.
    """
    joined = Spans(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.low for part in parts]),
        np.concatenate([part.high for part in parts]),
        parts[0].count,
    )
    return covered(joined, need)
