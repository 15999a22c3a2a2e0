"""Pooling over windows and over the whole grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops import windows
from selkit.graph.ops.base import Affine, Maximum, UnsupportedAttribute, register

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def _dims(x: Tensor) -> int:
    """Number of spatial axes of a stacked value; refuse what cannot be pooled."""
    dims = x.ndim - 3
    if dims not in _MAX:
        raise UnsupportedAttribute(f"{dims} spatial axes; 1, 2 and 3 are supported")
    return dims


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
        windows.check(
            self.auto_pad,
            kernel_shape=self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self._pool(x, indices=False)[0],)

    def argmax(self, x: Tensor) -> Tensor:
        return self._pool(x, indices=True)[1]

    def pick(self, index: Tensor, x: Tensor) -> Tensor:
        flat = x.flatten(3).expand(index.shape[0], *x.shape[1:3], -1)
        return flat.gather(-1, index.flatten(3)).reshape(index.shape)

    def _pool(self, x: Tensor, indices: bool) -> tuple[Tensor, Tensor]:
        dims = _dims(x)
        grid = tuple(x.shape[3:])
        kernel = windows.spatial(self.kernel_shape, dims, "kernel_shape")
        strides = windows.spatial(self.strides, dims, "strides")
        dilations = windows.spatial(self.dilations, dims, "dilations")
        placed = windows.place(
            grid,
            kernel,
            strides=strides,
            pads=self.pads,
            dilations=dilations,
            auto_pad=self.auto_pad,
            ceil=bool(self.ceil_mode),
        )
        flat = x.flatten(0, 1)
        native = all(2 * begin <= width for begin, width in zip(placed.begin, kernel, strict=True))
        native = native and all(
            (length + 2 * begin - (width - 1) * dilation - 1) // stride + 1 == size
            for length, begin, width, dilation, stride, size in zip(
                grid, placed.begin, kernel, dilations, strides, placed.sizes, strict=True
            )
        )
        padding = placed.begin if native else (0,) * dims
        if not native:
            flat = functional.pad(flat, placed.padding, value=-torch.inf)
        shape = (*x.shape[:3], *placed.sizes)
        if not indices:
            y = _MAX[dims](flat, kernel, strides, padding, dilations)
            return y.reshape(shape), y
        y, index = _MAX[dims](flat, kernel, strides, padding, dilations, return_indices=True)
        if not native:
            index = self._unpad(index, flat.shape[2:], placed.begin, grid)
        return y.reshape(shape), index.reshape(shape)

    @staticmethod
    def _unpad(index: Tensor, padded: Sequence[int], begin: Sequence[int], grid: Sequence[int]) -> Tensor:
        """Positions in the padded grid as positions in the grid."""
        result = torch.zeros_like(index)
        scale = 1
        for size, first, length in zip(reversed(padded), reversed(begin), reversed(grid), strict=True):
            # a window of nothing but padding has no position: any will do, -inf wins nowhere else
            result += (index % size - first).clamp_(0, length - 1) * scale
            index = index // size
            scale *= length
        return result


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
        windows.check(
            self.auto_pad,
            kernel_shape=self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        dims = _dims(x)
        grid = tuple(x.shape[3:])
        kernel = windows.spatial(self.kernel_shape, dims, "kernel_shape")
        strides = windows.spatial(self.strides, dims, "strides")
        dilations = windows.spatial(self.dilations, dims, "dilations")
        placed = windows.place(
            grid,
            kernel,
            strides=strides,
            pads=self.pads,
            dilations=dilations,
            auto_pad=self.auto_pad,
            ceil=bool(self.ceil_mode),
        )
        shape = (*x.shape[:3], *placed.sizes)
        flat = x.flatten(0, 1)
        if max(dilations) == 1 and not any(map(any, placed.pads)) and max(placed.end) <= 0:
            return (_AVERAGE[dims](flat, kernel, strides).reshape(shape),)
        # values outside the padding (rounding up) never count, the padding only if asked for
        count = functional.pad(
            x.new_ones((1, 1, *grid)),
            [side for pair in reversed(placed.pads) for side in pair],
            value=float(bool(self.count_include_pad)),
        )
        rest = [
            value
            for (_, last), end in zip(reversed(placed.pads), reversed(placed.end), strict=True)
            for value in (0, end - last)
        ]
        counts = self._sum(functional.pad(count, rest), kernel, strides, dilations)
        total = self._sum(functional.pad(flat, placed.padding), kernel, strides, dilations)
        return ((total / counts).reshape(shape),)

    @staticmethod
    def _sum(
        x: Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
    ) -> Tensor:
        dims = len(kernel)
        if max(dilations) == 1:
            return _AVERAGE[dims](x, kernel, strides) * math.prod(kernel)
        ones = x.new_ones((1, 1, *kernel))
        flat = x.reshape(-1, 1, *x.shape[2:])
        y = _CONV[dims](flat, ones, None, strides, 0, dilations)
        return y.reshape(*x.shape[:2], *y.shape[2:])

    def spread(self, live: Sequence[bool], x: Tensor) -> tuple[Tensor, ...]:
        return self.forward(x)


@register("GlobalAveragePool", since=(1, 22))
@dataclass(frozen=True)
class GlobalAveragePool(Affine):
    """Mean over all spatial axes."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.mean(dim=tuple(range(3, x.ndim)), keepdim=True) if x.ndim > 3 else x,)

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
