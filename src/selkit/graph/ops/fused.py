"""Operators of the domain com.microsoft: what onnxruntime writes when it saves an optimized model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from selkit.graph.ops.activations import Clip, HardSigmoid, LeakyRelu, Relu
from selkit.graph.ops.arithmetic import Add
from selkit.graph.ops.base import Composite, Decomposition, Operator, UnsupportedAttribute, register
from selkit.graph.ops.convolution import Conv
from selkit.graph.ops.matmul import Gemm, MatMul
from selkit.graph.ops.normalization import LayerNormalization, RMSNormalization
from selkit.graph.ops.parts import scaled, transpose
from selkit.graph.ops.sigmoids import Gelu, Sigmoid, Swish, Tanh

MICROSOFT = "com.microsoft"
_PARAMETERS = {"": 0, "Relu": 0, "Tanh": 0, "Sigmoid": 0, "LeakyRelu": 1, "Clip": 2, "HardSigmoid": 2}


def _activation(name: str, parameters: Sequence[float]) -> Operator | None:
    """The activation behind a fused operator; ``None`` for none.

    Raises
    ------
    UnsupportedAttribute
        If it is unknown, or its parameters are not as many as it has.
    """
    if name not in _PARAMETERS:
        known = ", ".join(filter(None, _PARAMETERS))
        raise UnsupportedAttribute(f"activation={name!r} is not one of {known}")
    if parameters and len(parameters) < _PARAMETERS[name]:
        raise UnsupportedAttribute(f"activation={name!r} has {len(parameters)} parameters")
    given = tuple(parameters[: _PARAMETERS[name]])
    match name:
        case "":
            return None
        case "LeakyRelu":
            return LeakyRelu(*given)
        case "Clip":
            return Clip(*given)
        case "HardSigmoid":
            return HardSigmoid(*given)
        case _:
            return {"Relu": Relu, "Tanh": Tanh, "Sigmoid": Sigmoid}[name]()


@register("FusedConv", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class FusedConv(Composite):
    """A convolution, a value that is added, and an activation."""

    INPUTS = (2, 4)

    activation: str = ""
    activation_params: tuple[float, ...] = ()
    auto_pad: str = "NOTSET"
    dilations: tuple[int, ...] = ()
    group: int = 1
    kernel_shape: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _activation(self.activation, self.activation_params)
        self._conv()

    def _conv(self) -> Conv:
        return Conv(
            kernel_shape=self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=self.group,
            auto_pad=self.auto_pad,
        )

    def decompose(self, build: Decomposition, x: str, w: str, *rest: str) -> tuple[str, ...]:
        b, z = (*rest, "", "")[:2]
        y = build(self._conv(), x, w, b) if b else build(self._conv(), x, w)
        y = build(Add(), y, z) if z else y
        activation = _activation(self.activation, self.activation_params)
        return (y if activation is None else build(activation, y),)


@register("FusedGemm", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class FusedGemm(Composite):
    """Gemm and an activation."""

    INPUTS = (2, 3)

    activation: str = ""
    activation_alpha: float | None = None
    activation_beta: float | None = None
    activation_gamma: float | None = None
    alpha: float = 1.0
    beta: float = 1.0
    transA: int = 0  # noqa: N815 - its name in the file
    transB: int = 0  # noqa: N815 - its name in the file

    def __post_init__(self) -> None:
        self._activation()

    def _activation(self) -> Operator | None:
        given = (self.activation_alpha, self.activation_beta)
        return _activation(self.activation, [value for value in given if value is not None])

    def decompose(self, build: Decomposition, a: str, b: str, *rest: str) -> tuple[str, ...]:
        gemm = Gemm(self.alpha, self.beta, self.transA, self.transB)
        y = build(gemm, a, b, *filter(None, rest))
        activation = self._activation()
        return (y if activation is None else build(activation, y),)


@register("FusedMatMul", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class FusedMatMul(Composite):
    """A scaled product of matrices, each transposed or not."""

    INPUTS = (2, 2)

    alpha: float = 1.0
    transA: int = 0  # noqa: N815 - its name in the file
    transB: int = 0  # noqa: N815 - its name in the file
    transBatchA: int = 0  # noqa: N815 - its name in the file
    transBatchB: int = 0  # noqa: N815 - its name in the file

    def decompose(self, build: Decomposition, a: str, b: str) -> tuple[str, ...]:
        sides = []
        flags = ((self.transA, self.transBatchA), (self.transB, self.transBatchB))
        for name, shape, (matrix, batch) in zip((a, b), build.shapes, flags, strict=True):
            order = list(range(len(shape or ())))
            if batch and len(order) > 2:
                # the axis in front of the matrix's columns changes places with the batch axes
                order = [*order[1:-1], 0, order[-1]]
            if matrix and len(order) > 1:
                order[-2:] = order[:-3:-1]
            sides.append(name if order == sorted(order) else transpose(build, name, order))
        return (scaled(build, build(MatMul(), *sides), self.alpha),)


register("Gelu", since=(1,), domain=MICROSOFT)(Gelu)


@register("BiasGelu", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class BiasGelu(Composite):
    """Gelu of a sum."""

    INPUTS = (2, 2)

    def decompose(self, build: Decomposition, a: str, b: str) -> tuple[str, ...]:
        return (build(Gelu(), build(Add(), a, b)),)


@register("FastGelu", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class FastGelu(Composite):
    """Gelu of a sum, approximated by ``tanh``."""

    INPUTS = (1, 2)

    def decompose(self, build: Decomposition, x: str, *bias: str) -> tuple[str, ...]:
        total = build(Add(), x, bias[0]) if bias and bias[0] else x
        return (build(Gelu("tanh"), total),)


@register("QuickGelu", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class QuickGelu(Composite):
    """``x sigmoid(alpha x)``."""

    alpha: float = 1.7020000219345093

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        return (build(Swish(self.alpha), x),)


register("LayerNormalization", since=(1,))(LayerNormalization)
register("LayerNormalization", since=(1,), domain=MICROSOFT)(LayerNormalization)


@register("SimplifiedLayerNormalization", since=(1,))
@register("SimplifiedLayerNormalization", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class SimplifiedLayerNormalization(RMSNormalization):
    """RMSNormalization, by its older name in onnxruntime."""

    INPUTS = (2, 2)
    OUTPUTS = 2

    def forward(self, x: Any, *parameters: Any) -> tuple[torch.Tensor, ...]:
        y, _, inverse = super().forward(x, *parameters)
        return y, inverse

    def decompose(self, build: Decomposition, x: str, *parameters: str) -> tuple[str, ...]:
        y, _, inverse = super().decompose(build, x, *parameters)
        return y, inverse


@dataclass(frozen=True)
class _Skip(Composite):
    """The sum of a value, what bypassed it, and a bias, normalized; the sum is the last output."""

    OUTPUTS = 4
    NORMALIZATION: ClassVar[type[LayerNormalization]]

    epsilon: float = 9.999999960041972e-13

    def _parameters(self, given: Sequence[str]) -> tuple[str, str, str]:
        """Scale, shift and bias; "" for one that is left out."""
        raise TypeError(f"{type(self).__name__} does not define _parameters")

    def decompose(self, build: Decomposition, x: str, skip: str, *given: str) -> tuple[str, ...]:
        scale, shift, bias = self._parameters(given)
        total = build(Add(), x, skip)
        total = build(Add(), total, bias) if bias else total
        normalize = self.NORMALIZATION(axis=-1, epsilon=self.epsilon)
        inputs = (total, scale, shift) if shift else (total, scale)
        y, mean, inverse = build.emit(normalize, *inputs, outputs=3)
        return y, mean, inverse, total


@register("SkipLayerNormalization", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class SkipLayerNormalization(_Skip):
    """LayerNormalization of a sum."""

    INPUTS = (3, 5)
    NORMALIZATION = LayerNormalization

    def _parameters(self, given: Sequence[str]) -> tuple[str, str, str]:
        scale, shift, bias = (*given, "", "")[:3]
        return scale, shift, bias


@register("SkipSimplifiedLayerNormalization", since=(1,), domain=MICROSOFT)
@dataclass(frozen=True)
class SkipSimplifiedLayerNormalization(_Skip):
    """RMSNormalization of a sum."""

    INPUTS = (3, 4)
    NORMALIZATION = RMSNormalization

    def _parameters(self, given: Sequence[str]) -> tuple[str, str, str]:
        scale, bias = (*given, "")[:2]
        return scale, "", bias
