"""Randomized inference: its distribution against simulation, uniformity, coverage, finite intervals."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from roi_networks import Autoencoder, export, sharpen
from scipy import stats

import selkit
from selkit.errors import InvalidInputError
from selkit.inference import BackMeanDiff, InputDiff, RandomizedResult, RoiTest


@pytest.fixture(scope="module")
def model_test() -> RoiTest:
    model: onnx.ModelProto = export(sharpen(Autoencoder(), 1, 0.3), (1, 1, 8, 8))
    return selkit.load(model, BackMeanDiff(1.0, post_process=InputDiff()), var=1.0)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 1, 8, 8))


def naive(result: RandomizedResult) -> float:
    return float(2 * stats.norm.sf(abs(result.stat) / result.scale))


@pytest.fixture(scope="module")
def results(model_test: RoiTest) -> list[RandomizedResult]:
    return [
        model_test.inference_randomized(noise(seed), noise_var=1.0, seed=10_000 + seed) for seed in range(200)
    ]


def test_uniform_under_the_null(results: list[RandomizedResult]) -> None:
    assert stats.kstest([result.p_value for result in results], "uniform").pvalue > 0.01
    assert stats.kstest([naive(result) for result in results], "uniform").pvalue < 1e-3


def test_intervals_cover_and_are_finite(results: list[RandomizedResult]) -> None:
    rows = np.array([result.confidence_interval(0.9) for result in results])
    assert np.isfinite(rows).all()
    margin = 3 * np.sqrt(0.9 * 0.1 / len(rows))
    assert abs(np.mean((rows[:, 0] <= 0) & (rows[:, 1] >= 0)) - 0.9) < margin


def test_the_statistic_is_that_of_the_image_without_noise(model_test: RoiTest) -> None:
    x = noise(3)
    result = model_test.inference_randomized(x, noise_var=0.5, seed=1)
    pixels, roi = x[0, 0], result.roi
    assert result.stat == pytest.approx(pixels[roi].mean() - pixels[~roi].mean())
    size = 1 / roi.sum() + 1 / (~roi).sum()
    assert (result.scale, result.noise_scale) == pytest.approx((size**0.5, (0.5 * size) ** 0.5))


def mass(result: RandomizedResult) -> float:
    """Probability of the selection."""
    total = np.hypot(result.scale, result.noise_scale)
    return float(np.diff(stats.norm.cdf(result.selection.truncated_intervals / total)).sum())


def test_the_distribution_is_the_simulated_one(results: list[RandomizedResult]) -> None:
    rng = np.random.default_rng(0)
    result = max(results, key=mass)
    x = rng.normal(0, result.scale, 2_000_000)
    v = x + rng.normal(0, result.noise_scale, x.size)
    kept = np.zeros(x.size, dtype=bool)
    for low, high in result.selection.truncated_intervals:
        kept |= (low <= v) & (v <= high)
    below = np.mean(x[kept] <= result.stat)
    assert kept.sum() > 300
    assert result.p_value == pytest.approx(2 * min(below, 1 - below), abs=4 * kept.sum() ** -0.5)


def test_intervals_invert_the_p_value(model_test: RoiTest) -> None:
    x = noise(4)
    lower, upper = model_test.inference_randomized(x, noise_var=1.0, seed=2).confidence_interval(0.8)
    for end in (lower, upper):
        again = model_test.inference_randomized(x, noise_var=1.0, seed=2, null_value=end)
        assert again.p_value == pytest.approx(0.2, abs=1e-6)


def test_bad_variances(model_test: RoiTest) -> None:
    for options, match in [
        ({"noise_var": 0.0}, "noise_var is 0.0"),
        ({"noise_var": 1.0, "var": np.eye(64)}, "var is"),
    ]:
        with pytest.raises(InvalidInputError, match=match):
            model_test.inference_randomized(noise(0), seed=0, **options)
