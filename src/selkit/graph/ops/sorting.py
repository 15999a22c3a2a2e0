"""The largest elements along an axis: sorting by a network of maxima and minima."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.arithmetic import Max, Min
from selkit.graph.ops.base import (
    Composite,
    Decomposition,
    Discontinuous,
    UnsupportedAttribute,
    integers,
    register,
)
from selkit.graph.ops.parts import concat, cut, known_integers, reshape, transpose
from selkit.graph.ops.reduction import ReduceMax, ReduceMin
from selkit.graph.ops.shape import Gather

LOWEST = -1e30
"""What fills a row up to a power of two; it comes last."""


def _check(k: int, length: int) -> None:
    if not 0 <= k <= length:
        raise UnsupportedAttribute(f"k={k} of {length} elements")


@dataclass(frozen=True)
class TopKIndices(Discontinuous):
    """Where the largest elements are; a part of TopK."""

    k: int
    axis: int = -1
    largest: int = 1

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Refuse: they are no smooth function of the input."""
        raise UnsupportedAttribute("where its largest elements are cannot be explained, only their values")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        dim = self.axis + 1 if self.axis >= 0 else self.axis
        # of equal elements, ONNX takes the first one first
        order = torch.sort(x, dim=dim, descending=bool(self.largest), stable=True).indices
        return (order.narrow(dim, 0, self.k),)


@register("TopK", since=(10, 11, 24))
@dataclass(frozen=True)
class TopK(Composite):
    """The largest (smallest) elements along an axis, in order; where they are is a jump."""

    LIVE = 1
    OUTPUTS = 2
    NOTE = "the values by maxima and minima of pairs"

    axis: int = -1
    largest: int = 1
    sorted: int = 1

    def forward(self, x: Tensor, *count: Tensor) -> tuple[Tensor, ...]:
        dim = self.axis + 1 if self.axis >= 0 else self.axis
        k = self._count(integers(count[0]) if count else None, x.shape[dim])
        index = TopKIndices(k, self.axis, self.largest).forward(x)[0]
        return x.gather(dim, index), index

    def _count(self, given: Sequence[int] | None, length: int) -> int:
        if given is None or len(given) != 1:
            raise UnsupportedAttribute("its number of elements must be one constant")
        _check(given[0], length)
        return given[0]

    def decompose(self, build: Decomposition, x: str, *_: str) -> tuple[str, ...]:
        """Sort by a network: pairs are put in order until all are."""
        shape = build.shapes[0] or ()
        axis = self.axis % len(shape)
        k = self._count(known_integers(build, 1), shape[axis])
        where = build(TopKIndices(k, axis, self.largest), x)
        if k == 1:
            return build((ReduceMax if self.largest else ReduceMin)(axes=(axis,)), x), where
        order = [*(place for place in range(len(shape)) if place != axis), axis]
        rows = transpose(build, x, order)
        outer, length = [shape[place] for place in order[:-1]], shape[axis]
        full = 1 << max(length - 1, 0).bit_length()
        if full > length:
            fill = torch.full((*outer, full - length), LOWEST if self.largest else -LOWEST).double()
            rows = concat(build, [rows, fill], -1)
        rows = cut(build, self._sorted(build, rows, outer, full), -1, 0, k)
        return transpose(build, rows, sorted(range(len(order)), key=order.__getitem__)), where

    def _sorted(self, build: Decomposition, rows: str, outer: Sequence[int], full: int) -> str:
        """Rows in order: sorted blocks are merged to blocks of twice the size."""
        size = 2
        while size <= full:
            backwards = torch.arange(size // 2 - 1, -1, -1)
            blocks = reshape(build, rows, (*outer, full // size, size))
            first = cut(build, blocks, -1, 0, size // 2)
            second = build(Gather(-1), cut(build, blocks, -1, size // 2, size), backwards)
            front, back = self._ordered(build, first, second)
            merged = concat(build, [front, build(Gather(-1), back, backwards)], -1)
            rows = reshape(build, merged, (*outer, full))
            step = size // 4
            while step:
                pairs = reshape(build, rows, (*outer, full // (2 * step), 2, step))
                halves = (cut(build, pairs, -2, 0, 1), cut(build, pairs, -2, 1, 2))
                rows = reshape(build, concat(build, self._ordered(build, *halves), -2), (*outer, full))
                step //= 2
            size *= 2
        return rows

    def _ordered(self, build: Decomposition, a: str, b: str) -> tuple[str, str]:
        """What comes first of each pair, and what comes second."""
        high, low = build(Max(), a, b), build(Min(), a, b)
        return (high, low) if self.largest else (low, high)


@register("TopK", since=(1,))
@dataclass(frozen=True)
class AttributeTopK(TopK):
    """The largest elements along an axis, their number an attribute (opset 9 and below)."""

    k: int = 0

    def _count(self, given: Sequence[int] | None, length: int) -> int:
        _check(self.k, length)
        return self.k
