"""A report of what ``Trainer.test`` found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.report.records import Report, Sample
from selkit.report.text import number
from selkit.utils.boundary import public

if TYPE_CHECKING:
    from selkit.task import SelectiveInferenceTask

REGIONS = (
    "Under the null hypothesis, each p-value is uniform given that the network selected this region; "
    "the noise is taken to be Gaussian with a known covariance."
)
ACCEPTED = (
    "It is also conditioned on the acceptance of the input, "
    "so it is valid although only accepted inputs are tested."
)
NOT_ACCEPTED = (
    "It is not conditioned on the acceptance of the input: "
    "where acceptance depends on the same noise, it need not be valid."
)


@public
def from_test(
    task: SelectiveInferenceTask,
    images: Any = None,
    *,
    title: str = "Test with abstention",
    loader: int = 0,
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    targets: Sequence[Any] | None = None,
    attributions: Sequence[Any] | None = None,
    guarantees: Sequence[str] | None = None,
    **others: Any,
) -> Report:
    """Everything that the last ``trainer.test(task, ...)`` found, as a report.

    Parameters
    ----------
    task
        Made with ``acc_test_outputs=True``, and tested.
    images
        What to show of each sample, in the order of the data, also where the loader's sampler had another:
        an array, a list, or a data set of images, tuples or dictionaries, of which the input is taken as
        the task does; of a part of a data set the whole. Or a mapping from the samples' ids
        (``id_key=`` of the task). None shows no images.
    title
        Of the page.
    loader
        Which of several test loaders.
    names, groups, targets, attributions
        For each sample, as ``images``: see :class:`Sample`. An entry of ``targets`` or ``attributions`` may
        be None. Without ``names`` samples have their ids, if they have some.
    guarantees
        What is promised about the decisions; by default what is known of the score's threshold, and what the
        region tests promise.
    **others
        Further fields of :class:`Report`; ``facts`` and ``metrics`` add to what the test reported.

    Returns
    -------
    Report

    Raises
    ------
    NotFittedError
        If the task was not tested, or kept no outputs.
    InvalidTypeError
        If ``task`` is no :class:`selkit.SelectiveInferenceTask`.
    InvalidInputError
        If something is not given once for each sample.

    Examples
    --------
    >>> import torch
    >>> from lightning.pytorch import LightningModule, Trainer
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from torchmetrics.classification import MulticlassAccuracy
    >>> import selkit
    >>> from selkit.scores import EuclideanScore
    >>> class Model(LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.test_metrics = MulticlassAccuracy(num_classes=2)
    ...     def embed(self, x):
    ...         return x.flatten(1)
    ...     def forward(self, x):
    ...         return (x.mean((1, 2, 3)) > 0).long()
    >>> score = EuclideanScore().fit(X=torch.randn(50, 16), Y=torch.randn(50, 16)).set_threshold(q=0.9)
    >>> task = selkit.SelectiveInferenceTask(Model(), score, acc_test_outputs=True)
    >>> data = TensorDataset(torch.randn(8, 1, 4, 4), torch.randint(2, (8,)))
    >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, barebones=False)
    >>> _ = trainer.test(task, DataLoader(data, batch_size=4), verbose=False)
    >>> len(from_test(task, images=data).samples)
    8
    """
    columns = _columns(task, loader)
    given = {
        "images": images,
        "names": names,
        "groups": groups,
        "targets": targets,
        "attributions": attributions,
    }
    found = {name: _of_samples(name, values, columns) for name, values in given.items()}
    samples = [_sample(task, columns, i, found) for i in range(len(columns["selected"]))]
    fields: dict[str, Any] = {"alpha": task.alpha, **others}
    fields["metrics"] = {**_numbers(task.results), **fields.get("metrics", {})}
    threshold = getattr(task.score, "threshold", None)
    if "threshold" not in fields and threshold is not None and threshold.numel() == 1:
        fields["threshold"] = float(threshold)
    known = getattr(task.score, "calibration_scores", None)
    if "scores" not in fields and known is not None:
        fields["scores"] = {"calibration": known.cpu().numpy()}
    if "risk_name" not in fields and "loss" in columns:
        fields["risk_name"] = "mean loss"
    whole = all(s.loss is not None and math.isfinite(s.score) for s in samples)
    if "risk_coverage" not in fields and "loss" in columns and not whole:
        fields["risk_coverage"] = task.get_risk_coverage_curve(loader)  # over the samples that have a loss
    promised = _promises(task.score, samples) if guarantees is None else guarantees
    return Report(title, samples, guarantees=promised, **fields)


def _of_samples(name: str, values: Any, columns: Mapping[str, Any]) -> Callable[[int], Any] | None:
    """What gives the entry for a row of the test, from entries in the order of the data or by id."""
    if values is None:
        return None
    count = len(columns["selected"])
    if isinstance(values, Mapping):
        if "id" not in columns:
            raise InvalidInputError(f"{name} is a mapping from ids, but the task has none: give it id_key=.")
        ids = _listed(columns["id"])
        missing = [key for key in ids if key not in values]
        if missing:
            raise InvalidInputError(
                f"{name} has no entry for {len(missing)} samples, such as {missing[0]!r}."
            )
        return lambda i: values[ids[i]]
    if not count:
        return lambda i: values[i]
    if "index" not in columns:
        raise InvalidInputError(
            f"{name} cannot be told apart by position, because the loader did not say which sample each row "
            "is; give a mapping from ids, with id_key= of the task."
        )
    index = _listed(columns["index"])
    if sorted(index) == list(range(count)) and len(values) != count:
        raise InvalidInputError(
            f"{name} must have one entry for each of the {count} samples, got {len(values)}."
        )
    if len(values) <= max(index):
        raise InvalidInputError(
            f"{name} must have one entry for each sample of the data set, of which number {max(index)} was "
            f"tested; got {len(values)}."
        )
    return lambda i: values[index[i]]


def _listed(values: Any) -> list[Any]:
    return list(values.tolist()) if hasattr(values, "tolist") else list(values)


def _columns(task: Any, loader: int) -> dict[str, Any]:
    """The outputs of one loader, checked."""
    from selkit.task import SelectiveInferenceTask

    if not isinstance(task, SelectiveInferenceTask):
        raise InvalidTypeError(f"task must be a selkit.SelectiveInferenceTask, got {type(task).__name__}.")
    if not task.test_outputs:
        raise NotFittedError(
            "task has no outputs: make it with acc_test_outputs=True, "
            "and call trainer.test(task, loader) first."
        )
    if not 0 <= loader < len(task.test_outputs):
        raise InvalidInputError(f"loader must be from 0 to {len(task.test_outputs) - 1}, got {loader}.")
    return task.test_outputs[loader] or {"selected": []}


def _sample(
    task: SelectiveInferenceTask,
    columns: Mapping[str, Any],
    i: int,
    given: Mapping[str, Callable[[int], Any] | None],
) -> Sample:
    """The record of sample ``i``."""
    from selkit.embeddings.batches import input_of

    of = {name: None if entry is None else entry(i) for name, entry in given.items()}
    image = None if of["images"] is None else input_of(of["images"], task.input_key)
    details = {}
    for name, label in (("predictions", "prediction"), ("target", "target")):
        value = columns.get(name)
        if value is not None and math.prod(np.shape(value[i])) == 1:
            details[label] = number(float(value[i]))
    result = columns["roi_result"][i] if "roi_result" in columns else None
    if "roi_reason" in columns and columns["roi_reason"][i] is not None:
        details["region not tested"] = str(columns["roi_reason"][i])
    tested: dict[str, Any] = {}
    if result is not None:
        accepted = getattr(result, "accepted_by", None)  # tests other than RoiTest may not know of it
        tested = {
            "p_value": float(result.p_value),
            "naive_p_value": float(result.naive_p_value()),
            "p_value_without_acceptance": None if accepted is None else float(accepted.p_value),
        }
        details["statistic"] = number(float(result.stat))
        shape = None if image is None else np.shape(image)[-2:]
        if result.roi.ndim == 2 and shape in (None, result.roi.shape):
            tested["roi"] = result.roi
        else:
            details["region"] = f"not drawn: its shape is {result.roi.shape}"
    loss = float(columns["loss"][i]) if "loss" in columns else math.nan
    own_name = "" if "id" not in columns else str(_listed(columns["id"][i : i + 1])[0])
    return Sample(
        image,
        score=float(columns["score"][i]),
        selected=bool(columns["selected"][i]),
        name=own_name if of["names"] is None else str(of["names"]),
        group="" if of["groups"] is None else str(of["groups"]),
        target=of["targets"],
        attribution=of["attributions"],
        loss=loss if math.isfinite(loss) else None,
        details=details,
        **tested,
    )


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """What of a test's results is one number."""
    found = {name: value for name, value in results.items() if math.prod(np.shape(value)) == 1}
    return {name: float(value) for name, value in found.items()}


def _promises(score: Any, samples: Sequence[Sample]) -> list[str]:
    """What the threshold and the tests of the regions promise."""
    from selkit.bundle.description import guarantee_of

    promises = [f"{type(score).__name__}: {guarantee_of(score)[0]}."]
    tested = [s for s in samples if s.p_value is not None]
    if tested:
        conditioned = all(s.p_value_without_acceptance is not None for s in tested)
        promises.append(f"{REGIONS} {ACCEPTED if conditioned else NOT_ACCEPTED}")
    return promises
