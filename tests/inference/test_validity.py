"""Selective p-values are uniform under the null, naive ones are not; power exceeds over-conditioning."""

from __future__ import annotations

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
    Hypothesis,
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
        try:
            results.append(test.inference(draw(seed), **options))  # type: ignore[arg-type]
        except NoHypothesisError:
            pass
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


def cam() -> onnx.ModelProto:
    return export(sharpen(Cam(), 0), (1, 1, 8, 8))


def quantile_of_map(model: onnx.ModelProto, level: float) -> float:
    return float(np.quantile(run(model, white(0, model.graph.input[0].type.tensor_type.shape.dim[2].dim_value, 50)), level))


def test_the_demo_network_on_noise_images() -> None:
    from nuclei import make_patches, train_unet

    model = export(train_unet(make_patches().train, epochs=1), (1, 1, 16, 16))
    test = selkit.load(model, NeighborMeanDiff(quantile_of_map(model, 0.7)), var=1.0)
    check_valid(collect(test, lambda seed: white(seed, 16), 300, precision=0.005))


@pytest.mark.parametrize("mode", ["parametric", "exhaustive", "over_conditioning"])
@pytest.mark.parametrize("hypothesis", [BackMeanDiff, NeighborMeanDiff])
def test_hypotheses_and_modes(hypothesis: type[Hypothesis], mode: str) -> None:
    model = cam()
    test = selkit.load(model, hypothesis(quantile_of_map(model, 0.8)), var=1.0)
    results = collect(test, white, 250, inference_mode=mode)
    check_uniform([result.p_value for result in results])
    if mode == "parametric":
        check_valid(results)


@pytest.mark.parametrize("alternative", ["less", "greater"])
def test_one_sided_alternatives(alternative: str) -> None:
    model = export(sharpen(Autoencoder(), 1, 0.3), (1, 1, 8, 8))
    test = selkit.load(model, BackMeanDiff(1.0, post_process=InputDiff()), var=1.0)
    check_valid(collect(test, white, 250, alternative=alternative))


def test_post_processed_maps_of_an_autoencoder() -> None:
    model = export(sharpen(Autoencoder(), 1, 0.5), (1, 1, 8, 8))
    steps = [InputDiff(), Abs(), AverageFilter(3)]
    test = selkit.load(model, BackMeanDiff(0.9, post_process=steps), var=1.0)
    check_uniform([result.p_value for result in collect(test, white, 250)])


def test_normalized_maps() -> None:
    model = cam()
    test = selkit.load(model, BackMeanDiff(0.5, use_norm=True), var=1.0)
    check_valid(collect(test, white, 250))


def test_reference_images() -> None:
    model = export(sharpen(Autoencoder(), 1, 0.3), (1, 1, 8, 8))
    test = selkit.load(model, ReferenceMeanDiff(1.0, post_process=[InputDiff()]), var=1.0)
    check_valid(collect(test, lambda seed: tuple(white(seed, 8, 2)[:, None]), 250))


def exponential(side: int, rho: float) -> np.ndarray:
    """Covariance rho^distance along rows and columns: that of products of AR(1) processes."""
    one = rho ** np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
    return np.kron(one, one)


@pytest.mark.parametrize("form", ["vector", "matrix", "sparse"])
def test_forms_of_the_variance(form: str) -> None:
    model = cam()
    diagonal = np.random.default_rng(5).uniform(0.3, 3.0, 64)
    matrix = np.diag(diagonal) if form == "vector" else exponential(8, 0.5)
    root = np.linalg.cholesky(matrix)
    var = {"vector": diagonal, "matrix": matrix, "sparse": sparse.csr_array(matrix)}[form]

    def draw(seed: int) -> np.ndarray:
        return (root @ np.random.default_rng(seed).normal(size=64)).reshape(1, 1, 8, 8)

    test = selkit.load(model, BackMeanDiff(quantile_of_map(model, 0.8)), var=var)
    results = collect(test, draw, 250)
    check_uniform([result.p_value for result in results])
    if form == "matrix":  # the level is lost when the correlation is ignored
        independent = selkit.load(model, test.hypothesis, var=1.0)
        with pytest.raises(AssertionError):
            check_uniform([result.p_value for result in collect(independent, draw, 250)])


def test_a_stationary_covariance_is_its_matrix() -> None:
    offsets = np.abs(np.arange(-7, 8))
    kernel = 0.5**offsets
    stationary = Stationary(np.outer(kernel, kernel))
    model = cam()
    x = white(3)
    hypothesis = BackMeanDiff(float(np.quantile(run(model, x), 0.8)))
    by_kernel = selkit.load(model, hypothesis).inference(x, stationary)
    by_matrix = selkit.load(model, hypothesis).inference(x, exponential(8, 0.5))
    assert by_kernel.p_value == pytest.approx(by_matrix.p_value, abs=1e-9)
    assert by_kernel.scale == pytest.approx(by_matrix.scale)


def test_confidence_intervals_cover() -> None:
    model = cam()
    test = selkit.load(model, BackMeanDiff(quantile_of_map(model, 0.8)), var=1.0)
    results = collect(test, white, 250, inference_mode="exhaustive")
    selective = np.mean([low <= 0 <= high for low, high in (r.confidence_interval(0.9) for r in results)])
    naive = np.mean([abs(result.z_score) <= stats.norm.ppf(0.95) for result in results])
    margin = 3 * np.sqrt(0.9 * 0.1 / len(results))
    assert abs(selective - 0.9) < margin
    assert abs(naive - 0.9) > margin


def test_power_exceeds_over_conditioning() -> None:
    model = export(sharpen(Unet(), 2), (1, 1, 8, 8))
    threshold = quantile_of_map(model, 0.7)
    spot = np.zeros((8, 8))
    spot[2:6, 2:6] = 3.0
    test = selkit.load(model, BackMeanDiff(threshold), var=1.0)
    draw = lambda seed: white(seed) + spot  # noqa: E731
    full = [r.p_value <= 0.05 for r in collect(test, draw, 120)]
    piece = [r.p_value <= 0.05 for r in collect(test, draw, 120, inference_mode="over_conditioning")]
    assert np.mean(full) > np.mean(piece) + 0.1
