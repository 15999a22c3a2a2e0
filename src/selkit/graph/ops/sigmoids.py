"""Smooth activations: sigmoids and smooth relatives of Relu.

Each gives its first and second derivative and their extremes, from which :class:`Smooth` derives bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops.base import Smooth, UnsupportedAttribute, register


def _sech2(x: Tensor) -> Tensor:
    """``1 / cosh(x) ** 2``, exact in the tails."""
    decay = (-2 * x.abs()).exp()
    return 4 * decay / (1 + decay) ** 2


def _normal_density(x: Tensor) -> Tensor:
    return (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


class _Increasing(Smooth):
    """Strictly increasing."""

    @property
    def monotone(self) -> bool:
        return True


@register("Sigmoid", since=(6, 13))
@dataclass(frozen=True)
class Sigmoid(_Increasing):
    """``1 / (1 + exp(-x))``."""

    @property
    def steepest(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def most_bent(self) -> tuple[float, ...]:
        return (-math.log(2 + math.sqrt(3)), math.log(2 + math.sqrt(3)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.sigmoid(),)

    def derivative(self, x: Tensor) -> Tensor:
        return x.sigmoid() * (-x).sigmoid()

    def second(self, x: Tensor) -> Tensor:
        return self.derivative(x) * (-x / 2).tanh()

    def inverse(self, y: Tensor) -> Tensor:
        return y.clamp(0, 1).logit()


@register("Tanh", since=(6, 13))
@dataclass(frozen=True)
class Tanh(_Increasing):
    """``tanh(x)``."""

    @property
    def steepest(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def most_bent(self) -> tuple[float, ...]:
        return (-math.atanh(math.sqrt(1 / 3)), math.atanh(math.sqrt(1 / 3)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.tanh(),)

    def derivative(self, x: Tensor) -> Tensor:
        return _sech2(x)

    def second(self, x: Tensor) -> Tensor:
        return -2 * x.tanh() * _sech2(x)

    def inverse(self, y: Tensor) -> Tensor:
        return y.clamp(-1, 1).atanh()


@register("Atan", since=(7, 22))
@dataclass(frozen=True)
class Atan(_Increasing):
    """The inverse tangent."""

    @property
    def steepest(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def most_bent(self) -> tuple[float, ...]:
        return (-math.sqrt(1 / 3), math.sqrt(1 / 3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.atan(),)

    def derivative(self, x: Tensor) -> Tensor:
        return (1 + x.square()).reciprocal()

    def second(self, x: Tensor) -> Tensor:
        return -2 * x * (1 + x.square()) ** -2

    def inverse(self, y: Tensor) -> Tensor:
        half = math.pi / 2
        return torch.where(y.abs() < half, y.tan(), y.sign() * torch.inf)


@register("Erf", since=(9, 13))
@dataclass(frozen=True)
class Erf(_Increasing):
    """The error function."""

    @property
    def steepest(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def most_bent(self) -> tuple[float, ...]:
        return (-math.sqrt(0.5), math.sqrt(0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.erf(),)

    def derivative(self, x: Tensor) -> Tensor:
        return 2 / math.sqrt(math.pi) * (-x.square()).exp()

    def second(self, x: Tensor) -> Tensor:
        return -2 * x * self.derivative(x)

    def inverse(self, y: Tensor) -> Tensor:
        return y.clamp(-1, 1).erfinv()


@register("Softplus", since=(1, 22))
@dataclass(frozen=True)
class Softplus(_Increasing):
    """``log(1 + exp(x))``."""

    @property
    def most_bent(self) -> tuple[float, ...]:
        return (0.0,)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # torch's softplus is linear beyond a threshold; this is exact everywhere
        return (torch.logaddexp(x, torch.zeros_like(x)),)

    def derivative(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def second(self, x: Tensor) -> Tensor:
        return x.sigmoid() * (-x).sigmoid()

    def inverse(self, y: Tensor) -> Tensor:
        # log(exp(y) - 1) without overflow
        positive = y.clamp(min=0)
        return positive + (-torch.expm1(-positive)).log()


@register("Softsign", since=(1, 22))
@dataclass(frozen=True)
class Softsign(_Increasing):
    """``x / (1 + |x|)``."""

    @property
    def steepest(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def most_bent(self) -> tuple[float, ...]:
        return (0.0,)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x / (1 + x.abs()),)

    def derivative(self, x: Tensor) -> Tensor:
        return (1 + x.abs()) ** -2

    def second(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, -2.0, 2.0) * (1 + x.abs()) ** -3

    def inverse(self, y: Tensor) -> Tensor:
        inside = y.clamp(-1, 1)
        return inside / (1 - inside.abs())


@register("Swish", since=(24,))
@dataclass(frozen=True)
class Swish(Smooth):
    """``x sigmoid(alpha x)``."""

    alpha: float = 1.0

    @property
    def steepest(self) -> tuple[float, ...]:
        return self._scaled(-2.399357280515468, 2.399357280515468)

    @property
    def most_bent(self) -> tuple[float, ...]:
        return self._scaled(-3.43584099353511, 0.0, 3.43584099353511)

    def _scaled(self, *points: float) -> tuple[float, ...]:
        return tuple(sorted(point / self.alpha for point in points)) if self.alpha else ()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x * (self.alpha * x).sigmoid(),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Write the product; the operator is newer than the nodes that are written."""
        (x,) = inputs
        return (x * (x if self.alpha == 1 else x * self.alpha).sigmoid(),)

    def derivative(self, x: Tensor) -> Tensor:
        u = self.alpha * x
        return u.sigmoid() + u * u.sigmoid() * (-u).sigmoid()

    def second(self, x: Tensor) -> Tensor:
        u = self.alpha * x
        return self.alpha * u.sigmoid() * (-u).sigmoid() * (2 - u * (u / 2).tanh())


@register("Mish", since=(18, 22))
@dataclass(frozen=True)
class Mish(Smooth):
    """``x tanh(softplus(x))``."""

    @property
    def steepest(self) -> tuple[float, ...]:
        return (-2.2563763963607935, 1.490571179485428)

    @property
    def most_bent(self) -> tuple[float, ...]:
        return (-3.267337846520405, -0.08793443131491427, 2.1148425630208774)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x * self._softplus(x).tanh(),)

    @staticmethod
    def _softplus(x: Tensor) -> Tensor:
        return torch.logaddexp(x, torch.zeros_like(x))

    def derivative(self, x: Tensor) -> Tensor:
        s = self._softplus(x)
        return s.tanh() + x * x.sigmoid() * _sech2(s)

    def second(self, x: Tensor) -> Tensor:
        s = self._softplus(x)
        return _sech2(s) * x.sigmoid() * (2 + x * ((-x).sigmoid() - 2 * s.tanh() * x.sigmoid()))


@register("Gelu", since=(20,))
@dataclass(frozen=True)
class Gelu(Smooth):
    """``x`` times the normal distribution function, or its approximation by ``tanh``."""

    approximate: str = "none"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise UnsupportedAttribute(f"approximate={self.approximate!r} is not none or tanh")

    @property
    def steepest(self) -> tuple[float, ...]:
        point = math.sqrt(2) if self.approximate == "none" else 1.4185040087908285
        return (-point, point)

    @property
    def most_bent(self) -> tuple[float, ...]:
        point = 2.0 if self.approximate == "none" else 2.013480724624258
        return (-point, 0.0, point)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.gelu(x, approximate=self.approximate),)

    @staticmethod
    def _inner(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The argument of ``tanh`` and its two derivatives."""
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        return scale * (x + cubic * x**3), scale * (1 + 3 * cubic * x**2), 6 * scale * cubic * x

    def derivative(self, x: Tensor) -> Tensor:
        if self.approximate == "none":
            share: Tensor = torch.special.ndtr(x)
            return share + x * _normal_density(x)
        u, first, _ = self._inner(x)
        return (1 + u.tanh()) / 2 + x / 2 * _sech2(u) * first

    def second(self, x: Tensor) -> Tensor:
        if self.approximate == "none":
            return _normal_density(x) * (2 - x.square())
        u, first, bend = self._inner(x)
        return _sech2(u) * (first + x / 2 * (bend - 2 * u.tanh() * first**2))
