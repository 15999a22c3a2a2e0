"""Approximate neighbours by faiss, for references where exact search takes too long."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selkit.errors import MissingExtraError
from selkit.scores.search import References, nearest
from selkit.utils.precision import exact_device

LINKS = 32  # neighbours of a node in the graph
BUILD = 100  # candidates while building, and at least while searching
SEARCH = 128


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("index='faiss' needs faiss: pip install 'selkit[faiss]'") from error
    return faiss


def build(rows: Tensor) -> Tensor:
    """A graph of neighbours (HNSW; Malkov & Yashunin 2018), as bytes.

    Parameters
    ----------
    rows
        Shape ``(N, D)``.

    Returns
    -------
    Tensor
        ``uint8``.
    """
    faiss = _faiss()
    warnings.warn(
        "index='faiss' searches approximately: some nearest neighbours are missed, and scores can be too "
        "high; index='exact' misses none",
        stacklevel=5,
    )
    index = faiss.IndexHNSWFlat(rows.shape[1], LINKS)
    index.hnsw.efConstruction = BUILD
    index.add(np.ascontiguousarray(rows.float().cpu().numpy()))
    return torch.from_numpy(faiss.serialize_index(index).copy())


def opened(content: Tensor) -> Any:
    """The index that :func:`build` made."""
    return _faiss().deserialize_index(content.cpu().numpy())


def search(index: Any, query: Tensor, references: References, k: int) -> tuple[Tensor, Tensor]:
    """About the k nearest references; their distances are exact.

    Parameters
    ----------
    index
        From :func:`opened`.
    query
        Shape ``(Q, D)``.
    references
        What the index was built from.
    k
        Number of neighbours.

    Returns
    -------
    distances, indices
        ``(Q, k)`` each, nearest first.
    """
    index.hnsw.efSearch = max(SEARCH, 4 * k)
    _, found = index.search(np.ascontiguousarray(query.float().cpu().numpy()), k)
    place = torch.from_numpy(found).to(query.device)
    short = (place < 0).any(1)
    precise = query.to(exact_device(query)).double()
    distances = torch.empty(place.shape, dtype=torch.float64, device=precise.device)
    if bool(short.any()):  # the graph did not lead to k of them
        distances[short], place[short] = nearest(query[short], references, k)
    rest = (~short).nonzero()[:, 0]
    for rows in torch.split(rest, 256):
        near = references.rows.take(place[rows]).to(precise)
        exact = torch.linalg.vector_norm(near - precise[rows, None], dim=2)
        distances[rows], order = exact.sort(dim=1)
        place[rows] = place[rows].gather(1, order)
    return distances, place
