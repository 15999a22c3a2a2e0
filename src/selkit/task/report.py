"""Everything the task reports about the samples of one loader."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from selkit.errors import InvalidInputError
from selkit.metrics import DiscoveryMetric, RiskCoverage, RiskCoverageMetric, SelectiveMetric
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
        self.curve: RiskCoverage | None = None  # of all processes, after compute

    def update(
        self,
        preds: Any,
        target: Any,
        selection: Mapping[str, Tensor],
        loss: Tensor | None,
        regions: RegionResults | None,
    ) -> None:
        """Add a batch; all arguments have its rows."""
        self.metrics.update(preds, target, selected=selection["selected"])
        if loss is not None:
            self.risk.update(score=selection["score"], loss=loss)
        if regions is not None and self.regions is not None:
            self.regions.update(regions)
        if regions is not None and self.found is not None:
            self.found.update(regions.p_value, selection["selected"].cpu())

    def compute(self) -> dict[str, Any]:
        """All values, over all processes."""
        values: dict[str, Any] = self.metrics.compute()
        values["coverage"] = values["selected/count"] / values["full/count"]
        with warnings.catch_warnings():  # it may have no loss here, or none at all
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*", UserWarning)
            risk: dict[str, Tensor] = self.risk.compute()
            self.curve = self.risk.get_curve()
        if risk[f"{self.risk.prefix}count"]:
            values |= risk
        if self.regions is not None:
            values |= self.regions.compute()
        if self.found is not None:
            found = self.found.compute()
            values |= {name: found[name] for name in ("roi/discoveries", "roi/mean_discoveries")}
        return values


def scalars(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The values that a logger can take."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor) and math.prod(value.shape) == 1
    }


def check_loss(loss: Any, rows: int) -> Tensor:
    """The result of a loss function, if it is one number per sample."""
    if isinstance(loss, Tensor) and loss.ndim == 2 and loss.shape[1] == 1:
        loss = loss[:, 0]
    if not isinstance(loss, Tensor) or loss.shape != (rows,):
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InvalidInputError(
            f"loss(preds, target) must give one number per sample, a tensor of shape ({rows},); got {got}. "
            "A mean over the batch cannot be used: ask for reduction='none'"
        )
    return loss if loss.is_floating_point() else loss.float()
