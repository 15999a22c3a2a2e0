"""Samples and losses that cannot be used are counted; precision, shapes and ignored labels change nothing."""

from __future__ import annotations

import functools
from itertools import permutations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.metrics import accuracy_score
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import RiskCoverageMetric, absolute_error, dice_loss, squared_error, zero_one_loss
from selkit.report import from_test
from selkit.report.page import render
from selkit.scores import (
    EuclideanClassWiseScore,
    EuclideanScore,
    GaussianScore,
    MahalanobisScore,
    PyODScore,
)
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

    def test_step(self, batch, batch_idx):
        self.test_metrics.update(self(batch[0]), batch[1])

    def on_test_epoch_end(self):
        if isinstance(self.test_metrics, Metric):
            self.log("own", self.test_metrics.compute())
        self.test_metrics.reset()


def data(rows=90, seed=0):
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (rows,), generator=draw)
    embedding = torch.randn(rows, 4, generator=draw)
    noise = embedding.norm(dim=1, keepdim=True) * torch.randn(rows, 3, generator=draw)
    return torch.cat([2 * torch.nn.functional.one_hot(target, 3) + noise, embedding], 1), target


def loader(x, target, batch=16):
    return DataLoader(TensorDataset(x, target), batch_size=batch)


def score():
    return EuclideanScore(k=1).fit(X=torch.zeros(1, 4)).set_threshold(1.0, scores=torch.tensor([2.0]))


def area(scores, losses):
    """The area under risk-coverage by its definition: the mean over samples of the risk at their score."""
    scores, losses = np.asarray(scores, float), np.asarray(losses, float)
    return np.mean([losses[scores <= s].mean() for s in scores])


def run(task, x, target, batch=16, **options):
    [logged] = trainer(**options).test(task, loader(x, target, batch), verbose=False)
    return logged


# NaN


@pytest.mark.filterwarnings("ignore:.*were rejected because.*")
@pytest.mark.parametrize("batch", [1, 7, 90])
def test_samples_with_nan_are_rejected_and_counted(batch):
    x, target = data()
    bad = [0, 3, 40, 89]
    x[bad, 5] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan])
    task = SelectiveInferenceTask(Classifier(), score(), acc_test_outputs=True)
    logged = run(task, x, target, batch)
    good = torch.isfinite(x).all(1)
    selected = good & (x[:, 3:].norm(dim=1) <= 2)
    assert logged["rejected/not_finite"] == 4
    assert logged["full/count"] == 90
    assert logged["rejected/count"] == 90 - int(selected.sum())
    assert logged["coverage"] == pytest.approx(float(selected.float().mean()))
    right = x[:, :3].argmax(1)
    assert logged["selected/MulticlassAccuracy"] == pytest.approx(
        accuracy_score(target[selected], right[selected])
    )
    assert logged["full/MulticlassAccuracy"] == pytest.approx(accuracy_score(target, right))
    [outputs] = task.test_outputs
    assert torch.equal(outputs["selected"], selected)
    assert torch.isinf(outputs["score"][bad]).all()
    known = x[:, 3:].double().norm(dim=1)
    orders = [
        known.masked_scatter(~good, 1e9 + torch.tensor(order).double()) for order in permutations(range(4))
    ]
    tied = np.mean([area(order, right != target) for order in orders])
    assert logged["rc/aurc"] == pytest.approx(tied)
    predicted = trainer().predict(task, loader(x, target, batch))
    assert torch.equal(torch.cat([part["selected"] for part in predicted]), selected)
    report = from_test(task)
    assert sum(s.selected for s in report.samples) == int(selected.sum())
    assert "inf" in render(report)


def test_it_is_said_and_the_naive_way_ends():
    x, target = data()
    x[:, 5][[1, 2]] = torch.nan
    with pytest.warns(
        UserWarning, match="2 samples were rejected because their embedding or logits hold NaN"
    ):
        run(SelectiveInferenceTask(Classifier(), score()), x, target)
    with pytest.raises(InvalidInputError, match="NaN"):
        score().select(x[:, 3:])


@pytest.mark.filterwarnings("ignore:.*were rejected because.*")
def test_a_batch_of_nan_and_groups_and_classes():
    x, target = data()
    x[16:32, 3:] = torch.nan
    group = torch.arange(90) % 2
    grouped = EuclideanScore(k=1).fit(X=torch.zeros(1, 4), Y=data(seed=1)[0][:, 3:])
    grouped.calibrate(coverage=0.5, groups=group)
    task = SelectiveInferenceTask(Classifier(), grouped, group_key=2, acc_test_outputs=True)
    rows = DataLoader(TensorDataset(x, target, group), batch_size=16)
    trainer().test(task, rows, verbose=False)
    good = torch.isfinite(x).all(1)
    expected = grouped.select(x[good, 3:], groups=group[good])["selected"]
    assert torch.equal(task.test_outputs[0]["selected"][good], expected)
    assert not task.test_outputs[0]["selected"][~good].any()
    each = EuclideanClassWiseScore().fit(torch.zeros(3, 4), torch.arange(3))
    each.set_threshold(1.0, scores=torch.full((3,), 2.0), groups=torch.arange(3))
    logged = run(SelectiveInferenceTask(Classifier(), each), x, target)
    assert logged["selected/count"] == int((good & (x[:, 3:].norm(dim=1) <= 2)).sum())


class Probability(Classifier):
    def forward(self, x):
        return x[:, 0].sigmoid()


@pytest.mark.filterwarnings("ignore:.*were rejected because.*")
def test_a_prediction_that_is_nan_makes_logits_of_no_other():
    """One NaN in a batch, and torchmetrics takes the sigmoid of all probabilities: all become 1."""
    x, target = data()
    target = (target > 0).long()
    x[5] = torch.nan
    good = torch.isfinite(x).all(1)
    probability = x[:, 0].sigmoid()
    plain = BinaryAccuracy()
    plain.update(probability, target)
    expected = accuracy_score(target[good], probability[good] > 0.5)
    assert float(plain.compute()) != pytest.approx(expected)
    logged = run(SelectiveInferenceTask(Probability(BinaryAccuracy()), score()), x, target)
    assert logged["full/BinaryAccuracy"] == pytest.approx(expected)
    assert logged["full/count"] == 90
    wrong = ((probability > 0.5).long() != target)[good]
    assert logged["rc/aurc"] == pytest.approx(area(x[good, 3:].norm(dim=1), wrong))
    assert logged["rc/not_finite"] == 1


@pytest.mark.filterwarnings("ignore:.*NaN or infinite were left out.*")
def test_losses_that_are_not_finite_are_counted():
    x, target = data()

    def loss(preds, target):
        values = torch.nn.functional.cross_entropy(preds, target, reduction="none")
        return torch.where(values > 4, torch.nan, values)

    task = SelectiveInferenceTask(Classifier(), score(), loss=loss, acc_test_outputs=True)
    logged = run(task, x, target)
    losses = loss(x[:, :3], target)
    good = torch.isfinite(losses)
    assert logged["rc/not_finite"] == int((~good).sum()) > 0
    assert logged["rc/count"] == int(good.sum())
    assert logged["rc/aurc"] == pytest.approx(area(x[good, 3:].norm(dim=1), losses[good]))
    assert from_test(task).curve() is not None
    every = SelectiveInferenceTask(Classifier(), score(), loss=lambda p, t: torch.full((len(p),), torch.nan))
    assert run(every, x, target)["rc/not_finite"] == 90


# precision


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed"])
def test_a_score_keeps_its_own_precision(precision):
    draw = torch.Generator().manual_seed(2)
    references = 400 * torch.randn(50, 4, generator=draw)  # squares that float16 cannot hold
    x, target = data()
    x[:, 3:] *= 400
    mine = MahalanobisScore(k=2).fit(X=references, Y=x[:, 3:]).set_threshold(q=0.5)
    before = {name: (value.dtype, value.clone()) for name, value in mine.state_dict().items()}
    task = SelectiveInferenceTask(Classifier(), mine, acc_test_outputs=True)
    logged = run(task, x, target, precision=precision)
    for name, value in mine.state_dict().items():
        assert value.dtype == before[name][0]
        assert torch.equal(value, before[name][1])
    kinds = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
    seen = x.to(kinds.get(precision, torch.float64))
    expected = mine.select(seen[:, 3:].float())
    torch.testing.assert_close(task.test_outputs[0]["score"].float(), expected["score"], rtol=1e-4, atol=1e-4)
    assert torch.equal(task.test_outputs[0]["selected"], expected["selected"])
    [plain] = trainer(precision=precision).test(Classifier(), loader(x, target), verbose=False)
    assert logged["full/MulticlassAccuracy"] == pytest.approx(plain["own"], abs=1e-3)
    wrong = seen[:, :3].argmax(1) != target
    assert logged["rc/aurc"] == pytest.approx(area(expected["score"].double(), wrong), abs=1e-6)
    assert logged["own"] == pytest.approx(plain["own"], abs=1e-3)
    assert torch.get_default_dtype() == torch.float32
    trainer(precision=precision).predict(task, loader(x, target))
    assert next(iter(mine.state_dict().values())).dtype == next(iter(before.values()))[0]


def test_moving_a_task_by_hand_leaves_the_score_too():
    mine = score()
    task = SelectiveInferenceTask(Classifier(torch.nn.Linear(2, 2) and None), mine).half()
    assert mine.reference.dtype == torch.float32
    assert task.to(torch.float64).score.reference.dtype == torch.float32


# shapes and targets


class Squeezing(Classifier):
    def forward(self, x):
        return x[:, :1].squeeze()

    def embed(self, x):
        return x[:, 3:, None, None].squeeze()


@pytest.mark.parametrize("batch", [1, 89, 11])
def test_a_last_batch_of_one_after_squeeze(batch):
    x, target = data(90 if batch != 11 else 89)
    task = SelectiveInferenceTask(
        Squeezing(MeanSquaredError()), score(), loss=squared_error, acc_test_outputs=True
    )
    logged = run(task, x, target.float(), batch)
    assert logged["full/MeanSquaredError"] == pytest.approx(
        float((x[:, 0] - target).square().mean()), rel=1e-5
    )
    assert logged["rc/aurc"] == pytest.approx(
        area(x[:, 3:].norm(dim=1), (x[:, 0] - target).square()), rel=1e-5
    )
    assert torch.equal(task.test_outputs[0]["predictions"], x[:, 0])


@pytest.mark.filterwarnings("ignore:risk-coverage is not reported")
@pytest.mark.parametrize("inside", [True, False])
def test_regression_with_whole_targets(inside):
    class Counts(Classifier):
        def forward(self, x):
            return x[:, 0].sigmoid() if inside else x[:, 0] * 5

    x, target = data()
    model = Counts(MeanSquaredError())
    logged = run(SelectiveInferenceTask(model, score()), x, target)
    expected = float((model(x) - target).square().mean())
    assert logged["full/MeanSquaredError"] == pytest.approx(expected, rel=1e-5)
    assert not [name for name in logged if name.startswith("rc/")]
    logged = run(SelectiveInferenceTask(model, score(), loss=absolute_error), x, target)
    assert logged["rc/aurc"] == pytest.approx(area(x[:, 3:].norm(dim=1), (model(x) - target).abs()), rel=1e-5)


class OwnMetric(Metric):
    """Of no library: what it is for cannot be seen."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, preds, target):
        self.total += (preds - target).abs().sum()

    def compute(self):
        return self.total


def test_a_loss_that_one_batch_has_and_another_has_not_is_none():
    x, target = data()
    x[:16, 0], target[:16] = 0.5, 1  # a first batch that looks like probabilities of two classes
    x[16:, 0] *= 5

    class Counts(Classifier):
        def forward(self, x):
            return x[:, 0]

    task = SelectiveInferenceTask(Counts(OwnMetric()), score(), acc_test_outputs=True)
    with pytest.warns(UserWarning, match="risk-coverage is not reported"):
        logged = run(task, x, target)
    assert not [name for name in logged if name.startswith("rc/")]
    assert "loss" not in task.test_outputs[0]
    assert logged["full/OwnMetric"] == pytest.approx(float((x[:, 0] - target).abs().sum()), rel=1e-5)


# ignored labels


def ignored_data():
    x, _ = data()
    missing = torch.arange(90) % 3 == 0
    wrong = torch.where(missing, -100, x[:, :3].argmax(1))
    return x, wrong, ~missing


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_ignored_targets_have_no_loss(average):
    x, target, valid = ignored_data()
    target[1] = (target[1] + 1) % 3
    metric = MulticlassAccuracy(3, ignore_index=-100, average=average)
    task = SelectiveInferenceTask(Classifier(MetricCollection([metric])), score(), acc_test_outputs=True)
    logged = run(task, x, target, 1 if average == "micro" else 16)
    metric.update(x[valid, :3], target[valid])
    assert logged["full/MulticlassAccuracy"] == pytest.approx(float(metric.compute()))
    wrong = (x[:, :3].argmax(1) != target)[valid]
    assert logged["rc/aurc"] == pytest.approx(area(x[valid, 3:].norm(dim=1), wrong))
    assert logged["rc/count"] == int(valid.sum())
    assert logged["rc/not_finite"] == 0
    assert logged["full/count"] == 90
    assert from_test(task).curve() is not None


def test_all_valid_labels_right_is_no_risk():
    x, target, _ = ignored_data()
    for options in ({}, {"loss": torch.nn.CrossEntropyLoss(reduction="none")}):
        metric = MulticlassAccuracy(3, average="micro", ignore_index=None if options else -100)
        target_ = target if not options else target.clone()
        task = SelectiveInferenceTask(
            Classifier(metric) if not options else Classifier(OwnArgmax()), score(), **options
        )
        logged = run(task, x, target_)
        assert logged["rc/count"] == 60
        if not options:
            assert logged["rc/aurc"] == 0
            assert logged["full/MulticlassAccuracy"] == 1


class OwnArgmax(OwnMetric):
    def update(self, preds, target):
        self.total += (preds.argmax(1) == target).sum()


def test_losses_over_what_counts():
    preds = torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    target = torch.tensor([[0, 1, 255], [255, 255, 255]])
    for loss, expected in ((absolute_error, 0.0), (squared_error, 0.0), (dice_loss, 0.0)):
        found = loss(preds, target, ignore_index=255)
        assert float(found[0]) == expected
        assert torch.isnan(found[1])
    labels = torch.tensor([0, -100, 1])
    found = zero_one_loss(torch.tensor([0, 1, 0]), labels, ignore_index=-100)
    assert torch.equal(found.nan_to_num(7), torch.tensor([0.0, 7.0, 1.0]))
    assert torch.isnan(dice_loss(torch.tensor([[torch.nan, 1.0]]), torch.ones(1, 2))).all()
    assert torch.isnan(zero_one_loss(torch.tensor([torch.nan]), torch.tensor([0]))).all()
    metric = RiskCoverageMetric(ignore_index=-100)
    metric.update(torch.tensor([0, 1, 0]), labels, torch.tensor([0.1, 0.2, 0.3]))
    assert float(metric.compute()["rc/aurc"]) == pytest.approx(area([0.1, 0.3], [0, 1]))
    masks = functools.partial(dice_loss, ignore_index=255)
    x, _ = data(4)
    task = SelectiveInferenceTask(
        Masks(),
        EuclideanScore(k=1).fit(X=torch.zeros(1, 4)).set_threshold(1, scores=torch.ones(1)),
        loss=masks,
    )
    target = torch.tensor([[0, 1, 255], [255, 255, 255], [0, 0, 1], [1, 1, 255]])
    logged = run(task, x, target)
    assert logged["rc/count"] == 3


class Masks(Classifier):
    def __init__(self):
        super().__init__(OwnMetric())

    def forward(self, x):
        return (x[:, :3] > 0).long()


@pytest.mark.parametrize("kind", [GaussianScore, EuclideanClassWiseScore])
def test_no_class_is_made_of_ignored_labels(kind):
    x, target, valid = ignored_data()
    rows = x[:, 3:]
    found = kind().fit(rows, target)
    expected = kind().fit(rows[valid], target[valid])
    assert found.classes.tolist() == [0, 1, 2]
    query = data(seed=3)[0][:, 3:]
    torch.testing.assert_close(found.score(query), expected.score(query))
    loaders = {"train": loader(x, target)}
    by_model = kind().fit(model=Classifier(), loaders=loaders)
    torch.testing.assert_close(by_model.score(query), expected.score(query))
    with_other = kind().fit(rows, torch.where(valid, target, 255), ignore_index=255)
    torch.testing.assert_close(with_other.score(query), expected.score(query))
    with pytest.raises(InvalidInputError, match="all labels of the references are -100"):
        kind().fit(rows, torch.full((90,), -100))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alpha": "a"}, r"alpha must be a number in \(0, 1\); got 'a'"),
        ({"alpha": float("nan")}, "alpha must be a number"),
        ({"alpha": None}, "alpha must be a number"),
        ({"alpha": 10**400}, "alpha must be a number"),
        ({"acc_test_outputs": "yes"}, "acc_test_outputs must be True or False"),
        ({"input_key": 0.5}, "input_key must be a position"),
        ({"activation": 3}, "activation must be one of"),
        ({"accepted_by": 3}, "accepted_by must be"),
        ({"roi_test": 3}, "roi_test must come from"),
        ({"loss": 3}, "loss must be a function"),
    ],
)
def test_arguments_of_a_wrong_kind(options, text):
    with pytest.raises((InvalidInputError, InvalidTypeError), match=text):
        SelectiveInferenceTask(Classifier(), score(), **options)


class Squares:
    """A detector whose scores overflow where squares do."""

    def get_params(self, deep=True):
        return {}

    def fit(self, X):
        return self

    def decision_function(self, X):
        with np.errstate(over="ignore"):
            return np.square(X.astype(np.float32)).sum(1)


@pytest.mark.filterwarnings("ignore:.*were rejected because.*")
@pytest.mark.parametrize("batch", [1, 4, 30])
@pytest.mark.parametrize(
    "kind",
    [EuclideanScore(), GaussianScore(one_class=True), PyODScore(Squares())],
    ids=lambda s: type(s).__name__,
)
def test_finite_features_whose_score_overflows_are_rejected_and_counted(kind, batch):
    x, target = data(30)
    fitted = kind.fit(X=x[:15, 3:], Y=x[15:, 3:]).set_threshold(1.0)
    expected = fitted.select(x[:, 3:])
    x = x.clone()
    x[[3, 7], 4], x[5, 6] = 1e38, torch.nan
    bad = torch.tensor([3, 5, 7])
    with pytest.raises(InvalidInputError, match=r"overflow|infinite"):
        fitted.score(x[[3], 3:])
    task = SelectiveInferenceTask(Classifier(), fitted, acc_test_outputs=True)
    logged = run(task, x, target, batch)
    [outputs] = task.test_outputs
    good = torch.ones(30, dtype=torch.bool).index_fill(0, bad, False)
    assert logged["rejected/not_finite"] == 3
    assert torch.isinf(outputs["score"][bad]).all()
    assert not outputs["selected"][bad].any()
    assert torch.equal(outputs["selected"][good], expected["selected"][good])
    torch.testing.assert_close(outputs["score"][good], expected["score"][good])


def test_what_is_wrong_otherwise_still_ends_the_run():
    x, target = data(10)
    wrong = EuclideanScore().fit(X=torch.randn(20, 3)).set_threshold(0.9)
    with pytest.raises(InvalidInputError, match="4 features"):
        run(SelectiveInferenceTask(Classifier(), wrong), x, target)
