"""Softmax and its logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.arithmetic import Mul, Sub
from selkit.graph.ops.base import Composite, Decomposition, register
from selkit.graph.ops.reduction import ReduceMax, ReduceSum
from selkit.graph.ops.shape import Reshape
from selkit.graph.ops.smooth import Exp, Log, Reciprocal


def _shifted(build: Decomposition, x: str, axis: int) -> tuple[str, str, str]:
    """``x`` minus its maximum, the exponentials, and their sum."""
    shifted = build(Sub(), x, build(ReduceMax(axes=(axis,)), x))
    powers = build(Exp(), shifted)
    return shifted, powers, build(ReduceSum(axes=(axis,)), powers)


@register("Softmax", since=(13,))
@dataclass(frozen=True)
class Softmax(Composite):
    """Exponentials divided by their sum along one axis."""

    axis: int = -1

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.softmax(x, dim=self.axis + 1 if self.axis >= 0 else self.axis),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """``exp(x - log sum exp(x))``: the logarithm's shares are unchanged by what is added to all."""
        axis = self.axis % pull.x[0].ndim
        total, total_r, shares = pull.shares((axis,))
        u, ur = pull.x[0] - total, pull.r[0] - total_r
        grad = pull.full * pull.slopes_of_exp(u, ur, pull.y[0], pull.yr[0])
        return (grad - pull.tape.sum(grad, [axis]) * shares,)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        _, powers, total = _shifted(build, x, self.axis)
        return (build(Mul(), powers, build(Reciprocal(), total)),)


@register("LogSoftmax", since=(13,))
@dataclass(frozen=True)
class LogSoftmax(Composite):
    """Logarithm of Softmax."""

    axis: int = -1

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.log_softmax(x, dim=self.axis + 1 if self.axis >= 0 else self.axis),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """``x - log sum exp(x)``."""
        axis = self.axis % pull.x[0].ndim
        grad = pull.full
        return (grad - pull.tape.sum(grad, [axis]) * pull.shares((axis,))[2],)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        shifted, _, total = _shifted(build, x, self.axis)
        return (build(Sub(), shifted, build(Log(), total)),)


class _Flattened(Composite):
    """Opset 12 and below: over all axes from ``axis`` on."""

    axis: int

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        axis = self.axis % len(shape)
        return math.prod(shape[:axis]), math.prod(shape[axis:])

    def _whole(self) -> Softmax | LogSoftmax:
        raise TypeError(f"{type(self).__name__} does not define _whole")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Evaluate as a matrix."""
        rows = x.reshape(x.shape[0], *self._matrix(tuple(x.shape[1:])))
        return (self._whole().forward(rows)[0].reshape(x.shape),)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        """Decompose as a matrix."""
        shape = build.shapes[0] or ()
        rows = build(Reshape(allowzero=1), x, torch.tensor(self._matrix(shape)))
        return (build(Reshape(allowzero=1), build(self._whole(), rows), torch.tensor(shape)),)


@register("Softmax", since=(1, 11))
@dataclass(frozen=True)
class FlattenedSoftmax(_Flattened):
    """Softmax over all axes from ``axis`` on (opset 12 and below)."""

    axis: int = 1

    def _whole(self) -> Softmax:
        return Softmax()


@register("LogSoftmax", since=(1, 11))
@dataclass(frozen=True)
class FlattenedLogSoftmax(_Flattened):
    """LogSoftmax over all axes from ``axis`` on (opset 12 and below)."""

    axis: int = 1

    def _whole(self) -> LogSoftmax:
        return LogSoftmax()
