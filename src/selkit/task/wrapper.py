"""A Lightning module around another one, that abstains where a score says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchmetrics import Metric, MetricCollection

from selkit.embeddings.batches import Key, input_of, take_rows, target_of
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import RiskCoverage, RiskCoverageMetric
from selkit.metrics.losses import has_class_labels, zero_one_loss
from selkit.metrics.selective import activation_of
from selkit.task.conditioning import Conditioning, Conditions
from selkit.task.outputs import Columns, gather, to_cpu
from selkit.task.regions import RegionResults, RegionTest, run_tests
from selkit.task.report import SelectionReport, check_loss, scalars
from selkit.task.rows import RowCounter, counter_of
from selkit.utils.boundary import public


class SelectiveInferenceTask(LightningModule):
    """Test, validate and predict with a model that abstains where a score is above its threshold.

    Parameters
    ----------
    task
        A trained module with ``forward(x)``, what the score needs (``embed(x)``, ``logits(x)`` or a layer),
        and, to be tested, ``test_metrics``. Its own ``test_step`` is not used. Instead of the first two it
        may have ``extract(batch)``, which returns a dictionary of ``prediction``, ``label`` and what the
        score needs (``embedding`` or ``logits``), all from one pass through the network.
    score
        Fitted, with a threshold.
    roi_test
        Made by :func:`selkit.load`; then the region of every selected sample is tested.
    input_key, target_key
        Where batches hold inputs and targets: a position or a name. Without them the first and second
        entry of a tuple, and of a dictionary the one with a usual name (``image``, ``x``, ``label``, ...).
    group_key
        Where batches hold the group of each sample, for a score with a threshold for each group.
    acc_test_outputs
        Keep the outputs of every sample in ``test_outputs``.
    metrics
        Instead of ``task.test_metrics``.
    loss
        ``(preds, target) -> (B,)``, the loss of each sample for risk-coverage, such as
        :func:`selkit.metrics.dice_loss`. Without it the 0/1 loss, where targets are class labels.
    activation
        Applied to the model's outputs before metrics and loss, as in :class:`selkit.metrics.SelectiveMetric`.
    rc_metric
        A :class:`selkit.metrics.RiskCoverageMetric` with other settings than the usual ones.
    alpha
        Level at which region tests count as significant (``roi/significant``), and false discovery rate at
        which they are discoveries over the whole set (``roi/discoveries``, and for each sample of the set
        ``roi/mean_discoveries``).
    accepted_by
        What the p-values of accepted samples are conditioned on besides the region. ``"score"``: that the
        score accepted the sample; the part of ``task`` that it looks at is exported to ONNX and must be
        piecewise linear. A :class:`selkit.inference.Acceptance` says where it is in an ONNX model. ``None``:
        nothing, for scores with which it is not available; then p-values are not valid for accepted samples.

    Attributes
    ----------
    results
        Every value of the last test or validation, also those that are no scalars and cannot be logged.
    test_outputs
        With ``acc_test_outputs``: after a test, for each loader one dictionary of ``index``,
        ``predictions``, ``target``, ``score``, ``selected``, where there is a loss ``loss``, and where
        regions are tested ``p_value``, ``naive_p_value``, ``p_value_unconditioned`` (as if acceptance had
        decided nothing), ``roi``, ``score_map``, ``roi_result`` and ``roi_reason``. Samples of all
        processes, each once, in the order of the data.

    Raises
    ------
    InvalidTypeError
        If an argument is not what it should be.
    InvalidInputError
        When a test starts and the model has no ``test_metrics``.

    Notes
    -----
    Values are logged once, at the end of the epoch: those of all loaders together by their names, and, with
    several loaders, those of each with ``/dataloader_idx_<i>`` behind. Several processes give the numbers
    that one gives: rows that a distributed sampler repeats are left out.

    Examples
    --------
    >>> import torch
    >>> from lightning.pytorch import LightningModule
    >>> from torchmetrics.classification import MulticlassAccuracy
    >>> from selkit.scores import EuclideanScore
    >>> class Model(LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.test_metrics = MulticlassAccuracy(num_classes=2)
    ...     def embed(self, x):
    ...         return x
    ...     def forward(self, x):
    ...         return (x[:, 0] > 0).long()
    >>> score = EuclideanScore(k=1).fit(X=torch.zeros(1, 2), Y=torch.rand(99, 2)).set_threshold(q=0.9)
    >>> SelectiveInferenceTask(Model(), score)(torch.tensor([[0.5, 0.5], [9.0, 9.0]]))
    {'predictions': tensor([1, 1]), 'score': tensor([ 0.7071, 12.7279]), 'selected': tensor([ True, False])}
    """

    @public
    def __init__(
        self,
        task: nn.Module,
        score: nn.Module,
        roi_test: RegionTest | None = None,
        *,
        input_key: Key = None,
        target_key: Key = None,
        group_key: Key = None,
        acc_test_outputs: bool = False,
        metrics: Metric | MetricCollection | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        activation: str | Callable[[Tensor], Tensor] | None = None,
        rc_metric: RiskCoverageMetric | None = None,
        alpha: float = 0.05,
        accepted_by: Conditioning = "score",
    ) -> None:
        super().__init__()
        _check_parts(task, score, roi_test, loss)
        self.task, self.score = task, score
        self._extracts = callable(getattr(task, "extract", None))
        self._conditions = (Conditions(accepted_by, score, task, extracts=self._extracts),)
        self._roi_test = (roi_test,)  # a tuple, so that it is not registered as a submodule and moved
        self.input_key, self.target_key, self.group_key = input_key, target_key, group_key
        self.activation, self.loss = activation_of(activation), loss
        self.alpha = alpha
        self._base = (_base_metrics(task, metrics),)
        if rc_metric is not None and not isinstance(rc_metric, RiskCoverageMetric):
            raise InvalidTypeError(f"rc_metric must be a RiskCoverageMetric; got {type(rc_metric).__name__}")
        self._rc_metric = (RiskCoverageMetric() if rc_metric is None else rc_metric,)
        self._reports = nn.ModuleList()
        self._rows: list[RowCounter] = []
        self._kept: list[list[Columns]] = []
        self._without_loss = False
        self.acc_test_outputs = acc_test_outputs
        self.results: dict[str, Any] = {}
        self.test_outputs: list[Columns] | None = [] if acc_test_outputs else None

    @property
    def roi_test(self) -> RegionTest | None:
        """The test of regions, if one was given."""
        return self._roi_test[0]

    def forward(self, x: Any, groups: Any = None) -> dict[str, Any]:
        """Predict and select one batch of inputs.

        Parameters
        ----------
        x
            Inputs of the model, or for a model with ``extract`` what that takes.
        groups
            Group of each sample, where the score has a threshold for each group.

        Returns
        -------
        dict
            ``predictions`` as the model gives them, ``score`` and ``selected``, one row per sample.
        """
        if self._extracts:
            return self._extract(x, groups)[0]
        selection = self._select(self.score.extract(self.task, x), groups)  # type: ignore[operator]
        return {"predictions": self.task(x), **selection}

    def _select(self, features: Any, groups: Any) -> dict[str, Tensor]:
        options = {} if groups is None else {"groups": groups}
        selection: dict[str, Tensor] = self.score.select(features, **options)  # type: ignore[operator]
        return selection

    def _extract(self, batch: Any, groups: Any) -> tuple[dict[str, Any], Any]:
        """Predictions with selection, and targets, of a model with ``extract``."""
        found = self.task.extract(batch)  # type: ignore[operator]
        if not isinstance(found, Mapping) or "prediction" not in found:
            got = list(found) if isinstance(found, Mapping) else type(found).__name__
            raise InvalidTypeError(
                f"{type(self.task).__name__}.extract(batch) must return a dictionary with 'prediction', and "
                f"'embedding' or 'logits'; got {got}. If it does something else, give it another name"
            )
        selection = self._select(found, groups)
        return {"predictions": found["prediction"], **selection}, found.get("label")

    def _groups(self, batch: Any) -> Any:
        if self.group_key is None:
            return None
        try:
            return batch[self.group_key]
        except (KeyError, IndexError, TypeError):
            keys = list(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise InvalidInputError(f"group_key={self.group_key!r} is not in the batch: {keys}") from None

    # one run

    def on_test_epoch_start(self) -> None:
        """Make fresh metrics for the loaders of a test."""
        self._start(self.trainer.test_dataloaders)

    def on_validation_epoch_start(self) -> None:
        """Make fresh metrics for the loaders of a validation."""
        self._start(self.trainer.val_dataloaders)

    def _start(self, loaders: Any) -> None:
        base = self._base[0]
        if base is None:
            raise InvalidInputError(
                f"{type(self.task).__name__} has no test_metrics: set self.test_metrics to a torchmetrics "
                "Metric or MetricCollection in its __init__, or pass metrics= to SelectiveInferenceTask"
            )
        flat = pytree.tree_leaves(loaders)
        self._rows = [counter_of(loader, self.trainer.world_size, self.global_rank) for loader in flat]
        self._kept = [[] for _ in flat]
        self._without_loss = False
        reports = 1 if len(flat) == 1 else len(flat) + 1  # the first is that of all loaders together
        alpha = None if self.roi_test is None else self.alpha
        self._reports = nn.ModuleList(
            SelectionReport(base, self._rc_metric[0], alpha) for _ in range(reports)
        ).to(self.device)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the report; nothing is computed or logged."""
        self._evaluate(batch, dataloader_idx, keep=self.acc_test_outputs)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the report; nothing is computed or logged."""
        self._evaluate(batch, dataloader_idx, keep=False)

    def _evaluate(self, batch: Any, loader: int, *, keep: bool) -> None:
        x = None if self._extracts and self.roi_test is None else input_of(batch, self.input_key)
        groups = self._groups(batch)
        outputs, target = self._extract(batch, groups) if self._extracts else (self(x, groups), None)
        target = target_of(batch, self.target_key) if target is None else target
        rows = len(outputs["selected"])
        first, fresh = self._rows[loader].take(rows)
        if fresh < rows:  # the rest are repetitions of the sampler
            if not fresh:
                return
            x, target, outputs = (take_rows(part, slice(fresh)) for part in (x, target, outputs))
            groups = None if groups is None else take_rows(groups, slice(fresh))
        preds = outputs["predictions"]
        preds = preds if self.activation is None else self.activation(preds)
        loss = self._loss(preds, target, fresh)
        regions = self._regions(x, outputs, groups)
        for place in (0,) if len(self._reports) == 1 else (0, loader + 1):
            self._report(place).update(preds, target, outputs, loss, regions)
        if keep:
            columns = {"index": self._rows[loader].numbers(first, fresh), **outputs, "target": target}
            columns |= {} if loss is None else {"loss": loss}
            columns |= {} if regions is None else regions.columns()
            self._kept[loader].append({name: to_cpu(value) for name, value in columns.items()})

    def _report(self, place: int) -> SelectionReport:
        return cast("SelectionReport", self._reports[place])

    def _loss(self, preds: Any, target: Any, rows: int) -> Tensor | None:
        if self.loss is not None:
            return check_loss(self.loss(preds, target), rows)
        if isinstance(preds, Tensor) and isinstance(target, Tensor) and has_class_labels(preds, target):
            return zero_one_loss(preds, target)
        self._without_loss = True
        return None

    def _regions(self, x: Any, outputs: Mapping[str, Any], groups: Any) -> RegionResults | None:
        if self.roi_test is None:
            return None
        if not isinstance(x, Tensor):
            raise InvalidTypeError(f"roi_test needs inputs that are a tensor; got {type(x).__name__}")
        conditions = self._conditions[0].of(self.roi_test, x, outputs["score"], groups)
        return run_tests(self.roi_test, x, outputs["selected"], conditions)

    def on_test_epoch_end(self) -> None:
        """Compute and log the report, and join the kept outputs."""
        self._finish()
        if self.acc_test_outputs:
            with torch.inference_mode(False):  # they outlive the run
                self.test_outputs = [gather(parts) for parts in self._kept]
        self._kept = []

    def on_validation_epoch_end(self) -> None:
        """Compute and log the report."""
        self._finish()

    def _finish(self) -> None:
        self.results = {}
        for place in range(len(self._reports)):
            suffix = f"/dataloader_idx_{place - 1}" if place else ""
            values = self._report(place).compute()
            self.results |= {f"{name}{suffix}": value for name, value in values.items()}
        # equal in all processes: the largest is the value itself, where a mean would round
        self.log_dict(scalars(self.results), sync_dist=True, reduce_fx="max", add_dataloader_idx=False)
        if self._without_loss:
            warnings.warn(
                "risk-coverage is not reported: the 0/1 loss needs class labels, and no other was given; "
                "pass loss=, a function (preds, target) -> one number per sample",
                stacklevel=2,
            )

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Predict and select a batch.

        Returns
        -------
        dict
            ``predictions``, ``score``, ``selected``, and ``p_value`` where regions are tested: float64, NaN
            for samples that were rejected or have no region.
        """
        x = batch if self._extracts else input_of(batch, self.input_key)
        groups = self._groups(batch)
        outputs: dict[str, Any] = self(x, groups)
        if self.roi_test is None:
            return outputs
        regions = self._regions(input_of(batch, self.input_key), outputs, groups)
        return outputs if regions is None else {**outputs, "p_value": regions.p_value}

    def get_risk_coverage_curve(self, dataloader_idx: int | None = None) -> RiskCoverage | None:
        """The curve of the last test or validation, over all processes.

        Parameters
        ----------
        dataloader_idx
            Of one loader; of all together without it.

        Returns
        -------
        RiskCoverage or None
            ``None`` if there was no run or no loss.

        Raises
        ------
        InvalidInputError
            If there was no such loader.
        """
        if not len(self._reports):
            return None
        loaders = max(1, len(self._reports) - 1)
        if dataloader_idx is None or (loaders == 1 and dataloader_idx == 0):
            return self._report(0).curve
        if not 0 <= dataloader_idx < loaders:
            raise InvalidInputError(f"dataloader_idx must be from 0 to {loaders - 1}; got {dataloader_idx}")
        return self._report(dataloader_idx + 1).curve


def _check_parts(task: Any, score: Any, roi_test: Any, loss: Any) -> None:
    if not isinstance(task, nn.Module):
        raise InvalidTypeError(f"task must be a LightningModule; got {type(task).__name__}")
    if not callable(getattr(score, "select", None)) or not callable(getattr(score, "extract", None)):
        raise InvalidTypeError(
            f"score must be one of selkit.scores, with extract() and select(); got {type(score).__name__}"
        )
    if roi_test is not None and not isinstance(roi_test, RegionTest):
        raise InvalidTypeError(
            f"roi_test must come from selkit.load(...) and have inference(); got {type(roi_test).__name__}"
        )
    if loss is not None and not callable(loss):
        raise InvalidTypeError(f"loss must be a function (preds, target) -> (B,); got {type(loss).__name__}")


def _base_metrics(task: nn.Module, metrics: Any) -> Metric | MetricCollection | None:
    name = "metrics" if metrics is not None else f"{type(task).__name__}.test_metrics"
    base = getattr(task, "test_metrics", None) if metrics is None else metrics
    if base is not None and not isinstance(base, (Metric, MetricCollection)):
        raise InvalidTypeError(
            f"{name} must be a torchmetrics Metric or MetricCollection; got {type(base).__name__}"
        )
    return base
