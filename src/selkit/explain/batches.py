"""Batches of one or several inputs, as users hand them in: an array, or one for each input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selkit.embeddings.batches import Key
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.explain.references import Shape, is_array, read_array, read_references
from selkit.utils.checks import given

Declared = Sequence[tuple[str, "Shape | None", str]]
"""Name, shape with the batch axis, and dtype of each input."""


def read_batch(x: object, inputs: Declared, name: str = "x") -> list[NDArray[Any]]:
    """A batch of every input, checked: an array for one input, a mapping or sequence for several.

    Raises
    ------
    InvalidTypeError
        For what are no arrays of floating numbers.
    InvalidInputError
        If an input is missing or unknown, shapes or numbers of samples do not fit, or for NaN.
    """
    if len(inputs) == 1 and not isinstance(x, Mapping):
        return [read_array(x, inputs[0][1], inputs[0][2], name=name)]
    parts = [
        read_array(value, shape, kind, name=f"{name}[{key!r}]")
        for value, (key, shape, kind) in zip(_apart(x, inputs, name), inputs, strict=True)
    ]
    return _same_count(parts, inputs, name)


def read_reference_batch(references: object, inputs: Declared, key: Key) -> list[NDArray[Any]]:
    """References for every input, checked; a loader's batches are mappings or tuples, too.

    Raises
    ------
    InvalidTypeError, InvalidInputError
        As for :func:`read_batch`.
    """
    name = "references"
    if len(inputs) == 1 and not isinstance(references, Mapping):
        return [read_references(references, inputs[0][1], inputs[0][2], key=key)]
    arrays = isinstance(references, list | tuple) and all(map(is_array, references))
    if isinstance(references, Mapping) or (arrays and len(references) == len(inputs)):  # type: ignore[arg-type]
        return read_batch(references, inputs, name)
    if references is None or isinstance(references, str | bytes | Number) or is_array(references):
        raise InvalidTypeError(_wanted(references, inputs, name))
    if not isinstance(references, Iterable):
        raise InvalidTypeError(_wanted(references, inputs, name))
    batches = [
        read_batch(entry, inputs, f"{name} (entry {number})") for number, entry in enumerate(references)
    ]
    if not batches:
        raise InvalidInputError(f"{name} has no sample; give at least one")
    joined = []
    for place, (own, _, _) in enumerate(inputs):
        shapes = {batch[place].shape[1:] for batch in batches}
        if len(shapes) > 1:
            raise InvalidInputError(f"{name} has samples of different shapes for {own!r}: {sorted(shapes)}")
        joined.append(np.concatenate([batch[place] for batch in batches]))
    return joined


def _apart(x: object, inputs: Declared, name: str) -> list[Any]:
    """One value for each input."""
    names = [own for own, _, _ in inputs]
    if isinstance(x, Mapping):
        if set(x) != set(names):
            raise InvalidInputError(
                f"{name} has the entries {', '.join(map(given, x))}; the explained inputs are "
                f"{', '.join(names)}"
            )
        return [x[own] for own in names]
    if not isinstance(x, list | tuple) or len(x) != len(names):
        raise InvalidTypeError(_wanted(x, inputs, name))
    return list(x)


def _wanted(x: object, inputs: Declared, name: str) -> str:
    names = ", ".join(f"{own!r}" for own, _, _ in inputs)
    return (
        f"{name} must be a mapping with an array for each explained input ({names}), or a tuple of arrays in "
        f"that order; got {given(x)}"
    )


def _same_count(parts: list[NDArray[Any]], inputs: Declared, name: str) -> list[NDArray[Any]]:
    counts = {own: len(part) for part, (own, _, _) in zip(parts, inputs, strict=True)}
    if len(set(counts.values())) > 1:
        raise InvalidInputError(f"{name} has different numbers of samples: {counts}")
    return parts
