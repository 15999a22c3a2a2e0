"""Recurrent layers, written out step by step over the positions of a sequence.

All follow one scheme: what enters from the input is one product for all positions; at each position, a
subclass's :meth:`_cell` makes the next state from it and the state before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from selkit.graph.ops.activations import Clip, HardSigmoid, LeakyRelu, Relu, ThresholdedRelu
from selkit.graph.ops.arithmetic import Add, Mul, Sub
from selkit.graph.ops.base import (
    Composite,
    Decomposition,
    Kind,
    UnsupportedAttribute,
    register,
)
from selkit.graph.ops.elus import Elu
from selkit.graph.ops.matmul import MatMul
from selkit.graph.ops.parts import concat, cut, known_integers, real, reshape, scaled, take, transpose
from selkit.graph.ops.shape import Where
from selkit.graph.ops.sigmoids import Sigmoid, Softplus, Softsign, Tanh

Function = Callable[[Decomposition, str], str]
State = tuple[str, ...]

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_DEFAULTS = {
    "relu": (None, None),
    "tanh": (None, None),
    "sigmoid": (None, None),
    "softsign": (None, None),
    "softplus": (None, None),
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01, None),
    "thresholdedrelu": (1.0, None),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, None),
}
"""Default parameters of each activation; ``None`` where it has none."""
_PLAIN = {"relu": Relu, "tanh": Tanh, "sigmoid": Sigmoid, "softsign": Softsign, "softplus": Softplus}
LONGEST = 2**12
"""Most positions, over all directions, that are written out."""


def _activation(name: str, alpha: float, beta: float) -> Function:
    """An activation by its name in ONNX, in lower case."""

    def apply(build: Decomposition, x: str) -> str:
        match name:
            case "affine":
                return build(Add(), scaled(build, x, alpha), real(beta))
            case "scaledtanh":
                return scaled(build, build(Tanh(), scaled(build, x, beta)), alpha)
            case "leakyrelu":
                return build(LeakyRelu(alpha), x)
            case "thresholdedrelu":
                return build(ThresholdedRelu(alpha), x)
            case "hardsigmoid":
                return build(HardSigmoid(alpha, beta), x)
            case "elu":
                return build(Elu(alpha), x)
            case _:
                return build(_PLAIN[name](), x)

    return apply


@dataclass(frozen=True)
class Weights:
    """What one direction of a layer has.

    Attributes
    ----------
    recurrent
        Transposed matrix that the state is multiplied by: ``(hidden, gates * hidden)``.
    bias
        Of the state, for each gate (GRU alone keeps it apart); "" for none.
    peepholes
        Of LSTM; "" for none.
    functions
        The activations.
    """

    recurrent: str
    bias: str
    peepholes: str
    functions: Sequence[Function]


@dataclass(frozen=True)
class _Recurrent(Composite):
    """A layer over a sequence."""

    NOTE = "written out over the positions; their number and the sequence lengths must be constant"
    GATES: ClassVar[int] = 1
    STATES: ClassVar[int] = 1
    FUNCTIONS: ClassVar[tuple[str, ...]] = ("tanh",)

    hidden_size: int = 0
    direction: str = "forward"
    activations: tuple[str, ...] = ()
    activation_alpha: tuple[float, ...] = ()
    activation_beta: tuple[float, ...] = ()
    clip: float | None = None
    layout: int = 0

    def __post_init__(self) -> None:
        if self.direction not in _DIRECTIONS:
            raise UnsupportedAttribute(f"direction={self.direction!r} is not one of {', '.join(_DIRECTIONS)}")
        if self.layout not in (0, 1):
            raise UnsupportedAttribute(f"layout={self.layout} is not 0 or 1")
        wanted = len(self._backwards) * len(self.FUNCTIONS)
        if self.activations and len(self.activations) != wanted:
            raise UnsupportedAttribute(f"has {len(self.activations)} activations; {wanted} are needed")
        unknown = [name for name in self.activations if name.lower() not in _DEFAULTS]
        if unknown:
            raise UnsupportedAttribute(f"activations {', '.join(unknown)} are not supported")

    @property
    def _backwards(self) -> tuple[bool, ...]:
        """For each direction, whether it starts at the end."""
        return _DIRECTIONS[self.direction]

    def kind(self, live: Sequence[bool]) -> Kind:
        """Refuse sequence lengths that depend on the model's input."""
        if len(live) > 4 and live[4]:
            raise UnsupportedAttribute("sequence_lens must not depend on the model's input")
        return super().kind(live)

    def _functions(self) -> list[list[Function]]:
        """Activations of each direction; parameters are given to those that have some, in order."""
        names = [name.lower() for name in self.activations] or [*self.FUNCTIONS] * len(self._backwards)
        given = iter(self.activation_alpha), iter(self.activation_beta)
        functions = []
        for name in names:
            if name == "scaledtanh" and not (self.activation_alpha and self.activation_beta):
                raise UnsupportedAttribute("ScaledTanh needs activation_alpha and activation_beta")
            alpha, beta = (
                1.0 if default is None else next(values, default)
                for default, values in zip(_DEFAULTS[name], given, strict=True)
            )
            functions.append(_activation(name, alpha, beta))
        count = len(self.FUNCTIONS)
        return [functions[start : start + count] for start in range(0, len(functions), count)]

    def decompose(self, build: Decomposition, *inputs: str) -> tuple[str, ...]:
        """Each direction by itself, side by side."""
        x, w, r, b, _, *initial = (*inputs, *[""] * 5)[:8]
        peepholes = initial.pop(2) if self.STATES == 2 else ""
        shape = build.shapes[0] or ()
        if len(shape) != 3:
            raise UnsupportedAttribute(f"needs an input with 3 axes, not {len(shape)}")
        length, batch, hidden = shape[self.layout], shape[1 - self.layout], (build.shapes[2] or ())[-1]
        if length * len(self._backwards) > LONGEST:
            raise UnsupportedAttribute(f"is written out over at most {LONGEST} positions, not {length}")
        if self.layout:
            x = transpose(build, x, (1, 0, 2))
        lengths = known_integers(build, 4) or (length,) * batch
        if len(lengths) != batch or not all(1 <= one <= length for one in lengths):
            raise UnsupportedAttribute(f"sequence_lens={list(lengths)} are not {batch} from 1 to {length}")
        rows, last = [], []
        for place, (backward, functions) in enumerate(zip(self._backwards, self._functions(), strict=True)):
            weights, entering = self._weights(build, x, (w, r, b, peepholes), place, functions)
            state = tuple(
                take(build, start, self.layout, place)
                if start
                else build(Mul(), torch.zeros(batch, hidden, dtype=torch.float64), real(1.0))
                for start in initial[: self.STATES]
            )
            steps, state = self._run(build, entering, weights, state, lengths, backward=backward)
            rows.append(concat(build, [reshape(build, one, (1, 1, batch, hidden)) for one in steps], 0))
            last.append([reshape(build, one, (1, batch, hidden)) for one in state])
        y = concat(build, rows, 1)
        ends = [concat(build, list(states), 0) for states in zip(*last, strict=True)]
        if self.layout:
            y = transpose(build, y, (2, 0, 1, 3))
            ends = [transpose(build, end, (1, 0, 2)) for end in ends]
        return y, *ends

    def _weights(
        self,
        build: Decomposition,
        x: str,
        given: Sequence[str],
        place: int,
        functions: Sequence[Function],
    ) -> tuple[Weights, str]:
        """Parameters of one direction, and what enters its gates at all positions."""
        w, r, b, p = (take(build, value, 0, place) if value else "" for value in given)
        entering = build(MatMul(), x, transpose(build, w, (1, 0)))
        apart = ""
        if b:
            size = (build.shapes[3] or ())[-1]
            entering = build(Add(), entering, cut(build, b, 0, 0, size // 2))
            apart = cut(build, b, 0, size // 2, size)
        return Weights(transpose(build, r, (1, 0)), apart, p, functions), entering

    def _run(
        self,
        build: Decomposition,
        entering: str,
        weights: Weights,
        state: State,
        lengths: Sequence[int],
        *,
        backward: bool,
    ) -> tuple[list[str], State]:
        """The output at each position, and the last state."""
        count = (build.shapes[0] or ())[self.layout]
        steps = [""] * count
        for position in reversed(range(count)) if backward else range(count):
            after = self._cell(build, take(build, entering, 0, position), state, weights)
            inside = torch.tensor(lengths).reshape(-1, 1) > position
            steps[position] = after[0]
            if not bool(inside.all()):
                # behind a sequence's end the state stays, and the output is 0
                steps[position] = build(Where(), inside, after[0], real(0.0))
                after = tuple(build(Where(), inside, new, old) for new, old in zip(after, state, strict=True))
            state = after
        return steps, state

    def _cell(self, build: Decomposition, x: str, state: State, weights: Weights) -> State:
        """The next state, the output first."""
        raise TypeError(f"{type(self).__name__} does not define _cell")

    def _gate(self, build: Decomposition, x: str, index: int) -> str:
        """What enters one gate."""
        hidden = (build.shapes[2] or ())[-1]
        return cut(build, x, -1, index * hidden, (index + 1) * hidden)

    def _clipped(self, build: Decomposition, x: str) -> str:
        """What an activation sees."""
        return x if self.clip is None else build(Clip(), x, real(-self.clip), real(self.clip))

    def _summed(self, build: Decomposition, x: str, h: str, weights: Weights) -> str:
        """What enters all gates, from the input and from the state."""
        total = build(Add(), x, build(MatMul(), h, weights.recurrent))
        return build(Add(), total, weights.bias) if weights.bias else total


@register("RNN", since=(7, 14, 22))
@dataclass(frozen=True)
class RNN(_Recurrent):
    """A recurrent layer: the activation of the input and the state before."""

    OUTPUTS = 2

    def _cell(self, build: Decomposition, x: str, state: State, weights: Weights) -> State:
        total = self._summed(build, x, state[0], weights)
        return (weights.functions[0](build, self._clipped(build, total)),)


@register("GRU", since=(7, 14, 22))
@dataclass(frozen=True)
class GRU(_Recurrent):
    """Gated recurrent units."""

    OUTPUTS = 2
    GATES = 3
    FUNCTIONS = ("sigmoid", "tanh")

    linear_before_reset: int = 0

    def _cell(self, build: Decomposition, x: str, state: State, weights: Weights) -> State:
        (h,) = state
        hidden = (build.shapes[2] or ())[-1]
        gate, activation = weights.functions
        own = cut(build, weights.recurrent, 1, 0, 2 * hidden)
        total = build(Add(), cut(build, x, -1, 0, 2 * hidden), build(MatMul(), h, own))
        if weights.bias:
            total = build(Add(), total, cut(build, weights.bias, 0, 0, 2 * hidden))
        gates = gate(build, self._clipped(build, total))
        update, reset = self._gate(build, gates, 0), self._gate(build, gates, 1)
        inner = cut(build, weights.recurrent, 1, 2 * hidden, 3 * hidden)
        bias = cut(build, weights.bias, 0, 2 * hidden, 3 * hidden) if weights.bias else ""
        entering = self._gate(build, x, 2)
        if self.linear_before_reset:
            past = build(MatMul(), h, inner)
            past = build(Mul(), reset, build(Add(), past, bias) if bias else past)
        else:
            past = build(MatMul(), build(Mul(), reset, h), inner)
            past = build(Add(), past, bias) if bias else past
        new = activation(build, self._clipped(build, build(Add(), entering, past)))
        return (build(Add(), new, build(Mul(), update, build(Sub(), h, new))),)


@register("LSTM", since=(7, 14, 22))
@dataclass(frozen=True)
class LSTM(_Recurrent):
    """Long short-term memory, with peepholes and coupled gates."""

    OUTPUTS = 3
    GATES = 4
    STATES = 2
    FUNCTIONS = ("sigmoid", "tanh", "tanh")

    input_forget: int = 0

    def _cell(self, build: Decomposition, x: str, state: State, weights: Weights) -> State:
        h, c = state
        gate, activation, squash = weights.functions
        total = self._summed(build, x, h, weights)

        def opened(index: int, peephole: int, memory: str) -> str:
            value = self._gate(build, total, index)
            if weights.peepholes:
                own = self._gate(build, weights.peepholes, peephole)
                value = build(Add(), value, build(Mul(), own, memory))
            return gate(build, self._clipped(build, value))

        # ONNX' order: input, output, forget, cell; of the peepholes: input, output, forget
        enter = opened(0, 0, c)
        keep = build(Sub(), real(1.0), enter) if self.input_forget else opened(2, 2, c)
        new = activation(build, self._clipped(build, self._gate(build, total, 3)))
        c = build(Add(), build(Mul(), keep, c), build(Mul(), enter, new))
        return build(Mul(), opened(1, 1, c), squash(build, c)), c
