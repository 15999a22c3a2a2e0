"""Reshaping, moving and joining values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.base import (
    Affine,
    Constant,
    Kind,
    Movement,
    UnsupportedAttribute,
    align,
    broadcast,
    check_size,
    integers,
    radii,
    register,
)


def _dim(axis: int) -> int:
    """ONNX axis as torch axis behind the stack axis."""
    return axis + 1 if axis >= 0 else axis


def _dims(axes: Sequence[int], rank: int) -> list[int]:
    """ONNX axes as ascending non-negative torch axes of a stacked value with ``rank`` axes."""
    for axis in axes:
        if not -(rank - 1) <= axis < rank - 1:
            raise UnsupportedAttribute(f"axis {axis} is out of range for {rank - 1} axes")
    return sorted(axis + 1 if axis >= 0 else axis + rank for axis in axes)


class _Reshaping(Movement):
    """The same elements in the same order."""

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Write a Reshape to the shape that is known."""
        return (tape.reshape(inputs[0], shapes[0]),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.only(0, pull.tape.reshape(pull.full, pull.x[0].shape)))


@register("Reshape", since=(5, 13, 14, 19, 21, 23, 24, 25))
@dataclass(frozen=True)
class Reshape(_Reshaping):
    """Same elements, another shape."""

    LIVE = 1

    allowzero: int = 0

    def _shape(self, x: Tensor, shape: Tensor) -> tuple[int, ...]:
        wanted = integers(shape)
        if not self.allowzero:
            wanted = tuple(x.shape[i + 1] if size == 0 else size for i, size in enumerate(wanted))
        known = math.prod(size for size in wanted if size != -1)
        if -1 in wanted and known:
            rest = x[:1].numel() // known if x.shape[0] else 0
            wanted = tuple(rest if size == -1 else size for size in wanted)
        return wanted

    def transparent(self, x: Tensor, shape: Tensor) -> bool:
        return self._shape(x, shape) == tuple(x.shape[1:])

    def forward(self, x: Tensor, shape: Tensor) -> tuple[Tensor, ...]:
        return (x.reshape(x.shape[0], *self._shape(x, shape)),)


@register("Flatten", since=(1, 9, 11, 13, 21, 23, 24, 25))
@dataclass(frozen=True)
class Flatten(_Reshaping):
    """A matrix: the axes in front of ``axis`` are the rows."""

    axis: int = 1

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        sizes = x.shape[1:]
        rows = math.prod(sizes[: self.axis])
        return (x.reshape(x.shape[0], rows, math.prod(sizes[self.axis :])),)

    def transparent(self, x: Tensor) -> bool:
        return x.ndim == 3 and self.axis in (1, -1)


@register("Transpose", since=(1, 13, 21, 23, 24, 25))
@dataclass(frozen=True)
class Transpose(Movement):
    """Axes in another order (reversed by default)."""

    perm: tuple[int, ...] | None = None

    def _order(self, rank: int) -> tuple[int, ...]:
        return tuple(reversed(range(rank))) if self.perm is None else self.perm

    def transparent(self, x: Tensor) -> bool:
        return self._order(x.ndim - 1) == tuple(range(x.ndim - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        order = self._order(x.ndim - 1)
        if sorted(order) != list(range(x.ndim - 1)):
            raise UnsupportedAttribute(f"perm={list(order)} is no order of {x.ndim - 1} axes")
        return (x.permute(0, *(axis + 1 for axis in order)),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        order = self._order(pull.x[0].ndim)
        return (pull.tape.transpose(pull.grad, sorted(range(len(order)), key=order.__getitem__)),)


@register("Squeeze", since=(1, 11, 13, 21, 23, 24, 25))
@dataclass(frozen=True)
class Squeeze(_Reshaping):
    """Drop axes of size 1; ``axes`` is an attribute (opset 12 and below) or an input."""

    LIVE = 1

    axes: tuple[int, ...] | None = None

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        given = self.axes if axes is None else integers(axes)
        if given is None:
            drop = [axis for axis in range(1, x.ndim) if x.shape[axis] == 1]
        else:
            drop = _dims(given, x.ndim)
        if any(x.shape[axis] != 1 for axis in drop):
            raise UnsupportedAttribute(f"axes {given} of shape {tuple(x.shape[1:])} are not all of size 1")
        return (x.reshape([size for axis, size in enumerate(x.shape) if axis not in drop]),)


@register("Unsqueeze", since=(1, 11, 13, 21, 23, 24, 25))
@dataclass(frozen=True)
class Unsqueeze(_Reshaping):
    """Insert axes of size 1; ``axes`` is an attribute (opset 12 and below) or an input."""

    LIVE = 1

    axes: tuple[int, ...] | None = None

    def forward(self, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, ...]:
        given = (self.axes or ()) if axes is None else integers(axes)
        for dim in _dims(given, x.ndim + len(given)):
            x = x.unsqueeze(dim)
        return (x,)


@register("Concat", since=(4, 11, 13))
@dataclass(frozen=True)
class Concat(Movement):
    """Values side by side along one axis."""

    axis: int

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = max(value.shape[0] for value in inputs)
        stacked = [value.expand(count, *value.shape[1:]) for value in inputs]
        return (torch.cat(stacked, dim=_dim(self.axis)),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        return (tape.concat(inputs, self.axis % inputs[0].ndim),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        axis, start = self.axis % pull.y[0].ndim, 0
        grads = []
        for value, alive in zip(pull.x, pull.live, strict=True):
            stop = start + value.shape[axis]
            part = pull.grad if pull.grad.shape[axis] == 1 else pull.tape.slice(pull.grad, axis, start, stop)
            grads.append(part if alive else None)
            start = stop
        return tuple(grads)

    def transparent(self, *inputs: Tensor) -> bool:
        return len(inputs) == 1


@register("Split", since=(2, 11, 13, 18))
@dataclass(frozen=True)
class Split(Movement):
    """Parts of a value along one axis; sizes are an attribute, an input, or equal."""

    LIVE = 1
    OUTPUTS = None

    axis: int = 0
    split: tuple[int, ...] = ()
    num_outputs: int = 0

    def forward(self, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
        sizes = self.split if split is None else integers(split)
        dim = _dim(self.axis)
        if not sizes:
            if not self.num_outputs:
                raise UnsupportedAttribute("Split has neither sizes nor a number of outputs")
            length = x.shape[dim]
            each = -(-length // self.num_outputs)
            sizes = (each,) * (self.num_outputs - 1)
            sizes = (*sizes, length - sum(sizes))
        return x.split_with_sizes(list(sizes), dim=dim)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Sizes become an input."""
        axis = self.axis % inputs[0].ndim
        sizes = tape.lift([shape[axis] for shape in shapes])
        return tuple(tape.ops("Split", inputs[0], sizes, shapes=shapes, axis=axis))

    def pull(self, pull: Any) -> tuple[Any, ...]:
        axis = self.axis % pull.x[0].ndim
        parts = [
            pull.tape.stored(torch.zeros(y.shape, dtype=pull.tape.dtype))
            if g is None
            else pull.tape.expand(g, y.shape)
            for g, y in zip(pull.grads, pull.y, strict=True)
        ]
        return tuple(pull.only(0, pull.tape.concat(parts, axis)))


@register("Slice", since=(1, 10, 11, 13))
@dataclass(frozen=True)
class Slice(Movement):
    """A range along some axes; limits are attributes (opset 9 and below) or inputs."""

    LIVE = 1

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()

    def forward(self, x: Tensor, *limits: Tensor | None) -> tuple[Tensor, ...]:
        given = [() if value is None else integers(value) for value in limits]
        starts, ends, axes, steps = (*given, (), (), (), ())[:4]
        starts, ends, axes = starts or self.starts, ends or self.ends, axes or self.axes
        axes = axes or tuple(range(len(starts)))
        steps = steps or (1,) * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            dim = _dims((axis,), x.ndim)[0]
            picked = self._range(start, end, step, x.shape[dim])
            if step > 0:
                x = x[(slice(None),) * dim + (slice(picked.start, max(picked.stop, picked.start), step),)]
            else:
                x = x.index_select(dim, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
        return (x,)

    def _limits(self, inputs: Sequence[Any]) -> list[tuple[int, range]]:
        """Each axis that is cut, and the positions that are taken, for symbols."""
        x, *limits = inputs
        given = [() if value is None else integers(value.value.unsqueeze(0)) for value in limits]
        starts, ends, axes, steps = (*given, (), (), (), ())[:4]
        starts, ends, axes = starts or self.starts, ends or self.ends, axes or self.axes
        axes = axes or tuple(range(len(starts)))
        steps = steps or (1,) * len(starts)
        return [
            (axis % x.ndim, self._range(start, end, step, x.shape[axis]))
            for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
        ]

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Limits become inputs."""
        taken = self._limits(inputs)
        lowest = -(2**63)
        columns = (
            [picked.start for _, picked in taken],
            [picked.stop if picked.stop >= 0 else lowest for _, picked in taken],
            [axis for axis, _ in taken],
            [picked.step for _, picked in taken],
        )
        return (tape.op("Slice", inputs[0], *map(tape.lift, columns), shape=shapes[0]),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Zeros around what was taken."""
        taken = self._limits(pull.x)
        if any(picked.step != 1 for _, picked in taken):
            return super().pull(pull)
        sides = [(0, 0)] * pull.x[0].ndim
        for axis, picked in taken:
            sides[axis] = (picked.start, pull.x[0].shape[axis] - max(picked.stop, picked.start))
        return tuple(pull.only(0, pull.tape.pad(pull.full, sides)))

    @staticmethod
    def _range(start: int, end: int, step: int, length: int) -> range:
        """Positions that are taken; unlike Python's, a start beyond the last element is moved to it."""
        if step == 0:
            raise UnsupportedAttribute("its step is 0")
        first = start + length if start < 0 else start
        last = end + length if end < 0 else end
        if step > 0:
            return range(min(max(first, 0), length), min(max(last, 0), length), step)
        # backwards, onnxruntime takes the largest integers for "to the end" too
        last = -1 if end in (2**31 - 1, 2**63 - 1) else last
        return range(min(max(first, 0), length - 1), min(max(last, -1), length - 1), step)


@register("Gather", since=(1, 11, 13))
@dataclass(frozen=True)
class Gather(Movement):
    """Elements along one axis, by constant indices."""

    LIVE = 1

    axis: int = 0

    def forward(self, x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        dim = _dims((self.axis,), x.ndim)[0]
        length = x.shape[dim]
        index = indices[0].to(x.device, torch.int64)
        if index.ndim == 0 and not index.is_meta:
            return (x.select(dim, int(index)),)
        flat = torch.where(index < 0, index + length, index).reshape(-1)
        picked = x.index_select(dim, flat)
        return (picked.reshape(*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Zeros around a single element, else by a table."""
        index = pull.constant(1)
        if index.numel() != 1:
            return super().pull(pull)
        shape, axis = pull.x[0].shape, self.axis % pull.x[0].ndim
        place = int(index) % shape[axis]
        one = pull.tape.reshape(pull.full, (*shape[:axis], 1, *shape[axis + 1 :]))
        sides = [(0, 0)] * len(shape)
        sides[axis] = (place, shape[axis] - place - 1)
        return tuple(pull.only(0, pull.tape.pad(one, sides)))


@register("Expand", since=(8, 13))
@dataclass(frozen=True)
class Expand(Movement):
    """Repeat by broadcasting."""

    LIVE = 1

    def forward(self, x: Tensor, shape: Tensor) -> tuple[Tensor, ...]:
        target = broadcast(x.shape[1:], integers(shape))
        check_size((x.shape[0], *target))
        behind = x.reshape(x.shape[0], *(1,) * (len(target) - x.ndim + 1), *x.shape[1:])
        return (behind.expand(x.shape[0], *target),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        return (tape.op("Expand", inputs[0], tape.lift(shapes[0]), shape=shapes[0]),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.only(0, pull.collect(pull.grad, pull.x[0].shape)))

    def transparent(self, x: Tensor, shape: Tensor) -> bool:
        return broadcast(x.shape[1:], integers(shape)) == tuple(x.shape[1:])


@register("Where", since=(9, 16))
@dataclass(frozen=True)
class Where(Affine):
    """``a`` where a condition holds, else ``b``."""

    NOTE = "a jump with a live condition"

    def kind(self, live: Sequence[bool]) -> Kind:
        """``STEP`` with a live condition, else ``AFFINE``."""
        return Kind.STEP if live[0] else super().kind(live)

    def spread(self, live: Sequence[bool], condition: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        """Radii of whichever side is taken, as :meth:`Affine.spread`."""
        return self.forward(condition, *radii((a, b), live[1:]))

    def forward(self, condition: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        condition, a, b = align(condition, a, b)
        return (torch.where(condition, a, b),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Each side where it is taken; a live condition is a factor of their difference."""
        taken = pull.share(0)
        grads = [None, pull.grad * taken, pull.grad * (1.0 - taken)]
        if pull.live[0]:
            grads[0] = pull.grad * (pull.middle(1) - pull.middle(2))
        return tuple(pull.each(*grads))


@register("Shape", since=(1, 13, 15, 19, 21, 23, 24, 25))
@dataclass(frozen=True)
class Shape(Constant):
    """The shape as a value."""

    start: int = 0
    end: int | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.tensor([list(x.shape[1:])[self.start : self.end]], dtype=torch.int64),)
