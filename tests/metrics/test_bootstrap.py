"""The bootstrap sorts once; each replicate must equal the curve of the samples that it drew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selkit.errors import InvalidInputError
from selkit.metrics import bootstrap_risk_coverage, risk_coverage
from selkit.metrics.bootstrap import _weighted_curve
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
