"""What a report is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.report.check import as_attribution, as_curve, as_image, as_region
from selkit.utils.boundary import checked_fields
from selkit.utils.checks import choice
from selkit.utils.checks import given as shown

if TYPE_CHECKING:
    from selkit.inference.adjust import Method


@checked_fields
@dataclass(frozen=True)
class Sample:
    """One judged input.

    Parameters
    ----------
    image
        ``(h, w)``, ``(1, h, w)``, ``(3, h, w)`` or ``(h, w, 3)``; numbers of any dtype. NaN is drawn as the
        darkest value, and the page says how many there are. None where there is nothing to draw.
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
    attribution
        How much each pixel contributed to the model's output, ``(h, w)``, or ``(c, h, w)``, which is summed
        over channels; such as one row of ``selkit.explain``'s attributions. Drawn in blue and red.
    loss
        Of the model on this input.
    p_value
        Of the region's test, conditioned on all that led to it; None if it was not tested.
    adjusted_p_value
        Adjusted for the number of tests. Where no sample has one, the page computes them, see ``adjust`` of
        :class:`Report`.
    p_value_without_acceptance
        Conditioned on the region, but not on the input's acceptance: not valid where acceptance depends on
        the same noise. The page shows what conditioning on it changed.
    naive_p_value
        Without any selection taken into account.
    details
        Anything else, as label and text; shown when the sample is opened.

    Raises
    ------
    InvalidInputError
        If a shape does not fit the image, or a p-value is not in [0, 1].
    InvalidTypeError
        If an array does not hold numbers.

    Examples
    --------
    >>> import numpy as np
    >>> Sample(np.zeros((8, 8)), score=0.3, selected=True, roi=np.eye(8)).roi.sum()
    np.int64(8)
    """

    image: ArrayLike | None
    score: float
    selected: bool
    name: str = ""
    group: str = ""
    roi: ArrayLike | None = None
    target: ArrayLike | None = None
    attribution: ArrayLike | None = None
    loss: float | None = None
    p_value: float | None = None
    adjusted_p_value: float | None = None
    p_value_without_acceptance: float | None = None
    naive_p_value: float | None = None
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        image = None if self.image is None else as_image(self.image)
        shape = None if image is None else image.shape[:2]
        arrays: dict[str, NDArray[Any] | None] = {"image": image}
        for name, convert in (("attribution", as_attribution), ("roi", as_region), ("target", as_region)):
            value = getattr(self, name)
            arrays[name] = None if value is None else convert(value, name, shape)
            if shape is None and arrays[name] is not None:
                shape = arrays[name].shape  # type: ignore[union-attr]
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        for name in ("p_value", "adjusted_p_value", "p_value_without_acceptance", "naive_p_value"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InvalidInputError(
                    f"{name} must be in [0, 1], or None for a sample that was not tested; got {value}."
                )

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of what can be drawn; None if there is nothing."""
        for array in (self.image, self.attribution, self.roi, self.target):
            if array is not None:
                height, width = np.shape(array)[:2]
                return height, width
        return None

    @property
    def change(self) -> float | None:
        """What conditioning on acceptance added to the p-value; None if it was not done."""
        if self.p_value is None or self.p_value_without_acceptance is None:
            return None
        return self.p_value - self.p_value_without_acceptance


class HasCurve(Protocol):
    """A curve of risk against coverage, such as :class:`selkit.RiskCoverage`."""

    @property
    def coverage(self) -> Any:
        """Coverages, increasing."""

    @property
    def risk(self) -> Any:
        """The risk at each."""


@checked_fields
@dataclass(frozen=True)
class Curve:
    """Risk against coverage, each field ``(n,)``.

    Attributes
    ----------
    coverage, risk
        The curve.
    lower, upper
        Ends of an interval for the risk at each coverage; None if there is none.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    lower: NDArray[np.float64] | None = None
    upper: NDArray[np.float64] | None = None


@checked_fields
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
        Paragraphs of plain text: what was done.
    guarantees
        Paragraphs of plain text: what is promised about the decisions, and what that assumes.
    facts
        Label and value of further single numbers (the noise variance, the time).
    metrics
        As ``Trainer.test`` returns them: names such as ``"full/Dice"``, ``"selected/Dice"``,
        ``"rejected/Dice"``; names without one of these prefixes are listed by themselves.
    risk_coverage
        Coverages in increasing order and the risk at each, and, if there is one, the lower and upper end of
        an interval at each: two or four arrays of one length, see :func:`risk_coverage_interval`. Or a
        :class:`selkit.RiskCoverage`. By default the curve of the samples' losses, if all have one.
    risk_name
        What the risk is, for the plot's axis.
    scores
        Further sets of scores to draw beside those of the samples, by name (say, of the calibration set).
    alpha
        Level that a p-value is compared with.
    adjust
        How p-values are adjusted for the number of tests, where samples do not bring adjusted ones: see
        ``selkit.inference.adjust.adjusted_p_values``.
    value_range
        Image values shown as black and white; by default the 0.5 and 99.5 percentiles over all images.

    Raises
    ------
    InvalidInputError
        If the curve's arrays do not have one length or hold NaN, alpha is not in (0, 1), or the value range
        is empty.
    InvalidTypeError
        If ``summary`` or ``guarantees`` is one text instead of a list.
    """

    title: str
    samples: Sequence[Sample] = ()
    threshold: float | None = None
    summary: Sequence[str] = ()
    guarantees: Sequence[str] = ()
    facts: Mapping[str, str | float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    risk_coverage: tuple[ArrayLike, ...] | HasCurve | None = None
    risk_name: str = "risk"
    scores: Mapping[str, ArrayLike] = field(default_factory=dict)
    alpha: float = 0.05
    adjust: Method = "bh"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InvalidInputError(f"alpha must be in (0, 1), got {self.alpha}.")
        if self.threshold is not None and 1e300 < abs(self.threshold) < math.inf:
            raise InvalidInputError(f"threshold must be within 1e300, or infinite; got {self.threshold}.")
        if self.threshold is not None and math.isnan(self.threshold):
            raise InvalidInputError("threshold is NaN; pass None if there is no threshold.")
        for name in ("summary", "guarantees"):
            if isinstance(getattr(self, name), str):
                raise InvalidTypeError(
                    f"{name} must be a sequence of paragraphs, got one str; put it in a list."
                )
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise InvalidInputError(
                f"value_range must be (low, high) with low < high, got {self.value_range}."
            )
        choice(self.adjust, "adjust", ("bh", "by", "bonferroni", "none"))
        self.curve()  # refuses what cannot be drawn
        scores = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in self.scores.items()}
        object.__setattr__(self, "scores", scores)

    def curve(self) -> Curve | None:
        """The given curve, or that of the samples' losses; None if there is neither."""
        given: Any = self.risk_coverage
        if given is not None:
            parts: Any = (
                given
                if isinstance(given, tuple | list)
                else [getattr(given, name, None) for name in ("coverage", "risk")]
            )
            if any(part is None for part in parts):
                raise InvalidTypeError(
                    "risk_coverage must be a Curve, a RiskCoverage, or a pair of coverage and risk; "
                    f"got {shown(given)}"
                )
            return Curve(*as_curve(parts))
        pairs = [(s.score, s.loss) for s in self.samples if s.loss is not None]
        if not pairs or len(pairs) < len(self.samples) or not np.isfinite(pairs).all():
            return None
        from selkit.report.curve import risk_coverage_interval

        score, loss = np.asarray(pairs, dtype=np.float64).T
        return Curve(*risk_coverage_interval(score, loss))
