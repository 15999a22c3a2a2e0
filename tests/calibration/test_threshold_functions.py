from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selkit.calibration import (
    benjamini_hochberg,
    binomial_pvalue,
    conformal_pvalues,
    conformal_threshold,
    cross_val_scores,
    hoeffding_bentkus_pvalue,
    quantile_threshold,
    risk_threshold,
)
from selkit.errors import InvalidInputError, InvalidTypeError, NoGuaranteeError
from selkit.metrics import DiscoveryMetric, RiskCoverageMetric
from selkit.scores import EuclideanScore

VALUES = st.lists(
    st.sampled_from([0.0, 1.0, 2.0, 3.5, -1.0, math.inf]) | st.floats(-5, 5), min_size=1, max_size=40
)


@given(VALUES, st.floats(0.01, 0.99))
def test_the_conformal_threshold_is_the_smallest_that_counts_enough(
    values: list[float], coverage: float
) -> None:
    found = conformal_threshold(np.array(values), coverage, otherwise="accept_all")
    wanted = (len(values) + 1) * coverage - 1e-9
    allowed = sorted(
        v for v in {*values, math.inf} if sum(s <= v for s in values) + (v == math.inf) >= wanted
    )
    assert found == allowed[0]


@pytest.mark.parametrize(
    ("count", "coverage", "rank"), [(9, 0.9, 9), (99, 0.9, 90), (19, 0.95, 19), (10, 0.5, 6)]
)
def test_ranks_of_round_numbers(count: int, coverage: float, rank: int) -> None:
    assert conformal_threshold(np.arange(1.0, count + 1), coverage) == rank
    with pytest.raises(NoGuaranteeError, match="needs at least 9 calibration scores; got 8"):
        conformal_threshold(np.arange(8.0), 0.9)


@given(VALUES, VALUES)
def test_pvalues_count(calibration: list[float], scores: list[float]) -> None:
    found = conformal_pvalues(np.array(calibration), torch.tensor(scores))
    values = torch.tensor(scores).double().numpy()  # as the function sees them
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in values]
    np.testing.assert_allclose(found, expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_benjamini_hochberg_is_that_of_scipy(pvalues: list[float], fdr: float) -> None:
    adjusted = stats.false_discovery_control(pvalues)
    near = np.isclose(adjusted, fdr, rtol=1e-9)
    assert ((benjamini_hochberg(np.array(pvalues), fdr) == (adjusted <= fdr)) | near).all()


def test_the_binomial_pvalue_inverts_clopper_pearson() -> None:
    for errors, count in ((0, 60), (3, 100), (40, 500)):
        upper = stats.binomtest(errors, count).proportion_ci(0.9, "exact").high  # one-sided 0.95
        assert binomial_pvalue(errors / count, count, upper) == pytest.approx(0.05, rel=1e-6)
    assert binomial_pvalue([0.0, 0.5], [0, 4], 0.1)[0] == 1


@pytest.mark.parametrize("risk", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["binary", "beta", "atoms"])
def test_hoeffding_bentkus_is_a_pvalue(risk: float, kind: str) -> None:
    rng = np.random.default_rng(0)
    count, repeats = 300, 5000
    if kind == "binary":
        means = rng.binomial(count, risk, repeats) / count
    elif kind == "beta":
        means = rng.beta(2 * risk, 2 * (1 - risk), (repeats, count)).mean(1)
    else:
        means = rng.choice([0.0, min(1.0, 2 * risk)], (repeats, count)).mean(1)
    found = hoeffding_bentkus_pvalue(means, count, risk)
    for level in (0.01, 0.05, 0.2):
        assert (found <= level).mean() <= level + 3 * math.sqrt(level / repeats)
    assert kind == "atoms" or (found <= 0.4).any()


def test_hoeffding_bentkus_against_the_formula() -> None:
    mean, count, risk = 0.03, 200, 0.1
    entropy = mean * math.log(mean / risk) + (1 - mean) * math.log((1 - mean) / (1 - risk))
    bentkus = math.e * stats.binom.cdf(math.ceil(count * mean), count, risk)
    expected = min(math.exp(-count * entropy), bentkus)
    assert hoeffding_bentkus_pvalue(mean, count, risk) == pytest.approx(expected)
    assert hoeffding_bentkus_pvalue(0.5, 10, 0.1) == 1
    assert hoeffding_bentkus_pvalue(0.0, 0, 0.1) == 1


@pytest.mark.parametrize("method", ["ltt", "sgr"])
def test_risk_thresholds_do_not_depend_on_the_order_of_rows(method: Any) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 30, 800).astype(float)  # many ties
    losses = (rng.uniform(size=800) < scores / 150).astype(float)
    found = risk_threshold(scores, losses, 0.12, method=method)
    for _ in range(5):
        order = rng.permutation(800)
        assert risk_threshold(scores[order], losses[order], 0.12, method=method) == found
    assert 0 < found < 30


def test_a_risk_threshold_keeps_the_bound_on_what_it_was_tested_on() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=2000)
    losses = np.clip(scores / 4 + 0.1 * rng.normal(size=2000), 0, 1)
    for risk in (0.05, 0.08, 0.12):
        limit = risk_threshold(scores, losses, risk)
        assert losses[scores <= limit].mean() < risk
        assert losses[scores <= limit].mean() > risk / 2
    assert risk_threshold(scores, losses * 0, 0.05) == math.inf
    with pytest.raises(InvalidInputError, match="'sgr' needs losses that are 0 or 1"):
        risk_threshold(scores, losses, 0.1, method="sgr")


@pytest.mark.parametrize("method", ["ltt", "sgr"])
def test_nothing_is_promised_without_evidence(method: Any) -> None:
    for scores, losses in ((np.arange(50.0), np.zeros(50)), (np.ones(400), np.ones(400)), ([0.0], [0.0])):
        needed = {"ltt": 90, "sgr": 197}[method]
        with pytest.raises(
            NoGuaranteeError, match=rf"no threshold can promise .* {needed} samples are needed"
        ):
            risk_threshold(np.array(scores), np.array(losses), 0.05, method=method)
        found = risk_threshold(
            np.array(scores), np.array(losses), 0.05, method=method, otherwise="accept_nothing"
        )
        assert found == -math.inf


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (
            lambda: quantile_threshold(np.array([]), 0.5),
            InvalidInputError,
            r"scores must be one number per sample",
        ),
        (
            lambda: quantile_threshold(np.array([np.nan]), 0.5),
            InvalidInputError,
            "scores has NaN values: 1 of 1",
        ),
        (lambda: quantile_threshold(np.ones((2, 2)), 0.5), InvalidInputError, r"got \(2, 2\)"),
        (
            lambda: quantile_threshold(np.ones(2), 1.5),
            InvalidInputError,
            r"q must be a fraction in \[0, 1\]; got 1.5",
        ),
        (lambda: quantile_threshold(np.ones(2), 0.5, method="best"), InvalidInputError, "not one of numpy"),
        (lambda: quantile_threshold("text", 0.5), InvalidTypeError, "scores must be a dense torch tensor"),  # type: ignore[arg-type]
        (
            lambda: conformal_threshold(np.ones(9), 0.0),
            InvalidInputError,
            r"coverage must be a fraction in \(0, 1\)",
        ),
        (
            lambda: conformal_threshold(np.ones(9), 0.5, otherwise="no"),
            InvalidInputError,
            "otherwise must be",
        ),  # type: ignore[arg-type]
        (lambda: conformal_pvalues(np.ones(3), np.array([np.nan])), InvalidInputError, "scores has NaN"),
        (lambda: benjamini_hochberg(np.array([1.2]), 0.1), InvalidInputError, r"pvalues must be in \[0, 1\]"),
        (lambda: benjamini_hochberg(np.array([0.2]), 0.0), InvalidInputError, "fdr must be a fraction"),
        (lambda: risk_threshold(np.ones(3), np.ones(2), 0.1), InvalidInputError, "3 scores, 2 losses"),
        (
            lambda: risk_threshold(np.ones(2), np.array([0, 2]), 0.1),
            InvalidInputError,
            r"losses must be in \[0, 1\]",
        ),
        (lambda: risk_threshold(np.ones(2), np.ones(2), 1.0), InvalidInputError, "risk must be a fraction"),
        (
            lambda: risk_threshold(np.ones(2), np.ones(2), 0.1, confidence=0),
            InvalidInputError,
            "confidence must be",
        ),
        (
            lambda: risk_threshold(np.ones(2), np.ones(2), 0.1, method="x"),
            InvalidInputError,
            "method must be",
        ),  # type: ignore[arg-type]
        (
            lambda: risk_threshold(np.ones(2), np.ones(2), 0.1, otherwise="x"),
            InvalidInputError,
            "otherwise must",
        ),  # type: ignore[arg-type]
    ],
)
def test_misuse_is_refused(use: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        use()


@pytest.mark.parametrize(
    ("risk", "confidence", "method"),
    [
        (0.1, 0.9, "ltt"),
        (0.05, 0.95, "ltt"),
        (0.1, 0.95, "ltt"),
        (0.01, 0.99, "ltt"),
        (0.5, 0.5, "ltt"),
        (0.9, 0.9, "ltt"),
        (0.02, 0.9, "ltt"),
        (0.1, 0.9, "sgr"),
        (0.05, 0.95, "sgr"),
        (0.3, 0.8, "sgr"),
        (0.9, 0.6, "sgr"),
    ],
)
def test_the_stated_number_of_samples_is_the_smallest_that_works(
    risk: float, confidence: float, method: Any
) -> None:
    """By trying every number below: the error is shared among the starts, or the steps of the search."""

    def works(count: int, loss: float = 0.0) -> bool:
        try:
            risk_threshold(
                np.arange(float(count)), np.full(count, loss), risk, confidence=confidence, method=method
            )
        except NoGuaranteeError:
            return False
        return True

    with pytest.raises(NoGuaranteeError, match=r"at least \d+ samples") as caught:
        risk_threshold(np.zeros(1), np.ones(1), risk, confidence=confidence, method=method)
    stated = int(re.findall(r"at least (\d+) samples", str(caught.value))[0])
    assert works(stated)
    first = max(1, stated - 60)
    assert not any(works(count) for count in range(first, stated))
    if method == "ltt" and risk < 0.3:  # losses between 0 and 1 have another bound, the same without any
        assert works(stated, 1e-12)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1 / 3, 0.123456789])
def test_the_stated_number_of_calibration_scores_is_the_smallest(coverage: float) -> None:
    def works(count: int) -> bool:
        try:
            conformal_threshold(np.arange(float(count)), coverage)
        except NoGuaranteeError:
            return False
        return True

    count = next(n for n in range(1, 2000) if works(n))
    if count > 1:
        with pytest.raises(NoGuaranteeError, match=f"needs at least {count} calibration scores"):
            conformal_threshold(np.arange(count - 1.0), coverage)


WRONG = ["a", None, np.nan, np.inf, -np.inf, 10**400, 1e308, -1, b"x", [0.5], {}, True, 1 + 2j, object()]


@pytest.mark.parametrize("value", WRONG, ids=lambda v: type(v).__name__ + str(v)[:8])
def test_numbers_of_any_kind_are_refused_in_words(value: Any) -> None:
    scores, losses = np.arange(50.0), np.zeros(50)
    calls = [
        lambda: quantile_threshold(scores, value),
        lambda: quantile_threshold(scores, 0.5, method=value),
        lambda: conformal_threshold(scores, value),
        lambda: conformal_threshold(scores, 0.9, otherwise=value),
        lambda: risk_threshold(scores, losses, value),
        lambda: risk_threshold(scores, losses, 0.1, confidence=value),
        lambda: risk_threshold(scores, losses, 0.1, method=value),
        lambda: risk_threshold(scores, losses, 0.1, otherwise=value),
        lambda: benjamini_hochberg(scores / 50, value),
        lambda: binomial_pvalue(0.1, 10, value),
        lambda: hoeffding_bentkus_pvalue(0.1, 10, value),
        lambda: cross_val_scores(value, scores[:, None]),
        lambda: conformal_threshold(value, 0.9),
        lambda: risk_threshold(scores, value, 0.1),
    ]
    for call in calls:
        with pytest.raises((InvalidInputError, InvalidTypeError, NoGuaranteeError)):  # [0.5] is one score
            call()


def test_a_quantile_between_infinities_is_no_nan() -> None:
    assert quantile_threshold(np.array([0.0, np.inf, np.inf, np.inf]), 0.9) == np.inf
    assert quantile_threshold(np.array([-1.7e308, 1.7e308]), 0.5) in (0.0, 1.7e308)  # not -inf
    assert quantile_threshold(np.array([-np.inf, -np.inf, 0.0]), 0.2) == -np.inf


@pytest.mark.parametrize("value", [*WRONG, 0, 1], ids=lambda v: type(v).__name__ + str(v)[:8])
def test_a_confidence_that_is_not_used_is_refused_too(value: Any) -> None:
    score = EuclideanScore().fit(X=np.zeros((5, 2)), Y=np.ones((40, 2)))
    with pytest.raises((InvalidInputError, InvalidTypeError), match="confidence"):
        score.calibrate(coverage=0.5, confidence=value)
    if not isinstance(value, str):
        with pytest.raises(InvalidTypeError, match="prefix"):
            RiskCoverageMetric(prefix=value)
        with pytest.raises(InvalidTypeError, match="prefix"):
            DiscoveryMetric(prefix=value)
