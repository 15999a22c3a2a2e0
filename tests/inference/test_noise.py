"""Estimated covariances against numpy, the papers' formulas and the truth; and what they do to p-values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from scipy import ndimage, stats
from scipy.linalg import toeplitz

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.inference import BackMeanDiff, Stationary
from selkit.inference.multiple import inference_batch
from selkit.inference.noise import estimate_covariance, estimate_stationary, estimate_variance


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_moments_are_numpys() -> None:
    images = rng().normal(3.0, 2.0, size=(4, 1, 8, 8))
    background = rng(1).uniform(size=(8, 8)) < 0.5
    assert estimate_variance(images) == pytest.approx(np.var(images, ddof=1))
    pixels = images[:, :, background]
    assert estimate_variance(images, background) == pytest.approx(np.var(pixels, ddof=1))
    assert estimate_variance(list(torch.as_tensor(images)), torch.as_tensor(background)) == pytest.approx(
        np.var(pixels, ddof=1)
    )
    np.testing.assert_allclose(estimate_variance(images, per_pixel=True), np.var(images, axis=0, ddof=1))
    assert isinstance(estimate_variance(images), float)


def test_the_median_deviation_is_scipys() -> None:
    images = rng().normal(3.0, 2.0, size=(50, 8, 8))
    expected = stats.median_abs_deviation(images.ravel(), scale="normal") ** 2
    assert estimate_variance(images, method="mad") == pytest.approx(expected)
    each = stats.median_abs_deviation(images, axis=0, scale="normal") ** 2
    np.testing.assert_allclose(estimate_variance(images, method="mad", per_pixel=True), each)


def test_differences_are_immerkaers() -> None:
    image = rng().normal(size=(20, 30))
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    inner = ndimage.correlate(image, mask.astype(float))[1:-1, 1:-1]
    assert estimate_variance(image, method="differences") == pytest.approx(np.mean(inner**2) / 36)
    # Only blocks that lie in the background count, and what is elsewhere does not.
    background = np.zeros((20, 30), bool)
    background[2:10, 3:20] = True
    image[~background] = np.nan
    inside = ndimage.correlate(image[2:10, 3:20], mask.astype(float))[1:-1, 1:-1]
    assert estimate_variance(image, background, method="differences") == pytest.approx(
        np.mean(inside**2) / 36
    )


@pytest.mark.parametrize(
    ("method", "factor"),
    # Relative variances of the estimates are factor / N: 2 for the sample variance, 1 / (4 q^2 f(q)^2) times
    # 4 for the squared median deviation (q the upper quartile), 2 (70 / 36)^2 for second differences twice.
    [("moments", 2.0), ("mad", 5.44), ("differences", 2 * (70 / 36) ** 2)],
)
def test_variances_are_right_within_their_errors(method: str, factor: float) -> None:
    estimates = np.array(
        [
            estimate_variance(rng(k).normal(scale=1.5, size=(40, 40)), method=method) / 2.25  # type: ignore[arg-type, operator]
            for k in range(200)
        ]
    )
    assert abs(estimates.mean() - 1) < 3 * estimates.std() / np.sqrt(200) + 1 / 1600
    # A variance from 200 normal draws is right within 3 sqrt(2 / 200).
    assert estimates.var() * 1600 == pytest.approx(factor, rel=0.35)


def test_bright_pixels_spoil_moments_only() -> None:
    image = rng().normal(size=(60, 60))
    image[rng(1).uniform(size=(60, 60)) < 0.02] += 50
    assert estimate_variance(image) > 10  # type: ignore[operator]
    assert estimate_variance(image, method="mad") == pytest.approx(1, abs=0.15)


def test_a_smooth_background_spoils_all_but_differences() -> None:
    y, x = np.mgrid[:60, :60]
    image = rng().normal(size=(60, 60)) + 0.1 * x - 0.05 * y + 3 * np.sin(x / 20) * np.cos(y / 20)
    assert estimate_variance(image) > 2  # type: ignore[operator]
    assert estimate_variance(image, method="differences") == pytest.approx(1, abs=0.15)


def brute_autocovariance(planes: np.ndarray, offset: tuple[int, int]) -> float:
    """Mean product of pixels at an offset, one pair at a time."""
    total, pairs = 0.0, 0
    for plane in planes:
        for r in range(plane.shape[0]):
            for c in range(plane.shape[1]):
                rr, cc = r + offset[0], c + offset[1]
                if 0 <= rr < plane.shape[0] and 0 <= cc < plane.shape[1]:
                    total, pairs = total + plane[r, c] * plane[rr, cc], pairs + 1
    return total / pairs


def test_a_stationary_kernel_is_the_mean_of_products() -> None:
    planes = rng().normal(size=(3, 7, 6))
    planes = planes + 0.3 * np.roll(planes, 1, axis=1)
    kernel = np.asarray(estimate_stationary(planes, (1, 2), mean=0.0).kernel)
    assert kernel.shape == (3, 5)
    expected = np.array([[brute_autocovariance(planes, (a, b)) for b in range(-2, 3)] for a in range(-1, 2)])
    spectrum = [
        sum(expected[a, b] * np.cos(u * (a - 1) + v * (b - 2)) for a in range(3) for b in range(5))
        for u in np.linspace(0, np.pi, 20)
        for v in np.linspace(-np.pi, np.pi, 40)
    ]
    assert min(spectrum) > 0  # a covariance already, so it is not moved
    np.testing.assert_allclose(kernel, expected, atol=1e-12)


def smooth_noise(count: int, side: int, seed: int, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Noise filtered by a kernel, and its covariance by offset (the kernel's autocorrelation)."""
    weights = np.outer([0.5, 1.0, 0.5], [0.2, 1.0, 0.2])
    white = rng(seed).normal(size=(count, side + 2, side + 2))
    images = np.stack([ndimage.correlate(one, weights)[1:-1, 1:-1] for one in white])
    padded = np.pad(weights, 2)
    truth = np.array(
        [[np.sum(padded * np.roll(padded, (a, b), (0, 1))) for b in range(-2, 3)] for a in range(-2, 3)]
    )
    return images + offset, truth


@pytest.mark.parametrize("mean", [None, 5.0])
def test_stationary_kernels_are_right_within_their_errors(mean: float | None) -> None:
    estimates, truth = [], np.zeros(())
    for seed in range(30):
        images, truth = smooth_noise(20, 16, seed, offset=5.0)
        estimates.append(estimate_stationary(images, 2, mean=mean).kernel)
    error = np.std(estimates, axis=0) / np.sqrt(30)
    # The spectrum of the truth touches zero nearly, where estimates are moved up by a little.
    assert np.all(np.abs(np.mean(estimates, axis=0) - truth) < 4 * error + 0.01 * truth.max())
    assert np.max(np.abs(np.mean(estimates, axis=0) - truth)) < 0.03 * truth.max()


def test_the_covariance_that_the_mean_takes_away_is_added_again() -> None:
    image = rng().normal(size=(3, 4))
    kernel = np.asarray(estimate_stationary(image, 0).kernel)
    np.testing.assert_allclose(kernel, [[np.var(image, ddof=1)]])
    estimates = np.array(
        [
            estimate_stationary(
                np.convolve(rng(k).normal(size=42), [0.05, 1.0, 0.05], "valid"), 1, rank=1
            ).kernel
            for k in range(1500)
        ]
    )
    error = 3 * estimates.std(axis=0) / np.sqrt(1500)
    truth = np.array([0.1, 1.005, 0.1])
    assert (error < truth.sum() / 40).all()  # what would be missing
    assert (np.abs(estimates.mean(axis=0) - truth) < error + 0.0025 + 0.2 / 40).all()


def test_estimated_kernels_are_covariances() -> None:
    """Of few images and a radius too small for the correlation, the raw estimate is not one."""
    images = np.stack([ndimage.gaussian_filter(one, 1.5) for one in rng(3).normal(size=(2, 20, 20))])
    kernel = np.asarray(estimate_stationary(images, 2, mean=0.0).kernel)
    raw = np.array([[brute_autocovariance(images, (a, b)) for b in range(-2, 3)] for a in range(-2, 3)])

    def matrix(values: np.ndarray, side: int = 12) -> np.ndarray:
        r, c = np.divmod(np.arange(side * side), side)
        dr, dc = r[:, None] - r, c[:, None] - c
        near = (abs(dr) <= 2) & (abs(dc) <= 2)
        return np.where(near, values[np.clip(dr, -2, 2) + 2, np.clip(dc, -2, 2) + 2], 0.0)

    assert np.linalg.eigvalsh(matrix(raw)).min() < -0.01 * raw.max()
    assert np.linalg.eigvalsh(matrix(kernel)).min() > -1e-3 * raw.max()
    # No less a distance: scaling the raw off-diagonal part down to a covariance moves it further.
    for share in np.linspace(0, 1, 50):
        scaled = raw * share
        scaled[2, 2] = raw[2, 2]
        if np.linalg.eigvalsh(matrix(scaled)).min() >= 0:
            assert np.linalg.norm(kernel - raw) < np.linalg.norm(scaled - raw) + 0.05 * raw.max()


def test_one_axis_and_channels() -> None:
    signals = ndimage.correlate1d(rng().normal(size=(200, 3, 66)), [1.0, 1.0], axis=-1)[..., 1:-1]
    kernel = np.asarray(estimate_stationary(signals, 1, rank=1, mean=0.0).kernel)
    np.testing.assert_allclose(kernel, [1, 2, 1], atol=0.1)


def ledoit_wolf_2004(rows: np.ndarray) -> np.ndarray:
    """Lemmas 3.2 to 3.5 of Ledoit & Wolf (2004), for rows of known mean zero."""
    count, size = rows.shape
    sample = rows.T @ rows / count
    m = np.trace(sample) / size
    d2 = np.sum((sample - m * np.eye(size)) ** 2) / size
    b2 = sum(np.sum((np.outer(x, x) - sample) ** 2) / size for x in rows) / count**2
    b2 = min(b2, d2)
    return b2 / d2 * m * np.eye(size) + (1 - b2 / d2) * sample


def test_ledoit_wolf_is_the_papers() -> None:
    rows = rng().normal(size=(30, 12)) @ rng(1).normal(size=(12, 12))
    found = estimate_covariance(rows.reshape(30, 1, 3, 4), mean=0.0)
    np.testing.assert_allclose(found, ledoit_wolf_2004(rows), rtol=1e-10)
    centred = rows - rows.mean(axis=0)
    np.testing.assert_allclose(estimate_covariance(rows), ledoit_wolf_2004(centred) * 30 / 29, rtol=1e-10)


def test_no_shrinkage_is_numpys() -> None:
    images = rng().normal(size=(50, 2, 3))
    rows = images.reshape(50, 6)
    sample = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(estimate_covariance(images, shrinkage=None), sample)
    half = 0.5 * sample + 0.5 * np.eye(6) * np.trace(sample) / 6
    np.testing.assert_allclose(estimate_covariance(images, shrinkage=0.5), half)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_shrinkage_is_nearer_to_the_truth(shrinkage: str) -> None:
    truth = toeplitz(0.5 ** np.arange(12))
    root = np.linalg.cholesky(truth)
    shrunk, plain = [], []
    for seed in range(20):
        rows = rng(seed).normal(size=(20, 12)) @ root.T
        shrunk.append(np.linalg.norm(estimate_covariance(rows, shrinkage=shrinkage) - truth))  # type: ignore[arg-type]
        plain.append(np.linalg.norm(estimate_covariance(rows, shrinkage=None) - truth))
    assert np.mean(shrunk) < 0.9 * np.mean(plain)
    many = rng(99).normal(size=(20000, 12)) @ root.T
    np.testing.assert_allclose(estimate_covariance(many, shrinkage=shrinkage), truth, atol=0.05)  # type: ignore[arg-type]


LEVELS = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1, 1, 16] x) => (float[1, 1, 16] y)
    <float[16] b = {2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0, -2.0, -2.0, -2.0, -2.0}> {
        a = AveragePool<kernel_shape = [3], pads = [1, 1]>(x)
        y = Add(a, b)
    }"""
)
"""Sees the left half, most of the time: truncation sets are wide, so that the variance matters much."""


def check_uniform(p_values: np.ndarray) -> None:
    known = p_values[~np.isnan(p_values)]
    assert len(known) > 100
    assert stats.kstest(known, "uniform").pvalue > 0.01


def p_values(draw: Callable[[int], np.ndarray], var: object, count: int = 200) -> np.ndarray:
    test = selkit.load(LEVELS, BackMeanDiff(threshold=2.0), var=var)
    return inference_batch(test, [draw(k) for k in range(count)], precision=0.01).p_values


def test_an_estimate_from_much_background_keeps_p_values_uniform() -> None:
    """And a variance that is off by a factor of two does not, either way."""
    background = rng(1000).normal(2.0, 1.5, size=(100, 100))
    estimate = estimate_variance(background)

    def draw(seed: int) -> np.ndarray:
        return rng(seed).normal(2.0, 1.5, size=(1, 16))

    check_uniform(p_values(draw, estimate))
    for factor in (0.5, 2.0):
        with pytest.raises(AssertionError):
            check_uniform(p_values(draw, factor * np.asarray(estimate)))


def test_an_estimated_kernel_keeps_p_values_uniform_where_one_variance_does_not() -> None:
    weights = np.array([0.6, 1.0, 0.6])

    def draw(seed: int) -> np.ndarray:
        return 2.0 + np.convolve(rng(seed).normal(size=18), weights, mode="valid")[None]

    noise = np.stack([draw(10_000 + k) for k in range(1500)])
    kernel = estimate_stationary(noise, 2, rank=1)
    assert isinstance(kernel, Stationary)
    check_uniform(p_values(draw, kernel, 120))
    check_uniform(p_values(draw, estimate_covariance(noise, shrinkage=None), 120))
    with pytest.raises(AssertionError):
        check_uniform(p_values(draw, estimate_variance(noise), 120))


NOISE = rng().normal(size=(4, 8, 8))
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "nan": (lambda: estimate_variance([1.0, np.nan, np.inf]), InvalidInputError, r"2 value\(s\) that are"),
    "constant": (lambda: estimate_variance(np.ones((4, 4))), InvalidInputError, "has no variance"),
    "one pixel": (lambda: estimate_variance(NOISE[0], np.eye(8)[:1] * np.eye(8)[:, :1]), InvalidInputError,
                  r"background leaves 1 pixel"),
    "no pixel": (lambda: estimate_variance(NOISE, np.zeros((8, 8))), InvalidInputError, "leaves no pixel"),
    "mask values": (lambda: estimate_variance(NOISE, NOISE), InvalidInputError, "True or False"),
    "mask shape": (lambda: estimate_variance(NOISE, np.ones((3, 8))), InvalidInputError, r"shape \(3, 8\)"),
    "method": (lambda: estimate_variance(NOISE, method="best"), InvalidInputError, "one of moments, mad"),
    "empty": (lambda: estimate_variance([]), InvalidInputError, "at least one image"),
    "text": (lambda: estimate_variance(["a"]), InvalidTypeError, "dtype"),
    "complex": (lambda: estimate_variance(NOISE * 1j), InvalidTypeError, "complex128"),
    "ragged": (lambda: estimate_variance([NOISE[0], NOISE[1, :3]]), InvalidInputError, "of one shape"),
    "pixel": (lambda: estimate_variance(NOISE[:1], per_pixel=True), InvalidInputError, "two images"),
    "pixel mask": (lambda: estimate_variance(NOISE, np.eye(8), per_pixel=True), InvalidInputError,
                   "leave background out"),
    "pixel constant": (lambda: estimate_variance(NOISE * np.eye(8), per_pixel=True), InvalidInputError,
                       r"56 pixel\(s\) have the same value"),
    "pixel differences": (lambda: estimate_variance(NOISE, per_pixel=True, method="differences"),
                          InvalidInputError, "'moments' or 'mad'"),
    "thin": (lambda: estimate_variance(NOISE[:, :2], method="differences"), InvalidInputError, "sides of"),
    "no block": (lambda: estimate_variance(NOISE, np.eye(8), method="differences"), InvalidInputError,
                 "no block"),
    "rank": (lambda: estimate_variance(NOISE, method="differences", rank=4), InvalidInputError, "rank is 4"),
    "radius": (lambda: estimate_stationary(NOISE, 4), InvalidInputError, "side 9 must fit"),
    "radii": (lambda: estimate_stationary(NOISE, (1, 2, 3)), InvalidInputError, "radius has 3 entries"),
    "kernel constant": (lambda: estimate_stationary(np.ones((4, 8, 8)), 1), InvalidInputError, "no variance"),
    "kernel nan": (lambda: estimate_stationary(NOISE * np.nan, 1), InvalidInputError, "NaN"),
    "one image": (lambda: estimate_covariance(NOISE[:1]), InvalidInputError, "at least two images"),
    "singular": (lambda: estimate_covariance(NOISE, shrinkage=None), InvalidInputError,
                 "4 images of 64 pixels is singular"),
    "shrinkage": (lambda: estimate_covariance(NOISE, shrinkage="lasso"), InvalidInputError,
                  "shrinkage is 'lasso'"),
    "amount": (lambda: estimate_covariance(NOISE, shrinkage=2.0), InvalidInputError, "shrinkage must be"),
    "mean": (lambda: estimate_covariance(NOISE, mean=[1.0, 2.0]), InvalidInputError, "mean has 2 values"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
