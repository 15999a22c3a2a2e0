"""Features of everything that a loader yields."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selkit.embeddings.batches import Key, check_key, target_of
from selkit.embeddings.cache import FeatureCache
from selkit.embeddings.lightning import alone, moved
from selkit.embeddings.reading import Reading, prepared, reading_of
from selkit.embeddings.sources import Pool, Source, Want, check_rows, source_of
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.boundary import public
from selkit.utils.checks import choice, given
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
        Directory for features on disk. Each batch has its own file, named by the content of the batch and
        by everything that the model holds, with its code, so what changed is computed anew; a damaged file
        too. What cannot be told from others, such as an open file that a model holds, is refused.

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
    choice(want, "want", ("embedding", "logits"))
    check_key(input_key, "input_key")
    check_key(target_key, "target_key")
    if isinstance(loader, (str, bytes)) or not isinstance(loader, Iterable):
        raise InvalidTypeError(f"loader must yield batches, as a DataLoader does; got {given(loader)}")
    owner = _module_of(model)
    with alone(owner):  # may add the layers that are looked for
        source = source_of(model, want, layer=layer, pool=pool)
        with source.running():
            values, targets = _run(source, owner, loader, (want, input_key, target_key, labels, cache))
    if not values:
        raise InvalidInputError("the loader is empty: it yields no batch")
    return Features(torch.cat(values), torch.cat(targets) if labels else None)


def _module_of(model: Any) -> Any:
    """The module behind a model or a source."""
    return model.identity[0] if not isinstance(model, nn.Module) and isinstance(model, Source) else model


def _run(
    source: Source,
    owner: Any,
    loader: Iterable[Any],
    options: tuple[Want, Key, Key, bool, str | Path | None],
) -> tuple[list[Tensor], list[Tensor]]:
    """Features and targets of each batch."""
    want, input_key, target_key, labels, cache = options
    store = None if cache is None else FeatureCache(cache, source.identity)
    function = getattr(source, "function", None)
    values: list[Tensor] = []
    targets: list[Tensor] = []
    reading: Reading | None = None
    total, datamodule = length_of(loader), getattr(loader, "datamodule", None)
    for raw in track(loader, f"{want}s" if want == "embedding" else want, total):
        key = store.key((raw, input_key)) if store else ""  # before a hook writes into the batch
        batch = moved(owner, raw, datamodule)
        if store and datamodule is not None:
            key = store.key((batch, input_key))  # what its hooks depend on is no part of the model
        found = store.get(key) if store else None
        if found is None:
            if reading is None:
                reading = reading_of(source, batch, input_key, function)
            inputs = prepared(batch, reading, input_key, function)
            found = source(inputs).detach().cpu()
            check_rows(found, inputs)
            if store:
                store.put(key, found)
        values.append(found)
        if labels:
            targets.append(torch.as_tensor(target_of(batch, target_key)).cpu())
    if store:
        store.close()
    return values, targets


def length_of(loader: Iterable[Any]) -> int | None:
    """How many batches a loader has, if it can say; one of a stream of data raises when it is asked."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        return None
