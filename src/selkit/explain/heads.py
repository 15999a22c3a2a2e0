"""From an output of any rank to one number for each class: positions are chosen, masked, or reduced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.graph.ops.reduction import ReduceMax, ReduceMean, ReduceSum
from selkit.graph.ops.shape import Gather, Reshape, Transpose
from selkit.graph.program import Program
from selkit.utils.arrays import as_tensor
from selkit.utils.checks import choice, given, integer

Reduce: TypeAlias = Literal["max", "mean", "sum"] | None
Position: TypeAlias = "int | Sequence[int] | None"
ClassAxis: TypeAlias = "int | Literal['none'] | None"

_REDUCE = {"max": ReduceMax, "mean": ReduceMean, "sum": ReduceSum}


@dataclass(frozen=True)
class Head:
    """How one number for each class is made of an output.

    Attributes
    ----------
    name
        Of the output.
    shape
        Of the output for one sample, with the batch axis.
    class_axis
        Where the classes are; ``None`` for one class.
    places
        Positions that count, as indices into all positions; ``None`` for all.
    reduce
        How they are brought together; ``None`` for a single one.
    """

    name: str
    shape: tuple[int, ...]
    class_axis: int | None
    places: tuple[int, ...] | None
    reduce: Reduce

    @property
    def classes(self) -> int:
        """How many there are."""
        return 1 if self.class_axis is None else self.shape[self.class_axis]

    @property
    def plain(self) -> bool:
        """Whether the output is of shape ``(1, classes)`` already."""
        return len(self.shape) == 2 and self.class_axis == 1

    @property
    def positions(self) -> int:
        """How many positions the output has."""
        return math.prod(self.shape[1:]) // self.classes

    def append(self, program: Program) -> tuple[Program, str]:
        """Append the steps to a program, and return the name of their result, ``(1, classes)``."""
        name = self.name
        if self.plain:
            return program, name
        axis = self.class_axis
        if axis is not None and axis != 1:
            order = (0, axis, *(i for i in range(1, len(self.shape)) if i != axis))
            program, name = program.extend(Transpose(perm=order), [name], "selkit.head")
        flat = torch.tensor([1, self.classes, self.positions])
        program, name = program.extend(Reshape(), [name, flat], "selkit.head")
        if self.places is not None:
            places = torch.tensor(self.places, dtype=torch.int64)
            program, name = program.extend(Gather(axis=2), [name, places], "selkit.head")
        if self.reduce is not None:
            program, name = program.extend(_REDUCE[self.reduce](axes=(2,), keepdims=1), [name], "selkit.head")
        return program.extend(Reshape(), [name, torch.tensor([1, self.classes])], "selkit.head")

    def apply(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """The same for a batch of outputs, ``(N, ...)``."""
        if self.plain:
            return outputs
        rows = outputs if self.class_axis is None else np.moveaxis(outputs, self.class_axis, 1)
        flat = rows.reshape(len(outputs), self.classes, -1)
        if self.places is not None:
            flat = flat[:, :, list(self.places)]
        if self.reduce is None:
            return flat[:, :, 0]
        reduced: NDArray[Any] = getattr(flat, self.reduce)(axis=2)
        return reduced


def read_head(
    shape: Sequence[int],
    inputs: Sequence[Sequence[int]],
    name: str,
    *,
    reduce: object = None,
    position: object = None,
    mask: object = None,
    class_axis: object = None,
) -> Head:
    """Find out how one number for each class is made of an output, or refuse to guess.

    Parameters
    ----------
    shape
        Of the output for one sample, with the batch axis.
    inputs
        Shapes of the explained inputs, with the batch axis: they tell channels from positions.
    name
        Of the output.
    reduce
        ``"max"``, ``"mean"`` or ``"sum"`` over positions.
    position
        Or one position: an index, or one for each axis of positions; negative ones count from the end.
    mask
        Which positions are reduced: boolean, of the shape of the positions or broadcast to it.
    class_axis
        Axis of the classes in the output; ``"none"`` where there are none, and all axes but the first are
        positions. By default found from the shapes.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If the output has positions and nothing says what becomes of them, if class axis and positions
        cannot be told apart, or if an argument does not fit the output.
    """
    if reduce is not None:
        choice(reduce, "reduce", ("max", "mean", "sum"))
    shape = tuple(int(side) for side in shape)
    if shape and shape[0] != 1:
        raise InvalidInputError(
            f"the output {name!r} has shape {shape} for one sample; its first axis must be samples"
        )
    if not math.prod(shape):
        raise InvalidInputError(f"the output {name!r} has shape {shape} for one sample: it is empty")
    axis = _class_axis(shape, inputs, name, class_axis)
    sides = tuple(side for i, side in enumerate(shape) if i and i != axis)
    places = _places(sides, name, position=position, mask=mask, reduced=reduce is not None)
    if math.prod(sides) > 1 and reduce is None and position is None:
        raise InvalidInputError(
            f"the output {name!r} has shape {shape} for one sample, so {sides} positions for each class; say "
            "which number is meant: reduce='max', 'mean' or 'sum' over positions, or position=an index for "
            "each axis of them"
        )
    kind: Any = reduce
    return Head(name, shape, axis, places, None if math.prod(sides) == 1 else kind)


def _class_axis(
    shape: tuple[int, ...], inputs: Sequence[Sequence[int]], name: str, wanted: object
) -> int | None:
    """The axis of the classes, ``None`` for one class."""
    rank = len(shape)
    if isinstance(wanted, str):
        choice(wanted, "class_axis", ("none",))
        return None
    if wanted is not None:
        axis = integer(wanted, "class_axis", -rank, rank - 1) % max(rank, 1)
        if axis == 0:
            raise InvalidInputError("class_axis is 0, the axis of samples; give another one, or 'none'")
        return axis
    if rank < 2:
        return None
    if rank == 2 or all(side == 1 for side in shape[1:]) or (rank > 3 and all(s == 1 for s in shape[2:])):
        return 1
    found = _told_by_shapes(shape, inputs)
    if found is not None:
        return found
    raise InvalidInputError(
        f"the output {name!r} has shape {shape} for one sample, and the inputs' shapes do not tell which of "
        f"its axes the classes are on; say class_axis=1, class_axis={rank - 1}, or class_axis='none' for "
        "no classes"
    )


def _told_by_shapes(shape: tuple[int, ...], inputs: Sequence[Sequence[int]]) -> int | None:
    """The axis of the classes if the shapes tell it: the first or the last one behind the samples."""
    rank = len(shape)
    fits = {
        first
        for first, sides in ((1, shape[2:]), (rank - 1, shape[1:-1]))
        if any(_same_places(sides, given_shape, last=first != 1) for given_shape in inputs)
    }
    if len(fits) == 1:
        return fits.pop()
    square = {axis for axis in (1, rank - 1) if rank > 3 and len({*shape[1:axis], *shape[axis + 1 :]}) == 1}
    if len(square) == 1:
        return square.pop()
    if shape[1] == 1 < shape[-1]:
        return 1  # no grid of positions is one element high; a single channel is common
    if rank > 3 and shape[-1] == 1 < shape[1]:
        return rank - 1
    return None


def _same_places(sides: Sequence[int], shape: Sequence[int], *, last: bool) -> bool:
    """Whether positions of an output are those of an input, or a strided grid of them."""
    places = shape[1:-1] if last else shape[2:]
    if len(places) != len(sides) or not sides:
        return False
    if tuple(places) == tuple(sides):
        return True
    ratios = {side / place for side, place in zip(sides, places, strict=True)}
    return len(sides) > 1 and len(ratios) == 1


def _places(
    sides: tuple[int, ...], name: str, *, position: object, mask: object, reduced: bool
) -> tuple[int, ...] | None:
    """Which positions count."""
    if position is not None and (reduced or mask is not None):
        raise InvalidInputError(
            "give position= for one position, or reduce= (and mask=) for several, not both"
        )
    if position is not None:
        return (_place(sides, name, position),)
    if mask is None:
        return None
    if not reduced:
        raise InvalidInputError(
            "mask= needs reduce='max', 'mean' or 'sum': what becomes of the positions in it"
        )
    if isinstance(mask, torch.Tensor):
        mask = as_tensor(mask, "mask").cpu()
    try:
        array = np.asarray(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(f"mask must be a boolean array; got {given(mask)}") from error
    if array.dtype != np.bool_:
        raise InvalidTypeError(f"mask must be a boolean array of shape {sides}; got dtype {array.dtype}")
    try:
        found = np.flatnonzero(np.broadcast_to(array, sides))
    except ValueError as error:
        raise InvalidInputError(
            f"mask has shape {array.shape}; the output {name!r} has the positions {sides}"
        ) from error
    if not len(found):
        raise InvalidInputError("mask is False everywhere; at least one position must count")
    return None if len(found) == math.prod(sides) else tuple(found.tolist())


def _place(sides: tuple[int, ...], name: str, position: object) -> int:
    wanted = f"{len(sides)} whole number(s), one for each axis of the positions {sides} of {name!r}"
    if isinstance(position, torch.Tensor | np.ndarray):
        position = as_tensor(position, "position").tolist()
    entries = (
        list(position) if isinstance(position, Sequence) and not isinstance(position, str) else [position]
    )
    if len(entries) != len(sides):
        raise InvalidInputError(f"position must be {wanted}; got {given(position)}")
    index = [
        integer(entry, "position", -side, side - 1) % side for entry, side in zip(entries, sides, strict=True)
    ]
    return int(np.ravel_multi_index(index, sides)) if sides else 0
