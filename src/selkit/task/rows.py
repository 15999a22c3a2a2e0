"""Which rows of a distributed evaluation a process sees, and which of them are repetitions.

A ``DistributedSampler`` deals rows to processes in turn and repeats some, so that each process gets
equally many: row ``i`` of process ``r`` of ``p`` is number ``i p + r`` of the sequence, and numbers from the
length of the data set on are repetitions. Counting rows is therefore enough to know them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler


@dataclass
class RowCounter:
    """Numbers the rows of one loader in this process.

    Attributes
    ----------
    total
        Rows of all processes together, without repetitions.
    processes, rank
        Of the sampler.
    seen
        Rows that this process has had.
    """

    total: int = sys.maxsize
    processes: int = 1
    rank: int = 0
    seen: int = 0

    def take(self, rows: int) -> tuple[int, int]:
        """Count a batch.

        Parameters
        ----------
        rows
            Its rows.

        Returns
        -------
        tuple of int
            The number of the first row, and how many rows from there on are no repetitions; the numbers of a
            process only grow, so repetitions are last.
        """
        first = self.seen * self.processes + self.rank
        self.seen += rows
        fresh = max(0, -(-(self.total - first) // self.processes))
        return first, min(rows, fresh)

    def numbers(self, first: int, rows: int) -> Tensor:
        """Numbers of ``rows`` rows from ``first`` on, int64."""
        return first + self.processes * torch.arange(rows)


def counter_of(loader: Iterable[Any], processes: int, rank: int) -> RowCounter:
    """The counter that fits a loader as Lightning prepared it.

    Parameters
    ----------
    loader
        Of one process.
    processes, rank
        Of the run.

    Returns
    -------
    RowCounter

    Warns
    -----
    UserWarning
        If several processes run and the loader has no sampler that says how rows are shared; then each
        row of each process counts.
    """
    if processes == 1:
        return RowCounter()
    sampler: Any = None
    if isinstance(loader, DataLoader):
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, DistributedSampler):
        return RowCounter(len(sampler.dataset), sampler.num_replicas, sampler.rank)  # type: ignore[arg-type]
    warnings.warn(
        f"{type(loader).__name__} has no DistributedSampler, so rows that several processes see cannot be "
        "told from others and count once for each process; let Lightning insert the sampler "
        "(use_distributed_sampler=True) or give each process its own rows",
        stacklevel=2,
    )
    return RowCounter(processes=processes, rank=rank)
