"""Every sample keeps its identity, whatever sampler the loader has: sample i shows the number i."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sampler_cases import ROWS, Foreign, Model, Numbered, loaders, score
from torch.utils.data import DataLoader

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.report import from_test, write_report
from selkit.task import PredictionWriter, SelectiveInferenceTask, read_predictions

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*shuffling enabled.*", "ignore:.*does not have many workers.*", "ignore:.*batch sampler.*"
)

DATA = Numbered()


def trainer(*callbacks, **options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def outputs_of(loader, **options):
    task = SelectiveInferenceTask(Model(), score(), acc_test_outputs=True, **options)
    run = trainer()
    run.test(task, loader, verbose=False)
    assert not hasattr(vars(run.strategy).get("process_dataloader"), "selkit")
    return task


@pytest.mark.parametrize("kind", [*loaders()])
def test_the_index_is_that_of_the_data(kind):
    loader = loaders()[kind]
    task = outputs_of(loader, id_key=2)
    [outputs] = task.test_outputs
    index = outputs["index"]
    assert index.tolist() == sorted(index.tolist())
    assert len(index) == {"weighted": 30, "subset": 10, "dropped": 20}.get(kind, ROWS)
    torch.testing.assert_close(outputs["score"], index * 2**0.5)
    assert torch.equal(outputs["predictions"], index % 2)
    assert outputs["id"] == [f"name {i}" for i in index]
    assert "position" not in outputs
    assert type(loader.batch_sampler).__name__ != "HeardBatches"  # the user's loader is left alone
    if kind == "dropped" and sorted(index.tolist()) == list(range(20)):
        return  # by chance it were the last ones: then 20 pictures are asked for
    for sample in from_test(task, images=DATA, names=[f"n{i}" for i in range(ROWS)]).samples:
        number = float(np.asarray(sample.image).mean())
        assert sample.score == pytest.approx(number * 2**0.5)
        assert sample.name == f"n{int(number)}"


def test_the_naive_index_is_wrong():
    """What counting in the loader's order gives: hardly any picture belongs to its score."""
    task = outputs_of(loaders()["weighted"])
    [outputs] = task.test_outputs
    right = torch.arange(30) * 2**0.5 == outputs["score"]
    assert right.float().mean() < 0.2


def test_a_report_is_written_from_it(tmp_path):
    task = outputs_of(loaders()["shuffled"], id_key=2)
    write_report(tmp_path / "report.html", from_test(task, images=DATA))
    assert "name 22" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("kind", [name for name in loaders() if name != "dropped"])
def test_predictions_on_disk_are_those_of_their_samples(kind, tmp_path):
    task = SelectiveInferenceTask(Model(), score(), id_key=2)
    trainer(PredictionWriter(tmp_path, part_bytes=100)).predict(
        task, loaders()[kind], return_predictions=False
    )
    found = read_predictions(tmp_path)
    torch.testing.assert_close(found["score"], found["index"] * 2**0.5)
    assert found["id"] == [f"name {i}" for i in found["index"]]
    assert len(found["index"].unique()) == len(found["index"])
    if kind not in ("weighted", "subset"):
        assert found["index"].tolist() == list(range(ROWS))


def test_a_batch_sampler_of_another_make():
    task = outputs_of(DataLoader(DATA, batch_sampler=Foreign()))
    assert task.test_outputs[0]["index"].tolist() == [0, 1, 2, 3, 5, 20]
    torch.testing.assert_close(task.test_outputs[0]["score"], task.test_outputs[0]["index"] * 2**0.5)


class Whole(Numbered):
    """Makes whole batches: ``self[i]`` is three samples."""

    def __getitem__(self, i):
        numbers = [3 * i, 3 * i + 1, 3 * i + 2]
        parts = [super(Whole, self).__getitem__(n) for n in numbers]
        return [
            torch.stack([p[0] for p in parts]),
            torch.tensor([p[1] for p in parts]),
            [p[2] for p in parts],
        ]

    def __len__(self):
        return 7


class Keyed(Numbered):
    def __getitem__(self, i):
        return super().__getitem__(int(i[1:]))


def filtering(samples):
    return torch.utils.data.default_collate([s for s in samples if s[0].mean() != 4])


@pytest.mark.filterwarnings("ignore:test_outputs has no index")
def test_what_cannot_be_known_is_refused_or_named_by_id(tmp_path):
    whole = DataLoader(Whole(), batch_size=None, shuffle=True)
    unordered = DataLoader(DATA, batch_size=4, num_workers=2, in_order=False)
    for loader, why in ((whole, "makes whole batches"), (unordered, "in any order")):
        with pytest.raises(InvalidInputError, match=f"{why}.*id_key="):
            outputs_of(loader)
        SelectiveInferenceTask(Model(), score())  # without outputs there is nothing to refuse
        task = outputs_of(loader, id_key=2)
        [outputs] = task.test_outputs
        assert "index" not in outputs
        numbers = torch.tensor([float(name.split()[1]) for name in outputs["id"]])
        torch.testing.assert_close(outputs["score"], numbers * 2**0.5)
        with pytest.raises(InvalidInputError, match="images cannot be told apart by position"):
            from_test(task, images=DATA)
        by_id = {f"name {i}": DATA[i] for i in range(ROWS)}
        for sample in from_test(task, images=by_id).samples:
            assert float(np.asarray(sample.image).mean()) * 2**0.5 == pytest.approx(sample.score)
    in_order = outputs_of(DataLoader(Whole(), batch_size=None))
    assert in_order.test_outputs[0]["index"].tolist() == list(range(21))
    with pytest.raises(InvalidInputError, match="id_key="):
        trainer(PredictionWriter(tmp_path)).predict(SelectiveInferenceTask(Model(), score()), whole)
    named = SelectiveInferenceTask(Model(), score(), id_key=2)
    trainer(PredictionWriter(tmp_path, overwrite=True)).predict(named, whole, return_predictions=False)
    found = read_predictions(tmp_path)
    numbers = torch.tensor([float(name.split()[1]) for name in found["id"]])
    torch.testing.assert_close(found["score"], numbers * 2**0.5)
    assert sorted(numbers.tolist()) == list(range(21))


def test_a_batch_that_is_not_what_was_named_has_no_index():
    filtered = DataLoader(DATA, batch_size=4, shuffle=True, collate_fn=filtering)
    with pytest.warns(UserWarning, match="has no index: .*collate_fn leaves some out"):
        task = outputs_of(filtered)
    assert "index" not in task.test_outputs[0]
    assert len(task.test_outputs[0]["score"]) == ROWS - 1
    keyed = DataLoader(Keyed(), batch_size=4, sampler=[f"k{i}" for i in range(ROWS)])
    with pytest.warns(UserWarning, match="names samples by str, not by position"):
        outputs_of(keyed)


def test_a_part_of_the_data_and_several_loaders():
    task = SelectiveInferenceTask(Model(), score(), acc_test_outputs=True)
    both = [loaders()["shuffled"], loaders()["subset"]]
    trainer(limit_test_batches=2).test(task, both, verbose=False)
    for outputs in task.test_outputs:
        assert len(outputs["index"]) == 8
        torch.testing.assert_close(outputs["score"], outputs["index"] * 2**0.5)
    with pytest.raises(InvalidInputError, match="images must have one entry for each sample of the data set"):
        from_test(task, images=[0.0], loader=1)
    with pytest.raises(InvalidInputError, match="names is a mapping from ids, but the task has none"):
        from_test(task, names={"a": "b"})


def test_a_second_run_and_a_plain_one_use_the_same_trainer():
    task = SelectiveInferenceTask(Model(), score(), acc_test_outputs=True)
    run = trainer()
    loader = loaders()["workers"]
    for _ in range(2):
        run.test(task, loader, verbose=False)
        torch.testing.assert_close(task.test_outputs[0]["score"], task.test_outputs[0]["index"] * 2**0.5)
        run.validate(task, loader, verbose=False)


def test_ids_that_are_none_are_refused():
    task = SelectiveInferenceTask(Model(), score(), id_key=0)
    with pytest.raises(InvalidInputError, match="id_key=0 must lead to one whole number or text for each"):
        trainer().test(task, loaders()["in order"], verbose=False)
    with pytest.raises(InvalidInputError, match="id_key=5 is not in the batch"):
        trainer().test(SelectiveInferenceTask(Model(), score(), id_key=5), loaders()["in order"])
    with pytest.raises(InvalidTypeError, match="id_key must be a position"):
        SelectiveInferenceTask(Model(), score(), id_key=0.5)


def test_damaged_texts_are_noticed(tmp_path):
    from safetensors.torch import save_file

    tags = {"format": "selkit-predictions-1", "texts": '["id"]'}
    path = tmp_path / "loader0-rank0-part000000.safetensors"
    save_file({"index": torch.arange(2), "id": torch.tensor([1, 2], dtype=torch.uint8)}, path, tags)
    with pytest.raises(FileFormatError, match="its texts cannot be read"):
        read_predictions(tmp_path)


def test_nothing_warns_where_all_is_known():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(index|not finite|hook).*")
        outputs_of(loaders()["in order"])
