"""What the parts of a task are given of a batch, found out at the first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from selkit.embeddings.batches import Key, entry_of, input_of, rows_of
from selkit.embeddings.lightning import silent
from selkit.embeddings.reading import MODEL_ERRORS, Reading, prepared, reading_of
from selkit.embeddings.sources import call
from selkit.errors import InvalidInputError


def features_of(task: Any, batch: Any, readings: dict[str, Reading]) -> tuple[Any, Any]:
    """What a task's score is to look at, and what its model predicts.

    Parameters
    ----------
    task
        A :class:`selkit.SelectiveInferenceTask`.
    batch
        As the loader yields it.
    readings
        How ``embed`` (or ``logits``) and ``forward`` take batches; filled at the first one.
    """
    model, score, key = task.task, task.score, task.input_key
    name = getattr(score, "feature", "embedding")
    method = getattr(model, "embed" if name == "embedding" else name, None)
    function = model if getattr(score, "_where", {}).get("layer") is not None else method or model
    features = _given(
        lambda inputs: score.extract(model, inputs), batch, key, function, readings, "score", model
    )
    output = _given(lambda inputs: call(model, inputs), batch, key, model, readings, "forward", model)
    return features, output


def _given(  # noqa: PLR0917 - one call for each of two parts
    function: Callable[[Any], Any],
    batch: Any,
    key: Key,
    signature: Any,
    readings: dict[str, Reading],
    part: str,
    model: Any,
) -> Any:
    """The result of one part of the model for a batch."""
    if part in readings:
        return function(prepared(batch, readings[part], key, signature))
    failed: Exception | None = None
    found: Any = None
    try:
        inputs = input_of(batch, key)
    except InvalidInputError:
        if key is not None:
            raise
    else:
        try:
            found = function(inputs)
        except MODEL_ERRORS as error:
            failed = error
        if key is not None or isinstance(batch, Tensor) or (failed is None and _fits(found, inputs)):
            if failed is not None:
                raise failed
            readings[part] = "input"
            return found
    try:
        with silent(model):  # what is tried is no part of the run
            readings[part] = reading_of(function, batch, key, signature)
    except MODEL_ERRORS:
        if failed is not None:
            raise failed from None
        if found is None:
            raise
        return found  # in a form of its own, which metrics may know
    return (
        found
        if readings[part] == "input" and found is not None
        else _given(function, batch, key, signature, readings, part, model)
    )


def _fits(found: Any, inputs: Any) -> bool:
    """Whether a result has one row for each sample, and not by chance."""
    rows = rows_of(inputs)
    if rows is None:
        return True
    if isinstance(inputs, Tensor) and rows in inputs.shape[1:]:
        return False  # what unpacks a batch would take the first sample for the input
    if isinstance(found, Tensor) and (found.ndim == 0 or rows == 1):
        return rows == 1
    if isinstance(found, (list, tuple)) and len(found) == rows:
        return True
    return rows_of(found) == rows


def prediction_of(output: Any) -> Any:
    """The predictions in a model's output: its logits, where it has an entry of that name."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return found if isinstance(found, Tensor) else output


def ids_of(batch: Any, key: Key, rows: int) -> Any:
    """The samples' own names or numbers in a batch.

    Parameters
    ----------
    batch
        As the loader yields it.
    key
        Where they are; ``None`` for nowhere.
    rows
        How many samples there are.

    Returns
    -------
    Tensor, list or None
        Whole numbers, or texts.

    Raises
    ------
    InvalidInputError
        If there is not one for each sample.
    """
    if key is None:
        return None
    ids = entry_of(batch, key, "id_key")
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if isinstance(ids, (list, tuple)) and all(isinstance(i, (str, int, np.integer)) for i in ids):
        ids = list(ids)
    elif not (isinstance(ids, Tensor) and ids.ndim == 1 and not ids.is_floating_point()):
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise InvalidInputError(
            f"id_key={key!r} must lead to one whole number or text for each sample; got {got}"
        )
    if len(ids) != rows:
        raise InvalidInputError(f"id_key={key!r} leads to {len(ids)} entries for {rows} samples")
    return ids
