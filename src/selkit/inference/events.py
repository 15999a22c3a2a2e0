"""Selection events: which points of a line select what was observed.

An event reads values of a program at breakpoints and says on which part of each piece it holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.inference.bounds import Band
from selkit.inference.intervals import EMPTY, Intervals, as_intervals
from selkit.inference.line import Trace


@dataclass(frozen=True)
class Settled:
    """What a trace says about an event.

    Attributes
    ----------
    included, excluded
        Where the event surely holds, and where it surely does not. What both leave out is open.
    """

    included: Intervals
    excluded: Intervals


class Event(ABC):
    """A set of z, told from values of a program along the line.

    Attributes
    ----------
    advice
        What to do where the observation is in the set by rounding alone.
    """

    advice: str = ""

    @property
    def rounding(self) -> float:
        """Largest error of the values in double precision that the event allows for; below any tie."""
        return 1e-12

    @abstractmethod
    def settle(self, trace: Trace, tolerance: float = 0.0) -> Settled:
        """Return where the event holds on a trace whose values are right up to ``tolerance``."""

    @abstractmethod
    def settle_bands(self, bands: Mapping[str, Band], windows: Tensor, tolerance: float = 0.0) -> Settled:
        """Return where the event holds on windows, of shape (B, 2), by the bounds of the values there."""

    @abstractmethod
    def slack(self, bands: Mapping[str, Band], tolerance: float = 0.0) -> NDArray[np.float64]:
        """How many times wider the bounds could be and still exclude each window; of shape (B,)."""


@dataclass(frozen=True, eq=False)
class SignEvent(Event):
    """All margins have the signs that were observed: an element is in the region where it is positive.

    A tie is not positive. A map may be flat at its threshold over whole stretches of the line, where rounding
    must not decide: margins up to ``tie`` are ties.

    Attributes
    ----------
    value
        Name of the program's output with the margins.
    index
        Which elements matter (those that the mask leaves), int64, flat.
    positive
        Whether each of them was observed above zero, boolean.
    tie
        Up to which a margin is not positive; a number, or one for each of them.
    advice
        What to do where the observed signs hold by rounding alone.
    """

    value: str
    index: Tensor
    positive: Tensor
    tie: float | Tensor = 0.0
    advice: str = ""

    @property
    def rounding(self) -> float:
        """A hundredth of a tie."""
        least = self.tie if isinstance(self.tie, float) else float(self.tie.min())
        return min(1e-12, least / 100)

    def signed(self, trace: Trace) -> Tensor:
        """Margins times their observed signs, of shape (K, elements): the event holds where all are >= 0."""
        margin = self._chosen(trace.values[self.value]) - self.tie
        return torch.where(self.positive, margin, -margin)

    def settle(self, trace: Trace, tolerance: float = 0.0) -> Settled:
        """Return where every margin keeps its sign.

        On a piece each margin is a line: one that is wrong at both ends is wrong in between, and the others
        bound the part of the piece where all are right.
        """
        margin = self.signed(trace)
        wrong = self._wrong(margin, tolerance)
        finite = torch.isfinite(margin).all(1)
        joined = trace.joined & finite[1:] & finite[:-1]
        dead = (wrong[1:] & wrong[:-1]).any(1) & joined
        z = trace.z
        alive = (~dead & joined).nonzero(as_tuple=True)[0]
        excluded = [_runs(z, dead)]
        included: list[Intervals] = []
        if len(alive):
            left, right = margin[alive].to(torch.float64), margin[alive + 1].to(torch.float64)
            inner = _positive_part(left, right, tolerance)
            included.append(_stretch(inner, z[alive], z[alive + 1]))
            outer = _positive_part(left, right, -tolerance)
            low, high = z[alive], z[alive + 1]
            excluded.append(_stretch(torch.stack([torch.zeros_like(outer[:, 0]), outer[:, 0]], 1), low, high))
            excluded.append(_stretch(torch.stack([outer[:, 1], torch.ones_like(outer[:, 1])], 1), low, high))
        return Settled(
            as_intervals(np.concatenate(included)) if included else EMPTY,
            as_intervals(np.concatenate(excluded)),
        )

    def settle_bands(self, bands: Mapping[str, Band], windows: Tensor, tolerance: float = 0.0) -> Settled:
        """Return where every margin surely keeps its sign, and where one surely does not.

        A wrong margin excludes a part of the window that begins at one of its ends: what is left is one
        interval.
        """
        band = bands[self.value]
        left, right = self._oriented(band.left, self.tie), self._oriented(band.right, self.tie)
        # Rounding of the bounds themselves is far below a thousandth of their width.
        radius = self._chosen(band.radius).to(torch.float64) * 1.001 + tolerance
        offset = self._oriented(band.offset)
        low, high = windows[:, 0], windows[:, 1]
        outer = _positive_part(left + offset + radius, right + offset + radius, 0.0)
        inner = _positive_part(left + offset - radius, right + offset - radius, 0.0)
        # A bound that has overflown to NaN compares as if nothing were wrong: it includes nothing.
        sound = torch.isfinite(left + right + offset + radius).all(1)
        inner = inner * sound[:, None]
        zero, one = torch.zeros_like(low), torch.ones_like(low)
        excluded = [
            _stretch(torch.stack([zero, outer[:, 0]], 1), low, high),
            _stretch(torch.stack([outer[:, 1], one], 1), low, high),
        ]
        return Settled(as_intervals(_stretch(inner, low, high)), as_intervals(np.concatenate(excluded)))

    def slack(self, bands: Mapping[str, Band], tolerance: float = 0.0) -> NDArray[np.float64]:
        """How many times wider the bounds could be and still exclude each window; 0 if nothing is wrong."""
        band = bands[self.value]
        wrong = -torch.maximum(self._oriented(band.left, self.tie), self._oriented(band.right, self.tie))
        reach = self._chosen(band.radius).to(torch.float64) + self._oriented(band.offset).abs() + tolerance
        ratio = (wrong / reach.clamp_min(torch.finfo(torch.float64).tiny)).amax(1).clamp_min(0.0)
        return np.asarray(ratio.cpu().numpy(), dtype=np.float64)

    def _chosen(self, value: Tensor) -> Tensor:
        value = value.flatten(1)
        return value if value.shape[1] == len(self.index) else value.index_select(1, self.index)

    def _oriented(self, value: Tensor, zero: float | Tensor = 0.0) -> Tensor:
        value = self._chosen(value).to(torch.float64) - zero
        return torch.where(self.positive, value, -value)

    def _wrong(self, margin: Tensor, tolerance: float) -> Tensor:
        """Where an element surely has the other sign; zero is not above zero."""
        if tolerance > 0:
            return margin < -tolerance
        return (margin < 0) | (self.positive & (margin == 0))


def _positive_part(left: Tensor, right: Tensor, offset: float) -> Tensor:
    """Part of [0, 1] where all lines from ``left`` to ``right`` are at least ``offset``, (pieces, 2)."""
    left, right = left - offset, right - offset
    rising, falling = (left < 0) & (right > 0), (left > 0) & (right < 0)
    # A line that is below at one end and on the level at the other only touches it.
    down, up = (left < 0) & (right <= 0), (left <= 0) & (right < 0)
    place = left / (left - right)
    lower = torch.where(rising, place, torch.zeros_like(place)).amax(1)
    upper = torch.where(falling, place, torch.ones_like(place)).amin(1)
    never = (down | up).any(1) | (lower > upper)
    lower, upper = lower.masked_fill(never, 1.0), upper.masked_fill(never, 0.0)
    return torch.stack([lower, upper], 1)


def _stretch(part: Tensor, low: Tensor, high: Tensor) -> Intervals:
    """Map parts of [0, 1] onto their pieces; empty ones vanish."""
    keep = part[:, 0] < part[:, 1]
    part, low, high = part[keep], low[keep], high[keep]
    ends = low[:, None] + (high - low)[:, None] * part
    ends = torch.where(part == 1, high[:, None], ends)
    rows: Intervals = ends.cpu().numpy()
    return rows


def _runs(z: Tensor, pieces: Tensor) -> Intervals:
    """Return the pieces marked in ``pieces``, neighbours merged."""
    chosen = pieces.nonzero(as_tuple=True)[0]
    return as_intervals(torch.stack([z[chosen], z[chosen + 1]], 1).cpu().numpy())
