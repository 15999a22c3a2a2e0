"""References in a Dask array, searched block by block where the blocks are."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError, MissingExtraError, NotAvailableError
from selkit.scores.rows import Transform
from selkit.scores.search import References, nearest
from selkit.utils.arrays import check_finite
from selkit.utils.precision import full_precision


def is_dask(values: object) -> bool:
    """Whether something is a Dask array, without importing Dask."""
    return type(values).__module__.startswith("dask.array")


class DaskRows:
    """Rows of a Dask array.

    Learning (a covariance, principal components) fetches one block after the other; searching sends the
    queries to the blocks, each task returns the k nearest in its block, and these are merged.

    Parameters
    ----------
    array
        Floating, shape ``(N, D)``, blocks along the first axis only.
    transform
        Applied to every block, on the worker that has it; must be picklable.
    """

    def __init__(self, array: Any, transform: Transform | None = None) -> None:
        self.array, self.transform = array, transform
        self._ends = np.cumsum(array.chunks[0])

    @classmethod
    def checked(cls, array: Any, name: str) -> DaskRows:
        """The rows, after one pass on the cluster that looks for NaN and infinity.

        Raises
        ------
        InvalidInputError
            For another shape, NaN or infinity.
        InvalidTypeError
            For numbers that are not floating.
        """
        if array.ndim != 2 or any(np.isnan(size) for size in array.shape) or 0 in array.shape:
            raise InvalidInputError(
                f"{name} must have a known shape (samples, features); got {array.shape}. "
                "compute_chunk_sizes() finds it"
            )
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise InvalidTypeError(f"{name} must hold floating numbers; got {array.dtype}")
        if len(array.chunks[1]) > 1:
            array = array.rechunk({1: -1})
        rows = cls(array)
        _compute([_delayed(_check_block)(block, name) for block in rows._blocks()])
        return rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns, before the transform."""
        return int(self.array.shape[0]), int(self.array.shape[1])

    def block(self, start: int, stop: int) -> Tensor:
        """Some neighbouring rows, fetched now."""
        found = _tensor(self.array[start:stop].compute())
        return found if self.transform is None else self.transform(found)

    def take(self, index: Tensor) -> Tensor:
        """Not needed: tasks return distances.

        Raises
        ------
        NotAvailableError
            Always.
        """
        raise NotAvailableError("rows of a Dask array are not fetched one by one")

    def mapped(self, transform: Transform) -> DaskRows:
        """The same array with another transform."""
        if self.transform is not None:
            raise NotAvailableError("a Dask array takes one transform")
        return DaskRows(self.array, transform)

    def nearest(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest rows of each query, found on the cluster; see :func:`selkit.scores.search.nearest`.

        Raises
        ------
        InvalidInputError
            If there are fewer rows than k.
        """
        if k > self.shape[0]:
            raise InvalidInputError(f"{k} neighbours are asked for, but there are {self.shape[0]} references")
        shared = _delayed(query.cpu().numpy())
        tasks = [_delayed(_search_block)(block, shared, k, self.transform) for block in self._blocks()]
        found = _compute(tasks)
        starts = [0, *self._ends[:-1].tolist()]
        distances = torch.from_numpy(np.concatenate([part[0] for part in found], 1))
        index = torch.from_numpy(
            np.concatenate([part[1] + start for part, start in zip(found, starts, strict=True)], 1)
        )
        best, order = distances.topk(k, dim=1, largest=False)
        return best.to(query.device), index.gather(1, order).to(query.device)

    def _blocks(self) -> list[Any]:
        blocks: list[Any] = self.array.to_delayed()[:, 0].tolist()
        return blocks


def _delayed(value: Any) -> Any:
    try:
        dask: Any = import_module("dask")
    except ImportError as error:
        raise MissingExtraError("Dask arrays need dask: pip install 'selkit[dask]'") from error
    return dask.delayed(value)


def _compute(tasks: list[Any]) -> list[Any]:
    dask: Any = import_module("dask")
    return list(dask.compute(*tasks))


def _tensor(block: Any) -> Tensor:
    array = np.asarray(block)
    return torch.from_numpy(np.array(array, dtype=np.float64 if array.dtype.itemsize == 8 else np.float32))


def _check_block(block: Any, name: str) -> bool:
    check_finite(_tensor(block), f"a block of {name}")
    return True


def _search_block(
    block: Any, query: np.ndarray[Any, Any], k: int, transform: Transform | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The nearest rows of one block; runs on a worker."""
    rows = _tensor(block)
    with torch.no_grad(), full_precision(rows.device):
        inside = rows if transform is None else transform(rows)
        asked = torch.from_numpy(np.array(query)).to(inside)
        distances, index = nearest(asked, References.of(inside), min(k, len(rows)))
    return distances.numpy(), index.numpy()
