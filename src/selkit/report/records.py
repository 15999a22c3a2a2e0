"""What a report is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selkit.errors import InvalidInputError, InvalidTypeError


@dataclass(frozen=True)
class Sample:
    """One judged input.

    Parameters
    ----------
    image
        ``(h, w)``, ``(1, h, w)``, ``(3, h, w)`` or ``(h, w, 3)``; numbers of any dtype, finite.
    score
        The uncertainty score; NaN if there is none.
    selected
        Whether the input was accepted.
    name
        Shown as the card's title; the position in the report if empty.
    group
        The kind of input, by which the gallery can be filtered and coverage is reported.
    roi
        The region that the model points at, ``(h, w)``, nonzero inside. Drawn as an outline.
    target
        The true region, ``(h, w)``, nonzero inside. Drawn as a second outline.
    p_value, naive_p_value
        Of the region's test, with and without the selection taken into account; None if it was not tested.
    details
        Anything else, as label and text; shown when the sample is opened.

    Raises
    ------
    InvalidInputError
        If a shape does not fit the image, the image is not finite, or a p-value is not in [0, 1].
    InvalidTypeError
        If the image does not hold numbers.

    Examples
    --------
    >>> import numpy as np
    >>> Sample(np.zeros((8, 8)), score=0.3, selected=True, roi=np.eye(8)).roi.sum()
    np.int64(8)
    """

    image: ArrayLike
    score: float
    selected: bool
    name: str = ""
    group: str = ""
    roi: ArrayLike | None = None
    target: ArrayLike | None = None
    p_value: float | None = None
    naive_p_value: float | None = None
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        image = _as_image(self.image)
        object.__setattr__(self, "image", image)
        for name in ("roi", "target"):
            object.__setattr__(self, name, _as_region(getattr(self, name), name, image.shape[:2]))
        for name in ("p_value", "naive_p_value"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InvalidInputError(
                    f"{name} must be in [0, 1], or None for a sample that was not tested; got {value}."
                )


class HasCurve(Protocol):
    """A curve of risk against coverage, such as :class:`selkit.RiskCoverage`."""

    @property
    def coverage(self) -> Any:
        """Coverages, increasing."""

    @property
    def risk(self) -> Any:
        """The risk at each."""


@dataclass(frozen=True)
class Report:
    """Everything that one page shows; what is left out is not drawn.

    Parameters
    ----------
    title
        Of the page.
    samples
        In the order in which the gallery shows them first.
    threshold
        Samples with a score up to it are selected; drawn in the plot of score densities.
    summary
        Paragraphs of plain text: what was done, and under which guarantee.
    facts
        Label and value of further single numbers (the noise variance, the time).
    metrics
        As ``Trainer.test`` returns them: names such as ``"full/Dice"``, ``"selected/Dice"``,
        ``"rejected/Dice"``; names without one of these prefixes are listed by themselves.
    risk_coverage
        Coverages in increasing order and the risk at each: two arrays of one length, or a
        :class:`selkit.RiskCoverage`.
    risk_name
        What the risk is, for the plot's axis.
    scores
        Further sets of scores to draw beside those of the samples, by name (say, of the calibration set).
    alpha
        Level that a p-value is compared with.
    value_range
        Image values shown as black and white; by default the 0.5 and 99.5 percentiles over all images.

    Raises
    ------
    InvalidInputError
        If the curve's arrays do not have one length or hold NaN, alpha is not in (0, 1), or the value range
        is empty.
    """

    title: str
    samples: Sequence[Sample] = ()
    threshold: float | None = None
    summary: Sequence[str] = ()
    facts: Mapping[str, str | float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    risk_coverage: tuple[ArrayLike, ArrayLike] | HasCurve | None = None
    risk_name: str = "risk"
    scores: Mapping[str, ArrayLike] = field(default_factory=dict)
    alpha: float = 0.05
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InvalidInputError(f"alpha must be in (0, 1), got {self.alpha}.")
        if self.threshold is not None and math.isnan(self.threshold):
            raise InvalidInputError("threshold is NaN; pass None if there is no threshold.")
        if isinstance(self.summary, str):
            raise InvalidTypeError("summary must be a sequence of paragraphs, got one str; put it in a list.")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise InvalidInputError(
                f"value_range must be (low, high) with low < high, got {self.value_range}."
            )
        self.curve()  # refuses what cannot be drawn
        scores = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in self.scores.items()}
        object.__setattr__(self, "scores", scores)

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Coverages and risks, ``(n,)`` each, or None."""
        given = self.risk_coverage
        if given is None:
            return None
        return _as_curve(given if isinstance(given, tuple | list) else (given.coverage, given.risk))


def _as_numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(f"{name} must hold numbers, got dtype {array.dtype}.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InvalidInputError(
            f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} NaN or inf."
        )
    return array


def _as_image(values: ArrayLike) -> NDArray[np.float64]:
    """``(h, w)`` or ``(h, w, 3)``."""
    array = _as_numbers(values, "image")
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    elif array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = np.moveaxis(array, 0, 2)
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InvalidInputError(
            f"image must have shape (h, w), (1, h, w), (3, h, w) or (h, w, 3), got {np.shape(values)}."
        )
    return array


def _as_region(values: ArrayLike | None, name: str, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if values is None:
        return None
    array = _as_numbers(values, name)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.shape != shape:
        raise InvalidInputError(
            f"{name} must have the image's height and width {shape}, got {np.shape(values)}."
        )
    return np.not_equal(array, 0)


def _as_curve(curve: tuple[ArrayLike, ArrayLike]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    coverage, risk = _as_numbers(curve[0], "risk_coverage[0]"), _as_numbers(curve[1], "risk_coverage[1]")
    if coverage.ndim != 1 or coverage.shape != risk.shape or len(coverage) == 0:
        raise InvalidInputError(
            f"risk_coverage must be two arrays of one length, got shapes {coverage.shape} and {risk.shape}."
        )
    if (np.diff(coverage) < 0).any() or coverage[0] < 0 or coverage[-1] > 1:
        raise InvalidInputError("risk_coverage[0] must increase from 0 to 1: the coverage of each point.")
    return coverage, risk
