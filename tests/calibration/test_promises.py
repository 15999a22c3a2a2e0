"""What thresholds promise, over 500 calibrations each; the naive threshold fails the same test."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from selkit.calibration import (
    benjamini_hochberg,
    conformal_pvalues,
    conformal_threshold,
    quantile_threshold,
    risk_threshold,
)
from selkit.errors import NoGuaranteeError
from selkit.scores import EuclideanScore

REPEATS = 500
Risk = Callable[[np.ndarray], np.ndarray]


def mean_coverage(threshold: Callable[[np.ndarray], float], count: int) -> np.ndarray:
    """True coverage, for uniform scores, of each calibration."""
    rng = np.random.default_rng(0)
    return np.array([min(threshold(rng.uniform(size=count)), 1.0) for _ in range(REPEATS)])


def keeps_coverage(coverages: np.ndarray, coverage: float) -> bool:
    """Whether the mean is at least what was promised, within three standard errors."""
    return bool(coverages.mean() >= coverage - 3 * coverages.std() / math.sqrt(len(coverages)))


@pytest.mark.parametrize(("count", "coverage"), [(19, 0.9), (39, 0.8), (200, 0.95)])
def test_conformal_coverage(count: int, coverage: float) -> None:
    found = mean_coverage(lambda s: conformal_threshold(s, coverage), count)
    assert keeps_coverage(found, coverage)
    # and no more than it must: the coverage of each calibration is a Beta variable
    rank = math.ceil((count + 1) * coverage - 1e-9)
    assert stats.kstest(found, stats.beta(rank, count + 1 - rank).cdf).pvalue > 0.01


@pytest.mark.parametrize(("count", "coverage"), [(19, 0.9), (39, 0.8)])
def test_the_plain_quantile_does_not_keep_its_coverage(count: int, coverage: float) -> None:
    assert not keeps_coverage(mean_coverage(lambda s: quantile_threshold(s, coverage), count), coverage)


def test_conformal_coverage_of_a_fitted_score_and_of_groups() -> None:
    rng = np.random.default_rng(0)
    score = EuclideanScore(k=3).fit(X=rng.normal(size=(50, 2)))
    fresh = rng.normal(size=(4000, 2)) * np.where(np.arange(4000) % 2, 1.0, 2.0)[:, None]
    values, groups = score.score(fresh).numpy(), np.arange(4000) % 2
    covered: dict[str, list[np.ndarray]] = {"groups": [], "one": []}
    for _ in range(REPEATS):
        chosen = rng.choice(4000, 60, replace=False)
        rest = np.setdiff1d(np.arange(4000), chosen)
        own, mine = values[chosen], groups[chosen]
        limits = np.array([conformal_threshold(own[mine == g], 0.8) for g in (0, 1)])
        accepted = values[rest] <= limits[groups[rest]]
        covered["groups"].append([accepted[groups[rest] == g].mean() for g in (0, 1)])
        accepted = values[rest] <= conformal_threshold(own, 0.8)
        covered["one"].append([accepted[groups[rest] == g].mean() for g in (0, 1)])
    each = np.array(covered["groups"])
    assert keeps_coverage(each[:, 0], 0.8)
    assert keeps_coverage(each[:, 1], 0.8)
    together = np.array(covered["one"])
    assert keeps_coverage(together.mean(1), 0.8)
    assert not keeps_coverage(together[:, 0], 0.8)  # one threshold for all lets the harder group down


# the loss rate as a function of a uniform score: rising, flat near the limit, and low only in the middle
SHAPES: dict[str, Risk] = {
    "rising": lambda s: 0.25 * s**2,
    "flat": lambda s: 0.045 + 0.02 * (s > 0.7),
    "not monotone": lambda s: np.where(s < 0.2, 0.12, 0.02) + 0.3 * (s > 0.8),
}


def selective_risk(shape: Risk, threshold: float) -> float:
    """Mean loss below a threshold, by quadrature; nothing accepted has no risk."""
    if threshold <= 0:
        return 0.0
    return float(shape(np.linspace(0, min(threshold, 1.0), 2001)).mean())


def violations(
    threshold: Callable[[np.ndarray, np.ndarray], float], shape: Risk, risk: float, *, binary: bool
) -> tuple[float, float]:
    """How often the true risk is above what was promised, and the mean coverage."""
    rng = np.random.default_rng(0)
    found, covered = 0, 0.0
    for _ in range(REPEATS):
        scores = rng.uniform(size=1000)
        rate = shape(scores)
        losses = (rng.uniform(size=1000) < rate).astype(float) if binary else rng.beta(2 * rate, 2 - 2 * rate)
        limit = threshold(scores, losses)
        found += selective_risk(shape, limit) > risk
        covered += float(np.clip(limit, 0, 1))
    return found / REPEATS, covered / REPEATS


def plain(risk: float) -> Callable[[np.ndarray, np.ndarray], float]:
    """The largest threshold whose observed risk is at most the wanted one: what most people do."""

    def threshold(scores: np.ndarray, losses: np.ndarray) -> float:
        order = np.argsort(scores)
        observed = np.cumsum(losses[order]) / np.arange(1, len(losses) + 1)
        passed = np.flatnonzero(observed <= risk)
        return float(scores[order][passed[-1]]) if len(passed) else 0.0

    return threshold


def promised(risk: float, method: Any) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda s, losses: risk_threshold(s, losses, risk, method=method, otherwise="accept_nothing")


def keeps_risk(rate: float) -> bool:
    """Whether violations are at most 5 %, within the binomial error."""
    return bool(stats.binom.sf(round(rate * REPEATS) - 1, REPEATS, 0.05) > 0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("method", "binary"), [("ltt", True), ("sgr", True), ("ltt", False)])
def test_the_risk_is_kept_in_at_least_95_of_100_calibrations(shape: str, method: str, binary: bool) -> None:
    rate, coverage = violations(promised(0.05, method), SHAPES[shape], 0.05, binary=binary)
    assert rate <= 0.05
    naive, more = violations(plain(0.05), SHAPES[shape], 0.05, binary=binary)
    assert naive > 0.25
    assert not keeps_risk(naive)
    assert coverage < more
    if shape == "rising" and binary:
        assert coverage > 0.3  # of the 0.77 that keep the risk


def test_ltt_finds_at_least_the_coverage_of_sgr() -> None:
    for shape in SHAPES.values():
        _, ltt = violations(promised(0.08, "ltt"), shape, 0.08, binary=True)
        _, sgr = violations(promised(0.08, "sgr"), shape, 0.08, binary=True)
        assert ltt >= sgr


def test_confidence_is_a_knob() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=3000)
    losses = (rng.uniform(size=3000) < 0.2 * scores).astype(float)
    coverages = [risk_threshold(scores, losses, 0.06, confidence=c) for c in (0.5, 0.9, 0.99, 0.999)]
    assert coverages == sorted(coverages, reverse=True)
    assert coverages[0] > coverages[-1]
    with pytest.raises(NoGuaranteeError):
        risk_threshold(scores, losses, 0.001)


def test_the_false_discovery_rate_stays_below_its_level() -> None:
    rng = np.random.default_rng(0)
    false: dict[str, list[float]] = {"bh": [], "each": [], "training": []}
    found = 0.0
    for _ in range(REPEATS):
        reference, calibration = rng.normal(size=(100, 2)), rng.normal(size=(200, 2))
        score = EuclideanScore(k=1).fit(X=reference, Y=calibration)
        batch = np.concatenate([rng.normal(size=(80, 2)), rng.normal(size=(20, 2)) + 4])
        flagged = score.flag(batch, fdr=0.2)
        chosen = flagged["flagged"].numpy()
        found += chosen[80:].mean() / REPEATS
        false["bh"].append(chosen[:80].sum() / max(chosen.sum(), 1))
        every = flagged["pvalue"].numpy() <= 0.2  # each p-value on its own
        false["each"].append(every[:80].sum() / max(every.sum(), 1))
        training = conformal_pvalues(np.zeros(100), score.score(batch))  # references judge themselves
        over = benjamini_hochberg(training, 0.2)
        false["training"].append(over[:80].sum() / max(over.sum(), 1))
    error = 3 * np.std(false["bh"]) / math.sqrt(REPEATS)
    assert np.mean(false["bh"]) <= 0.2 * 0.8 + error  # the level times the fraction of inliers
    assert found > 0.7
    assert np.mean(false["each"]) > 0.3
    assert np.mean(false["training"]) > 0.7


def test_pvalues_of_new_samples_are_uniform() -> None:
    rng = np.random.default_rng(0)
    found = np.array([conformal_pvalues(rng.normal(size=99), rng.normal(size=1))[0] for _ in range(3000)])
    for level in (0.01, 0.05, 0.1, 0.5):
        assert abs((found <= level + 1e-12).mean() - level) < 3 * math.sqrt(level * (1 - level) / 3000)
