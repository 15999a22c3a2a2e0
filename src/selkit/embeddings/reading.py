"""How a model takes a batch: its input alone, the batch as it is, or entries of it by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from selkit.embeddings.batches import TARGET_NAMES, Key, Keywords, input_of, rows_of, take_rows
from selkit.errors import InvalidInputError

Reading: TypeAlias = Literal["input", "batch", "names"]

MODEL_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What a model raises that is given what it does not take."""


def keywords_of(function: Any, batch: Any) -> Keywords | None:
    """The entries of a batch that a function has arguments for, labels left out.

    Parameters
    ----------
    function
        A module or a method.
    batch
        What a loader yields.

    Returns
    -------
    Keywords or None
        ``None`` if no argument is among them, or one that the function needs is not.
    """
    if not isinstance(batch, Mapping) or function is None:
        return None
    while hasattr(function, "_orig_mod"):  # compiled
        function = function._orig_mod
    try:
        parameters = inspect.signature(
            function.forward if isinstance(function, nn.Module) else function
        ).parameters
    except (TypeError, ValueError):
        return None
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.default is p.empty and p.name not in batch for p in named):
        return None
    found = Keywords((p.name, batch[p.name]) for p in named if p.name in batch)
    for name in TARGET_NAMES:
        if name in parameters and parameters[name].default is not inspect.Parameter.empty:
            found.pop(name, None)
    return found or None


def prepared(batch: Any, reading: Reading, key: Key, function: Any = None) -> Any:
    """What a model is called with.

    Parameters
    ----------
    batch
        As the loader yields it.
    reading
        How the model takes it.
    key
        Position or name of the input.
    function
        What is called, for ``"names"``.
    """
    if reading == "batch":
        return batch
    found = keywords_of(function, batch) if reading == "names" else None
    return input_of(batch, key) if found is None else found


def reading_of(call: Callable[[Any], Any], batch: Any, key: Key, function: Any = None) -> Reading:
    """How a model takes batches of this kind, found by trying.

    Both kinds of ``embed`` exist. The one that takes the input tensor gives one row for each sample of any
    batch; one that unpacks the batch itself does not when it is handed a tensor, or fails. Where no entry
    stands out as the input, the arguments of the model are looked at.

    Parameters
    ----------
    call
        The model.
    batch, key, function
        As for :func:`prepared`.

    Raises
    ------
    InvalidInputError
        If no way gives one row for each sample.
    """
    if key is not None or isinstance(batch, Tensor):
        return "input"
    try:
        inputs = input_of(batch)
    except InvalidInputError as unclear:
        return _without_input(call, batch, function, unclear)
    rows = rows_of(inputs)
    if rows is None:
        return "input"
    # with another number of rows than the batch, a wrong reading cannot be right by chance
    size = max(1, rows - 1)
    alone, first = _rows_given(call, take_rows(inputs, slice(0, size)))
    if alone == size and (rows == 1 or _rows_given(call, inputs)[0] == rows):
        return "input"
    whole, second = _rows_given(call, batch)
    if whole == rows:
        return "batch"
    named = keywords_of(function, batch)
    if named is not None and _rows_given(call, named)[0] == rows:
        return "names"
    raise InvalidInputError(
        "the model does not give one row for each sample, neither for the batch's input "
        f"({first or f'{alone} rows for {size}'}) nor for the whole batch "
        f"({second or f'{whole} rows for {rows}'}); input_key= says which entry is the input"
    ) from (first or second)


def _without_input(
    call: Callable[[Any], Any], batch: Any, function: Any, unclear: InvalidInputError
) -> Reading:
    """The reading where no entry of the batch stands out."""
    rows = rows_of(batch)
    named = keywords_of(function, batch)
    tries: list[tuple[Reading, Any]] = [] if named is None else [("names", named)]
    failed: list[str] = []
    cause: Exception | None = None
    for reading, inputs in [*tries, ("batch", batch)]:
        found, error = _rows_given(call, inputs)
        if found is not None and found == rows:
            return reading
        how = f"by name ({', '.join(named or ())})" if reading == "names" else "as a whole"
        failed.append(f"{how}: {error or f'{found} rows for {rows}'}")
        cause = cause or error
    raise InvalidInputError(
        f"{unclear}. The batch was also given to the model " + "; ".join(failed)
    ) from cause


def _rows_given(call: Callable[[Any], Any], inputs: Any) -> tuple[int | None, Exception | None]:
    try:
        return rows_of(call(inputs)), None
    except MODEL_ERRORS as error:  # the model does not take its input this way
        return None, error
