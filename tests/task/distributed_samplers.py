"""Tests and predictions of two processes under several samplers, as a script."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from sampler_cases import Model, loaders, score

from selkit.task import PredictionWriter, SelectiveInferenceTask, read_predictions

KINDS = ("in order", "shuffled", "weighted", "subset", "batches")


def run(processes: int, directory: Path) -> None:
    seed_everything(0)  # samplers draw the same in every process
    folder = directory / f"predictions{processes}"
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(folder)],
    )
    task = SelectiveInferenceTask(Model(), score(), acc_test_outputs=True, id_key=2)
    with warnings.catch_warnings(record=True) as seeded:
        warnings.simplefilter("always")
        trainer.test(task, [loaders()[kind] for kind in KINDS], verbose=False)
        found = task.test_outputs
        trainer.predict(task, [loaders()[kind] for kind in KINDS[:4]], return_predictions=False)
    predicted = [read_predictions(folder, i) for i in range(4)] if trainer.is_global_zero else None
    torch.manual_seed(processes * 10 + trainer.global_rank)
    with warnings.catch_warnings(record=True) as alone:
        warnings.simplefilter("always")
        trainer.test(task, loaders()["shuffled"], verbose=False)
    with warnings.catch_warnings(record=True) as drawn:
        warnings.simplefilter("always")
        trainer.test(task, [loaders()["in order"], loaders()["weighted"]], verbose=False)
    if trainer.is_global_zero:
        said = [sum("different orders" in str(w.message) for w in kept) for kept in (seeded, alone, drawn)]
        torch.save(
            {"outputs": found, "predicted": predicted, "said": said}, directory / f"found{processes}.pt"
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(int(sys.argv[1]), Path(sys.argv[2]))
