"""Reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.activations import Abs
from selkit.graph.ops.arithmetic import Add, Mul, Sub
from selkit.graph.ops.base import (
    Affine,
    Composite,
    Decomposition,
    Maximum,
    Operator,
    UnsupportedAttribute,
    floating,
    integers,
    name_of,
    register,
)
from selkit.graph.ops.shape import Concat, Reshape, Slice, Transpose
from selkit.graph.ops.smooth import Exp, Log, Power, Sqrt


@dataclass(frozen=True)
class Reduction(Operator):
    """What reductions share: ``axes`` as attribute or input, ``keepdims``, no axes meaning all of them."""

    LIVE = 1

    axes: tuple[int, ...] | None = None
    keepdims: int = 1
    noop_with_empty_axes: int = 0

    def dims(self, x: Tensor, axes: Tensor | None) -> tuple[int, ...]:
        """Torch axes to reduce, ascending."""
        given = (self.axes or ()) if axes is None else integers(axes)
        rank = x.ndim - 1
        if any(not -rank <= axis < rank for axis in given):
            raise UnsupportedAttribute(f"axes {given} are out of range for {rank} axes")
        if not given:
            return () if self.noop_with_empty_axes else tuple(range(1, x.ndim))
        return tuple(sorted({axis % rank + 1 for axis in given}))

    def transparent(self, x: Tensor, axes: Tensor | None = None) -> bool:
        return not self.dims(x, axes)

    def places(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        """ONNX axes that are reduced, for symbols."""
        x, axes = [*inputs, None][:2]
        sample = torch.empty((1, *x.shape), device="meta")
        return tuple(dim - 1 for dim in self.dims(sample, None if axes is None else axes.value.unsqueeze(0)))

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Axes become an input."""
        name, axes = name_of(type(self)), tape.lift(list(self.places(inputs)))
        return (tape.op(name, inputs[0], axes, shape=shapes[0], keepdims=self.keepdims),)

    def kept(self, pull: Any) -> Any:
        """The outputs' multipliers with the reduced axes, of size 1."""
        places = self.places(pull.x)
        grad, last = pull.grad, 0
        sizes = []
        for axis in range(pull.x[0].ndim):
            if axis in places:
                sizes.append(1)
                last += bool(self.keepdims)
            else:
                sizes.append(grad.shape[last])
                last += 1
        return pull.tape.reshape(grad, tuple(sizes))


@register("ReduceSum", since=(1, 11, 13))
@dataclass(frozen=True)
class ReduceSum(Reduction, Affine):
    """Sum over axes."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        return (x.sum(dim=dims, keepdim=bool(self.keepdims), dtype=x.dtype) if dims else x,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.only(0, self.kept(pull)))

    def spread(self, live: Sequence[bool], x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.forward(x, axes)


@register("ReduceMean", since=(1, 11, 13, 18))
@dataclass(frozen=True)
class ReduceMean(Reduction, Affine):
    """Mean over axes."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        if not dims:
            return (x,)
        if not floating(x):
            total = x.sum(dim=dims, keepdim=bool(self.keepdims), dtype=x.dtype)
            return (torch.div(total, math.prod(x.shape[dim] for dim in dims), rounding_mode="trunc"),)
        return (x.mean(dim=dims, keepdim=bool(self.keepdims)),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        count = math.prod(pull.x[0].shape[axis] for axis in self.places(pull.x))
        return tuple(pull.only(0, self.kept(pull) / count))

    def spread(self, live: Sequence[bool], x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.forward(x, axes)


@dataclass(frozen=True)
class _Extreme(Reduction, Maximum):
    """A candidate's index is its position in the reduced axes, flattened."""

    def _last(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Reduced axes behind the others, flattened."""
        kept = [axis for axis in range(x.ndim) if axis not in dims]
        moved = x.permute(*kept, *dims)
        return moved.reshape(*moved.shape[: len(kept)], math.prod(x.shape[axis] for axis in dims))

    def _shape(self, x: Tensor, dims: Sequence[int]) -> list[int]:
        sizes = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
        return sizes if self.keepdims else [s for axis, s in enumerate(sizes) if axis not in dims]

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        if not dims:
            return (x,)
        extreme = x.amax if self.sign > 0 else x.amin
        return (extreme(dim=dims, keepdim=bool(self.keepdims)),)

    def argmax(self, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = self.dims(x, axes)
        last = self._last(x, dims)
        index = last.argmax(-1) if self.sign > 0 else last.argmin(-1)
        return index.reshape(self._shape(x, dims))

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The change goes to where the more extreme value is."""
        return tuple(pull.only(0, pull.extreme_of(self.places(pull.x), self.sign, self.kept(pull))))

    def pick(self, index: Tensor, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = self.dims(x, axes)
        last = self._last(x, dims)
        last = last.expand(index.shape[0], *last.shape[1:])
        return last.gather(-1, index.reshape(*last.shape[:-1], 1)).reshape(index.shape)


@register("ReduceMax", since=(1, 11, 12, 13, 18, 20))
@dataclass(frozen=True)
class ReduceMax(_Extreme):
    """Maximum over axes."""


@register("ReduceMin", since=(1, 11, 12, 13, 18, 20))
@dataclass(frozen=True)
class ReduceMin(_Extreme):
    """Minimum over axes."""

    @property
    def sign(self) -> int:
        """-1: a minimum."""
        return -1


@dataclass(frozen=True)
class _Composed(Reduction, Composite):
    """A function of a sum of functions."""

    def _sum(self, build: Decomposition, x: str, axes: Sequence[str]) -> str:
        return build(ReduceSum(self.axes, self.keepdims, self.noop_with_empty_axes), x, *axes)

    def transparent(self, x: Tensor, axes: Tensor | None = None) -> bool:
        return False


@register("ReduceL1", since=(1, 11, 13, 18))
@dataclass(frozen=True)
class ReduceL1(_Composed):
    """Sum of absolute values."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        return (x.abs().sum(dims, keepdim=bool(self.keepdims), dtype=x.dtype) if dims else x.abs(),)

    def decompose(self, build: Decomposition, x: str, *axes: str) -> tuple[str, ...]:
        return (self._sum(build, build(Abs(), x), axes),)


@register("ReduceSumSquare", since=(1, 11, 13, 18))
@dataclass(frozen=True)
class ReduceSumSquare(_Composed):
    """Sum of squares."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        return (x.square().sum(dims, keepdim=bool(self.keepdims), dtype=x.dtype) if dims else x.square(),)

    def decompose(self, build: Decomposition, x: str, *axes: str) -> tuple[str, ...]:
        return (self._sum(build, build(Power(2.0), x), axes),)


@register("ReduceL2", since=(1, 11, 13, 18))
@dataclass(frozen=True)
class ReduceL2(ReduceSumSquare):
    """Root of the sum of squares."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        return (super().forward(x, axes)[0].to(x.dtype).sqrt().to(x.dtype),)

    def decompose(self, build: Decomposition, x: str, *axes: str) -> tuple[str, ...]:
        return (build(Sqrt(), *super().decompose(build, x, *axes)),)


@register("ReduceLogSum", since=(1, 11, 13, 18, 28))
@dataclass(frozen=True)
class ReduceLogSum(_Composed):
    """Logarithm of the sum."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        return ((x.sum(dims, keepdim=bool(self.keepdims)) if dims else x).log(),)

    def decompose(self, build: Decomposition, x: str, *axes: str) -> tuple[str, ...]:
        return (build(Log(), self._sum(build, x, axes)),)


@register("ReduceLogSumExp", since=(1, 11, 13, 18, 28))
@dataclass(frozen=True)
class ReduceLogSumExp(_Composed):
    """Logarithm of the sum of exponentials, around the maximum."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        return (x.logsumexp(dims, keepdim=bool(self.keepdims)) if dims else x,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        places = self.places(pull.x)
        return tuple(pull.only(0, self.kept(pull) * pull.shares(places)[2] if places else pull.grad))

    def decompose(self, build: Decomposition, x: str, *axes: str) -> tuple[str, ...]:
        top = build(ReduceMax(self.axes, 1, self.noop_with_empty_axes), x, *axes)
        sums = ReduceSum(self.axes, 1, self.noop_with_empty_axes)
        total = build(sums, build(Exp(), build(Sub(), x, top)), *axes)
        result = build(Add(), build(Log(), total), top)
        if self.keepdims:
            return (result,)
        # the maximum had to keep its axes: the result drops them
        kept = ReduceMax(self.axes, 0, self.noop_with_empty_axes)
        return (build(kept, result, *axes),)


@register("ReduceProd", since=(1, 11, 13, 18))
@dataclass(frozen=True)
class ReduceProd(_Composed):
    """Product over axes."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        for dim in reversed(self.dims(x, axes)):
            x = x.prod(dim, keepdim=bool(self.keepdims), dtype=x.dtype)
        return (x,)

    def decompose(self, build: Decomposition, x: str, *axes: str) -> tuple[str, ...]:
        """Products of pairs, until one is left."""
        shape = build.shapes[0] or ()
        given = build.constants[1] if axes and axes[0] else None
        dims = self.dims(torch.empty((1, *shape), device="meta"), given)
        gone = [dim - 1 for dim in dims]
        kept = [axis for axis in range(len(shape)) if axis not in gone]
        rows = build(Transpose((*kept, *gone)), x) if kept or gone else x
        count = math.prod(shape[axis] for axis in gone)
        outer = [shape[axis] for axis in kept]
        rows = build(Reshape(allowzero=1), rows, torch.tensor([*outer, count], dtype=torch.int64))
        while count > 1:
            half = count // 2
            pairs = (build(Slice((start,), (start + half,), (-1,)), rows) for start in (0, half))
            rest = build(Slice((2 * half,), (count,), (-1,)), rows) if count % 2 else ""
            rows = build(Mul(), *pairs)
            rows = build(Concat(-1), rows, rest) if rest else rows
            count = half + count % 2
        sizes = [1 if axis in gone else size for axis, size in enumerate(shape)]
        sizes = sizes if self.keepdims else outer
        return (build(Reshape(allowzero=1), rows, torch.tensor(sizes, dtype=torch.int64)),)
