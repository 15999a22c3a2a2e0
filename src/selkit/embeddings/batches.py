"""What a loader yields: which part the model gets, and which part is the target."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.boundary import public
from selkit.utils.checks import given

Key: TypeAlias = int | str | None

INPUT_NAMES = ("image", "input", "inputs", "x")
TARGET_NAMES = ("label", "labels", "target", "targets", "y")


def check_key(key: object, argument: str) -> None:
    """Refuse what is neither a position nor a name.

    Raises
    ------
    InvalidTypeError
        For another type.
    """
    if key is not None and (isinstance(key, bool) or not isinstance(key, (int, str))):
        raise InvalidTypeError(f"{argument} must be a position (int) or a name (str); got {given(key)}")


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
        check_key(key, argument)
        try:
            return batch[key]  # type: ignore[index,unused-ignore]
        except (KeyError, IndexError, TypeError):
            keys = list(batch) if isinstance(batch, Mapping) else f"positions 0 to {len(batch) - 1}"
            raise InvalidInputError(f"{argument}={key!r} is not in the batch; it has {keys}") from None
    raise InvalidInputError(f"{argument}={key!r} was given, but the batch is a {type(batch).__name__}")


def entry_of(batch: Any, key: int | str, argument: str) -> Any:
    """One entry of a batch.

    Raises
    ------
    InvalidInputError
        If it is not there; the message names ``argument``.
    """
    return _pick(batch, key, argument)


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


class Keywords(dict[str, Any]):
    """Entries of a batch that a model takes as arguments by name, ``model(**batch)``."""


_SCALARS = (str, bytes, bool, int, float, type(None))


def _parts(value: Any) -> list[Any] | None:
    """What a structure consists of; ``None`` for what is no structure."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None


def _is_column(parts: list[Any]) -> bool:
    """Whether a list holds one plain value for each sample, such as their names."""
    return bool(parts) and all(isinstance(part, _SCALARS) for part in parts)


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A structure of the same kind with changed parts: models may read theirs by attribute."""
    if isinstance(value, Mapping):
        changed = {name: change(part) for name, part in value.items()}
        if type(value) is dict or not hasattr(value, "__setitem__"):
            return changed
        same: Any = copy.copy(value)
        for name, part in changed.items():
            same[name] = part
        return same
    if dataclasses.is_dataclass(value):
        same = copy.copy(cast("Any", value))
        for field in dataclasses.fields(value):
            object.__setattr__(same, field.name, change(getattr(value, field.name)))
        return same
    parts = [change(part) for part in value]
    if isinstance(value, tuple):
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return parts


def rows_of(value: Any) -> int | None:
    """Number of samples: the length of the first axis of the first tensor inside, if there is one.

    Without a tensor it is the length of the first list of plain values.
    """
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim else None
    if hasattr(value, "shape"):
        return int(value.shape[0]) if len(value.shape) else None
    parts = _parts(value)
    if parts is None:
        return None
    if _is_column(parts) and not isinstance(value, Mapping):
        return len(parts)
    columns = [part for part in parts if isinstance(part, (list, tuple)) and _is_column(list(part))]
    others = [part for part in parts if not any(part is column for column in columns)]
    found = next((rows for rows in map(rows_of, others) if rows is not None), None)
    return len(columns[0]) if found is None and columns else found


def take_rows(value: Any, rows: slice | Tensor, count: int | None = None) -> Any:
    """The same structure with only some of its samples.

    Parameters
    ----------
    value
        A tensor, an array, or a structure of them.
    rows
        Which samples, a slice or positions ``(K,)``.
    count
        How many samples there are; lists of as many plain values are cut too.
    """
    count = rows_of(value) if count is None else count
    if isinstance(value, Tensor):
        where = rows.to(value.device) if isinstance(rows, Tensor) else rows
        return value[where] if value.ndim else value
    if hasattr(value, "shape"):
        return value[rows.numpy() if isinstance(rows, Tensor) else rows] if len(value.shape) else value
    parts = _parts(value)
    if parts is None:
        return value
    if _is_column(parts) and not isinstance(value, Mapping):
        if len(parts) != count or not isinstance(value, (list, tuple)):
            return value
        return [value[i] for i in rows.tolist()] if isinstance(rows, Tensor) else value[rows]
    return _rebuilt(value, lambda part: take_rows(part, rows, count))


def to_device(value: Any, device: torch.device | None) -> Any:
    """The same structure with its tensors on another device (arrays become tensors)."""
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if hasattr(value, "shape") and hasattr(value, "__array__"):
        if getattr(getattr(value, "dtype", None), "kind", "f") not in "fiubc":
            return value  # an array of texts or objects is no tensor
        return to_device(torch.as_tensor(value), device)
    parts = _parts(value)
    if parts is None:
        movable = device is not None and callable(getattr(value, "to", None))
        return value.to(device) if movable else value
    if _is_column(parts) and not isinstance(value, Mapping):
        return value
    return _rebuilt(value, lambda part: to_device(part, device))
