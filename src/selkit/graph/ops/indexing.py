"""Moving elements by blocks, repeats and index tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.base import (
    Affine,
    Constant,
    Movement,
    UnsupportedAttribute,
    check_size,
    integers,
    plain,
    register,
)
from selkit.graph.ops.types import torch_dtype

_MODES = ("DCR", "CRD")


@dataclass(frozen=True)
class _Blocks(Movement):
    """Between blocks of positions and channels."""

    blocksize: int
    mode: str = "DCR"

    def __post_init__(self) -> None:
        if self.blocksize < 1:
            raise UnsupportedAttribute(f"blocksize={self.blocksize} is below 1")
        if self.mode not in _MODES:
            raise UnsupportedAttribute(f"mode={self.mode!r} is not one of {', '.join(_MODES)}")

    @staticmethod
    def _sizes(x: Tensor) -> torch.Size:
        if x.ndim != 5:
            raise UnsupportedAttribute(f"needs 4 axes, not {x.ndim - 1}")
        return x.shape


@register("DepthToSpace", since=(1, 11, 13, 28))
@dataclass(frozen=True)
class DepthToSpace(_Blocks):
    """Channels become blocks of positions."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        s, n, c, h, w = self._sizes(x)
        b = self.blocksize
        if self.mode == "DCR":
            y = x.reshape(s, n, b, b, c // b**2, h, w).permute(0, 1, 4, 5, 2, 6, 3)
        else:
            y = x.reshape(s, n, c // b**2, b, b, h, w).permute(0, 1, 2, 5, 3, 6, 4)
        return (y.reshape(s, n, c // b**2, h * b, w * b),)


@register("SpaceToDepth", since=(1, 13, 28))
@dataclass(frozen=True)
class SpaceToDepth(_Blocks):
    """Blocks of positions become channels."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        s, n, c, h, w = self._sizes(x)
        b = self.blocksize
        y = x.reshape(s, n, c, h // b, b, w // b, b)
        order = (0, 1, 4, 6, 2, 3, 5) if self.mode == "DCR" else (0, 1, 2, 4, 6, 3, 5)
        return (y.permute(order).reshape(s, n, c * b**2, h // b, w // b),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """The mode is newer than the nodes that are written."""
        (x,), b = inputs, self.blocksize
        n, c, h, w = x.shape
        blocks = tape.reshape(x, (n, c, h // b, b, w // b, b))
        order = (0, 3, 5, 1, 2, 4) if self.mode == "DCR" else (0, 1, 3, 5, 2, 4)
        return (tape.reshape(tape.transpose(blocks, order), shapes[0]),)


@register("Tile", since=(6, 13))
@dataclass(frozen=True)
class Tile(Movement):
    """Repeat along the axes."""

    LIVE = 1

    def forward(self, x: Tensor, repeats: Tensor) -> tuple[Tensor, ...]:
        counts = integers(repeats)
        check_size([size * count for size, count in zip(x.shape[1:], counts, strict=True)])
        return (x.repeat(1, *counts),)


@register("Trilu", since=(14,))
@dataclass(frozen=True)
class Trilu(Movement):
    """The upper or lower triangle of matrices, zeros elsewhere."""

    LIVE = 1

    upper: int = 1

    def forward(self, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, ...]:
        diagonal = 0 if k is None else integers(k)[0]
        return (x.triu(diagonal) if self.upper else x.tril(diagonal),)


@register("CumSum", since=(11, 14))
@dataclass(frozen=True)
class CumSum(Affine):
    """Running sums along one axis."""

    LIVE = 1

    exclusive: int = 0
    reverse: int = 0

    def forward(self, x: Tensor, axis: Tensor) -> tuple[Tensor, ...]:
        (given,) = integers(axis)
        dim = given % (x.ndim - 1) + 1
        y = x.flip(dim) if self.reverse else x
        total = y.cumsum(dim, dtype=y.dtype)
        if self.exclusive:
            total = torch.cat(
                [torch.zeros_like(total.narrow(dim, 0, 1)), total.narrow(dim, 0, x.shape[dim] - 1)], dim
            )
        return (total.flip(dim) if self.reverse else total,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Running sums from the other end."""
        grad = pull.tape.op(
            "CumSum",
            pull.full,
            pull.x[1],
            shape=pull.x[0].shape,
            exclusive=self.exclusive,
            reverse=1 - self.reverse,
        )
        return (grad, None)

    def spread(self, live: Sequence[bool], x: Tensor, axis: Tensor) -> tuple[Tensor, ...]:
        return self.forward(x, axis)


@register("Size", since=(1, 13, 19, 21, 23, 24, 25))
@dataclass(frozen=True)
class Size(Constant):
    """Number of elements."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.tensor([x[0].numel()], dtype=torch.int64),)


@register("Range", since=(11,))
@dataclass(frozen=True)
class Range(Constant):
    """Numbers at equal distances."""

    LIVE = 0

    def forward(self, start: Tensor, limit: Tensor, delta: Tensor) -> tuple[Tensor, ...]:
        first, last, step = (plain(value).item() for value in (start, limit, delta))
        if step == 0:
            raise UnsupportedAttribute("its step is 0")
        check_size((max(int((last - first) / step), 0),))
        return (torch.arange(first, last, step, dtype=start.dtype).unsqueeze(0),)


@register("NonZero", since=(9, 13))
@dataclass(frozen=True)
class NonZero(Constant):
    """Positions of what is not zero."""

    LIVE = 0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (plain(x).nonzero().T.unsqueeze(0),)


@register("EyeLike", since=(9, 22))
@dataclass(frozen=True)
class EyeLike(Constant):
    """Ones on a diagonal, in the shape of a value."""

    dtype: int | None = None
    k: int = 0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows, columns = x.shape[1:]
        dtype = x.dtype if self.dtype is None else torch_dtype(self.dtype)
        distance = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
        return ((distance == self.k).to(dtype).unsqueeze(0),)
