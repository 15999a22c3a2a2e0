"""Reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from selkit.graph.ops.base import Affine, Maximum, Operator, UnsupportedAttribute, integers, register


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


@register("ReduceSum", since=(1, 11, 13))
@dataclass(frozen=True)
class ReduceSum(Reduction, Affine):
    """Sum over axes."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        return (x.sum(dim=dims, keepdim=bool(self.keepdims), dtype=x.dtype) if dims else x,)

    def spread(self, live: Sequence[bool], x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.forward(x, axes)


@register("ReduceMean", since=(1, 11, 13, 18))
@dataclass(frozen=True)
class ReduceMean(Reduction, Affine):
    """Mean over axes."""

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = self.dims(x, axes)
        return (x.mean(dim=dims, keepdim=bool(self.keepdims)) if dims else x,)

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
