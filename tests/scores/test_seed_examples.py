"""The code of seapig's documentation, with nothing but the package's name changed."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
import torch

PRECOMPUTED = """
import torch
from selkit.scores import EuclideanScore
from selkit.utils.progress import disable
disable()  # disables  selkit progress bars for quickstart example
torch.manual_seed(0)
## latent representations a torch.Tensor of shapes (N, D), (M, D), (Q, D)
ref_emb, val_emb, query_emb = torch.randn(1000, 16), torch.randn(200, 16), torch.randn(10, 16)

score = EuclideanScore(k=5, stat="mean")
score.fit(X=ref_emb, Y=val_emb)
score.set_threshold(q=0.90)   # keep ~90% coverage on validation set
sel = score.select(query_emb)
print(sel)
"""

ON_THE_FLY = """
from torch.utils.data import TensorDataset, DataLoader
ds_train = TensorDataset(torch.randn(1000, 32), torch.randint(0, 2, (1000,)))
ds_val = TensorDataset(torch.randn(200, 32), torch.randint(0, 2, (200,)))
ds_test = TensorDataset(torch.randn(10, 32), torch.randint(0, 2, (10,)))
train_loader = DataLoader(ds_train, batch_size=64)
val_loader = DataLoader(ds_val, batch_size=64)
test_loader = DataLoader(ds_test, batch_size=64)

## model exposes .embed(x) -> (B, D)
class Model(torch.nn.Module):
    def embed(self, x):
        image = x[0]
        label = x[1]
        return torch.randn(image.shape[0], 16)

model = Model()

score = EuclideanScore(k=3)
score.fit(model=model, loaders={"train": train_loader, "val": val_loader})
score.set_threshold(q=0.80) # keep ~80% coverage on validation set

sel = score.select(model=model, loader=test_loader)
print(sel)
"""

LIGHTNING = """
from selkit import SelectiveInferenceTask
from lightning import Trainer, LightningModule
from torchmetrics import Accuracy

## minimal LightningModule
class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.test_metrics = Accuracy("binary")
    def forward(self, x):
        pred = torch.randint(0, 2, (x.shape[0],))
        return pred
    def embed(self, x):
        return torch.randn(x.shape[0], 32)
    def test_step(self, batch, batch_idx):
        image = batch[0]
        label = batch[1]
        pred = self.forward(image)
        print(pred.shape, label.shape)
        self.test_metrics.update(pred, label)
        self.log_dict(self.test_metrics.compute(), sync_dist=True)

trainer = Trainer(accelerator="cpu")
model = Model()
## trainer.fit(...) and score.fit(...) are expected to have been called already
EXPECTED_BEFORE
sel_task = SelectiveInferenceTask(task=model, score=score)
## evaluate on test set, will return metrics for the full, selected, and rejected samples
metrics = trainer.test(sel_task, dataloaders=test_loader)
## or for prediction, will return a dict with keys "predictions", "selected", and "score" for each sample
preds = trainer.predict(sel_task, dataloaders=test_loader)
print(preds)
"""
# the documentation leaves this call to the reader; its own score has another width
REFIT = (
    'score.fit(model=model, loaders={"train": train_loader, "val": val_loader}); score.set_threshold(q=0.5)'
)


@pytest.fixture
def _in_a_folder_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Lightning writes its logs here


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
def test_the_three_examples_run_one_after_the_other() -> None:
    names: dict[str, Any] = {}
    exec(PRECOMPUTED, names)  # noqa: S102 - the text is above
    brute = torch.cdist(names["query_emb"].double(), names["ref_emb"].double()).sort().values[:, :5].mean(1)
    torch.testing.assert_close(names["sel"]["score"].double(), brute, rtol=1e-6, atol=0)
    exec(ON_THE_FLY, names)  # noqa: S102
    # the documentation prints 32 scores for these 10 images: its embed took the first row of a tensor
    assert names["sel"]["score"].shape == names["sel"]["selected"].shape == (10,)
    exec(textwrap.dedent(LIGHTNING).replace("EXPECTED_BEFORE", REFIT), names)  # noqa: S102
    results = names["metrics"][0]
    assert {f"{part}/BinaryAccuracy" for part in ("full", "selected", "rejected")} <= set(results)
    assert len(names["preds"]) == 1
    assert {"predictions", "selected", "score"} <= set(names["preds"][0])
    assert names["preds"][0]["score"].shape == (10,)
