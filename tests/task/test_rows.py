from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from selkit.task.rows import counter_of, listened


@hypothesis.given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_every_row_is_fresh_exactly_once(rows, processes, batch, shuffle):
    """Dealt out by torch's own sampler, which repeats rows: what the counters keep is each row once."""
    seen = []
    for rank in range(processes):
        sampler = DistributedSampler(range(rows), processes, rank, shuffle=shuffle)
        loader = DataLoader(range(rows), batch_size=batch, sampler=sampler)
        counter = counter_of(loader, processes, rank)
        for values in loader:
            first, fresh = counter.take(len(values))
            numbers = counter.numbers(first, fresh)
            assert len(numbers) == fresh
            seen += list(zip(numbers.tolist(), values[:fresh].tolist(), strict=True))
    assert sorted(number for number, _ in seen) == list(range(rows))
    assert sorted(value for _, value in seen) == list(range(rows))
    if not shuffle:
        assert all(number == value for number, value in seen)


def test_the_naive_count_has_repetitions():
    samplers = [DistributedSampler(range(5), 2, rank, shuffle=False) for rank in (0, 1)]
    assert sum(len(list(sampler)) for sampler in samplers) == 6


def test_one_process_counts_on():
    counter = counter_of(DataLoader(range(4)), 1, 0)
    assert [counter.take(3), counter.take(2)] == [(0, 3), (3, 2)]


def test_loaders_without_a_distributed_sampler_are_said_to_count_twice():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    for loader in (DataLoader(Stream()), DataLoader(range(3), sampler=SequentialSampler(range(3))), [1, 2]):
        with pytest.warns(UserWarning, match="has no DistributedSampler"):
            counter = counter_of(loader, 2, 1)
        first, fresh = counter.take(3)
        assert torch.equal(counter.numbers(first, fresh), torch.tensor([1, 3, 5]))


@hypothesis.given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 5))
def test_every_row_is_fresh_once_where_a_batch_sampler_reorders(rows, processes, batch):
    class Backwards(BatchSampler):
        def __iter__(self):
            return iter(list(super().__iter__())[::-1])

    kept, seen = [], 0
    for rank in range(processes):
        sampler = DistributedSampler(range(rows), processes, rank, shuffle=True)
        loader = listened(DataLoader(range(rows), batch_sampler=Backwards(sampler, batch, False)))
        counter = counter_of(loader, processes, rank)
        for values in loader:
            first, count = counter.take(len(values))
            samples = counter.samples(first, len(values))
            assert torch.equal(samples, values)
            kept += values[counter.fresh(samples, count)].tolist()
            seen += len(values)
    assert sorted(kept) == list(range(rows))
    assert seen >= rows
