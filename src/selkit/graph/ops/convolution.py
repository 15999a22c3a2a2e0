"""Convolution and its transpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops import kernels, windows
from selkit.graph.ops.base import Kind, Operator, UnsupportedAttribute, blank, register

_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


class _Convolution(Operator):
    """Bilinear in input and weights, affine in the bias."""

    KIND = Kind.AFFINE
    NOTE = "a product if the weights are live too"

    def kind(self, live: Sequence[bool]) -> Kind:
        """``PRODUCT`` if both input and weights are live, else ``AFFINE``."""
        return Kind.PRODUCT if live[0] and live[1] else super().kind(live)

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> tuple[Tensor, ...]:
        dims = w.ndim - 3
        if dims not in kernels.CONV:
            raise UnsupportedAttribute(f"{dims} spatial axes; 1, 2 and 3 are supported")
        if w.shape[0] == 1 and (b is None or b.shape[0] == 1):
            flat = self._apply(x.flatten(0, 1), w[0], None if b is None else b[0], dims)
            return (flat.reshape(*x.shape[:2], *flat.shape[1:]),)
        count = max(x.shape[0], w.shape[0], 1 if b is None else b.shape[0])
        xs, ws = x.expand(count, *x.shape[1:]), w.expand(count, *w.shape[1:])
        bs = [None] * count if b is None else b.expand(count, *b.shape[1:])
        slices = [self._apply(*one, dims) for one in zip(xs, ws, bs, strict=True)]
        return (torch.stack(slices),)

    def spread(
        self, live: Sequence[bool], x: Tensor, w: Tensor, b: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Radii go through the absolute weights, as :meth:`Affine.spread`."""
        if not (live[0] or live[1]):
            x = torch.zeros_like(x)
        return self.forward(x.abs(), w.abs(), b if b is not None and live[2] else None)

    def _apply(self, x: Tensor, w: Tensor, b: Tensor | None, dims: int) -> Tensor:
        """Convolve a batch without stack axis."""
        raise TypeError(f"{type(self).__name__} does not define _apply")


def _sizes(low: Sequence[int], high: Sequence[int]) -> list[tuple[int, int]]:
    """Sides for padding the spatial axes of a batch."""
    return [(0, 0), (0, 0), *zip(low, high, strict=True)]


def _fits(x: Tensor, w: Tensor, b: Tensor | None, results: int, kernel: Sequence[int]) -> bool:
    """Whether ranks, types and bias are those of a convolution."""
    alike = x.ndim == w.ndim in (4, 5, 6) and x.dtype == w.dtype and x.is_floating_point()
    named = not kernel or tuple(kernel) == tuple(w.shape[3:])
    return alike and named and (b is None or (b.dtype == x.dtype and tuple(b.shape) == (1, results)))


@register("Conv", since=(1, 11, 22))
@dataclass(frozen=True)
class Conv(_Convolution):
    """Convolution over 1, 2 or 3 spatial axes."""

    kernel_shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    auto_pad: str = "NOTSET"

    def __post_init__(self) -> None:
        windows.check(
            self.auto_pad,
            kernel_shape=self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=(self.group,),
        )

    def outline(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> tuple[Tensor, ...] | None:
        kernel = tuple(w.shape[3:])
        if not _fits(x, w, b, w.shape[1], self.kernel_shape) or x.shape[2] != w.shape[2] * self.group:
            return None
        if w.shape[1] % self.group:
            return None
        return (blank(x, (*x.shape[:2], w.shape[1], *self._placed(x.shape[3:], kernel).sizes)),)

    def _placed(self, grid: Sequence[int], kernel: tuple[int, ...]) -> windows.Windows:
        return windows.place(
            tuple(grid),
            kernel,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            auto_pad=self.auto_pad,
        )

    def _apply(self, x: Tensor, w: Tensor, b: Tensor | None, dims: int) -> Tensor:
        kernel = tuple(w.shape[2:])
        if self.kernel_shape and self.kernel_shape != kernel:
            raise UnsupportedAttribute(
                f"kernel_shape={list(self.kernel_shape)}, but the weights have {kernel}"
            )
        placed = self._placed(x.shape[2:], kernel)
        if kernels.slow(x):
            return kernels.convolve(x, w, b, placed, self.group)
        padding = placed.begin
        if any(first != last for first, last in placed.pads):
            x = functional.pad(x, placed.padding)
            padding = (0,) * dims
        return kernels.CONV[dims](x, w, b, placed.strides, padding, placed.dilations, self.group)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The transposed convolution; with stride 1 it is a convolution with flipped weights, and faster."""
        weights = pull.constant(1)
        if pull.scale is not None:
            rows = weights.reshape(self.group, -1, *weights.shape[1:])
            shape = (self.group, 1, -1, *(1,) * (weights.ndim - 2))
            weights = (rows * pull.scale.reshape(shape)).reshape(weights.shape)
        kernel = tuple(weights.shape[2:])
        x = pull.x[0].shape
        placed = self._placed(x[2:], kernel)
        extents = [d * (k - 1) for d, k in zip(placed.dilations, kernel, strict=True)]
        before = [e - b for e, b in zip(extents, placed.begin, strict=True)]
        after = [e - b for e, b in zip(extents, placed.end, strict=True)]
        if all(s == 1 for s in placed.strides) and min((*before, *after), default=0) >= 0:
            groups = weights.reshape(self.group, -1, *weights.shape[1:]).transpose(1, 2)
            flipped = groups.reshape(-1, *groups.shape[2:]).flip(list(range(2, weights.ndim)))
            grad = pull.tape.op(
                "Conv",
                pull.full,
                flipped,
                shape=x,
                pads=[*before, *after],
                dilations=list(placed.dilations),
                group=self.group,
                kernel_shape=list(kernel),
            )
            return tuple(pull.only(0, grad))
        whole = [
            (size - 1) * s + e + 1 for size, s, e in zip(placed.sizes, placed.strides, extents, strict=True)
        ]
        # what no window reaches gets nothing; what lies in the padding is dropped
        missing = [max(n + b - w, 0) for n, b, w in zip(x[2:], placed.begin, whole, strict=True)]
        beyond = [w + m - n - b for n, b, w, m in zip(x[2:], placed.begin, whole, missing, strict=True)]
        inner = all(m < s for m, s in zip(missing, placed.strides, strict=True))
        extra = missing if inner else [0] * len(missing)
        shape = (*x[:2], *(n if inner else n - m for n, m in zip(x[2:], missing, strict=True)))
        grad = pull.tape.op(
            "ConvTranspose",
            pull.full,
            weights,
            shape=shape,
            strides=list(placed.strides),
            pads=[*placed.begin, *beyond],
            dilations=list(placed.dilations),
            group=self.group,
            kernel_shape=list(kernel),
            output_padding=extra,
        )
        grad = grad if inner else pull.tape.pad(grad, _sizes([0] * len(missing), missing))
        return tuple(pull.only(0, grad))


@register("ConvTranspose", since=(1, 11, 22))
@dataclass(frozen=True)
class ConvTranspose(_Convolution):
    """Transposed convolution over 1, 2 or 3 spatial axes."""

    kernel_shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        windows.check(
            self.auto_pad,
            kernel_shape=self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=(self.group,),
            output_padding=self.output_padding,
            output_shape=self.output_shape,
        )

    def _place(
        self, grid: Sequence[int], full: Sequence[int], strides: Sequence[int]
    ) -> list[tuple[int, int]]:
        """First kept position and size of the result for each spatial axis of the full one."""
        dims = len(grid)
        pads = windows.spatial(self.pads, 2 * dims, "pads", default=0)
        wanted = self.output_shape[-dims:]
        if not wanted and self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = tuple(length * stride for length, stride in zip(grid, strides, strict=True))
        if not wanted:
            free = self.auto_pad == "VALID"
            return [
                (0, size) if free else (pads[axis], size - pads[axis] - pads[dims + axis])
                for axis, size in enumerate(full)
            ]
        placed = []
        for size, target in zip(full, windows.spatial(wanted, dims, "output_shape"), strict=True):
            if target > size and not self.output_shape:
                raise UnsupportedAttribute(f"auto_pad={self.auto_pad} with strides beyond the kernel")
            total = max(size - target, 0)
            small = total // 2
            placed.append((small if self.auto_pad == "SAME_UPPER" else total - small, target))
        return placed

    def outline(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> tuple[Tensor, ...] | None:
        results = w.shape[2] * self.group if w.ndim > 2 else 0
        if not _fits(x, w, b, results, self.kernel_shape) or x.shape[2] != w.shape[1]:
            return None
        strides, _, extra, full = self._stamped(x.shape[3:], tuple(w.shape[3:]))
        sizes = [size for _, size in self._place(x.shape[3:], full, strides)]
        if (
            x.shape[2] % self.group
            or min(sizes) < 1
            or any(e >= s for e, s in zip(extra, strides, strict=True))
        ):
            return None
        return (blank(x, (*x.shape[:2], results, *sizes)),)

    def _stamped(self, grid: Sequence[int], kernel: tuple[int, ...]) -> tuple[Any, Any, Any, list[int]]:
        """Strides, dilations and padding of the result for each spatial axis, and its size, nothing cut."""
        dims = len(grid)
        strides = windows.spatial(self.strides, dims, "strides")
        dilations = windows.spatial(self.dilations, dims, "dilations")
        extra = windows.spatial(self.output_padding, dims, "output_padding", default=0)
        full = [
            (length - 1) * stride + (width - 1) * dilation + 1 + more
            for length, stride, width, dilation, more in zip(
                grid, strides, kernel, dilations, extra, strict=True
            )
        ]
        return strides, dilations, extra, full

    def _apply(self, x: Tensor, w: Tensor, b: Tensor | None, dims: int) -> Tensor:
        kernel = tuple(w.shape[2:])
        if self.kernel_shape and self.kernel_shape != kernel:
            raise UnsupportedAttribute(
                f"kernel_shape={list(self.kernel_shape)}, but the weights say {kernel}"
            )
        strides, dilations, extra, full = self._stamped(x.shape[2:], kernel)
        placed = self._place(x.shape[2:], full, strides)
        missing = [max(first + size - has, 0) for (first, size), has in zip(placed, full, strict=True)]
        # positions that no window reaches are 0, plus the bias, which therefore comes last
        late = b if any(missing) else None
        if self.group == x.shape[1] > 1 and kernels.slow(x):
            y, late = kernels.transpose(x, w, full, strides, dilations), b
        else:
            soon = None if late is not None else b
            y = _TRANSPOSED[dims](x, w, soon, strides, 0, extra, self.group, dilations)
        if any(missing):
            y = functional.pad(y, [side for more in reversed(missing) for side in (0, more)])
        for axis, (first, size) in enumerate(placed, start=2):
            if size < 1:
                raise UnsupportedAttribute(
                    f"pads={list(self.pads)} leave nothing of {full[axis - 2]} positions"
                )
            y = y.narrow(axis, first, size)
        return y if late is None else y + late.reshape(-1, *(1,) * dims)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The convolution with the same weights, of the result put back into the full one."""
        weights = pull.constant(1)
        kernel, grid = tuple(weights.shape[2:]), pull.x[0].shape[2:]
        strides = windows.spatial(self.strides, len(grid), "strides")
        dilations = windows.spatial(self.dilations, len(grid), "dilations")
        extra = windows.spatial(self.output_padding, len(grid), "output_padding", default=0)
        needed = [
            (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(grid, strides, kernel, dilations, strict=True)
        ]
        placed = self._place(grid, [n + e for n, e in zip(needed, extra, strict=True)], strides)
        sides = _sizes(
            [first for first, _ in placed],
            [n - first - size for n, (first, size) in zip(needed, placed, strict=True)],
        )
        grad = pull.tape.op(
            "Conv",
            pull.tape.pad(pull.full, sides),
            weights,
            shape=pull.x[0].shape,
            strides=list(strides),
            dilations=list(dilations),
            group=self.group,
            kernel_shape=list(kernel),
        )
        return tuple(pull.only(0, grad))
