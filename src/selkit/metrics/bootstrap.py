"""Bootstrap intervals for risk-coverage numbers: samples are drawn anew, sorted only once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.metrics.curve import RiskCoverage
from selkit.metrics.functional import as_vector_tensor, check_pair, check_values
from selkit.metrics.summary import check_points, summarize
from selkit.utils.arrays import ArrayLike
from selkit.utils.boundary import public
from selkit.utils.checks import integer
from selkit.utils.checks import seed as check_seed

MOST = 1_000_000
"""Resamples: more change no interval."""


@public
def bootstrap_risk_coverage(
    score: ArrayLike,
    loss: ArrayLike,
    *,
    coverage: Sequence[float] = (),
    at_risk: Sequence[float] = (),
    n_boot: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Percentile intervals (Efron & Tibshirani 1993) of all numbers of a risk-coverage curve.

    Parameters
    ----------
    score, loss
        As for :func:`risk_coverage`.
    coverage, at_risk
        Coverages at which to report the risk, and risks at which to report the coverage.
    n_boot
        Replicates: as many samples, drawn with replacement.
    confidence
        Of each interval, in (0, 1).
    seed
        Of the draws, which are made on the CPU and so are the same on every device.

    Returns
    -------
    dict of str to Tensor
        ``aurc_lower``, ``aurc_upper``, ``excess_aurc_lower``, ...: float64 scalars.

    Raises
    ------
    InvalidInputError
        For arguments out of range, and as for :func:`risk_coverage`.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> score = torch.rand(500, generator=draw)
    >>> loss = (torch.rand(500, generator=draw) < score).float()
    >>> bounds = bootstrap_risk_coverage(score, loss, n_boot=200)
    >>> bool(bounds["aurc_lower"] < bounds["aurc_upper"])
    True
    """
    if n_boot < 1 or not 0 < confidence < 1:
        raise InvalidInputError(
            f"n_boot must be at least 1 and confidence in (0, 1); got {n_boot} and {confidence}"
        )
    coverages, risks = check_points(coverage, at_risk)
    score_, loss_ = as_vector_tensor(score, "score").cpu(), as_vector_tensor(loss, "loss").cpu()
    check_pair(score_, loss_)
    if not len(score_):
        raise InvalidInputError("score and loss are empty; a bootstrap needs at least one sample")
    check_values(score_, loss_)
    # by score and then by loss, so that a draw means the same sample whatever the order of the rows
    score_, order = score_.sort()
    loss_, order = loss_[order].double().sort(stable=True)
    score_, by_score = score_[order].sort(stable=True)
    integer(n_boot, "n_boot", 1, MOST)
    draw = torch.Generator().manual_seed(check_seed(seed))
    replicates: dict[str, list[Tensor]] = {}
    for _ in range(n_boot):
        drawn = torch.randint(len(loss_), (len(loss_),), generator=draw)
        times = torch.bincount(drawn, minlength=len(loss_))
        curve = _weighted_curve(score_, loss_, by_score, times)
        for name, value in summarize(curve, coverages, risks).items():
            replicates.setdefault(name, []).append(value)
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    bounds: dict[str, Tensor] = {}
    for name, values in replicates.items():
        bounds[f"{name}_lower"], bounds[f"{name}_upper"] = torch.stack(values).quantile(tails)
    return bounds


def _weighted_curve(score: Tensor, loss: Tensor, by_score: Tensor, times: Tensor) -> RiskCoverage:
    """The curve of samples that occur several times or not at all.

    ``loss`` and ``times`` are in order of loss, ``score`` in its own order, which ``by_score`` leads to.
    """
    best = _ends(loss, times)
    weight = times[by_score]
    ends = _ends(score, weight)
    weighted = loss * times
    return RiskCoverage(
        threshold=score[ends],
        accepted=weight.cumsum(0)[ends],
        loss_sum=weighted[by_score].cumsum(0)[ends],
        best_accepted=times.cumsum(0)[best],
        best_loss_sum=weighted.cumsum(0)[best],
    )


def _ends(key: Tensor, times: Tensor) -> Tensor:
    """Where each block of equal keys ends, of blocks with a sample that was drawn."""
    last = torch.ones(len(key), dtype=torch.bool)
    last[:-1] = key[1:] != key[:-1]
    ends = last.nonzero()[:, 0]
    return ends[torch.diff(times.cumsum(0)[ends], prepend=times.new_zeros(1)) > 0]
