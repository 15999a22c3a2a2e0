"""Features of everything that a loader yields."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selkit.embeddings.batches import Key, input_of, rows_of, take_rows, target_of
from selkit.embeddings.cache import FeatureCache
from selkit.embeddings.sources import Pool, Source, Want, check_rows, source_of
from selkit.errors import InvalidInputError
from selkit.utils.boundary import public
from selkit.utils.progress import track


@dataclass(frozen=True)
class Features:
    """What a model makes of a loader's samples, in the loader's order.

    Attributes
    ----------
    values
        Embeddings ``(N, D)`` or logits, on the CPU.
    labels
        The batches' targets ``(N, ...)``, if they were asked for.
    """

    values: Tensor
    labels: Tensor | None = None


def takes_whole_batch(source: Source, batch: Any, inputs: Any) -> bool:
    """Whether a model wants the batch as the loader yields it, rather than its input alone.

    Both kinds of ``embed`` exist. The one that takes the input tensor gives one row for each sample of any
    batch; one that unpacks the batch itself does not when it is handed a tensor, or fails.

    Raises
    ------
    InvalidInputError
        If neither way gives one row for each sample.
    """
    rows = rows_of(inputs)
    if isinstance(batch, Tensor) or rows is None:
        return False
    # with another number of rows than the batch, a wrong reading cannot be right by chance
    probe = slice(0, max(1, rows - 1)) if rows > 1 else slice(0, 1)
    size = probe.stop
    alone, first = _rows_given(source, take_rows(inputs, probe))
    if alone == size and (rows == 1 or _rows_given(source, inputs)[0] == rows):
        return False
    whole, second = _rows_given(source, batch)
    if whole == rows:
        return True
    raise InvalidInputError(
        "the model does not give one row for each sample, neither for the batch's input "
        f"({first or f'{alone} rows for {size}'}) nor for the whole batch "
        f"({second or f'{whole} rows for {rows}'}); input_key= says which entry is the input"
    ) from (first or second)


_MODEL_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def _rows_given(source: Source, inputs: Any) -> tuple[int | None, Exception | None]:
    try:
        return source(inputs).shape[0], None
    except _MODEL_ERRORS as error:  # the model does not take its input this way
        return None, error


@public
def extract(
    model: Any,
    loader: Iterable[Any],
    want: Want = "embedding",
    *,
    layer: str | None = None,
    pool: Pool = None,
    input_key: Key = None,
    target_key: Key = None,
    labels: bool = False,
    cache: str | Path | None = None,
) -> Features:
    """Run a model over a loader and keep its embeddings or logits.

    Parameters
    ----------
    model
        A torch or Lightning module, or an ONNX model (path, bytes, ``ModelProto``).
    loader
        Yields tensors, tuples or dictionaries; each batch once, in its order.
    want
        ``"embedding"`` (``model.embed``) or ``"logits"`` (``model.logits``, else ``model``).
    layer
        Submodule or ONNX value whose output is taken instead.
    pool
        How a layer's output with more than two axes becomes a vector; see
        :func:`selkit.embeddings.sources.pooled`.
    input_key
        Position or name of the input in a batch. Without it the usual entry is taken (the first of a
        tuple, ``image`` of a dictionary); a model whose ``embed`` unpacks the batch itself is recognized
        by the first batch, and then gets every batch whole.
    target_key
        Position or name of the target in a batch.
    labels
        Keep the targets too.
    cache
        Directory for features on disk. Each batch has its own file, named by the content of the model
        and of the batch, so what changed is computed anew.

    Returns
    -------
    Features
        On the CPU.

    Raises
    ------
    InvalidInputError
        For an empty loader, or features that do not have one row for each sample.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = TensorDataset(torch.randn(10, 4), torch.arange(10))
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> found = extract(model, DataLoader(data, batch_size=4), layer="1", labels=True)
    >>> found.values.shape, found.labels.tolist()
    (torch.Size([10, 3]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    source = source_of(model, want, layer=layer, pool=pool)
    store = None if cache is None else FeatureCache(cache, source.identity)
    values: list[Tensor] = []
    targets: list[Tensor] = []
    whole: bool | None = None if input_key is None else False
    total = len(loader) if isinstance(loader, Sized) else None
    with source.running():
        for batch in track(loader, f"{want}s" if want == "embedding" else want, total):
            inputs = input_of(batch, input_key)
            found = store.get(batch) if store else None
            if found is None:
                if whole is None:
                    whole = takes_whole_batch(source, batch, inputs)
                found = source(batch if whole else inputs).detach().cpu()
                check_rows(found, inputs)
                if store:
                    store.put(batch, found)
            values.append(found)
            if labels:
                targets.append(torch.as_tensor(target_of(batch, target_key)).cpu())
    if not values:
        raise InvalidInputError("the loader is empty: it yields no batch")
    return Features(torch.cat(values), torch.cat(targets) if labels else None)
