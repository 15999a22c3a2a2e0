"""Which sample of the data set each row of a batch is, and which rows of a distributed run are repetitions.

A ``DistributedSampler`` deals rows to processes in turn and repeats some, so that each process gets
equally many: row ``i`` of process ``r`` of ``p`` is number ``i p + r`` of the sequence, and numbers from the
length of the sequence on are repetitions. Counting rows is therefore enough to know them. Which sample a row
is, only the batch sampler says: it is listened to.
"""

from __future__ import annotations

import collections
import copy
import hashlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from selkit.errors import InvalidInputError
from selkit.task.outputs import everyone


class HeardBatches:
    """A batch sampler that remembers which samples it has named, batch by batch, until they are asked for."""

    def __init__(self, batch_sampler: Any) -> None:
        self._batch_sampler = batch_sampler
        self.heard: collections.deque[list[Any]] = collections.deque()

    @property
    def keeps_order(self) -> bool:
        """Whether batches are cut from the sampler's sequence as it comes."""
        return type(self._batch_sampler) is BatchSampler

    def __iter__(self) -> Iterator[list[Any]]:
        self.heard.clear()
        for batch in self._batch_sampler:
            self.heard.append(list(batch))
            yield batch

    def __len__(self) -> int:
        return len(self._batch_sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_batch_sampler":
            raise AttributeError(name)
        return getattr(self._batch_sampler, name)


def listened(loader: Any) -> Any:
    """A copy of a loader that remembers which samples each of its batches is made of.

    Parameters
    ----------
    loader
        Any; what has no batch sampler comes back as it is.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    sampler = loader.batch_sampler
    if sampler is None or isinstance(sampler, HeardBatches):
        return loader
    same = copy.copy(loader)
    vars(same)["batch_sampler"] = HeardBatches(sampler)  # DataLoader forbids to set it
    vars(same)["_iterator"] = None  # one that persists asks the old batch sampler
    return same


def listen(trainer: Any) -> None:
    """Let the loaders that a Trainer is about to prepare be remembered by :func:`listened`."""
    strategy = trainer.strategy
    if getattr(strategy.process_dataloader, "selkit", False):
        return
    prepare = strategy.process_dataloader

    def process_dataloader(dataloader: object) -> object:
        prepared = prepare(dataloader)
        return prepared if trainer.predicting else listened(prepared)  # then Lightning listens itself

    process_dataloader.selkit = True  # type: ignore[attr-defined]
    strategy.process_dataloader = process_dataloader


def stop_listening(trainer: Any) -> None:
    """Undo :func:`listen`."""
    if getattr(vars(trainer.strategy).get("process_dataloader"), "selkit", False):
        del trainer.strategy.process_dataloader


def why_unknown(loader: Any) -> str | None:
    """Why nothing says which samples the rows of a loader are; ``None`` if something does.

    Rows of an iterable data set, or of what is no ``DataLoader``, are known by their place in the stream.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if loader.num_workers > 1 and not getattr(loader, "in_order", True):
        return "its workers hand over batches in any order (in_order=False)"
    if loader.batch_sampler is None and not isinstance(loader.sampler, SequentialSampler):
        kind = type(loader.sampler).__name__
        return f"its data set makes whole batches (batch_size=None) that a {kind} orders"
    return None


def refusal(why: str) -> InvalidInputError:
    """The error where samples cannot be told from each other."""
    return InvalidInputError(
        f"the loader does not say which sample of the data set each row is: {why}. Let batches hold the "
        "sample's own name or number and say where, id_key=, or use a loader that keeps the order"
    )


def warn_of_orders(loaders: Iterable[Any]) -> None:
    """Warn where processes shared out rows of different orders: then samples are missing, and others doubled.

    Parameters
    ----------
    loaders
        Of this process, after they were run through; all processes must call.

    Warns
    -----
    UserWarning
        If a sampler drew another order in another process, because they have no common seed.
    """
    mine = [_order_of(loader) for loader in loaders]
    if any(orders != mine for orders in everyone(mine)):
        warnings.warn(
            "processes drew different orders of the data, so some samples are missing from the results and "
            "others count twice; give them one seed before the loaders are made, "
            "lightning.pytorch.seed_everything(0), or do not shuffle",
            stacklevel=2,
        )


def _order_of(loader: Any) -> str | None:
    """A checksum of the order that all processes have to share; ``None`` where there is none."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if not isinstance(sampler, DistributedSampler):
        return None
    inner = getattr(
        sampler.dataset, "_sampler", None
    )  # Lightning's wrapper, of a sampler that orders for all
    order = getattr(sampler.dataset, "_sampler_list", None)
    if getattr(inner, "replacement", False):
        return None  # draws that are independent make one sample together
    seed = (sampler.seed, sampler.epoch) if sampler.shuffle else ()
    return hashlib.sha256(repr((order, seed)).encode()).hexdigest()


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
    batches
        What the batch sampler has named, if it was listened to.
    unknown
        Why rows cannot be told from each other; ``None`` where they can.
    repeated
        Samples that this process has only so that all have equally many, where a batch sampler may hand them
        over at any place; ``None`` where they come last.
    """

    total: int = sys.maxsize
    processes: int = 1
    rank: int = 0
    seen: int = 0
    batches: HeardBatches | None = None
    unknown: str | None = None
    repeated: collections.Counter[int] | None = None

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

    def fresh(self, samples: Tensor | None, count: int) -> Tensor | slice:
        """Which rows of a batch are no repetitions.

        Parameters
        ----------
        samples
            Positions of all rows of the batch in the data set, if they are known.
        count
            What :meth:`take` gave.
        """
        if self.repeated is None or samples is None:
            return slice(count)
        kept = []
        for row, sample in enumerate(samples.tolist()):
            if self.repeated[sample] > 0:
                self.repeated[sample] -= 1
            else:
                kept.append(row)
        return torch.tensor(kept, dtype=torch.int64)

    def numbers(self, first: int, rows: int) -> Tensor:
        """Numbers of ``rows`` rows from ``first`` on in the order of the loaders, int64."""
        return first + self.processes * torch.arange(rows)

    def samples(self, first: int, rows: int) -> Tensor | None:
        """Positions in the data set of the ``rows`` rows that were just taken.

        Returns
        -------
        Tensor or None
            int64; ``None`` where they cannot be known, and ``unknown`` then says why.
        """
        if self.unknown:
            return None
        if self.batches is None:
            return self.numbers(first, rows)
        if not self.batches.heard:
            self.unknown = "its batch sampler was not asked for this batch"
            return None
        found, self.unknown = named_samples(self.batches.heard.popleft(), rows)
        return found


def named_samples(named: Sequence[Any], rows: int) -> tuple[Tensor | None, str | None]:
    """Positions in the data set that a batch sampler named for a batch.

    Parameters
    ----------
    named
        What it gave.
    rows
        Rows of the batch.

    Returns
    -------
    tuple
        int64, ``(rows,)``, and ``None``; or ``None`` and why they cannot be known.
    """
    if len(named) != rows:
        return None, (
            f"its batch sampler named {len(named)} samples for a batch of {rows} rows, so collate_fn leaves "
            "some out or makes several of one"
        )
    wrong = [index for index in named if isinstance(index, bool) or not hasattr(index, "__index__")]
    if wrong:
        return None, f"its sampler names samples by {type(wrong[0]).__name__}, not by position"
    return torch.tensor([int(index.__index__()) for index in named], dtype=torch.int64), None


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
    unknown = why_unknown(loader)
    batches = getattr(loader, "batch_sampler", None)
    heard = batches if isinstance(batches, HeardBatches) and unknown is None else None
    if heard is None and unknown is None and isinstance(loader, DataLoader):
        kept_order = isinstance(loader.dataset, IterableDataset) or isinstance(
            loader.sampler, (SequentialSampler, DistributedSampler)
        )
        unknown = None if kept_order else f"a {type(loader.sampler).__name__} orders them unheard"
    if processes == 1:
        return RowCounter(batches=heard, unknown=unknown)
    sampler: Any = None
    if isinstance(loader, DataLoader):
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, DistributedSampler):
        total = len(sampler.dataset)  # type: ignore[arg-type]
        repeated = None
        if heard is not None and not heard.keeps_order and type(sampler) is DistributedSampler:
            mine = list(sampler)  # the same again: it starts from its seed
            last = max(0, -(-(total - sampler.rank) // sampler.num_replicas))
            repeated = collections.Counter(mine[last:])
        return RowCounter(
            total, sampler.num_replicas, sampler.rank, batches=heard, unknown=unknown, repeated=repeated
        )
    warnings.warn(
        f"{type(loader).__name__} has no DistributedSampler, so rows that several processes see cannot be "
        "told from others and count once for each process; let Lightning insert the sampler "
        "(use_distributed_sampler=True) or give each process its own rows",
        stacklevel=2,
    )
    return RowCounter(processes=processes, rank=rank, batches=heard, unknown=unknown)
