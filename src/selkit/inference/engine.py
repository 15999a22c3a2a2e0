"""Find the truncation set: which windows to look at, in which way, and until when.

Three ways to learn about a window, from cheap to exact: bounds from its two ends, following it in single
precision, following it in double precision. Each leaves open what it cannot decide; the next one takes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from selkit.errors import InvalidInputError
from selkit.graph.ops.base import Kind
from selkit.graph.program import Program
from selkit.inference.bounds import Bounder
from selkit.inference.events import Event, Settled, SignEvent
from selkit.inference.intervals import EMPTY, Intervals, around, complement, intersection, length, union
from selkit.inference.line import Follower, Line
from selkit.inference.search import REACH, Search
from selkit.inference.witness import Witnesses, largest, stack

Window = tuple[float, float]

DENSITY = 0.05
"""Linear pieces in a standard deviation for each element that can bend or switch: a first guess."""

SMALL = 2**22
"""Bytes of the largest value over all linear pieces that are left below which they are just followed."""

DIRECT = 2**23
"""Bytes of the largest value over all linear pieces of the line below which double precision is enough."""

SLIVERS = 1e-3
"""Share of followed windows that single precision may leave open before double precision takes over."""

HOME = 128
"""Linear pieces that the first look to either side of the statistic is guessed to hold."""

SURVEYS, SURVEYED = 12, 4.0
"""Windows that are looked at first, and how far they reach beyond the statistic and the null value."""

SIGHT = 1.0
"""Width of the first windows that are tried to be excluded by single elements."""

WORTH = 6.0
"""Bounds cost about as much as this many linear pieces."""

CACHE = 2**25
"""Bytes of the largest value that one stack may hold: enough to drown overhead, few enough for the cache."""

SAFETY = 32.0
"""Single precision decides where a margin exceeds this many times the largest error that was seen."""


class Engine:
    """Learns where on a line a selection event holds.

    Parameters
    ----------
    program
        In double precision; its outputs are what the event reads.
    event
        The selection event.
    line
        The line through the observation.
    """

    def __init__(self, program: Program, event: Event, line: Line) -> None:
        self.event, self.line = event, line
        self.smooth = Bounder(program)
        self.exact = self.fast = Follower(program, stack(program, CACHE))
        self.bytes, self.tolerance = largest(program), 0.0
        self.density = max(DENSITY * _switches(program), 1.0)
        self.direct = 2 * REACH * self.density * self.bytes <= DIRECT
        if not self.direct:
            tolerance = SAFETY * self._rounding(program, program.single)
            if math.isfinite(tolerance):  # where single precision overflows it can decide nothing
                fast = program.single
                self.fast = Follower(fast, stack(fast, CACHE))
                self.bytes, self.tolerance = largest(fast), tolerance
        self.bounder = Bounder(self.fast.program)
        self.batch = max(4, min(64, self.fast.limit // 8))
        self.windows = 0
        self.pieces = 0

    def _rounding(self, program: Program, fast: Program) -> float:
        """Largest difference of the outputs in single and double precision, at points along the line."""
        z = torch.linspace(-5.0, 5.0, 6, dtype=torch.float64)
        name = next(iter(program.inputs))
        exact = program.run({name: self.line.at(z)})
        rough = fast.run({name: self.line.at(z, torch.float32)})
        found = [(exact[output] - rough[output].to(torch.float64)).abs().max() for output in program.outputs]
        return float(torch.stack(found).nan_to_num(nan=torch.inf).max())

    def run(self, search: Search) -> None:
        """Search until the goal is reached or the whole domain is known."""
        while True:
            self._explore(search)
            # What single precision left open is settled at last, and all at once.
            rest = search.deferred
            if not len(rest):
                return
            search.deferred = EMPTY
            self._settle(rest, search)
            if search.finished():
                return

    def _explore(self, search: Search) -> None:
        able = 0.0 if self.direct else self._survey(search)
        density = self._home(search)
        if search.finished():
            return
        pace = self._pace(search, density, able)
        while not search.finished():
            windows = search.propose(pace.width, pace.count)
            if not windows:
                return
            rows = np.array(windows)
            if pace.bounds:
                known = self.bound(windows)
                search.record(known)
                rows = complement(union(known.included, known.excluded), rows)
                if pace.too_much(rows, density):
                    pace.width /= 3
                    continue
            elif pace.witnesses is not None:
                self.windows += len(rows)
                found = pace.witnesses.exclude(rows)
                search.record(Settled(EMPTY, found))
                rows = complement(found, rows)
            before = self.pieces
            self.follow(rows, search)
            pace.update(windows, rows, self.pieces - before)

    def _home(self, search: Search) -> float:
        """Follow the surroundings of the statistic until both ends of its interval are known.

        Returns the density of linear pieces there.
        """
        width, density = HOME / self.density, self.density
        while not search.finished() and not search.home_is_known():
            windows = search.propose(width, 2)
            if not windows:
                break
            before = self.pieces
            self.follow(np.array(windows), search)
            density = (self.pieces - before) / sum(high - low for low, high in windows)
            width = min(0.25 * self.fast.limit / density, 4 * width)
        return density

    def _survey(self, search: Search) -> float:
        """Look at bounds all over the middle of the line; return how wide windows may be for them.

        A bound's radius grows with the square of the width, so one try at some width tells at which it is
        as small as the margin.
        """
        low, high = sorted((search.stat, search.center))
        edges = np.linspace(low - SURVEYED, high + SURVEYED, SURVEYS + 1)
        rows = intersection(
            complement(search.searched, search.domain), np.column_stack([edges[:-1], edges[1:]])
        )
        if not len(rows):
            return 0.0
        self.windows += len(rows)
        ends = torch.from_numpy(rows).to(self.line.a.device)
        bands = self.bounder.bound(self.line, ends)
        search.record(self.event.settle_bands(bands, ends, self.tolerance))
        slack = self.event.slack(bands, self.tolerance)
        return float(np.median((rows[:, 1] - rows[:, 0]) * np.sqrt(slack)))

    def _pace(self, search: Search, density: float, able: float) -> _Pace:
        """Decide how to go on: follow the rest at once if that is little, or use bounds if they decide much.

        Where the window that bounds can decide has no more than a few pieces, following it is cheaper.
        """
        limit = self.fast.limit
        if density * length(search.rest()) * self.bytes <= SMALL:
            return _Pace(1e6, 8, False, limit)
        width = 0.5 * limit / max(density, 1e-3)
        if able * density < WORTH:
            witnesses = self._witnesses()
            if witnesses is None:
                return _Pace(width, 1, False, limit)
            return _Pace(SIGHT, 8, False, limit, witnesses)
        return _Pace(0.7 * able, self.batch, True, limit)

    def _witnesses(self) -> Witnesses | None:
        """What excludes windows by single elements, if these depend on little of the network."""
        if not isinstance(self.event, SignEvent):
            return None
        witnesses = Witnesses(self.fast.program, self.event, self.line, self.tolerance, CACHE)
        return witnesses if witnesses.pay() else None

    def bound(self, windows: Sequence[Window]) -> Settled:
        """Learn what the bounds of whole windows tell."""
        self.windows += len(windows)
        ends = torch.tensor(windows, dtype=torch.float64, device=self.line.a.device)
        return self.event.settle_bands(self.bounder.bound(self.line, ends), ends, self.tolerance)

    def follow(self, windows: Intervals, search: Search) -> None:
        """Learn everything about windows: in single precision, and in double where that is not enough."""
        if not len(windows):
            return
        self.windows += len(windows)
        rest = self._follow(self.fast, windows, search, self.tolerance)
        if not len(rest):
            return
        if length(rest) > SLIVERS * length(windows) or around(rest, search.stat) is not None:
            self._settle(rest, search)
        else:
            search.deferred = union(search.deferred, rest)

    def _settle(self, windows: Intervals, search: Search) -> None:
        """Learn everything about windows in double precision."""
        if len(self._follow(self.exact, windows, search, 0.0)):
            raise InvalidInputError(
                "the model's values overflow along the line through this image; scale the input or the model"
            )

    def _follow(self, follower: Follower, windows: Intervals, search: Search, tolerance: float) -> Intervals:
        known: list[Intervals] = []
        if len(windows):
            for trace in follower.follow(self.line, [(float(low), float(high)) for low, high in windows]):
                settled = self.event.settle(trace, tolerance)
                search.record(settled)
                self.pieces += int(trace.joined.sum())
                known += [settled.included, settled.excluded]
        return complement(union(*known), windows) if known else windows

    def refine(self, search: Search, most: int = 50_000) -> None:
        """Search by bounds alone, halving what they leave open: for maps that are smooth in the input.

        Parameters
        ----------
        search
            What is known.
        most
            Windows after which the search ends, with the bounds of the p-value that it has by then.
        """
        edges = np.linspace(search.near[0, 0], search.near[-1, 1], 4 * self.batch + 1)
        queue = np.column_stack([edges[:-1], edges[1:]])
        while len(queue) and self.windows < most and not search.finished():
            order = np.argsort(-search.weight(queue), kind="stable")
            now, queue = queue[np.sort(order[: self.batch])], queue[np.sort(order[self.batch :])]
            self.windows += len(now)
            ends = torch.tensor(now, dtype=torch.float64, device=self.line.a.device)
            bands = self.smooth.bound(self.line, ends)
            known = self.event.settle_bands(bands, ends, self.event.rounding)
            search.record(known)
            rest = complement(union(known.included, known.excluded), now)
            wide = rest[:, 1] - rest[:, 0] > 1e-10
            middle = rest[wide].mean(1)
            halves = [np.column_stack([rest[wide, 0], middle]), np.column_stack([middle, rest[wide, 1]])]
            queue = np.concatenate([queue, *halves])

    def piece(self, search: Search) -> None:
        """Learn about the linear piece of the observation only."""
        stat, width = search.stat, 1e-3
        while True:
            traces = list(self.exact.follow(self.line, [(stat - width, stat + width)]))
            z = torch.cat([trace.z for trace in traces]).cpu().numpy()
            low, high = float(z[z <= stat].max()), float(z[z >= stat].min())
            if (low > stat - width and high < stat + width) or width > 1e3:
                break
            width *= 8
        self.windows += 1
        here = np.array([[low, high]])
        for trace in traces:
            settled = self.event.settle(trace)
            search.record(Settled(intersection(settled.included, here), intersection(settled.excluded, here)))


@dataclass
class _Pace:
    """How wide the next windows are, how many, and whether to look at bounds before following.

    Attributes
    ----------
    width, count
        Of the next windows.
    bounds
        Whether bounds pay.
    limit
        Linear pieces that one stack should hold.
    witnesses
        What to try before following, where bounds do not pay.
    """

    width: float
    count: int
    bounds: bool
    limit: int
    witnesses: Witnesses | None = None

    def too_much(self, rows: Intervals, density: float) -> bool:
        """Whether what bounds left open is better looked at in narrower windows than followed."""
        return density * length(rows) > 2 * self.limit and density * self.width > 3 * WORTH

    def update(self, windows: Sequence[Window], rows: Intervals, pieces: int) -> None:
        """Learn from a round: what the bounds left open, or how many pieces were followed."""
        if not self.bounds and self.witnesses is None:
            self.width *= min(2.0, max(0.5, 0.5 * self.limit / max(pieces, 1)))
            return
        share = length(rows) / sum(high - low for low, high in windows)
        if share < 0.15:
            self.width *= 1.5
        elif share > 0.35:
            self.width /= 1.5


def _switches(program: Program) -> int:
    """How many elements of a program's values can bend or switch along a line."""
    bends = [step for step in program.steps if step.kind in (Kind.PIECEWISE_LINEAR, Kind.MAXIMUM)]
    return sum(int(np.prod(program.shapes[step.outputs[0]])) for step in bends)
