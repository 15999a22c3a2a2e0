"""Pooling over windows and over the whole grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops import windows
from selkit.graph.ops.base import Affine, Maximum, UnsupportedAttribute, register

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def _dims(x: Tensor) -> int:
    """Number of spatial axes of a stacked value; refuse what cannot be pooled."""
    dims = x.ndim - 3
    if dims not in _MAX:
        raise UnsupportedAttribute(f"{dims} spatial axes; 1, 2 and 3 are supported")
    return dims


def _check(pool: MaxPool | AveragePool) -> None:
    """Refuse attributes that mean nothing, or not the same to ONNX and onnxruntime."""
    windows.check(
        pool.auto_pad,
        kernel_shape=pool.kernel_shape,
        strides=pool.strides,
        pads=pool.pads,
        dilations=pool.dilations,
    )
    if pool.auto_pad.startswith("SAME") and any(value != 1 for value in pool.dilations):
        raise UnsupportedAttribute(f"auto_pad={pool.auto_pad} with dilations; give the pads instead")


def _lowest(dtype: torch.dtype) -> float:
    """What loses every comparison."""
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


@register("MaxPool", since=(1, 8, 10, 11, 12, 22))
@dataclass(frozen=True)
class MaxPool(Maximum):
    """Maximum over windows; a candidate's index is its position in the flattened spatial axes."""

    NOTE = "without the Indices output"

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    ceil_mode: int = 0
    auto_pad: str = "NOTSET"
    storage_order: int = 0  # concerns the Indices output alone

    def __post_init__(self) -> None:
        _check(self)

    def _placed(self, x: Tensor) -> windows.Windows:
        _dims(x)
        return windows.place(
            tuple(x.shape[3:]),
            self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            auto_pad=self.auto_pad,
            ceil=bool(self.ceil_mode),
            pooling=True,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        placed = self._placed(x)
        flat = x.flatten(0, 1)
        shape = (*x.shape[:3], *placed.sizes)
        if not x.is_cpu:
            return (self._native(flat, placed, indices=False)[0].reshape(shape),)
        # one axis after the other: torch's own loop over windows is several times slower
        if placed.padded:
            flat = functional.pad(flat, placed.padding, value=_lowest(x.dtype))
        for axis in range(len(placed.grid)):
            flat = reduce(torch.maximum, placed.views(flat, axis))
        return (flat.reshape(shape),)

    def argmax(self, x: Tensor) -> Tensor:
        placed = self._placed(x)
        flat = x.flatten(0, 1)
        shape = (*x.shape[:3], *placed.sizes)
        if not x.is_cpu:
            return self._native(flat, placed, indices=True)[1].reshape(shape)
        if placed.padded:
            flat = functional.pad(flat, placed.padding, value=_lowest(x.dtype))
        offset = torch.zeros((1,) * flat.ndim, dtype=torch.int32).expand(flat.shape)
        start = torch.zeros((), dtype=torch.int64)
        for axis in range(len(placed.grid)):
            scale = math.prod(placed.grid[axis + 1 :])
            values, offsets = placed.views(flat, axis), placed.views(offset, axis)
            flat, offset = values[0], offsets[0]
            for element, (value, other) in enumerate(zip(values[1:], offsets[1:], strict=True), start=1):
                better = value > flat
                flat = torch.maximum(flat, value)
                offset = torch.where(better, other + element * placed.dilations[axis] * scale, offset)
            first = torch.arange(placed.sizes[axis]) * placed.strides[axis] - placed.begin[axis]
            start = start + (first * scale).reshape(-1, *(1,) * (len(placed.grid) - 1 - axis))
        return (start + offset).reshape(shape)

    def pick(self, index: Tensor, x: Tensor) -> Tensor:
        flat = x.flatten(3).expand(index.shape[0], *x.shape[1:3], -1)
        return flat.gather(-1, index.flatten(3)).reshape(index.shape)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """With the positions of the maxima; onnxruntime finds both at once."""
        (x,) = inputs
        y, index = tape.winners(self, x, shapes[0])
        return y, index

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The change goes to where the larger maximum is."""
        return (pull.winners(),)

    @staticmethod
    def _native(x: Tensor, placed: windows.Windows, *, indices: bool) -> tuple[Tensor, Tensor]:
        pool, even = _MAX[len(placed.grid)], placed.even
        padding = placed.begin if even else (0,) * len(placed.grid)
        if not even:
            x = functional.pad(x, placed.padding, value=_lowest(x.dtype))
        if not indices:
            y = pool(x, placed.kernel, placed.strides, padding, placed.dilations)
            return y, y
        y, index = pool(x, placed.kernel, placed.strides, padding, placed.dilations, return_indices=True)
        return y, index if even else _unpad(index, x.shape[2:], placed)


def _unpad(index: Tensor, padded: Sequence[int], placed: windows.Windows) -> Tensor:
    """Positions in the padded grid as positions in the grid."""
    result = torch.zeros_like(index)
    scale = 1
    for size, first, length in zip(
        reversed(padded), reversed(placed.begin), reversed(placed.grid), strict=True
    ):
        result += (index % size - first) * scale
        index = index // size
        scale *= length
    return result


@lru_cache(maxsize=256)
def _counts(placed: windows.Windows, pads_count: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How many elements of each window count; those that only rounding up adds never do."""
    ones = torch.ones((1, 1, *placed.grid), dtype=dtype, device=device)
    ones = functional.pad(
        ones, [side for pair in reversed(placed.pads) for side in pair], value=float(pads_count)
    )
    rest = [
        value
        for (_, last), end in zip(reversed(placed.pads), reversed(placed.end), strict=True)
        for value in (0, end - last)
    ]
    ones = functional.pad(ones, rest)
    for axis in range(len(placed.grid)):
        ones = reduce(torch.add, placed.views(ones, axis))
    return ones


@register("AveragePool", since=(7, 10, 11, 19, 22))
@dataclass(frozen=True)
class AveragePool(Affine):
    """Mean over windows, with or without the padding in the count."""

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    ceil_mode: int = 0
    auto_pad: str = "NOTSET"
    count_include_pad: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        _dims(x)
        placed = windows.place(
            tuple(x.shape[3:]),
            self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            auto_pad=self.auto_pad,
            ceil=bool(self.ceil_mode),
            pooling=True,
        )
        flat = x.flatten(0, 1)
        if placed.padded:
            flat = functional.pad(flat, placed.padding)
        for axis in range(len(placed.grid)):
            flat = reduce(torch.add, placed.views(flat, axis))
        counts = _counts(placed, bool(self.count_include_pad), x.dtype, x.device)
        return ((flat / counts).reshape(*x.shape[:3], *placed.sizes),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Each element gets its share from every window that it is in."""
        x = pull.x[0].shape
        placed = windows.place(
            x[2:],
            self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            auto_pad=self.auto_pad,
            ceil=bool(self.ceil_mode),
            pooling=True,
        )
        counts = _counts(placed, bool(self.count_include_pad), torch.float64, torch.device("cpu"))
        share = pull.full * pull.tape.stored((1 / counts).to(pull.tape.dtype).reshape(1, 1, *placed.sizes))
        sides = [
            (0, 0),
            (0, 0),
            *((-begin, -end) for begin, end in zip(placed.begin, placed.end, strict=True)),
        ]
        whole = [
            length + begin + end for length, begin, end in zip(x[2:], placed.begin, placed.end, strict=True)
        ]
        ones = torch.ones((x[1], 1, *placed.kernel), dtype=pull.tape.dtype)
        spread = pull.tape.op(
            "ConvTranspose",
            share,
            ones,
            shape=(*x[:2], *whole),
            strides=list(placed.strides),
            dilations=list(placed.dilations),
            group=x[1],
            kernel_shape=list(placed.kernel),
        )
        return (pull.tape.pad(spread, sides),)

    def spread(self, live: Sequence[bool], x: Tensor) -> tuple[Tensor, ...]:
        return self.forward(x)


@register("GlobalAveragePool", since=(1, 22))
@dataclass(frozen=True)
class GlobalAveragePool(Affine):
    """Mean over all spatial axes."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.mean(dim=tuple(range(3, x.ndim)), keepdim=True) if x.ndim > 3 else x,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return (pull.grad / math.prod(pull.x[0].shape[2:]),)

    def spread(self, live: Sequence[bool], x: Tensor) -> tuple[Tensor, ...]:
        return self.forward(x)


@register("GlobalMaxPool", since=(1, 22))
@dataclass(frozen=True)
class GlobalMaxPool(Maximum):
    """Maximum over all spatial axes; a candidate's index is its position in them, flattened."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.amax(dim=tuple(range(3, x.ndim)), keepdim=True) if x.ndim > 3 else x,)

    def argmax(self, x: Tensor) -> Tensor:
        return x.flatten(3).argmax(-1).reshape(*x.shape[:3], *(1,) * (x.ndim - 3))

    def pick(self, index: Tensor, x: Tensor) -> Tensor:
        flat = x.flatten(3).expand(index.shape[0], *x.shape[1:3], -1)
        return flat.gather(-1, index.flatten(3)).reshape(index.shape)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The change goes to where the larger maximum is."""
        return (pull.extreme_of(tuple(range(2, pull.x[0].ndim)), 1),)
