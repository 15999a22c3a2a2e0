"""Exact nearest neighbours, streamed over queries and references.

The squared distance is ``|r - c|^2 - 2 r.(q - c) + |q - c|^2 + 2 c.(q - c)`` with any fixed centre ``c``; the
last two terms do not change which references are near. One matrix product gives the others for a block of
references. An entry below a limit lies in a group whose minimum is, so all but a few entries are looked at
once, by a minimum. Products are taken in float32 where the numbers come from float32 data, and are rounded: a
few more candidates than k are kept, their distances are computed anew in float64 as sums of squared
differences, and a bound on the rounding proves that none of the others is nearer; queries where it cannot are
searched again in float64. So distances are those of float64, whatever the products were.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from selkit.errors import InvalidInputError, NotFiniteError
from selkit.scores.rows import Rows, TensorRows, as_rows, blocks_of
from selkit.utils.precision import exact_device, full_precision

GROUP = 64  # neighbouring columns that are reduced to one minimum
ROWS = 2048  # queries in a block
COLUMNS = 8192  # references in a block, at least
ENTRIES = ROWS * COLUMNS
LARGER = 4  # an accelerator's blocks, in both directions: it has more cores to keep busy
SPARE = 8  # candidates kept beyond k


@dataclass(frozen=True)
class References:
    """Rows to search, and what one pass over them gives.

    Attributes
    ----------
    rows
        ``(N, D)``, in memory or in a file.
    center
        ``(D,)``, near the middle, so that norms, and with them rounding errors, are small.
    norms
        ``|r - c|^2``, ``(N,)``.
    fast
        Dtype of the products.
    """

    rows: Rows
    center: Tensor
    norms: Tensor
    fast: torch.dtype

    @classmethod
    def of(cls, rows: Tensor | Rows, fast: torch.dtype | None = None) -> References:
        """Prepare rows for searching.

        Parameters
        ----------
        rows
            ``(N, D)``.
        fast
            Dtype of the products; without it that of the rows.

        Raises
        ------
        InvalidInputError
            If squares of their numbers overflow.
        """
        first = next(blocks_of(rows, COLUMNS))[1]
        center, norms = first.mean(0), first.new_empty(rows.shape[0])
        for where, block in blocks_of(rows, COLUMNS):
            norms[where] = (block - center).square_().sum(1)
        found = cls(as_rows(rows), center, norms, first.dtype if fast is None else fast)
        _check_range(found.norms, "X")
        return found

    def __len__(self) -> int:
        return self.rows.shape[0]

    def block(self, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Some rows and their norms, on the device and in the dtype of a tensor."""
        rows = self.rows.block(start, stop)
        if like.dtype is torch.float64 and self.norms.dtype is not torch.float64:
            rows = rows.to(like)
            return rows, (rows - self.center.to(like)).square().sum(1)
        return rows.to(like), self.norms[start:stop].to(like)


def nearest(query: Tensor, references: References, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest references of each query by Euclidean distance.

    Parameters
    ----------
    query
        ``(Q, D)``; the search runs on its device.
    references
        What to search.
    k
        Between 1 and the number of references.

    Returns
    -------
    distances, indices
        ``(Q, k)`` each, nearest first; distances in float64. Of references at the same distance any may be
        named.

    Raises
    ------
    InvalidInputError
        For another ``k``.
    """
    if not 1 <= k <= len(references):
        raise InvalidInputError(
            f"{k} neighbours are asked for, but there are {len(references)} references; "
            "lower k (or offset), or fit on more"
        )
    exact = query.to(exact_device(query)).double()
    given = references.rows.block(0, 1).dtype
    # a query that float32 would round is not searched in it, unless the references are rounded as well
    rounds = given is not torch.float64 and not torch.equal(exact, exact.to(given).double())
    dtype = torch.float64 if rounds else references.fast
    asked = exact if dtype is torch.float64 else query.to(dtype)
    with full_precision(query.device):
        distances, index, proven = _search(asked, exact, references, k)
        if dtype is not torch.float64 and not bool(proven.all()):
            again = (~proven).nonzero()[:, 0]
            wide = exact[again.to(exact.device)]
            distances[again], found, _ = _search(wide, wide, references, k)
            index[again] = found.to(index.device)
    return distances, index


def _search(query: Tensor, precise: Tensor, references: References, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distances, indices, and for which queries it is proven that no nearer reference was missed.

    ``precise`` is the query in float64.
    """
    kept = min(len(references), k + SPARE)
    center = references.center.to(query)
    best = torch.full((len(query), kept), torch.inf, dtype=query.dtype, device=query.device)
    index = torch.zeros((len(query), kept), dtype=torch.long, device=query.device)
    on_cpu = query.device.type == "cpu"
    rows_at_once = ROWS if on_cpu else LARGER * ROWS
    columns = max(COLUMNS if on_cpu else LARGER * COLUMNS, ENTRIES // len(query) // GROUP * GROUP)
    columns = min(columns, -(-len(references) // GROUP) * GROUP)
    buffer = query.new_empty(min(rows_at_once, len(query)) * columns)
    merge = _merge_on_cpu if on_cpu else _merge
    spans, blocks = _spans(len(query), rows_at_once), _spans(len(references), columns)
    # a block of a file is read once, and a tensor's queries are shifted once
    inside = isinstance(references.rows, TensorRows)
    order = product(spans, blocks) if inside else ((rows, where) for where, rows in product(blocks, spans))
    shifted, block, norms, last = query, query, query, (slice(0), slice(0))
    for rows, where in order:
        if rows != last[0]:
            shifted = query[rows] - center
            if query.dtype is references.norms.dtype or query.dtype is torch.float64:
                _check_range(torch.linalg.vector_norm(shifted, dim=1).square(), "query")
        if where != last[1]:
            block, norms = references.block(where.start, where.stop, query)
        last = (rows, where)
        products = _products(shifted, block, norms, buffer)
        groups = products.view(len(products), -1, GROUP)
        merge(groups, groups.amin(2), where.start, best[rows], index[rows])
    exact, index = _refine(precise, references, index)
    if kept == len(references):  # nothing was left out
        return exact[:, :k], index[:, :k], torch.ones_like(exact[:, 0], dtype=torch.bool)
    farthest = exact[:, k - 1].to(query.device, query.dtype)
    proven = farthest.square() <= best.amax(1) + _slack(query, references, farthest, spans)
    return exact[:, :k], index[:, :k], proven


def _check_range(squares: Tensor, name: str) -> None:
    if not bool(torch.isfinite(squares).all()):
        raise NotFiniteError(
            f"{name} holds numbers so large that their squares overflow {squares.dtype}; rescale them"
        )


def _spans(count: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _products(shifted: Tensor, block: Tensor, norms: Tensor, buffer: Tensor) -> Tensor:
    """``|r - c|^2 - 2 r.(q - c)``, in whole groups of columns; those beyond the references are infinite."""
    width = len(norms)
    padded = -(-width // GROUP) * GROUP
    out = buffer[: len(shifted) * padded].view(len(shifted), padded)
    if padded == width:
        return torch.addmm(norms, shifted, block.T, alpha=-2.0, out=out)
    out[:, :width] = torch.addmm(norms, shifted, block.T, alpha=-2.0)
    out[:, width:] = torch.inf
    return out


def _merge(groups: Tensor, minima: Tensor, start: int, best: Tensor, index: Tensor) -> None:
    """Put the smallest products of a block, given in groups, among the best so far, in place."""
    rows, number, size = groups.shape
    kept = best.shape[1]
    limit = torch.nextafter(best.amax(1), best.new_tensor(-torch.inf))
    hit = (minima <= limit[:, None]).nonzero()
    if len(hit) > rows * kept and number > kept:  # the first block, or references in an unlucky order
        limit = limit.minimum(minima.kthvalue(kept, dim=1).values)  # at least as many products are below it
        hit = (minima <= limit[:, None]).nonzero()
    if not len(hit):
        return
    entries = groups.reshape(-1, size)[hit[:, 0] * number + hit[:, 1]]
    found, column = (entries <= limit[hit[:, 0], None]).nonzero(as_tuple=True)
    row = hit[found, 0]  # ascending
    counts = torch.bincount(row, minlength=rows)
    place = kept + torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    values = best.new_full((rows, kept + int(counts.max())), torch.inf)
    where = index.new_zeros(values.shape)
    values[:, :kept], where[:, :kept] = best, index
    values[row, place] = entries[found, column]
    where[row, place] = start + hit[found, 1] * size + column
    chosen, order = values.topk(kept, dim=1, largest=False, sorted=False)
    best.copy_(chosen)
    index.copy_(where.gather(1, order))


def _merge_on_cpu(groups: Tensor, minima: Tensor, start: int, best: Tensor, index: Tensor) -> None:
    """The same by NumPy: it is little work, for which threads would only wait for each other."""
    rows, number, size = groups.shape
    least, values, where = minima.numpy(), best.numpy(), index.numpy()
    kept = values.shape[1]
    limit = np.nextafter(values.max(1), values.dtype.type(-np.inf))
    hit = np.flatnonzero(least <= limit[:, None])
    if len(hit) > rows * kept and number > kept:
        limit = np.minimum(limit, np.partition(least, kept - 1, axis=1)[:, kept - 1])
        hit = np.flatnonzero(least <= limit[:, None])
    if not len(hit):
        return
    entries = groups.reshape(-1, size).numpy()[hit]
    found = np.flatnonzero(entries <= limit[hit // number, None])
    which = hit[found // size]
    row = which // number  # ascending
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    more = np.full((rows, counts.max()), np.inf, dtype=values.dtype)
    places = np.zeros(more.shape, dtype=np.int64)
    more[row, place] = entries.ravel()[found]
    places[row, place] = start + which % number * size + found % size
    more, places = np.concatenate([values, more], 1), np.concatenate([where, places], 1)
    order = np.argpartition(more, kept - 1, axis=1)[:, :kept]
    values[...] = np.take_along_axis(more, order, 1)
    where[...] = np.take_along_axis(places, order, 1)


def _refine(query: Tensor, references: References, index: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the candidates as sums of squared differences in float64, nearest first."""
    exact = torch.empty(index.shape, dtype=torch.float64, device=query.device)
    for rows in _spans(len(query), 256):
        near = references.rows.take(index[rows]).to(query)
        exact[rows] = torch.linalg.vector_norm(near.sub_(query[rows, None]), dim=2)
    exact, order = exact.sort(dim=1)
    return exact, index.gather(1, order.to(index.device))


def _slack(query: Tensor, references: References, farthest: Tensor, spans: list[slice]) -> Tensor:
    """What has to be added to a product to stay below the squared distance, whatever was rounded."""
    center = references.center.to(query)
    largest, middle = float(references.norms.max()), float(torch.linalg.vector_norm(center))
    unit = torch.finfo(query.dtype).eps * (query.shape[1] + 12)  # 12: sums of few terms, and rounded rows
    slack = torch.empty_like(farthest)
    for rows in spans:
        shifted = query[rows] - center
        length = torch.linalg.vector_norm(shifted, dim=1)
        # any order of summation stays within the number of terms times the rounding unit
        error = largest + 2 * length * (largest**0.5 + 2 * middle) + length.square()
        offset = length.square() + 2 * (shifted @ center)
        slack[rows] = offset - unit * (error + farthest[rows].square())
    return slack
