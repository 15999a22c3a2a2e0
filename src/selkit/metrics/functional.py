"""Risk-coverage numbers from the scores and losses of all samples."""

from __future__ import annotations

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics.curve import RiskCoverage, check_risk_type
from selkit.utils.arrays import ArrayLike, as_tensor
from selkit.utils.boundary import public


def as_vector_tensor(values: ArrayLike, name: str) -> Tensor:
    """One real number per sample, ``(N,)``; ``(N, 1)`` is taken too, integers become floating."""
    tensor = as_tensor(values, name)
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 1:
        raise InvalidInputError(
            f"{name} must be one number per sample, shape (samples,); got {tuple(tensor.shape)}"
        )
    if tensor.is_complex():
        raise InvalidTypeError(f"{name} must be real; got {tensor.dtype}")
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    wide = tensor.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64)
    return tensor.double() if wide and tensor.device.type != "mps" else tensor.float()


def check_pair(score: Tensor, loss: Tensor) -> None:
    """Refuse scores and losses that do not belong together."""
    if score.shape != loss.shape:
        raise InvalidInputError(
            f"score and loss must have one entry per sample each; got {len(score)} scores and "
            f"{len(loss)} losses"
        )


def check_values(score: Tensor, loss: Tensor) -> None:
    """Refuse NaN scores, and losses that are not finite."""
    bad_scores = int(torch.isnan(score).sum())
    bad_losses = int((~torch.isfinite(loss)).sum())
    if bad_scores or bad_losses:
        raise InvalidInputError(
            f"{bad_scores} of {len(score)} scores are NaN and {bad_losses} losses are NaN or infinite; "
            "remove these samples or mend what made them (an infinite score is fine: it is never preferred)"
        )


def _cumulative(key: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct keys of a sorted vector, how many entries each ends at, and the losses up to there."""
    last = torch.ones(len(key), dtype=torch.bool, device=key.device)
    last[:-1] = key[1:] != key[:-1]
    ends = last.nonzero()[:, 0]
    return key[ends], ends + 1, loss.cumsum(0, dtype=torch.float64)[ends]


@public
def risk_coverage(score: ArrayLike, loss: ArrayLike, risk: str = "selective") -> RiskCoverage:
    """The risk-coverage curve of a score.

    Parameters
    ----------
    score
        One per sample, ``(N,)``; the lowest are accepted first. Infinite scores are allowed.
    loss
        The loss of each sample, ``(N,)``, finite: 0/1 for right and wrong, an error, 1 - Dice, ...
    risk
        ``"selective"``: mean loss of the accepted samples. ``"generalized"``: their summed loss over the
        number of all samples. Only what ``risk``, ``reference``, ``excess`` and the plot show depends on it.

    Returns
    -------
    RiskCoverage

    Raises
    ------
    InvalidInputError
        If the two differ in length, are empty, or have NaN.
    InvalidTypeError
        If they are not real numbers.

    Notes
    -----
    Every result is the same for every order of the rows, to the last bit.

    Examples
    --------
    >>> import torch
    >>> curve = risk_coverage(torch.tensor([0.1, 0.2, 0.2, 0.9]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    >>> curve.coverage
    tensor([0.2500, 0.7500, 1.0000], dtype=torch.float64)
    >>> curve.risk
    tensor([0.0000, 0.3333, 0.5000], dtype=torch.float64)
    >>> curve.coverage_at_risk(0.4)
    tensor(0.7500, dtype=torch.float64)
    """
    kind = check_risk_type(risk)
    score_, loss_ = as_vector_tensor(score, "score"), as_vector_tensor(loss, "loss")
    check_pair(score_, loss_)
    if not len(score_):
        raise InvalidInputError("score and loss are empty; a curve needs at least one sample")
    check_values(score_, loss_)
    if score_.device.type == "mps" or loss_.device.type == "mps":
        score_, loss_ = score_.cpu(), loss_.cpu()  # no float64 there
    loss_ = loss_.to(score_.device)
    # by loss first: then ties of the score are summed in one order, whatever the order of the rows
    loss_, order = loss_.sort()
    _, best_accepted, best_loss_sum = _cumulative(loss_, loss_)
    low, high = float(loss_[0]), float(loss_[-1])
    score_, order = score_[order].sort(stable=True)
    threshold, accepted, loss_sum = _cumulative(score_, loss_[order])
    return RiskCoverage(
        threshold, accepted, loss_sum, best_accepted, best_loss_sum, kind, loss_range=(low, high)
    )


@public
def aurc(score: ArrayLike, loss: ArrayLike) -> Tensor:
    """Area under the risk-coverage curve: mean over ``k`` of the mean loss of the ``k`` lowest scores.

    Parameters
    ----------
    score, loss
        As for :func:`risk_coverage`.

    Returns
    -------
    Tensor
        float64 scalar, in expectation over the order of tied scores.

    Examples
    --------
    >>> aurc(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.0, 0.0, 1.0]))
    tensor(0.1111, dtype=torch.float64)
    """
    return risk_coverage(score, loss).aurc


@public
def excess_aurc(score: ArrayLike, loss: ArrayLike) -> Tensor:
    """AURC above that of the best possible score, the loss itself (Geifman et al. 2019).

    Parameters
    ----------
    score, loss
        As for :func:`risk_coverage`.

    Returns
    -------
    Tensor
        float64 scalar, at least 0. The reference is the exact one of these samples, not its limit
        ``e + (1 - e) log(1 - e)`` for many.

    Examples
    --------
    >>> excess_aurc(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.0, 0.0, 1.0]))
    tensor(0., dtype=torch.float64)
    """
    return risk_coverage(score, loss).excess_aurc


@public
def augrc(score: ArrayLike, loss: ArrayLike) -> Tensor:
    """Area under the generalized risk-coverage curve (Traub et al. 2024).

    Parameters
    ----------
    score, loss
        As for :func:`risk_coverage`.

    Returns
    -------
    Tensor
        float64 scalar: the chance that a sample fails and is accepted, averaged over coverages.

    Examples
    --------
    >>> augrc(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.0, 0.0, 1.0]))
    tensor(0.0556, dtype=torch.float64)
    """
    return risk_coverage(score, loss).augrc


@public
def risk_at_coverage(score: ArrayLike, loss: ArrayLike, coverage: float) -> Tensor:
    """Selective risk at the lowest threshold that accepts at least a given fraction.

    Parameters
    ----------
    score, loss
        As for :func:`risk_coverage`.
    coverage
        In (0, 1].

    Returns
    -------
    Tensor
        float64 scalar.

    Examples
    --------
    >>> risk_at_coverage(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.0, 0.0, 1.0]), coverage=0.6)
    tensor(0., dtype=torch.float64)
    """
    return risk_coverage(score, loss).risk_at_coverage(coverage)


@public
def coverage_at_risk(score: ArrayLike, loss: ArrayLike, risk: float) -> Tensor:
    """The largest coverage whose selective risk is at most ``risk``.

    Parameters
    ----------
    score, loss
        As for :func:`risk_coverage`.
    risk
        A finite mean loss.

    Returns
    -------
    Tensor
        float64 scalar; 1 where all may be accepted, 0 where no threshold reaches the risk. A description of
        these samples, not a promise: for that, see ``UncertaintyScore.calibrate(risk=...)``.

    Examples
    --------
    >>> coverage_at_risk(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.0, 0.0, 0.0]), risk=0.05)
    tensor(1., dtype=torch.float64)
    """
    return risk_coverage(score, loss).coverage_at_risk(risk)
