"""Normalizations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from selkit.graph.ops.activations import Abs
from selkit.graph.ops.arithmetic import Add, Mul, Sub
from selkit.graph.ops.base import Affine, Composite, Decomposition, UnsupportedAttribute, align, register
from selkit.graph.ops.matmul import MatMul
from selkit.graph.ops.reduction import ReduceMean, ReduceSum
from selkit.graph.ops.shape import Gather, Reshape
from selkit.graph.ops.smooth import Power, Reciprocal, Sqrt


@register("BatchNormalization", since=(7, 9, 14, 15))
@dataclass(frozen=True)
class BatchNormalization(Affine):
    """``scale (x - mean) / sqrt(var + epsilon) + bias`` with the stored mean and variance."""

    LIVE = 1
    NOTE = "inference mode only"

    epsilon: float = 9.999999747378752e-06
    momentum: float = 0.8999999761581421
    training_mode: int = 0
    spatial: int = 1

    def __post_init__(self) -> None:
        if self.training_mode:
            raise UnsupportedAttribute(
                "training_mode=1 normalizes by the batch; export the model in eval mode"
            )
        if not self.spatial:
            raise UnsupportedAttribute("spatial=0; only one statistic for each channel is supported")

    def _slope(self, x: Tensor, scale: Tensor, var: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        shape = (1, 1, -1, *(1,) * (x.ndim - 3))
        return (scale / (var + self.epsilon).sqrt()).reshape(shape), shape

    def forward(
        self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, ...]:
        slope, shape = self._slope(x, scale, var)
        return (x * slope + (bias.reshape(shape) - mean.reshape(shape) * slope),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """One factor and one summand for each channel, which onnxruntime applies in one pass."""
        x, *parameters = inputs
        scale, bias, mean, var = (value.value.double() for value in parameters)
        factor = self.factor(scale, var)
        numbers = (factor, bias - mean * factor, torch.zeros_like(factor), torch.ones_like(factor))
        stored = [tape.stored(number.to(tape.dtype)) for number in numbers]
        return (tape.op("BatchNormalization", x, *stored, shape=shapes[0], epsilon=0.0),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        shape = (-1, *(1,) * (pull.x[0].ndim - 2))
        factor = self.factor(pull.constant(1), pull.constant(4)).to(pull.tape.dtype)
        return tuple(pull.only(0, pull.grad * factor.reshape(shape)))

    def undo(self, level: float, above: bool, *inputs: Any) -> tuple[float, bool] | None:
        """Moved and divided, if all channels have the same numbers."""
        scale, bias, mean, var = (value.double().reshape(-1) for value in inputs[1:5])
        slope = self.factor(scale, var)
        shift = bias - mean * slope
        factor, moved = float(slope[0]), float(shift[0])
        alike = bool((slope == factor).all() and (shift == moved).all())
        return ((level - moved) / factor, above == (factor > 0)) if alike and factor else None

    def factor(self, scale: Tensor, var: Tensor) -> Tensor:
        """What each channel is multiplied by; in double precision."""
        return scale.double() / (var.double() + self.epsilon).sqrt()

    def spread(self, live: Sequence[bool], *inputs: Tensor) -> tuple[Tensor, ...]:
        x, scale, _, _, var = inputs
        return (x * self._slope(x, scale, var)[0].abs(),)


_SCALE_AND_SHIFT: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (torch.mul, torch.add)


class _Normalization(Composite):
    """``(x - mean) / sqrt(variance + epsilon) scale + bias`` over some axes, in a shape that makes them last.

    Subclasses say how the axes are grouped; mean and variance are over the last axis of that grouping.
    """

    CENTERED: ClassVar[bool] = True
    epsilon: float

    def _grouped(self, shape: Sequence[int]) -> tuple[int, ...]:
        """ONNX shape of the value while its last axis is normalized."""
        raise TypeError(f"{type(self).__name__} does not define _grouped")

    def _parameter(self, shape: Sequence[int], parameter: Sequence[int]) -> tuple[int, ...]:
        """ONNX shape in which scale and bias broadcast to ``shape``."""
        return tuple(parameter)

    def forward(self, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        """Normalize, then scale and shift; also return the mean and the inverse deviation."""
        rows = x.reshape(x.shape[0], *self._grouped(x.shape[1:]))
        mean = rows.mean(-1, keepdim=True)
        if self.CENTERED:
            rows = rows - mean
        inverse = (rows.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()
        y = (rows * inverse).reshape(x.shape)
        for value, combine in zip(parameters, _SCALE_AND_SHIFT, strict=False):
            if value is not None:
                shaped = value.reshape(value.shape[0], *self._parameter(x.shape[1:], value.shape[1:]))
                y = combine(*align(y, shaped))
        return y, mean, inverse

    def decompose(self, build: Decomposition, x: str, *parameters: str) -> tuple[str, ...]:
        """Means, a square, a root, a reciprocal and a product."""
        shape = build.shapes[0] or ()
        rows = build(Reshape(allowzero=1), x, torch.tensor(self._grouped(shape), dtype=torch.int64))
        mean = build(ReduceMean(axes=(-1,)), rows)
        if self.CENTERED:
            rows = build(Sub(), rows, mean)
        variance = build(ReduceMean(axes=(-1,)), build(Power(2.0), rows))
        root = build(Sqrt(), build(Add(), variance, torch.tensor(self.epsilon, dtype=torch.float64)))
        inverse = build(Reciprocal(), root)
        y = build(Reshape(allowzero=1), build(Mul(), rows, inverse), torch.tensor(shape, dtype=torch.int64))
        for name, size, operator in zip(parameters, build.shapes[1:], (Mul(), Add()), strict=False):
            if name:
                target = torch.tensor(self._parameter(shape, size or ()), dtype=torch.int64)
                y = build(operator, y, build(Reshape(allowzero=1), name, target))
        return y, mean, inverse


@register("LayerNormalization", since=(17,))
@dataclass(frozen=True)
class LayerNormalization(_Normalization):
    """Over all axes from ``axis`` on."""

    OUTPUTS = 3

    axis: int = -1
    epsilon: float = 9.999999747378752e-06
    stash_type: int = 1  # says how precisely to calculate; the program's dtype decides that here

    def _grouped(self, shape: Sequence[int]) -> tuple[int, ...]:
        axis = self.axis % len(shape)
        return (*shape[:axis], math.prod(shape[axis:]))

    def forward(self, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        y, *statistics = super().forward(x, *parameters)
        axis = self.axis % (x.ndim - 1)
        shape = (*x.shape[: axis + 1], *(1,) * (x.ndim - 1 - axis))
        return y, *(value.reshape(shape) for value in statistics)

    def decompose(self, build: Decomposition, x: str, *parameters: str) -> tuple[str, ...]:
        y, *statistics = super().decompose(build, x, *parameters)
        shape = build.shapes[0] or ()
        axis = self.axis % len(shape)
        target = torch.tensor((*shape[:axis], *(1,) * (len(shape) - axis)), dtype=torch.int64)
        return y, *(build(Reshape(allowzero=1), value, target) for value in statistics)


@register("RMSNormalization", since=(23,))
@dataclass(frozen=True)
class RMSNormalization(LayerNormalization):
    """As LayerNormalization, but without subtracting the mean."""

    CENTERED = False
    OUTPUTS = 1


@register("InstanceNormalization", since=(6, 22))
@dataclass(frozen=True)
class InstanceNormalization(_Normalization):
    """Over the spatial axes of each channel."""

    epsilon: float = 9.999999747378752e-06

    def _grouped(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape[:2], math.prod(shape[2:]))

    def _parameter(self, shape: Sequence[int], parameter: Sequence[int]) -> tuple[int, ...]:
        return (-1, *(1,) * (len(shape) - 2))


@register("GroupNormalization", since=(21,))
@dataclass(frozen=True)
class GroupNormalization(_Normalization):
    """Over the channels and positions of each group of channels."""

    num_groups: int
    epsilon: float = 9.999999747378752e-06
    stash_type: int = 1

    def __post_init__(self) -> None:
        if self.num_groups < 1:
            raise UnsupportedAttribute(f"num_groups={self.num_groups} is below 1")

    def _grouped(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0], self.num_groups, math.prod(shape[1:]) // self.num_groups)

    def _parameter(self, shape: Sequence[int], parameter: Sequence[int]) -> tuple[int, ...]:
        return (-1, *(1,) * (len(shape) - 2))


@register("GroupNormalization", since=(18,))
@dataclass(frozen=True)
class GroupScaledNormalization(GroupNormalization):
    """As GroupNormalization, with one scale and one bias for each group (opset 18 to 20)."""

    def forward(self, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        size = x.shape[2] // self.num_groups
        each = [None if value is None else value.repeat_interleave(size, 1) for value in parameters]
        return super().forward(x, *each)

    def decompose(self, build: Decomposition, x: str, *parameters: str) -> tuple[str, ...]:
        """The numbers of a group for each of its channels."""
        groups, size = self.num_groups, (build.shapes[0] or ())[1] // self.num_groups
        each = torch.arange(groups).repeat_interleave(size)
        return super().decompose(build, x, *(build(Gather(0), value, each) for value in parameters))


@register("LRN", since=(1, 13))
@dataclass(frozen=True)
class LRN(Composite):
    """``x / (bias + alpha / size * sum) ** beta`` with the sum of squares over neighbouring channels."""

    size: int
    alpha: float = 9.999999747378752e-05
    beta: float = 0.75
    bias: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UnsupportedAttribute(f"size={self.size} is below 1")

    def _band(self, channels: int) -> Tensor:
        """Which channels count for which, times ``alpha / size``."""
        place = torch.arange(channels, dtype=torch.float64)
        distance = place[None, :] - place[:, None]
        near = (distance >= -((self.size - 1) // 2)) & (distance <= self.size // 2)
        return near * (self.alpha / self.size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        band = self._band(x.shape[2]).to(x.device, x.dtype)
        total = torch.einsum("dc,snc...->snd...", band, x.square())
        return (x * (total + self.bias) ** -self.beta,)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        shape = build.shapes[0] or ()
        flat = build(Reshape(allowzero=1), x, torch.tensor((*shape[:2], -1), dtype=torch.int64))
        total = build(MatMul(), self._band(shape[1]), build(Power(2.0), flat))
        total = build(Add(), total, torch.tensor(self.bias, dtype=torch.float64))
        y = build(Mul(), flat, build(Power(-self.beta), total))
        return (build(Reshape(allowzero=1), y, torch.tensor(shape, dtype=torch.int64)),)


@register("MeanVarianceNormalization", since=(9, 13))
@dataclass(frozen=True)
class MeanVarianceNormalization(Composite):
    """``(x - mean) / sqrt(variance)`` over some axes."""

    axes: tuple[int, ...] = (0, 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        dims = [axis + 1 if axis >= 0 else axis for axis in self.axes]
        centered = x - x.mean(dims, keepdim=True)
        # the constant is ONNX' own, in the function that defines this operator
        return (centered / (centered.square().mean(dims, keepdim=True).sqrt() + 1e-9),)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        mean = ReduceMean(axes=self.axes)
        centered = build(Sub(), x, build(mean, x))
        deviation = build(Sqrt(), build(mean, build(Power(2.0), centered)))
        deviation = build(Add(), deviation, torch.tensor(1e-9, dtype=torch.float64))
        return (build(Mul(), centered, build(Reciprocal(), deviation)),)


@register("LpNormalization", since=(1, 22))
@dataclass(frozen=True)
class LpNormalization(Composite):
    """``x`` divided by its 1- or 2-norm along one axis; zeros stay zeros."""

    axis: int = -1
    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise UnsupportedAttribute(f"p={self.p} is not 1 or 2")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        dim = self.axis + 1 if self.axis >= 0 else self.axis
        norm = x.abs().sum(dim, keepdim=True) if self.p == 1 else x.square().sum(dim, keepdim=True).sqrt()
        return (x / norm.masked_fill(norm == 0, 1),)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        total = ReduceSum(axes=(self.axis,))
        if self.p == 1:
            norm = build(total, build(Abs(), x))
        else:
            norm = build(Sqrt(), build(total, build(Power(2.0), x)))
        return (build(Mul(), x, build(Reciprocal(), norm)),)
