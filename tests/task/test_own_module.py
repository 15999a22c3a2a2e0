"""A wrapped module behaves as in a test of its own: the plain ``Trainer.test`` of it is the oracle."""

from __future__ import annotations

import collections
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from selkit.embeddings import extract
from selkit.scores import EnergyScore, EuclideanScore
from selkit.task import SelectiveInferenceTask


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def data(rows=90, seed=0):
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (rows,), generator=draw)
    x = 3 * torch.nn.functional.one_hot(target, 3) + torch.randn(rows, 3, generator=draw)
    return x, target


def loader(x, target, batch=16):
    return DataLoader(TensorDataset(x, target), batch_size=batch)


class Plain(LightningModule):
    """Classes are the largest entries; with a test of its own."""

    def __init__(self):
        super().__init__()
        self.test_metrics = MulticlassAccuracy(3, average="micro")

    def forward(self, x):
        return x

    def embed(self, x):
        return x

    def test_step(self, batch, batch_idx):
        x, target = batch
        self.test_metrics.update(self(x), target)

    def on_test_epoch_end(self):
        self.log("own", self.test_metrics.compute())
        self.test_metrics.reset()


class Normalizing(Plain):
    """Undoes on the device what the data set did: a shift of the classes, a scale, an order of columns."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        x, target = batch
        return x.flip(1), target

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        x, target = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return x - 100, target

    def on_after_batch_transfer(self, batch, dataloader_idx):
        assert self.trainer.testing  # as the documentation of Lightning does it
        x, target = batch
        return -x, target


def spoiled(x):
    return (100 - x).flip(1)


def fitted(x):
    return EuclideanScore(k=1).fit(X=torch.zeros(1, 3), Y=x).set_threshold(q=0.6)


def test_transfer_hooks_are_those_of_its_own_test():
    x, target = data()
    model = Normalizing()
    [plain] = trainer().test(model, loader(spoiled(x), target), verbose=False)
    assert plain["own"] > 0.9
    task = SelectiveInferenceTask(model, fitted(x), acc_test_outputs=True)
    [found] = trainer().test(task, loader(spoiled(x), target), verbose=False)
    assert found["full/MulticlassAccuracy"] == pytest.approx(plain["own"])
    assert found["own"] == pytest.approx(plain["own"])
    torch.testing.assert_close(task.test_outputs[0]["predictions"], x, atol=1e-4, rtol=0)
    oracle = x.norm(dim=1)
    torch.testing.assert_close(task.test_outputs[0]["score"], oracle, atol=1e-4, rtol=1e-4)
    assert found["coverage"] == pytest.approx(0.6, abs=0.02)
    predicted = trainer().predict(
        SelectiveInferenceTask(PredictingToo(), fitted(x)), loader(spoiled(x), target, 90)
    )
    torch.testing.assert_close(predicted[0]["score"], oracle, atol=1e-4, rtol=1e-4)


class PredictingToo(Normalizing):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return -batch[0], batch[1]


def test_fit_with_loaders_calls_them_too():
    x, target = data()
    batches = loader(spoiled(x), target)
    model = Normalizing()
    score = EuclideanScore(k=1).fit(model=model, loaders={"train": batches, "val": batches})
    expected = EuclideanScore(k=1).fit(X=x, Y=x)
    torch.testing.assert_close(score.reference, expected.reference, atol=1e-4, rtol=0)
    assert model._trainer is None
    assert "log" not in vars(model)
    torch.testing.assert_close(extract(model, batches, "logits").values, x, atol=1e-4, rtol=0)
    energy = EnergyScore().score(model=model, loader=batches)
    torch.testing.assert_close(energy, -x.logsumexp(1), atol=1e-4, rtol=1e-4)
    assert torch.equal(extract(model, batches, labels=True).labels, target)


class SettingUp(Plain):
    """What it needs is made in ``setup``."""

    def __init__(self):
        super().__init__()
        del self.test_metrics
        self.stages = []

    def setup(self, stage):
        self.stages.append(stage)
        self.shift = 5.0
        self.test_metrics = MulticlassAccuracy(3, average="micro")

    def forward(self, x):
        return (x.flip(1) - self.shift) * -1

    embed = forward


def test_setup_is_called_by_a_trainer_and_by_fit():
    x, target = data()
    moved = (5 - x).flip(1)
    [plain] = trainer().test(SettingUp(), loader(moved, target), verbose=False)
    model = SettingUp()
    score = EuclideanScore(k=1).fit(model=model, loaders={"train": loader(moved, target)})
    assert model.stages == ["test"]
    torch.testing.assert_close(score.reference, x, atol=1e-5, rtol=0)
    score = score.fit(model=model, loaders={"train": loader(moved, target), "val": loader(moved, target)})
    assert model.stages == ["test"]  # once
    fresh = SettingUp()
    task = SelectiveInferenceTask(fresh, fitted(x))
    [found] = trainer().test(task, loader(moved, target), verbose=False)
    assert fresh.stages == ["test"]
    assert found["full/MulticlassAccuracy"] == pytest.approx(plain["own"])


class Logging(Plain):
    """Logs inside, in three ways, with its trainer at hand."""

    def embed(self, x):
        self.log("norm", x.norm(dim=1).mean(), batch_size=len(x))
        self.log_dict({"largest": x.max()}, reduce_fx="max", batch_size=len(x))
        assert self.trainer.testing
        return x

    def test_step(self, batch, batch_idx):
        self.embed(batch[0])
        super().test_step(batch, batch_idx)

    def on_test_epoch_start(self):
        self.batches = 0

    def on_test_batch_start(self, batch, batch_idx, dataloader_idx=0):
        self.batches += 1

    def on_test_epoch_end(self):
        super().on_test_epoch_end()
        self.log("batches", float(self.batches))


def test_what_is_logged_inside_is_what_its_own_test_logs():
    x, target = data()
    [plain] = trainer().test(Logging(), loader(x, target), verbose=False)
    task = SelectiveInferenceTask(Logging(), fitted(x))
    [found] = trainer().test(task, loader(x, target), verbose=False)
    assert set(plain) == {"norm", "largest", "own", "batches"}
    assert {name: found[name] for name in plain} == pytest.approx(plain)
    assert found["norm"] == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-5)
    assert not task.task.test_metrics.update_called


def test_logging_inside_does_not_end_a_fit_after_training():
    class Training(Logging):
        def embed(self, x):
            self.log("norm", x.norm(dim=1).mean())
            return x

        def training_step(self, batch, batch_idx):
            return (self.scale * batch[0]).square().mean()

        def configure_optimizers(self):
            self.scale = torch.nn.Parameter(torch.ones(1))
            return torch.optim.SGD(self.parameters(), lr=0.1)

    x, target = data()
    model = Training()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(max_epochs=1).fit(model, loader(x, target))
    score = EuclideanScore(k=1).fit(model=model, loaders={"train": loader(x, target)})
    assert torch.equal(score.reference, x)


def test_every_hook_is_called_in_its_own_order():
    def recording(kind, names):
        def make(name):
            def hook(self, *args, **kwargs):
                self.__dict__.setdefault("called", []).append(name)

            return hook

        return type("Recording", (kind,), {name: make(name) for name in names})

    places = ("start", "end", "batch_start", "batch_end", "epoch_start", "epoch_end")
    for run, stage in (("test", "test"), ("validate", "validation"), ("predict", "predict")):
        names = ["setup", "teardown", "prepare_data", *(f"on_{stage}_{place}" for place in places)]
        kind = recording(Plain, names)
        kind.validation_step = kind.test_step
        plain, wrapped = kind(), kind()
        x, target = data(20)
        quiet = {} if run == "predict" else {"verbose": False}
        getattr(trainer(), run)(
            plain, DataLoader(x if run == "predict" else TensorDataset(x, target)), **quiet
        )
        task = SelectiveInferenceTask(wrapped, fitted(x))
        getattr(trainer(), run)(
            task, DataLoader(x if run == "predict" else TensorDataset(x, target)), **quiet
        )
        assert collections.Counter(wrapped.called) == collections.Counter(plain.called)
        assert wrapped.called == plain.called


def test_a_hook_that_needs_its_own_step_does_not_end_the_run():
    class Collecting(Plain):
        def __init__(self):
            super().__init__()
            self.losses = []

        def test_step(self, batch, batch_idx):
            self.losses.append(batch[0].sum())

        def on_test_epoch_end(self):
            self.log("sum", torch.stack(self.losses).sum())

    x, target = data()
    task = SelectiveInferenceTask(Collecting(), fitted(x))
    with pytest.warns(UserWarning, match=r"Collecting\.on_test_epoch_end failed .*its own test_step"):
        [found] = trainer().test(task, loader(x, target), verbose=False)
    assert found["full/count"] == 90


def test_loaders_and_hooks_of_the_module_and_of_a_data_module():
    x, target = data()

    class Own(Plain):
        def test_dataloader(self):
            return loader(x, target)

    class Data(LightningDataModule):
        def test_dataloader(self):
            return loader(spoiled(x), target)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return 100 - batch[0].flip(1), batch[1]

    [plain] = trainer().test(Own(), verbose=False)
    [found] = trainer().test(SelectiveInferenceTask(Own(), fitted(x)), verbose=False)
    assert found["full/MulticlassAccuracy"] == pytest.approx(plain["own"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*num_workers.*")
        [found] = trainer().test(SelectiveInferenceTask(Plain(), fitted(x)), datamodule=Data(), verbose=False)
    assert found["full/MulticlassAccuracy"] == pytest.approx(plain["own"])


def test_parts_with_the_names_of_methods():
    class Headed(Plain):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Linear(3, 3)
            self.extract = torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.logits(torch.relu(self.extract(x)))

    x, target = data()
    model = Headed()
    logits = model(x).detach()
    score = EnergyScore().set_threshold(0.5, scores=-logits.logsumexp(1))
    task = SelectiveInferenceTask(model, score, acc_test_outputs=True)
    [plain] = trainer().test(model, loader(x, target), verbose=False)
    [found] = trainer().test(task, loader(x, target), verbose=False)
    assert found["full/MulticlassAccuracy"] == pytest.approx(plain["own"])
    torch.testing.assert_close(task.test_outputs[0]["score"], -logits.logsumexp(1))
    assert found["coverage"] == pytest.approx(0.5)


class Output(collections.OrderedDict):
    @property
    def logits(self):
        return self["logits"]


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, i):
        x, target = data(30)
        return {"input_ids": x[i], "attention_mask": torch.ones(3), "text": f"s{i}", "labels": target[i]}


class HuggingFace(Plain):
    def forward(self, input_ids, attention_mask, labels=None):
        return Output(logits=input_ids * attention_mask, hidden=(input_ids, input_ids))

    def embed(self, batch: Any):
        assert len(batch["text"]) == len(batch["input_ids"])
        return batch["input_ids"]


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_dictionaries_with_strings_and_outputs_with_names(batch):
    x, target = data(30)
    score = fitted(x)
    task = SelectiveInferenceTask(HuggingFace(), score, id_key="text", acc_test_outputs=True)
    texts = DataLoader(Texts(), batch_size=batch)
    [found] = trainer().test(task, texts, verbose=False)
    accuracy = float((x.argmax(1) == target).float().mean())
    assert found["full/MulticlassAccuracy"] == pytest.approx(accuracy)
    outputs = task.test_outputs[0]
    assert torch.equal(outputs["predictions"], x)
    assert torch.equal(outputs["score"], score.score(x))
    assert outputs["id"] == [f"s{i}" for i in range(30)]
    predicted = trainer().predict(task, texts)
    assert torch.equal(torch.cat([part["score"] for part in predicted]), score.score(x))


class Normalising(LightningDataModule):
    """Data as they are on disk; a hook brings them to what the model was trained on."""

    scale = 100.0

    def train_dataloader(self):
        return loader(spoiled(data()[0]), data()[1])

    def val_dataloader(self):
        return loader(spoiled(data(seed=1)[0]), data(seed=1)[1])

    def test_dataloader(self):
        return self.train_dataloader()

    def on_after_batch_transfer(self, batch, dataloader_idx):
        assert self.trainer.testing or self.trainer.training or self.trainer.validating
        return (self.scale - batch[0].flip(1), *batch[1:])


def test_a_data_module_is_fitted_on_with_its_hooks(tmp_path):
    x = data()[0]
    expected = EuclideanScore().fit(X=x, Y=data(seed=1)[0])
    score = EuclideanScore().fit(model=Plain(), loaders=Normalising(), cache=tmp_path)
    torch.testing.assert_close(score.calibration_scores, expected.calibration_scores)
    other = Normalising()
    other.scale = 50.0  # what a hook depends on counts for the cache
    moved = EuclideanScore().fit(model=Plain(), loaders=other, cache=tmp_path)
    torch.testing.assert_close(moved.score(x - 50), expected.score(x), atol=1e-4, rtol=1e-4)
    task = SelectiveInferenceTask(Plain(), score.set_threshold(0.9), acc_test_outputs=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*num_workers.*")
        trainer().test(task, datamodule=Normalising(), verbose=False)
    torch.testing.assert_close(task.test_outputs[0]["score"], expected.score(x))


def test_plain_loaders_of_a_data_module_with_hooks_are_told():
    parts = Normalising()
    loaders = {"train": parts.train_dataloader(), "val": parts.val_dataloader()}
    score = EuclideanScore().fit(model=Plain(), loaders=loaders).set_threshold(0.9)
    with pytest.warns(UserWarning, match="Normalising has on_after_batch_transfer.*loaders=datamodule"):
        trainer().test(SelectiveInferenceTask(Plain(), score), datamodule=Normalising(), verbose=False)
    several = Normalising()
    several.val_dataloader = lambda: [parts.val_dataloader(), parts.val_dataloader()]
    with pytest.raises(InvalidInputError, match=r"val_dataloader\(\) gives 2 loaders"):
        score.fit(model=Plain(), loaders=several)
