"""Outputs of single samples: kept during a run, then joined over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Columns = dict[str, Any]


def to_cpu(value: Any) -> Any:
    """A detached tensor on the CPU that can be written to; other things as they are."""
    if not isinstance(value, Tensor):
        return value
    with torch.inference_mode(False):
        return value.detach().cpu().clone()


def join(parts: list[Columns]) -> Columns:
    """Put batches after each other.

    Parameters
    ----------
    parts
        One dictionary per batch, of tensors with one row per sample or lists with one entry.

    Returns
    -------
    dict
        Tensors where the rows of all batches have one shape, else lists with one entry per sample.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _join([part[name] for part in parts if name in part]) for name in names}


def _join(values: list[Any]) -> Any:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == len(values) and len({value.shape[1:] for value in tensors}) == 1:
        return torch.cat(tensors)
    return [row for value in values for row in value]


def take(columns: Columns, order: Tensor) -> Columns:
    """The samples at the given positions, in that order."""
    index = order.tolist()
    return {
        name: value[order] if isinstance(value, Tensor) else [value[i] for i in index]
        for name, value in columns.items()
    }


def gather(parts: list[Columns]) -> Columns:
    """Outputs of one loader from all processes, in the order of the data.

    Parameters
    ----------
    parts
        This process's batches; each has ``position``, the numbers of its rows in the order of the loaders,
        and ``index``, those of its samples in the data set, or ``None`` for it.

    Returns
    -------
    dict
        The same in every process; empty if no process had a sample. Without ``position``, and without
        ``index`` and in the order of the loaders if a batch had none.
    """
    parts = [part for process in everyone(parts) for part in process]
    if not parts:
        return {}
    if any(part["index"] is None for part in parts):
        parts = [{name: part[name] for name in part if name != "index"} for part in parts]
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    columns = join([{name: part[name] for name in shared} for part in parts])
    order = torch.argsort(columns.pop("position"), stable=True)
    if "index" in columns:
        order = order[torch.argsort(columns["index"][order], stable=True)]
    return take(columns, order)


def everyone(mine: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [mine]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, mine)
    return values
