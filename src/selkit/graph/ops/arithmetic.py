"""Arithmetic of two or more values, with ONNX' broadcasting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.base import (
    Affine,
    Composite,
    Decomposition,
    Kind,
    Maximum,
    Product,
    UnsupportedAttribute,
    align,
    broadcast,
    floating,
    register,
)
from selkit.graph.ops.shape import Expand
from selkit.graph.ops.smooth import Exp, Power, Reciprocal


def _sum_of_radii(live: Sequence[bool], inputs: Sequence[Tensor]) -> Tensor:
    """Sum the radii of the live inputs, in the shape of the broadcast result."""
    terms = align(*inputs)
    terms = tuple(
        term if alive else term.new_zeros(()).expand(term.shape)
        for alive, term in zip(live, terms, strict=True)
    )
    return reduce(torch.add, terms)


def _number(inputs: Sequence[Tensor | None]) -> float | None:
    """The constant among two inputs, if it is one number."""
    constants = [value for value in inputs if value is not None]
    if len(constants) != 1 or constants[0].numel() == 0:
        return None
    first = constants[0].reshape(-1)[0]
    return float(first) if bool((constants[0] == first).all()) and bool(torch.isfinite(first)) else None


@register("Add", since=(7, 13, 14))
@dataclass(frozen=True)
class Add(Affine):
    """``a + b``."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        a, b = align(a, b)
        return (a + b,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.each(pull.grad, pull.grad))

    def spread(self, live: Sequence[bool], a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (_sum_of_radii(live, (a, b)),)

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """Moved by the constant, if that is one number."""
        shift = _number(inputs)
        return None if shift is None else (level - shift, above)


@register("Sub", since=(7, 13, 14))
@dataclass(frozen=True)
class Sub(Affine):
    """``a - b``."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        a, b = align(a, b)
        return (a - b,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.each(pull.grad, -pull.grad))

    def spread(self, live: Sequence[bool], a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (_sum_of_radii(live, (a, b)),)

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """Moved by the constant, if that is one number; turned round where the input is subtracted."""
        shift = _number(inputs)
        if shift is None:
            return None
        return (level + shift, above) if inputs[0] is None else (shift - level, not above)


@register("Sum", since=(6, 8, 13))
@dataclass(frozen=True)
class Sum(Affine):
    """Sum of all inputs."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (reduce(torch.add, align(*inputs)),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.each(*[pull.grad] * len(pull.x)))

    def spread(self, live: Sequence[bool], *inputs: Tensor) -> tuple[Tensor, ...]:
        return (_sum_of_radii(live, inputs),)


@register("Mean", since=(6, 8, 13))
@dataclass(frozen=True)
class Mean(Affine):
    """Mean of all inputs."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (reduce(torch.add, align(*inputs)) / len(inputs),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.each(*[pull.grad / len(pull.x)] * len(pull.x)))

    def spread(self, live: Sequence[bool], *inputs: Tensor) -> tuple[Tensor, ...]:
        return (_sum_of_radii(live, inputs) / len(inputs),)


@register("Neg", since=(6, 13))
@dataclass(frozen=True)
class Neg(Affine):
    """``-x``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (-x,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return (-pull.grad,)

    def spread(self, live: Sequence[bool], x: Tensor) -> tuple[Tensor, ...]:
        return (x,)

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """Turned round."""
        return -level, not above


@register("Mul", since=(7, 13, 14))
@dataclass(frozen=True)
class Mul(Product):
    """``a * b``."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        a, b = align(a, b)
        return (a * b,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Each factor times the other's mean: ``ab - a'b' = (a - a')(b + b')/2 + (b - b')(a + a')/2``."""
        return tuple(pull.factor(i) if alive else None for i, alive in enumerate(pull.live))

    def spread(self, live: Sequence[bool], a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        a, b = align(a, b)
        return ((a * b).abs(),)

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """Divided by the constant, if that is one number and not zero."""
        factor = _number(inputs)
        return (level / factor, above == (factor > 0)) if factor else None


@register("Div", since=(7, 13, 14))
@dataclass(frozen=True)
class Div(Composite):
    """``a / b``; integers are divided towards zero."""

    NOTE = "affine with a constant denominator"

    def kind(self, live: Sequence[bool]) -> Kind:
        """Affine as long as the denominator is constant."""
        return Kind.AFFINE if live[0] and not live[1] else super().kind(live)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        a, b = align(a, b)
        if floating(a) or floating(b):
            return (a / b,)
        # the quotient does not fit its type: processors trap, and the interpreter would end
        if not a.is_meta and a.dtype.is_signed and bool(((b == -1) & (a == torch.iinfo(a.dtype).min)).any()):
            raise UnsupportedAttribute(f"divides {torch.iinfo(a.dtype).min}, the smallest number, by -1")
        return (torch.div(a, b, rounding_mode="trunc"),)

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """Multiplied by the denominator, if that is one number and not zero."""
        factor = _number(inputs) if inputs[0] is None else None
        return (level * factor, above == (factor > 0)) if factor else None

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """A product with the reciprocal, whose multiplier is ``-1 / (b b')``."""
        b, br = pull.x[1], pull.r[1]
        if not pull.live[1]:
            return tuple(pull.each(pull.grad * pull.constant(1).reciprocal(), None))
        one, other = b.reciprocal(), br.reciprocal()
        first = pull.grad * ((one + other) * 0.5) if pull.live[0] else None
        return tuple(pull.each(first, -(pull.grad * pull.middle(0) * one * other)))

    def spread(self, live: Sequence[bool], a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        """Radii for a constant denominator, as :meth:`Affine.spread`."""
        a, b = align(a, b)
        return (a / b.abs(),)

    def decompose(self, build: Decomposition, a: str, b: str) -> tuple[str, ...]:
        return (build(Mul(), a, build(Reciprocal(), b)),)


@register("Pow", since=(7, 12, 13, 15))
@dataclass(frozen=True)
class Pow(Composite):
    """``a ** b``: a live base needs one constant exponent, a live exponent a positive constant base."""

    def kind(self, live: Sequence[bool]) -> Kind:
        """Always ``COMPOSITE``: a power, or an exponential."""
        if all(live):
            raise UnsupportedAttribute("base and exponent both depend on the model's input")
        return super().kind(live)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        a, b = align(a, b)
        if not (floating(a) or floating(b)):
            # as onnxruntime: by way of real numbers, also where the result does not fit
            return ((a.double() ** b.double()).to(a.dtype),)
        return ((a**b).to(a.dtype),)

    def decompose(self, build: Decomposition, a: str, b: str) -> tuple[str, ...]:
        base, exponent = build.constants
        if base is not None:
            if not bool((base > 0).all()):
                raise UnsupportedAttribute("a live exponent needs a base that is positive everywhere")
            logs = base[0].to(torch.float64).log()
            return (build(Exp(), build(Mul(), b, logs)),)
        if exponent is None or exponent.numel() == 0:
            raise UnsupportedAttribute("needs a constant exponent")
        values = torch.unique(exponent)
        if values.numel() > 1:
            raise UnsupportedAttribute(f"has {values.numel()} different exponents; one is supported")
        power = float(values)
        result = build(Power(power), a) if power != 1 else a
        if exponent.ndim - 1 > len(build.shapes[0] or ()) or math.prod(exponent.shape) > 1:
            # the exponents' shape may be the larger one
            result = build(Expand(), result, torch.tensor(exponent.shape[1:], dtype=torch.int64))
        return (result,)


class _Extreme(Maximum):
    """The largest or smallest of the inputs; a candidate's index is the input's position."""

    def _better(self, a: Tensor, b: Tensor) -> Tensor:
        return a > b if self.sign > 0 else a < b

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        better = torch.maximum if self.sign > 0 else torch.minimum
        return (reduce(better, align(*inputs)),)

    def argmax(self, *inputs: Tensor) -> Tensor:
        first, *rest = align(*inputs)
        shape = broadcast(first.shape, *(value.shape for value in rest))
        index = torch.zeros(shape, dtype=torch.int64, device=first.device)
        for position, value in enumerate(rest, start=1):
            better = self._better(value, first)
            index = torch.where(better, position, index)
            first = torch.where(better, value, first)
        return index

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Two at a time, what each adds in both orders, halved: the Shapley value of a pair."""
        return tuple(pull.extremes("Max" if self.sign > 0 else "Min"))

    def pick(self, index: Tensor, *inputs: Tensor) -> Tensor:
        first, *rest = align(*inputs)
        for position, value in enumerate(rest, start=1):
            first = torch.where(index == position, value, first)
        return first.expand(broadcast(first.shape, index.shape))


@register("Max", since=(6, 8, 12, 13))
@dataclass(frozen=True)
class Max(_Extreme):
    """Largest of the inputs, elementwise."""

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """``max(x, c) > t`` where ``x > t``, for ``t >= c``, if the constant is one number."""
        low = _number(inputs)
        beside = low is not None and (low <= level if above else low < level)
        return (level, above) if beside else None


@register("Min", since=(6, 8, 12, 13))
@dataclass(frozen=True)
class Min(_Extreme):
    """Smallest of the inputs, elementwise."""

    @property
    def sign(self) -> int:
        """-1: a minimum."""
        return -1

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """``min(x, c) > t`` where ``x > t``, for ``t < c``, if the constant is one number."""
        high = _number(inputs)
        beside = high is not None and (level < high if above else level <= high)
        return (level, above) if beside else None
