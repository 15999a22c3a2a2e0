"""Piecewise-linear elementwise functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops.base import Input, PiecewiseLinear, align, register


@register("Relu", since=(6, 13, 14))
@dataclass(frozen=True)
class Relu(PiecewiseLinear):
    """``max(x, 0)``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.relu(),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return (0.0,)


@register("LeakyRelu", since=(6, 16))
@dataclass(frozen=True)
class LeakyRelu(PiecewiseLinear):
    """``x`` where ``x >= 0``, ``alpha x`` elsewhere."""

    alpha: float = 0.009999999776482582

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.leaky_relu(x, self.alpha),)

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return (0.0,)


@register("PRelu", since=(6, 7, 9, 16))
@dataclass(frozen=True)
class PRelu(PiecewiseLinear):
    """``x`` where ``x >= 0``, ``slope x`` elsewhere, with a constant slope that broadcasts to ``x``."""

    def forward(self, x: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
        x, slope = align(x, slope)
        return (torch.where(x >= 0, x, slope * x),)

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
class Clip(PiecewiseLinear):
    """``min(max(x, min), max)``; the limits are attributes (opset 6) or constant inputs."""

    min: float | None = None
    max: float | None = None

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

    def knots(self, *inputs: Input) -> tuple[Tensor | float, ...]:
        return tuple(limit for limit in self._limits(inputs) if limit is not None)
