"""Selective tests of the regions of accepted samples, inside a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchmetrics import Metric

from selkit.errors import NoHypothesisError
from selkit.inference import Acceptance
from selkit.metrics.gather import gather_tensors
from selkit.task.selecting import widened


@runtime_checkable
class RegionTest(Protocol):
    """What the task needs of :class:`selkit.inference.RoiTest`."""

    def inference(self, x: Any) -> Any:
        """Test the region that the model points at in one sample.

        A :class:`selkit.inference.RoiTest` is given ``accepted_by=`` besides.
        """
        ...


@dataclass(frozen=True)
class RegionResults:
    """Tests of a batch.

    Attributes
    ----------
    p_value, naive_p_value
        float64, ``(B,)``; NaN where no test was made.
    p_value_unconditioned
        What ``p_value`` would be without conditioning on acceptance; the same where it is not.
    result
        A :class:`selkit.inference.RoiResult` for each sample, or ``None``.
    reason
        Why there is none: ``"rejected"``, or the message of the error; ``None`` where there is one.
    """

    p_value: Tensor
    naive_p_value: Tensor
    p_value_unconditioned: Tensor
    result: list[Any]
    reason: list[str | None]

    def columns(self) -> dict[str, Any]:
        """The fields, and the regions and score maps of the results, one entry per sample."""
        return {
            "p_value": self.p_value,
            "naive_p_value": self.naive_p_value,
            "p_value_unconditioned": self.p_value_unconditioned,
            "roi": [None if found is None else found.roi for found in self.result],
            "score_map": [None if found is None else found.score_map for found in self.result],
            "roi_result": self.result,
            "roi_reason": self.reason,
        }


def run_tests(
    test: RegionTest, x: Tensor, selected: Tensor, conditions: Sequence[Acceptance] | None = None
) -> RegionResults:
    """Test each selected sample of a batch.

    Parameters
    ----------
    test
        Has ``inference(sample)``.
    x
        Inputs of the model, ``(B, C, ...)``.
    selected
        Boolean, ``(B,)``.
    conditions
        The acceptance that each sample's test is conditioned on; without it none is.

    Returns
    -------
    RegionResults
        On the CPU.
    """
    chosen = selected.tolist()
    results: list[Any] = [None] * len(chosen)
    reasons: list[str | None] = ["rejected"] * len(chosen)
    with torch.inference_mode(False):  # results outlive the run, and tests may need gradients
        p_values = torch.full((3, len(chosen)), torch.nan, dtype=torch.float64)
        for i, accepted in enumerate(chosen):
            if not accepted:
                continue
            if not bool(torch.isfinite(x[i]).all()):
                reasons[i] = "the sample has NaN or infinite values"
                continue
            try:
                options = {} if conditions is None else {"accepted_by": conditions[i]}
                results[i] = test.inference(widened(x[i].detach().clone()), **options)
            except NoHypothesisError as error:
                reasons[i] = str(error)
                continue
            reasons[i] = None
            p_values[0, i] = results[i].p_value
            p_values[1, i] = results[i].naive_p_value()
            p_values[2, i] = getattr(results[i], "p_value_unconditioned", results[i].p_value)
    return RegionResults(p_values[0], p_values[1], p_values[2], results, reasons)


class RegionTally(Metric):
    """How many accepted samples were tested, had no region, and were significant.

    Parameters
    ----------
    alpha
        A p-value up to here is significant.
    """

    full_state_update = False
    tested: Tensor
    significant: Tensor
    no_region: Tensor

    def __init__(self, alpha: float, **kwargs: Any) -> None:
        gather: Callable[..., list[Tensor]] = gather_tensors
        kwargs.setdefault("dist_sync_fn", gather)
        super().__init__(**kwargs)
        self.alpha = alpha
        for name in ("tested", "significant", "no_region"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, results: RegionResults) -> None:
        """Add the tests of a batch."""
        tested = ~results.p_value.isnan()
        self.tested += int(tested.sum())
        self.significant += int((results.p_value <= self.alpha).sum())
        self.no_region += sum(reason not in (None, "rejected") for reason in results.reason)

    def compute(self) -> dict[str, Tensor]:
        """``roi/tested``, ``roi/no_region``, and ``roi/significant``, a fraction of the tested."""
        return {
            "roi/tested": self.tested.float(),
            "roi/no_region": self.no_region.float(),
            "roi/significant": self.significant.float() / self.tested.float(),
        }
