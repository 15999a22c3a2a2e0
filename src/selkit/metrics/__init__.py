"""How good is a model that may abstain? Reports by selection, and risk against coverage.

Examples
--------
>>> import torch
>>> from selkit.metrics import risk_coverage
>>> curve = risk_coverage(score=torch.tensor([0.1, 0.5, 0.9]), loss=torch.tensor([0.0, 0.0, 1.0]))
>>> curve.coverage_at_risk(0.05)
tensor(0.6667, dtype=torch.float64)
"""

from __future__ import annotations

from selkit.metrics.bootstrap import bootstrap_risk_coverage
from selkit.metrics.curve import RiskCoverage
from selkit.metrics.discoveries import DiscoveryMetric, discoveries
from selkit.metrics.functional import (
    augrc,
    aurc,
    coverage_at_risk,
    excess_aurc,
    risk_at_coverage,
    risk_coverage,
)
from selkit.metrics.losses import absolute_error, dice_loss, squared_error, zero_one_loss
from selkit.metrics.risk_metric import RiskCoverageMetric
from selkit.metrics.selective import SelectiveMetric

__all__ = [
    "DiscoveryMetric",
    "RiskCoverage",
    "RiskCoverageMetric",
    "SelectiveMetric",
    "absolute_error",
    "augrc",
    "aurc",
    "bootstrap_risk_coverage",
    "coverage_at_risk",
    "dice_loss",
    "discoveries",
    "excess_aurc",
    "risk_at_coverage",
    "risk_coverage",
    "squared_error",
    "zero_one_loss",
]
