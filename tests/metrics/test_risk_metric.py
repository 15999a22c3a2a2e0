"""The metric keeps state; its numbers are those of the functions."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.regression import MeanSquaredError

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import RiskCoverageMetric, absolute_error, bootstrap_risk_coverage, risk_coverage


def samples(n=200, seed=0):
    draw = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 30, (n,), generator=draw).float()
    return score, (torch.rand(n, generator=draw) < score / 40).float()


def fill(metric, score, loss, batch=32):
    for rows in torch.arange(len(score)).split(batch):
        metric.update(score[rows], loss[rows])
    return metric


def test_compute_is_that_of_all_samples():
    score, loss = samples()
    curve = risk_coverage(score, loss)
    values = fill(RiskCoverageMetric(coverage=[0.5, 0.9], at_risk=[0.25]), score, loss).compute()
    expected = {
        "rc/aurc": curve.aurc,
        "rc/excess_aurc": curve.excess_aurc,
        "rc/augrc": curve.augrc,
        "rc/excess_augrc": curve.excess_augrc,
        "rc/risk_at_coverage_0.5": curve.risk_at_coverage(0.5),
        "rc/risk_at_coverage_0.9": curve.risk_at_coverage(0.9),
        "rc/coverage_at_risk_0.25": curve.coverage_at_risk(0.25),
        "rc/count": torch.tensor(200.0).double(),
    }
    assert values == expected


def test_batches_of_any_size_change_nothing_and_leave_a_short_list():
    score, loss = samples(3000)
    whole = fill(RiskCoverageMetric(), score, loss, batch=3000)
    single = fill(RiskCoverageMetric(), score, loss, batch=1)
    assert single.compute() == whole.compute()
    assert len(single.score) < 1100


def test_a_batch_is_kept_as_it_was():
    metric, score, loss = RiskCoverageMetric(), *samples()
    before = fill(RiskCoverageMetric(), score, loss).compute()
    metric.update(score, loss)
    score.zero_()
    loss.zero_()
    assert metric.compute() == before


def test_predictions_and_targets_are_taken_as_seapig_takes_them():
    draw = torch.Generator().manual_seed(2)
    preds, target = torch.randint(0, 3, (50,), generator=draw), torch.randint(0, 3, (50,), generator=draw)
    scores = torch.rand(50, generator=draw)
    metric = RiskCoverageMetric()
    metric.update(preds, target, scores)
    by_name = RiskCoverageMetric()
    by_name.update(preds=preds, target=target, scores=scores)
    plain = RiskCoverageMetric()
    plain.update(scores, preds != target)
    assert metric.compute() == by_name.compute() == plain.compute()
    regression = RiskCoverageMetric(loss=absolute_error)
    regression.update(preds.float(), target.float(), scores)
    expected = risk_coverage(scores, (preds - target).abs().float()).aurc
    assert regression.compute()["rc/aurc"] == expected


@pytest.mark.parametrize(
    ("positional", "named"),
    [(1, []), (4, []), (2, ["loss"]), (1, ["scores"]), (0, ["preds", "target"])],
)
def test_other_arguments_are_refused(positional, named):
    with pytest.raises(InvalidTypeError, match="update takes"):
        RiskCoverageMetric().update(*[torch.zeros(2)] * positional, **dict.fromkeys(named, torch.zeros(2)))


def test_bad_values_are_refused():
    metric = RiskCoverageMetric()
    with pytest.raises(InvalidInputError, match="got 2 scores and 3 losses"):
        metric.update(torch.zeros(2), torch.zeros(3))
    with pytest.raises(InvalidInputError, match=r"score must be one number per sample.*\(2, 2\)"):
        metric.update(torch.zeros(2, 2), torch.zeros(2))
    metric.update(torch.tensor([math.nan]), torch.tensor([0.0]))
    with pytest.raises(InvalidInputError, match="1 of 1 scores are NaN"):
        metric.compute()
    for bad in ({"n_boot": -1}, {"confidence": 0.0}, {"coverage": [2.0]}, {"at_risk": [math.inf]}):
        with pytest.raises(InvalidInputError, match=next(iter(bad))):
            RiskCoverageMetric(**bad)
    with pytest.raises(InvalidTypeError, match="loss must be a function"):
        RiskCoverageMetric(loss="dice")


@pytest.mark.filterwarnings("ignore:.*called before the ``update`` method.*")
def test_no_samples_are_nan_with_their_count():
    values = RiskCoverageMetric(coverage=[0.5]).compute()
    assert float(values.pop("rc/count")) == 0.0
    assert len(values) == 5
    assert all(bool(value.isnan()) for value in values.values())
    assert RiskCoverageMetric().get_curve() is None
    with pytest.raises(InvalidInputError, match="nothing to plot"):
        RiskCoverageMetric().plot()


def test_the_bootstrap_is_that_of_the_function():
    score, loss = samples(80)
    values = fill(RiskCoverageMetric(n_boot=20, confidence=0.8, seed=3, prefix=""), score, loss).compute()
    expected = bootstrap_risk_coverage(score, loss, n_boot=20, confidence=0.8, seed=3)
    assert {name: values[name] for name in expected} == expected


def test_curve_and_plot_show_what_compute_returns():
    score, loss = samples()
    metric = fill(RiskCoverageMetric(risk="generalized"), score, loss)
    assert metric.get_curve().augrc == metric.compute()["rc/augrc"]
    labels = [text.get_text() for text in metric.plot(digits=8).axes[0].get_legend().get_texts()]
    assert f"empirical: {float(metric.compute()['rc/augrc']):.8f}" in labels
    metric.update(torch.tensor([0.0]), torch.tensor([9.0]))
    assert metric.get_curve().n == 201


def test_reset_forgets():
    metric = fill(RiskCoverageMetric(), *samples())
    metric.compute()
    metric.reset()
    score, loss = samples(seed=5)
    assert fill(metric, score, loss).get_curve().aurc == risk_coverage(score, loss).aurc


def test_state_is_saved_and_a_collection_holds_it():
    score, loss = samples()
    metric = fill(RiskCoverageMetric(), score, loss)
    metric.persistent(True)
    other = RiskCoverageMetric()
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics does not see that the state came from a file
        assert other.compute() == metric.compute()
    collection = MetricCollection({"mse": MeanSquaredError(), "rc": RiskCoverageMetric()})
    collection["rc"].update(score, loss)
    collection["mse"].update(score, loss)
    assert collection.compute()["rc/aurc"] == metric.compute()["rc/aurc"]


def test_binned_state_keeps_its_dtypes_under_half():
    metric = RiskCoverageMetric(bins=1024).set_dtype(torch.float16).half()
    metric.update(torch.tensor([0.1, 0.3]), torch.tensor([0.0, 1.0]))
    assert metric.score_loss.dtype == torch.float64
    assert float(metric.compute()["rc/aurc"]) == 0.25


def test_forward_gives_the_batch_and_keeps_the_rest():
    score, loss = samples()
    metric = RiskCoverageMetric()
    metric.update(score[:100], loss[:100])
    batch = metric(score[100:], loss[100:])
    assert batch["rc/aurc"] == risk_coverage(score[100:], loss[100:]).aurc
    assert metric.compute()["rc/aurc"] == risk_coverage(score, loss).aurc
