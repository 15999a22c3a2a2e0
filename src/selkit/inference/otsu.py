"""Otsu's threshold along a line.

For a fixed set S of k of n pixels, ``sqrt(k (n - k)) / n (mean in S - mean outside)``, whose square is the
variance between the classes, is linear in the scores. The best cut of the sorted scores is the best of all
sets, so that along a piece its value is a maximum of lines: a set that is best at both ends is best between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.inference.bounds import Band
from selkit.inference.events import Settled
from selkit.inference.intervals import EMPTY, union
from selkit.inference.line import Trace
from selkit.inference.mask_event import MaskEvent
from selkit.inference.masks import Mask

Array = NDArray[np.float64]

FINEST = 1e-13
"""Part of a piece below which a change of the set is not looked at more closely."""


def best_cuts(scores: Array, tie: float) -> Mask:
    """Return which scores of each row are above its best cut; equal ones, within ``tie``, are not parted.

    A row whose scores are all equal has nothing above.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)
    n = scores.shape[1]
    k = np.arange(1, n)
    top = np.cumsum(ranked, 1)[:, :-1]
    gain = np.sqrt(k * (n - k)) * (top / k - (ranked.sum(1, keepdims=True) - top) / (n - k))
    apart = ranked[:, :-1] - ranked[:, 1:] > tie
    best = 1 + np.argmax(np.where(apart, gain, -np.inf), 1)
    best[~apart.any(1)] = 0
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, order, np.arange(n) < best[:, None], 1)
    return chosen


def otsu_mask(scores: Array, tie: float) -> Mask:
    """Return which scores are above the best cut.

    Examples
    --------
    >>> otsu_mask(np.array([0.0, 5.0, 0.1, 4.0]), 0.0).astype(int)
    array([0, 1, 0, 1])
    """
    chosen: Mask = best_cuts(scores[None], tie)[0]
    if not chosen.any():
        raise InvalidInputError("all scores are equal, so that Otsu's threshold does not exist")
    return chosen


def _gain(scores: Array, chosen: Mask) -> float:
    k, n = int(chosen.sum()), len(scores)
    if not k:
        return 0.0
    return float(np.sqrt(k * (n - k)) * (scores[chosen].mean() - scores[~chosen].mean()))


@dataclass(frozen=True, eq=False)
class OtsuEvent(MaskEvent):
    """Scores above the best cut make a mask whose clean-up ends in the observed region."""

    def masks(self, values: Tensor) -> list[Mask]:
        """The mask of the best cut."""
        scores = values.flatten(1).double().cpu().numpy()[0]
        return [otsu_mask(scores, self.tie).reshape(self.outcome.shape)]

    def settle(self, trace: Trace, tolerance: float = 0.0) -> Settled:
        """Return where the final region is the observed one; nothing in single precision."""
        if tolerance:
            return Settled(EMPTY, EMPTY)
        scores = trace.values[self.value].flatten(1).double().cpu().numpy()
        z, joined = trace.z.cpu().numpy(), trace.joined.cpu().numpy()
        finite = np.isfinite(scores).all(1)
        rows: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        best = best_cuts(np.where(finite[:, None], scores, 0.0), self.tie)
        verdicts: dict[bytes, bool] = {}
        for piece in np.flatnonzero(joined & finite[1:] & finite[:-1]).tolist():
            start, length = z[piece], z[piece + 1] - z[piece]
            ends = slice(piece, piece + 2)
            for begin, end, chosen in self._stretches(scores[ends], best[ends]):
                key = chosen.tobytes()
                if key not in verdicts:
                    verdicts[key] = bool(self.outcome.decide(chosen[None], chosen[None]))
                last = z[piece + 1] if end == 1.0 else start + length * end
                rows[verdicts[key]].append((start + length * begin, last))
        parts = [np.array(rows[verdict]).reshape(-1, 2) for verdict in (True, False)]
        return Settled(*(union(EMPTY, part[part[:, 0] < part[:, 1]]) for part in parts))

    def settle_bands(self, bands: Mapping[str, Band], windows: Tensor, tolerance: float = 0.0) -> Settled:
        """Nothing: bounds of the scores say too little of the cut."""
        return Settled(EMPTY, EMPTY)

    def slack(self, bands: Mapping[str, Band], tolerance: float = 0.0) -> NDArray[np.float64]:
        """Zero: no window is excluded."""
        return np.zeros(len(bands[self.value].left))

    def _stretches(self, scores: Array, best: Mask) -> list[tuple[float, float, Mask]]:
        """Parts of a piece with the set above the best cut on each; a map that is constant has none."""
        left, right = scores
        found: list[tuple[float, float, Mask]] = []
        todo = [(0.0, best[0], 1.0, best[1])]
        while todo:
            begin, first, end, last = todo.pop()
            if np.array_equal(first, last):
                found.append((begin, end, first))
                continue
            place = self._meet(left, right, first, last)
            inside = place is not None and begin < place < end
            at = place if place is not None and inside else (begin + end) / 2
            here = left + (right - left) * at
            middle: Mask = best_cuts(here[None], self.tie)[0]
            known = max(_gain(here, part) for part in (first, last))
            settled = inside and _gain(here, middle) <= known + self.tie
            if settled or end - begin < FINEST:
                found += [(begin, at, first), (at, end, last)]
            else:
                todo += [(begin, first, at, middle), (at, middle, end, last)]
        return found

    @staticmethod
    def _meet(left: Array, right: Array, first: Mask, last: Mask) -> float | None:
        """Where two sets are equally good."""
        if not first.any() or not last.any():
            return None
        lead = [_gain(side, first) - _gain(side, last) for side in (left, right)]
        return None if lead[0] == lead[1] else lead[0] / (lead[0] - lead[1])
