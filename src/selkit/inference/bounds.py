"""Bound a program on whole windows of a line from its values at their ends.

Within a window every value stays near its chord, the straight line between its values at the two ends. What
is carried along is how far it can be away: ``chord(z) + offset - radius <= value(z) <= chord(z) + offset +
radius``. An affine operator ``W`` maps the offset by ``W`` and the radius by ``|W|``; a knot and a change of
the winner of a maximum add the height of the bump that they cause. A smooth function adds that of its
curvature, ``height^2 max|f''| / 8``, and a product of two values that of the product of their differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selkit.graph.ops.base import Kind, Maximum, PiecewiseLinear, Product, Smooth
from selkit.graph.program import Program, Step
from selkit.inference.line import Line


@dataclass(frozen=True)
class Band:
    """Values of windows: their ends, and how far they can be from the chord between them.

    Attributes
    ----------
    left, right
        Values at the windows' ends, shape (B, *value).
    offset, radius
        The value is within ``radius`` of ``chord + offset``; shape (B, *value).
    """

    left: Tensor
    right: Tensor
    offset: Tensor
    radius: Tensor

    @property
    def lower(self) -> Tensor:
        """Lower bound of value minus chord."""
        return self.offset - self.radius

    @property
    def upper(self) -> Tensor:
        """Upper bound of value minus chord."""
        return self.offset + self.radius

    def to(self, dtype: torch.dtype) -> Band:
        """Return the band in another precision."""
        return Band(self.left.to(dtype), self.right.to(dtype), self.offset.to(dtype), self.radius.to(dtype))

    def or_nothing(self) -> Band:
        """Return the band with an infinite radius wherever a bound has overflown."""
        known = torch.isfinite(self.offset) & torch.isfinite(self.radius)
        if bool(known.all()):
            return self
        offset = torch.where(known, self.offset, torch.zeros_like(self.offset))
        return Band(self.left, self.right, offset, self.radius.masked_fill(~known, torch.inf))

    @staticmethod
    def between(left: Tensor, right: Tensor, lower: Tensor, upper: Tensor) -> Band:
        """Build a band from bounds of value minus chord."""
        return Band(left, right, (lower + upper) / 2, (upper - lower) / 2)


class Bounder:
    """Carry bands through a program.

    Parameters
    ----------
    program
        Every step is affine, piecewise linear, a maximum, smooth or a product.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.name = next(iter(program.inputs))
        # Only smooth functions and products can make a bound infinite.
        self.finite = all(step.kind not in (Kind.SMOOTH, Kind.PRODUCT) for step in program.steps)

    def bound(self, line: Line, windows: Tensor) -> dict[str, Band]:
        """Return the bands of the program's outputs.

        Parameters
        ----------
        line
            The line.
        windows
            Ends of the windows, float64 of shape (B, 2).
        """
        dtype = self.program.dtype
        left, right = line.at(windows[:, 0], dtype), line.at(windows[:, 1], dtype)
        nothing = torch.zeros_like(left)
        return self.carry({self.name: Band(left, right, nothing, nothing)})

    def carry(self, bands: Mapping[str, Band]) -> dict[str, Band]:
        """Return the bands of the program's outputs, from those of its inputs."""
        values = dict(bands)
        for step in self.program.steps:
            operands = [self._operand(name, values) for name in step.inputs]
            results = _through(step, operands)
            if not self.finite:
                results = [band.or_nothing() for band in results]
            values.update((name, band) for name, band in zip(step.outputs, results, strict=False) if name)
            for name in step.release:
                values.pop(name, None)
        return {name: values[name] for name in self.program.outputs}

    def _operand(self, name: str, values: dict[str, Band]) -> Band | Tensor | None:
        return None if not name else values[name] if name in values else self.program.constants[name]


def _through(step: Step, operands: Sequence[Band | Tensor | None]) -> list[Band]:
    """Carry bands through one step."""
    if step.kind is Kind.AFFINE:
        return _affine(step, operands)
    if step.kind is Kind.PIECEWISE_LINEAR:
        return [_piecewise_linear(step, operands)]
    if step.kind is Kind.MAXIMUM:
        return [_maximum(step, operands)]
    if step.kind is Kind.SMOOTH:
        return [_smooth(step, operands)]
    if step.kind is Kind.PRODUCT:
        return [_product(step, operands)]
    raise TypeError(f"{step.operator} is {step.kind.value}, which has no bounds")


def _part(operands: Sequence[Band | Tensor | None], name: str) -> list[Tensor | None]:
    return [getattr(operand, name) if isinstance(operand, Band) else operand for operand in operands]


def _affine(step: Step, operands: Sequence[Band | Tensor | None]) -> list[Band]:
    spread = getattr(step.operator, "spread", None)
    if spread is None:
        raise TypeError(f"{step.operator} has no spread")
    count = next(len(operand.left) for operand in operands if isinstance(operand, Band))
    # One call for the two ends and for a third point whose distance from the first is the offset.
    stacked = [
        torch.cat([operand.left, operand.right, operand.left + operand.offset])
        if isinstance(operand, Band)
        else operand
        for operand in operands
    ]
    points = step.operator.forward(*stacked)
    radii = spread(step.live, *_part(operands, "radius"))
    bands = []
    for point, radius in zip(points, radii, strict=True):
        left, right, moved = point[:count], point[count : 2 * count], point[2 * count :]
        bands.append(Band(left, right, moved - left, radius))
    return bands


def _piecewise_linear(step: Step, operands: Sequence[Band | Tensor | None]) -> Band:
    """Exact range of value minus chord for an elementwise piecewise-linear function.

    For an input within ``[lower, upper]`` of its chord, the extremes lie where the shifted chord meets a
    knot or at the window's ends, at an end of the input's range or at a knot inside it.
    """
    operator, band = step.operator, operands[0]
    if not isinstance(operator, PiecewiseLinear) or not isinstance(band, Band):
        raise TypeError(f"{operator} is not piecewise linear")
    rest = [operand if isinstance(operand, Tensor) else None for operand in operands[1:]]

    def function(x: Tensor) -> Tensor:
        return operator.forward(x, *rest)[0]

    start, end = function(band.left), function(band.right)
    lower, upper = band.lower, band.upper
    length = band.right - band.left
    knots = operator.knots(band.left, *rest)
    places = [torch.zeros_like(length), torch.ones_like(length)]
    for knot in knots:
        for shift in (lower, upper):
            place = (knot - shift - band.left) / length
            places.append(torch.nan_to_num(place, nan=0.0).clamp_(0.0, 1.0))
    least = torch.full_like(start, torch.inf)
    most = torch.full_like(start, -torch.inf)
    for place in places:
        chord = band.left + length * place
        chord_out = start + (end - start) * place
        low, high = chord + lower, chord + upper
        for point in (low, high, *(torch.clamp(torch.as_tensor(knot).to(low), low, high) for knot in knots)):
            value = function(point) - chord_out
            least, most = torch.minimum(least, value), torch.maximum(most, value)
    return Band.between(start, end, least, most)


def _maximum(step: Step, operands: Sequence[Band | Tensor | None]) -> Band:
    """Range of value minus chord of a maximum: below the chord by at most the bump of the two winners."""
    operator = step.operator
    if not isinstance(operator, Maximum):
        raise TypeError(f"{operator} is not a maximum")
    left, right = _part(operands, "left"), _part(operands, "right")
    start, end = operator.forward(*left)[0], operator.forward(*right)[0]
    first, last = operator.argmax(*left), operator.argmax(*right)
    sign = operator.sign
    behind_right = sign * (end - operator.pick(first, *right))
    behind_left = sign * (start - operator.pick(last, *left))
    total = behind_right + behind_left
    bump = torch.where(total > 0, behind_right * behind_left / total, torch.zeros_like(total))
    lower, upper = _deviations(operands, "lower"), _deviations(operands, "upper")
    if sign > 0:
        least = torch.minimum(operator.pick(first, *lower), operator.pick(last, *lower)) - bump
        return Band.between(start, end, least, operator.forward(*upper)[0])
    most = torch.maximum(operator.pick(first, *upper), operator.pick(last, *upper)) + bump
    return Band.between(start, end, operator.forward(*lower)[0], most)


def _smooth(step: Step, operands: Sequence[Band | Tensor | None]) -> Band:
    """Range of value minus chord of a smooth function: a Taylor bound of second order along the chord."""
    operator, band = step.operator, operands[0]
    if not isinstance(operator, Smooth) or not isinstance(band, Band):
        raise TypeError(f"{operator} is not smooth")
    start, end = operator.forward(band.left)[0], operator.forward(band.right)[0]
    lower, upper = band.lower, band.upper
    low, high = torch.minimum(band.left, band.right), torch.maximum(band.left, band.right)

    def bump(shift: Tensor) -> Tensor:
        """How far ``f(chord + shift)`` is from the line between its ends."""
        bent = operator.curvature(low + shift, high + shift) * (high - low) ** 2 / 8
        steep = operator.slope(low + shift, high + shift) * (high - low)
        return torch.minimum(torch.nan_to_num(bent, nan=torch.inf), steep)

    if operator.monotone:
        rise = [
            operator.forward(side + upper)[0] - operator.forward(side)[0] for side in (band.left, band.right)
        ]
        fall = [
            operator.forward(side + lower)[0] - operator.forward(side)[0] for side in (band.left, band.right)
        ]
        return Band.between(
            start, end, torch.minimum(*fall) - bump(lower), torch.maximum(*rise) + bump(upper)
        )
    away = torch.maximum(lower.abs(), upper.abs())
    radius = operator.slope(low + lower, high + upper) * away + bump(torch.zeros_like(low))
    return Band(start, end, torch.zeros_like(start), radius)


def _product(step: Step, operands: Sequence[Band | Tensor | None]) -> Band:
    """Range of value minus chord of a product of two live values."""
    operator = step.operator
    live = [operand for operand in operands if isinstance(operand, Band)]
    if not isinstance(operator, Product) or len(operands) != 2 or len(live) != 2:
        raise TypeError(f"{operator} is not a product of two values")
    a, b = live

    def times(x: Tensor, y: Tensor) -> Tensor:
        return operator.forward(x, y)[0]

    start, end = times(a.left, b.left), times(a.right, b.right)
    mean_a, mean_b = (a.left + a.right) / 2, (b.left + b.right) / 2
    step_a, step_b = a.right - a.left, b.right - b.left
    bump = times(step_a, step_b) / 8
    offset = times(mean_a, b.offset) + times(a.offset, mean_b) - bump
    half_a, half_b = step_a.abs() / 2, step_b.abs() / 2
    away_a, away_b = a.offset.abs() + a.radius, b.offset.abs() + b.radius
    radius = (
        times(mean_a.abs() + half_a, b.radius)
        + times(a.radius, mean_b.abs() + half_b)
        + times(half_a, b.offset.abs())
        + times(a.offset.abs(), half_b)
        + times(away_a, away_b)
        + times(half_a, half_b) / 2
    )
    return Band(start, end, offset, radius.abs())


def _deviations(operands: Sequence[Band | Tensor | None], name: str) -> list[Tensor | None]:
    """Bounds of value minus chord; constants do not deviate."""
    return [
        getattr(operand, name)
        if isinstance(operand, Band)
        else None
        if operand is None
        else torch.zeros_like(operand)
        if operand.is_floating_point()
        else operand
        for operand in operands
    ]
