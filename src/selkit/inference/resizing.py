"""Steps of post-processing that bring a score map to the size and the axes of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.inference.postprocess import Builder, PostProcess, channels_back, channels_to_front
from selkit.utils.boundary import checked_fields
from selkit.utils.checks import choice

ResizeMode = Literal["linear", "nearest"]


def _integers(values: object, name: str, *, least: int | None = None) -> tuple[int, ...]:
    given = values if isinstance(values, tuple | list) else (values,)
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise InvalidTypeError(f"{name} is {values!r}; give whole numbers")
        if least is not None and value < least:
            raise InvalidInputError(f"{name} is {values!r}; each must be at least {least}")
    return tuple(int(value) for value in given)


def _for_each(given: tuple[int, ...], count: int, name: str) -> tuple[int, ...]:
    """One number for each axis of space."""
    if len(given) not in (1, count):
        raise InvalidInputError(
            f"{name} has {len(given)} numbers, but the score map has {count} axes of space"
        )
    return given * count if len(given) == 1 else given


@checked_fields
@dataclass(frozen=True)
class Resize(PostProcess):
    """The score map at another size, by default that of the image: for maps with a stride.

    Pixels are squares whose centers are interpolated, as ONNX does by default ("half_pixel") and torch with
    ``align_corners=False``.

    Attributes
    ----------
    mode
        "linear" (bilinear, trilinear) or "nearest".
    size
        Along each axis of space; ``None`` for the image's.

    Examples
    --------
    >>> Resize("nearest").mode
    'nearest'
    """

    mode: ResizeMode = "linear"
    size: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        choice(self.mode, "mode of Resize", get_args(ResizeMode))
        if self.size is not None:
            object.__setattr__(self, "size", _integers(self.size, "size", least=1))

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append a resampling of the axes of space."""
        axes, before = g.axes(score, "post_process has Resize, which"), g.shape(score)
        if self.size is None:
            size = g.axes(x, "post_process has Resize, which").sizes(g.shape(x))
        else:
            size = _for_each(_integers(self.size, "size"), len(axes.space), "size")
        if len(size) != len(axes.space) or not size:
            raise InvalidInputError(
                f"post_process has Resize, but the score map of shape {before} has {len(axes.space)} axes of "
                f"space, and the size {size} has {len(size)}"
            )
        front = channels_to_front(g, score, axes)
        sizes = torch.tensor([*g.shape(front)[:2], *size])
        made = g.add("Resize", front, "", "", sizes, mode=self.mode)
        return channels_back(g, made, axes, before)


@checked_fields
@dataclass(frozen=True)
class SelectChannel(PostProcess):
    """One channel of the score map: the map of one class.

    Attributes
    ----------
    index
        Of the channel; negative numbers count from the last.
    """

    index: int

    def __post_init__(self) -> None:
        _integers(self.index, "channel")

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append a gather along the axis of channels, which stays with length one."""
        axes, shape = g.axes(score, "post_process has SelectChannel, which"), g.shape(score)
        count = axes.channels(shape)
        if not -count <= self.index < count:
            raise InvalidInputError(
                f"channel is {self.index}, but the score map of shape {shape} has {count} channel(s)"
            )
        if axes.channel is None:
            return score
        return g.add("Gather", score, torch.tensor([self.index % count]), axis=axes.channel)


@checked_fields
@dataclass(frozen=True)
class Transpose(PostProcess):
    """The score map with its axes in another order.

    Attributes
    ----------
    perm
        For each axis, which one it is now, as in numpy.
    """

    perm: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "perm", _integers(self.perm, "perm"))
        if sorted(self.perm) != list(range(len(self.perm))):
            raise InvalidInputError(f"perm is {self.perm}; give each axis from 0 once")

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append a transposition."""
        if len(self.perm) != len(g.shape(score)):
            raise InvalidInputError(
                f"perm is {self.perm}, but the score map has shape {g.shape(score)}: "
                f"{len(g.shape(score))} axes"
            )
        made = g.add("Transpose", score, perm=self.perm)
        g.permute(self.perm)
        return made


@checked_fields
@dataclass(frozen=True)
class Crop(PostProcess):
    """A part of the score map: for models that pad the image.

    Attributes
    ----------
    start, stop
        First and last-but-one pixel along each axis of space, or one number for all, as in a slice of
        Python: negative numbers count from the end, ``stop=None`` is the end.

    Examples
    --------
    >>> Crop(2, -2).start
    (2,)
    """

    start: tuple[int, ...] | int = 0
    stop: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", _integers(self.start, "start"))
        if self.stop is not None:
            object.__setattr__(self, "stop", _integers(self.stop, "stop"))

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append a slice."""
        axes, shape = g.axes(score, "post_process has Crop, which"), g.shape(score)
        sizes, count = axes.sizes(shape), len(axes.space)
        start = _for_each(_integers(self.start, "start"), count, "start")
        stop = sizes if self.stop is None else _for_each(_integers(self.stop, "stop"), count, "stop")
        parts = [range(size)[slice(a, b)] for size, a, b in zip(sizes, start, stop, strict=True)]
        if not all(parts):
            raise InvalidInputError(
                f"post_process has Crop from {start} to {stop}, which leaves nothing of a score map of "
                f"shape {shape}"
            )
        limits = (torch.tensor([getattr(part, end) for part in parts]) for end in ("start", "stop"))
        return g.add("Slice", score, *limits, torch.tensor(axes.space))
