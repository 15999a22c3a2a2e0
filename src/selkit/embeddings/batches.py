"""What a loader yields: which part the model gets, and which part is the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.utils.boundary import public

Key: TypeAlias = int | str | None

INPUT_NAMES = ("image", "input", "inputs", "x")
TARGET_NAMES = ("label", "labels", "target", "targets", "y")


def _entry(batch: Mapping[Any, Any], names: tuple[str, ...], argument: str) -> Any:
    found = [name for name in names if name in batch]
    if len(found) == 1:
        return batch[found[0]]
    why = f"more than one of them fits: {found}" if found else f"none of {list(names)} is among them"
    raise InvalidInputError(
        f"cannot tell which entry of the batch is meant: its keys are {list(batch)} and {why}; "
        f"name it with {argument}="
    )


def _pick(batch: Any, key: int | str, argument: str) -> Any:
    if isinstance(batch, (Mapping, Sequence)) and not isinstance(batch, str):
        try:
            return batch[key]  # type: ignore[index,unused-ignore]
        except (KeyError, IndexError, TypeError):
            keys = list(batch) if isinstance(batch, Mapping) else f"positions 0 to {len(batch) - 1}"
            raise InvalidInputError(f"{argument}={key!r} is not in the batch; it has {keys}") from None
    raise InvalidInputError(f"{argument}={key!r} was given, but the batch is a {type(batch).__name__}")


@public
def input_of(batch: Any, key: Key = None) -> Any:
    """The part of a batch that the model takes.

    Parameters
    ----------
    batch
        A tensor, a tuple or list, or a dictionary.
    key
        Position or name of the input. Without it: a tensor itself, the first entry of a tuple, and of
        a dictionary the entry named ``image``, ``input``, ``inputs`` or ``x``, or its only entry.

    Returns
    -------
    Any
        Usually a tensor.

    Raises
    ------
    InvalidInputError
        If the key is not there, or no entry of a dictionary stands out.

    Examples
    --------
    >>> import torch
    >>> input_of((torch.zeros(4, 2), torch.ones(4))).shape
    torch.Size([4, 2])
    >>> input_of({"a": torch.zeros(3, 1), "b": torch.zeros(3)}, key="a").shape
    torch.Size([3, 1])
    """
    if key is not None:
        return _pick(batch, key, "input_key")
    if isinstance(batch, Mapping):
        return next(iter(batch.values())) if len(batch) == 1 else _entry(batch, INPUT_NAMES, "input_key")
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return _pick(batch, 0, "input_key")
    return batch


@public
def target_of(batch: Any, key: Key = None) -> Any:
    """The part of a batch that says what is true: labels or masks.

    Parameters
    ----------
    batch
        A tuple or list, or a dictionary.
    key
        Position or name of the target. Without it: the second entry of a tuple, and of a dictionary the
        entry named ``label``, ``labels``, ``target``, ``targets`` or ``y``.

    Raises
    ------
    InvalidInputError
        If there is no such part.
    """
    if key is not None:
        return _pick(batch, key, "target_key")
    if isinstance(batch, Mapping):
        return _entry(batch, TARGET_NAMES, "target_key")
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1:
        return batch[1]
    raise InvalidInputError(
        f"labels are needed, but the loader yields a {type(batch).__name__} without a second entry; "
        "let it yield (input, label) or pass the labels themselves"
    )


def rows_of(value: Any) -> int | None:
    """Number of samples: the length of the first axis of the first tensor inside, if there is one."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim else None
    if hasattr(value, "shape"):
        return int(value.shape[0]) if len(value.shape) else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((rows for rows in map(rows_of, value) if rows is not None), None)
    return None


def take_rows(value: Any, rows: slice) -> Any:
    """The same structure with only some of its samples."""
    if isinstance(value, Tensor) or hasattr(value, "shape"):
        return value[rows] if value.ndim else value
    if isinstance(value, Mapping):
        return {name: take_rows(part, rows) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [take_rows(part, rows) for part in value]
    return value


def to_device(value: Any, device: torch.device | None) -> Any:
    """The same structure with its tensors on another device (arrays become tensors)."""
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if hasattr(value, "shape") and hasattr(value, "__array__"):
        return to_device(torch.as_tensor(value), device)
    if isinstance(value, Mapping):
        return {name: to_device(part, device) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_device(part, device) for part in value]
    return value
