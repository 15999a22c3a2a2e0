"""A report of what Lightning's test found says what the task's outputs say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.report import from_test
from selkit.report.page import render
from selkit.scores import EuclideanScore


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.test_metrics = MulticlassAccuracy(num_classes=2, average="micro")

    def embed(self, x):
        return x.flatten(1)

    def forward(self, x):
        return (x.mean((1, 2, 3)) > 0).long()


class Result:
    """What a test of a region returns, as far as a report reads it."""

    def __init__(self, x, shape, conditioned) -> None:
        self.p_value = 0.25
        self.accepted_by = SimpleNamespace(p_value=0.125) if conditioned else None
        self.stat = float(x.mean())
        self.roi = np.ones(shape or x.shape[-2:], dtype=bool)
        self.score_map = self.roi

    def naive_p_value(self) -> float:
        return 0.001


class Regions:
    shape: tuple[int, ...] | None = None
    conditioned = True

    def inference(self, x):
        return Result(x, self.shape, self.conditioned)


def run_test(roi_test=None) -> tuple[selkit.SelectiveInferenceTask, TensorDataset]:
    draw = torch.Generator().manual_seed(0)
    reference, calibration = (torch.randn(n, 16, generator=draw) for n in (50, 40))
    score = EuclideanScore(k=3).fit(X=reference, Y=calibration).set_threshold(q=0.7)
    task = selkit.SelectiveInferenceTask(
        Model(),
        score,
        roi_test,
        acc_test_outputs=True,
        metrics=MulticlassAccuracy(2, average="micro"),
        alpha=0.1,
    )
    x = torch.randn(12, 1, 4, 4, generator=draw)
    data = TensorDataset(x, torch.randint(2, (12,), generator=draw))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(task, DataLoader(data, batch_size=5), verbose=False)
    return task, data


def test_every_sample_is_as_the_task_kept_it():
    task, data = run_test()
    report = from_test(task, images=data, names=[f"n{i}" for i in range(12)], groups=["a", "b"] * 6)
    (outputs,) = task.test_outputs
    assert len(report.samples) == 12
    for i, sample in enumerate(report.samples):
        np.testing.assert_array_equal(sample.image, data[i][0][0].numpy())
        assert sample.score == pytest.approx(float(outputs["score"][i]))
        assert sample.selected == bool(outputs["selected"][i])
        assert sample.loss == float(outputs["loss"][i])
        assert sample.details["target"] == str(int(data[i][1]))
        assert sample.details["prediction"] == str(int(data[i][0].mean() > 0))
        assert (sample.name, sample.group) == (f"n{i}", "ab"[i % 2])
        assert sample.p_value is None
    assert report.metrics["full/MulticlassAccuracy"] == float(task.results["full/MulticlassAccuracy"])
    assert report.threshold == float(task.score.threshold)
    assert report.alpha == 0.1
    (promise,) = report.guarantees
    assert "EuclideanScore: nothing: it is the 0.7 quantile" in promise
    assert len(report.scores["calibration"]) == 40
    curve = report.curve()
    assert curve.risk[-1] == pytest.approx(float(outputs["loss"].double().mean()))
    assert "What was decided" in render(report)


def test_regions_bring_p_values_with_and_without_acceptance():
    task, data = run_test(roi_test=Regions())
    report = from_test(task, images=data, title="T")
    for sample in report.samples:
        if sample.selected:
            assert sample.roi.all()
            assert (sample.p_value, sample.p_value_without_acceptance) == (0.25, 0.125)
            assert sample.naive_p_value == 0.001
        else:
            assert sample.p_value is None
            assert sample.details["region not tested"] == "rejected"
    assert "conditioned on the acceptance of the input, so it is valid" in report.guarantees[1]
    assert "What conditioning on acceptance changed" in render(report)


def test_a_p_value_that_forgets_acceptance_is_said_to():
    regions = Regions()
    regions.conditioned = False
    task, _ = run_test(roi_test=regions)
    report = from_test(task)
    assert "not conditioned on the acceptance of the input" in report.guarantees[1]
    assert all(sample.p_value_without_acceptance is None for sample in report.samples)


def test_a_region_of_another_shape_is_not_drawn_and_says_so():
    regions = Regions()
    regions.shape = (2, 2)
    task, data = run_test(roi_test=regions)
    sample = next(s for s in from_test(task, images=data.tensors[0]).samples if s.selected)
    assert sample.roi is None
    assert sample.details["region"] == "not drawn: its shape is (2, 2)"
    assert next(s for s in from_test(task).samples if s.selected).roi.shape == (2, 2)


def test_given_fields_add_to_those_of_the_test():
    task, _ = run_test()
    report = from_test(
        task, guarantees=["g"], metrics={"seconds": 3.0}, threshold=None, attributions=[None] * 12
    )
    assert report.guarantees == ["g"]
    assert report.metrics["seconds"] == 3.0
    assert "full/count" in report.metrics
    assert report.threshold is None


def test_what_cannot_be_reported_is_refused():
    with pytest.raises(InvalidTypeError, match=r"task must be a selkit\.SelectiveInferenceTask, got dict"):
        from_test({})
    task, _ = run_test()
    with pytest.raises(
        InvalidInputError, match="names must have one entry for each of the 12 samples, got 3"
    ):
        from_test(task, names=["a"] * 3)
    with pytest.raises(InvalidInputError, match="loader must be from 0 to 0, got 1"):
        from_test(task, loader=1)
    fresh = selkit.SelectiveInferenceTask(Model(), task.score)
    with pytest.raises(NotFittedError, match="acc_test_outputs=True"):
        from_test(fresh)
