"""From calibration scores to a threshold: empirical quantile, split conformal, risk control, p-values."""

from __future__ import annotations

from selkit.calibration.conformal import benjamini_hochberg, conformal_pvalues, conformal_threshold
from selkit.calibration.crossval import cross_val_scores
from selkit.calibration.quantile import quantile_threshold
from selkit.calibration.risk import (
    binomial_pvalue,
    hoeffding_bentkus_pvalue,
    risk_threshold,
)

__all__ = [
    "benjamini_hochberg",
    "binomial_pvalue",
    "conformal_pvalues",
    "conformal_threshold",
    "cross_val_scores",
    "hoeffding_bentkus_pvalue",
    "quantile_threshold",
    "risk_threshold",
]
