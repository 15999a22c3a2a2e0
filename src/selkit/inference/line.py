"""Follow a piecewise-linear program along a line ``x(z) = a + b z``, all at once.

Between two neighbouring breakpoints every value of the program is linear in z, so its values at the
breakpoints say everything (Sotoudeh & Thakur 2019, "Computing Linear Restrictions of Neural Networks").
Affine operators are evaluated at the breakpoints; operators with knots and maxima first insert the
breakpoints that they cause, where all values that are still needed are interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from selkit.graph.ops.base import Kind, Maximum, PiecewiseLinear
from selkit.graph.program import Program, Step

MERGE = 1e-13
"""Crossings closer than this, as a fraction of their piece, are one breakpoint."""


@dataclass(frozen=True)
class Line:
    """The points ``a + b z`` of input space.

    Attributes
    ----------
    a, b
        Tensors of the input's ONNX shape, float64.
    """

    a: Tensor
    b: Tensor

    def at(self, z: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the points at ``z`` of shape (K,) as a stack of shape (K, *input)."""
        z = z.to(self.a.device, torch.float64).reshape(-1, *(1,) * self.a.ndim)
        return (self.a + self.b * z).to(dtype)


@dataclass(frozen=True)
class Trace:
    """Values at the breakpoints of a part of the line.

    Attributes
    ----------
    z
        Breakpoints, ascending, float64 of shape (K,).
    joined
        Whether the values are linear between each breakpoint and the next; False where one window ends and
        another begins. Boolean of shape (K - 1,).
    values
        Tensors of shape (K, *value) by name.
    """

    z: Tensor
    joined: Tensor
    values: Mapping[str, Tensor]

    def part(self, begin: int, end: int) -> Trace:
        """Return breakpoints ``begin`` to ``end``, both included."""
        values = {name: value[begin : end + 1] for name, value in self.values.items()}
        return Trace(self.z[begin : end + 1], self.joined[begin:end], values)

    def insert(self, pair: Tensor, weight: Tensor) -> Trace:
        """Insert points between breakpoints ``pair`` and ``pair + 1``, all values interpolated.

        Parameters
        ----------
        pair
            int64 of shape (M,), ascending.
        weight
            Position in (0, 1), ascending within each pair; shape (M,).
        """
        count, extra = len(self.z), len(pair)
        device = self.z.device
        old = torch.arange(count, device=device)
        old = old + torch.searchsorted(pair, old)
        new = pair + 1 + torch.arange(extra, device=device)

        def spread(value: Tensor) -> Tensor:
            result = value.new_empty((count + extra, *value.shape[1:]))
            result.index_copy_(0, old, value)
            left, right = value.index_select(0, pair), value.index_select(0, pair + 1)
            fraction = weight.to(value.dtype).reshape(-1, *(1,) * (value.ndim - 1))
            between = left.lerp(right, fraction)
            if bool(between.isnan().any()):  # a mask's infinity stays what it is at both ends
                between = torch.where(left == right, left, between)
            result.index_copy_(0, new, between)
            return result

        origin = torch.empty(count + extra, dtype=torch.int64, device=device)
        origin[old] = torch.arange(count, device=device)
        origin[new] = pair
        values = {name: spread(value) for name, value in self.values.items()}
        return Trace(spread(self.z), self.joined[origin[:-1]], values)


@dataclass(frozen=True)
class Crossings:
    """Breakpoints to insert: between ``pair`` and ``pair + 1`` at ``weight``, both of shape (M,), sorted."""

    pair: Tensor
    weight: Tensor

    @staticmethod
    def of(pair: Tensor, weight: Tensor) -> Crossings:
        """Sort crossings by place, and merge those at the same place."""
        weight = weight.to(torch.float64)
        inside = (weight > MERGE) & (weight < 1 - MERGE)
        pair, weight = pair[inside], weight[inside]
        order = torch.argsort(weight)
        order = order[torch.argsort(pair[order], stable=True)]
        pair, weight = pair[order], weight[order]
        if len(pair) > 1:
            same = (pair[1:] == pair[:-1]) & (weight[1:] - weight[:-1] <= MERGE)
            keep = torch.cat([same.new_ones(1), ~same])
            pair, weight = pair[keep], weight[keep]
        return Crossings(pair, weight)

    def __len__(self) -> int:
        return len(self.pair)


def knot_crossings(step: Step, operands: Sequence[Tensor | None], joined: Tensor) -> Crossings:
    """Where the elements of a piecewise-linear operator's input pass one of its knots."""
    operator = step.operator
    if not isinstance(operator, PiecewiseLinear) or operands[0] is None:
        raise TypeError(f"{step.operator} is not piecewise linear")
    value = operands[0]
    count = len(value)
    flat = value.reshape(count, -1)
    pairs, weights = [], []
    for knot in operator.knots(*operands):
        above = (value > knot).reshape(count, -1)
        pair, element = _nonzero(above[1:] ^ above[:-1], joined)
        if not len(pair):
            continue
        level: Tensor | float = knot
        if isinstance(knot, Tensor):
            rows = torch.broadcast_to(knot, value.shape).reshape(count, -1)
            level = rows[pair, element].to(torch.float64)
        before = flat[pair, element].to(torch.float64) - level
        after = flat[pair + 1, element].to(torch.float64) - level
        pairs.append(pair)
        weights.append(before / (before - after))
    return _gather(pairs, weights, joined.device)


def _nonzero(mask: Tensor, joined: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of what is set in the joined rows of a matrix, row by row."""
    width = mask.shape[1]
    if mask.device.type == "cpu":  # several times faster than torch for sparse masks
        place = torch.from_numpy(np.flatnonzero(mask.numpy()))
    else:
        place = mask.reshape(-1).nonzero(as_tuple=True)[0]
    row = torch.div(place, width, rounding_mode="floor")
    keep = joined[row]
    return row[keep], (place - row * width)[keep]


def winner_crossings(
    step: Step, operands: Sequence[Tensor | None], winner: Tensor, pairs: Tensor, size: int
) -> Crossings:
    """Where the winner of a maximum changes to the one at the next breakpoint.

    If one candidate wins at both ends it does in between: a maximum of lines is convex. Else the lines of
    the two winners meet in between; there a third one may win, so the caller looks again.

    Parameters
    ----------
    step, operands
        The maximum and its inputs, a stack of ``size``.
    winner
        What it chooses at each breakpoint.
    pairs
        Breakpoints to compare with the one after them, int64, ascending.
    size
        Of the stack.
    """
    operator = _maximum(step)
    first, last = _both(winner, pairs)
    changed = (first != last).flatten(1).any(1)
    pairs = pairs[changed]
    if not len(pairs):
        return _gather([], [], pairs.device)
    first, last = first[changed], last[changed]
    left = [_stacked(value, pairs, size) for value in operands]
    right = [_stacked(value, pairs + 1, size) for value in operands]
    mask = first != last
    sign = operator.sign
    picked = [operator.pick(one, *side)[mask] for side in (left, right) for one in (first, last)]
    left_lead = (sign * (picked[0] - picked[1])).to(torch.float64)
    right_lead = (sign * (picked[3] - picked[2])).to(torch.float64)
    # Leads within rounding are ties: else two equal candidates would take turns for ever. What never wins,
    # such as the huge negative number of a mask, says nothing about rounding.
    largest = max(map(_largest, picked))
    tie = 4 * torch.finfo(torch.float64 if operands[0] is None else operands[0].dtype).eps * largest
    meet = (left_lead > tie) & (right_lead > tie)
    pair = pairs[mask.nonzero(as_tuple=True)[0]]
    return _gather([pair[meet]], [left_lead[meet] / (left_lead[meet] + right_lead[meet])], pairs.device)


def _maximum(step: Step) -> Maximum:
    if not isinstance(step.operator, Maximum):
        raise TypeError(f"{step.operator} is not a maximum")
    return step.operator


def _both(value: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """A value's rows at some breakpoints and at those after them."""
    if len(pairs) == len(value) - 1:
        return value[:-1], value[1:]
    return value.index_select(0, pairs), value.index_select(0, pairs + 1)


def _largest(value: Tensor | None) -> float:
    if value is None or not value.is_floating_point() or not value.numel():
        return 0.0
    low, high = torch.aminmax(value)
    return max(-float(low), float(high))


def _stacked(value: Tensor | None, rows: Tensor, size: int) -> Tensor | None:
    """Some rows of a live value; a constant (one row) as it is."""
    return value if value is None or value.shape[0] != size or size == 1 else value.index_select(0, rows)


def _gather(pairs: list[Tensor], weights: list[Tensor], device: torch.device) -> Crossings:
    if not pairs:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return Crossings(nothing, nothing.to(torch.float64))
    return Crossings.of(torch.cat(pairs), torch.cat(weights))


class Follower:
    """Follow a program along a line, in stacks of bounded size.

    Parameters
    ----------
    program
        What to follow; every step is constant, affine, piecewise linear or a maximum.
    limit
        Breakpoints held at once. A stack that would outgrow it is cut, and its parts are followed one
        after the other from where they are, so that memory depends on this number and not on the line.
    """

    def __init__(self, program: Program, limit: int = 256) -> None:
        self.program = program
        self.limit = max(int(limit), 2)
        self.name, self.shape = next(iter(program.inputs.items()))

    def follow(self, line: Line, windows: Sequence[tuple[float, float]]) -> Iterator[Trace]:
        """Yield the outputs at the breakpoints of each window, in parts from left to right.

        Parameters
        ----------
        line
            The line to follow.
        windows
            Pairs ``(lower, upper)``, finite, ascending and apart.
        """
        dtype = self.program.dtype
        ends = torch.tensor([end for window in windows for end in window], dtype=torch.float64)
        z = ends.to(line.a.device)
        joined = torch.arange(len(z) - 1, device=z.device) % 2 == 0
        yield from self._run(Trace(z, joined, {self.name: line.at(z, dtype)}), 0)

    def _run(self, trace: Trace, start: int) -> Iterator[Trace]:
        for index in range(start, len(self.program.steps)):
            step = self.program.steps[index]
            winners: _Winners | None = None
            while step.kind in (Kind.PIECEWISE_LINEAR, Kind.MAXIMUM):
                operands = self._operands(step, trace)
                if step.kind is Kind.MAXIMUM:
                    winners = winners or _Winners.of(step, operands, trace.joined)
                    found = winner_crossings(step, operands, winners.chosen, winners.open, len(trace.z))
                else:
                    found = knot_crossings(step, operands, trace.joined)
                if not len(found):
                    break
                parts = self._parts(trace, found)
                if len(parts) > 1:
                    for part in parts:
                        yield from self._run(part, index)
                    return
                trace = trace.insert(found.pair, found.weight)
                if winners is None:
                    break
                winners = winners.insert(step, self._operands(step, trace), found.pair, len(trace.z))
            trace = self._apply(step, trace, None if winners is None else winners.chosen)
        yield replace(trace, values={name: trace.values[name] for name in self.program.outputs})

    def _operands(self, step: Step, trace: Trace) -> list[Tensor | None]:
        constants = self.program.constants
        return [
            None if not name else trace.values[name] if name in trace.values else constants[name]
            for name in step.inputs
        ]

    def _apply(self, step: Step, trace: Trace, winner: Tensor | None) -> Trace:
        operands = self._operands(step, trace)
        if winner is not None and isinstance(step.operator, Maximum):
            results: tuple[Tensor, ...] = (step.operator.pick(winner, *operands),)
        else:
            results = step.operator.forward(*operands)
        values = dict(trace.values)
        values.update((name, value) for name, value in zip(step.outputs, results, strict=False) if name)
        for name in step.release:
            values.pop(name, None)
        return replace(trace, values=values)

    def _parts(self, trace: Trace, found: Crossings) -> list[Trace]:
        """Cut a trace into about equal parts that do not outgrow the limit once ``found`` is inserted."""
        count = len(trace.z)
        total = count + len(found)
        if total <= self.limit or count == 2:
            return [trace]
        inserted = torch.bincount(found.pair, minlength=count - 1)
        room = torch.cumsum(inserted + 1, 0).tolist()
        size = math.ceil(total / math.ceil(total / self.limit))
        parts, begin, used = [], 0, 0
        for pair in range(count - 1):
            if pair > begin and room[pair] - used + 1 > size:
                parts.append(trace.part(begin, pair))
                begin, used = pair, room[pair - 1]
        parts.append(trace.part(begin, count - 1))
        return [part for part in parts if bool(part.joined.any())]


@dataclass(frozen=True)
class _Winners:
    """What a maximum chooses at each breakpoint, and which neighbours are still to be compared.

    Attributes
    ----------
    chosen
        Indices of shape (K, *value).
    open
        Breakpoints that are to be compared with the one after them.
    """

    chosen: Tensor
    open: Tensor

    @staticmethod
    def of(step: Step, operands: Sequence[Tensor | None], joined: Tensor) -> _Winners:
        """Choose at all breakpoints."""
        return _Winners(_maximum(step).argmax(*operands), joined.nonzero(as_tuple=True)[0])

    def insert(self, step: Step, operands: Sequence[Tensor | None], pair: Tensor, size: int) -> _Winners:
        """Choose at breakpoints that were inserted after ``pair``; only their neighbourhood is open now."""
        new = pair + 1 + torch.arange(len(pair), device=pair.device)
        kept = torch.ones(size, dtype=torch.bool, device=pair.device)
        kept[new] = False
        chosen = self.chosen.new_empty((size, *self.chosen.shape[1:]))
        chosen[kept] = self.chosen
        rows = [_stacked(value, new, size) for value in operands]
        chosen[new] = _maximum(step).argmax(*rows)
        return _Winners(chosen, torch.unique(torch.cat([new - 1, new])))
