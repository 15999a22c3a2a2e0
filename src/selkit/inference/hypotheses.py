"""What is tested about a region: a contrast of the input that depends on the region alone.

Your own hypothesis is a subclass of :class:`Hypothesis` with a method :meth:`~Hypothesis.contrast`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from selkit.errors import InvalidInputError, InvalidTypeError, NoHypothesisError
from selkit.inference.layout import Axes, axes_by_size, check_layout, unknown
from selkit.inference.postprocess import PostProcess
from selkit.inference.regions import Region
from selkit.inference.shape_rules import Threshold
from selkit.utils.boundary import checked_fields
from selkit.utils.checks import integer

Pixels = NDArray[np.bool_]


@dataclass(frozen=True)
class Contrast:
    """A linear function of the input whose value is tested.

    Attributes
    ----------
    eta
        Weights, of the input's shape; or several, stacked on a leading axis, which are tested together by
        the length of their standardised values (a chi statistic).
    compared
        The pixels that the region is compared with, of the region's shape; ``None`` if there are none.
    against_reference
        Whether the contrast is taken of the input minus a reference with the same, independent noise.
    """

    eta: NDArray[np.float64]
    compared: Pixels | None = None
    against_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Hypothesis(ABC):
    """Which region a model selects, and which contrast of the input is tested on it.

    Parameters
    ----------
    threshold
        The region of interest is where the score map is above this value. ``None`` with ``region``.
    i_idx
        Index of the model's input that is tested; the other inputs are held fixed.
    o_idx
        Index of the model's output that is the score map.
    post_process
        Steps from the output to the score map, in order.
    use_norm
        Scale the score map to [0, 1] by its minimum and maximum before the threshold.
    region
        Another rule than a threshold, such as :class:`ArgMax` or :class:`TopK`.
    layout
        Which axis of the tested input is what, where the model and the sizes do not tell: see
        :func:`selkit.load`.
    score_map
        Name of the model's value that is the score map, an output or an inner one, instead of ``o_idx``.
    """

    threshold: float | None = field(default=None, kw_only=False)
    i_idx: int = 0
    o_idx: int = 0
    post_process: PostProcess | Sequence[PostProcess] = ()
    use_norm: bool = False
    region: Region | None = None
    layout: str | tuple[str | None, str | None] | None = None
    score_map: str | None = None

    def __post_init__(self) -> None:
        self._check_fields()

    def _check_fields(self) -> None:
        check_layout(self.layout)
        named: object = self.score_map
        if named is not None and (not isinstance(named, str) or self.o_idx != 0):
            raise InvalidInputError(
                f"score_map is {self.score_map!r}; give the name of a value of the model, and no o_idx then"
            )
        if (self.threshold is None) == (self.region is None):
            raise InvalidInputError("give either threshold or region")
        if self.region is not None and self.use_norm:
            raise InvalidInputError("use_norm=True scales for a threshold; it has no use with region")
        if self.threshold is not None:
            self._check_threshold(self.threshold)
        if isinstance(self.region, Threshold) and not self.region.steps:
            object.__setattr__(self, "threshold", self.region.value)
            object.__setattr__(self, "region", None)
        steps = (self.post_process,) if isinstance(self.post_process, PostProcess) else self.post_process
        for step in steps:
            if not isinstance(step, PostProcess):
                raise InvalidTypeError(
                    f"post_process contains {step!r}; give instances of selkit.inference.PostProcess, "
                    "such as [InputDiff(), Abs()]"
                )
        object.__setattr__(self, "post_process", tuple(steps))

    def _check_threshold(self, threshold: float) -> None:
        if not np.isfinite(threshold):
            raise InvalidInputError(f"threshold is {threshold}; it must be finite")
        if self.use_norm and not 0 <= threshold < 1:
            raise InvalidInputError(f"threshold is {threshold}; with use_norm=True it must lie in [0, 1)")

    @property
    def steps(self) -> tuple[PostProcess, ...]:
        """The steps of post-processing, always a tuple."""
        return (
            (self.post_process,) if isinstance(self.post_process, PostProcess) else tuple(self.post_process)
        )

    def told(self, **known: object) -> Self:
        """Return the hypothesis with fields that were given elsewhere; ``None`` leaves one as it is."""
        given = {name: value for name, value in known.items() if value is not None}
        if not given:
            return self
        here = copy(self)
        for name, value in given.items():
            object.__setattr__(here, name, value)
        here._check_fields()
        return here

    def placed(self, axes: Axes | None) -> Self:
        """Return the hypothesis for an input with these axes."""
        here = copy(self)
        object.__setattr__(here, "_axes", axes)  # no field: it comes from the model
        return here

    def axes(self, shape: tuple[int, ...]) -> Axes:
        """Return which axes of an input of this shape hold channels and which are space.

        Raises
        ------
        InvalidInputError
            If neither ``layout=`` nor the model nor the sizes tell.
        """
        found = getattr(self, "_axes", None) or axes_by_size(shape)
        if found is None or found.rank != len(shape):
            raise unknown(f"hypothesis is {type(self).__name__}, which", "the input", shape)
        return found

    @abstractmethod
    def contrast(self, roi: Pixels, usable: Pixels, shape: tuple[int, ...]) -> Contrast:
        """Return the contrast for an observed region.

        Parameters
        ----------
        roi
            The region, broadcastable to the input's shape; not empty.
        usable
            The pixels that the mask leaves, of the region's shape.
        shape
            The input's shape, with its batch axis of 1.

        Raises
        ------
        NoHypothesisError
            If the region leaves nothing to test.
        """


def mean_difference(first: Pixels, second: Pixels, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Weights of the mean over one region minus the mean over another, both broadcast to ``shape``."""
    one, two = np.broadcast_to(first, shape), np.broadcast_to(second, shape)
    return np.asarray(one / one.sum() - two / two.sum(), dtype=np.float64)


@checked_fields
@dataclass(frozen=True, kw_only=True)
class BackMeanDiff(Hypothesis):
    """The mean inside the region minus the mean of everything outside it.

    Parameters
    ----------
    threshold, i_idx, o_idx, post_process, use_norm, region, layout, score_map
        See :class:`Hypothesis`.

    Examples
    --------
    >>> BackMeanDiff(threshold=0.5).threshold
    0.5
    """

    def contrast(self, roi: Pixels, usable: Pixels, shape: tuple[int, ...]) -> Contrast:
        """Compare the region with its complement."""
        outside = ~roi & usable
        if not outside.any():
            raise NoHypothesisError(
                "the region covers everything that the mask leaves, so there is no background to compare "
                "with; raise the threshold or use ReferenceMeanDiff"
            )
        return Contrast(mean_difference(roi, outside, shape), outside)


@checked_fields
@dataclass(frozen=True, kw_only=True)
class NeighborMeanDiff(Hypothesis):
    """The mean inside the region minus the mean of its neighbourhood.

    Parameters
    ----------
    threshold, i_idx, o_idx, post_process, use_norm, region, layout, score_map
        See :class:`Hypothesis`.
    neighborhood_range
        How many pixels the neighbourhood reaches beyond the region, along every axis (diagonals included).

    Examples
    --------
    >>> NeighborMeanDiff(threshold=0.5, neighborhood_range=2).neighborhood_range
    2
    """

    neighborhood_range: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(self.neighborhood_range, "neighborhood_range")
        if self.neighborhood_range < 1:
            raise InvalidInputError(f"neighborhood_range is {self.neighborhood_range}; it must be at least 1")

    def contrast(self, roi: Pixels, usable: Pixels, shape: tuple[int, ...]) -> Contrast:
        """Compare the region with the ring around it."""
        side = 2 * min(self.neighborhood_range, max(roi.shape)) + 1  # beyond the image there is nothing
        space = self.axes(shape).space
        size = tuple(side if axis in space else 1 for axis in range(roi.ndim))
        ring = maximum_filter(roi, size=size, mode="constant", cval=0).astype(bool) & ~roi & usable
        if not ring.any():
            raise NoHypothesisError(
                "the region has no neighbourhood inside the mask; raise the threshold or neighborhood_range"
            )
        return Contrast(mean_difference(roi, ring, shape), ring)


@checked_fields
@dataclass(frozen=True, kw_only=True)
class ReferenceMeanDiff(Hypothesis):
    """The mean inside the region minus the mean of the same region in a reference image.

    The reference is given as ``inference((x, reference), ...)``; its noise is independent of the input's
    and has the same covariance.

    Parameters
    ----------
    threshold, i_idx, o_idx, post_process, use_norm, region, layout, score_map
        See :class:`Hypothesis`.
    """

    def contrast(self, roi: Pixels, usable: Pixels, shape: tuple[int, ...]) -> Contrast:
        """Compare the region with itself in the reference."""
        inside = np.broadcast_to(roi, shape)
        return Contrast(inside / inside.sum(), None, against_reference=True)
