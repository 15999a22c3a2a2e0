"""The hooks of a wrapped Lightning module, called as in a test of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, cast

from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import Metric, MetricCollection

from selkit.embeddings.lightning import TRANSFER_HOOKS, base_of, overrides

_STAGES = ("test", "validation", "predict")
_PLACES = (
    "start",
    "end",
    "batch_start",
    "batch_end",
    "epoch_start",
    "epoch_end",
    "model_eval",
    "model_train",
)
HANDED_ON = (
    *TRANSFER_HOOKS,
    *("prepare_data", "configure_model", "configure_callbacks", "setup", "teardown"),
    *("test_dataloader", "val_dataloader", "predict_dataloader"),
    *(f"on_{stage}_{place}" for stage in _STAGES for place in _PLACES),
)


class HandsOn(LightningModule):
    """A Lightning module around another one, ``task``, whose hooks it calls.

    Hooks that a subclass defines itself are not replaced; it calls :meth:`_theirs`.
    """

    task: nn.Module

    def _hand_on(self) -> None:
        """Take over the hooks of ``task`` that are not the defaults, so that Lightning sees them."""
        for name in HANDED_ON:
            own = getattr(type(self), name, None) is not getattr(LightningModule, name, None)
            if not own and overrides(self.task, name):
                object.__setattr__(self, name, getattr(self.task, name))

    def _theirs(self, hook: str, *args: Any) -> None:
        """Call a hook of ``task``, if it has one."""
        if overrides(self.task, hook):
            getattr(self.task, hook)(*args)

    @property
    def _current_fx_name(self) -> str | None:
        """The hook that runs now, by which Lightning decides what may be logged; the same inside."""
        name: str | None = vars(self).get("_fx_name")
        return name

    @_current_fx_name.setter
    def _current_fx_name(self, name: str | None) -> None:
        vars(self)["_fx_name"] = name
        task = self._modules.get("task") if "_modules" in vars(self) else None
        for module in () if task is None else task.modules():
            if base_of(module) is not None:
                module._current_fx_name = name  # type: ignore[assignment]

    def _their_epoch_end(self, stage: str, base: Any, full: MetricCollection) -> None:
        """Call the hook at the end of an epoch, with their metrics filled as their own step would have.

        Parameters
        ----------
        stage
            ``"test"`` or ``"validation"``.
        base
            The model's metrics.
        full
            The metrics of all samples.
        """
        hook = f"on_{stage}_epoch_end"
        if not overrides(self.task, hook):
            return
        if stage == "test" and base is not None and base is getattr(self.task, "test_metrics", None):
            _fill(cast("Metric | MetricCollection", base), full)
        try:
            getattr(self.task, hook)()
        # the hook may need what a step of their own collects, and the numbers here are complete without it
        except Exception as error:  # noqa: BLE001 - a user's hook may raise what it likes
            warnings.warn(
                f"{type(self.task).__name__}.{hook} failed ({type(error).__name__}: {error}); what its own "
                f"{stage}_step collects is not there, because that is not used",
                stacklevel=2,
            )


def _fill(base: Metric | MetricCollection, full: MetricCollection) -> None:
    """Give metrics the states of their copies."""
    copies = list(full.values(copy_state=False))
    own = [base] if isinstance(base, Metric) else list(base.values(copy_state=False))
    for mine, copied in zip(own, copies, strict=True):
        for metric, filled in zip(_metrics(mine), _metrics(copied), strict=True):
            for name in filled._defaults:
                value = getattr(filled, name)
                setattr(metric, name, list(value) if isinstance(value, list) else value.clone())
            metric._update_count, metric._computed = filled._update_count, None


def _metrics(metric: nn.Module) -> Iterator[Metric]:
    return (module for module in metric.modules() if isinstance(module, Metric))
