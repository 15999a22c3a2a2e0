"""Clean-up of a mask, and what is sure about its result where some pixels are not known.

Along a line a mask changes pixel by pixel. A mask between two others, ``lower <= mask <= upper``, has a
result between two others as well: for a step that grows with its mask (all but one of them do) these are the
results of ``lower`` and ``upper``. So one look settles a whole stretch of the line on which some pixels
change, wherever these do not matter for the final region.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from selkit.errors import InvalidInputError, InvalidTypeError

Mask = NDArray[np.bool_]
Pair = tuple[Mask, Mask]


@dataclass(frozen=True)
class Grid:
    """Which axes of a mask are space; along the others each part is on its own.

    Attributes
    ----------
    rank
        Number of axes.
    space
        Those of space.
    """

    rank: int
    space: tuple[int, ...]

    def neighbors(self, connectivity: int) -> NDArray[np.bool_]:
        """Neighbours along axes (1), and across edges and corners (more), in space."""
        if connectivity > max(len(self.space), 1):
            raise InvalidInputError(
                f"connectivity is {connectivity}, but the score map has {len(self.space)} axes of space"
            )
        return self._thin(ndimage.generate_binary_structure(len(self.space), connectivity))

    def ball(self, radius: float) -> NDArray[np.bool_]:
        """Pixels whose centers are within a distance."""
        reach = int(np.floor(radius))
        axes = np.ogrid[tuple(slice(-reach, reach + 1) for _ in self.space)]
        distance = sum((axis.astype(np.float64) ** 2 for axis in axes), np.zeros((1,) * len(self.space)))
        return self._thin(distance <= radius**2 + 1e-9)

    def _thin(self, element: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """An element of the mask's rank, of width one along what is not space."""
        sizes = dict(zip(self.space, element.shape, strict=True))
        return element.reshape([sizes.get(axis, 1) for axis in range(self.rank)])

    def label(self, mask: Mask, connectivity: int) -> tuple[NDArray[Any], int]:
        """Connected parts, numbered as a scan meets them."""
        structure = self.neighbors(connectivity)
        whole = np.zeros((3,) * self.rank, dtype=bool)  # scipy wants three along every axis
        whole[tuple(slice(None) if axis in self.space else slice(1, 2) for axis in range(self.rank))] = (
            structure
        )
        found: tuple[NDArray[Any], int] = ndimage.label(mask, whole)
        return found


class MaskStep(ABC):
    """A step from one mask to another."""

    @abstractmethod
    def apply(self, mask: Mask, grid: Grid) -> Mask:
        """Return the result."""

    def between(self, lower: Mask, upper: Mask, grid: Grid) -> Pair:
        """Return masks between which every result lies; here for steps that grow with their mask."""
        first = self.apply(lower, grid)
        return first, first if lower is upper else self.apply(upper, grid)


def _connectivity(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidTypeError(f"connectivity is {value!r}; give a whole number")
    if value < 1:
        raise InvalidInputError(f"connectivity is {value}; 1 connects along axes, 2 also across corners")
    return int(value)


@dataclass(frozen=True)
class LargestComponent(MaskStep):
    """The connected part with the most pixels; of several, the first that a scan meets."""

    connectivity: int = 1

    def __post_init__(self) -> None:
        _connectivity(self.connectivity)

    def apply(self, mask: Mask, grid: Grid) -> Mask:
        """Return the result."""
        labels, count = grid.label(mask, self.connectivity)
        if count <= 1:
            return mask
        return np.asarray(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))

    def between(self, lower: Mask, upper: Mask, grid: Grid) -> Pair:
        """The largest part can be another one for a larger mask, so that this step does not grow with it.

        The part lies in a part of ``upper`` that is at least as large as the largest of ``lower``. Where only
        one is, a part of ``lower`` with more than half of its pixels is in the largest part for sure.
        """
        if lower is upper:
            result = self.apply(lower, grid)
            return result, result
        outer, count = grid.label(upper, self.connectivity)
        if not count:
            return upper, upper
        inner, _ = grid.label(lower, self.connectivity)
        sizes, own = np.bincount(outer.ravel())[1:], np.bincount(inner.ravel())[1:]
        largest = int(own.max(initial=0))
        able = np.flatnonzero(sizes >= largest) + 1
        most = np.isin(outer, able)
        least = np.zeros_like(lower)
        if len(able) == 1 and 2 * largest > sizes[able[0] - 1]:
            least = np.asarray(inner == 1 + np.argmax(own))
        return least, most


@dataclass(frozen=True)
class RemoveSmall(MaskStep):
    """The connected parts with at least ``min_size`` pixels."""

    min_size: int
    connectivity: int = 1

    def __post_init__(self) -> None:
        _connectivity(self.connectivity)
        if isinstance(self.min_size, bool) or not isinstance(self.min_size, int | np.integer):
            raise InvalidTypeError(f"min_size is {self.min_size!r}; give a number of pixels")
        if self.min_size < 1:
            raise InvalidInputError(f"min_size is {self.min_size}; it must be at least 1")

    def apply(self, mask: Mask, grid: Grid) -> Mask:
        """Return the result."""
        labels, _ = grid.label(mask, self.connectivity)
        kept = np.bincount(labels.ravel()) >= self.min_size
        kept[0] = False
        return np.asarray(kept[labels])


@dataclass(frozen=True)
class FillHoles(MaskStep):
    """The mask with what it encloses."""

    def apply(self, mask: Mask, grid: Grid) -> Mask:
        """Return the result."""
        moved = np.moveaxis(mask, grid.space, range(-len(grid.space), 0))
        flat = moved.reshape(-1, *moved.shape[moved.ndim - len(grid.space) :])
        filled = np.stack([ndimage.binary_fill_holes(part) for part in flat]).reshape(moved.shape)
        return np.ascontiguousarray(np.moveaxis(filled, range(-len(grid.space), 0), grid.space))


@dataclass(frozen=True)
class Morphology(MaskStep):
    """Opening, closing, dilation or erosion by a ball, as scipy's functions of these names."""

    name: str
    radius: float = 1

    def __post_init__(self) -> None:
        if isinstance(self.radius, bool) or not isinstance(self.radius, int | float | np.number):
            raise InvalidTypeError(f"radius is {self.radius!r}; give a number of pixels")
        if not 1 <= self.radius < 1e4:
            raise InvalidInputError(f"radius is {self.radius}; it must be at least 1 and finite")

    def apply(self, mask: Mask, grid: Grid) -> Mask:
        """Return the result."""
        function = getattr(ndimage, f"binary_{self.name}")
        return np.asarray(function(mask, grid.ball(float(self.radius))))


def clean(steps: Sequence[MaskStep], lower: Mask, upper: Mask, grid: Grid) -> Pair:
    """Carry a pair of masks through steps; the same one twice gives the same one twice."""
    for step in steps:
        lower, upper = step.between(lower, upper, grid)
    return lower, upper


def hysteresis(high: Mask, low: Mask, grid: Grid, connectivity: int) -> Mask:
    """The connected parts of ``low`` that hold a pixel of ``high``."""
    labels, count = grid.label(low | high, connectivity)
    kept = np.zeros(count + 1, dtype=bool)
    kept[labels[high]] = True
    kept[0] = False
    return np.asarray(kept[labels])
