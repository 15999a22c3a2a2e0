"""Relatives of Relu that are bent on one side: exponentials and a parabola."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.base import Smooth, UnsupportedAttribute, register


class _Exponential(Smooth):
    """``positive x`` where ``x > 0``, ``height (exp(x / width) - 1)`` elsewhere."""

    def _parts(self) -> tuple[float, float, float]:
        """``positive``, ``height`` and ``width``."""
        raise TypeError(f"{type(self).__name__} does not define _parts")

    @property
    def monotone(self) -> bool:
        return all(part > 0 for part in self._parts())

    @property
    def kinks(self) -> tuple[float, ...]:
        positive, height, width = self._parts()
        return () if positive == height / width else (0.0,)

    @property
    def most_bent(self) -> tuple[float, ...]:
        return () if self.kinks else (0.0,)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        positive, height, width = self._parts()
        return (torch.where(x > 0, positive * x, height * torch.expm1(x.clamp(max=0) / width)),)

    def derivative(self, x: Tensor) -> Tensor:
        positive, height, width = self._parts()
        return torch.where(x > 0, positive, height / width * (x.clamp(max=0) / width).exp())

    def second(self, x: Tensor) -> Tensor:
        _, height, width = self._parts()
        return torch.where(x > 0, 0.0, height / width**2 * (x.clamp(max=0) / width).exp())

    def slope(self, lower: Tensor, upper: Tensor) -> Tensor:
        positive = abs(self._parts()[0])
        bound = super().slope(lower, upper)
        # the steeper side counts where the interval only touches the kink
        return torch.where(upper >= 0, bound.clamp(min=positive), bound)

    def inverse(self, y: Tensor) -> Tensor:
        if not self.monotone:
            return super().inverse(y)
        positive, height, width = self._parts()
        below = width * torch.log1p((y / height).clamp(-1, 0))
        return torch.where(y > 0, y / positive, below)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """A Relu above 0, an exponential below."""
        positive, height, width = self._parts()
        x, r = pull.x[0], pull.r[0]
        above = pull.relu(x, r)
        u, ur = x.minimum(0.0) / width, r.minimum(0.0) / width
        below = pull.slopes_of_exp(u, ur, u.exp(), ur.exp())
        return (pull.grad * (above * positive + below * (height / width) * (1.0 - above)),)


@register("Elu", since=(6, 22))
@dataclass(frozen=True)
class Elu(_Exponential):
    """``x`` where ``x > 0``, ``alpha (exp(x) - 1)`` elsewhere."""

    alpha: float = 1.0

    def _parts(self) -> tuple[float, float, float]:
        return 1.0, self.alpha, 1.0


@register("Selu", since=(6, 22))
@dataclass(frozen=True)
class Selu(_Exponential):
    """``gamma x`` where ``x > 0``, ``gamma alpha (exp(x) - 1)`` elsewhere."""

    alpha: float = 1.6732631921768188
    gamma: float = 1.0507010221481323

    def _parts(self) -> tuple[float, float, float]:
        return self.gamma, self.gamma * self.alpha, 1.0


@register("Celu", since=(12, 28))
@dataclass(frozen=True)
class Celu(_Exponential):
    """``x`` where ``x > 0``, ``alpha (exp(x / alpha) - 1)`` elsewhere."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise UnsupportedAttribute(f"alpha={self.alpha} is not positive")

    def _parts(self) -> tuple[float, float, float]:
        return 1.0, self.alpha, self.alpha


@register("HardSwish", since=(14, 22))
@dataclass(frozen=True)
class HardSwish(Smooth):
    """``x max(0, min(1, x / 6 + 1 / 2))``: a parabola between two lines."""

    @property
    def kinks(self) -> tuple[float, ...]:
        return (-3.0, 3.0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x * (x / 6 + 0.5).clamp(0, 1),)

    def derivative(self, x: Tensor) -> Tensor:
        # at a kink the steeper side
        return torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, x / 3 + 0.5))

    def second(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 1 / 3).masked_fill(x.abs() > 3, 0)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The product of ``x`` and a function of two bends: exact, without a guard."""
        x, r = pull.x[0], pull.r[0]
        gate = (x / 6 + 0.5).clamp(0.0, 1.0) + (r / 6 + 0.5).clamp(0.0, 1.0)
        slope = pull.relu(x + 3.0, r + 3.0) - pull.relu(x - 3.0, r - 3.0)
        return (pull.grad * (gate * 0.5 + (x + r) * slope * (1 / 12)),)
