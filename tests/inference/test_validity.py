"""Selective p-values are uniform under the null, naive ones are not; power exceeds over-conditioning."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from roi_networks import Autoencoder, Cam, Unet, export, run, sharpen
from scipy import sparse, stats

import selkit
from selkit.errors import NoHypothesisError
from selkit.inference import (
    Abs,
    AverageFilter,
    BackMeanDiff,
    InputDiff,
    NeighborMeanDiff,
    ReferenceMeanDiff,
    RoiResult,
    Stationary,
)

LEVEL = 0.01
"""Of the Kolmogorov-Smirnov tests; seeds are fixed, so a right method passes always."""


def collect(
    test: selkit.RoiTest, draw: Callable[[int], object], count: int, **options: object
) -> list[RoiResult]:
    results: list[RoiResult] = []
    seed = 0
    while len(results) < count and seed < 3 * count:
        with contextlib.suppress(NoHypothesisError):
            results.append(test.inference(draw(seed), **options))  # type: ignore[arg-type]
        seed += 1
    assert len(results) == count
    return results


def check_uniform(p_values: list[float]) -> None:
    values = np.asarray(p_values)
    assert np.isfinite(values).all()
    assert ((values >= 0) & (values <= 1)).all()
    assert stats.kstest(values, "uniform").pvalue > LEVEL


def check_valid(results: list[RoiResult]) -> None:
    check_uniform([result.p_value for result in results])
    with pytest.raises(AssertionError):
        check_uniform([result.naive_p_value() for result in results])


def white(seed: int, side: int = 8, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 1, side, side))


def quantile_of_map(model: onnx.ModelProto, level: float, side: int = 8) -> float:
    return float(np.quantile(run(model, white(0, side, 50)), level))


@pytest.fixture(scope="module")
def cam() -> onnx.ModelProto:
    return export(sharpen(Cam(), 0), (1, 1, 8, 8))


@pytest.fixture(scope="module")
def autoencoder() -> onnx.ModelProto:
    """Where it reconstructs too high, the image is low: a region that is chosen for its mean."""
    return export(sharpen(Autoencoder(), 1, 0.3), (1, 1, 8, 8))


RECONSTRUCTION = {"threshold": 1.0, "post_process": InputDiff()}


def test_the_demo_network_on_noise_images() -> None:
    from nuclei import make_patches, train_unet

    model = export(train_unet(make_patches().train, epochs=1), (1, 1, 16, 16))
    test = selkit.load(model, NeighborMeanDiff(quantile_of_map(model, 0.7, 16)), var=1.0)
    check_valid(collect(test, lambda seed: white(seed, 16), 300, precision=0.005))


@pytest.mark.parametrize("mode", ["parametric", "exhaustive", "over_conditioning"])
def test_modes(autoencoder: onnx.ModelProto, mode: str) -> None:
    test = selkit.load(autoencoder, BackMeanDiff(**RECONSTRUCTION), var=1.0)
    check_valid(collect(test, white, 200, inference_mode=mode))


def test_neighborhoods(autoencoder: onnx.ModelProto) -> None:
    test = selkit.load(autoencoder, NeighborMeanDiff(**RECONSTRUCTION), var=1.0)
    check_valid(collect(test, white, 200))


def test_reference_images(autoencoder: onnx.ModelProto) -> None:
    test = selkit.load(autoencoder, ReferenceMeanDiff(**RECONSTRUCTION), var=1.0)
    check_valid(collect(test, lambda seed: tuple(white(seed, 8, 2)[:, None]), 200))


@pytest.mark.parametrize("alternative", ["less", "greater"])
def test_one_sided_alternatives(autoencoder: onnx.ModelProto, alternative: str) -> None:
    test = selkit.load(autoencoder, BackMeanDiff(**RECONSTRUCTION), var=1.0)
    check_valid(collect(test, white, 200, alternative=alternative))


def test_class_activation_maps(cam: onnx.ModelProto) -> None:
    test = selkit.load(cam, BackMeanDiff(quantile_of_map(cam, 0.8)), var=1.0)
    check_uniform([result.p_value for result in collect(test, white, 200)])


def test_post_processed_maps(autoencoder: onnx.ModelProto) -> None:
    steps = [InputDiff(), Abs(), AverageFilter(3)]
    test = selkit.load(autoencoder, BackMeanDiff(0.9, post_process=steps), var=1.0)
    check_uniform([result.p_value for result in collect(test, white, 200)])


def test_normalized_maps(autoencoder: onnx.ModelProto) -> None:
    hypothesis = BackMeanDiff(0.6, post_process=InputDiff(), use_norm=True)
    check_valid(collect(selkit.load(autoencoder, hypothesis, var=1.0), white, 200))


def exponential(side: int, rho: float) -> np.ndarray:
    """Covariance rho^distance along rows and columns: that of products of AR(1) processes."""
    one = rho ** np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
    return np.kron(one, one)


@pytest.mark.parametrize("form", ["vector", "matrix", "sparse"])
def test_forms_of_the_variance(autoencoder: onnx.ModelProto, form: str) -> None:
    diagonal = np.random.default_rng(5).uniform(0.3, 3.0, 64)
    matrix = np.diag(diagonal) if form == "vector" else exponential(8, 0.8)
    root = np.linalg.cholesky(matrix)
    var = {"vector": diagonal, "matrix": matrix, "sparse": sparse.csr_array(matrix)}[form]

    def draw(seed: int) -> np.ndarray:
        return (root @ np.random.default_rng(seed).normal(size=64)).reshape(1, 1, 8, 8)

    test = selkit.load(autoencoder, BackMeanDiff(**RECONSTRUCTION), var=var)
    check_valid(collect(test, draw, 200))


def test_a_stationary_covariance_is_its_matrix(cam: onnx.ModelProto) -> None:
    offsets = np.abs(np.arange(-7, 8))
    kernel = 0.5**offsets
    stationary = Stationary(np.outer(kernel, kernel))
    x = white(3)
    hypothesis = BackMeanDiff(float(np.quantile(run(cam, x), 0.8)))
    by_kernel = selkit.load(cam, hypothesis).inference(x, stationary)
    by_matrix = selkit.load(cam, hypothesis).inference(x, exponential(8, 0.5))
    assert by_kernel.p_value == pytest.approx(by_matrix.p_value, abs=1e-9)
    assert by_kernel.scale == pytest.approx(by_matrix.scale)


def test_confidence_intervals_cover(autoencoder: onnx.ModelProto) -> None:
    test = selkit.load(autoencoder, BackMeanDiff(**RECONSTRUCTION), var=1.0)
    results = collect(test, white, 200, inference_mode="exhaustive")
    selective = np.mean([low <= 0 <= high for low, high in (r.confidence_interval(0.9) for r in results)])
    naive = np.mean([abs(result.z_score) <= stats.norm.ppf(0.95) for result in results])
    margin = 3 * np.sqrt(0.9 * 0.1 / len(results))
    assert abs(selective - 0.9) < margin
    assert abs(naive - 0.9) > margin


def test_power_exceeds_over_conditioning() -> None:
    model = export(sharpen(Unet(), 2), (1, 1, 8, 8))
    spot = np.zeros((8, 8))
    spot[2:6, 2:6] = 3.0
    test = selkit.load(model, BackMeanDiff(quantile_of_map(model, 0.7)), var=1.0)

    def draw(seed: int) -> np.ndarray:
        return white(seed) + spot

    full = [r.p_value <= 0.05 for r in collect(test, draw, 120)]
    piece = [r.p_value <= 0.05 for r in collect(test, draw, 120, inference_mode="over_conditioning")]
    assert np.mean(full) > np.mean(piece) + 0.1
