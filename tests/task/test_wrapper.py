"""The task in a real Trainer, with real scores and tests of regions."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.metrics import accuracy_score
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.segmentation import DiceScore

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.metrics import RiskCoverageMetric, dice_loss, risk_coverage
from selkit.scores import EnergyScore, EuclideanClassWiseScore, EuclideanScore
from selkit.task import SelectiveInferenceTask


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


class Classifier(LightningModule):
    """Class scores are the first three features, the embedding is the rest."""

    def __init__(self, metrics=None):
        super().__init__()
        self.test_metrics = metrics or MulticlassAccuracy(3, average="micro")

    def forward(self, x):
        return x[:, :3]

    def embed(self, x):
        return x[:, 3:]


def data(rows=90, seed=0):
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (rows,), generator=draw)
    embedding = torch.randn(rows, 4, generator=draw)
    noise = embedding.norm(dim=1, keepdim=True) * torch.randn(rows, 3, generator=draw)
    return torch.cat([2 * torch.nn.functional.one_hot(target, 3) + noise, embedding], 1), target


def loader(x, target, batch=16):
    return DataLoader(TensorDataset(x, target), batch_size=batch)


def distance_score():
    """Distance to the origin, with a threshold at 2."""
    return EuclideanScore(k=1).fit(X=torch.zeros(1, 4)).set_threshold(1.0, scores=torch.tensor([0.0, 2.0]))


def test_numbers_are_those_of_the_rows():
    x, target = data()
    [logged] = trainer().test(
        SelectiveInferenceTask(Classifier(), distance_score()), loader(x, target), verbose=False
    )
    distance, predicted = x[:, 3:].norm(dim=1), x[:, :3].argmax(1)
    selected = distance <= 2
    assert 20 < int(selected.sum()) < 80
    for scope, rows in (("full", distance >= 0), ("selected", selected), ("rejected", ~selected)):
        expected = accuracy_score(target[rows], predicted[rows])
        assert logged[f"{scope}/MulticlassAccuracy"] == pytest.approx(expected)
        assert logged[f"{scope}/count"] == int(rows.sum())
    assert logged["coverage"] == pytest.approx(float(selected.float().mean()))
    curve = risk_coverage(distance, predicted != target)
    assert logged["rc/aurc"] == pytest.approx(float(curve.aurc))
    assert logged["rc/augrc"] == pytest.approx(float(curve.augrc))
    assert logged["rc/count"] == 90


def test_nothing_is_computed_or_logged_per_batch():
    class Counting(MulticlassAccuracy):
        computed = 0

        def compute(self):
            type(self).computed += 1
            return super().compute()

    x, target = data()
    task = SelectiveInferenceTask(Classifier(Counting(3)), distance_score())
    run = trainer()
    run.test(task, loader(x, target, batch=1), verbose=False)
    assert Counting.computed == 3  # full, selected and rejected, once for 90 batches
    assert not [name for name in run.logged_metrics if name.endswith("_step")]


def test_batches_change_nothing():
    x, target = data()
    found = []
    for batch in (1, 7, 90):
        found += trainer().test(
            SelectiveInferenceTask(Classifier(), distance_score()), loader(x, target, batch), verbose=False
        )
    assert found[0] == pytest.approx(found[2])
    assert found[1] == pytest.approx(found[2])


def test_several_loaders_are_reported_together_and_each():
    first, second = data(40, 1), data(25, 2)
    task = SelectiveInferenceTask(Classifier(), distance_score(), acc_test_outputs=True)
    run = trainer()
    logged = run.test(task, [loader(*first), loader(*second)], verbose=False)
    assert len(logged) == 2
    values = logged[0]
    for suffix, (x, target) in (
        ("", [torch.cat(parts) for parts in zip(first, second, strict=True)]),
        ("/dataloader_idx_0", first),
        ("/dataloader_idx_1", second),
    ):
        assert values[f"full/count{suffix}"] == len(target)
        expected = accuracy_score(target, x[:, :3].argmax(1))
        assert values[f"full/MulticlassAccuracy{suffix}"] == pytest.approx(expected)
    assert [len(outputs["score"]) for outputs in task.test_outputs] == [40, 25]
    assert task.get_risk_coverage_curve().n == 65
    assert task.get_risk_coverage_curve(1).n == 25
    with pytest.raises(InvalidInputError, match="dataloader_idx must be from 0 to 1"):
        task.get_risk_coverage_curve(2)


def test_a_second_run_starts_anew_and_validation_is_the_same():
    x, target = data()
    task = SelectiveInferenceTask(Classifier(), distance_score(), acc_test_outputs=True)
    first = trainer().test(task, loader(x, target), verbose=False)
    validated = trainer().validate(task, loader(x, target), verbose=False)
    second = trainer().test(task, loader(x, target), verbose=False)
    assert first == second == validated
    assert len(task.test_outputs[0]["score"]) == 90
    assert task.results["full/count"] == 90


def test_outputs_of_all_samples_are_kept_on_request():
    x, target = data()
    task = SelectiveInferenceTask(Classifier(), distance_score(), acc_test_outputs=True)
    assert task.test_outputs == []
    trainer().test(task, loader(x, target), verbose=False)
    [outputs] = task.test_outputs
    outputs["score"] += 0  # a normal tensor, unlike those of inference mode
    assert torch.equal(outputs["index"], torch.arange(90))
    assert torch.equal(outputs["predictions"], x[:, :3])
    assert torch.equal(outputs["target"], target)
    assert torch.equal(outputs["selected"], outputs["score"] <= 2)
    assert torch.equal(outputs["loss"], (x[:, :3].argmax(1) != target).float())
    assert SelectiveInferenceTask(Classifier(), distance_score()).test_outputs is None


def test_predictions_are_those_of_forward():
    x, target = data(20)
    task = SelectiveInferenceTask(Classifier(), distance_score())
    batches = trainer().predict(task, loader(x, target, batch=8))
    assert [set(batch) for batch in batches] == [{"predictions", "score", "selected"}] * 3
    direct = task(x)
    for name, value in direct.items():
        assert torch.allclose(torch.cat([batch[name] for batch in batches]), value)
    tensors = DataLoader(x, batch_size=20)  # without targets
    assert torch.allclose(trainer().predict(task, tensors)[0]["score"], direct["score"])


def test_batches_may_be_dictionaries():
    class Rows(torch.utils.data.Dataset):
        def __init__(self, names):
            self.x, self.target, self.names = *data(12), names

        def __len__(self):
            return 12

        def __getitem__(self, i):
            return dict(zip(self.names, (self.x[i], self.target[i]), strict=True))

    [expected] = trainer().test(
        SelectiveInferenceTask(Classifier(), distance_score()), loader(*data(12)), verbose=False
    )
    usual = SelectiveInferenceTask(Classifier(), distance_score())
    assert trainer().test(usual, DataLoader(Rows(("image", "label"))), verbose=False)[0] == pytest.approx(
        expected
    )
    named = SelectiveInferenceTask(Classifier(), distance_score(), input_key="scan", target_key="grade")
    assert trainer().test(named, DataLoader(Rows(("scan", "grade"))), verbose=False)[0] == pytest.approx(
        expected
    )
    with pytest.raises(InvalidInputError, match="input_key='scan' is not in the batch"):
        trainer().test(named, DataLoader(Rows(("image", "label"))), verbose=False)
    swapped = SelectiveInferenceTask(Classifier(), distance_score(), input_key=1, target_key=0)
    reversed_loader = DataLoader(TensorDataset(*data(12)[::-1]))
    assert trainer().test(swapped, reversed_loader, verbose=False)[0] == pytest.approx(expected)


def test_a_model_with_extract_runs_once_for_each_batch():
    class Extracting(Classifier):
        passes = 0

        def extract(self, batch):
            self.passes += 1
            x, label = batch
            return {"prediction": x[:, :3], "embedding": x[:, 3:], "label": label}

        def forward(self, x):
            raise RuntimeError("a second pass")

        embed = forward

    x, target = data()
    model = Extracting()
    [logged] = trainer().test(
        SelectiveInferenceTask(model, distance_score()), loader(x, target), verbose=False
    )
    assert model.passes == 6
    [expected] = trainer().test(
        SelectiveInferenceTask(Classifier(), distance_score()), loader(x, target), verbose=False
    )
    assert logged == expected
    [predicted] = trainer().predict(SelectiveInferenceTask(model, distance_score()), loader(x, target, 90))
    assert torch.allclose(predicted["score"], x[:, 3:].norm(dim=1))
    model.extract = lambda batch: batch[0]
    with pytest.raises(InvalidTypeError, match=r"must return a dictionary with 'prediction'.*got Tensor"):
        trainer().test(SelectiveInferenceTask(model, distance_score()), loader(x, target), verbose=False)


def test_scores_of_logits_need_no_embedding():
    x, target = data()

    class Plain(LightningModule):
        def forward(self, x):
            return x[:, :3]

    score = EnergyScore().set_threshold(0.8, scores=-x[:, :3].logsumexp(1))
    task = SelectiveInferenceTask(Plain(), score, metrics=MulticlassAccuracy(3, average="micro"))
    [logged] = trainer().test(task, loader(x, target), verbose=False)
    selected = -x[:, :3].logsumexp(1) <= float(score.threshold)
    expected = accuracy_score(target[selected], x[selected, :3].argmax(1))
    assert logged["selected/MulticlassAccuracy"] == pytest.approx(expected)


def test_thresholds_of_predicted_classes():
    x, target = data()
    rows = x[:, 3:]
    score = EuclideanClassWiseScore(k=1).fit(
        X=torch.zeros(3, 4), y=torch.arange(3), Y=rows, y_cal=x[:, :3].argmax(1)
    )
    score.set_threshold(q=0.5)
    task = SelectiveInferenceTask(Classifier(), score, acc_test_outputs=True)
    trainer().test(task, loader(x, target), verbose=False)
    [outputs] = task.test_outputs
    for label in range(3):
        mine = x[:, :3].argmax(1) == label
        middle = rows[mine].norm(dim=1).median() if int(mine.sum()) % 2 else np.median(rows[mine].norm(dim=1))
        assert torch.equal(outputs["selected"][mine], rows[mine].norm(dim=1) <= middle)


def test_thresholds_of_groups():
    x, target = data()
    group = torch.arange(90) % 2
    score = EuclideanScore(k=1).fit(X=torch.zeros(1, 4), Y=x[:, 3:])
    score.calibrate(coverage=0.5, groups=group)
    rows = DataLoader(TensorDataset(x, target, group), batch_size=16)
    task = SelectiveInferenceTask(Classifier(), score, group_key=2, acc_test_outputs=True)
    trainer().test(task, rows, verbose=False)
    expected = score.select(x[:, 3:], groups=group)
    assert torch.equal(task.test_outputs[0]["selected"], expected["selected"])
    assert torch.equal(
        torch.cat([batch["selected"] for batch in trainer().predict(task, rows)]), expected["selected"]
    )
    with pytest.raises(InvalidInputError, match="group_key=2 is not in the batch"):
        trainer().test(task, loader(x, target), verbose=False)


class Segmenter(LightningModule):
    """Masks are where the input is above one half; the embedding is the input's mean."""

    def __init__(self):
        super().__init__()
        self.test_metrics = DiceScore(
            num_classes=1, average="micro", aggregation_level="samplewise", input_format="one-hot"
        )

    def forward(self, x):
        return (x > 1).long()

    def embed(self, x):
        return x.flatten(1).mean(1, keepdim=True)


def masks(rows=10):
    draw = torch.Generator().manual_seed(4)
    target = torch.zeros(rows, 1, 8, 8, dtype=torch.long)
    target[:, :, 2:5, 2:6] = 1
    return target * 3 + 0.6 * torch.randn(rows, 1, 8, 8, generator=draw), target


def mean_score(threshold):
    return EuclideanScore(k=1).fit(X=torch.zeros(1, 1)).set_threshold(1.0, scores=torch.tensor([threshold]))


@pytest.mark.filterwarnings("ignore:.*defaults to `average=micro`.*")
def test_masks_with_a_loss_of_each_sample():
    x, target = masks()
    task = SelectiveInferenceTask(Segmenter(), mean_score(0.52), loss=dice_loss)
    [logged] = trainer().test(task, loader(x, target, batch=4), verbose=False)
    losses, distance = dice_loss((x > 1).long(), target), x.flatten(1).mean(1).abs()
    assert logged["rc/aurc"] == pytest.approx(float(risk_coverage(distance, losses).aurc))
    selected = distance <= 0.52
    assert 0 < int(selected.sum()) < 10
    assert logged["selected/DiceScore"] == pytest.approx(float(1 - losses[selected].mean()))
    assert logged["rejected/DiceScore"] == pytest.approx(float(1 - losses[~selected].mean()))


@pytest.mark.filterwarnings("ignore:.*defaults to `average=micro`.*")
def test_without_a_loss_risk_coverage_is_left_out_and_said_so():
    task = SelectiveInferenceTask(Segmenter(), mean_score(1.0))
    with pytest.warns(UserWarning, match="risk-coverage is not reported"):
        [logged] = trainer().test(task, loader(*masks()), verbose=False)
    assert not [name for name in logged if name.startswith("rc/")]
    assert task.get_risk_coverage_curve() is None


THRESHOLD_MODEL = """
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1, 1, 8, 8] x) => (float[1, 1, 8, 8] y) { y = Relu(x) }
"""


@pytest.mark.filterwarnings("ignore:.*defaults to `average=micro`.*")
def test_regions_of_selected_samples_are_tested():
    x, target = masks()
    x[3] = 0.0  # no pixel above the threshold: nothing to test
    test = selkit.load(
        onnx.parser.parse_model(THRESHOLD_MODEL), hypothesis=selkit.BackMeanDiff(threshold=1.0), var=0.36
    )
    task = SelectiveInferenceTask(
        Segmenter(), mean_score(0.52), roi_test=test, loss=dice_loss, acc_test_outputs=True, alpha=0.01
    )
    [logged] = trainer().test(task, loader(x, target, batch=4), verbose=False)
    [outputs] = task.test_outputs
    selected = outputs["selected"].tolist()
    for i, chosen in enumerate(selected):
        if not chosen or i == 3:
            assert math.isnan(float(outputs["p_value"][i]))
            assert outputs["roi"][i] is None
            assert outputs["roi_reason"][i] == "rejected" if i != 3 else "empty" in outputs["roi_reason"][i]
            continue
        alone = test.inference(x[i])
        assert float(outputs["p_value"][i]) == pytest.approx(alone.p_value)
        assert float(outputs["naive_p_value"][i]) == pytest.approx(alone.naive_p_value())
        assert np.array_equal(outputs["roi"][i], x[i, 0].numpy() > 1)
        assert outputs["score_map"][i].shape == alone.score_map.shape
        assert outputs["roi_reason"][i] is None
    tested = ~outputs["p_value"].isnan()
    assert logged["roi/tested"] == int(tested.sum()) == sum(selected) - 1
    assert logged["roi/no_region"] == 1
    assert logged["roi/significant"] == pytest.approx(
        float((outputs["p_value"][tested] <= 0.01).float().mean())
    )
    predicted = trainer().predict(task, loader(x, target, batch=10))[0]
    assert torch.allclose(predicted["p_value"], outputs["p_value"], equal_nan=True)


def test_an_activation_makes_logits_probabilities():
    class Logits(Classifier):
        def forward(self, x):
            return x[:, 0]

    x, _ = data()
    binary = (x[:, 0] + torch.randn(90) > 0).long()
    with pytest.raises(InvalidInputError, match="activation='sigmoid'"):
        trainer().test(
            SelectiveInferenceTask(Logits(BinaryAccuracy()), distance_score()),
            loader(x, binary),
            verbose=False,
        )
    task = SelectiveInferenceTask(
        Logits(BinaryAccuracy()), distance_score(), activation="sigmoid", acc_test_outputs=True
    )
    [logged] = trainer().test(task, loader(x, binary), verbose=False)
    assert logged["full/BinaryAccuracy"] == pytest.approx(accuracy_score(binary, x[:, 0] > 0))
    assert torch.equal(task.test_outputs[0]["predictions"], x[:, 0])
    assert float(task.test_outputs[0]["loss"].mean()) == pytest.approx(1 - logged["full/BinaryAccuracy"])


def test_what_no_logger_takes_is_in_results():
    x, target = data()
    base = MetricCollection([MulticlassAccuracy(3), MulticlassConfusionMatrix(3)])
    task = SelectiveInferenceTask(Classifier(base), distance_score())
    [logged] = trainer().test(task, loader(x, target), verbose=False)
    assert "full/MulticlassConfusionMatrix" not in logged
    assert int(task.results["full/MulticlassConfusionMatrix"].sum()) == 90


def test_settings_of_risk_coverage_are_used_and_left_alone():
    x, target = data()
    mine = RiskCoverageMetric(coverage=[0.5], n_boot=10, prefix="risk/")
    task = SelectiveInferenceTask(Classifier(), distance_score(), rc_metric=mine)
    [logged] = trainer().test(task, loader(x, target), verbose=False)
    assert {"risk/risk_at_coverage_0.5", "risk/aurc_lower"} <= set(logged)
    assert mine.get_curve() is None if mine.update_called else not mine.score


def test_loss_must_be_one_number_per_sample():
    task = SelectiveInferenceTask(Classifier(), distance_score(), loss=torch.nn.functional.cross_entropy)
    with pytest.raises(InvalidInputError, match=r"reduction='none'"):
        trainer().test(task, loader(*data()), verbose=False)
    own = SelectiveInferenceTask(
        Classifier(),
        distance_score(),
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        acc_test_outputs=True,
    )
    trainer().test(own, loader(*data()), verbose=False)
    x, target = data()
    expected = torch.nn.functional.cross_entropy(x[:, :3], target, reduction="none")
    assert torch.allclose(own.test_outputs[0]["loss"], expected)


def test_a_model_without_metrics_predicts_but_is_not_tested():
    class Bare(LightningModule):
        def forward(self, x):
            return x[:, :3]

        def embed(self, x):
            return x[:, 3:]

    task = SelectiveInferenceTask(Bare(), distance_score())
    assert len(trainer().predict(task, loader(*data()))) == 6
    with pytest.raises(InvalidInputError, match=r"Bare has no test_metrics: set self\.test_metrics"):
        trainer().test(task, loader(*data()), verbose=False)


def test_bad_parts_are_refused():
    score = distance_score()
    with pytest.raises(InvalidTypeError, match="task must be a LightningModule; got int"):
        SelectiveInferenceTask(3, score)
    with pytest.raises(InvalidTypeError, match=r"score must be one of selkit\.scores"):
        SelectiveInferenceTask(Classifier(), torch.nn.Identity())
    with pytest.raises(InvalidTypeError, match=r"roi_test must come from selkit\.load"):
        SelectiveInferenceTask(Classifier(), score, "model.onnx")
    with pytest.raises(InvalidTypeError, match="loss must be a function"):
        SelectiveInferenceTask(Classifier(), score, loss="dice")
    with pytest.raises(InvalidTypeError, match="rc_metric must be a RiskCoverageMetric"):
        SelectiveInferenceTask(Classifier(), score, rc_metric=BinaryAccuracy())
    with pytest.raises(InvalidTypeError, match=r"Classifier\.test_metrics must be a torchmetrics Metric"):
        SelectiveInferenceTask(Classifier(torch.nn.Identity()), score)
    with pytest.raises(InvalidTypeError, match="metrics must be a torchmetrics Metric"):
        SelectiveInferenceTask(Classifier(), score, metrics=accuracy_score)


def test_a_score_without_threshold_is_refused():
    score = EuclideanScore(k=1).fit(X=torch.zeros(1, 4))
    with pytest.raises(NotFittedError, match="set_threshold"):
        trainer().test(SelectiveInferenceTask(Classifier(), score), loader(*data()), verbose=False)


def test_the_model_keeps_its_mode_and_metrics():
    model = Classifier()
    task = SelectiveInferenceTask(model, distance_score())
    trainer().test(task, loader(*data()), verbose=False)
    assert model.training
    assert not model.test_metrics.update_called
