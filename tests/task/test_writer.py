from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.scores import EuclideanScore
from selkit.task import PredictionWriter, SelectiveInferenceTask, iter_predictions, read_predictions


class Model(LightningModule):
    def forward(self, x):
        return x.flatten(1).sum(1)

    def embed(self, x):
        return x.flatten(1)[:, :2]


class Maps(Model):
    def forward(self, x):
        return x


class Lists(Model):
    def forward(self, x):
        return list(x)


def predict(loaders, writer, model=None):
    score = EuclideanScore(k=1).fit(X=torch.zeros(1, 2)).set_threshold(1.0, scores=torch.tensor([0.0, 1.0]))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[writer],
    )
    task = SelectiveInferenceTask(model or Model(), score)
    assert trainer.predict(task, loaders, return_predictions=False) is None
    return task


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*")
def test_what_is_read_is_what_was_predicted(tmp_path):
    x = torch.randn(53, 2)
    data = TensorDataset(x)
    loaders = [DataLoader(data, batch_size=8), DataLoader(data, batch_size=8, sampler=RandomSampler(data))]
    task = predict(loaders, PredictionWriter(tmp_path, part_bytes=300))
    expected = task(x)
    for loader in (0, 1):  # also in the order of the data where the loader shuffles
        found = read_predictions(tmp_path, loader)
        assert found.pop("index").tolist() == list(range(53))
        assert found.keys() == expected.keys()
        for name in expected:
            assert torch.allclose(found[name], expected[name]), name
    parts = list(iter_predictions(tmp_path, 1))
    assert len(parts) > 2
    assert max(len(part["score"]) for part in parts) <= 24
    assert sum(len(part["score"]) for part in parts) == 53


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices.*")
def test_a_data_set_without_numbers_is_counted(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.arange(10.0).reshape(5, 2))

    predict(DataLoader(Stream(), batch_size=2), PredictionWriter(tmp_path))
    assert read_predictions(tmp_path)["predictions"].tolist() == [1, 5, 9, 13, 17]


def test_rows_of_several_shapes_come_back_as_a_list(tmp_path):
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.full((1, 2 + i // 2), float(i))

    predict(DataLoader(Images(), batch_size=2), PredictionWriter(tmp_path), Maps())
    found = read_predictions(tmp_path)
    assert [tuple(value.shape) for value in found["predictions"]] == [(1, 2), (1, 2), (1, 3), (1, 3)]
    assert found["score"].shape == (4,)


def test_earlier_predictions_are_not_mixed_in(tmp_path):
    data = TensorDataset(torch.randn(5, 2))
    predict(DataLoader(data, batch_size=1), PredictionWriter(tmp_path, part_bytes=1))
    with pytest.raises(InvalidInputError, match="holds predictions of an earlier run"):
        predict(DataLoader(data), PredictionWriter(tmp_path))
    predict(DataLoader(TensorDataset(torch.randn(2, 2))), PredictionWriter(tmp_path, overwrite=True))
    assert len(read_predictions(tmp_path)["score"]) == 2


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InvalidTypeError, match="not so in the predictions: predictions"):
        predict(DataLoader(TensorDataset(torch.randn(2, 2))), PredictionWriter(tmp_path), Lists())
    with pytest.raises(InvalidInputError, match="part_bytes must be a whole number of at least 1"):
        PredictionWriter(tmp_path, part_bytes=0)


def test_foreign_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="holds no predictions of loader 0"):
        read_predictions(tmp_path)
    path = tmp_path / "loader0-rank0-part000000.safetensors"
    save_file({"index": torch.arange(2)}, path)
    with pytest.raises(FileFormatError, match="was not written by PredictionWriter"):
        read_predictions(tmp_path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(FileFormatError, match="is damaged or no safetensors file"):
        read_predictions(tmp_path)
