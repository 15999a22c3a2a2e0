"""Risk-coverage as a torchmetrics metric: exact, or in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError
from selkit.metrics import bins as float_bins
from selkit.metrics.bootstrap import MOST, bootstrap_risk_coverage
from selkit.metrics.curve import RiskCoverage, check_risk_type
from selkit.metrics.functional import as_vector_tensor, check_pair, risk_coverage
from selkit.metrics.gather import gather_tensors
from selkit.metrics.losses import zero_one_loss
from selkit.metrics.summary import check_points, names_of, summarize
from selkit.utils.boundary import public
from selkit.utils.checks import integer, number, text
from selkit.utils.checks import seed as check_seed

_PENDING = 1024  # appended tensors that are joined into one, so that small batches leave no long list


class RiskCoverageMetric(Metric):
    """Areas under the risk-coverage curve, and points of it, over any number of batches and processes.

    Parameters
    ----------
    risk
        ``"selective"`` or ``"generalized"``: which risk :meth:`get_curve` and :meth:`plot` show.
    coverage
        Coverages at which the selective risk is reported.
    at_risk
        Risks at which the coverage is reported.
    loss
        ``(preds, target) -> (N,)``, for updates with predictions and targets;
        :func:`selkit.metrics.zero_one_loss` without it.
    ignore_index
        A target that means that there is none: samples of which all targets are it are left out of updates
        with predictions and targets.
    bins
        ``None``: keep every score and loss, exact. A power of two from 1,024 to 67,108,864: round scores and
        losses into that many bins, so that memory stays at 32 bytes per bin for any number of samples.
        Points of the curve stay exact for the float32 scores; ``rc/aurc_error`` and ``rc/augrc_error``
        bound what the areas can be off. ``2**20`` bins (32 MiB) have a relative width of 1/2048.
    n_boot
        Bootstrap replicates for intervals, 0 for none. Needs every sample, so ``bins=None``.
    confidence
        Confidence of the intervals.
    seed
        Of the bootstrap.
    prefix
        Put before every name in :meth:`compute`.
    **kwargs
        For :class:`torchmetrics.Metric`.

    Raises
    ------
    InvalidInputError
        For arguments out of range, and at :meth:`compute` for NaN among scores or losses.

    Examples
    --------
    >>> metric = RiskCoverageMetric(coverage=[0.5], at_risk=[0.1])
    >>> metric.update(torch.tensor([0.1, 0.2]), torch.tensor([0.0, 0.0]))
    >>> metric.update(torch.tensor([0.8, 0.9]), torch.tensor([0.0, 1.0]))
    >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
    {'rc/aurc': 0.0625, 'rc/excess_aurc': 0.0, 'rc/augrc': 0.0312, 'rc/excess_augrc': 0.0,
     'rc/risk_at_coverage_0.5': 0.0, 'rc/coverage_at_risk_0.1': 0.75, 'rc/count': 4.0}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    score: list[Tensor]
    loss: list[Tensor]
    score_count: Tensor
    score_loss: Tensor
    loss_count: Tensor
    loss_loss: Tensor
    refused: Tensor
    loss_low: Tensor
    loss_high: Tensor

    @public
    def __init__(
        self,
        risk: str = "selective",
        *,
        coverage: Sequence[float] = (),
        at_risk: Sequence[float] = (),
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        ignore_index: int | None = None,
        bins: int | None = None,
        n_boot: int = 0,
        confidence: float = 0.95,
        seed: int = 0,
        prefix: str = "rc/",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dist_sync_fn", gather_tensors)
        super().__init__(**kwargs)
        self.risk = check_risk_type(risk)
        self.coverage, self.at_risk = check_points(coverage, at_risk)
        self.loss_function = zero_one_loss if loss is None else loss
        if not callable(self.loss_function):
            raise InvalidTypeError(
                f"loss must be a function (preds, target) -> (N,), got {type(loss).__name__}"
            )
        self.ignore_index = None if ignore_index is None else integer(ignore_index, "ignore_index")
        n_boot, seed = integer(n_boot, "n_boot"), check_seed(seed)
        confidence = number(confidence, "confidence")
        if n_boot < 0 or not 0 < confidence < 1:
            raise InvalidInputError(
                f"n_boot must be at least 0 and confidence in (0, 1); got {n_boot} and {confidence}"
            )
        integer(n_boot, "n_boot", 0, MOST)
        check_seed(seed)
        if n_boot and bins is not None:
            raise NotAvailableError(
                "the bootstrap draws single samples, which bins= does not keep; use bins=None or n_boot=0"
            )
        self.bins, self.n_boot, self.confidence, self.seed, self.prefix = (
            bins,
            n_boot,
            confidence,
            seed,
            text(prefix, "prefix"),
        )
        self._last_curve: RiskCoverage | None = None
        if bins is None:
            self.add_state("score", default=[], dist_reduce_fx="cat")
            self.add_state("loss", default=[], dist_reduce_fx="cat")
        else:
            self._add_bins(bins)

    def _add_bins(self, bins: int) -> None:
        bits = max(integer(bins, "bins").bit_length() - 1, 0)
        if bins != 1 << bits or not float_bins.MIN_BITS <= bits <= float_bins.MAX_BITS:
            raise InvalidInputError(
                f"bins must be a power of two from {1 << float_bins.MIN_BITS} to {1 << float_bins.MAX_BITS}; "
                f"got {bins}"
            )
        self._bits = bits
        for key in ("score", "loss"):
            self.add_state(f"{key}_count", default=torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(
                f"{key}_loss", default=torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum"
            )
        self.add_state("refused", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss_low", default=torch.tensor(torch.inf).double(), dist_reduce_fx="min")
        self.add_state("loss_high", default=torch.tensor(-torch.inf).double(), dist_reduce_fx="max")

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Keep the dtypes of the states: sums and counts need theirs."""
        return self

    @public
    def update(self, *args: Tensor, **kwargs: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        *args, **kwargs
            Either ``score`` and ``loss``, one per sample each, or ``preds``, ``target`` and ``scores``, by
            position or by name; then the loss is ``loss(preds, target)`` of the constructor.

        Raises
        ------
        InvalidInputError
            If they are not one number per sample each.
        InvalidTypeError
            For other arguments.
        """
        score, loss = self._score_and_loss(args, kwargs)
        score, loss = as_vector_tensor(score, "score"), as_vector_tensor(loss, "loss")
        check_pair(score, loss)
        if self.bins is None:
            # kept until compute, so never a view of a tensor that the caller writes to
            self._append(self.score, score.to(self.device, copy=True))
            self._append(self.loss, loss.to(self.device, copy=True))
        else:
            self._count(score.to(self.device), loss.to(self.device).double())

    def _score_and_loss(self, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        names = ("score", "loss") if len(args) + len(kwargs) == 2 else ("preds", "target", "scores")
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) + len(kwargs) != len(names) or set(given) != set(names):
            raise InvalidTypeError(
                "update takes (score, loss) or (preds, target, scores); "
                f"got {len(args)} by position and {sorted(kwargs)} by name"
            )
        if len(names) == 2:
            return given["score"], given["loss"]
        preds, target, scores = given["preds"], given["target"], given["scores"]
        loss = self.loss_function(preds, target)
        if self.ignore_index is None:
            return scores, loss
        valid = (target != self.ignore_index).reshape(len(target), -1).any(1)
        return as_vector_tensor(scores, "score")[valid.to(scores.device)], loss[valid.to(loss.device)]

    def _append(self, state: list[Tensor], value: Tensor) -> None:
        state.append(value)
        if len(state) >= _PENDING and len(state[-_PENDING]) <= len(value) * 2:
            state[-_PENDING:] = [torch.cat(state[-_PENDING:])]

    def _count(self, score: Tensor, loss: Tensor) -> None:
        """Add to the histograms without waiting for the device; NaN is counted and refused in compute."""
        good = ~torch.isnan(score) & torch.isfinite(loss)
        self.refused += (~good).sum()
        weight = good.long()
        loss = torch.where(good, loss, 0.0)
        for key, values in (("score", torch.where(good, score, 0.0)), ("loss", loss)):
            index = float_bins.bin_of(values, self._bits)
            getattr(self, f"{key}_count").index_add_(0, index, weight)
            getattr(self, f"{key}_loss").index_add_(0, index, loss)
        if len(loss):
            self.loss_low = torch.minimum(self.loss_low, torch.where(good, loss, torch.inf).min())
            self.loss_high = torch.maximum(self.loss_high, torch.where(good, loss, -torch.inf).max())

    def compute(self) -> dict[str, Tensor]:
        """The areas and the points that were asked for.

        Returns
        -------
        dict of str to Tensor
            float64 scalars: ``aurc``, ``excess_aurc``, ``augrc``, ``excess_augrc``, ``risk_at_coverage_<c>``,
            ``coverage_at_risk_<r>``, with ``_lower`` and ``_upper`` for a bootstrap, ``count``, and with bins
            ``aurc_error`` and ``augrc_error``; each behind ``prefix``. All but the count are NaN when there
            were no samples.

        Raises
        ------
        InvalidInputError
            If a score was NaN, or a loss NaN or infinite.
        """
        count, self._last_curve = self._n(), None
        if not count:
            values = dict.fromkeys(names_of(self.coverage, self.at_risk), torch.tensor(torch.nan).double())
        else:
            curve = self._last_curve = self._curve()
            values = summarize(curve, self.coverage, self.at_risk)
            if self.n_boot:
                values |= bootstrap_risk_coverage(
                    dim_zero_cat(self.score),
                    dim_zero_cat(self.loss),
                    coverage=self.coverage,
                    at_risk=self.at_risk,
                    n_boot=self.n_boot,
                    confidence=self.confidence,
                    seed=self.seed,
                )
            if self.bins is not None:
                values |= {"aurc_error": curve.aurc_error, "augrc_error": curve.augrc_error}
        values["count"] = torch.tensor(float(count)).double()
        if self.device.type == "mps":  # no float64 there
            values = {name: value.float() for name, value in values.items()}
        return {self.prefix + name: value.to(self.device) for name, value in values.items()}

    def _n(self) -> int:
        if self.bins is not None:
            return int(self.score_count.sum())
        return len(dim_zero_cat(self.score)) if len(self.score) else 0  # a list, or one tensor when synced

    def _curve(self) -> RiskCoverage:
        if self.bins is None:
            return risk_coverage(dim_zero_cat(self.score), dim_zero_cat(self.loss), self.risk)
        if int(self.refused):
            raise InvalidInputError(
                f"{int(self.refused)} samples had a NaN score, or a NaN or infinite loss; remove them or "
                "mend what made them"
            )
        index = self.score_count.nonzero()[:, 0]
        best = self.loss_count.nonzero()[:, 0]
        return RiskCoverage(
            threshold=float_bins.upper_edge(index, self._bits),
            accepted=self.score_count[index].cumsum(0),
            loss_sum=self.score_loss[index].cumsum(0),
            best_accepted=self.loss_count[best].cumsum(0),
            best_loss_sum=self.loss_loss[best].cumsum(0),
            risk_type=self.risk,
            loss_range=(float(self.loss_low), float(self.loss_high)),
            binned=True,
        )

    def get_curve(self) -> RiskCoverage | None:
        """The curve of all samples so far, over all processes; ``None`` before the first.

        Returns
        -------
        RiskCoverage or None
            Its areas are the numbers of :meth:`compute`.

        Raises
        ------
        InvalidInputError
            As for :meth:`compute`.
        """
        self.compute()  # free when nothing was added since
        return self._last_curve

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self._last_curve = None

    @public
    def plot(self, ax: Any = None, **kwargs: Any) -> Any:
        """Draw :meth:`get_curve`; arguments as for :meth:`RiskCoverage.plot`.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        InvalidInputError
            If there are no samples yet.
        """
        curve = self.get_curve()
        if curve is None:
            raise InvalidInputError("there is nothing to plot: call update with scores and losses first")
        return curve.plot(ax=ax, **kwargs)
