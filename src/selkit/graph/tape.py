"""Record the nodes of a graph that is being built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from onnx import defs, helper
from torch import Tensor

from selkit.graph import doubles
from selkit.graph.ops.base import Operator, UnsupportedAttribute, broadcast
from selkit.graph.symbols import Shape, Symbol, Uses

OPSET = 20
"""Opset of the nodes that are written: the newest that onnxruntime 1.18 runs in full."""


@dataclass(frozen=True, eq=False)
class Written:
    """One node: what it reads and makes, and its ONNX attributes."""

    op: str
    inputs: tuple[Symbol | None, ...]
    outputs: tuple[Symbol, ...]
    attributes: dict[str, Any]
    uses: Uses


class Tape:
    """Nodes in the order in which they were written; the same node is written once.

    Parameters
    ----------
    dtype
        Of real numbers.
    rows
        How many references are explained at once. Above 1, every value's first axis must be of size 1, and
        becomes the axis of the references.
    ahead
        Whether what depends on the references alone is computed ahead, and costs nothing later.
    """

    def __init__(self, dtype: torch.dtype, rows: int = 1, *, ahead: bool = True) -> None:
        self.dtype = dtype
        self.rows = rows
        self.ahead = ahead
        self.nodes: list[Written] = []
        self.sizes: dict[str, tuple[Symbol, Symbol]] = {}
        self._known: dict[Any, tuple[Symbol, ...]] = {}
        self._count = 0

    def _name(self, hint: str) -> str:
        self._count += 1
        return f"selkit.{hint}.{self._count}"

    def source(self, name: str, shape: Shape, uses: Uses, dtype: torch.dtype | None = None) -> Symbol:
        """A value that no node makes."""
        return Symbol(self, name, tuple(shape), dtype or self.dtype, uses)

    def stored(self, value: Tensor, name: str = "constant") -> Symbol:
        """A value that is stored in the graph."""
        value = value.detach().cpu().contiguous()
        return Symbol(self, self._name(name), tuple(value.shape), value.dtype, Uses.NOTHING, value)

    def unit(self, r: Symbol) -> Symbol:
        """A number that brings a value of the references to about 1; stored once the references are known."""
        if r.name not in self.sizes:
            axes, shape = list(range(1, r.ndim)), (*r.shape[:1], *(1,) * (r.ndim - 1))
            size = self.op("ReduceMean", r.abs(), self.lift(axes), shape=shape, keepdims=1)
            self.sizes[r.name] = self.stored(torch.ones((), dtype=self.dtype), "unit"), size
        return self.sizes[r.name][0]

    def lift(self, value: Any, dtype: torch.dtype | None = None) -> Symbol:
        """A number, sequence of integers or tensor as a symbol; numbers are shared."""
        if isinstance(value, Symbol):
            return value
        if isinstance(value, Tensor):
            return self.stored(value)
        if isinstance(value, float | int):
            tensor = torch.tensor(value, dtype=dtype or self.dtype)
        else:
            tensor = torch.tensor(np.asarray(value, dtype=np.int64))
        key = ("stored", tuple(tensor.reshape(-1).tolist()), tuple(tensor.shape), tensor.dtype)
        if key not in self._known:
            self._known[key] = (self.stored(tensor),)
        return self._known[key][0]

    def ops(
        self,
        op: str,
        *inputs: Any,
        shapes: Sequence[Shape],
        dtypes: Sequence[torch.dtype] | None = None,
        **attributes: Any,
    ) -> tuple[Symbol, ...]:
        """Write a node with several outputs."""
        arguments = tuple(None if value is None else self.lift(value) for value in inputs)
        kinds = dtypes or [self.dtype] * len(shapes)
        if self.dtype == torch.float64 and kinds[0] == torch.float64:
            other = doubles.written(self, op, arguments, tuple(shapes[0]), attributes)
            if other is not None:
                return (other,)
        uses = Uses.NOTHING
        for argument in arguments:
            uses |= argument.uses if argument is not None else Uses.NOTHING
        names = tuple("" if argument is None else argument.name for argument in arguments)
        key = (op, names, tuple(sorted((k, repr(v)) for k, v in attributes.items())), len(shapes))
        if key not in self._known:
            outputs = tuple(
                Symbol(self, self._name(op), tuple(shape), kind, uses)
                for shape, kind in zip(shapes, kinds, strict=True)
            )
            self.nodes.append(Written(op, arguments, outputs, attributes, uses))
            self._known[key] = outputs
        return self._known[key]

    def op(
        self, op: str, *inputs: Any, shape: Shape, dtype: torch.dtype | None = None, **attributes: Any
    ) -> Symbol:
        """Write a node with one output and return it."""
        return self.ops(op, *inputs, shapes=[shape], dtypes=[dtype or self.dtype], **attributes)[0]

    def operator(
        self, operator: Operator, name: str, inputs: Sequence[Symbol | None], shapes: Sequence[Shape]
    ) -> tuple[Symbol, ...]:
        """Write an operator with its fields as attributes; what its schema lacks must be the default."""
        allowed = defs.get_schema(name, OPSET, "").attributes
        attributes = {
            entry.name: getattr(operator, entry.name)
            for entry in fields(operator)  # type: ignore[arg-type]
            if entry.name in allowed and getattr(operator, entry.name) not in (None, ())
        }
        lost = [
            entry.name
            for entry in fields(operator)  # type: ignore[arg-type]
            if entry.name not in allowed and getattr(operator, entry.name) != entry.default
        ]
        if lost:
            raise UnsupportedAttribute(
                f"its attribute(s) {', '.join(lost)} cannot be written in opset {OPSET}"
            )
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        return self.ops(name, *given, shapes=shapes, **attributes)

    def lifted(self, x: Symbol) -> Symbol:
        """A condition or whole number as a real number."""
        kind = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=self.dtype).numpy().dtype)
        return self.op("Cast", x, shape=x.shape, to=kind)

    def converted(self, x: Symbol, dtype: torch.dtype) -> Symbol:
        """Real numbers in another precision; what is stored is stored in it."""
        if x.dtype == dtype or not x.dtype.is_floating_point:
            return x
        if x.value is not None:
            key = ("converted", x.name, dtype)
            if key not in self._known:
                self._known[key] = (self.stored(x.value.to(dtype)),)
            return self._known[key][0]
        kind = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
        return self.op("Cast", x, shape=x.shape, dtype=dtype, to=kind)

    def winners(self, operator: Operator, x: Symbol, shape: Shape) -> tuple[Symbol, Symbol]:
        """A maximum over windows, and where it is among the elements of a row, flattened."""
        y, index = self.operator(operator, "MaxPool", [x], [shape, shape])
        index = Symbol(self, index.name, shape, torch.int64, index.uses)
        if self.rows > 1:
            index = self.op("Mod", index, self.lift([math.prod(x.shape[1:])]), shape=shape, dtype=torch.int64)
        small = self.op("Cast", index, shape=shape, dtype=torch.int32, to=6)
        return y, small

    def reshape(self, x: Symbol, shape: Shape) -> Symbol:
        """Same elements, another shape; the rows stay."""
        if x.shape == tuple(shape):
            return x
        if self.rows > 1 and x.uses & Uses.REFERENCE:
            return self.op("Reshape", x, self.lift((0, *shape[1:])), shape=shape, dtype=x.dtype)
        return self.op("Reshape", x, self.lift(shape), shape=shape, dtype=x.dtype, allowzero=1)

    def expand(self, x: Symbol, shape: Shape) -> Symbol:
        """Repeat axes of size 1."""
        if x.shape == tuple(shape):
            return x
        return self.op("Expand", x, self.lift(shape), shape=shape, dtype=x.dtype)

    def level(self, *values: Symbol) -> list[Symbol]:
        """Give values the same rows: those that do not use the references are repeated."""
        if self.rows == 1 or not any(value.uses & Uses.REFERENCE for value in values):
            return list(values)
        return [
            value
            if value.uses & Uses.REFERENCE
            else self.op(
                "Expand",
                value,
                self.lift((self.rows, *value.shape[1:])),
                shape=value.shape,
                dtype=value.dtype,
            )
            for value in values
        ]

    def sum(self, x: Symbol, axes: Sequence[int], *, keepdims: bool = True) -> Symbol:
        """Sum over axes."""
        if not axes:
            return x
        shape = tuple(1 if i in axes else s for i, s in enumerate(x.shape) if keepdims or i not in axes)
        return self.op("ReduceSum", x, self.lift(list(axes)), shape=shape, keepdims=int(keepdims))

    def transpose(self, x: Symbol, perm: Sequence[int]) -> Symbol:
        """Axes in another order."""
        if list(perm) == list(range(x.ndim)):
            return x
        return self.op("Transpose", x, shape=tuple(x.shape[i] for i in perm), dtype=x.dtype, perm=list(perm))

    def transposed(self, x: Symbol) -> Symbol:
        """The last two axes exchanged; what is stored is stored that way."""
        if x.value is not None:
            key = ("transposed", x.name)
            if key not in self._known:
                self._known[key] = (self.stored(x.value.mT, "transposed"),)
            return self._known[key][0]
        return self.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))

    def matmul(self, a: Symbol, b: Symbol) -> Symbol:
        """Matrix product of values with at least two axes."""
        shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return self.op("MatMul", a, b, shape=shape)

    def concat(self, values: Sequence[Symbol], axis: int) -> Symbol:
        """Values side by side."""
        values = self.level(*values)
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.op("Concat", *values, shape=tuple(shape), dtype=values[0].dtype, axis=axis)

    def slice(self, x: Symbol, axis: int, start: int, stop: int) -> Symbol:
        """A range of one axis."""
        if (start, stop) == (0, x.shape[axis]):
            return x
        shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
        return self.op(
            "Slice", x, self.lift([start]), self.lift([stop]), self.lift([axis]), shape=shape, dtype=x.dtype
        )

    def pad(self, x: Symbol, sides: Sequence[tuple[int, int]]) -> Symbol:
        """Zeros around a value, or fewer elements for negative sides."""
        if not any(map(any, sides)):
            return x
        shape = tuple(size + sum(side) for size, side in zip(x.shape, sides, strict=True))
        pads = [side[0] for side in sides] + [side[1] for side in sides]
        return self.op("Pad", x, self.lift(pads), shape=shape, dtype=x.dtype)
