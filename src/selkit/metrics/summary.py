"""The numbers of a risk-coverage curve that reports show, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from selkit.errors import InvalidTypeError
from selkit.metrics.curve import RiskCoverage
from selkit.utils.checks import given, number


def check_points(
    coverage: Sequence[float], at_risk: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The coverages and risks to report at, checked."""
    for name, values in (("coverage", coverage), ("at_risk", at_risk)):
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise InvalidTypeError(f"{name} must be a sequence of numbers; got {given(values)}")
    coverages = tuple(number(value, "each coverage", 0, 1, ends="(]") for value in coverage)
    return coverages, tuple(number(value, "each number in at_risk") for value in at_risk)


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
