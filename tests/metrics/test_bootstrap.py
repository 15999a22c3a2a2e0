"""The bootstrap sorts once; each replicate must equal the curve of the samples that it drew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import bootstrap_risk_coverage, risk_coverage
from selkit.metrics.bootstrap import _interval, _weighted_curve
from selkit.metrics.summary import summarize

POINTS = ([0.5, 0.9], [0.1, 0.3])


def samples(n, seed, ties=False):
    draw = np.random.default_rng(seed)
    score = draw.random(n)
    loss = (draw.random(n) < score**2).astype(float)
    return torch.tensor(np.round(score, 1) if ties else score), torch.tensor(loss)


@pytest.mark.parametrize("ties", [False, True])
def test_a_replicate_is_the_curve_of_the_drawn_samples(ties):
    score, loss = samples(60, 0, ties)
    loss, order = loss.sort()
    score, by_score = score[order].sort(stable=True)
    unsorted = torch.empty_like(score)
    unsorted[by_score] = score
    for seed in range(5):
        drawn = torch.randint(60, (60,), generator=torch.Generator().manual_seed(seed))
        times = torch.bincount(drawn, minlength=60)
        mine = summarize(_weighted_curve(score, loss, by_score, times), *POINTS)
        plain = summarize(risk_coverage(unsorted[drawn], loss[drawn]), *POINTS)
        for name, value in plain.items():
            assert float(mine[name]) == pytest.approx(float(value), abs=1e-12), name


def test_intervals_cover_the_true_area():
    """With P(error | s) = s^2 and s uniform, the risk at coverage c is c^2 / 3, so AURC is 1/9."""
    inside, narrow = 0, 0
    for seed in range(60):
        score, loss = samples(200, seed)
        bounds = bootstrap_risk_coverage(score, loss, n_boot=60, confidence=0.9, seed=seed)
        inside += bool(bounds["aurc_lower"] <= 1 / 9 <= bounds["aurc_upper"])
        middle, half = (
            (bounds["aurc_lower"] + bounds["aurc_upper"]) / 2,
            (bounds["aurc_upper"] - bounds["aurc_lower"]),
        )
        narrow += bool((middle - 1 / 9).abs() <= half / 6)
    assert inside >= 54 - 3 * 2.3  # three binomial standard deviations; such intervals are slightly short
    assert narrow < 54 - 3 * 2.3  # a third of the width does not pass


def test_order_of_rows_changes_no_bound():
    score, loss = samples(100, 2, ties=True)
    order = torch.randperm(100)
    first = bootstrap_risk_coverage(score, loss, n_boot=20)
    assert first == bootstrap_risk_coverage(score[order], loss[order], n_boot=20)


def test_same_seed_same_bounds_and_wider_with_more_confidence():
    score, loss = samples(100, 1)
    first = bootstrap_risk_coverage(score, loss, n_boot=50, seed=4)
    assert first == bootstrap_risk_coverage(score.numpy(), loss.numpy(), n_boot=50, seed=4)
    assert first != bootstrap_risk_coverage(score, loss, n_boot=50, seed=5)
    short = bootstrap_risk_coverage(score, loss, n_boot=50, seed=4, confidence=0.5)
    assert short["aurc_lower"] > first["aurc_lower"]
    assert short["augrc_upper"] < first["augrc_upper"]


@pytest.mark.parametrize(
    "bad", [{"n_boot": 0}, {"confidence": 1.0}, {"coverage": [0.0]}, {"at_risk": [np.nan]}]
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(InvalidInputError, match=next(iter(bad))):
        bootstrap_risk_coverage(torch.rand(3), torch.rand(3), **bad)


def test_no_samples_are_refused():
    with pytest.raises(InvalidInputError, match="at least one sample"):
        bootstrap_risk_coverage(torch.zeros(0), torch.zeros(0))


def areas(losses):
    """AURC of losses in order of the score, on the last axis."""
    return (losses.cumsum(-1) / np.arange(1, losses.shape[-1] + 1)).mean(-1)


def test_intervals_of_few_samples_cover_as_often_as_they_say():
    """50 samples, few failures: P(error | s) = 0.4 s^3, so AURC is 0.4 / 16; percentiles are too short."""
    repeats, inside, plain = 600, 0, 0
    draw = np.random.default_rng(5)
    for _ in range(repeats):
        score = np.sort(draw.random(50))
        loss = (draw.random(50) < 0.4 * score**3).astype(float)
        again = areas(loss[np.sort(draw.integers(0, 50, (399, 50)), 1)])
        left = [torch.tensor(areas(np.delete(loss, i))) for i in range(50)]
        low, high = _interval(torch.tensor(again), torch.tensor(areas(loss)), left, (0.95, 50)).tolist()
        inside += low <= 0.025 <= high
        low, high = np.quantile(again, [0.025, 0.975])
        plain += low <= 0.025 <= high
    error = (0.95 * 0.05 * repeats) ** 0.5
    assert inside >= 0.95 * repeats - 3 * error
    assert plain < 0.95 * repeats - 3 * error  # the naive interval does not pass


def test_acceleration_and_bias_are_those_of_scipy():
    """Without the small-sample levels the interval is scipy's BCa of the same replicates' distribution."""
    draw = np.random.default_rng(3)
    values, left = torch.tensor(draw.gamma(2.0, size=4000)), torch.tensor(draw.gamma(2.0, size=40))
    whole, confidence = torch.tensor(1.9, dtype=torch.float64), 0.9
    z0 = stats.norm.ppf(float((values < whole).double().mean()))
    away = (left.mean() - left).numpy()
    a = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    reach = np.sqrt(40 / 39) * stats.t.ppf(0.95, 39)
    levels = [stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in (-reach, reach)]
    found = _interval(values, whole, list(left), (confidence, 40))
    np.testing.assert_allclose(found, np.quantile(values.numpy(), levels), rtol=1e-10)


@pytest.mark.parametrize(
    "bad",
    [
        {"n_boot": "many"},
        {"n_boot": 2.5},
        {"n_boot": 10**30},
        {"n_boot": None},
        {"confidence": "high"},
        {"confidence": np.nan},
        {"confidence": None},
        {"seed": "x"},
        {"seed": -1},
        {"seed": 10**30},
        {"coverage": "0.5"},
        {"coverage": 0.5},
        {"coverage": [None]},
        {"coverage": ["a"]},
        {"at_risk": [np.inf]},
        {"at_risk": [10**400]},
        {"at_risk": [True]},
    ],
    ids=str,
)
def test_arguments_of_any_kind_are_refused_in_words(bad):
    with pytest.raises((InvalidInputError, InvalidTypeError), match=next(iter(bad))):
        bootstrap_risk_coverage(torch.rand(3), torch.rand(3), **bad)
