"""Maps that are smooth only at their end: follow the piecewise-linear part, and solve the rest on each piece.

A segmentation network ends in a softmax; before it, everything is piecewise linear. The network is cut where
its first smooth values begin. What comes before, the body, is followed exactly; on each of its pieces, what
comes after, the tail, is a smooth function of one number, whose sign is found by bounds that shrink with the
square of the width: to machine precision in a few rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.graph.ops.base import Kind
from selkit.graph.program import Program, Step, finish
from selkit.inference.bounds import Band, Bounder
from selkit.inference.crop import work
from selkit.inference.events import Event, Settled
from selkit.inference.intervals import EMPTY, Intervals, complement, union
from selkit.inference.line import Trace

SMOOTH = (Kind.SMOOTH, Kind.PRODUCT)

FINEST = 1e-13
"""Width, relative to the place, below which the middle of what is open decides."""

FEW, MANY, MOST = 4, 80, 2**18
"""Rounds in single and in double precision, and windows in one of them."""

LIGHT = 0.25
"""Share of the body's work above which a tail is not worth repeating on every piece."""


def cut(program: Program, event: Event) -> tuple[Program, Event]:
    """Return the body of a program and an event that reads its outputs; both as given if there is no tail.

    Parameters
    ----------
    program
        Its outputs are what the event reads.
    event
        The selection event.
    """
    body, tail = split(program)
    return (program, event) if tail is None else (body, TailEvent(event, tail))


def split(program: Program) -> tuple[Program, Program | None]:
    """Split a program into a piecewise-linear body and a tail.

    There is no tail where nothing is smooth, or where what is smooth is not a light end of the program.
    """
    late: set[str] = set()
    body: list[Step] = []
    tail: list[Step] = []
    for step in program.steps:
        if step.kind in SMOOTH or not late.isdisjoint(step.inputs):
            late.update(step.outputs)
            tail.append(step)
        else:
            body.append(step)
    bends = any(step.kind in (Kind.PIECEWISE_LINEAR, Kind.MAXIMUM) for step in body)
    if not tail or not bends or work(tail, program) > LIGHT * work(body, program):
        return program, None
    made = {*program.inputs, *(name for step in body for name in step.outputs)}
    read = {name for step in tail for name in step.inputs} | set(program.outputs)
    between = sorted(made & read)
    return _part(program, body, program.inputs, between), _part(program, tail, between, program.outputs)


def _part(program: Program, steps: Sequence[Step], inputs: Iterable[str], outputs: Sequence[str]) -> Program:
    return finish(
        steps,
        {name: program.shapes[name] for name in inputs},
        outputs,
        constants=program.constants,
        shapes=program.shapes,
        dtype=program.dtype,
        device=program.device,
    )


@dataclass(frozen=True, eq=False)
class TailEvent(Event):
    """An event that reads smooth functions of what is followed.

    Attributes
    ----------
    event
        Reads the tail's outputs.
    tail
        From the values that are followed to what the event reads; in double precision.
    """

    event: Event
    tail: Program

    @property
    def rounding(self) -> float:
        """That of the event behind the tail."""
        return self.event.rounding

    def settle_bands(self, bands: Mapping[str, Band], windows: Tensor, tolerance: float = 0.0) -> Settled:
        """Carry the bounds on through the tail."""
        return self.event.settle_bands(self._carry(bands, tolerance), windows)

    def slack(self, bands: Mapping[str, Band], tolerance: float = 0.0) -> NDArray[np.float64]:
        """How many times wider the bounds could be, by those behind the tail."""
        return self.event.slack(self._carry(bands, tolerance))

    def settle(self, trace: Trace, tolerance: float = 0.0) -> Settled:
        """Bound the tail on each piece; look again at what stays open, halved where that did not help."""
        pieces = trace.joined.nonzero(as_tuple=True)[0]
        for name in self.tail.inputs:
            finite = torch.isfinite(trace.values[name]).flatten(1).all(1)
            pieces = pieces[finite[pieces] & finite[pieces + 1]]
        place = pieces.cpu().numpy()
        z = trace.z.cpu().numpy()
        rows = np.column_stack([z[place], z[place + 1]])
        included, excluded = EMPTY, EMPTY
        # What rounding hides stays hidden however often it is halved.
        for _ in range(FEW if tolerance else MANY):
            if not 0 < len(rows) <= MOST:
                break
            found = self._look(trace, place, rows, rows, tolerance)
            included, excluded = union(included, found.included), union(excluded, found.excluded)
            rows, place = _again(complement(union(found.included, found.excluded), union(rows)), rows, place)
            thin = rows[:, 1] - rows[:, 0] <= FINEST * np.abs(rows).max(1, initial=1.0)
            if thin.any() and tolerance == 0.0:
                middle = np.repeat(rows[thin].mean(1, keepdims=True), 2, axis=1)
                found = self._look(trace, place[thin], middle, rows[thin], 0.0)
                included, excluded = union(included, found.included), union(excluded, found.excluded)
            rows, place = rows[~thin], place[~thin]
        return Settled(included, excluded)

    def _look(
        self, trace: Trace, place: NDArray[np.int64], ends: Intervals, rows: Intervals, tolerance: float
    ) -> Settled:
        """Bound the tail between ``ends``, inside the pieces at ``place``, and say so about ``rows``."""
        index = torch.from_numpy(place).to(trace.z.device)
        low, high = trace.z[index], trace.z[index + 1]
        weight = (torch.from_numpy(ends).to(trace.z.device) - low[:, None]) / (high - low)[:, None]
        bands = {}
        for name in self.tail.inputs:
            first, last = (trace.values[name][at].to(torch.float64) for at in (index, index + 1))
            shape = (-1, *(1,) * (first.ndim - 1))
            left, right = (torch.lerp(first, last, weight[:, side].reshape(shape)) for side in (0, 1))
            nothing = torch.zeros_like(left)
            bands[name] = Band(left, right, nothing, nothing)
        return self.settle_bands(bands, torch.from_numpy(rows).to(trace.z.device), tolerance)

    def _carry(self, bands: Mapping[str, Band], tolerance: float) -> dict[str, Band]:
        wide = {name: bands[name].to(self.tail.dtype) for name in self.tail.inputs}
        if tolerance:
            wide = {
                name: Band(band.left, band.right, band.offset, band.radius + tolerance)
                for name, band in wide.items()
            }
        return Bounder(self.tail).carry(wide)


def _again(rest: Intervals, rows: Intervals, place: NDArray[np.int64]) -> tuple[Intervals, NDArray[np.int64]]:
    """What is open of each window, and its piece; in two halves where that is more than half of it."""
    open_parts: list[tuple[float, float, int]] = []
    for (low, high), piece in zip(rows, place, strict=True):
        first = np.searchsorted(rest[:, 1], low, side="right")
        last = np.searchsorted(rest[:, 0], high, side="left")
        for start, stop in rest[first:last]:
            begin, end = max(start, low), min(stop, high)
            middle = (begin + end) / 2
            if end - begin > 0.5 * (high - low) and begin < middle < end:
                open_parts += [(begin, middle, piece), (middle, end, piece)]
            elif begin < end:
                open_parts.append((begin, end, piece))
    table = np.array(open_parts).reshape(-1, 3)
    return table[:, :2].copy(), table[:, 2].astype(np.int64)
