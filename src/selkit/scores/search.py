"""Exact nearest neighbours, streamed over queries and references."""

from __future__ import annotations

import torch
from torch import Tensor

from selkit.errors import InvalidInputError

BLOCK = 64  # references whose distances are reduced to one minimum
QUERIES = 1024
REFERENCES = 8192


def nearest(
    query: Tensor, reference: Tensor, k: int, *, squared_norms: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest references of each query, by squared Euclidean distance.

    Parameters
    ----------
    query
        Shape ``(Q, D)``.
    reference
        Shape ``(N, D)``, same dtype and device.
    k
        Between 1 and N.
    squared_norms
        ``(reference ** 2).sum(1)``, if it is at hand.

    Returns
    -------
    squared_distances, indices
        Shape ``(Q, k)`` each, nearest first; equal distances in the order of the references.
    """
    count = reference.shape[0]
    if not 1 <= k <= count:
        raise InvalidInputError(f"k must be between 1 and the number of references, {count}; got {k}")
    norms = (reference * reference).sum(1) if squared_norms is None else squared_norms
    parts = [_search(part, reference, norms, k) for part in torch.split(query, QUERIES)]
    distances, indices = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _search(query: Tensor, reference: Tensor, norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    found = min(reference.shape[0], k + 8)  # some more, since these distances are rounded
    values: list[Tensor] = []
    indices: list[Tensor] = []
    for start in range(0, reference.shape[0], REFERENCES):
        block = reference[start : start + REFERENCES]
        partial = torch.addmm(norms[start : start + REFERENCES], query, block.T, alpha=-2.0)
        value, index = partial.topk(min(found, block.shape[0]), largest=False)
        values.append(value)
        indices.append(index + start)
    _, order = torch.cat(values, 1).topk(found, largest=False)
    index = torch.cat(indices, 1).gather(1, order)
    return _refine(query, reference, index, k)


def _refine(query: Tensor, reference: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances as sums of squared differences, which are right even for near duplicates."""
    index = index.sort(1).values  # a stable sort by distance then breaks ties by position
    exact = torch.empty(index.shape, dtype=query.dtype, device=query.device)
    for rows in torch.split(torch.arange(len(query), device=query.device), 256):
        exact[rows] = (reference[index[rows]] - query[rows, None]).square().sum(2)
    sorted_, order = exact.sort(dim=1, stable=True)
    return sorted_[:, :k], index.gather(1, order[:, :k])
