r"""Areas under risk-coverage curves, from blocks of samples that share a score.

A block is all samples with one score; only its size and the sum of its losses matter. Samples of a
block have no order among themselves, so each quantity here is its expectation over a random order
of the block, which replaces every loss of the block by the block's mean. With :math:`K_j` the samples
and :math:`S_j` the losses up to block :math:`j`, :math:`c_j` and :math:`L_j` its own, and
:math:`\mu_j = L_j / c_j`:

.. math::

   \mathrm{AURC} &= \frac1n \sum_{k=1}^{n} \frac{E[\text{losses of the first } k]}{k}
      = \frac1n \sum_j \left( L_j + (S_{j-1} - K_{j-1}\mu_j)(H_{K_j} - H_{K_{j-1}}) \right) \\
   \mathrm{AUGRC} &= \int_0^1 E[\text{losses accepted at coverage } c] / n \; dc
      = \frac{1}{n^2} \sum_j c_j \frac{S_{j-1} + S_j}{2}

with harmonic numbers :math:`H`. AURC is the mean of the selective risk over the ``n`` coverages
(Geifman & El-Yaniv 2017, Geifman et al. 2019), AUGRC the integral of the generalized risk (Traub et
al. 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EULER = 0.57721566490153286
_SMALL = 64  # from here on, the expansion below is exact to the last digits of float64


def _harmonic_tail(k: Tensor) -> Tensor:
    """What the expansion of the harmonic number adds to ``log(k) + gamma``."""
    inverse = 1 / k
    square = inverse * inverse
    return inverse / 2 - square / 12 + square**2 / 120 - square**3 / 252


def harmonic_difference(low: Tensor, high: Tensor) -> Tensor:
    """``1/(low+1) + ... + 1/high``, without the cancellation of a difference of large sums.

    Parameters
    ----------
    low, high
        Non-negative whole numbers as float64, ``low <= high``.

    Returns
    -------
    Tensor
        The sums, zero where ``low == high``.

    Examples
    --------
    >>> harmonic_difference(torch.tensor(1.0).double(), torch.tensor(3.0).double())
    tensor(0.8333, dtype=torch.float64)
    """
    table = torch.zeros(_SMALL + 1, dtype=torch.float64, device=low.device)
    table[1:] = (1 / torch.arange(1, _SMALL + 1, dtype=torch.float64, device=low.device)).cumsum(0)
    far = high.clamp(min=_SMALL)
    last = torch.where(
        high <= _SMALL, table[high.clamp(max=_SMALL).long()], far.log() + _EULER + _harmonic_tail(far)
    )
    small = last - table[low.clamp(max=_SMALL).long()]
    start = low.clamp(min=_SMALL)
    large = torch.log1p((far - start) / start) + (_harmonic_tail(far) - _harmonic_tail(start))
    return torch.where(low < _SMALL, small, large)


def aurc(accepted: Tensor, total: Tensor) -> Tensor:
    """Mean selective risk over all coverages, ties in expectation.

    Parameters
    ----------
    accepted
        Samples up to each block, in order of acceptance, int64, ``(blocks,)``.
    total
        Sum of the losses up to there, float64, ``(blocks,)``.

    Returns
    -------
    Tensor
        float64 scalar.

    Examples
    --------
    >>> aurc(torch.tensor([1, 2, 3]), torch.tensor([0.0, 0.0, 1.0]).double())
    tensor(0.1111, dtype=torch.float64)
    """
    risk = total / accepted
    tied = (torch.diff(accepted, prepend=accepted.new_zeros(1)) > 1).nonzero()[:, 0]
    if len(tied):  # a block of one sample adds just its risk; most blocks may be such
        previous = (tied - 1).clamp(min=0)
        first = tied == 0
        before = torch.where(first, 0, accepted[previous]).double()
        start = torch.where(first, 0.0, total[previous])
        after, loss = accepted[tied].double(), total[tied] - start
        mean = loss / (after - before)
        risk[tied] = loss + (start - before * mean) * harmonic_difference(before, after)
    return risk.sum() / accepted[-1]


def augrc(accepted: Tensor, total: Tensor) -> Tensor:
    """Integral of the generalized risk over coverage, ties in expectation.

    Parameters
    ----------
    accepted, total
        As for :func:`aurc`.

    Returns
    -------
    Tensor
        float64 scalar. For 0/1 losses with mean ``e`` this is ``(1 - AUROC) e (1 - e) + e^2 / 2``, where
        AUROC is that of the score as a detector of errors.

    Examples
    --------
    >>> augrc(torch.tensor([1, 2, 3]), torch.tensor([0.0, 0.0, 1.0]).double())
    tensor(0.0556, dtype=torch.float64)
    """
    inner = torch.trapezoid(total, accepted.double())
    return (inner + accepted[0] * total[0] / 2) / accepted[-1].double() ** 2


def aurc_slack(count: Tensor, loss: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """How far AURC and AUGRC can be from those of the samples, had each block an order of its own.

    Inside a block the losses so far leave the straight line by at most ``L (1 - L / (R c))``, where ``R`` is
    the range of the losses, ``c`` the size of the block and ``L`` the sum of its losses above the
    lowest: the worst orders are all losses of size ``R`` first, or last.

    Parameters
    ----------
    count, loss
        Samples of each block, and the sum of their losses, float64, ``(blocks,)``.
    low, high
        The smallest and largest loss of a sample.

    Returns
    -------
    tuple of Tensor
        Bounds of the absolute difference for AURC and for AUGRC; zero where no block mixes losses.
    """
    if not math.isfinite(high - low) or high <= low:
        zero = torch.zeros((), dtype=torch.float64, device=count.device)
        return zero, zero.clone()
    above = (loss - low * count).clamp(min=0)
    bend = (above * (1 - above / ((high - low) * count.clamp(min=1)))).clamp(min=0)
    accepted = count.cumsum(-1)
    inner = (accepted - 1).clamp(min=0)
    before = accepted - count
    n = accepted[-1]
    steps = torch.where(count > 1, harmonic_difference(before, torch.maximum(inner, before)), 0.0)
    return (bend * steps).sum() / n, (bend * (count - 1).clamp(min=0)).sum() / n**2
