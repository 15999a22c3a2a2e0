"""Randomized selective inference: select on an image with added noise, test the image itself.

A selection from a noisier image leaves more of the image's own information for the test: intervals have
finite expected length and more power remains (Tian & Taylor 2018, "Selective inference with a randomized
response"; Panigrahi et al. 2024, "Exact selective inference with randomization").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr

from selkit.errors import InvalidInputError
from selkit.inference.inputs import Array
from selkit.inference.result import RoiResult
from selkit.inference.truncated import Alternative, Normal, logsumexp
from selkit.utils.boundary import public
from selkit.utils.checks import number
from selkit.utils.checks import seed as check_seed

if TYPE_CHECKING:
    from selkit.inference.acceptance.given import Acceptance
    from selkit.inference.roi import RoiTest

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)

RATIO = 1e6
"""How many times more or less noise may be added than there is."""


@dataclass(frozen=True, eq=False)
class RandomizedResult:
    """A test of a region that was selected on an image with added noise.

    Attributes
    ----------
    stat
        The contrast of the image without the added noise, in its units.
    p_value
        Selective p-value.
    scale, noise_scale
        Standard deviations of the contrast of the image, and of that of the added noise.
    selection
        The test of the noisy image: its region, score map and truncation set.
    alternative
        As in scipy.
    null_value
        Mean of the contrast under the null hypothesis.
    """

    stat: float
    p_value: float
    scale: float
    noise_scale: float
    selection: RoiResult
    alternative: Alternative
    null_value: float

    @property
    def roi(self) -> NDArray[np.bool_]:
        """The region, selected on the noisy image."""
        return self.selection.roi

    @public
    def confidence_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Selective confidence interval of the contrast, in the input's units.

        Parameters
        ----------
        confidence
            Coverage, in (0, 1).
        """
        if not 0.0 < confidence < 1.0:
            raise InvalidInputError(f"confidence is {confidence}; it must lie in (0, 1)")
        tail = (1 - confidence) / 2
        return self._mean_at(1 - tail), self._mean_at(tail)

    def _mean_at(self, level: float) -> float:
        """The mean at which the statistic is at a quantile of its distribution."""

        def excess(mean: float) -> float:
            left, right = _log_tails(self.stat, self.selection, self.scale, self.noise_scale, mean)
            return float(np.clip(left - right, -1e6, 1e6)) - float(np.log(level / (1 - level)))

        low = high = self.stat
        for power in range(60):
            step = self.scale * 1.5**power
            low, high = (low - step if excess(low) < 0 else low), (high + step if excess(high) > 0 else high)
            if excess(low) >= 0 >= excess(high):
                break
        return float(brentq(excess, low, high, xtol=1e-10 * self.scale))


def _log_tails(
    stat: float, selection: RoiResult, scale: float, noise_scale: float, mean: float
) -> tuple[float, float]:
    """Logarithms of the joint probabilities of the selection and a contrast below or above ``stat``.

    Given the noisy contrast v, that of the image is normal with mean ``mean + (v - mean) s^2 / (s^2 + t^2)``
    and variance ``s^2 t^2 / (s^2 + t^2)``; v itself is normal, truncated to where the region is selected.
    """
    total = float(np.hypot(scale, noise_scale))
    share, spread = (scale / total) ** 2, scale * noise_scale / total
    reach = 12.0 * total
    rows = np.clip(selection.truncated_intervals, min(mean, stat) - reach, max(mean, stat) + reach)
    # Long intervals are cut, so that the quadrature resolves the normal density inside each.
    parts = [
        np.linspace(low, high, max(2, int(np.ceil((high - low) / spread)) + 1))
        for low, high in rows
        if high > low
    ]
    low = np.concatenate([part[:-1] for part in parts])
    half = (np.concatenate([part[1:] for part in parts]) - low) / 2
    v = (low + half)[:, None] + half[:, None] * NODES
    density = Normal().log_density((v - mean) / total) + np.log(half)[:, None] + np.log(WEIGHTS)
    z = (stat - mean - (v - mean) * share) / spread
    return logsumexp((density + log_ndtr(z)).ravel()), logsumexp((density + log_ndtr(-z)).ravel())


def randomized_inference(
    test: RoiTest,
    x: Array,
    *,
    var: Any,
    mask: Array | None,
    noise_var: float,
    seed: int,
    alternative: Alternative,
    null_value: float,
    accepted_by: Acceptance | None = None,
) -> RandomizedResult:
    """Select a region on an image with added noise, and test the image itself.

    Parameters
    ----------
    test
        Selects the region.
    x, var, mask, noise_var, seed, alternative, null_value, accepted_by
        As for :meth:`selkit.inference.RoiTest.inference_randomized`.
    """
    for name, value in (("var", var), ("noise_var", noise_var)):
        if not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
            raise InvalidInputError(
                f"{name} is {value!r}; randomized inference needs a positive number: white noise"
            )
    own, added = float(var), float(noise_var)
    number(noise_var, "noise_var", own / RATIO, own * RATIO)
    number(null_value, "null_value")
    seed = check_seed(seed)
    inputs = test.read(x, alone=True)
    image = inputs.tested.cpu().numpy()
    noise = np.random.default_rng(seed).normal(0.0, np.sqrt(added), image.shape)
    selected = test.inference(image + noise, own + added, mask, "exhaustive", accepted_by=accepted_by)
    eta = selected.line.b.cpu().numpy() * selected.scale / (own + added)
    stat, length = float(np.sum(eta * image)), float(np.sum(eta**2))
    scale, noise_scale = float(np.sqrt(own * length)), float(np.sqrt(added * length))
    left, right = _log_tails(stat, selected, scale, noise_scale, null_value)
    below = float(1 / (1 + np.exp(np.clip(right - left, -700, 700))))
    p_value = {"less": below, "greater": 1 - below, "two-sided": min(1.0, 2 * min(below, 1 - below))}
    return RandomizedResult(stat, p_value[alternative], scale, noise_scale, selected, alternative, null_value)
