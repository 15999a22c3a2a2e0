"""Everything the task reports about the samples of one loader."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from selkit.metrics import DiscoveryMetric, RiskCoverage, RiskCoverageMetric, SelectiveMetric
from selkit.metrics.gather import gather_tensors
from selkit.task.regions import RegionResults, RegionTally


class SelectionReport(nn.Module):
    """Metrics by selection, coverage, risk-coverage and region tests, filled batch by batch.

    Parameters
    ----------
    base
        The model's metrics.
    rc_metric
        Copied; filled where there is a loss.
    alpha
        Level of the region tests, or ``None`` without tests.
    """

    def __init__(
        self, base: Metric | MetricCollection, rc_metric: RiskCoverageMetric, alpha: float | None
    ) -> None:
        super().__init__()
        self.metrics = SelectiveMetric(base)
        self.risk = copy.deepcopy(rc_metric)
        self.risk.reset()
        self.regions = None if alpha is None else RegionTally(alpha)
        self.found = None if alpha is None else DiscoveryMetric(alpha, alpha=alpha, prefix="roi/")
        self.unusable = Unusable()
        self.bad: dict[str, Tensor] = {}
        self.curve: RiskCoverage | None = None  # of all processes, after compute

    def update(
        self,
        preds: Any,
        target: Any,
        selection: Mapping[str, Tensor],
        loss: tuple[Tensor, Tensor] | None,
        regions: RegionResults | None,
    ) -> None:
        """Add a batch; all arguments have its rows, the loss with which samples have a target."""
        self.metrics.update(preds, target, selected=selection["selected"])
        usable = selection.get("finite")
        self.unusable.update(samples=None if usable is None else ~usable)
        if loss is not None:
            values, valid = loss
            finite = torch.isfinite(values)
            self.unusable.update(losses=valid & ~finite)
            self.risk.update(score=selection["score"].to(values.device)[finite], loss=values[finite])
        if regions is not None and self.regions is not None:
            self.regions.update(regions)
        if regions is not None and self.found is not None:
            self.found.update(regions.p_value, selection["selected"].cpu())

    def compute(self, *, without_loss: bool = False) -> dict[str, Any]:
        """All values, over all processes.

        Parameters
        ----------
        without_loss
            Leave risk-coverage out: a batch, here or in another process, had no loss.
        """
        if without_loss:
            self.risk.reset()
        values: dict[str, Any] = self.metrics.compute()
        values["coverage"] = values["selected/count"] / values["full/count"]
        bad = self.bad = self.unusable.compute()
        values["rejected/not_finite"] = bad["samples"]
        with warnings.catch_warnings():  # it may have no loss here, or none at all
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*", UserWarning)
            risk: dict[str, Tensor] = self.risk.compute()
            self.curve = self.risk.get_curve()
        if risk[f"{self.risk.prefix}count"]:
            values |= risk
        if risk[f"{self.risk.prefix}count"] or (bad["losses"] and not without_loss):
            values[f"{self.risk.prefix}not_finite"] = bad["losses"]
        if self.regions is not None:
            values |= self.regions.compute()
        if self.found is not None:
            found = self.found.compute()
            values |= {name: found[name] for name in ("roi/discoveries", "roi/mean_discoveries")}
        return values

    def warn(self) -> None:
        """Say how many samples were rejected, and losses left out, because they are not finite."""
        samples, losses = (int(self.bad.get(name, 0)) for name in ("samples", "losses"))
        if samples or losses:
            warnings.warn(
                f"{samples} samples were rejected because their embedding or logits hold NaN or infinity, "
                f"and {losses} losses that are NaN or infinite were left out of risk-coverage",
                stacklevel=2,
            )


class Unusable(Metric):
    """Counts samples that cannot be scored, and losses that are not finite."""

    full_state_update = False
    samples: Tensor
    losses: Tensor

    def __init__(self, **kwargs: Any) -> None:
        gather: Callable[..., list[Tensor]] = gather_tensors
        kwargs.setdefault("dist_sync_fn", gather)
        super().__init__(**kwargs)
        for name in ("samples", "losses"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, samples: Tensor | None = None, losses: Tensor | None = None) -> None:
        """Add those of a batch, boolean."""
        self.samples += 0 if samples is None else int(samples.sum())
        self.losses += 0 if losses is None else int(losses.sum())

    def compute(self) -> dict[str, Tensor]:
        """How many there were."""
        return {"samples": self.samples.float(), "losses": self.losses.float()}


def scalars(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The values that a logger can take."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor) and math.prod(value.shape) == 1
    }
