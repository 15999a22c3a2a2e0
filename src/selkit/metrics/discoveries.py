"""What the tests of accepted samples found over a whole test set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics.gather import gather_tensors
from selkit.utils.arrays import check_fraction
from selkit.utils.boundary import public
from selkit.utils.checks import number, text


@public
def discoveries(p_value: Tensor, fdr: float = 0.05) -> Tensor:
    """Which hypotheses Benjamini and Hochberg's procedure rejects.

    Parameters
    ----------
    p_value
        Shape ``(N,)``, in [0, 1]; NaN where nothing was tested, which counts for nothing.
    fdr
        False discovery rate, in (0, 1).

    Returns
    -------
    Tensor
        Boolean, shape ``(N,)``.

    Raises
    ------
    InvalidInputError
        For a value outside [0, 1].

    Examples
    --------
    >>> discoveries(torch.tensor([0.001, 0.4, torch.nan, 0.03]), fdr=0.05)
    tensor([ True, False, False,  True])
    """
    from selkit.calibration import benjamini_hochberg

    _check_tensor(p_value, "p_value")
    check_fraction(fdr, "fdr", zero=False, one=False)
    tested = ~p_value.isnan()
    found = torch.zeros(p_value.shape, dtype=torch.bool, device=p_value.device)
    if bool(tested.any()):
        known = benjamini_hochberg(p_value[tested].detach().double().cpu().numpy(), fdr)
        found[tested] = torch.from_numpy(known).to(p_value.device)
    return found


class DiscoveryMetric(Metric):
    """Coverage of a test set, and how many of its accepted samples have a region that is real.

    p-values of accepted samples must be conditioned on acceptance
    (:meth:`selkit.RoiTest.inference` with ``accepted_by=``).

    Parameters
    ----------
    fdr
        False discovery rate of Benjamini and Hochberg's procedure over all accepted samples.
    alpha
        Level at which a single test rejects.
    prefix
        Put before every name in :meth:`compute`.
    **kwargs
        For :class:`torchmetrics.Metric`.

    Raises
    ------
    InvalidInputError
        For levels out of (0, 1).

    Examples
    --------
    >>> metric = DiscoveryMetric(fdr=0.05)
    >>> p_value = torch.tensor([0.001, 0.04, 0.5, torch.nan])
    >>> metric.update(p_value, selected=torch.tensor([True, True, True, False]))
    >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
    {'coverage': 0.75, 'tested': 3.0, 'rejection_rate': 0.6667, 'discoveries': 1.0, 'mean_discoveries': 0.25}
    """

    is_differentiable = False
    full_state_update = False
    p_value: list[Tensor]
    total: Tensor
    accepted: Tensor

    @public
    def __init__(self, fdr: float = 0.05, *, alpha: float = 0.05, prefix: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("dist_sync_fn", gather_tensors)
        super().__init__(**kwargs)
        for name, level in (("fdr", fdr), ("alpha", alpha)):
            number(level, name, 0, 1, ends="()")
        self.fdr, self.alpha, self.prefix = float(fdr), float(alpha), text(prefix, "prefix")
        self.add_state("p_value", default=[], dist_reduce_fx="cat")
        for name in ("total", "accepted"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Keep the dtypes of the states: p-values and counts need theirs."""
        return self

    @public
    def update(self, p_value: Tensor, selected: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        p_value
            Shape ``(B,)``; NaN where no test was made: for rejected samples, and where there is no region.
        selected
            Boolean, ``(B,)``: which samples were accepted.

        Raises
        ------
        InvalidInputError
            For p-values outside [0, 1] or of rejected samples, or shapes that do not fit.
        InvalidTypeError
            If ``selected`` is not boolean.
        """
        for name, value in (("p_value", p_value), ("selected", selected)):
            _check_tensor(value, name)
        if selected.dtype != torch.bool:
            raise InvalidTypeError(f"selected must be boolean; got {selected.dtype}")
        if p_value.ndim != 1 or p_value.shape != selected.shape:
            raise InvalidInputError(
                "p_value and selected must be one number per sample each; got shapes "
                f"{tuple(p_value.shape)} and {tuple(selected.shape)}"
            )
        p_value, selected = p_value.detach().to(self.device, torch.float64), selected.to(self.device)
        tested = ~p_value.isnan()
        if bool((tested & ~selected).any()):
            raise InvalidInputError(
                f"{int((tested & ~selected).sum())} rejected sample(s) have a p-value; only accepted ones "
                "are tested: set the others to NaN"
            )
        known = p_value[tested]
        if bool(((known < 0) | (known > 1)).any()):
            raise InvalidInputError("p_value must lie in [0, 1]; NaN says that nothing was tested")
        self.p_value.append(known)
        self.total += len(p_value)
        self.accepted += int(selected.sum())

    def compute(self) -> dict[str, Tensor]:
        """Values over all batches and processes.

        Returns
        -------
        dict
            ``coverage``: accepted samples as a fraction of all; ``tested``: how many of them had a region;
            ``rejection_rate``: the fraction of the tested with a p-value up to ``alpha``; ``discoveries``:
            how many Benjamini and Hochberg's procedure rejects at ``fdr``; ``mean_discoveries``: the same
            for each sample of the set, accepted or not. Fractions of nothing are NaN.
        """
        # a list here, a tensor once it is gathered from all processes
        known = dim_zero_cat(self.p_value) if len(self.p_value) else torch.zeros(0, device=self.device)
        found = discoveries(known, self.fdr).sum()
        values = {
            "coverage": self.accepted / self.total,
            "tested": torch.tensor(float(len(known)), device=self.device),
            "rejection_rate": (known <= self.alpha).sum() / len(known)
            if len(known)
            else torch.tensor(torch.nan, device=self.device),
            "discoveries": found.float(),
            "mean_discoveries": found / self.total,
        }
        return {f"{self.prefix}{name}": value for name, value in values.items()}


def _check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise InvalidTypeError(f"{name} must be a tensor; got {type(value).__name__}")
