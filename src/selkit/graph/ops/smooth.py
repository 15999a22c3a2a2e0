"""Smooth elementwise functions on an unbounded range: exponentials, roots, powers, waves.

Each gives its first and second derivative and their extremes, from which :class:`Smooth` derives bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.base import Smooth, UnsupportedAttribute, register


@register("Exp", since=(6, 13))
@dataclass(frozen=True)
class Exp(Smooth):
    """``exp(x)``."""

    @property
    def monotone(self) -> bool:
        return True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.exp(),)

    def derivative(self, x: Tensor) -> Tensor:
        return x.exp()

    def second(self, x: Tensor) -> Tensor:
        return x.exp()

    def inverse(self, y: Tensor) -> Tensor:
        return y.clamp(min=0).log()


class _FromZero(Smooth):
    """Defined for positive numbers; bent without bound towards 0."""

    def slope(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.where(lower <= 0, torch.inf, super().slope(lower, upper))

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.where(lower <= 0, torch.inf, super().curvature(lower, upper))


@register("Log", since=(6, 13))
@dataclass(frozen=True)
class Log(_FromZero):
    """``log(x)``."""

    @property
    def monotone(self) -> bool:
        return True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.log(),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The inverse of the exponential's."""
        slope = pull.slopes_of_exp(pull.y[0], pull.yr[0], pull.x[0], pull.r[0])
        return (pull.grad / slope,)

    def derivative(self, x: Tensor) -> Tensor:
        return x.reciprocal()

    def second(self, x: Tensor) -> Tensor:
        return -x.square().reciprocal()

    def inverse(self, y: Tensor) -> Tensor:
        return y.exp()


@register("Sqrt", since=(6, 13))
@dataclass(frozen=True)
class Sqrt(_FromZero):
    """``sqrt(x)``."""

    @property
    def monotone(self) -> bool:
        return True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.sqrt(),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """``1 / (sqrt(x) + sqrt(r))``."""
        return (pull.grad / (pull.y[0] + pull.yr[0]).maximum(pull.least),)

    def derivative(self, x: Tensor) -> Tensor:
        return x.rsqrt() / 2

    def second(self, x: Tensor) -> Tensor:
        return -(x.rsqrt() ** 3) / 4

    def inverse(self, y: Tensor) -> Tensor:
        return torch.where(y < 0, -torch.inf, y.square())


@register("Reciprocal", since=(6, 13))
@dataclass(frozen=True)
class Reciprocal(Smooth):
    """``1 / x``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.reciprocal(),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """``-1 / (x r)``."""
        return (-(pull.grad * pull.y[0] * pull.yr[0]),)

    def derivative(self, x: Tensor) -> Tensor:
        return -x.square().reciprocal()

    def second(self, x: Tensor) -> Tensor:
        return 2 / x**3

    def slope(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.where((lower <= 0) & (upper >= 0), torch.inf, super().slope(lower, upper))

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.where((lower <= 0) & (upper >= 0), torch.inf, super().curvature(lower, upper))


@dataclass(frozen=True)
class Power(Smooth):
    """``x ** exponent`` for one fixed exponent; what Pow becomes when it is decomposed."""

    exponent: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.exponent):
            raise UnsupportedAttribute(f"the exponent {self.exponent} is not finite")

    @property
    def monotone(self) -> bool:
        # an even power falls first; any other is defined for positive numbers alone
        return self.exponent > 0 and self.exponent % 2 != 0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x**self.exponent,)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        return (inputs[0] ** self.exponent,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """A sum of products for whole exponents, else by logarithm and exponential."""
        x, r, y, yr = pull.x[0], pull.r[0], pull.y[0], pull.yr[0]
        whole = abs(int(self.exponent)) if self.exponent.is_integer() else 0
        if self.exponent == 0:
            return (pull.grad * 0.0,)
        if self.exponent == 0.5:
            return (pull.grad / (y + yr).maximum(pull.least),)
        if not 0 < whole <= LARGEST_SUM:
            u, ur = x.log(), r.log()
            up = pull.slopes_of_exp(u * self.exponent, ur * self.exponent, y, yr) * self.exponent
            return (pull.grad * up / pull.slopes_of_exp(u, ur, x, r),)
        slope, power = None, r
        for count in range(2, whole + 1):
            # x^n - r^n = x (x^(n-1) - r^(n-1)) + (x - r) r^(n-1)
            slope = x + r if slope is None else x * slope + power
            power = power * r if count < whole or count == 2 else power
        slope = slope if slope is not None else 1.0
        return (pull.grad * (slope if self.exponent > 0 else -(y * yr * slope)),)

    def derivative(self, x: Tensor) -> Tensor:
        return self._scaled(x, self.exponent, self.exponent - 1)

    def second(self, x: Tensor) -> Tensor:
        return self._scaled(x, self.exponent * (self.exponent - 1), self.exponent - 2)

    @staticmethod
    def _scaled(x: Tensor, factor: float, exponent: float) -> Tensor:
        # a factor of 0 stays 0 where the power is infinite
        return torch.zeros_like(x) if factor == 0 else factor * x**exponent

    def slope(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self._bounded(super().slope(lower, upper), 1, lower, upper)

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self._bounded(super().curvature(lower, upper), 2, lower, upper)

    def _bounded(self, bound: Tensor, order: int, lower: Tensor, upper: Tensor) -> Tensor:
        """Infinite where the derivative has a pole in reach, or the power of a negative number is none."""
        if self.exponent.is_integer():
            pole = self.exponent < 0
            return torch.where((lower <= 0) & (upper >= 0), torch.inf, bound) if pole else bound
        bad = lower < 0 if self.exponent >= order else lower <= 0
        return torch.where(bad, torch.inf, bound)

    def inverse(self, y: Tensor) -> Tensor:
        if not self.monotone:
            return super().inverse(y)
        root = y.abs() ** (1 / self.exponent)
        if self.exponent.is_integer():
            return y.sign() * root
        return torch.where(y < 0, -torch.inf, root)


LARGEST_SUM = 16
"""Whole exponent up to which the attribution rule is a sum of products."""


class _Wave(Smooth):
    """Bounded by 1 with all its derivatives."""

    def slope(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower)

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower)


@register("Sin", since=(7, 22))
@dataclass(frozen=True)
class Sin(_Wave):
    """``sin(x)``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.sin(),)

    def derivative(self, x: Tensor) -> Tensor:
        return x.cos()

    def second(self, x: Tensor) -> Tensor:
        return -x.sin()


@register("Cos", since=(7, 22))
@dataclass(frozen=True)
class Cos(_Wave):
    """``cos(x)``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.cos(),)

    def derivative(self, x: Tensor) -> Tensor:
        return -x.sin()

    def second(self, x: Tensor) -> Tensor:
        return -x.cos()
