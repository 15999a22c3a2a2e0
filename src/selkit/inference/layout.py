"""Which axis of a value is the batch, which holds channels, and which are space.

ONNX says nothing about the axes of an image: torch writes channels first, Keras channels last. Three sources
tell, in this order: what the user says (``layout=``); the model, since convolutions and poolings of ONNX have
their channels on axis 1 and space behind it, whatever is transposed before; and the sizes, where a channel
axis is one that is at most four long and shorter than all others. Where none of them tells, the axes are not
known, and whatever needs them says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.graph.program import Program, Step

Sizes = Sequence[int | None]

NAMED = ("channels_first", "channels_last")

LETTERS = "NCDHWLT"

FEW = 4
"""Most channels of an image: red, green, blue, opacity."""

FAR = 8
"""Size from which a column of few rows, (1, 3, 100, 1), may as well be a signal with few channels."""

WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
POOLS = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
"""Operators whose axis 1 holds channels and whose further axes are space."""

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

OTHERS = ("DepthToSpace", "SpaceToDepth", "GridSample", "BatchNormalization", "InstanceNormalization", "LRN")
"""Further operators whose result has its channels on axis 1."""

STOPS = (*WINDOWS, *POOLS, *OTHERS, "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention")
"""Operators after which axes are not those before."""


@dataclass(frozen=True)
class Axes:
    """What the axes of a value are; those that are neither channel nor space have length one.

    Attributes
    ----------
    rank
        How many there are.
    channel
        The axis of channels; ``None`` if there is none.
    space
        The axes of space, in order.

    Examples
    --------
    >>> Axes(4, 3, (1, 2)).sizes((1, 6, 8, 3))
    (6, 8)
    """

    rank: int
    channel: int | None
    space: tuple[int, ...]

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The sizes of space."""
        return tuple(shape[axis] for axis in self.space)

    def channels(self, shape: Sequence[int]) -> int:
        """How many channels a value of this shape has."""
        return 1 if self.channel is None else shape[self.channel]

    @property
    def first(self) -> tuple[int, ...]:
        """The order of axes that puts others first, then channels, then space."""
        named = (*(() if self.channel is None else (self.channel,)), *self.space)
        return (*(axis for axis in range(self.rank) if axis not in named), *named)

    @property
    def usual(self) -> bool:
        """Whether this is one other axis, channels, then space."""
        return self.channel == 1 and self.space == tuple(range(2, self.rank))

    def __str__(self) -> str:
        letters = {1: "L", 2: "HW", 3: "DHW"}.get(len(self.space), "?" * len(self.space))
        names = dict(zip(self.space, letters, strict=True))
        return "".join("C" if axis == self.channel else names.get(axis, "N") for axis in range(self.rank))


def channels_first(rank: int) -> Axes:
    """Batch, channels, space."""
    return Axes(rank, 1, tuple(range(2, rank)))


def channels_last(rank: int) -> Axes:
    """Batch, space, channels."""
    return Axes(rank, rank - 1, tuple(range(1, rank - 1)))


def check_layout(layout: object) -> tuple[str | None, str | None]:
    """Return the layouts of the tested input and of the score map.

    Parameters
    ----------
    layout
        ``None``, one layout or a pair of them: of the input and of the score map.

    Examples
    --------
    >>> check_layout("NHWC"), check_layout(("NHWC", "NCHW"))
    (('NHWC', None), ('NHWC', 'NCHW'))
    """
    if isinstance(layout, tuple | list) and len(layout) == 2:
        return _check_one(layout[0]), _check_one(layout[1])
    return _check_one(layout), None


def _check_one(layout: object) -> str | None:
    if layout is None:
        return None
    known = "'NCHW', 'NHWC', 'NCL', 'NLC', 'NCDHW', 'NDHWC', 'channels_first' or 'channels_last'"
    if not isinstance(layout, str):
        raise InvalidTypeError(
            f"layout is {layout!r}; give one of {known}, or a pair of them: of the tested input and of the "
            "score map"
        )
    if layout in NAMED:
        return layout
    letters = set(layout)
    space = letters - {"N", "C"}
    good = len(letters) == len(layout) and letters <= set(LETTERS) and space and "N" not in layout[1:]
    if not good:
        raise InvalidInputError(
            f"layout is {layout!r}; give {known}: one letter for each axis, N for the batch (first), C for "
            "channels, and D, H, W, L or T for space; leave N or C out where there is no such axis ('HW')"
        )
    return layout


def read_layout(layout: str, shape: Sequence[int], name: str) -> Axes:
    """Return the axes that a layout says, for a value of this shape."""
    rank = len(shape)
    if layout in NAMED:
        if rank < 3:
            raise InvalidInputError(
                f"layout is {layout!r}, but {name} has shape {tuple(shape)}, without axes for a batch, "
                "channels and space; leave layout out"
            )
        return channels_first(rank) if layout == NAMED[0] else channels_last(rank)
    if len(layout) != rank:
        raise InvalidInputError(
            f"layout is {layout!r}, which names {len(layout)} axes, but {name} has shape {tuple(shape)}, "
            f"with {rank}"
        )
    channel = layout.index("C") if "C" in layout else None
    return Axes(rank, channel, tuple(axis for axis, letter in enumerate(layout) if letter not in "NC"))


def axes_by_size(shape: Sizes) -> Axes | None:
    """Return the axes of a value with a batch axis where its sizes tell them, else ``None``.

    Examples
    --------
    >>> str(axes_by_size((1, 3, 32, 32))), str(axes_by_size((1, 32, 32, 1))), axes_by_size((1, 8, 8, 8))
    ('NCHW', 'NHWC', None)
    """
    rank = len(shape)
    if rank < 3:
        return Axes(rank, None, tuple(range(min(rank - 1, 1), rank)) if rank else ())
    sizes = [math.inf if size is None else size for size in shape[1:]]
    begin, end, rest = sizes[0], sizes[-1], sizes[1:-1]
    if begin == 1 or (begin <= FEW and begin < min(sizes[1:])):
        return channels_first(rank)  # where both ends have length one, they are the same
    if end > FEW or end >= min(sizes[:-1]):
        return None
    # A column of a few rows is a picture as much as a signal of a few channels.
    signal = begin <= FEW and bool(rest) and min(rest) >= FAR
    return None if signal else channels_last(rank)


@dataclass(frozen=True)
class _Origin:
    """Where a value's axes come from.

    Attributes
    ----------
    name
        Of the value, or of the step's output, at which the walk ended.
    labels
        For each axis, that of the origin; ``None`` for one of length one that was put in.
    """

    name: str
    labels: tuple[int | None, ...]


def _origin(program: Program, makers: Mapping[str, Step], name: str, known: Iterable[str]) -> _Origin:
    """Walk back from a value through all that leaves axes what they are."""
    labels: tuple[int | None, ...] = tuple(range(len(program.shapes[name])))
    known = set(known)
    while name not in known and name in makers:
        step = makers[name]
        kind = type(step.operator).__name__
        source = _source(program, step, name)
        if kind in STOPS or source is None:
            break
        moved = _moved(kind, step, program.shapes[source], program.shapes[name])
        if moved is None:
            break
        labels = tuple(None if label is None else moved[label] for label in labels)
        name = source
    return _Origin(name, labels)


def _source(program: Program, step: Step, name: str) -> str | None:
    """The live input that an output is like: the one of its shape, or the largest."""
    live = [source for source, alive in zip(step.inputs, step.live, strict=True) if alive and source]
    if not live:
        return None
    same = [source for source in live if program.shapes[source] == program.shapes[name]]
    return (same or sorted(live, key=lambda source: -math.prod(program.shapes[source])))[0]


def _moved(
    kind: str, step: Step, before: Sequence[int], after: Sequence[int]
) -> tuple[int | None, ...] | None:
    """For each axis after a step the one before it; ``None`` if that cannot be told."""
    if kind == "Transpose":
        perm = getattr(step.operator, "perm", None) or tuple(reversed(range(len(before))))
        return tuple(int(axis) for axis in perm)
    if len(before) == len(after) and kind not in RESHAPES:
        return tuple(range(len(after)))
    first, last = ([axis for axis, size in enumerate(sides) if size != 1] for sides in (before, after))
    if [before[axis] for axis in first] != [after[axis] for axis in last]:
        return None
    if tuple(before) == tuple(after):
        return tuple(range(len(after)))
    pairs = dict(zip(last, first, strict=True))
    return tuple(pairs.get(axis) for axis in range(len(after)))


def _mapped(origin: _Origin, axes: Axes) -> Axes:
    """The axes of a value from those of its origin."""
    channel = None
    if axes.channel is not None and axes.channel in origin.labels:
        channel = origin.labels.index(axes.channel)
    space = tuple(place for place, label in enumerate(origin.labels) if label in axes.space)
    return Axes(len(origin.labels), channel, space)


def axes_by_model(program: Program, x: str) -> Axes | None:
    """Return the axes of an input as the model's convolutions and poolings see them."""
    makers = {name: step for step in program.steps for name in step.outputs if name}
    shape, found = program.shapes[x], set()
    for step in program.steps:
        if type(step.operator).__name__ not in (*WINDOWS, *POOLS) or not step.live[0]:
            continue
        origin = _origin(program, makers, step.inputs[0], (x,))
        labels = origin.labels
        if origin.name != x or labels[0] not in (0, None):
            continue
        space = tuple(sorted(label for label in labels[2:] if label is not None))
        found.add(Axes(len(shape), labels[1], space))
    whole = {axes for axes in found if _covers(axes, shape)}
    return whole.pop() if len(whole) == 1 and whole == found else None


def _covers(axes: Axes, shape: Sequence[int]) -> bool:
    """Whether all other axes, but the batch, have length one."""
    return all(
        size == 1 or axis in (0, axes.channel) or axis in axes.space for axis, size in enumerate(shape)
    )


@dataclass
class Layouts:
    """The axes of a program's values, found when they are asked for.

    Attributes
    ----------
    x
        Name of the tested input.
    shape
        Its shape.
    tested
        Its axes; ``None`` if they are not known.
    map_layout
        What the user says about the score map.
    said
        Whether the user says what the input's axes are.
    known
        Axes of values by name.
    """

    x: str
    shape: tuple[int, ...]
    tested: Axes | None
    map_layout: str | None = None
    said: bool = False
    known: dict[str, Axes] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: object, program: Program, x: str) -> Layouts:
        """Find the axes of the tested input.

        Raises
        ------
        InvalidInputError
            If ``layout`` does not fit, or several images would be taken for one.
        """
        own, other = check_layout(layout)
        shape = tuple(program.shapes[x])
        if own is not None:
            axes: Axes | None = read_layout(own, shape, x)
        else:
            axes = axes_by_model(program, x) or axes_by_size(shape)
        _check_batch(own, axes, shape, x)
        return cls(x, shape, axes, other, said=own is not None)

    def place_map(self, program: Program, name: str) -> None:
        """Note what the user says about the score map."""
        if self.map_layout is not None:
            self.known[name] = read_layout(self.map_layout, program.shapes[name], "the score map")

    def of_value(self, program: Program, name: str) -> Axes | None:
        """Return the axes of a value of the program, or ``None``."""
        if name == self.x:
            return self.tested
        makers = {made: step for step in program.steps for made in step.outputs if made}
        origin = _origin(program, makers, name, (self.x, *self.known))
        anchor = self.known.get(origin.name)
        if origin.name == self.x:
            anchor = self.tested
        elif anchor is None and origin.name in makers:
            kind = type(makers[origin.name].operator).__name__
            if kind in (*WINDOWS, *POOLS, *OTHERS) and len(program.shapes[origin.name]) > 2:
                anchor = channels_first(len(program.shapes[origin.name]))
        if anchor is not None:
            axes = _mapped(origin, anchor)
            if _covers(axes, program.shapes[name]):
                return axes
        return self.by_shape(program.shapes[name])

    def by_shape(self, shape: tuple[int, ...]) -> Axes | None:
        """Return the axes of a map by its sizes, beside those of the input."""
        rank = len(shape)
        if self.tested is None:
            return axes_by_size(shape) if rank != len(self.shape) else None
        if shape == self.shape:
            return self.tested
        space, count = self.tested.sizes(self.shape), len(self.tested.space)
        if rank == count + 2:
            first, last = channels_first(rank), channels_last(rank)
            exact = [axes for axes in (first, last) if axes.sizes(shape) == space]
            fits = exact or [axes for axes in (first, last) if _alike(axes.sizes(shape), space)]
            if len(fits) == 1 or (fits and shape[1] == shape[-1] == 1):
                return fits[0]
            found = None if exact else axes_by_size(shape)
            if found is None and self.said and rank == self.tested.rank:
                return self.tested
            return found
        if rank == count + 1 and _alike(shape[1:], space):
            return Axes(rank, None, tuple(range(1, rank)))
        if rank == count and _alike(shape, space):
            return Axes(rank, None, tuple(range(rank)))
        return None


def _alike(sizes: Sequence[int], space: Sequence[int]) -> bool:
    """Whether sizes are those of space, all of them reduced by about the same factor."""
    if not sizes or not all((*sizes, *space)):
        return tuple(sizes) == tuple(space)
    return all(abs(size - side * sizes[0] / space[0]) < 1 for size, side in zip(sizes, space, strict=True))


def _check_batch(layout: str | None, axes: Axes | None, shape: tuple[int, ...], name: str) -> None:
    """Refuse what would make one region of several images."""
    if not shape or shape[0] == 1 or len(shape) == 1:
        return
    if axes is not None and (0 in axes.space or axes.channel == 0):
        return
    raise InvalidInputError(
        f"{name} has shape {shape}: the model's batch is fixed at {shape[0]}, and one region of "
        f"{shape[0]} images has no meaning. Export the model with a batch of 1 or an open one; if its first "
        "axis is no batch, say so with layout=, such as layout='HW' or 'CHW'"
        + (f" (given: {layout!r})" if layout else "")
    )


def unknown(why: str, what: str, shape: Sequence[int | None]) -> InvalidInputError:
    """The error for axes that cannot be told."""
    first, last = {3: ("NCL", "NLC"), 5: ("NCDHW", "NDHWC")}.get(len(shape), ("NCHW", "NHWC"))
    return InvalidInputError(
        f"{why} depends on which axes are channels and which are space, but {what} has shape "
        f"{tuple(shape)}, which leaves that open; give layout={first!r} or layout={last!r} to selkit.load"
    )


def fit_to_input(
    score: Tensor, shape: tuple[int, ...], own: Axes | None = None, tested: Axes | None = None
) -> Tensor:
    """Give a map the rank and the order of axes of the input, so that it broadcasts against it.

    Parameters
    ----------
    score
        In ONNX shape.
    shape
        Of the input.
    own, tested
        Axes of the map and of the input, where they are known.

    Raises
    ------
    InvalidInputError
        If the axes of the map do not match those of the input, or can be matched in two ways.
    """
    found = tuple(score.shape)
    if own is not None and tested is not None and own.rank == len(found):
        space, channels = tested.sizes(shape), own.channels(found)
        if _long(own.sizes(found)) == _long(space) and channels in (1, tested.channels(shape)):
            target = _placed(tested, shape, channels)
            if own.first == tested.first and own.channel == tested.channel:
                return score.reshape(target)
            moved = score.permute(own.first).reshape(channels, *space)
            front = [target[axis] for axis in tested.first]
            return moved.reshape(front).permute(sorted(range(tested.rank), key=tested.first.__getitem__))
        raise _misfit(found, shape, space, channels)
    if found == shape:
        return score
    if _long(found) == _long(shape):
        return score.reshape(shape)
    if tested is not None:
        space = tested.sizes(shape)
        if _long(found) == _long(space):
            return score.reshape(_placed(tested, shape, 1))
        raise _misfit(found, shape, space, 1)
    readings = [channels_first(len(shape)), channels_last(len(shape))]
    fits = [axes for axes in readings if _long(found) == _long(axes.sizes(shape))]
    if len(fits) == 2:
        raise unknown(f"where a map of shape {found} lies in the image", "the input", shape)
    if not fits:
        raise _misfit(found, shape, None, 1)
    return score.reshape(_placed(fits[0], shape, 1))


def _placed(axes: Axes, shape: Sequence[int], channels: int) -> tuple[int, ...]:
    """The input's shape with this many channels."""
    sizes = {axis: shape[axis] for axis in axes.space}
    if axes.channel is not None:
        sizes[axes.channel] = channels
    return tuple(sizes.get(axis, 1) for axis in range(axes.rank))


def _long(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)


def _misfit(
    found: tuple[int, ...], shape: tuple[int, ...], space: tuple[int, ...] | None, channels: int
) -> InvalidInputError:
    part = "" if space is None else f" nor its spatial part {space}"
    advice = "choose another output with o_idx or score_map=, or bring it to the input's size with resize="
    if channels > 1:
        advice += f"; of its {channels} channels choose one with channel="
    return InvalidInputError(
        f"the score map has shape {found}, which matches neither the input's shape {shape}{part}; {advice}"
    )


def components(region: NDArray[np.bool_], axes: Axes | None) -> tuple[NDArray[Any], int]:
    """Return the labels of connected parts, numbered as a scan of (channels, *space) meets them."""
    if axes is None or axes.rank != region.ndim:
        found: tuple[NDArray[Any], int] = label(region)
        return found
    labels, count = label(region.transpose(axes.first))
    return labels.transpose(sorted(range(axes.rank), key=axes.first.__getitem__)), count
