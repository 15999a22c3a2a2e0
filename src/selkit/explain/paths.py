"""Integrals of gradients along a straight path: a finite sum where the network is piecewise linear.

Between two breakpoints of the path the gradient is constant, so its integral is a sum over the pieces. A part
of the network that is smooth, or that has knots behind something smooth, is integrated by a rule of Gauss and
Kronrod on each piece, and pieces are halved until the rule and a lower one agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selkit.errors import UnsupportedModelError, UnsupportedNode
from selkit.graph.ops.base import Kind
from selkit.graph.program import Program

STRAIGHT = (Kind.CONSTANT, Kind.AFFINE, Kind.PIECEWISE_LINEAR, Kind.MAXIMUM)
BENT = (Kind.PIECEWISE_LINEAR, Kind.MAXIMUM)
MEMORY = 2**27
"""Bytes of values that are held at once, about."""
MOST_POINTS = 1024
START = 64
"""Pieces to begin with where the network's own are too many."""
SMALLEST = 2.0**-40
"""Width of a piece that is not halved any more."""

NODES = (
    *(-0.9604912687080203, -0.7745966692414834, -0.4342437493468026, 0.0),
    *(0.4342437493468026, 0.7745966692414834, 0.9604912687080203),
)
KRONROD = (
    *(0.1046562260264673, 0.2684880898683334, 0.4013974147759622, 0.4509165386584741),
    *(0.4013974147759622, 0.2684880898683334, 0.1046562260264673),
)
GAUSS = (0.0, 5 / 9, 0.0, 8 / 9, 0.0, 5 / 9, 0.0)
"""Nodes on ``[-1, 1]``, and weights of Kronrod's rule of 7 points and of Gauss' rule of 3 among them."""


@dataclass(frozen=True, eq=False)
class Integral:
    """Integrated gradients of some outputs along one path.

    Attributes
    ----------
    attributions
        Integral times difference, of shape ``(T, *input)``.
    error
        How much any of them may be off, estimated; ``(T,)``. 0 for a finite sum.
    pieces
        How many pieces the path was cut into.
    """

    attributions: Tensor
    error: Tensor
    pieces: int


class Paths:
    """Integrate gradients of a program's first output along straight paths.

    Parameters
    ----------
    program
        With one input, in double precision; its first output has shape ``(1, outputs)``.
    tolerance
        Error to stop at, relative to the larger of the outputs at the path's two ends.
    budget
        Most gradients that are computed for one path.

    Raises
    ------
    UnsupportedModelError
        If a step jumps: its gradient says nothing about the jump.
    """

    def __init__(self, program: Program, tolerance: float, budget: int) -> None:
        jumps = [
            UnsupportedNode(
                step.name,
                type(step.operator).__name__,
                "",
                0,
                "it jumps, and no gradient says by how much; method='permutation' needs none",
            )
            for step in program.steps
            if step.kind is Kind.STEP
        ]
        if jumps:
            raise UnsupportedModelError(jumps, "integrate the gradients of this model")
        self.program = program
        self.name, self.shape = next(iter(program.inputs.items()))
        self.output = program.outputs[0]
        self.tolerance = tolerance
        self.budget = budget
        self.body, self.exact = straight(program)
        size = 16 * sum(math.prod(shape) for shape in program.shapes.values())
        self.points = max(1, min(MOST_POINTS, MEMORY // max(size, 1)))

    def outputs(self, rows: Tensor) -> Tensor:
        """The outputs at points of shape ``(N, *input)`` without a batch axis: ``(N, outputs)``."""
        with torch.no_grad():
            parts = [
                self.program.run({self.name: part.unsqueeze(1)})[self.output][:, 0]
                for part in torch.split(rows, self.points)
            ]
        return torch.cat(parts)

    def breakpoints(self, start: Tensor, difference: Tensor) -> Tensor | None:
        """Where the straight part of the network bends on the path, 0 and 1 included; None if too often."""
        from selkit.inference.line import Follower, Line  # the line's own room is above this one

        if self.body is None:
            return torch.tensor([0.0, 1.0], dtype=torch.float64)
        line = Line(start.unsqueeze(0), difference.unsqueeze(0))
        found: list[Tensor] = []
        count = 0
        with torch.no_grad():
            for trace in Follower(self.body, min(self.points, 256)).follow(line, [(0.0, 1.0)]):
                found.append(trace.z)
                count += len(trace.z)
                if count > self.budget:
                    return None
        breaks: Tensor = torch.unique(torch.cat(found))
        return breaks

    def integrate(self, start: Tensor, end: Tensor, targets: Sequence[int]) -> Integral:
        """Integrate from one point to another, both of shape ``input`` without its batch axis."""
        difference = end - start
        breaks = self.breakpoints(start, difference)
        if breaks is not None and self.exact:
            return self._sum(start, difference, breaks, targets)
        if breaks is None or 7 * len(breaks) > self.budget:
            breaks = torch.linspace(0, 1, START + 1, dtype=torch.float64)
        return self._adapt(start, difference, breaks, targets)

    def gradients(
        self, start: Tensor, difference: Tensor, at: Tensor, targets: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Gradients at points of the path: for each target's number ``(K, *input)``."""
        with torch.inference_mode(False), torch.enable_grad():
            places = at.reshape(-1, *(1,) * start.ndim)
            stack = (start.clone() + places * difference.clone()).unsqueeze(1).requires_grad_()
            values = self.program.run({self.name: stack})[self.output]
            for number, target in enumerate(targets):
                more = number + 1 < len(targets)
                total = values[:, 0, target].sum()
                (found,) = torch.autograd.grad(total, stack, retain_graph=more)
                yield number, found[:, 0]

    def _sum(self, start: Tensor, difference: Tensor, breaks: Tensor, targets: Sequence[int]) -> Integral:
        """Sum over pieces on which the gradient is constant."""
        total = torch.zeros((len(targets), *start.shape), dtype=torch.float64)
        middle, width = (breaks[1:] + breaks[:-1]) / 2, breaks.diff()
        for at, share in zip(torch.split(middle, self.points), torch.split(width, self.points), strict=True):
            for number, found in self.gradients(start, difference, at, targets):
                total[number] += torch.tensordot(share, found, dims=1)
        return Integral(total * difference, torch.zeros(len(targets), dtype=torch.float64), len(middle))

    def _adapt(self, start: Tensor, difference: Tensor, breaks: Tensor, targets: Sequence[int]) -> Integral:
        """Halve pieces until both rules agree, and the sum is the change of the output."""
        ends = self.outputs(torch.stack([start, start + difference]))[:, list(targets)].abs().amax(0)
        allowed = self.tolerance * ends.clamp(min=torch.finfo(torch.float64).tiny)
        total = torch.zeros((len(targets), *start.shape), dtype=torch.float64)
        error = torch.zeros(len(targets), dtype=torch.float64)
        left, width = breaks[:-1], breaks.diff()
        spent = pieces = 0
        size = max(1, self.points // len(NODES))
        while len(left):
            spent += len(NODES) * len(left)
            room = max(0, (self.budget - spent) // (2 * len(NODES)))
            again: list[tuple[Tensor, Tensor]] = []
            for first, wide in zip(torch.split(left, size), torch.split(width, size), strict=True):
                parts, off = self._rules(start, difference, first, wide, targets)
                redo = (off > allowed[:, None] * wide).any(0) & (wide > SMALLEST)
                redo &= redo.cumsum(0) <= room
                room -= int(redo.sum())
                total += parts[:, ~redo].sum(1)
                error += off[:, ~redo].sum(1)
                pieces += int((~redo).sum())
                again.append((first[redo], wide[redo] / 2))
            left = torch.cat([torch.stack([first, first + half], 1).reshape(-1) for first, half in again])
            width = torch.cat([half.repeat_interleave(2) for _, half in again])
        return Integral(total, error, pieces)

    def _rules(
        self, start: Tensor, difference: Tensor, left: Tensor, width: Tensor, targets: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Kronrod's rule on each piece, ``(T, pieces, *input)``, and how far Gauss' rule or its sum is."""
        nodes, weights, lower = (torch.tensor(v, dtype=torch.float64) for v in (NODES, KRONROD, GAUSS))
        at = left[:, None] + width[:, None] * (nodes + 1) / 2
        edges = torch.stack([left, left + width], 1).reshape(-1, *(1,) * start.ndim)
        change = self.outputs(start + edges * difference)[:, list(targets)].reshape(len(left), 2, -1)
        results, offs = [], []
        for number, found in self.gradients(start, difference, at.reshape(-1), targets):
            flat = found.reshape(len(left), len(NODES), -1) * difference.reshape(-1)
            flat = flat * (width / 2)[:, None, None]
            fine, coarse = (torch.einsum("k,pkd->pd", rule, flat) for rule in (weights, lower))
            missing = (fine.sum(1) - (change[:, 1, number] - change[:, 0, number])).abs()
            offs.append(torch.maximum((fine - coarse).abs().amax(1), missing))
            results.append(fine.reshape(len(left), *start.shape))
        return torch.stack(results), torch.stack(offs)


def straight(program: Program) -> tuple[Program | None, bool]:
    """The part of a program that is piecewise linear along a line, and whether that is all of it.

    ``None`` if that part never bends.
    """
    late: set[str] = set()
    read: list[str] = []
    made: set[str] = set()
    for step in program.steps:
        sources = [name for name, alive in zip(step.inputs, step.live, strict=True) if alive]
        if step.kind in STRAIGHT and late.isdisjoint(sources):
            made.update(filter(None, step.outputs))
            continue
        late.update(filter(None, step.outputs))
        read += [name for name in sources if name in made]
    output = program.outputs[0]
    ends = list(dict.fromkeys([*read, *([output] if output in made else [])]))
    exact = not late or output not in late
    if not ends:
        return None, exact
    body = program.prune(ends)
    return (body if any(step.kind in BENT for step in body.steps) else None), exact
