"""Turn what a report is given into arrays that can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selkit.errors import InvalidInputError, InvalidTypeError


def as_numbers(values: ArrayLike, name: str) -> NDArray[Any]:
    """An array of real numbers, of any dtype, also from a tensor on another device."""
    given: Any = values
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = (given.float() if given.is_floating_point() and given.element_size() < 4 else given).numpy()
    array = np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(f"{name} must hold numbers, got dtype {array.dtype}.")
    return array


def as_image(values: ArrayLike) -> NDArray[Any]:
    """``(h, w)`` or ``(h, w, 3)``."""
    array = as_numbers(values, "image")
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    elif array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = np.moveaxis(array, 0, 2)
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InvalidInputError(
            f"image must have shape (h, w), (1, h, w), (3, h, w) or (h, w, 3), got {np.shape(values)}; "
            "None stands for no image."
        )
    return array


def as_attribution(values: ArrayLike, name: str, shape: tuple[int, ...] | None) -> NDArray[np.float64]:
    """``(h, w)``: contributions of several channels are added up."""
    array = as_numbers(values, name).astype(np.float64)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3:
        # channels are last only where the image says so
        array = array.sum(axis=2 if shape is not None and array.shape[:2] == shape else 0)
    _check_shape(array, name, shape, np.shape(values))
    return array


def as_region(values: ArrayLike, name: str, shape: tuple[int, ...] | None) -> NDArray[np.bool_]:
    """``(h, w)``, True inside."""
    array = as_numbers(values, name)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInputError(
            f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} NaN or inf."
        )
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[-1] == 1:  # channels last
        array = array[..., 0]
    _check_shape(array, name, shape, np.shape(values))
    inside: NDArray[np.bool_] = np.not_equal(array, 0)
    return inside


def _check_shape(
    array: NDArray[Any], name: str, shape: tuple[int, ...] | None, given: tuple[int, ...]
) -> None:
    if array.ndim != 2 or array.size == 0:
        raise InvalidInputError(f"{name} must have shape (h, w), got {given}.")
    if shape is not None and array.shape != shape:
        raise InvalidInputError(f"{name} must have the image's height and width {shape}, got {given}.")


def as_curve(parts: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    """Coverage, risk and perhaps the two ends of an interval, ``(n,)`` each."""
    if len(parts) not in (2, 4):
        raise InvalidInputError(
            f"risk_coverage must be coverage and risk, or these and the lower and upper end of an interval; "
            f"got {len(parts)} arrays."
        )
    arrays = []
    for number, part in enumerate(parts):
        array = as_numbers(part, f"risk_coverage[{number}]").astype(np.float64)
        if not np.isfinite(array).all():
            raise InvalidInputError(
                f"risk_coverage[{number}] must be finite, "
                f"got {np.count_nonzero(~np.isfinite(array))} NaN or inf."
            )
        arrays.append(array)
    coverage = arrays[0]
    if coverage.ndim != 1 or len(coverage) == 0 or any(a.shape != coverage.shape for a in arrays):
        shapes = " and ".join(str(a.shape) for a in arrays)
        raise InvalidInputError(
            f"risk_coverage must be two arrays of one length, or four; got shapes {shapes}."
        )
    if (np.diff(coverage) < 0).any() or coverage[0] < 0 or coverage[-1] > 1:
        raise InvalidInputError("risk_coverage[0] must increase from 0 to 1: the coverage of each point.")
    if len(arrays) == 4 and (arrays[2] > arrays[3]).any():
        raise InvalidInputError(
            "risk_coverage[2] must nowhere be above risk_coverage[3]: they are an interval."
        )
    return arrays
