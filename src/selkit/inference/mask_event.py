"""The event that a region comes out of a clean-up, whatever the mask before it was.

Along a piece every score is a line, so that each pixel enters or leaves the mask at most once. A stretch on
which the final region is sure, although pixels change, is settled at once; else it is halved, down to the
stretches between two changes, on which the mask is one and the final region as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.inference.bounds import Band
from selkit.inference.events import Event, Settled
from selkit.inference.intervals import EMPTY, union
from selkit.inference.line import Trace
from selkit.inference.masks import Mask, Pair

Array = NDArray[np.float64]
Finish = Callable[[Sequence[Mask], Sequence[Mask]], list[Pair]]
"""From bounds of the masks of all levels to bounds of what is kept fixed; equal objects mean equal masks."""

ROUNDS = 3
"""How often a window is halved whose bounds leave the region open."""

FACTORS = (0.06, 0.25, 1.0, 4.0, 16.0)
"""How many times wider bounds are tried to exclude a window, from narrow to wide."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Tells from bounds of masks whether they end in what was observed.

    Attributes
    ----------
    finish
        The clean-up.
    observed
        What the observed image ended in: the region, and perhaps what may be compared with it.
    usable
        Pixels that matter.
    shape
        Of the masks.
    """

    finish: Finish
    observed: tuple[Mask, ...]
    usable: Mask
    shape: tuple[int, ...]

    def decide(self, lower: NDArray[np.bool_], upper: NDArray[np.bool_]) -> bool | None:
        """Whether all masks between two, of shape (levels, pixels), end in what was observed, or none."""
        first = [part.reshape(self.shape) for part in lower]
        last = first if np.array_equal(lower, upper) else [part.reshape(self.shape) for part in upper]
        sure = True
        for (least, most), seen in zip(self.finish(first, last), self.observed, strict=True):
            if bool(((least & ~seen) | (seen & ~most))[self.usable].any()):
                return False
            sure = sure and (least is most or not bool((least ^ most)[self.usable].any()))
        return True if sure else None


@dataclass(frozen=True, eq=False)
class MaskEvent(Event):
    """Scores above levels make masks whose clean-up ends in the observed region.

    Attributes
    ----------
    value
        Name of the program's output with the scores.
    levels
        What they are compared with; each makes a mask.
    above
        Whether the mask is above its level.
    tie
        Up to which a score counts as equal to a level, and is not in the mask.
    outcome
        What was observed.
    advice
        What to do where that holds by rounding alone.
    """

    value: str
    levels: tuple[float, ...]
    above: bool
    tie: float
    outcome: Outcome
    advice: str = "move the threshold a little"

    @property
    def rounding(self) -> float:
        """A hundredth of a tie."""
        return min(1e-12, self.tie / 100)

    def margins(self, values: Tensor, shift: float = 0.0) -> Array:
        """How far scores are above the levels and ties, of shape (points, levels, pixels)."""
        scores = values.flatten(1).to(torch.float64).cpu().numpy()
        parts = [(scores - level if self.above else level - scores) - self.tie for level in self.levels]
        return np.stack(parts, 1) + shift

    def masks(self, values: Tensor) -> list[Mask]:
        """The masks of all levels at the first of a stack of values."""
        first = self.margins(values[:1])[0]
        return [np.asarray(part > 0).reshape(self.outcome.shape) for part in first]

    def settle(self, trace: Trace, tolerance: float = 0.0) -> Settled:
        """Return where the final region is the observed one."""
        margin = self.margins(trace.values[self.value])
        z = trace.z.cpu().numpy()
        finite = np.asarray(np.isfinite(margin).all((1, 2)))
        joined = trace.joined.cpu().numpy() & finite[1:] & finite[:-1]
        stretches = _Stretches(self.outcome)
        for begin, end in _runs(joined):
            low = high = margin[begin : end + 1]
            if tolerance:
                low, high = low - tolerance, high + tolerance
            stretches.run(low, high, z[begin : end + 1])
        return stretches.settled()

    def settle_bands(self, bands: Mapping[str, Band], windows: Tensor, tolerance: float = 0.0) -> Settled:
        """Return what the bounds of each window tell of the final region."""
        ends = windows.cpu().numpy()
        stretches = _Stretches(self.outcome, rounds=ROUNDS)
        low, high = self._between(bands[self.value], 1.001, tolerance)
        for place, (begin, end) in enumerate(ends):
            if np.isfinite(low[place]).all() and np.isfinite(high[place]).all():
                stretches.run(low[place], high[place], np.array([begin, end]))
        return stretches.settled()

    def slack(self, bands: Mapping[str, Band], tolerance: float = 0.0) -> NDArray[np.float64]:
        """How many times wider the bounds could be and still exclude each window, to a factor of four."""
        found = np.zeros(len(bands[self.value].left))
        rows = np.arange(len(found))
        for factor in FACTORS:
            low, high = self._between(bands[self.value], factor, tolerance)
            wrong = [
                row
                for row in rows.tolist()
                if self.outcome.decide(np.asarray(low[row].min(0) > 0), np.asarray(high[row].max(0) > 0))
                is False
            ]
            found[wrong] = factor
            rows = np.array(wrong, dtype=np.int64)
        return found

    def _between(self, band: Band, factor: float, tolerance: float) -> tuple[Array, Array]:
        """Lower and upper lines of the margins, of shape (windows, 2, levels, pixels)."""
        radius = self._flat(band.radius)[:, None] * factor + tolerance
        offset = self._flat(band.offset)[:, None] * (1.0 if self.above else -1.0)
        sides = [self.margins(side) + offset for side in (band.left, band.right)]
        return np.stack([side - radius for side in sides], 1), np.stack([side + radius for side in sides], 1)

    @staticmethod
    def _flat(value: Tensor) -> Array:
        return np.asarray(value.flatten(1).to(torch.float64).cpu().numpy())


class _Stretches:
    """Collects where an outcome surely is what was observed, and where it surely is not."""

    def __init__(self, outcome: Outcome, rounds: int | None = None) -> None:
        self.outcome, self.rounds = outcome, rounds
        self.included: list[tuple[float, float]] = []
        self.excluded: list[tuple[float, float]] = []

    def settled(self) -> Settled:
        rows = (np.array(part, dtype=np.float64).reshape(-1, 2) for part in (self.included, self.excluded))
        return Settled(*(union(EMPTY, part) for part in rows))

    def _note(self, verdict: bool, begin: float, end: float) -> None:
        if begin < end:
            (self.included if verdict else self.excluded).append((begin, end))

    def run(self, low: Array, high: Array, z: Array) -> None:
        """Settle a run of pieces between two lines, of shape (points, levels, pixels) each."""
        # Inside a piece a line that touches zero at one end is on its side of the other end.
        on = (low[:-1] >= 0) & (low[1:] >= 0) & (np.maximum(low[:-1], low[1:]) > 0)
        maybe = np.asarray(np.maximum(high[:-1], high[1:]) > 0)
        todo = [(0, len(z) - 1)]
        while todo:
            begin, end = todo.pop()
            lower = np.asarray(on[begin:end].all(0))
            upper = np.asarray(maybe[begin:end].any(0))
            verdict = self.outcome.decide(lower, upper)
            if verdict is not None:
                self._note(verdict, z[begin], z[end])
            elif end - begin > 1:
                middle = (begin + end) // 2
                todo += [(begin, middle), (middle, end)]
            else:
                piece = slice(begin, end + 1)
                self._piece(low[piece], high[piece], on[begin], maybe[begin], z[piece])

    def _piece(
        self, low: Array, high: Array, on: NDArray[np.bool_], maybe: NDArray[np.bool_], z: Array
    ) -> None:
        """Settle one piece, on which some pixels change."""
        changing = maybe & ~on
        sure = _Change.of(low[:, changing])
        able = _Change.of(high[:, changing])
        places = np.unique(np.concatenate([[0.0, 1.0], sure.inner, able.inner]))
        length, start = z[1] - z[0], z[0]
        todo = [(0, len(places) - 1, self.rounds)]
        while todo:
            begin, end, rounds = todo.pop()
            lower, upper = on.copy(), maybe.copy()
            lower[changing] = sure.all_of(places[begin], places[end])
            upper[changing] = able.any_of(places[begin], places[end])
            verdict = self.outcome.decide(lower, upper)
            if verdict is not None:
                first, last = (z[1] if places[k] == 1.0 else start + length * places[k] for k in (begin, end))
                self._note(verdict, first, last)
            elif end - begin > 1 and rounds != 0:
                middle, rest = (begin + end) // 2, None if rounds is None else rounds - 1
                todo += [(begin, middle, rest), (middle, end, rest)]


@dataclass(frozen=True)
class _Change:
    """Where on [0, 1] lines are above zero: from ``first`` to ``last``.

    Attributes
    ----------
    first, last
        For each line; infinite where there is no such end, and the wrong way round where it never is.
    """

    first: Array
    last: Array

    @classmethod
    def of(cls, lines: Array) -> _Change:
        left, right = lines
        with np.errstate(divide="ignore", invalid="ignore"):
            place = np.clip(left / (left - right), 0.0, 1.0)
        rising, falling = (left <= 0) & (right > 0), (left > 0) & (right <= 0)
        always = ((left > 0) & (right > 0)) | (rising & (place == 0)) | (falling & (place == 1))
        first = np.where(always, -np.inf, np.where(rising, place, np.where(falling, -np.inf, np.inf)))
        last = np.where(always, np.inf, np.where(falling, place, np.where(rising, np.inf, -np.inf)))
        return cls(first, last)

    @property
    def inner(self) -> Array:
        """The ends inside."""
        ends = np.concatenate([self.first, self.last])
        return ends[(ends > 0) & (ends < 1)]

    def all_of(self, begin: float, end: float) -> NDArray[np.bool_]:
        """Which lines are above zero all over a part."""
        return (self.first <= begin) & (self.last >= end)

    def any_of(self, begin: float, end: float) -> NDArray[np.bool_]:
        """Which lines are above zero somewhere in a part."""
        return (self.first < end) & (self.last > begin)


def _runs(joined: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last breakpoint of each run of pieces."""
    steps = np.diff(np.concatenate([[0], joined.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))
