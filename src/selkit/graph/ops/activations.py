"""Piecewise-linear elementwise functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops.base import (
    Composite,
    Decomposition,
    Input,
    Kind,
    PiecewiseLinear,
    UnsupportedAttribute,
    align,
    register,
)


def _unclamped(level: float, above: bool, low: float, high: float) -> tuple[float, bool] | None:
    """The level itself, if ``min(max(x, low), high)`` is on its side exactly where ``x`` is."""
    inside = low <= level < high if above else low < level <= high
    return (level, above) if inside else None


@register("Relu", since=(6, 13, 14))
@dataclass(frozen=True)
class Relu(PiecewiseLinear):
    """``max(x, 0)``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.relu(),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return (0.0,)

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """``relu(x) > t`` where ``x > t``, for ``t >= 0``."""
        return _unclamped(level, above, 0.0, math.inf)


@register("LeakyRelu", since=(6, 16))
@dataclass(frozen=True)
class LeakyRelu(PiecewiseLinear):
    """``x`` where ``x >= 0``, ``alpha x`` elsewhere."""

    alpha: float = 0.009999999776482582

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.leaky_relu(x, self.alpha),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return (0.0,)

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """Its inverse, where it increases."""
        if self.alpha <= 0:
            return None
        return (level if level >= 0 else level / self.alpha), above


@register("PRelu", since=(6, 7, 9, 16))
@dataclass(frozen=True)
class PRelu(PiecewiseLinear):
    """``x`` where ``x >= 0``, ``slope x`` elsewhere, with a constant slope that broadcasts to ``x``."""

    def forward(self, x: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
        x, slope = align(x, slope)
        return (torch.where(x >= 0, x, slope * x),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """A line of the given slope and one bend."""
        return tuple(pull.pieces((0.0,), (pull.constant(1), 1.0)))

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return (0.0,)


@register("Abs", since=(6, 13))
@dataclass(frozen=True)
class Abs(PiecewiseLinear):
    """``|x|``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.abs(),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return (0.0,)


@register("Clip", since=(6, 11, 12, 13))
@dataclass(frozen=True)
class Clip(PiecewiseLinear, Composite):
    """``min(max(x, min), max)``; the limits are attributes (opset 6) or constant inputs."""

    LIVE = None
    NOTE = "composite with live limits"

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UnsupportedAttribute(f"min={self.min} is above max={self.max}")

    def kind(self, live: Sequence[bool]) -> Kind:
        """``COMPOSITE`` of Max and Min if a limit is live."""
        return Kind.COMPOSITE if any(live[1:]) else super().kind(live)

    def decompose(self, build: Decomposition, x: str, *limits: str) -> tuple[str, ...]:
        """Max and Min."""
        from selkit.graph.ops.arithmetic import Max, Min

        for name, operator in zip(limits, (Max(), Min()), strict=False):
            if name:
                x = build(operator, x, name)
        return (x,)

    def _limits(self, inputs: Sequence[Input]) -> tuple[Tensor | float | None, Tensor | float | None]:
        rank = inputs[0].ndim if inputs[0] is not None else 0
        given: list[Tensor | float | None] = [self.min, self.max]
        for index, value in enumerate(inputs[1:]):
            if value is not None:
                given[index] = value.reshape(1, *(1,) * (rank - 1))
        return given[0], given[1]

    def forward(self, *inputs: Input) -> tuple[Tensor, ...]:
        x = inputs[0]
        if x is None:
            raise TypeError("Clip has no input")
        low, high = self._limits(inputs)
        if low is not None:
            x = x.clamp(min=low)
        # the upper limit comes last, so it wins where the two are crossed, as ONNX says
        return (x if high is None else x.clamp(max=high),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Limits become inputs."""
        given = [*inputs[1:], None, None][:2]
        limits = [
            tape.lift(fixed) if value is None and fixed is not None else value
            for value, fixed in zip(given, (self.min, self.max), strict=True)
        ]
        while limits and limits[-1] is None:
            limits.pop()
        return (tape.op("Clip", inputs[0], *limits, shape=shapes[0]),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        low, high = self._limits(inputs)
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            low = torch.minimum(low, high)  # crossed limits leave one value everywhere
        return tuple(limit for limit in (low, high) if limit is not None)

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """``clip(x) > t`` where ``x > t``, for ``min <= t < max``."""
        limits = [self.min, self.max]
        for place, value in enumerate(inputs[1:]):
            if value is not None:
                limits[place] = float(value)
        low, high = limits
        return _unclamped(level, above, -math.inf if low is None else low, math.inf if high is None else high)


@register("HardSigmoid", since=(6, 22))
@dataclass(frozen=True)
class HardSigmoid(PiecewiseLinear):
    """``max(0, min(1, alpha x + beta))``."""

    alpha: float = 0.20000000298023224
    beta: float = 0.5

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return ((x * self.alpha + self.beta).clamp(0, 1),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        if self.alpha == 0:
            return ()
        return tuple(sorted((-self.beta / self.alpha, (1 - self.beta) / self.alpha)))

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """That of the line between its knots."""
        inner = _unclamped(level, above, 0.0, 1.0)
        if inner is None or self.alpha == 0:
            return None
        return (level - self.beta) / self.alpha, above == (self.alpha > 0)


@register("ThresholdedRelu", since=(10, 22))
@dataclass(frozen=True)
class ThresholdedRelu(PiecewiseLinear):
    """``x`` where ``x > alpha``, else 0: it jumps unless ``alpha`` is 0."""

    NOTE = "refused along a line where it jumps"

    alpha: float = 1.0

    def kind(self, live: Sequence[bool]) -> Kind:
        """``STEP`` where it jumps."""
        return Kind.STEP if any(live) and self.alpha != 0 else super().kind(live)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.where(x > self.alpha, x, 0.0),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return (self.alpha,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Where it jumps, the slope of the chord."""
        return tuple(super().pull(pull) if self.alpha == 0 else pull.jump())


@register("Shrink", since=(9,))
@dataclass(frozen=True)
class Shrink(PiecewiseLinear):
    """0 between ``-lambd`` and ``lambd``, moved towards 0 by ``bias`` beyond: a jump unless equal."""

    NOTE = "refused along a line where it jumps"

    bias: float = 0.0
    lambd: float = 0.5

    def __post_init__(self) -> None:
        if self.lambd < 0:
            raise UnsupportedAttribute(f"lambd={self.lambd} is negative")

    def kind(self, live: Sequence[bool]) -> Kind:
        """``STEP`` where it jumps."""
        return Kind.STEP if any(live) and self.bias != self.lambd else super().kind(live)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outside = torch.where(x < -self.lambd, x + self.bias, torch.zeros_like(x))
        return (torch.where(x > self.lambd, x - self.bias, outside),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return (-self.lambd, self.lambd)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Where it jumps, the slope of the chord."""
        return tuple(super().pull(pull) if self.bias == self.lambd else pull.jump())


@dataclass(frozen=True)
class Pieces(PiecewiseLinear):
    """A continuous function of straight pieces: first ``slopes[0] x + offset``, a new slope at each break."""

    breaks: tuple[float, ...]
    slopes: tuple[float, ...]
    offset: float

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = x * self.slopes[0] if self.slopes[0] else torch.zeros_like(x)
        y = first + self.offset
        for knot, before, after in zip(self.breaks, self.slopes[:-1], self.slopes[1:], strict=True):
            y = y + (x - knot).relu() * (after - before)
        return (y,)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return self.breaks

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """A line, and one Relu for each break."""
        (x,) = inputs
        y = x * self.slopes[0] + self.offset
        for knot, before, after in zip(self.breaks, self.slopes[:-1], self.slopes[1:], strict=True):
            y = y + (x - knot).relu() * (after - before)
        return (y,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.pieces(self.breaks, self.slopes))
