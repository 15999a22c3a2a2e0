"""Smooth elementwise functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selkit.graph.ops.base import Smooth, register


@register("Exp", since=(6, 13))
@dataclass(frozen=True)
class Exp(Smooth):
    """``exp(x)``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.exp(),)

    def derivative(self, x: Tensor) -> Tensor:
        return x.exp()

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        return upper.exp()


@register("Sigmoid", since=(6, 13))
@dataclass(frozen=True)
class Sigmoid(Smooth):
    """``1 / (1 + exp(-x))``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.sigmoid(),)

    def derivative(self, x: Tensor) -> Tensor:
        value = x.sigmoid()
        return value * (1 - value)


@register("Reciprocal", since=(6, 13))
@dataclass(frozen=True)
class Reciprocal(Smooth):
    """``1 / x``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.reciprocal(),)

    def derivative(self, x: Tensor) -> Tensor:
        return -x.reciprocal().square()

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        nearest = torch.minimum(lower.abs(), upper.abs())
        crosses = (lower <= 0) & (upper >= 0)
        return torch.where(crosses, torch.inf, 2 / nearest**3)
