"""Estimate the covariance of the noise, for ``var=``.

The level of a selective test is exact for a known covariance. With an estimated one it is approximate, the
better the more noise pixels there are, and it is lost if the estimate uses what the test is about: take
background, dark frames or images without signal, not the tested region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, correlate
from scipy.signal import fftconvolve
from scipy.stats import norm

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.inference.covariance import Stationary
from selkit.utils.arrays import as_tensor, check_count, check_fraction
from selkit.utils.boundary import public
from selkit.utils.checks import boolean, integer, number

Floats: TypeAlias = NDArray[np.float64]
VarianceMethod: TypeAlias = Literal["moments", "mad", "differences"]
Shrinkage: TypeAlias = Literal["ledoit_wolf", "oas"]

MAD_TO_SD = float(1 / norm.ppf(0.75))
"""A normal variable's standard deviation over its median absolute deviation, 1.4826."""

PADDING = 4
"""A kernel's spectrum is looked at on a grid this many times its side."""


@public
def estimate_variance(
    images: ArrayLike | Sequence[ArrayLike],
    background: ArrayLike | None = None,
    *,
    method: VarianceMethod = "moments",
    per_pixel: bool = False,
    rank: int = 2,
) -> float | Floats:
    """Estimate the variance of noise that is independent between pixels, from pixels that hold only noise.

    With N independent noise pixels the estimate's relative standard error is sqrt(2 / N) for "moments", and
    sqrt(5.4 / N) for "mad". The level of a test is exact only for a known variance: with an estimated one
    it is approximate, and the estimate must not come from the tested region.

    Parameters
    ----------
    images
        One image, a stack, or a sequence of images of one shape.
    background
        True where there is nothing but noise, in a shape that broadcasts against ``images``; None where
        that is everywhere.
    method
        "moments": squared deviations from the mean of all noise pixels; "mad": the median absolute
        deviation from their median, which a few bright pixels cannot spoil; "differences": second
        differences along each of the last ``rank`` axes, which a smooth background cancels in (Immerkaer
        1996, "Fast noise variance estimation", for two axes).
    per_pixel
        Estimate each pixel's own variance, from its values in all images (the first axis).
    rank
        Number of spatial axes, the last ones, for "differences".

    Returns
    -------
    float, or float64 array of an image's shape with ``per_pixel``

    Raises
    ------
    InvalidInputError
        If there are too few pixels, values that are not finite, or no noise at all.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(scale=2.0, size=(100, 100))
    >>> round(estimate_variance(noise), 1)
    4.0
    """
    stack = _stack(images, "images")
    boolean(per_pixel, "per_pixel")
    integer(rank, "rank", 1)
    if method not in get_args(VarianceMethod):
        raise InvalidInputError(
            f"method is {method!r}; it must be one of {', '.join(get_args(VarianceMethod))}"
        )
    usable = _mask(background, stack)
    _check_finite(stack[usable], "images")
    if per_pixel:
        if method == "differences":
            raise InvalidInputError("per_pixel=True compares images, not pixels; use 'moments' or 'mad'")
        return _per_pixel(stack, usable, method)
    if method == "differences":
        values = _differences(stack, usable, rank)
        return _positive(float(np.mean(values**2)))
    pixels = stack[usable]
    if len(pixels) < 2:
        raise InvalidInputError(f"background leaves {len(pixels)} pixel(s); at least two are needed")
    return _positive(float(_spread(pixels, method, 0)))


def _spread(values: Floats, method: str, axis: int) -> Floats:
    """Return the variance along an axis."""
    if method == "moments":
        return np.asarray(np.var(values, axis=axis, ddof=1))
    center = np.median(values, axis=axis, keepdims=True)
    return np.asarray((MAD_TO_SD * np.median(np.abs(values - center), axis=axis)) ** 2)


def _per_pixel(stack: Floats, usable: NDArray[np.bool_], method: str) -> Floats:
    if stack.ndim < 2 or len(stack) < 2:
        raise InvalidInputError(
            f"per_pixel=True needs at least two images along the first axis; got {stack.shape}"
        )
    if not usable.all():
        raise InvalidInputError("per_pixel=True takes images of noise alone; leave background out")
    result = _spread(stack, method, 0)
    if not (result > 0).all():
        raise InvalidInputError(
            f"{int((result <= 0).sum())} pixel(s) have the same value in all images, so their noise has no "
            "variance; mask them, or add images"
        )
    return result


def _differences(stack: Floats, usable: NDArray[np.bool_], rank: int) -> Floats:
    """Return second differences along all spatial axes, in units of the noise, inside the background."""
    axes = _spatial(stack, rank)
    kernel = np.ones((1,) * stack.ndim)
    for axis in axes:
        if stack.shape[axis] < 3:
            raise InvalidInputError(
                f"images have shape {stack.shape}; 'differences' needs sides of at least 3"
            )
        kernel = kernel * np.array([1.0, -2.0, 1.0]).reshape(
            [3 if k == axis else 1 for k in range(stack.ndim)]
        )
    inside = binary_erosion(usable, structure=np.ones(kernel.shape, dtype=bool), border_value=0)
    if not inside.any():
        raise InvalidInputError("background has no block of 3 noise pixels along each spatial axis")
    # What is outside the background is not used, and must not spread NaN.
    values = correlate(np.where(usable, stack, 0.0), kernel, mode="constant")
    return np.asarray(values[inside] / np.sqrt(np.sum(kernel**2)))


@public
def estimate_stationary(
    noise_images: ArrayLike | Sequence[ArrayLike],
    radius: int | Sequence[int],
    *,
    rank: int = 2,
    mean: float | None = None,
) -> Stationary:
    """Estimate the covariance of noise that depends on the offset between two pixels only.

    Products of pixels at each offset are averaged over positions, channels and images; then the kernel is
    moved, as little as possible, to one that is a covariance: one whose spectrum is not negative. Offsets
    beyond ``radius`` count as uncorrelated. The level of a test is exact only for a known covariance: with
    an estimated one it is approximate.

    Parameters
    ----------
    noise_images
        One image of noise, a stack, or a sequence of images of one shape; the last ``rank`` axes are
        spatial, the others are averaged over.
    radius
        Largest offset with a correlation, along each spatial axis or for all.
    rank
        Number of spatial axes.
    mean
        Of the noise where it is known, such as 0; by default that of all pixels is subtracted, and the
        covariance that this takes away is added again.

    Returns
    -------
    Stationary
        With a kernel of side ``2 radius + 1``.

    Raises
    ------
    InvalidInputError
        If the images are not larger than the kernel, not finite, or constant.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(200, 16, 16))
    >>> estimate_stationary(noise, radius=1).kernel.round(1) + 0.0
    array([[0., 0., 0.],
           [0., 1., 0.],
           [0., 0., 0.]])
    """
    stack = _stack(noise_images, "noise_images")
    _check_finite(stack, "noise_images")
    axes = _spatial(stack, rank)
    mean = None if mean is None else number(mean, "mean")
    sides = [stack.shape[axis] for axis in axes]
    reach = [radius] * rank if isinstance(radius, int) else list(radius)
    if len(reach) != rank:
        raise InvalidInputError(f"radius has {len(reach)} entries; give one for each of {rank} spatial axes")
    for one, side in zip(reach, sides, strict=True):
        if check_count(one, "radius", minimum=0) * 2 + 1 > side:
            raise InvalidInputError(
                f"radius is {radius}; the kernel's side {2 * one + 1} must fit into the images' sides {sides}"
            )
    planes = (stack - (stack.mean() if mean is None else mean)).reshape(-1, *sides)
    kernel = _autocovariance(planes, reach)
    if mean is None:
        # The mean of n pixels has the variance sum(kernel) / n, which every product has lost.
        lost = kernel.size / stack.size
        kernel = kernel + kernel.sum() / stack.size / (1 - lost)
    _positive(float(kernel[tuple(reach)]))
    return Stationary(_nearest_covariance(kernel))


def _autocovariance(planes: Floats, reach: list[int]) -> Floats:
    """Average products of pixels at each offset up to ``reach``."""
    total = sum((fftconvolve(plane, np.flip(plane), mode="full") for plane in planes), start=np.zeros(1))
    ones = np.ones(planes.shape[1:])
    pairs = len(planes) * fftconvolve(ones, ones, mode="full")
    middle = tuple(
        slice(side - 1 - one, side + one) for side, one in zip(planes.shape[1:], reach, strict=True)
    )
    kernel = np.asarray(total)[middle] / pairs[middle]
    return np.asarray((kernel + np.flip(kernel)) / 2)


def _nearest_covariance(kernel: Floats, steps: int = 200) -> Floats:
    """Return the nearest kernel of this support whose spectrum is not negative.

    Alternates between the two convex sets with Dykstra's correction, then adds the little that is missing
    to the variance.
    """
    grid = tuple(PADDING * side for side in kernel.shape)
    inside = tuple(slice(0, side) for side in kernel.shape)
    shift = tuple(side // 2 for side in kernel.shape)
    every = tuple(range(kernel.ndim))

    def spectrum(small: Floats) -> Floats:
        large = np.zeros(grid)
        large[inside] = small
        return np.asarray(np.fft.fftn(np.roll(large, [-one for one in shift], every)).real)

    def crop(values: Floats) -> Floats:
        return np.asarray(np.roll(np.fft.ifftn(values).real, shift, every)[inside])

    current, correction = kernel, np.zeros(grid)
    for _ in range(steps):
        values = spectrum(current) + correction
        if values.min() >= 0:
            break
        correction = np.minimum(values, 0.0)
        current = crop(values - correction)
    missing = -min(float(spectrum(current).min()), 0.0)
    current = (current + np.flip(current)) / 2
    current[shift] += missing
    return current


@public
def estimate_covariance(
    noise_images: ArrayLike | Sequence[ArrayLike],
    *,
    shrinkage: Shrinkage | float | None = "ledoit_wolf",
    mean: ArrayLike | None = None,
) -> Floats:
    """Estimate the covariance matrix of all pixels from images of noise.

    It takes many images: with fewer than there are pixels the sample covariance is singular, and shrinkage
    makes it usable but not right. Prefer :func:`estimate_stationary` where the noise is the same
    everywhere. The level of a test is exact only for a known covariance: with an estimated one it is
    approximate.

    Parameters
    ----------
    noise_images
        Of shape (N, ...), or a sequence of N images of one shape.
    shrinkage
        How far to go from the sample covariance towards a multiple of the identity: "ledoit_wolf" (Ledoit &
        Wolf 2004) or "oas" (Chen et al. 2010) choose it from the data; a number in [0, 1]; None for 0.
    mean
        Of the noise where it is known, such as 0; by default each pixel's own mean is subtracted.

    Returns
    -------
    float64 array of shape (P, P)
        For the P pixels of an image, flattened; positive definite.

    Raises
    ------
    InvalidInputError
        If the matrix is not positive definite, or the images cannot be used.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(500, 2, 2))
    >>> estimate_covariance(noise).shape
    (4, 4)
    """
    from sklearn.covariance import empirical_covariance, ledoit_wolf, oas, shrunk_covariance

    stack = _stack(noise_images, "noise_images")
    _check_finite(stack, "noise_images")
    if stack.ndim < 2 or len(stack) < 2:
        raise InvalidInputError(f"noise_images has shape {stack.shape}; give at least two images (N, ...)")
    rows = stack.reshape(len(stack), -1)
    center = rows.mean(axis=0) if mean is None else as_tensor(mean, "mean").double().cpu().numpy().reshape(-1)
    if center.size not in (1, rows.shape[1]):
        raise InvalidInputError(f"mean has {center.size} values; give one, or one for each pixel")
    rows = rows - center
    _check_finite(rows**2, "noise_images without their mean, squared,")
    if isinstance(shrinkage, str):
        if shrinkage not in get_args(Shrinkage):
            raise InvalidInputError(
                f"shrinkage is {shrinkage!r}; give {' or '.join(get_args(Shrinkage))}, a number or None"
            )
        matrix = (ledoit_wolf if shrinkage == "ledoit_wolf" else oas)(rows, assume_centered=True)[0]
    else:
        amount = 0.0 if shrinkage is None else check_fraction(shrinkage, "shrinkage")
        matrix = shrunk_covariance(empirical_covariance(rows, assume_centered=True), shrinkage=amount)
    if mean is None:
        # Subtracting the mean of N images has taken away 1 / N of the variance.
        matrix = matrix * (len(rows) / (len(rows) - 1))
    smallest, largest = np.linalg.eigvalsh(matrix)[[0, -1]]
    if not smallest > 1e-12 * largest:
        raise InvalidInputError(
            f"the covariance of {len(rows)} images of {rows.shape[1]} pixels is singular; give more images, "
            "or shrinkage='ledoit_wolf'"
        )
    return np.asarray(matrix, dtype=np.float64)


def _stack(images: object, name: str) -> Floats:
    """Return images as one float64 array."""
    parts = [
        as_tensor(part, name).double().cpu().numpy() if isinstance(part, torch.Tensor) else part
        for part in (images if isinstance(images, list | tuple) else [images])
    ]
    try:
        stack = np.asarray(parts if isinstance(images, list | tuple) else parts[0])
    except ValueError as error:
        raise InvalidInputError(f"{name} must be images of one shape: {error}") from error
    if stack.dtype.kind not in "fiub":
        raise InvalidTypeError(f"{name} has dtype {stack.dtype}; give real numbers")
    if not stack.size or not stack.ndim:
        raise InvalidInputError(f"{name} has shape {stack.shape}; give at least one image")
    return stack.astype(np.float64)


def _mask(background: ArrayLike | None, stack: Floats) -> NDArray[np.bool_]:
    if background is None:
        return np.ones(stack.shape, dtype=bool)
    tensor = isinstance(background, torch.Tensor)
    given = as_tensor(background, "background").double().cpu().numpy() if tensor else np.asarray(background)
    if not np.isin(given, (0, 1)).all():
        raise InvalidInputError("background must be True or False for each pixel")
    try:
        usable = np.broadcast_to(given.astype(bool), stack.shape)
    except ValueError as error:
        raise InvalidInputError(
            f"background has shape {given.shape}, which does not fit images of shape {stack.shape}"
        ) from error
    if not usable.any():
        raise InvalidInputError("background leaves no pixel")
    return usable


def _check_finite(values: Floats, name: str) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InvalidInputError(f"{name} has {bad} value(s) that are NaN or infinite; leave them out")


def _spatial(stack: Floats, rank: int) -> list[int]:
    if check_count(rank, "rank") > stack.ndim:
        raise InvalidInputError(f"rank is {rank}, but the images' shape {stack.shape} has fewer axes")
    return list(range(stack.ndim - rank, stack.ndim))


def _positive(variance: float) -> float:
    if not variance > 0:
        raise InvalidInputError("the noise has no variance: the pixels that were given are constant")
    return variance
