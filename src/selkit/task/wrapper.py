"""A Lightning module around another one, that abstains where a score says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchmetrics import Metric, MetricCollection

from selkit.embeddings.batches import Key, check_key, input_of, take_rows, target_of
from selkit.embeddings.lightning import TRANSFER_HOOKS, overrides
from selkit.embeddings.outputs import one_row
from selkit.embeddings.reading import Reading
from selkit.embeddings.sources import call
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import RiskCoverage, RiskCoverageMetric
from selkit.metrics.selective import activation_of
from selkit.task.conditioning import Conditioning, Conditions
from selkit.task.hooks import HandsOn
from selkit.task.losses import Losses
from selkit.task.outputs import Columns, everyone, gather, to_cpu
from selkit.task.reading import features_of, ids_of, prediction_of
from selkit.task.regions import RegionResults, RegionTest, run_tests
from selkit.task.report import SelectionReport, scalars
from selkit.task.rows import RowCounter, counter_of, listen, refusal, stop_listening, warn_of_orders
from selkit.task.selecting import keep_dtypes, numbers_of, select, usual_precision, widened
from selkit.utils.boundary import public
from selkit.utils.checks import boolean, number


class SelectiveInferenceTask(HandsOn):
    """Test, validate and predict with a model that abstains where a score is above its threshold.

    Parameters
    ----------
    task
        A trained module with ``forward(x)``, what the score needs (``embed(x)``, ``logits(x)`` or a layer),
        and, to be tested, ``test_metrics``. Its own ``test_step`` is not used; its other hooks are called
        (``setup``, those of batch transfer, ``on_test_...``), and it may log. Instead of the first two it
        may have ``extract(batch)``, which returns a dictionary of ``prediction``, ``label`` and what the
        score needs (``embedding`` or ``logits``), all from one pass through the network.
    score
        Fitted, with a threshold. It keeps its precision whatever that of the Trainer is.
    roi_test
        Made by :func:`selkit.load`; then the region of every selected sample is tested.
    input_key, target_key
        Where batches hold inputs and targets: a position or a name. Without them the first and second
        entry of a tuple, and of a dictionary the one with a usual name (``image``, ``x``, ``label``, ...).
    group_key
        Where batches hold the group of each sample, for a score with a threshold for each group.
    id_key
        Where batches hold the name or number of each sample. Needed with ``acc_test_outputs`` where the
        loader does not say which sample each row is.
    acc_test_outputs
        Keep the outputs of every sample in ``test_outputs``.
    metrics
        Instead of ``task.test_metrics``.
    loss
        ``(preds, target) -> (B,)``, the loss of each sample for risk-coverage, such as
        :func:`selkit.metrics.dice_loss`. Without it the 0/1 loss, where targets are class labels. Samples
        of which all targets are the ``ignore_index`` of a metric or of the loss are left out.
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
        piecewise linear. Under a Trainer of half precision it is exported in single precision, and samples on
        which the two decide differently are not tested. A :class:`selkit.inference.Acceptance` says where it is in an ONNX model. ``None``:
        nothing, for scores with which it is not available; then p-values are not valid for accepted samples.

    Attributes
    ----------
    results
        Every value of the last test or validation, also those that are no scalars and cannot be logged.
    test_outputs
        With ``acc_test_outputs``: after a test, for each loader one dictionary of ``index`` (position in
        the data set, whatever sampler the loader has), with ``id_key`` also ``id``, ``predictions``,
        ``target``, ``score``, ``selected``, where there is a loss ``loss``, and where
        regions are tested ``p_value``, ``naive_p_value``, ``p_value_unconditioned`` (as if acceptance had
        decided nothing), ``roi``, ``score_map``, ``roi_result`` and ``roi_reason``. Samples of all
        processes in the order of the data, each as often as the sampler names it. Where only ``id`` tells
        samples from each other there is no ``index``.

    Raises
    ------
    InvalidTypeError
        If an argument is not what it should be.
    InvalidInputError
        When a test starts and the model has no ``test_metrics``, or outputs are to be kept of samples that
        cannot be told from each other.

    Notes
    -----
    Values are logged once, at the end of the epoch: those of all loaders together by their names, and, with
    several loaders, those of each with ``/dataloader_idx_<i>`` behind. Several processes give the numbers
    that one gives: rows that a distributed sampler repeats are left out.

    A sample whose embedding or logits hold NaN or infinity is rejected with an infinite score and counted
    (``rejected/not_finite``); one whose loss is not finite is left out of risk-coverage and counted
    (``rc/not_finite``). Neither ends the run.

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
        id_key: Key = None,
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
        extracting = getattr(task, "extract", None)
        self._extracts = callable(extracting) and not isinstance(extracting, nn.Module)
        self._conditions = (Conditions(accepted_by, score, task, extracts=self._extracts),)
        self._roi_test = (roi_test,)  # a tuple, so that it is not registered as a submodule and moved
        self.input_key, self.target_key, self.group_key, self.id_key = (
            input_key,
            target_key,
            group_key,
            id_key,
        )
        for name in ("input_key", "target_key", "group_key", "id_key"):
            check_key(getattr(self, name), name)
        self.activation, self.loss = activation_of(activation), loss
        self.alpha = number(alpha, "alpha", 0, 1, ends="()")
        self._metrics = (metrics,)
        _base_metrics(task, metrics)
        if rc_metric is not None and not isinstance(rc_metric, RiskCoverageMetric):
            raise InvalidTypeError(f"rc_metric must be a RiskCoverageMetric; got {type(rc_metric).__name__}")
        self._rc_metric = (RiskCoverageMetric() if rc_metric is None else rc_metric,)
        self._reports = nn.ModuleList()
        self._rows: list[RowCounter] = []
        self._kept: list[list[Columns]] = []
        self._readings: dict[str, Reading] = {}
        self._losses = Losses(loss, None)
        self.acc_test_outputs = boolean(acc_test_outputs, "acc_test_outputs")
        self.results: dict[str, Any] = {}
        self.test_outputs: list[Columns] | None = [] if acc_test_outputs else None
        self._hand_on()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move everything as asked, but leave the score in its own precision."""
        before = numbers_of(self.score)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        keep_dtypes(self.score, before)
        return self

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
            outputs = self._extract(x, groups)[0]
        else:
            outputs = self._outputs(self.score.extract(self.task, x), call(self.task, x), groups)  # type: ignore[operator]
        return {name: value for name, value in outputs.items() if name != "finite"}

    def _outputs(self, features: Any, output: Any, groups: Any) -> dict[str, Any]:
        selection = select(self.score, features, groups)
        rows = len(selection["selected"])
        predictions = prediction_of(output)
        if isinstance(predictions, Tensor):
            predictions = one_row(predictions, rows)
        return {"predictions": predictions, **selection}

    def _of_batch(self, batch: Any, groups: Any) -> tuple[dict[str, Any], Any]:
        """Predictions with selection of a batch of a loader, and targets if the model gives them."""
        if self._extracts:
            return self._extract(batch, groups)
        features, output = features_of(self, batch, self._readings)
        return self._outputs(features, output, groups), None

    def _extract(self, batch: Any, groups: Any) -> tuple[dict[str, Any], Any]:
        """Predictions with selection, and targets, of a model with ``extract``."""
        found = self.task.extract(batch)  # type: ignore[operator]
        if not isinstance(found, Mapping) or "prediction" not in found:
            got = list(found) if isinstance(found, Mapping) else type(found).__name__
            raise InvalidTypeError(
                f"{type(self.task).__name__}.extract(batch) must return a dictionary with 'prediction', and "
                f"'embedding' or 'logits'; got {got}. If it does something else, give it another name"
            )
        return self._outputs(found, found["prediction"], groups), found.get("label")

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
        self._theirs("on_test_epoch_start")

    def on_validation_epoch_start(self) -> None:
        """Make fresh metrics for the loaders of a validation."""
        self._start(self.trainer.val_dataloaders)
        self._theirs("on_validation_epoch_start")

    def setup(self, stage: str) -> None:
        """Set up the model, and listen to which samples the loaders will hand over."""
        self._theirs("setup", stage)
        self._readings = {}
        if self._trainer is not None:
            listen(self.trainer)
            self._warn_of_hooks(getattr(self.trainer, "datamodule", None))

    def _warn_of_hooks(self, datamodule: Any) -> None:
        """Say so where the score was fitted on batches that the run will see changed."""
        hooks = [hook for hook in TRANSFER_HOOKS if overrides(datamodule, hook)]
        if hooks and getattr(self.score, "_past_hooks", False):
            warnings.warn(
                f"{type(datamodule).__name__} has {' and '.join(hooks)}, which {type(self.score).__name__} was "
                "fitted without: plain loaders= do not call hooks of a DataModule. Fit with loaders=datamodule",
                stacklevel=2,
            )

    def teardown(self, stage: str) -> None:
        """Leave the Trainer as it was."""
        self._theirs("teardown", stage)
        if self._trainer is not None:
            stop_listening(self.trainer)

    def _start(self, loaders: Any) -> None:
        base = _base_metrics(self.task, self._metrics[0])
        if base is None:
            raise InvalidInputError(
                f"{type(self.task).__name__} has no test_metrics: set self.test_metrics to a torchmetrics "
                "Metric or MetricCollection in its __init__, or pass metrics= to SelectiveInferenceTask"
            )
        flat = pytree.tree_leaves(loaders)
        self._rows = [counter_of(loader, self.trainer.world_size, self.global_rank) for loader in flat]
        unknown = [rows.unknown for rows in self._rows if rows.unknown]
        if self.trainer.testing and self.acc_test_outputs and self.id_key is None and unknown:
            raise refusal(unknown[0])
        self._kept = [[] for _ in flat]
        self._losses = Losses(self.loss, base)
        reports = 1 if len(flat) == 1 else len(flat) + 1  # the first is that of all loaders together
        alpha = None if self.roi_test is None else self.alpha
        self._reports = nn.ModuleList(
            SelectionReport(base, self._rc_metric[0], alpha) for _ in range(reports)
        ).to(self.device)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Add a batch to the report; nothing is computed or logged.

        Returns
        -------
        dict
            ``predictions``, ``score`` and ``selected`` of the batch, for hooks that look at them.
        """
        return self._evaluate(batch, dataloader_idx, keep=self.acc_test_outputs)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Add a batch to the report; nothing is computed or logged.

        Returns
        -------
        dict
            As for :meth:`test_step`.
        """
        return self._evaluate(batch, dataloader_idx, keep=False)

    def _evaluate(self, batch: Any, loader: int, *, keep: bool) -> dict[str, Any]:
        x = None if self.roi_test is None else input_of(batch, self.input_key)
        groups = self._groups(batch)
        outputs, target = self._of_batch(batch, groups)
        result = {name: outputs[name] for name in ("predictions", "score", "selected")}
        target = target_of(batch, self.target_key) if target is None else target
        rows = len(outputs["selected"])
        ids = ids_of(batch, self.id_key, rows)
        counter = self._rows[loader]
        first, count = counter.take(rows)
        samples, position = counter.samples(first, rows), counter.numbers(first, rows)
        part = counter.fresh(samples, count)
        fresh = len(part) if isinstance(part, Tensor) else count
        if fresh < rows:  # the rest are repetitions of the sampler
            if not fresh:
                return result
            x, target, outputs, ids, samples, position = (
                take_rows(v, part, rows) for v in (x, target, outputs, ids, samples, position)
            )
            groups = None if groups is None else take_rows(groups, part, rows)
        with usual_precision():
            preds, target = widened(outputs["predictions"]), widened(target)
            preds = preds if self.activation is None else self.activation(preds)
            loss = self._losses.of(preds, target, fresh)
            regions = self._regions(x, outputs, groups)
            for place in (0,) if len(self._reports) == 1 else (0, loader + 1):
                self._report(place).update(preds, target, outputs, loss, regions)
        if keep:
            columns = {"position": position, "index": samples, **({} if ids is None else {"id": ids})}
            columns |= {name: outputs[name] for name in result} | {"target": target}
            columns |= {} if loss is None else {"loss": loss[0]}
            columns |= {} if regions is None else regions.columns()
            self._kept[loader].append({name: to_cpu(value) for name, value in columns.items()})
        return result

    def _report(self, place: int) -> SelectionReport:
        return cast("SelectionReport", self._reports[place])

    def _regions(self, x: Any, outputs: Mapping[str, Any], groups: Any) -> RegionResults | None:
        if self.roi_test is None:
            return None
        if not isinstance(x, Tensor):
            raise InvalidTypeError(f"roi_test needs inputs that are a tensor; got {type(x).__name__}")
        with usual_precision():
            conditions = self._conditions[0].of(self.roi_test, x, outputs["score"], groups)
            return run_tests(self.roi_test, x, outputs["selected"], conditions)

    def on_test_epoch_end(self) -> None:
        """Compute and log the report, and join the kept outputs."""
        self._finish()
        if self.acc_test_outputs:
            with torch.inference_mode(False):  # they outlive the run
                self.test_outputs = [gather(parts) for parts in self._kept]
            self._warn_of_unknown()
        self._kept = []
        base = _base_metrics(self.task, self._metrics[0])
        self._their_epoch_end("test", base, self._report(0).metrics.full)

    def on_test_end(self) -> None:
        """Leave the model's metrics as they were before: empty."""
        self._theirs("on_test_end")
        base = getattr(self.task, "test_metrics", None)
        if isinstance(base, (Metric, MetricCollection)):
            base.reset()

    def on_validation_epoch_end(self) -> None:
        """Compute and log the report."""
        self._finish()
        self._their_epoch_end("validation", None, self._report(0).metrics.full)

    def _finish(self) -> None:
        self.results = {}
        without_loss = any(everyone(self._losses.impossible))
        for place in range(len(self._reports)):
            suffix = f"/dataloader_idx_{place - 1}" if place else ""
            values = self._report(place).compute(without_loss=without_loss)
            self.results |= {f"{name}{suffix}": value for name, value in values.items()}
        if without_loss:
            self._kept = [
                [{k: v for k, v in p.items() if k != "loss"} for p in parts] for parts in self._kept
            ]
        # equal in all processes: the largest is the value itself, where a mean would round
        self.log_dict(scalars(self.results), sync_dist=True, reduce_fx="max", add_dataloader_idx=False)
        if without_loss:
            warnings.warn(
                "risk-coverage is not reported: the 0/1 loss needs class labels, and no other was given; "
                "pass loss=, a function (preds, target) -> one number per sample",
                stacklevel=2,
            )
        self._report(0).warn()
        if self.trainer.world_size > 1:
            testing = self.trainer.testing
            loaders = self.trainer.test_dataloaders if testing else self.trainer.val_dataloaders
            warn_of_orders(pytree.tree_leaves(loaders))

    def _warn_of_unknown(self) -> None:
        for rows in self._rows:
            if rows.unknown and self.id_key is None:
                warnings.warn(f"test_outputs has no index: {refusal(rows.unknown)}", stacklevel=2)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Predict and select a batch.

        Returns
        -------
        dict
            ``predictions``, ``score``, ``selected``, with ``id_key`` also ``id``, and ``p_value`` where
            regions are tested: float64, NaN for samples that were rejected or have no region.
        """
        groups = self._groups(batch)
        found = self._of_batch(batch, groups)[0]
        outputs: dict[str, Any] = {name: value for name, value in found.items() if name != "finite"}
        ids = ids_of(batch, self.id_key, len(outputs["selected"]))
        outputs = outputs if ids is None else {**outputs, "id": ids}
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
