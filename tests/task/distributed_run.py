"""A test, a validation and a prediction on one or two processes; test_distributed runs it as a script."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryConfusionMatrix

from selkit.metrics import RiskCoverageMetric
from selkit.metrics.gather import gather_tensors
from selkit.scores import EuclideanScore
from selkit.task import PredictionWriter, SelectiveInferenceTask, read_predictions

ROWS = (21, 7)  # odd: the sampler repeats one row of each loader for two processes


UNEVEN = [  # what the first and the second process hold
    (torch.tensor([1, 2]), torch.tensor([])),  # torchmetrics' placeholder: floating, whatever the others have
    (torch.zeros(0), torch.ones(2, 3, dtype=torch.int64)),
    (torch.ones(1, 2), torch.full((3, 1), 2.0)),
    (torch.tensor(1.5), torch.tensor(2.5)),
    (torch.tensor([True]), torch.tensor([False, True])),
    (torch.zeros(0), torch.zeros(0)),
    (torch.ones(1), torch.ones(1).double() / 3),
]


class Model(LightningModule):
    """Predicts the first feature; the second says how far from the references a row is."""

    def __init__(self):
        super().__init__()
        # one that counts, one that keeps rows of floats and integers, one of another shape
        self.test_metrics = MetricCollection([BinaryAccuracy(), BinaryAUROC(), BinaryConfusionMatrix()])

    def forward(self, x):
        return x[:, 0]

    def embed(self, x):
        return x[:, 1:]


def loader(rows: int, seed: int) -> DataLoader:
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 2, (rows,), generator=draw)
    predicted = (target + torch.rand(rows, generator=draw) * 0.9) / 2
    target[0] = 1 - target[0]  # a mistake that the sampler repeats
    far = torch.randint(0, 4, (rows,), generator=draw).float()  # scores with ties
    far[0::2] = far[0::2].clamp(max=1)  # only the second process rejects
    return DataLoader(TensorDataset(torch.stack([predicted, far, far], 1), target), batch_size=4)


def run(processes: int, directory: Path) -> None:
    task = SelectiveInferenceTask(
        Model(),
        EuclideanScore(k=1).fit(X=torch.zeros(1, 2)).set_threshold(scores=torch.tensor([0.0, 2.0]), q=1.0),
        acc_test_outputs=True,
        rc_metric=RiskCoverageMetric(coverage=[0.5], at_risk=[0.2], n_boot=20),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(directory / f"predictions{processes}")],
    )
    loaders = [loader(rows, seed) for seed, rows in enumerate(ROWS)]
    logged = trainer.test(task, loaders, verbose=False)
    outputs, results = task.test_outputs, task.results
    validated = trainer.validate(task, loaders, verbose=False)
    trainer.predict(task, loaders, return_predictions=False)
    gathered = [gather_tensors(mine[trainer.global_rank]) for mine in UNEVEN] if processes > 1 else []
    if trainer.is_global_zero:
        found = {
            "logged": logged,
            "validated": validated,
            "results": results,
            "outputs": outputs,
            "gathered": gathered,
            "predicted": [read_predictions(directory / f"predictions{processes}", i) for i in range(2)],
        }
        torch.save(found, directory / f"found{processes}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(int(sys.argv[1]), Path(sys.argv[2]))
