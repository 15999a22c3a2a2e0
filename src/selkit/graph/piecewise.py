"""Recognize conditions that together are one continuous piecewise-linear function.

``Where(x > 0, x, 0.1 x)`` jumps nowhere, although its parts do: followed back to the one value that they all
depend on, the parts are curves of a few straight pieces, and so is the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from selkit.graph.ops import activations, arithmetic, constants, logic, shape
from selkit.graph.ops.activations import Pieces
from selkit.graph.ops.base import Kind, Operator
from selkit.graph.program import Step

Line = tuple[float, float]
"""Slope and offset."""


@dataclass(frozen=True)
class Curve:
    """A function of one number: straight between ``breaks``, and possibly jumping there."""

    breaks: tuple[float, ...]
    lines: tuple[Line, ...]

    @classmethod
    def straight(cls, slope: float, offset: float) -> Curve:
        """A line."""
        return cls((), ((slope, offset),))

    @classmethod
    def of(cls, pieces: Pieces) -> Curve:
        """The curve that an operator draws."""
        lines = [(pieces.slopes[0], pieces.offset)]
        for knot, slope in zip(pieces.breaks, pieces.slopes[1:], strict=True):
            before, offset = lines[-1]
            lines.append((slope, offset + (before - slope) * knot))
        return cls(pieces.breaks, tuple(lines))

    def inner(self) -> list[float]:
        """One point inside each piece."""
        if not self.breaks:
            return [0.0]
        middle = [(a + b) / 2 for a, b in zip(self.breaks, self.breaks[1:], strict=False)]
        return [self.breaks[0] - 1, *middle, self.breaks[-1] + 1]

    def line(self, x: float) -> Line:
        """The line of the piece that ``x`` lies in."""
        return self.lines[sum(x > knot for knot in self.breaks)]

    def cut(self, breaks: Sequence[float]) -> Curve:
        """The same function with more breaks."""
        wider = tuple(sorted({*self.breaks, *breaks}))
        lines = [self.line(x) for x in Curve(wider, ((0.0, 0.0),)).inner()]
        return Curve(wider, tuple(lines))

    def simplified(self) -> Curve:
        """Without breaks at which nothing changes."""
        breaks, lines = [], [self.lines[0]]
        for knot, line in zip(self.breaks, self.lines[1:], strict=True):
            if line != lines[-1]:
                breaks.append(knot)
                lines.append(line)
        return Curve(tuple(breaks), tuple(lines))

    def continuous(self) -> bool:
        """Whether neighbouring pieces meet."""
        for knot, (a, b), (c, d) in zip(self.breaks, self.lines, self.lines[1:], strict=False):
            left, right = a * knot + b, c * knot + d
            if abs(left - right) > 1e-12 * (1 + abs(left) + abs(a * knot) + abs(c * knot)):
                return False
        return True


def _together(curves: Sequence[Curve], combine: Callable[[list[Line]], Line | None]) -> Curve | None:
    """Combine pieces that lie over the same numbers; ``None`` where that gives no line."""
    breaks = {knot for curve in curves for knot in curve.breaks}
    cut = [curve.cut(tuple(breaks)) for curve in curves]
    lines = [combine(list(pieces)) for pieces in zip(*(curve.lines for curve in cut), strict=True)]
    found = [line for line in lines if line is not None]
    return Curve(cut[0].breaks, tuple(found)).simplified() if len(found) == len(lines) else None


def _crossings(a: Curve, b: Curve) -> list[float]:
    """Where two curves cross."""
    breaks = tuple(sorted({*a.breaks, *b.breaks}))
    points = []
    for (m, c), (n, d) in zip(a.cut(breaks).lines, b.cut(breaks).lines, strict=True):
        if m != n:
            points.append((d - c) / (m - n))
    return points


def _compared(holds: Callable[[float, float], bool]) -> Callable[[Sequence[Curve]], Curve | None]:
    """1 where a comparison holds, 0 elsewhere."""

    def combine(curves: Sequence[Curve]) -> Curve | None:
        a, b = curves
        breaks = (*a.breaks, *b.breaks, *_crossings(a, b))
        left, right = a.cut(breaks), b.cut(breaks)
        lines = []
        for x, (m, c), (n, d) in zip(left.inner(), left.lines, right.lines, strict=True):
            lines.append((0.0, float(holds(m * x + c, n * x + d))))
        return Curve(left.breaks, tuple(lines)).simplified()

    return combine


_greater, _less = _compared(lambda a, b: a > b), _compared(lambda a, b: a < b)


def _select(curves: Sequence[Curve]) -> Curve | None:
    return _together(curves, lambda lines: lines[1] if lines[0][1] > 0.5 else lines[2])


def _extreme(better: Callable[[Sequence[Curve]], Curve | None], curves: Sequence[Curve]) -> Curve | None:
    result: Curve | None = curves[0]
    for curve in curves[1:]:
        wins = better((curve, result)) if result is not None else None
        result = None if wins is None or result is None else _select((wins, curve, result))
    return result


def _sum(lines: Sequence[Line], sign: float = 1) -> Line:
    (a, b), (c, d) = lines
    return a + sign * c, b + sign * d


def _product(lines: Sequence[Line]) -> Line | None:
    (a, b), (c, d) = lines
    return (a * d + b * c, b * d) if a == 0 or c == 0 else None


def _quotient(lines: Sequence[Line]) -> Line | None:
    (a, b), (c, d) = lines
    return (a / d, b / d) if c == 0 and d != 0 else None


def _truth(decide: Callable[..., bool]) -> Callable[[Sequence[Curve]], Curve | None]:
    return lambda curves: _together(
        curves, lambda lines: (0.0, float(decide(*(line[1] > 0.5 for line in lines))))
    )


def _composed(outer: Curve, inner: Curve) -> Curve:
    """``outer(inner(x))``."""
    reached = [x for knot in outer.breaks for x in _crossings(inner, Curve.straight(0, knot))]
    cut = inner.cut(reached)
    lines = []
    for x, (m, c) in zip(cut.inner(), cut.lines, strict=True):
        slope, offset = outer.line(m * x + c)
        lines.append((slope * m, slope * c + offset))
    return Curve(cut.breaks, tuple(lines)).simplified()


Combine = Callable[[Sequence[Curve]], Curve | None]
_ZERO, _ONE = Curve.straight(0, 0), Curve.straight(0, 1)
_COMBINE: dict[type[Operator], Combine] = {
    arithmetic.Add: lambda curves: _together(curves, _sum),
    arithmetic.Sub: lambda curves: _together(curves, functools.partial(_sum, sign=-1)),
    arithmetic.Mul: lambda curves: _together(curves, _product),
    arithmetic.Div: lambda curves: _together(curves, _quotient),
    arithmetic.Neg: lambda curves: _together(curves, lambda lines: (-lines[0][0], -lines[0][1])),
    arithmetic.Max: functools.partial(_extreme, _greater),
    arithmetic.Min: functools.partial(_extreme, _less),
    activations.Relu: lambda curves: _extreme(_greater, (*curves, _ZERO)),
    activations.Abs: lambda curves: _multiple(curves[0], -1.0),
    logic.Greater: _greater,
    logic.GreaterOrEqual: _compared(lambda a, b: a >= b),
    logic.Less: _less,
    logic.LessOrEqual: _compared(lambda a, b: a <= b),
    logic.Not: _truth(lambda a: not a),
    logic.And: _truth(lambda a, b: a and b),
    logic.Or: _truth(lambda a, b: a or b),
    logic.Xor: _truth(lambda a, b: a != b),
    logic.Sign: lambda curves: _select(
        (_greater((curves[0], _ZERO)) or _ZERO, _ONE, _negative_or_zero(curves[0]))
    ),
    shape.Where: _select,
    constants.Identity: lambda curves: curves[0],
}


def _multiple(curve: Curve, below: float) -> Curve | None:
    """The curve where it is positive, ``below`` times it elsewhere."""
    other = _together((curve,), lambda lines: (below * lines[0][0], below * lines[0][1]))
    positive = _greater((curve, _ZERO))
    return None if other is None or positive is None else _select((positive, curve, other))


def _negative_or_zero(curve: Curve) -> Curve:
    """-1 where a curve is negative, else 0."""
    negative = _less((curve, _ZERO)) or _ZERO
    return Curve(negative.breaks, tuple((0.0, -value) for _, value in negative.lines))


def _apply(operator: Operator, curves: Sequence[Curve]) -> Curve | None:
    """An operator applied to curves; ``None`` for one that does not make curves of straight pieces."""
    if isinstance(operator, activations.LeakyRelu):
        return _multiple(curves[0], operator.alpha)
    if isinstance(operator, Pieces):
        return _composed(Curve.of(operator), curves[0])
    if isinstance(operator, activations.Clip):
        limits = [
            None if limit is None else Curve.straight(0, limit) for limit in (operator.min, operator.max)
        ]
        limits[: len(curves) - 1] = curves[1:]
        result: Curve | None = curves[0]
        for limit, better in zip(limits, (_greater, _less), strict=True):
            result = _extreme(better, (result, limit)) if limit is not None and result is not None else result
        return result
    if isinstance(operator, constants.Cast):
        real = operator.kind((True,)) is Kind.AFFINE
        truth = all(line in ((0.0, 0.0), (0.0, 1.0)) for line in curves[0].lines)
        return curves[0] if real or truth else None
    combine = _COMBINE.get(type(operator))
    return combine(curves) if combine is not None else None


class Steps(Protocol):
    """What is known about a program while it is made shorter."""

    def maker(self, name: str) -> Step | None:
        """The step that makes a value."""

    def number(self, name: str) -> float | None:
        """A constant's value if it is one number."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """ONNX shape of a value."""


Traced = tuple[str, Curve]
"""The name of a value ("" for none), and a curve over it."""


def _trace(steps: Steps, name: str, known: dict[str, Traced], depth: int = 24) -> Traced:
    """A value as a curve over the one value that it depends on (itself, if there is nothing simpler)."""
    if name in known:
        return known[name]
    number = steps.number(name)
    result = ("", Curve.straight(0, number)) if number is not None else (name, Curve.straight(1, 0))
    step = steps.maker(name)
    if step is not None and depth and len(step.outputs) == 1 and "" not in step.inputs:
        traced = [_trace(steps, source, known, depth - 1) for source in step.inputs]
        roots = {root for root, _ in traced if root}
        curve = _apply(step.operator, [curve for _, curve in traced]) if len(roots) == 1 else None
        if curve is not None:
            result = roots.pop(), curve
    known[name] = result
    return result


def continuous(steps: Steps, step: Step) -> Step | None:
    """Rule: a choice or a product that is continuous and of straight pieces becomes one step."""
    choice = isinstance(step.operator, shape.Where) and step.live[0]
    product = isinstance(step.operator, arithmetic.Mul) and step.live == (True, True)
    if not (choice or product):
        return None
    known: dict[str, Traced] = {}
    traced = [_trace(steps, name, known) for name in step.inputs]
    roots = {root for root, _ in traced if root}
    if len(roots) != 1:
        return None
    root = roots.pop()
    curve = _apply(step.operator, [curve for _, curve in traced])
    if curve is None or steps.shape(root) != steps.shape(step.outputs[0]) or not curve.continuous():
        return None
    operator = Pieces(curve.breaks, tuple(line[0] for line in curve.lines), curve.lines[0][1])
    return Step(operator, (root,), step.outputs, (True,), operator.kind((True,)), (), step.name)
