"""Pooling by p-norms: powers, a sum over windows, and a root."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from selkit.graph.ops import windows
from selkit.graph.ops.activations import Abs
from selkit.graph.ops.arithmetic import Mul
from selkit.graph.ops.base import Composite, Decomposition, UnsupportedAttribute, register
from selkit.graph.ops.convolution import Conv
from selkit.graph.ops.parts import real
from selkit.graph.ops.pooling import GlobalAveragePool
from selkit.graph.ops.smooth import Power, Sqrt


def _powers(build: Decomposition, x: str, p: int) -> str:
    if p % 2:
        x = build(Abs(), x)
    return x if p == 1 else build(Power(float(p)), x)


def _root(build: Decomposition, x: str, p: int) -> str:
    return x if p == 1 else build(Sqrt() if p == 2 else Power(1 / p), x)


def _check_norm(p: int) -> None:
    if p < 1:
        raise UnsupportedAttribute(f"p={p} is below 1")


@register("LpPool", since=(2, 11, 18, 22))
@dataclass(frozen=True)
class LpPool(Composite):
    """The p-norm of windows."""

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    ceil_mode: int = 0
    auto_pad: str = "NOTSET"
    p: int = 2

    def __post_init__(self) -> None:
        _check_norm(self.p)
        windows.check(
            self.auto_pad,
            kernel_shape=self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
        )

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        """A convolution with ones, between powers and a root."""
        shape = build.shapes[0] or ()
        if len(shape) < 3:
            raise UnsupportedAttribute(f"needs 3 or more axes, not {len(shape)}")
        placed = windows.place(
            shape[2:],
            self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            auto_pad=self.auto_pad,
            ceil=bool(self.ceil_mode),
            pooling=True,
        )
        total = Conv(
            kernel_shape=placed.kernel,
            strides=placed.strides,
            dilations=placed.dilations,
            pads=(*placed.begin, *(max(end, 0) for end in placed.end)),
            group=shape[1],
        )
        ones = torch.ones((shape[1], 1, *placed.kernel), dtype=torch.float64)
        return (_root(build, build(total, _powers(build, x, self.p), ones), self.p),)


@register("GlobalLpPool", since=(2, 22))
@dataclass(frozen=True)
class GlobalLpPool(Composite):
    """The p-norm over all spatial axes."""

    p: int = 2

    def __post_init__(self) -> None:
        _check_norm(self.p)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        count = math.prod((build.shapes[0] or ())[2:])
        mean = build(GlobalAveragePool(), _powers(build, x, self.p))
        return (_root(build, build(Mul(), mean, real(count)), self.p),)
