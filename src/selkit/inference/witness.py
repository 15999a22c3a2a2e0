"""Exclude windows by one element of the map that is wrong all along.

A region is another one as soon as a single element has another sign. An element that is clearly wrong at a
window's ends and middle mostly is so in between, and to know, only the patch of the network that it depends
on is followed: a fraction of the work, with a fraction of the breakpoints.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import torch

from selkit.graph.program import Program
from selkit.inference.crop import Patch, crop, work
from selkit.inference.events import SignEvent
from selkit.inference.intervals import EMPTY, Intervals, complement, length, union
from selkit.inference.line import Follower, Line, Trace

WORTH = 0.9
"""Share of the whole network's work up to which a patch pays."""

ROUNDS = 3
"""How many elements are tried for what one leaves open."""


class Witnesses:
    """Follows single elements of a map.

    Parameters
    ----------
    program
        The whole network, in the precision to follow it in.
    event
        Reads its margins.
    line
        The line through the observation.
    tolerance
        Up to which the program's values are right.
    size
        Bytes that the largest value of a stack may hold.
    """

    def __init__(self, program: Program, event: SignEvent, line: Line, tolerance: float, size: int) -> None:
        self.program, self.event, self.line = program, event, line
        self.tolerance, self.size = tolerance, size
        self.shape = program.shapes[event.value]
        self.pieces = 0
        self._followers: dict[Patch, Follower] = {}

    def pay(self) -> bool:
        """Whether an element in the middle depends on little enough of the network."""
        if len(self.shape) < 3 or math.prod(self.shape[2:]) < 2:
            return False
        part = crop(self.program, self.event.value, tuple((s // 2, s // 2 + 1) for s in self.shape[2:]))
        return work(part.steps, part) < WORTH * work(self.program.steps, self.program)

    def exclude(self, windows: Intervals) -> Intervals:
        """Return parts of windows where the event surely does not hold."""
        excluded, rest = EMPTY, windows
        for _ in range(ROUNDS):
            found = self._round(rest)
            left = complement(found, rest)
            excluded = union(excluded, found)
            if not len(left) or length(left) > 0.8 * length(rest) or length(left) < 0.1 * length(windows):
                break
            rest = left
        return excluded

    def _round(self, rows: Intervals) -> Intervals:
        """Follow for each window the element that is most clearly wrong at three places."""
        z = torch.from_numpy(np.column_stack([rows[:, 0], rows.mean(1), rows[:, 1]]).ravel())
        z = z.to(self.line.a.device)
        (name,) = self.program.inputs
        values = self.program.run({name: self.line.at(z, self.program.dtype)})
        joined = torch.zeros(len(z) - 1, dtype=torch.bool, device=z.device)
        margin = self.event.signed(Trace(z, joined, values)).reshape(len(rows), 3, -1).amax(1)
        least, place = margin.min(1)
        together: dict[int, list[int]] = defaultdict(list)
        for row, (value, element) in enumerate(zip(least.tolist(), place.tolist(), strict=True)):
            if value < -self.tolerance:
                together[element].append(row)
        return union(EMPTY, *(self._follow(element, rows[chosen]) for element, chosen in together.items()))

    def _follow(self, element: int, rows: Intervals) -> Intervals:
        channel, *pixel = np.unravel_index(
            int(self.event.index[element]), (math.prod(self.shape[:2]), *self.shape[2:])
        )
        patch = tuple((int(at), int(at) + 1) for at in pixel)
        tie = self.event.tie
        event = SignEvent(
            self.event.value,
            torch.tensor([int(channel)], device=self.line.a.device),
            self.event.positive[element : element + 1],
            tie if isinstance(tie, float) else tie[element : element + 1],
        )
        known = []
        for trace in self._follower(patch).follow(
            self.line, [(float(low), float(high)) for low, high in rows]
        ):
            known.append(event.settle(trace, self.tolerance).excluded)
            self.pieces += int(trace.joined.sum())
        return union(EMPTY, *known)

    def _follower(self, patch: Patch) -> Follower:
        if patch not in self._followers:
            part = crop(self.program, self.event.value, patch)
            self._followers[patch] = Follower(part, stack(part, self.size))
        return self._followers[patch]


def largest(program: Program) -> int:
    """Bytes of a program's largest live value at one point."""
    size = torch.finfo(program.dtype).bits // 8
    live = {*program.inputs, *(name for step in program.steps for name in step.outputs if name)}
    return size * max(math.prod(program.shapes[name]) for name in live)


def stack(program: Program, size: int) -> int:
    """How many points of a program fit into one stack of this many bytes."""
    return int(np.clip(size // largest(program), 64, 2048))
