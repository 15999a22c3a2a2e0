"""seapig's own example of the task, word for word but for the import."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from selkit.scores import EuclideanScore

EXAMPLE = """
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
sel_task = SelectiveInferenceTask(task=model, score=score)
## evaluate on test set, will return metrics for the full, selected, and rejected samples
metrics = trainer.test(sel_task, dataloaders=test_loader)
## or for prediction, will return a dict with keys "predictions", "selected", and "score" for each sample
preds = trainer.predict(sel_task, dataloaders=test_loader)
print(preds)
"""  # noqa: W291 - the spaces at the ends of lines are theirs


@pytest.mark.filterwarnings("ignore:.*tensorboardX.*")
def test_the_example_of_the_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # its trainer writes logs
    score = EuclideanScore(k=3)
    score.fit(X=torch.randn(1000, 32), Y=torch.randn(200, 32))  # the width that the example's model has
    score.set_threshold(q=0.80)
    rows = TensorDataset(torch.randn(10, 32), torch.randint(0, 2, (10,)))
    names = {"torch": torch, "score": score, "test_loader": DataLoader(rows, batch_size=64)}
    exec(EXAMPLE, names)  # noqa: S102 - our own text
    [metrics], [preds] = names["metrics"], names["preds"]
    scopes = {f"{scope}/BinaryAccuracy" for scope in ("full", "selected", "rejected")}
    assert scopes <= set(metrics)
    assert metrics["full/count"] == 10
    assert list(preds) == ["predictions", "score", "selected"]
    assert [len(value) for value in preds.values()] == [10, 10, 10]
    shown = capsys.readouterr().out
    assert "full/BinaryAccuracy" in shown
    assert "torch.Size" not in shown  # its own test_step, which computes and logs per batch, is not used
