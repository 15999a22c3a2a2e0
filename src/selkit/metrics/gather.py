"""Gathering a metric's state from several processes, also where one of them has seen nothing."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_tensors(result: Tensor, group: Any = None) -> list[Tensor]:
    """The tensor of every process, in order of rank; a drop-in ``dist_sync_fn`` for torchmetrics.

    torchmetrics' own function fails where a process holds an empty placeholder, because its number of axes
    and dtype are not those of the others, as happens when one process rejects nothing.

    Parameters
    ----------
    result
        This process's tensor. Shapes may differ between processes.
    group
        Process group, all processes without it.

    Returns
    -------
    list of Tensor
        One for each process, on the device of ``result``. Empty ones have the axes and dtype of the others.
    """
    world = dist.get_world_size(group)
    metas: list[Any] = [None] * world
    dist.all_gather_object(metas, (tuple(result.shape), result.dtype), group=group)
    filled = [(shape, dtype) for shape, dtype in metas if 0 not in shape]
    if not filled:
        return [result.new_zeros(shape, dtype=dtype) for shape, dtype in metas]
    shape, rank = filled[0][0], dist.get_rank(group)
    dtype = functools.reduce(torch.promote_types, (kind for _, kind in filled))
    sizes = [meta[0] if 0 not in meta[0] else (0, *shape[1:]) for meta in metas]
    longest = tuple(max(size[axis] for size in sizes) for axis in range(len(shape)))
    padded = torch.zeros(longest, dtype=dtype, device=result.device)
    if 0 not in sizes[rank]:
        padded[tuple(slice(0, size) for size in sizes[rank])] = result
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded, group=group)
    return [part[tuple(slice(0, length) for length in size)] for part, size in zip(parts, sizes, strict=True)]
