"""Smooth elementwise functions on an unbounded range: exponentials, roots, powers, waves.

Each gives its first and second derivative and their extremes, from which :class:`Smooth` derives bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
