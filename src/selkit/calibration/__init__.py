"""From calibration scores to a threshold: empirical quantile, split conformal, risk control, p-values."""

from __future__ import annotations

from selkit.calibration.quantile import quantile_threshold

__all__ = ["quantile_threshold"]
