"""Nodes for double precision where onnxruntime has a kernel for single precision only.

Elementwise functions and global pooling are written as others that have one; convolutions and average
pooling, which have no other form of about the same cost, compute in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from selkit.graph.symbols import Shape, Symbol, where

if TYPE_CHECKING:
    from selkit.graph.tape import Tape

Inputs = Sequence[Any]
Given = Mapping[str, Any]

SINGLE = frozenset({"AveragePool", "Conv", "ConvTranspose"})
"""Operators that compute in single precision within a graph of double precision."""

_ERFC = (
    *(-1.3026537197817094, 6.4196979235649026e-1, 1.9476473204185836e-2, -9.561514786808631e-3),
    *(-9.46595344482036e-4, 3.66839497852761e-4, 4.2523324806907e-5, -2.0278578112534e-5),
    *(-1.624290004647e-6, 1.303655835580e-6, 1.5626441722e-8, -8.5238095915e-8, 6.529054439e-9),
    *(5.059343495e-9, -9.91364156e-10, -2.27365122e-10, 9.6467911e-11, 2.394038e-12, -6.886027e-12),
    *(8.94487e-13, 3.13092e-13, -1.12708e-13, 3.81e-16, 7.106e-15, -1.523e-15, -9.4e-17, 1.21e-16, -2.8e-17),
)
"""Chebyshev coefficients of the logarithm of ``erfc(x) exp(x^2) / t`` (Press et al. 2007, section 6.2.2)."""
_ATAN = (
    -0.8750608600031904,
    -16.157537187333652,
    -75.00855792314705,
    -122.88666844901361,
    -64.85021904942025,
)
_ATAN_BELOW = (1.0, 24.858464901423063, 165.02700983169885, 432.88106049129027, 485.3903996359137)
_ATAN_LAST = 194.5506571482614


def _softplus(x: Symbol, _: Given) -> Symbol:
    return x.relu() + ((-x.abs()).exp() + 1.0).log()


def _softsign(x: Symbol, _: Given) -> Symbol:
    return x / (x.abs() + 1.0)


def _elu(x: Symbol, given: Given) -> Symbol:
    return x.relu() + (x.minimum(0.0).exp() - 1.0) * float(given.get("alpha", 1.0))


def _celu(x: Symbol, given: Given) -> Symbol:
    alpha = float(given.get("alpha", 1.0))
    return x.relu() + ((x.minimum(0.0) * (1 / alpha)).exp() - 1.0) * alpha


def _selu(x: Symbol, given: Given) -> Symbol:
    alpha, gamma = (
        float(given.get("alpha", 1.67326319217681884765625)),
        float(given.get("gamma", 1.05070102214813232421875)),
    )
    return (x.relu() + (x.minimum(0.0).exp() - 1.0) * alpha) * gamma


def _leaky(x: Symbol, given: Given) -> Symbol:
    return x.relu() + x.minimum(0.0) * float(given.get("alpha", 0.01))


def _hard_sigmoid(x: Symbol, given: Given) -> Symbol:
    return (x * float(given.get("alpha", 0.2)) + float(given.get("beta", 0.5))).clamp(0.0, 1.0)


def _thresholded(x: Symbol, given: Given) -> Symbol:
    return where(x > float(given.get("alpha", 1.0)), x, 0.0)


def _erf(x: Symbol, _: Given) -> Symbol:
    """``1 - erfc |x|`` with the sign of ``x``, to about the last digit of 1."""
    size = x.abs()
    t = (size * 0.5 + 1.0).reciprocal()
    twice = t * 4.0 - 2.0
    now: Any = None
    before: Any = None
    for coefficient in reversed(_ERFC[1:]):
        if now is None:
            now = t * 0.0 + coefficient
        else:
            following = twice * now + coefficient
            now, before = (following if before is None else following - before), now
    below = t * ((twice * now + _ERFC[0]) * 0.5 - before - size * size).exp()
    sign = where(x > 0.0, 1.0, where(x < 0.0, -1.0, 0.0))
    result: Symbol = sign * (below * -1.0 + 1.0)
    return result


def _atan(x: Symbol, _: Given) -> Symbol:
    """By a quotient of polynomials on ``[-0.66, 0.66]``, the rest reflected (Moshier 1989, Cephes)."""
    size = x.abs()
    far, middle = size > 1 + math.sqrt(2), size > 0.66
    # the denominators are those of the branch that is chosen; where another is, they are kept from 0
    reflected = (size.maximum(0.66)).reciprocal() * -1.0
    turned = (size - 1.0) / (size + 1.0)
    near = where(far, reflected, where(middle, turned, size))
    start = where(far, math.pi / 2, where(middle, math.pi / 4, 0.0))
    square = near * near
    above, below = square * 0.0 + _ATAN[0], square * 0.0 + _ATAN_BELOW[0]
    for coefficient in _ATAN[1:]:
        above = above * square + coefficient
    for coefficient in (*_ATAN_BELOW[1:], _ATAN_LAST):
        below = below * square + coefficient
    angle = start + (near + near * square * (above / below))
    return where(x < 0.0, angle * -1.0, angle)


def _gelu(x: Symbol, given: Given) -> Symbol:
    if given.get("approximate", "none") == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (inner.tanh() + 1.0)
    return x * 0.5 * (_erf(x * math.sqrt(0.5), given) + 1.0)


def _hard_swish(x: Symbol, _: Given) -> Symbol:
    return x * (x * (1 / 6) + 0.5).clamp(0.0, 1.0)


def _mish(x: Symbol, _: Given) -> Symbol:
    return x * _softplus(x, _).tanh()


ELEMENTWISE: dict[str, Callable[[Symbol, Given], Symbol]] = {
    "Atan": _atan,
    "Celu": _celu,
    "Elu": _elu,
    "Erf": _erf,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky,
    "Mish": _mish,
    "Selu": _selu,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "ThresholdedRelu": _thresholded,
}


def _global(tape: Tape, op: str, x: Symbol, shape: Shape) -> Symbol:
    name = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}[op]
    if x.ndim == 2:
        return x
    return tape.op(name, x, tape.lift(list(range(2, x.ndim))), shape=shape, keepdims=1)


def written(tape: Tape, op: str, inputs: Inputs, shape: Shape, attributes: Given) -> Symbol | None:
    """The result of an operator that onnxruntime has for single precision only; ``None`` for all others."""
    if op in ELEMENTWISE:
        return ELEMENTWISE[op](inputs[0], attributes)
    if op == "PRelu":
        x: Symbol = inputs[0]
        below: Symbol = x.minimum(0.0) * inputs[1]
        return x.relu() + below
    if op == "Mean":
        total: Symbol = inputs[0]
        for value in inputs[1:]:
            total = total + value
        mean: Symbol = total * (1 / len(inputs))
        return mean
    if op in ("GlobalAveragePool", "GlobalMaxPool"):
        return _global(tape, op, inputs[0], shape)
    if op not in SINGLE:
        return None
    single: list[Symbol | None] = [
        None if value is None else tape.converted(value, torch.float32) for value in inputs
    ]
    (made,) = tape.ops(op, *single, shapes=[shape], dtypes=[torch.float32], **attributes)
    return tape.converted(made, torch.float64)
