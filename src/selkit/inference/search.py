"""Which part of the line to look at next, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from selkit.errors import InvalidInputError
from selkit.inference.events import Settled
from selkit.inference.intervals import EMPTY, Intervals, around, complement, intersection, union
from selkit.inference.truncated import Alternative, Distribution, log_mass, p_value, p_value_bounds

InferenceMode = Literal["parametric", "decision", "exhaustive", "over_conditioning"]
MODES: tuple[InferenceMode, ...] = get_args(InferenceMode)

REACH = 10.0
"""How far beyond the statistic and the null value an exhaustive search goes, in standard deviations."""

LIMIT = 38.0
"""How far any search goes: what lies beyond has a probability of 1e-315."""


@dataclass(frozen=True)
class Goal:
    """When a search has seen enough.

    Attributes
    ----------
    mode
        "parametric": the bounds of the p-value are closer than ``precision``; "decision": they lie on one
        side of ``significance_level``; "exhaustive": everything within ten standard deviations of the
        statistic and of zero is searched; "over_conditioning": the linear piece of the observation alone.
    precision
        Largest difference of the bounds.
    significance_level
        Level of the test.
    """

    mode: InferenceMode = "parametric"
    precision: float = 1e-3
    significance_level: float = 0.05

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidInputError(f"inference_mode is {self.mode!r}; it must be one of {', '.join(MODES)}")
        if not 0 < self.precision < 1:
            raise InvalidInputError(f"precision is {self.precision}; it must lie in (0, 1)")
        if not 0 < self.significance_level < 1:
            raise InvalidInputError(f"significance_level is {self.significance_level}; it must lie in (0, 1)")

    def reached(self, lower: float, upper: float) -> bool:
        """Whether bounds of the p-value are good enough."""
        if self.mode == "decision":
            return upper <= self.significance_level or lower > self.significance_level
        return self.mode == "parametric" and upper - lower < self.precision


class Search:
    """What is known of a truncation set, and what to look at next.

    Parameters
    ----------
    distribution
        Of the statistic, before truncation.
    stat
        The observed statistic.
    alternative
        Of the test.
    goal
        When to stop.
    """

    def __init__(self, distribution: Distribution, stat: float, alternative: Alternative, goal: Goal) -> None:
        self.distribution, self.stat, self.alternative, self.goal = distribution, stat, alternative, goal
        self.included: Intervals = EMPTY
        self.searched: Intervals = EMPTY
        self.deferred: Intervals = EMPTY
        self.center = float(np.clip(getattr(distribution, "mean", 0.0), *distribution.support[0]))
        low, high = sorted((stat, self.center))
        self.near = intersection(np.array([[low - REACH, high + REACH]]), distribution.support)
        self.domain = self.near
        if goal.mode != "exhaustive":
            self.domain = intersection(np.array([[low - LIMIT, high + LIMIT]]), distribution.support)

    def record(self, settled: Settled) -> None:
        """Add what has become known."""
        self.included = union(self.included, settled.included)
        self.searched = union(self.searched, settled.included, settled.excluded)

    def bounds(self) -> tuple[float, float]:
        """Bounds of the p-value by what is known."""
        return p_value_bounds(self.distribution, self.stat, self.included, self.searched, self.alternative)

    def p_value(self) -> float:
        """The p-value if nothing more is included."""
        return p_value(self.distribution, self.stat, self.included, self.alternative)

    def finished(self) -> bool:
        """Whether the goal is reached, or nothing is left to search.

        The interval around the statistic is always looked for, even where its mass would not matter.
        """
        if around(self.included, self.stat) is not None and self.goal.reached(*self.bounds()):
            return True
        return not len(complement(self.searched, self.domain))

    def home_is_known(self) -> bool:
        """Whether both ends of the interval around the statistic are known."""
        home, seen = around(self.included, self.stat), around(self._looked_at(), self.stat)
        if home is None or seen is None:
            return False
        left = home[0] > seen[0] or home[0] <= self.near[0, 0]
        return left and (home[1] < seen[1] or home[1] >= self.near[-1, 1])

    def propose(self, width: float, count: int) -> list[tuple[float, float]]:
        """Return up to ``count`` windows of about ``width`` that can change the p-value most, ascending.

        Until both ends of the interval around the statistic are known, windows lie at its ends. Then they
        are taken by what they can change: mass on one side of the statistic counts as much as the other
        side is known to weigh.
        """
        home = around(self.included, self.stat)
        looked_at = self._looked_at()
        if home is None:
            gaps = complement(looked_at, self.domain)
            return self._cut(gaps, self.stat, width, count) if len(gaps) else []
        frontier = around(looked_at, self.stat) or home
        ends = []
        if home[0] <= frontier[0] and home[0] > self.near[0, 0]:
            ends.append((home[0] - width, home[0]))
        if home[1] >= frontier[1] and home[1] < self.near[-1, 1]:
            ends.append((home[1], home[1] + width))
        if ends:
            rows = intersection(complement(looked_at, self.near), np.array(ends))
            return [(float(low), float(high)) for low, high in rows]
        return self._cut(self.rest(), self.center, width, count)

    def _looked_at(self) -> Intervals:
        return union(self.searched, self.deferred) if len(self.deferred) else self.searched

    def rest(self) -> Intervals:
        """What is still to be looked at: the relevant part of the domain."""
        return complement(self._looked_at(), self._relevant())

    def _relevant(self) -> Intervals:
        """The part of the domain beyond which nothing can keep the goal from being reached."""
        if self.goal.mode == "exhaustive":
            return self.domain
        low, high = 0.0, REACH + abs(self.stat - self.center)
        if not self._enough(high):
            return self.domain
        while high - low > 0.05:
            middle = (low + high) / 2
            low, high = (low, middle) if self._enough(middle) else (middle, high)
        return intersection(np.array([[self.center - high, self.center + high]]), self.domain)

    def _enough(self, radius: float) -> bool:
        """Whether the goal would be reached once everything within ``radius`` of the center is searched."""
        ball = np.array([[self.center - radius, self.center + radius]])
        lower, upper = p_value_bounds(
            self.distribution, self.stat, self.included, union(self.searched, ball), self.alternative
        )
        tighter = Goal(self.goal.mode, 0.7 * self.goal.precision, self.goal.significance_level)
        return tighter.reached(lower, upper)

    def _cut(self, gaps: Intervals, center: float, width: float, count: int) -> list[tuple[float, float]]:
        """Cut gaps into windows, outwards from ``center``, and keep those that matter most."""
        windows: list[tuple[float, float]] = []
        for low, high in gaps:
            anchor = float(np.clip(center, low, high))
            for step in range(count):
                begin = anchor + step * width
                if begin >= high:
                    break
                # A rest shorter than a tenth of a window joins it, so that no slivers remain.
                end = high if begin + 1.1 * width >= high else begin + width
                windows.append((begin, float(end)))
                if end == high:
                    break
            for step in range(count):
                end = anchor - step * width
                if end <= low:
                    break
                begin = low if end - 1.1 * width <= low else end - width
                windows.append((float(begin), end))
                if begin == low:
                    break
        if not windows:
            return []
        weight = self.weight(np.array(windows))
        best = np.argsort(-weight, kind="stable")[:count]
        return sorted(windows[index] for index in best)

    def weight(self, windows: Intervals) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Logarithm of how much each window can move the p-value."""
        left = log_mass(self.distribution, intersection(self.included, np.array([[-np.inf, self.stat]])))
        right = log_mass(self.distribution, intersection(self.included, np.array([[self.stat, np.inf]])))
        if not np.isfinite(left) or not np.isfinite(right):
            # Nothing is known yet: the surroundings of the statistic come first.
            distance = np.maximum(windows[:, 0] - self.stat, self.stat - windows[:, 1])
            return np.asarray(-np.maximum(distance, 0.0))
        other = np.where(windows[:, 1] <= self.stat, right, left)
        return np.asarray(self.distribution.log_mass(windows) + other)
