"""Where the windows of convolutions and poolings lie: strides, dilations, padding, rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from selkit.graph.ops.base import UnsupportedAttribute

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def check(auto_pad: str, **attributes: Sequence[int]) -> None:
    """Refuse window attributes that mean nothing.

    Raises
    ------
    UnsupportedAttribute
        For an unknown ``auto_pad``, negative pads, or sizes below 1.
    """
    if auto_pad not in AUTO_PADS:
        raise UnsupportedAttribute(f"auto_pad={auto_pad!r} is not one of {', '.join(AUTO_PADS)}")
    for name, values in attributes.items():
        least = 0 if name in ("pads", "output_padding") else 1
        if any(value < least for value in values):
            raise UnsupportedAttribute(f"{name}={list(values)} has values below {least}")


def spatial(values: Sequence[int], dims: int, name: str, default: int = 1) -> tuple[int, ...]:
    """One value for each spatial axis; ``default`` where the attribute is left out."""
    if not values:
        return (default,) * dims
    if len(values) != dims:
        raise UnsupportedAttribute(f"{name}={list(values)} has {len(values)} values for {dims} spatial axes")
    return tuple(values)


@dataclass(frozen=True)
class Windows:
    """Windows over a padded grid; each field has one value for each spatial axis.

    Attributes
    ----------
    grid, kernel, strides, dilations
        Sizes of the grid and of a window, distance of windows, distance of a window's elements.
    begin, end
        Padding in front, and what is needed behind for the last window to fit (below 0 where windows leave
        elements out).
    sizes
        Number of windows.
    pads
        Padding in front and behind as the model asks for it.
    """

    grid: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    sizes: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def padded(self) -> bool:
        """Whether a window reaches beyond the grid."""
        return any(value > 0 for value in (*self.begin, *self.end))

    @property
    def padding(self) -> list[int]:
        """Argument of :func:`torch.nn.functional.pad` that makes the windows fit exactly."""
        pairs = zip(reversed(self.begin), reversed(self.end), strict=True)
        return [value for pair in pairs for value in pair]

    @property
    def even(self) -> bool:
        """Whether torch's own rule, the same padding at both ends, places the same windows."""
        return all(
            2 * begin <= width and (length + 2 * begin - (width - 1) * dilation - 1) // stride + 1 == size
            for length, begin, width, dilation, stride, size in zip(
                self.grid, self.begin, self.kernel, self.dilations, self.strides, self.sizes, strict=True
            )
        )

    def views(self, x: Tensor, axis: int) -> list[Tensor]:
        """First, second, ... element of each window along one spatial axis of a padded batch."""
        stride, size = self.strides[axis], self.sizes[axis]
        front = (slice(None),) * (axis + 2)
        views = []
        for element in range(self.kernel[axis]):
            first = element * self.dilations[axis]
            views.append(x[(*front, slice(first, first + (size - 1) * stride + 1, stride))])
        return views


@lru_cache(maxsize=1024)
def place(
    grid: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    strides: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    auto_pad: str = "NOTSET",
    ceil: bool = False,
    pooling: bool = False,
) -> Windows:
    """Place windows on a grid as ONNX does.

    Parameters
    ----------
    grid, kernel
        Sizes of the input's spatial axes and of a window.
    strides, pads, dilations, auto_pad, ceil
        ONNX attributes; empty ones have their defaults.
    pooling
        Refuse automatic padding that leaves elements out: onnxruntime's poolings then skip the first ones.

    Raises
    ------
    UnsupportedAttribute
        If attributes do not fit the grid, or no window does.
    """
    dims = len(grid)
    kernel = spatial(kernel, dims, "kernel_shape")
    strides = spatial(strides, dims, "strides")
    dilations = spatial(dilations, dims, "dilations")
    pads = spatial(pads, 2 * dims, "pads", default=0)
    begins, ends, sizes, explicit = [], [], [], []
    for axis, (length, width, stride, dilation) in enumerate(
        zip(grid, kernel, strides, dilations, strict=True)
    ):
        extent = (width - 1) * dilation + 1
        begin, end = pads[axis], pads[dims + axis]
        if auto_pad == "VALID":
            begin = end = 0
        elif auto_pad != "NOTSET":
            total = (math.ceil(length / stride) - 1) * stride + extent - length
            if pooling and total < -1:
                raise UnsupportedAttribute(f"auto_pad={auto_pad} with strides beyond the kernel")
            total = max(total, 0)
            small = total // 2
            begin, end = (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)
        room = length + begin + end - extent
        size = (math.ceil(room / stride) if ceil else room // stride) + 1
        # a window that would start behind the input is ignored
        if ceil and (size - 1) * stride >= length + begin:
            size -= 1
        if room < 0 or size < 1:
            raise UnsupportedAttribute(f"a window of extent {extent} does not fit {length} elements")
        begins.append(begin)
        ends.append((size - 1) * stride + extent - length - begin)
        sizes.append(size)
        explicit.append((begin, end))
    return Windows(
        grid, kernel, strides, dilations, tuple(begins), tuple(ends), tuple(sizes), tuple(explicit)
    )
