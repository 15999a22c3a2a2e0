"""Comparisons, conditions and rounding: they jump, so they are followed only where nothing live enters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from selkit.graph.ops.base import Discontinuous, UnsupportedAttribute, align, floating, name_of, register


class _Binary(Discontinuous):
    """A function of two values, with broadcasting."""

    FUNCTION: ClassVar[Callable[..., Tensor]]

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (type(self).FUNCTION(*align(a, b)),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        return (tape.op(name_of(type(self)), *inputs, shape=shapes[0], dtype=torch.bool),)


class _Comparison(_Binary):
    """Whether one of two values is the larger."""

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """As a jump from 0 to 1 of the difference."""
        (a, b), (ar, br) = pull.x, pull.r
        slope = pull.grad * pull.over(pull.number(pull.y[0]) - pull.number(pull.yr[0]), (a - b) - (ar - br))
        return tuple(pull.each(slope, -slope))


class _Unary(Discontinuous):
    """A function of one value."""

    FUNCTION: ClassVar[Callable[..., Tensor]]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (type(self).FUNCTION(x),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The slope of the chord, since it jumps."""
        return tuple(pull.jump())


@register("Equal", since=(7, 11, 13, 19))
@dataclass(frozen=True)
class Equal(_Binary):
    """``a == b``."""

    FUNCTION = staticmethod(torch.eq)


@register("Greater", since=(7, 9, 13))
@dataclass(frozen=True)
class Greater(_Comparison):
    """``a > b``."""

    FUNCTION = staticmethod(torch.gt)


@register("GreaterOrEqual", since=(12, 16))
@dataclass(frozen=True)
class GreaterOrEqual(_Comparison):
    """``a >= b``."""

    FUNCTION = staticmethod(torch.ge)


@register("Less", since=(7, 9, 13))
@dataclass(frozen=True)
class Less(_Comparison):
    """``a < b``."""

    FUNCTION = staticmethod(torch.lt)


@register("LessOrEqual", since=(12, 16))
@dataclass(frozen=True)
class LessOrEqual(_Comparison):
    """``a <= b``."""

    FUNCTION = staticmethod(torch.le)


@register("And", since=(7,))
@dataclass(frozen=True)
class And(_Binary):
    """Both."""

    FUNCTION = staticmethod(torch.logical_and)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """A product of 0 and 1."""
        return tuple(pull.each(*(pull.grad * pull.share(1 - i) for i in (0, 1))))


@register("Or", since=(7,))
@dataclass(frozen=True)
class Or(_Binary):
    """One of the two, or both."""

    FUNCTION = staticmethod(torch.logical_or)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """``1 - (1 - a)(1 - b)``."""
        return tuple(pull.each(*(pull.grad * (1.0 - pull.share(1 - i)) for i in (0, 1))))


@register("Xor", since=(7,))
@dataclass(frozen=True)
class Xor(_Binary):
    """One of the two, but not both."""

    FUNCTION = staticmethod(torch.logical_xor)


@register("Not", since=(1,))
@dataclass(frozen=True)
class Not(_Unary):
    """The opposite."""

    FUNCTION = staticmethod(torch.logical_not)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        return (tape.op("Not", *inputs, shape=shapes[0], dtype=torch.bool),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return (-pull.grad,)


@register("Sign", since=(9, 13))
@dataclass(frozen=True)
class Sign(_Unary):
    """-1, 0 or 1."""

    FUNCTION = staticmethod(torch.sign)


@register("Floor", since=(6, 13))
@dataclass(frozen=True)
class Floor(_Unary):
    """The next integer below."""

    FUNCTION = staticmethod(torch.floor)


@register("Ceil", since=(6, 13))
@dataclass(frozen=True)
class Ceil(_Unary):
    """The next integer above."""

    FUNCTION = staticmethod(torch.ceil)


@register("Round", since=(11, 22))
@dataclass(frozen=True)
class Round(_Unary):
    """The nearest integer, the even one of two."""

    FUNCTION = staticmethod(torch.round)


@register("Mod", since=(10, 13))
@dataclass(frozen=True)
class Mod(Discontinuous):
    """Remainder, with the sign of the divisor, or (``fmod``) of the dividend."""

    fmod: int = 0

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        a, b = align(a, b)
        if floating(a) and not self.fmod:
            raise UnsupportedAttribute("real numbers need fmod=1")
        return (torch.fmod(a, b) if self.fmod else torch.remainder(a, b),)


@register("ArgMax", since=(1, 11, 12, 13))
@dataclass(frozen=True)
class ArgMax(Discontinuous):
    """Position of the maximum along one axis."""

    SIGN: ClassVar[int] = 1

    axis: int = 0
    keepdims: int = 1
    select_last_index: int = 0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        dim = self.axis + 1 if self.axis >= 0 else self.axis
        order = x.flip(dim) if self.select_last_index else x
        best = order.argmax if self.SIGN > 0 else order.argmin
        index = best(dim=dim, keepdim=bool(self.keepdims))
        return (x.shape[dim] - 1 - index if self.select_last_index else index,)


@register("ArgMin", since=(1, 11, 12, 13))
@dataclass(frozen=True)
class ArgMin(ArgMax):
    """Position of the minimum along one axis."""

    SIGN = -1
