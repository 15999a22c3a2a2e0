"""Metrics by selection, against scikit-learn on the rows of each subset."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.retrieval import RetrievalMRR
from torchmetrics.segmentation import DiceScore
from torchmetrics.wrappers import ClasswiseWrapper, MinMaxMetric

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import SelectiveMetric, dice_loss

SCOPES = ("full", "selected", "rejected")


def labels(n=120, classes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (n,), generator=draw)
    preds = torch.where(
        torch.rand(n, generator=draw) < 0.7, target, torch.randint(0, classes, (n,), generator=draw)
    )
    return preds, target, torch.rand(n, generator=draw) < 0.6


def fill(metric, *columns, batch=25):
    for rows in torch.arange(len(columns[0])).split(batch):
        metric.update(*(column[rows] for column in columns))
    return metric


def rows_of(selected):
    return {"full": torch.ones_like(selected), "selected": selected, "rejected": ~selected}


def test_every_scope_is_the_metric_of_its_rows():
    preds, target, selected = labels()
    base = MetricCollection([MulticlassAccuracy(3, average="micro"), MulticlassF1Score(3, average="macro")])
    values = fill(SelectiveMetric(base), preds, target, selected).compute()
    for scope, rows in rows_of(selected).items():
        assert float(values[f"{scope}/MulticlassAccuracy"]) == pytest.approx(
            accuracy_score(target[rows], preds[rows])
        )
        assert float(values[f"{scope}/MulticlassF1Score"]) == pytest.approx(
            f1_score(target[rows], preds[rows], average="macro")
        )
        assert float(values[f"{scope}/count"]) == int(rows.sum())
    assert len(values) == 9


def test_metrics_that_keep_rows_and_matrices():
    preds, target, selected = labels()
    draw = torch.Generator().manual_seed(1)
    probability, truth = torch.rand(120, generator=draw), target.clamp(max=1)
    values = fill(SelectiveMetric(BinaryAUROC()), probability, truth, selected).compute()
    matrix = fill(SelectiveMetric(MulticlassConfusionMatrix(3)), preds, target, selected).compute()
    for scope, rows in rows_of(selected).items():
        assert float(values[f"{scope}/BinaryAUROC"]) == pytest.approx(
            roc_auc_score(truth[rows], probability[rows])
        )
        expected = torch.tensor(confusion_matrix(target[rows], preds[rows]))
        assert torch.equal(matrix[f"{scope}/MulticlassConfusionMatrix"], expected)


@pytest.mark.filterwarnings("ignore:.*defaults to `average=micro`.*")
def test_masks_are_selected_along_the_batch():
    draw = torch.Generator().manual_seed(0)
    preds = (torch.rand(9, 1, 8, 8, generator=draw) < 0.5).long()
    target = (torch.rand(9, 1, 8, 8, generator=draw) < 0.5).long()
    selected = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1, 1])
    metric = SelectiveMetric(DiceScore(num_classes=1, average="micro", aggregation_level="samplewise"))
    values = fill(metric, preds, target, selected, batch=4).compute()
    losses = dice_loss(preds, target)
    for scope, rows in rows_of(selected.bool()).items():
        assert float(values[f"{scope}/DiceScore"]) == pytest.approx(float(1 - losses[rows].mean()))


def test_an_empty_subset_is_nan_with_its_count_not_zero():
    preds, target, _ = labels()
    base = MetricCollection([MulticlassAccuracy(3), MulticlassConfusionMatrix(3)])
    values = fill(SelectiveMetric(base), preds, target, torch.ones(120).bool()).compute()
    assert float(values["rejected/count"]) == 0.0
    assert bool(values["rejected/MulticlassAccuracy"].isnan())
    assert values["rejected/MulticlassConfusionMatrix"].shape == (3, 3)
    assert bool(values["rejected/MulticlassConfusionMatrix"].isnan().all())
    assert torch.equal(values["selected/MulticlassAccuracy"], values["full/MulticlassAccuracy"])


@pytest.mark.filterwarnings("ignore:.*called before the ``update`` method.*")
def test_no_samples_at_all_and_empty_batches():
    metric = SelectiveMetric(BinaryAccuracy())
    metric.update(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0).bool())
    values = metric.compute()
    assert set(values) == {f"{scope}/{name}" for scope in SCOPES for name in ("BinaryAccuracy", "count")}
    assert all(bool(values[f"{scope}/BinaryAccuracy"].isnan()) for scope in SCOPES)


def test_metrics_that_look_alike_on_a_small_subset_are_not_merged():
    """torchmetrics shares states of metrics that agree after the first update; one sample makes all agree."""
    base = MetricCollection({"low": BinaryAccuracy(threshold=0.5), "high": BinaryAccuracy(threshold=0.7)})
    probability, target = torch.tensor([0.9, 0.6, 0.6]), torch.tensor([1, 1, 1])
    selected = torch.tensor([True, True, True])
    shared, mine = copy.deepcopy(base), SelectiveMetric(base)
    for rows in (slice(0, 1), slice(1, 3)):
        shared.update(probability[rows], target[rows])
        mine.update(probability[rows], target[rows], selected[rows])
    assert float(shared.compute()["low"]) == pytest.approx(1 / 3)  # wrong: that is the value of "high"
    assert float(mine.compute()["selected/low"]) == 1.0
    assert float(mine.compute()["selected/high"]) == pytest.approx(1 / 3)


def test_logits_are_not_guessed_by_batch():
    """A subset of logits that all lie in [0, 1] would be taken for probabilities, unlike the full batch."""
    logits, target = torch.tensor([4.0, 0.3, 0.4]), torch.tensor([1, 1, 1])
    selected = torch.tensor([False, True, True])
    plain = BinaryAccuracy()
    assert float(plain(logits, target)) == 1.0
    assert float(plain(logits[selected], target[selected])) == 0.0  # the same rows, another verdict
    with pytest.raises(InvalidInputError, match=r"logits, and torchmetrics' BinaryAccuracy would guess"):
        SelectiveMetric(plain).update(logits, target, selected)
    metric = SelectiveMetric(plain, activation="sigmoid")
    metric.update(logits, target, selected)
    assert float(metric.compute()["selected/BinaryAccuracy"]) == 1.0


def test_logits_are_found_inside_wrappers_and_subclasses():
    class Own(BinaryAccuracy):
        pass

    logits, target, selected = torch.tensor([4.0, 0.3]), torch.tensor([1, 1]), torch.tensor([True, False])
    for base in (Own(), MinMaxMetric(BinaryAccuracy()), BinaryAccuracy() + BinaryAccuracy()):
        with pytest.raises(InvalidInputError, match="would guess"):
            SelectiveMetric(base).update(logits, target, selected)


def test_wrapped_metrics_keep_their_names():
    preds, target, selected = labels()
    base = MetricCollection([ClasswiseWrapper(MulticlassAccuracy(3, average=None)), MulticlassF1Score(3)])
    values = fill(SelectiveMetric(base), preds, target, selected).compute()
    rows = selected & (target == 2)
    assert float(values["selected/multiclassaccuracy_2"]) == pytest.approx(
        accuracy_score(target[rows], preds[rows])
    )
    nothing = fill(SelectiveMetric(base), preds, target, torch.zeros(120).bool()).compute()
    assert nothing.keys() == values.keys()
    assert bool(nothing["selected/multiclassaccuracy_2"].isnan())


def test_class_scores_need_an_activation_only_where_it_matters():
    scores, target = torch.randn(20, 3) * 3, torch.arange(20) % 3
    selected = torch.arange(20) < 10
    accuracy = SelectiveMetric(MulticlassAccuracy(3, average="micro"))
    accuracy.update(scores, target, selected)
    expected = accuracy_score(target[:10], scores[:10].argmax(1))
    assert float(accuracy.compute()["selected/MulticlassAccuracy"]) == pytest.approx(expected)
    with pytest.raises(InvalidInputError, match="MulticlassAUROC would guess"):
        SelectiveMetric(MulticlassAUROC(3)).update(scores, target, selected)
    area = SelectiveMetric(MulticlassAUROC(3), activation="softmax")
    area.update(scores, target, selected)
    by_hand = roc_auc_score(target[:10], scores[:10].softmax(1), multi_class="ovr")
    assert float(area.compute()["selected/MulticlassAUROC"]) == pytest.approx(by_hand)
    own = SelectiveMetric(BinaryAccuracy(), activation=lambda logits: logits[:, 0].sigmoid())
    own.update(scores, target.clamp(max=1), selected)
    assert float(own.compute()["full/count"]) == 20
    with pytest.raises(InvalidInputError, match="activation must be one of"):
        SelectiveMetric(BinaryAccuracy(), activation="relu")


def test_further_arguments_by_name_lists_and_settings():
    preds, target = torch.tensor([0.2, 0.9, 0.4, 0.6]), torch.tensor([1, 0, 1, 0])
    indexes, selected = torch.tensor([0, 0, 1, 1]), torch.tensor([False, False, True, True])
    metric = SelectiveMetric(RetrievalMRR())
    metric.update(preds, target, indexes=indexes, selected=selected)
    assert float(metric.compute()["selected/RetrievalMRR"]) == 0.5

    class Lengths(Metric):
        def __init__(self):
            super().__init__()
            self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

        def update(self, words, weight):
            self.total += weight * sum(map(len, words))

        def compute(self):
            return self.total

    metric = SelectiveMetric(Lengths())
    metric.update(["a", "bb", "ccc"], 2, selected=[1, 0, 1])
    assert [float(metric.compute()[f"{scope}/Lengths"]) for scope in SCOPES] == [12, 8, 4]


def test_inner_metrics_are_submodules():
    preds, target, selected = labels()
    metric = fill(SelectiveMetric(MulticlassAccuracy(3)), preds, target, selected)
    inside = {
        name.split(".")[0]
        for name, module in metric.named_modules()
        if isinstance(module, MulticlassAccuracy)
    }
    assert inside == set(SCOPES)
    moved = copy.deepcopy(metric).to("meta")
    assert {moved.full["MulticlassAccuracy"].tp.device.type, moved.count.device.type} == {"meta"}
    assert not metric.state_dict()
    metric.persistent(True)
    other = SelectiveMetric(MulticlassAccuracy(3))
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert other.count.tolist() == metric.count.tolist()
    assert torch.equal(other.rejected["MulticlassAccuracy"].tp, metric.rejected["MulticlassAccuracy"].tp)


def test_the_given_metric_is_left_alone_and_reset_forgets():
    preds, target, selected = labels()
    base = MulticlassAccuracy(3, average="micro")
    base.update(preds, target)
    before = base.compute()
    metric = fill(SelectiveMetric(base), preds, target, selected)
    assert int(metric.compute()["full/count"]) == 120
    metric.reset()
    fill(metric, preds[:10], target[:10], selected[:10])
    assert float(metric.compute()["full/MulticlassAccuracy"]) == pytest.approx(
        accuracy_score(target[:10], preds[:10])
    )
    assert float(metric.compute()["full/count"]) == 10
    assert base.compute() == before


def test_forward_gives_the_batch_and_keeps_the_rest():
    preds, target, selected = labels()
    metric = SelectiveMetric(MulticlassAccuracy(3, average="micro"))
    metric.update(preds[:60], target[:60], selected[:60])
    batch = metric(preds[60:], target[60:], selected[60:])
    assert float(batch["full/count"]) == 60
    assert float(batch["full/MulticlassAccuracy"]) == pytest.approx(accuracy_score(target[60:], preds[60:]))
    assert float(metric.compute()["full/MulticlassAccuracy"]) == pytest.approx(accuracy_score(target, preds))


def test_names_keep_their_prefix():
    metric = SelectiveMetric(MetricCollection([BinaryAccuracy()], prefix="test_", postfix="_1"))
    metric.update(torch.tensor([1]), torch.tensor([1]), torch.tensor([True]))
    assert "selected/test_BinaryAccuracy_1" in metric.compute()
    assert "rejected/test_BinaryAccuracy_1" in metric.compute()


def test_validation_runs_once_on_the_full_batch():
    metric = SelectiveMetric(BinaryAccuracy())
    assert metric.full["BinaryAccuracy"].validate_args
    assert not metric.selected["BinaryAccuracy"].validate_args
    with pytest.raises(InvalidInputError, match="Detected the following values in `target`"):
        metric.update(torch.tensor([0, 1]), torch.tensor([0, 7]), torch.tensor([True, False]))


@pytest.mark.parametrize(
    ("selected", "error", "text"),
    [
        (torch.tensor([0.2, 1.0]), InvalidInputError, "pass score <= threshold"),
        (torch.tensor([True]), InvalidInputError, "argument 0 has 2 rows, but selected has 1"),
        (torch.ones(2, 2).bool(), InvalidInputError, r"shape \(B,\); got \(2, 2\)"),
    ],
)
def test_bad_selections_are_refused(selected, error, text):
    with pytest.raises(error, match=text):
        SelectiveMetric(BinaryAccuracy()).update(torch.tensor([0, 1]), torch.tensor([0, 1]), selected)


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidTypeError, match="must be a torchmetrics Metric"):
        SelectiveMetric(accuracy_score)
    with pytest.raises(InvalidTypeError, match="which rows were accepted"):
        SelectiveMetric(BinaryAccuracy()).update()
    with pytest.raises(InvalidInputError, match="argument 1 has 3 entries"):
        SelectiveMetric(BinaryAccuracy()).update(torch.zeros(2), ["a", "b", "c"], selected=torch.ones(2))


@pytest.mark.parametrize("base", [BinaryAccuracy(), MetricCollection([BinaryAccuracy(), BinaryAUROC()])])
def test_a_scope_with_nothing_but_nan_is_nan_not_zero(base):
    metric = SelectiveMetric(base)
    metric.update(
        torch.tensor([0.9, torch.nan, 0.2, torch.nan]),
        torch.tensor([1, 1, 1, 0]),
        torch.tensor([True, False, True, False]),
    )
    found = metric.compute()
    assert found["selected/BinaryAccuracy"] == found["full/BinaryAccuracy"] == 0.5
    assert found["rejected/count"] == 2
    assert found["rejected/BinaryAccuracy"].isnan()
    metric.reset()
    metric.update(torch.full((2,), torch.nan), torch.tensor([1, 0]), torch.tensor([True, True]))
    assert all(value.isnan() for name, value in metric.compute().items() if "count" not in name)


def test_a_scope_whose_targets_are_all_ignored_is_nan_not_zero():
    preds = torch.eye(3)[[0, 1, 2, 0]]
    metric = SelectiveMetric(MulticlassAccuracy(3, ignore_index=-100, average="micro"))
    metric.update(preds, torch.tensor([0, -100, 1, -100]), torch.tensor([True, False, True, False]))
    found = metric.compute()
    assert found["selected/MulticlassAccuracy"] == 0.5
    assert found["rejected/MulticlassAccuracy"].isnan()
    pixels = SelectiveMetric(MulticlassAccuracy(2, ignore_index=255, average="micro"))
    maps, target = torch.zeros(3, 2, 4, 4), torch.full((3, 4, 4), 255)
    target[0, 0, 0], target[1, 1, 1] = 0, 1
    pixels.update(maps, target, torch.tensor([True, True, False]))
    found = pixels.compute()
    assert found["full/MulticlassAccuracy"] == found["selected/MulticlassAccuracy"] == 0.5
    assert found["rejected/MulticlassAccuracy"].isnan()
