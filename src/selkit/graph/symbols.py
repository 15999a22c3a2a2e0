"""Write ONNX nodes as one writes torch: a symbol stands for a value of a graph that is being built.

A :class:`Symbol` has the operators and the methods of a tensor that elementwise formulas use, so a formula
that is written for tensors (a smooth operator's derivative, say) also writes the nodes that compute it.
Each symbol knows what it depends on, and so in which part of the graph it has to be computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selkit.graph.ops.base import UnsupportedAttribute, broadcast

if TYPE_CHECKING:
    from selkit.graph.tape import Tape

Shape = tuple[int, ...]


class Uses(IntFlag):
    """What a value depends on."""

    NOTHING = 0
    SAMPLE = 1
    TARGET = 2
    REFERENCE = 4


@dataclass(frozen=True, eq=False)
class Symbol:
    """A value of the graph that a :class:`Tape` records.

    Attributes
    ----------
    tape
        Where its node is.
    name
        In the graph.
    shape
        For one sample and one reference; a value that uses the references has as many rows as a chunk.
    dtype
        Of its elements.
    uses
        What it depends on.
    value
        Its elements, if it is stored in the graph.
    """

    tape: Tape
    name: str
    shape: Shape
    dtype: torch.dtype
    uses: Uses
    value: Tensor | None = field(default=None, repr=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Let torch's functions write nodes."""
        written = _FUNCTIONS.get(function)
        if written is None:
            return NotImplemented
        return written(*args, **(kwargs or {}))

    def _with(self, op: str, other: Symbol | float | Tensor, *, swap: bool = False) -> Symbol:
        right = self.tape.lift(other, self.dtype)
        pair = (right, self) if swap else (self, right)
        dtype = torch.bool if op in _COMPARISONS else self.dtype
        return self.tape.op(op, *pair, shape=broadcast(self.shape, right.shape), dtype=dtype)

    def __add__(self, other: Any) -> Symbol:
        return self._with("Add", other)

    def __radd__(self, other: Any) -> Symbol:
        return self._with("Add", other)

    def __sub__(self, other: Any) -> Symbol:
        return self._with("Sub", other)

    def __rsub__(self, other: Any) -> Symbol:
        return self._with("Sub", other, swap=True)

    def __mul__(self, other: Any) -> Symbol:
        return self._with("Mul", other)

    def __rmul__(self, other: Any) -> Symbol:
        return self._with("Mul", other)

    def __truediv__(self, other: Any) -> Symbol:
        if isinstance(other, float | int):
            return self._with("Mul", 1 / other)  # cheaper
        return self._with("Div", other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self._with("Div", other, swap=True)

    def __pow__(self, exponent: float) -> Symbol:
        if exponent == 2:
            return self * self
        return self._with("Pow", exponent)

    def __gt__(self, other: Any) -> Symbol:
        return self._with("Greater", other)

    def __lt__(self, other: Any) -> Symbol:
        return self._with("Less", other)

    def __ge__(self, other: Any) -> Symbol:
        return self._with("GreaterOrEqual", other)

    def maximum(self, other: Any) -> Symbol:
        """The larger of two."""
        return self._with("Max", other)

    def minimum(self, other: Any) -> Symbol:
        """The smaller of two."""
        return self._with("Min", other)

    def clamp(self, min: float | None = None, max: float | None = None) -> Symbol:  # noqa: A002 - torch's names
        """Limit to a range."""
        low = self if min is None else self.maximum(min)
        return low if max is None else low.minimum(max)

    def _unary(self, op: str) -> Symbol:
        return self.tape.op(op, self, shape=self.shape, dtype=self.dtype)

    def __neg__(self) -> Symbol:
        return self._unary("Neg")

    def exp(self) -> Symbol:
        """Exponential."""
        return self._unary("Exp")

    def log(self) -> Symbol:
        """Logarithm."""
        return self._unary("Log")

    def sqrt(self) -> Symbol:
        """Square root."""
        return self._unary("Sqrt")

    def rsqrt(self) -> Symbol:
        """One over the square root."""
        return self.sqrt().reciprocal()

    def reciprocal(self) -> Symbol:
        """One over the value."""
        return self._unary("Reciprocal")

    def square(self) -> Symbol:
        """The value times itself."""
        return self * self

    def sigmoid(self) -> Symbol:
        """``1 / (1 + exp(-x))``."""
        return self._unary("Sigmoid")

    def tanh(self) -> Symbol:
        """Hyperbolic tangent."""
        return self._unary("Tanh")

    def abs(self) -> Symbol:
        """Absolute value."""
        return self._unary("Abs")

    def relu(self) -> Symbol:
        """``max(x, 0)``."""
        return self._unary("Relu")

    def sin(self) -> Symbol:
        """Sine."""
        return self._unary("Sin")

    def cos(self) -> Symbol:
        """Cosine."""
        return self._unary("Cos")


def where(condition: Symbol, a: Any, b: Any) -> Symbol:
    """``a`` where a condition holds, else ``b``."""
    tape = condition.tape
    dtype = next((v.dtype for v in (a, b) if isinstance(v, Symbol)), tape.dtype)
    a, b = tape.lift(a, dtype), tape.lift(b, dtype)
    shape = broadcast(condition.shape, a.shape, b.shape)
    return tape.op("Where", condition, a, b, shape=shape, dtype=dtype)


def _log_add_exp(a: Symbol, b: Symbol) -> Symbol:
    if b.value is None or bool(b.value.any()):
        raise UnsupportedAttribute("logaddexp of two values that are not constant cannot be written")
    return a.tape.op("Softplus", a, shape=a.shape)


def _ndtr(x: Symbol) -> Symbol:
    return (x.tape.op("Erf", x * math.sqrt(0.5), shape=x.shape) + 1.0) * 0.5


_COMPARISONS = frozenset({"Greater", "Less", "GreaterOrEqual", "Equal"})
_FUNCTIONS: dict[Any, Callable[..., Symbol]] = {
    torch.where: where,
    torch.logaddexp: _log_add_exp,
    torch.zeros_like: lambda x: x.tape.lift(0.0, x.dtype),
    torch.special.ndtr: _ndtr,
}
