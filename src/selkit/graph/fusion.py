"""Join neighbouring steps of a program that together are one simpler step.

Every rule keeps the function and makes the program shorter; a smooth function in one piece also has tighter
bounds than a product of its parts. Steps whose results nobody needs any more are dropped afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from selkit.graph.ops.activations import HardSigmoid
from selkit.graph.ops.arithmetic import Add, Div, Mul
from selkit.graph.ops.base import Kind, Operator
from selkit.graph.ops.constants import Identity
from selkit.graph.ops.convolution import Conv, ConvTranspose
from selkit.graph.ops.elus import HardSwish
from selkit.graph.ops.normalization import BatchNormalization
from selkit.graph.ops.shape import Transpose
from selkit.graph.ops.sigmoids import Erf, Gelu, Mish, Sigmoid, Softplus, Swish, Tanh
from selkit.graph.piecewise import continuous
from selkit.graph.program import Step

Rule = Callable[["Fusion", Step], Step | None]


class Fusion:
    """Steps by the value that they make, and the constants that they read.

    Attributes
    ----------
    constants
        With the stack axis; rules add to them.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        constants: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        keep: Sequence[str],
    ) -> None:
        self.constants = dict(constants)
        self._shapes = shapes
        self._steps = list(steps)
        self._maker: dict[str, Step] = {}
        self._readers: dict[str, int] = dict.fromkeys(keep, 1)
        for step in steps:
            for name in step.inputs:
                self._readers[name] = self._readers.get(name, 0) + 1

    def run(self) -> list[Step]:
        """Apply the first rule that fits to each step, in order."""
        done = []
        for step in self._steps:
            for rule in _RULES:
                joined = rule(self, step)
                if joined is not None:
                    step = joined  # noqa: PLW2901 - a rule may fit to what another one made
            self._maker.update(dict.fromkeys(step.outputs, step))
            done.append(step)
        return done

    def made_by(self, name: str, kind: type[Operator]) -> Step | None:
        """The step that makes a value, if its operator is of this type."""
        step = self._maker.get(name)
        return step if step is not None and isinstance(step.operator, kind) else None

    def maker(self, name: str) -> Step | None:
        """The step that makes a value."""
        return self._maker.get(name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """ONNX shape of a live value."""
        return self._shapes.get(name)

    def only_reader(self, name: str) -> bool:
        """Whether a value is read once and is no output."""
        return self._readers.get(name, 0) == 1

    def number(self, name: str) -> float | None:
        """A constant's value if it is one number."""
        value = self.constants.get(name)
        return float(value) if value is not None and value.numel() == 1 else None

    def add(self, name: str, value: Tensor) -> str:
        """Add a constant under a free name."""
        while name in self.constants:
            name += "'"
        self.constants[name] = value
        return name


def _elementwise(step: Step, operator: Operator, source: str) -> Step:
    """The step with one live input and another operator."""
    return dataclasses.replace(
        step, operator=operator, inputs=(source,), live=(True,), kind=operator.kind((True,))
    )


def transpose_pair(fusion: Fusion, step: Step) -> Step | None:
    """``Transpose(Transpose(x))`` is one Transpose, or nothing at all."""
    if not isinstance(step.operator, Transpose):
        return None
    first = fusion.made_by(step.inputs[0], Transpose)
    if first is None or not isinstance(first.operator, Transpose):
        return None
    if first.operator.perm is None or step.operator.perm is None:
        return None
    perm = tuple(first.operator.perm[axis] for axis in step.operator.perm)
    operator = Identity() if perm == tuple(range(len(perm))) else Transpose(perm)
    return dataclasses.replace(step, operator=operator, inputs=first.inputs)


def scaled_convolution(fusion: Fusion, step: Step) -> Step | None:
    """A convolution followed by one factor and one summand for each channel has other weights and bias."""
    source = next((name for name, live in zip(step.inputs, step.live, strict=True) if live), "")
    first = fusion.made_by(source, Conv) or fusion.made_by(source, ConvTranspose)
    if first is None or first.live != (True, *(False,) * (len(first.live) - 1)):
        return None
    if sum(step.live) != 1 or not fusion.only_reader(source):
        return None
    weights = fusion.constants[first.inputs[1]]
    transposed = isinstance(first.operator, ConvTranspose)
    groups = first.operator.group if isinstance(first.operator, Conv | ConvTranspose) else 1
    channels = weights.shape[2] * groups if transposed else weights.shape[1]
    change = _channel_change(fusion, step, channels, weights.ndim - 3)
    if change is None:
        return None
    factor, summand = change
    named = first.inputs[2] if len(first.inputs) > 2 else ""
    bias = fusion.constants[named] if named else weights.new_zeros((1, channels))
    if transposed:
        # weights are (inputs, outputs of one group, ...); each group of inputs has its own outputs
        shape = (1, groups, 1, channels // groups, *(1,) * (weights.ndim - 3))
        split = weights.reshape(1, groups, -1, *weights.shape[2:])
        scaled = (split * factor.reshape(shape)).reshape(weights.shape)
    else:
        scaled = weights * factor.reshape(1, -1, *(1,) * (weights.ndim - 2))
    inputs = (
        first.inputs[0],
        fusion.add(f"{first.inputs[1]}*", scaled),
        fusion.add(f"{step.outputs[0]}+", bias * factor + summand),
    )
    return dataclasses.replace(
        step, operator=first.operator, inputs=inputs, live=(True, False, False), kind=Kind.AFFINE
    )


def _channel_change(fusion: Fusion, step: Step, channels: int, dims: int) -> tuple[Tensor, Tensor] | None:
    """Factor and summand for each channel, of shape ``(1, channels)``, if that is all a step does."""
    operator = step.operator
    if isinstance(operator, BatchNormalization):
        scale, bias, mean, var = (fusion.constants[name] for name in step.inputs[1:])
        factor = scale / (var + operator.epsilon).sqrt()
        return factor, bias - mean * factor
    if not isinstance(operator, Add | Mul):
        return None
    value = fusion.constants[step.inputs[1] if step.live[0] else step.inputs[0]]
    shape = tuple(value.shape[1:])
    if len(shape) > dims + 2 or any(size != 1 for size in shape[max(len(shape) - dims, 0) :]):
        return None
    if shape[: max(len(shape) - dims, 0)] not in ((), (1,), (channels,), (1, 1), (1, channels)):
        return None
    row = value.reshape(1, -1).expand(1, channels)
    if isinstance(operator, Add):
        return torch.ones_like(row), row
    return row, torch.zeros_like(row)


def gated(fusion: Fusion, step: Step) -> Step | None:
    """``x sigmoid(x)``, ``x hardsigmoid(x)`` and ``x tanh(softplus(x))`` are one smooth function each."""
    if not isinstance(step.operator, Mul) or step.live != (True, True):
        return None
    for source, gate in (step.inputs, step.inputs[::-1]):
        if (made := fusion.made_by(gate, Sigmoid)) and made.inputs[0] == source:
            return _elementwise(step, Swish(), source)
        made = fusion.made_by(gate, HardSigmoid)
        if made and made.inputs[0] == source and _is_hard_swish(made.operator):
            return _elementwise(step, HardSwish(), source)
        made = fusion.made_by(gate, Tanh)
        inner = fusion.made_by(made.inputs[0], Softplus) if made else None
        if inner and inner.inputs[0] == source:
            return _elementwise(step, Mish(), source)
    return None


def _is_hard_swish(operator: Operator) -> bool:
    return (
        isinstance(operator, HardSigmoid)
        and math.isclose(operator.alpha, 1 / 6, rel_tol=1e-6)
        and operator.beta == 0.5
    )


def gelu(fusion: Fusion, step: Step) -> Step | None:
    """``x (1 + erf(x / sqrt(2))) / 2``, in whatever order its factors come, is Gelu."""
    if not isinstance(step.operator, Mul):
        return None
    factor, factors = _factors(fusion, step.outputs[0], step, depth=3)
    if not math.isclose(factor, 0.5, rel_tol=1e-6) or len(factors) != 2:
        return None
    for source, gate in (factors, factors[::-1]):
        plus = fusion.made_by(gate, Add)
        if plus is None or sum(plus.live) != 1:
            continue
        live, other = plus.inputs if plus.live[0] else plus.inputs[::-1]
        erf = fusion.made_by(live, Erf)
        if fusion.number(other) != 1 or erf is None:
            continue
        inner = fusion.made_by(erf.inputs[0], Mul) or fusion.made_by(erf.inputs[0], Div)
        if inner is None:
            continue
        scale, names = _factors(fusion, erf.inputs[0], inner, depth=1)
        if names == [source] and math.isclose(scale, math.sqrt(0.5), rel_tol=1e-6):
            return _elementwise(step, Gelu(), source)
    return None


def _factors(fusion: Fusion, name: str, step: Step | None, depth: int) -> tuple[float, list[str]]:
    """A value as one number times live values, looking through ``depth`` products."""
    if step is None or depth == 0:
        return 1.0, [name]
    if isinstance(step.operator, Div):
        number = fusion.number(step.inputs[1])
        if number is None or number == 0 or step.live != (True, False):
            return 1.0, [name]
        factor, rest = _factors(fusion, step.inputs[0], _product(fusion, step.inputs[0]), depth - 1)
        return factor / number, rest
    total = 1.0
    live: list[str] = []
    for value, alive in zip(step.inputs, step.live, strict=True):
        if alive:
            factor, rest = _factors(fusion, value, _product(fusion, value), depth - 1)
            total, live = total * factor, [*live, *rest]
            continue
        number = fusion.number(value)
        if number is None:
            return 1.0, [name]
        total *= number
    return total, live


def _product(fusion: Fusion, name: str) -> Step | None:
    return fusion.made_by(name, Mul) or fusion.made_by(name, Div)


_RULES: tuple[Rule, ...] = (transpose_pair, scaled_convolution, gated, gelu, continuous)
