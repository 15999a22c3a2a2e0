"""What a test of a region returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from selkit.errors import InvalidInputError, NotAvailableError
from selkit.inference.acceptance.search import AcceptedBy
from selkit.inference.intervals import Intervals
from selkit.inference.layout import Axes
from selkit.inference.line import Line
from selkit.inference.truncated import (
    Alternative,
    Distribution,
    Normal,
    confidence_interval,
    maximum_likelihood,
    median_unbiased,
    p_value,
)
from selkit.utils.boundary import public
from selkit.utils.checks import number
from selkit.utils.text import p_text


@dataclass(frozen=True, eq=False)
class RoiResult:
    """A selective test of one region.

    Attributes
    ----------
    stat
        The contrast of the input, in its units: such as the difference of two means.
    p_value
        Selective p-value, given the part of the line that was searched.
    inf_p, sup_p
        Bounds that contain the p-value of the full truncation set, whatever the unsearched part holds.
    truncated_intervals
        Values of the contrast at which the observed region is selected, everything else of the image held
        fixed; float64 of shape (n, 2), sorted, disjoint.
    searched_intervals
        The part of the line that was searched; same form.
    output
        The model's output (that with index ``o_idx``).
    score_map
        After post-processing and normalization.
    roi, non_roi
        The region and what it is compared with (``None`` for a reference image); boolean, axes of length
        one removed.
    alternative
        As in scipy.
    scale
        Standard deviation of the contrast; ``stat / scale`` is standard normal under the null, before
        selection.
    exact
        Whether the truncation set is exact on ``searched_intervals``, up to rounding. If not, because the
        score map is smooth in the input, its ends are bracketed by narrow unsearched gaps; the bounds of the
        p-value hold all the same.
    windows
        How many windows of the line were looked at.
    distribution
        Null distribution of ``stat / scale`` before selection.
    line
        The images on which all this holds, see :meth:`image_at`.
    accepted_by
        Where the p-value is conditioned on acceptance: the image's score, and what the p-value would be
        without.
    axes
        Which axes of the input hold channels and which are space, where that is known.
    notes
        What was computed otherwise than the model's file says, as sentences.
    """

    stat: float
    p_value: float
    inf_p: float
    sup_p: float
    truncated_intervals: Intervals
    searched_intervals: Intervals
    output: NDArray[np.float64]
    score_map: NDArray[np.float64]
    roi: NDArray[np.bool_]
    non_roi: NDArray[np.bool_] | None
    alternative: Alternative
    scale: float
    exact: bool
    windows: int
    distribution: Distribution
    line: Line = field(repr=False)
    accepted_by: AcceptedBy | None = None
    axes: Axes | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def channels_last(self) -> bool:
        """Whether the input has its channels behind its axes of space."""
        axes = self.axes
        return axes is not None and axes.channel is not None and axes.channel > max(axes.space, default=0)

    @property
    def p_value_unconditioned(self) -> float:
        """The p-value without conditioning on acceptance: not valid where only accepted images are tested."""
        return self.p_value if self.accepted_by is None else self.accepted_by.p_value

    @property
    def z_score(self) -> float:
        """The standardised statistic ``stat / scale``."""
        return self.stat / self.scale

    @public
    def image_at(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the image whose contrast has been moved to each of ``values``.

        Parameters
        ----------
        values
            Values of the contrast, of shape (K,).

        Returns
        -------
        ndarray of shape (K, *input)
            The observed image at ``stat``.
        """
        z = torch.as_tensor(np.atleast_1d(np.asarray(values, dtype=np.float64)) / self.scale)
        images: NDArray[np.float64] = self.line.at(z).cpu().numpy()
        return images

    def naive_p_value(self) -> float:
        """The p-value of a test that ignores that the data chose the region; it is too small."""
        return p_value(self.distribution, self.z_score, self.distribution.support, self.alternative)

    @public
    def bonferroni_p_value(self, log_num_comparisons: float | None = None) -> float:
        """The naive p-value times the number of regions that could have been chosen.

        Parameters
        ----------
        log_num_comparisons
            Logarithm of that number; by default that of all subsets of the score map's pixels.
        """
        count = self.score_map.size * np.log(2.0)
        if log_num_comparisons is not None:
            count = number(log_num_comparisons, "log_num_comparisons", 0.0)
        naive = self.naive_p_value()
        return float(min(1.0, np.exp(min(0.0, np.log(naive) + count)))) if naive > 0 else 0.0

    @public
    def confidence_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Selective confidence interval of the contrast, in the input's units.

        It is that of the truncation set found so far: use ``inference_mode="exhaustive"`` where its exact
        level matters.
        """
        self._require_normal("a confidence interval")
        lower, upper = confidence_interval(self.z_score, self.truncated_intervals / self.scale, confidence)
        return lower * self.scale, upper * self.scale

    @public
    def estimate(self, method: str = "median") -> float:
        """Selective point estimate of the contrast, in the input's units.

        Parameters
        ----------
        method
            "median" for the median-unbiased estimate, "likelihood" for the maximum of the likelihood.
        """
        if method not in ("median", "likelihood"):
            raise InvalidInputError(f"method is {method!r}; it must be 'median' or 'likelihood'")
        self._require_normal("an estimate")
        solve = median_unbiased if method == "median" else maximum_likelihood
        return solve(self.z_score, self.truncated_intervals / self.scale) * self.scale

    def _require_normal(self, what: str) -> None:
        if not isinstance(self.distribution, Normal):
            raise NotAvailableError(f"{what} needs a single contrast; this test has several")

    def summary(self) -> dict[str, Any]:
        """The numbers of the result as a flat dictionary, for a table."""
        return {
            "stat": self.stat,
            "p_value": self.p_value,
            "inf_p": self.inf_p,
            "sup_p": self.sup_p,
            "naive_p_value": self.naive_p_value(),
            "roi_size": int(self.roi.sum()),
            "windows": self.windows,
            "exact": self.exact,
        }

    def __str__(self) -> str:
        return (
            f"stat {self.stat:.4f}, selective p-value {p_text(self.p_value)} in [{self.inf_p:.4g}, "
            f"{self.sup_p:.4g}], naive {p_text(self.naive_p_value())}, region of {int(self.roi.sum())} pixels"
            + "".join(f"; {note}" for note in self.notes)
        )
