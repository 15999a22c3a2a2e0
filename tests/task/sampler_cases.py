"""Data whose samples say themselves which they are, and loaders that order them in every way."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import BatchSampler, DataLoader, Dataset, SubsetRandomSampler, WeightedRandomSampler
from torchmetrics.classification import MulticlassAccuracy

from selkit.scores import EuclideanScore

ROWS = 23


class Numbered(Dataset):
    """Sample ``i`` is an image of value ``i`` with a name."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return torch.full((1, 4, 4), float(i)), i % 2, f"name {i}"


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.test_metrics = MulticlassAccuracy(2, average="micro")

    def embed(self, x):
        return x.flatten(1)[:, :2]

    def forward(self, x):
        return (x.mean((1, 2, 3)) % 2).long()


class Backwards(BatchSampler):
    """Batches of its own making: from the last sample to the first, of changing sizes."""

    def __init__(self, sampler, batch_size=3, drop_last=False):
        super().__init__(sampler, batch_size, drop_last)

    def __iter__(self):
        left = list(self.sampler)[::-1]
        size = 1
        while left:
            yield left[:size]
            left, size = left[size:], size % self.batch_size + 1

    def __len__(self):
        return sum(1 for _ in iter(self))


class Foreign:
    """No subclass of torch's."""

    def __iter__(self):
        yield from ([5, 3], [1], [20, 0, 2])

    def __len__(self):
        return 3


def loaders():
    data = Numbered()
    draw = torch.Generator().manual_seed(3)
    return {
        "in order": DataLoader(data, batch_size=4),
        "shuffled": DataLoader(data, batch_size=4, shuffle=True),
        "weighted": DataLoader(
            data, batch_size=4, sampler=WeightedRandomSampler(torch.rand(ROWS), 30, generator=draw)
        ),
        "subset": DataLoader(data, batch_size=4, sampler=SubsetRandomSampler(range(5, 15))),
        "batches": DataLoader(data, batch_sampler=Backwards(range(ROWS))),
        "workers": DataLoader(data, batch_size=4, shuffle=True, num_workers=2),
        "persistent": DataLoader(data, batch_size=4, shuffle=True, num_workers=2, persistent_workers=True),
        "dropped": DataLoader(data, batch_size=4, shuffle=True, drop_last=True),
    }


def score():
    return EuclideanScore(k=1).fit(X=torch.zeros(1, 2)).set_threshold(1.0, scores=torch.tensor([15.0]))
