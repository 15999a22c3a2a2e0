"""The numbers of a risk-coverage curve that reports show, and their names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.metrics.curve import RiskCoverage


def check_points(
    coverage: Sequence[float], at_risk: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The coverages and risks to report at, checked."""
    coverages, risks = tuple(map(float, coverage)), tuple(map(float, at_risk))
    if not all(0 < value <= 1 for value in coverages):
        raise InvalidInputError(f"coverage must hold numbers in (0, 1]; got {list(coverages)}")
    if not all(math.isfinite(value) for value in risks):
        raise InvalidInputError(f"at_risk must hold finite numbers; got {list(risks)}")
    return coverages, risks


def names_of(coverage: Sequence[float], at_risk: Sequence[float]) -> list[str]:
    """Names of the values of :func:`summarize`, in order."""
    areas = ["aurc", "excess_aurc", "augrc", "excess_augrc"]
    points = [f"risk_at_coverage_{value:g}" for value in coverage]
    return areas + points + [f"coverage_at_risk_{value:g}" for value in at_risk]


def summarize(
    curve: RiskCoverage, coverage: Sequence[float] = (), at_risk: Sequence[float] = ()
) -> dict[str, Tensor]:
    """Areas of a curve, the risks at some coverages and the coverages at some risks.

    Parameters
    ----------
    curve
        Of some samples.
    coverage, at_risk
        Where to read the curve.

    Returns
    -------
    dict of str to Tensor
        float64 scalars.
    """
    values = [curve.aurc, curve.excess_aurc, curve.augrc, curve.excess_augrc]
    values += [curve.risk_at_coverage(value) for value in coverage]
    values += [curve.coverage_at_risk(value) for value in at_risk]
    return dict(zip(names_of(coverage, at_risk), values, strict=True))
