"""Reading a grid at given places: a weighted sum of the elements around each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selkit.graph.ops.arithmetic import Mul
from selkit.graph.ops.base import Composite, Decomposition, UnsupportedAttribute, check_size, register
from selkit.graph.ops.parts import reshape, transpose
from selkit.graph.ops.reduction import ReduceSum
from selkit.graph.ops.shape import Gather

_MODES = {
    "linear": "linear",
    "bilinear": "linear",
    "cubic": "cubic",
    "bicubic": "cubic",
    "nearest": "nearest",
}
_PADDINGS = ("zeros", "border", "reflection")
_CUBIC = -0.75


@register("GridSample", since=(16, 20, 22))
@dataclass(frozen=True)
class GridSample(Composite):
    """The input read at the places that a constant grid names, by interpolation."""

    LIVE = 1
    NOTE = "affine; the grid must be constant"

    align_corners: int = 0
    mode: str = "linear"
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise UnsupportedAttribute(f"mode={self.mode!r} is not one of {', '.join(_MODES)}")
        if self.padding_mode not in _PADDINGS:
            raise UnsupportedAttribute(f"padding_mode={self.padding_mode!r} is not {', '.join(_PADDINGS)}")

    def decompose(self, build: Decomposition, x: str, grid: str) -> tuple[str, ...]:
        """Gather the elements around each place, and add them by their weights."""
        shape, places = build.shapes[0] or (), build.constants[1]
        if places is None:
            raise UnsupportedAttribute("its grid must not depend on the model's input")
        batch, channels, *sizes = shape
        if len(sizes) != places.shape[-1] or places.shape[1] != batch or len(sizes) != places.ndim - 3:
            raise UnsupportedAttribute(f"a grid of shape {tuple(places.shape[1:])} does not fit its input")
        after = tuple(places.shape[2:-1])
        index, weights = self._table(places[0].cpu().numpy().reshape(batch, -1, len(sizes)), sizes)
        check_size(index.shape)
        count = int(np.prod(sizes))
        index = index + np.arange(batch).reshape(-1, 1, 1) * count
        rows = transpose(build, reshape(build, x, (batch, channels, count)), (1, 0, 2))
        read = build(Gather(1), reshape(build, rows, (channels, batch * count)), torch.from_numpy(index))
        y = build(Mul(), read, torch.from_numpy(weights))
        y = build(ReduceSum(axes=(-1,), keepdims=0), y)
        return (reshape(build, transpose(build, y, (1, 0, 2)), (batch, channels, *after)),)

    def _table(
        self, places: NDArray[Any], sizes: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Positions in the flattened grid that each place reads, and their weights."""
        # the last axis names the fastest axis first; nearest rounds in the grid's own precision
        kind = places.dtype if _MODES[self.mode] == "nearest" else np.dtype(np.float64)
        axes = [
            self._axis(places[..., len(sizes) - 1 - axis].astype(kind), size)
            for axis, size in enumerate(sizes)
        ]
        indices, weights = [], []
        for corner in itertools.product(*(range(len(where)) for where, _ in axes)):
            index, weight = np.zeros(places.shape[:-1], np.int64), np.ones(places.shape[:-1])
            for element, size, (where, share) in zip(corner, sizes, axes, strict=True):
                index = index * size + where[element]
                weight = weight * share[element]
            indices.append(index)
            weights.append(weight)
        return np.stack(indices, -1), np.stack(weights, -1)

    def _axis(self, x: NDArray[Any], size: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float64]]]:
        """Elements of one axis around each place, and their weights."""
        one, half = x.dtype.type(1), x.dtype.type(0.5)
        if self.align_corners:
            x = (x + one) * half * x.dtype.type(size - 1)
        else:
            x = ((x + one) * x.dtype.type(size) - one) * half
        mode = _MODES[self.mode]
        if mode != "cubic":
            x = self._inside(x, size)
        if mode == "nearest":
            near: list[NDArray[Any]] = [np.rint(x)]
            shares: list[NDArray[Any]] = [np.ones(x.shape)]
        else:
            low = np.floor(x)
            near = [low + step for step in ((0, 1) if mode == "linear" else (-1, 0, 1, 2))]
            distances = [np.abs(x - place) for place in near]
            shares = [1 - d if mode == "linear" else _cubic(d) for d in distances]
        places, weights = [], []
        for place, share in zip(near, shares, strict=True):
            kept = self._inside(place, size) if mode == "cubic" else place
            weights.append(np.where((kept >= 0) & (kept <= size - 1), share, 0.0).astype(np.float64))
            if self.padding_mode != "zeros":
                weights[-1] = share.astype(np.float64)
            places.append(np.clip(kept, 0, size - 1).astype(np.int64))
        return places, weights

    def _inside(self, x: NDArray[Any], size: int) -> NDArray[Any]:
        """Places moved into the grid as the padding says."""
        if self.padding_mode == "border":
            return np.asarray(np.clip(x, 0, size - 1))
        if self.padding_mode == "reflection":
            low, width = (0.0, size - 1.0) if self.align_corners else (-0.5, float(size))
            if width == 0:
                return np.zeros_like(x)
            distance = np.mod(x - low, 2 * width)
            folded = np.clip(low + np.minimum(distance, 2 * width - distance), 0, size - 1)
            return np.asarray(folded, dtype=x.dtype)
        # far outside nothing is read; a finite place keeps its index an integer
        return np.asarray(np.clip(np.nan_to_num(x, nan=-9.0), -9, size + 9))


def _cubic(d: NDArray[Any]) -> NDArray[Any]:
    a = _CUBIC
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
