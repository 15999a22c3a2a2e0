"""Reading and writing elements at constant positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from selkit.graph.ops.base import Affine, Kind, Movement, UnsupportedAttribute, radii, register

_REDUCTIONS = {"none": "", "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positions(indices: Tensor, length: int, device: torch.device) -> Tensor:
    """Indices of one axis, counted from its start."""
    index = indices.to(device, torch.int64)
    if not index.is_meta and bool(((index < -length) | (index >= length)).any()):
        raise UnsupportedAttribute(f"has an index outside of {length} elements")
    return torch.where(index < 0, index + length, index)


@register("GatherElements", since=(11, 13))
@dataclass(frozen=True)
class GatherElements(Movement):
    """One constant index for each element of the result."""

    LIVE = 1

    axis: int = 0

    def forward(self, x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        dim = self.axis + 1 if self.axis >= 0 else self.axis
        index = _positions(indices, x.shape[dim], x.device)
        return (x.gather(dim, index.expand(x.shape[0], *index.shape[1:])),)


def _columns(indices: Tensor, x: Tensor, batch: int = 0) -> tuple[Any, ...]:
    """Index of all points of the stack at these positions; the first ``batch`` axes belong together."""
    index = indices[0].to(x.device, torch.int64)
    around = []
    for axis in range(batch):
        shape = [1] * (index.ndim - 1)
        shape[axis] = -1
        around.append(torch.arange(x.shape[axis + 1], device=x.device).reshape(shape))
    columns = [
        _positions(column, x.shape[batch + place + 1], x.device)
        for place, column in enumerate(index.unbind(-1))
    ]
    return (slice(None), *around, *columns)


@register("GatherND", since=(11, 12, 13))
@dataclass(frozen=True)
class GatherND(Movement):
    """Slices at constant positions."""

    LIVE = 1

    batch_dims: int = 0

    def __post_init__(self) -> None:
        if self.batch_dims < 0:
            raise UnsupportedAttribute(f"batch_dims={self.batch_dims} is negative")

    def forward(self, x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        return (x[_columns(indices, x, self.batch_dims)],)


class _Scatter(Affine):
    """A value with some elements replaced (or added to), at constant positions."""

    NOTE = "reductions none and add; the others of constants"
    GATHER: ClassVar[str]
    reduction: str

    def kind(self, live: Sequence[bool]) -> Kind:
        """Affine in the value and the new elements."""
        if live[1]:
            raise UnsupportedAttribute("its indices must not depend on the model's input")
        if any(live) and self.reduction not in ("none", "add"):
            raise UnsupportedAttribute(f"reduction={self.reduction!r} is not none or add")
        return super().kind(live)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """By a table of what was replaced, or the same for both where they are added."""
        if self.reduction == "none":
            return tuple(pull.moved(self))
        grad, named = pull.full, {"axis": self.axis} if hasattr(self, "axis") else {}
        taken = pull.tape.op(self.GATHER, grad, pull.x[1], shape=pull.x[2].shape, **named)
        return (grad if pull.live[0] else None, None, taken if pull.live[2] else None)

    def spread(self, live: Sequence[bool], x: Tensor, indices: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
        x, updates = radii((x, updates), (live[0], live[2]))
        return self.forward(x, indices, updates)


def _check_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise UnsupportedAttribute(f"reduction={reduction!r} is not one of {', '.join(_REDUCTIONS)}")


@register("ScatterND", since=(11, 13, 16, 18))
@dataclass(frozen=True)
class ScatterND(_Scatter):
    """A value with some slices replaced (or added to), at constant positions."""

    GATHER = "GatherND"

    reduction: str = "none"

    def __post_init__(self) -> None:
        _check_reduction(self.reduction)

    def forward(self, x: Tensor, indices: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
        count = max(x.shape[0], updates.shape[0])
        y = x.expand(count, *x.shape[1:]).clone()
        places = _columns(indices, x)
        if self.reduction == "none":
            y[places] = updates
            return (y,)
        # rows of slices: the positions become one index
        depth = len(places) - 1
        sizes = x.shape[1 : depth + 1]
        flat = y.reshape(count, -1, *x.shape[depth + 1 :])
        row = torch.zeros(places[1].shape, dtype=torch.int64, device=x.device)
        for size, place in zip(sizes, places[1:], strict=True):
            row = row * size + place
        new = updates.expand(count, *updates.shape[1:]).reshape(count, -1, *x.shape[depth + 1 :])
        index = row.reshape(1, -1, *(1,) * (flat.ndim - 2)).expand(new.shape)
        result = flat.scatter_reduce(1, index, new, _REDUCTIONS[self.reduction])
        return (result.reshape(y.shape),)


@register("ScatterElements", since=(11, 13, 16, 18))
@dataclass(frozen=True)
class ScatterElements(_Scatter):
    """A value with some elements replaced (or added to), at one constant index for each new one."""

    GATHER = "GatherElements"

    axis: int = 0
    reduction: str = "none"

    def __post_init__(self) -> None:
        _check_reduction(self.reduction)

    def forward(self, x: Tensor, indices: Tensor, updates: Tensor) -> tuple[Tensor, ...]:
        count = max(x.shape[0], updates.shape[0])
        dim = self.axis + 1 if self.axis >= 0 else self.axis
        index = _positions(indices, x.shape[dim], x.device).expand(count, *indices.shape[1:])
        y, new = x.expand(count, *x.shape[1:]), updates.expand(count, *updates.shape[1:])
        if self.reduction == "none":
            return (y.scatter(dim, index, new),)
        return (y.scatter_reduce(dim, index, new, _REDUCTIONS[self.reduction]),)


@register("Scatter", since=(9,))
@dataclass(frozen=True)
class Scatter(ScatterElements):
    """ScatterElements, by its older name (opset 9 and 10)."""

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Under its newer name."""
        return tuple(tape.operator(self, "ScatterElements", inputs, shapes))
