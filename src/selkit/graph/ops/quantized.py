"""Quantized models: integers that stand for real numbers, held as real numbers with integer values.

Stored weights are exact. Activations are rounded, so a network of them jumps: it is run and explained as it
is, but followed along a line only without its rounding (:class:`Rounding`), where what is left, a limit to
the numbers that can be represented, is piecewise linear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from selkit.graph.ops.arithmetic import Mul, Sub
from selkit.graph.ops.base import (
    Affine,
    Composite,
    Decomposition,
    Input,
    Kind,
    Operator,
    PiecewiseLinear,
    UnsupportedAttribute,
    floating,
    register,
)
from selkit.graph.ops.constants import Identity
from selkit.graph.ops.convolution import Conv
from selkit.graph.ops.matmul import MatMul
from selkit.graph.ops.shape import Reshape

_LIMITS: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
}
_OF_TORCH = {torch.uint8: TensorProto.UINT8, torch.int8: TensorProto.INT8, torch.int16: TensorProto.INT16}
_WITHOUT = "load it with quantization='ignore', which leaves the rounding out and keeps its limits"


class Rounding(Operator):
    """An operator that rounds activations."""

    ADVICE = _WITHOUT

    def unrounded(self) -> Operator:
        """The operator without rounding."""
        return dataclasses.replace(self, rounding=False)  # type: ignore[type-var]


def _along(value: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or a zero point, shaped to broadcast: one, one for each channel, or one for a block."""
    if value.numel() == value.shape[0]:
        return value.reshape(-1, *(1,) * (x.ndim - 1))
    dim = axis + 1 if axis >= 0 else axis + x.ndim
    if not 1 <= dim < x.ndim:
        raise UnsupportedAttribute(f"axis={axis} does not exist")
    if value.ndim == 2 and x.ndim > 2 and not block:
        return value.reshape(value.shape[0], *(1,) * (dim - 1), -1, *(1,) * (x.ndim - dim - 1))
    if block and value.ndim == x.ndim:
        return value.repeat_interleave(block, dim).narrow(dim, 0, x.shape[dim])
    return value


def _real(value: Tensor, like: Tensor) -> Tensor:
    return value if floating(value) else value.to(like.dtype)


@register("DequantizeLinear", since=(10, 13, 19, 21, 23, 24, 25, 28))
@dataclass(frozen=True)
class DequantizeLinear(Affine, Composite):
    """``(x - zero point) scale``, with one scale, one for each channel, or one for each block."""

    NOTE = "composite with a live scale"

    axis: int = 1
    block_size: int = 0
    output_dtype: int = 0

    def kind(self, live: Sequence[bool]) -> Kind:
        """``COMPOSITE`` with a live scale."""
        return Kind.COMPOSITE if any(live[1:]) else Kind.AFFINE if live[0] else Kind.CONSTANT

    def _parameters(self, x: Tensor, scale: Tensor, zero: Input) -> tuple[Tensor, Tensor | None]:
        point = None if zero is None else _real(_along(zero, x, self.axis, self.block_size), scale)
        return _along(scale, x, self.axis, self.block_size), point

    def forward(self, x: Tensor, scale: Tensor, zero: Input = None) -> tuple[Tensor, ...]:
        scale, point = self._parameters(x, scale, zero)
        x = _real(x, scale)
        return ((x if point is None else x - point) * scale,)

    def spread(
        self, live: Sequence[bool], x: Tensor, scale: Tensor, zero: Input = None
    ) -> tuple[Tensor, ...]:
        return (x * self._parameters(x, scale, None)[0].abs(),)

    def decompose(self, build: Decomposition, x: str, scale: str, zero: str = "") -> tuple[str, ...]:
        """The difference, times the scale laid along its axis."""
        rank, size = len(build.shapes[0] or ()), build.shapes[1] or ()
        if len(size) > 1:
            raise UnsupportedAttribute("a live scale for each block is not supported")
        if size and size[0] > 1:
            axis = self.axis + rank if self.axis < 0 else self.axis
            scale = build(Reshape(), scale, torch.tensor([size[0], *(1,) * (rank - axis - 1)]))
        known = not zero or build.constants[2] is not None
        # A live zero point is subtracted as it is: another DequantizeLinear would come here again.
        return (build(Mul(), _minus(build, x, zero, self.axis) if known else build(Sub(), x, zero), scale),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """A difference and a product."""
        x = inputs[0]
        scale, point = self._stored([None if v is None else v.value for v in inputs], x, tape.dtype)
        return ((x if point is None else x - point) * scale,)

    def _stored(self, values: Sequence[Any], x: Any, dtype: torch.dtype) -> tuple[Any, Any]:
        """Scale and zero point in ONNX shape; numbers where there is one."""
        sample = torch.empty((1, *x.shape), device="meta")
        scale = _along(values[1].to(dtype).unsqueeze(0), sample, self.axis, self.block_size)[0]
        if len(values) < 3 or values[2] is None:
            return _number(scale), None
        point = _along(values[2].to(dtype).unsqueeze(0), sample, self.axis, self.block_size)[0]
        return _number(scale), _number(point)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Multipliers times the scale."""
        values = [None if v is None else v.value for v in pull.x]
        return tuple(pull.only(0, pull.grad * self._stored(values, pull.x[0], pull.tape.dtype)[0]))


def _number(value: Tensor) -> Tensor | float:
    return float(value) if value.numel() == 1 else value


@register("QuantizeLinear", since=(10, 13, 19, 21, 23, 24, 25, 28))
@dataclass(frozen=True)
class QuantizeLinear(PiecewiseLinear, Rounding):
    """``x / scale + zero point``, rounded to the nearest integer and limited to its type."""

    NOTE = "refused along a line unless its rounding is left out: quantization='ignore'"

    axis: int = 1
    block_size: int = 0
    output_dtype: int = 0
    precision: int = 0
    saturate: int = 1
    zero_type: int = 0
    rounding: bool = True

    def __post_init__(self) -> None:
        for kind in (self.output_dtype, self.zero_type):
            if kind and kind not in _LIMITS:
                raise UnsupportedAttribute(f"rounds to the number type {TensorProto.DataType.Name(kind)}")

    def typed(self, types: Sequence[int]) -> Operator:
        return dataclasses.replace(self, zero_type=types[2]) if len(types) > 2 else self

    def kind(self, live: Sequence[bool]) -> Kind:
        """``STEP`` where it rounds."""
        return Kind.STEP if any(live) and self.rounding else super().kind(live)

    def _parameters(self, x: Tensor, scale: Tensor, zero: Input) -> tuple[Tensor, Tensor, int, int]:
        if bool((scale <= 0).any()):
            raise UnsupportedAttribute("has a scale that is not positive")
        type_of = self.output_dtype or self.zero_type
        if not type_of and zero is not None:
            type_of = _OF_TORCH.get(zero.dtype, TensorProto.UINT8 if floating(zero) else 0)
            if not type_of:
                raise UnsupportedAttribute(f"has a zero point of type {zero.dtype}")
        low, high = _LIMITS[type_of or TensorProto.UINT8]
        scale = _along(scale, x, self.axis, self.block_size)
        point = torch.zeros_like(scale) if zero is None else _along(zero, x, self.axis, self.block_size)
        return scale, _real(point, scale), low, high

    def forward(self, x: Tensor, scale: Tensor, zero: Input = None) -> tuple[Tensor, ...]:
        if x.is_meta:
            return (torch.empty_like(x),)
        scale, point, low, high = self._parameters(x, scale, zero)
        if self.rounding:
            # what is a tie in single precision, in which the model divides, must be one here
            ratio = (x.float() / scale.float()).round().to(x.dtype)
        else:
            ratio = x / scale
        return ((ratio + point).clamp(low, high),)

    def knots(self, *inputs: Any) -> tuple[Tensor | float, ...]:
        x, scale, zero = (*inputs, None)[:3]
        scale, point, low, high = self._parameters(x, scale, zero)
        return ((low - point) * scale, (high - point) * scale)

    def _shaped(self, values: Sequence[Any], x: Any, dtype: torch.dtype) -> tuple[Any, Any, int, int]:
        """Scale, zero point and limits in ONNX shape."""
        sample = torch.empty((1, *x.shape), device="meta")
        zero = values[2].unsqueeze(0) if len(values) > 2 and values[2] is not None else None
        scale, point, low, high = self._parameters(sample, values[1].to(dtype).unsqueeze(0), zero)
        return scale[0], point[0].to(dtype), low, high

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """A quotient, rounded and limited."""
        x = inputs[0]
        values = [None if v is None else v.value for v in inputs]
        scale, point, low, high = self._shaped(values, x, tape.dtype)
        ratio = x._with("Div", _number(scale))
        if self.rounding:
            ratio = tape.op("Round", ratio, shape=ratio.shape)
        return ((ratio + _number(point)).clamp(float(low), float(high)),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Where it rounds, the slope of the chord; else a line between two bends."""
        if self.rounding:
            return tuple(pull.jump())
        values = [None if v is None else v.value for v in pull.x]
        scale, point, low, high = self._shaped(values, pull.x[0], pull.tape.dtype)
        knots = (_number((low - point) * scale), _number((high - point) * scale))
        slope = _number(1 / scale)
        down = -slope
        grad = None
        for knot, change in zip(knots, (slope, down), strict=True):
            bend = pull.relu(pull.x[0] - knot, pull.r[0] - knot) * change
            grad = bend if grad is None else grad + bend
        return tuple(pull.only(0, pull.grad * grad))


@register("DynamicQuantizeLinear", since=(11,))
@dataclass(frozen=True)
class DynamicQuantizeLinear(Composite, Rounding):
    """Quantize to 8 bits by the range of the values themselves; three outputs: values, scale, zero point."""

    NOTE = "needs quantization='ignore' along a line and for an attribution"
    OUTPUTS = 3

    rounding: bool = True

    def kind(self, live: Sequence[bool]) -> Kind:
        """``STEP`` where it rounds."""
        return Kind.STEP if any(live) and self.rounding else super().kind(live)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        flat = x.flatten(1) if x.ndim > 1 else x[:, None]
        if not self.rounding:
            return x, x.new_ones(1), x.new_zeros(1)
        flat = flat.float()
        low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
        scale = torch.where(high > low, (high - low) / 255, 1.0)
        zero = (-low / scale).round().clamp(0, 255)
        wide = (-1, *(1,) * (x.ndim - 1))
        y = ((x.float() / scale.reshape(wide)).round() + zero.reshape(wide)).clamp(0, 255)
        return y.to(x.dtype), scale.to(x.dtype), zero.to(x.dtype)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        """Without rounding, any scale gives the values back: 1 does."""
        one, none = torch.ones(()), torch.zeros(())
        return x, build(Identity(), one), build(Identity(), none)


Value = Any
"""What a formula is written for: a value's name in a program that is built, or its numbers."""
_ONE = torch.ones(1)


class _Formula(Composite, Rounding):
    """Written once, for the numbers and for the program."""

    rounding: bool

    def formula(self, build: Any, *inputs: Value) -> Value:
        """The result, through ``build(operator, *inputs)``."""
        raise TypeError(f"{type(self).__name__} does not define formula")

    def kind(self, live: Sequence[bool]) -> Kind:
        """Always ``COMPOSITE``."""
        return Kind.COMPOSITE if any(live) else Kind.CONSTANT

    def decompose(self, build: Decomposition, *inputs: str) -> tuple[str, ...]:
        """The simpler steps."""
        return (self.formula(build, *inputs),)

    def forward(self, *inputs: Input) -> tuple[Tensor, ...]:
        def apply(operator: Operator, *given: Any) -> Tensor:
            values = [None if value is None or isinstance(value, str) else value for value in given]
            wide = any(value is not None and value.dtype == torch.float64 for value in values)
            dtype = torch.float64 if wide else torch.float32
            return operator.forward(*[v.to(dtype) if v is not None and floating(v) else v for v in values])[0]

        return (self.formula(apply, *["" if value is None else value for value in inputs]),)


def _minus(build: Any, value: Value, zero: Value, axis: int) -> Value:
    """An integer without its zero point."""
    return build(DequantizeLinear(axis), value, _ONE, zero)


@dataclass(frozen=True)
class _Convolution(_Formula):
    """Attributes of a convolution."""

    auto_pad: str = "NOTSET"
    dilations: tuple[int, ...] = ()
    group: int = 1
    kernel_shape: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    zero_type: int = 0
    rounding: bool = True

    def __post_init__(self) -> None:
        self._real_one()

    def _real_one(self) -> Conv:
        return Conv(
            kernel_shape=self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=self.group,
            auto_pad=self.auto_pad,
        )


@register("ConvInteger", since=(10,))
@dataclass(frozen=True)
class ConvInteger(_Convolution):
    """Convolution of integers."""

    def formula(self, build: Any, x: Value, w: Value, x_zero: Value = "", w_zero: Value = "") -> Value:
        return build(self._real_one(), _minus(build, x, x_zero, 1), _minus(build, w, w_zero, 0))


@register("QLinearConv", since=(10,))
@dataclass(frozen=True)
class QLinearConv(_Convolution):
    """Convolution of what integers stand for, quantized again."""

    NOTE = "needs quantization='ignore' along a line"

    def typed(self, types: Sequence[int]) -> Operator:
        return dataclasses.replace(self, zero_type=types[7]) if len(types) > 7 else self

    def formula(self, build: Any, *inputs: Value) -> Value:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = inputs
        x = build(DequantizeLinear(), x, x_scale, x_zero)
        w = build(DequantizeLinear(0), w, w_scale, w_zero)
        if bias and not _left_out(bias[0]):
            bias = [build(DequantizeLinear(0), bias[0], build(Mul(), x_scale, w_scale))]
        y = build(self._real_one(), x, w, *bias)
        return build(QuantizeLinear(zero_type=self.zero_type, rounding=self.rounding), y, y_scale, y_zero)


def _left_out(value: Value) -> bool:
    return isinstance(value, str) and not value


@register("MatMulInteger", since=(10,))
@dataclass(frozen=True)
class MatMulInteger(_Formula):
    """Matrix product of integers."""

    rounding: bool = True

    def formula(self, build: Any, a: Value, b: Value, a_zero: Value = "", b_zero: Value = "") -> Value:
        return build(MatMul(), _minus(build, a, a_zero, -2), _minus(build, b, b_zero, -1))


@register("QLinearMatMul", since=(10, 21))
@dataclass(frozen=True)
class QLinearMatMul(_Formula):
    """Matrix product of what integers stand for, quantized again."""

    NOTE = "needs quantization='ignore' along a line"

    zero_type: int = 0
    rounding: bool = True

    def typed(self, types: Sequence[int]) -> Operator:
        return dataclasses.replace(self, zero_type=types[7]) if len(types) > 7 else self

    def formula(self, build: Any, *inputs: Value) -> Value:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
        a = build(DequantizeLinear(-2), a, a_scale, a_zero)
        b = build(DequantizeLinear(-1), b, b_scale, b_zero)
        quantize = QuantizeLinear(zero_type=self.zero_type, rounding=self.rounding)
        return build(quantize, build(MatMul(), a, b), y_scale, y_zero)
