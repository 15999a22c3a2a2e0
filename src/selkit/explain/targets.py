"""Which output is explained: one for all samples, several for each, or another one for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.utils.checks import given

Target: TypeAlias = "int | Literal['top', 'all'] | Sequence[int] | NDArray[Any] | Any"
"""``"top"``, ``"all"``, an index, or several; whole numbers of NumPy and torch count as such."""
Chosen: TypeAlias = "int | Literal['top'] | tuple[int, ...]"


def check_target(target: object, outputs: int) -> Chosen:
    """What to explain, checked against the number of outputs; ``"all"`` becomes all indices.

    Parameters
    ----------
    target
        ``"top"``, ``"all"``, an index, or a sequence of indices; arrays and tensors as well.
    outputs
        How many outputs there are.

    Raises
    ------
    InvalidInputError
        If it is neither one of the words nor whole numbers, an index is out of range or repeated, or there
        is none.
    """
    wanted = f"'top', 'all', an index from 0 to {outputs - 1}, or a list of such indices"
    if isinstance(target, str):
        if target == "all":
            return tuple(range(outputs))
        if target == "top":
            return "top"
        raise InvalidInputError(f"target is {given(target)}; it must be {wanted}")
    array = whole_numbers(target, wanted)
    _check_range(array, outputs, wanted)
    if array.ndim == 0:
        return int(array)
    indices = tuple(array.reshape(-1).tolist()) if array.ndim == 1 else ()
    if not indices or len(set(indices)) < len(indices):
        raise InvalidInputError(
            f"target is {given(target)}; name at least one output, and each only once: {wanted}"
        )
    return indices


def per_sample(target: object, chosen: Chosen, outputs: int, count: int) -> NDArray[np.int64] | None:
    """Another target for each sample, if that is what is given: ``(N,)``, or ``(T, N)`` of several.

    Parameters
    ----------
    target
        What the user gave for a batch.
    chosen
        What the explainer was made for.
    outputs, count
        How many outputs and samples there are.

    Returns
    -------
    ndarray or None
        Shape ``(T, N)``, with ``T = 1`` for one target per sample; ``None`` for the same for all samples.

    Raises
    ------
    InvalidInputError
        If indices are out of range, or no whole numbers.
    """
    if isinstance(target, str) or target is None:
        return None
    wanted = f"an index from 0 to {outputs - 1} for each of the {count} samples"
    array = whole_numbers(target, wanted)
    several = isinstance(chosen, tuple)
    if array.ndim != (2 if several else 1) or array.shape[-1] != count:
        return None
    _check_range(array, outputs, wanted)
    if several and any(len(set(column)) < len(column) for column in array.T.tolist()):
        raise InvalidInputError("target names an output twice for the same sample; name each only once")
    return array.reshape(-1, count)


def whole_numbers(target: object, wanted: str) -> NDArray[np.int64]:
    """A number or an array of whole numbers of any library."""
    if isinstance(target, Tensor):
        if target.is_meta or target.layout is not torch.strided:
            raise InvalidInputError(f"target is {given(target)} without values; it must be {wanted}")
        target = target.detach().cpu().numpy() if target.dtype != torch.bfloat16 else target.float().numpy()
    if target is None or isinstance(target, bytes | bytearray | dict | set | frozenset):
        raise InvalidInputError(f"target is {given(target)}; it must be {wanted}")
    try:
        array = np.asarray(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"target is {given(target)} ({error}); it must be {wanted}") from error
    if array.size == 0 and array.ndim == 1 and isinstance(target, Sequence | np.ndarray):
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"target is {given(target)}; it must be {wanted}")
    if array.size and (int(array.max()) > 2**62 or int(array.min()) < -(2**62)):
        raise InvalidInputError(f"target is {given(target)}; it must be {wanted}")
    return array.astype(np.int64)


def _check_range(array: NDArray[np.int64], outputs: int, wanted: str) -> None:
    if array.size and (array.min() < 0 or array.max() >= outputs):
        bad = int(array.min()) if array.min() < 0 else int(array.max())
        raise InvalidInputError(
            f"target is {bad}, and the model has {outputs} output(s); it must be {wanted}"
        )


def resolved(chosen: Chosen, outputs: NDArray[Any]) -> NDArray[np.int64]:
    """Indices of shape ``(T, N)`` for a batch's outputs, ``(N, outputs)``."""
    if chosen == "top":
        return np.asarray(outputs.argmax(axis=1)[None], dtype=np.int64)
    indices = chosen if isinstance(chosen, tuple) else (chosen,)
    return np.repeat(np.array(indices, dtype=np.int64)[:, None], len(outputs), axis=1)


def for_batch(
    target: object, chosen: Chosen, outputs: int, count: int
) -> tuple[Chosen, NDArray[np.int64] | None]:
    """What a batch's own target means for an explainer that was made for another one.

    Returns
    -------
    target
        The same for all samples.
    ndarray or None
        Or one for each sample, ``(T, N)``.

    Raises
    ------
    InvalidInputError
        If it cannot be used, or has one target where the explainer was made for several, or vice versa.
    """
    if target is None:
        return chosen, None
    rows = per_sample(target, chosen, outputs, count)
    if rows is not None:
        return chosen, rows
    checked = check_target(target, outputs)
    if isinstance(checked, tuple) != isinstance(chosen, tuple):
        made = "several targets" if isinstance(chosen, tuple) else "one target"
        raise InvalidInputError(
            f"target is {given(target)}, but this explainer was made for {made} per sample; make another "
            f"one with that target, or give one index for each of the {count} samples"
        )
    return checked, None
