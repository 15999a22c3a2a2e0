"""What a user hands to a test: checked, and brought into the form that the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.graph import ValueSpec
from selkit.inference.layout import Axes, fit_to_input
from selkit.utils.arrays import as_tensor

Array = NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arrays of one test, float64 and with a batch axis of 1.

    Attributes
    ----------
    tested
        The input whose contrast is tested.
    others
        The model's other inputs by name.
    reference
        What the tested input is compared with, if anything.
    """

    tested: Tensor
    others: dict[str, Tensor]
    reference: Tensor | None


def read_inputs(
    x: Array | Sequence[Array],
    specs: Sequence[ValueSpec],
    tested: int,
    *,
    with_reference: bool,
    device: torch.device,
) -> Inputs:
    """Split what was given into the tested input, the other inputs and the reference.

    Parameters
    ----------
    x
        One array, or all inputs of the model and then the reference.
    specs
        The model's inputs.
    tested
        Index of the tested one.
    with_reference
        Whether a reference is expected.
    device
        Where to put the arrays.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If the number, type, shape or values of the arrays do not fit.
    """
    given: list[Any] = list(x) if isinstance(x, list | tuple) else [x]
    names = ", ".join(spec.name for spec in specs)
    if len(given) != len(specs) + with_reference:
        wanted = f"{len(specs)} input(s): {names}"
        if with_reference:
            wanted += ", and then the reference: give x as (x, reference) for ReferenceMeanDiff"
        raise InvalidInputError(f"x has {len(given)} array(s), but the test takes {wanted}")
    last = given.pop() if with_reference else None
    tensors = [
        to_tensor(value, spec.name, spec.shape, device) for value, spec in zip(given, specs, strict=True)
    ]
    others = {
        spec.name: tensor
        for place, (spec, tensor) in enumerate(zip(specs, tensors, strict=True))
        if place != tested
    }
    image = tensors[tested]
    reference = to_tensor(last, "reference", tuple(image.shape), device) if with_reference else None
    return Inputs(image, others, reference)


def to_tensor(value: Any, name: str, declared: tuple[int | None, ...] | None, device: torch.device) -> Tensor:
    """Check one array against the model's declaration, adding the batch axis where it is missing."""
    if not isinstance(value, Tensor | np.ndarray):
        raise InvalidTypeError(f"{name} is a {type(value).__name__}; give a numpy array or a torch tensor")
    tensor = as_tensor(value, name).to(device)
    if tensor.is_complex():
        raise InvalidTypeError(f"{name} has dtype {tensor.dtype}; give real numbers")
    tensor = tensor.to(torch.float64)
    if declared is not None and tensor.ndim == len(declared) - 1:
        tensor = tensor[None]
    fits = declared is None or (
        tensor.ndim == len(declared)
        and all(side is None or side == got for side, got in zip(declared, tensor.shape, strict=True))
    )
    if not fits:
        raise InvalidInputError(f"{name} has shape {tuple(tensor.shape)}; the model takes {declared}")
    if tensor.ndim > 1 and tensor.shape[0] != 1 and (declared is None or declared[0] in (None, 1)):
        raise InvalidInputError(f"{name} has a batch of {tensor.shape[0]}; test one image at a time")
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidInputError(f"{name} contains NaN or infinite values; replace them before testing")
    return tensor


def read_mask(
    mask: Array | None, region: tuple[int, ...], shape: tuple[int, ...], tested: Axes | None = None
) -> NDArray[np.bool_]:
    """Return the usable pixels in the shape of the region.

    Parameters
    ----------
    mask
        Zeros and ones, or ``None`` for all pixels.
    region
        Shape of the region, of the input's rank.
    shape
        Shape of the input.
    tested
        Its axes, where they are known.
    """
    if mask is None:
        return np.ones(region, dtype=bool)
    given = torch.as_tensor(mask).detach().cpu()
    if given.is_floating_point() and not bool(((given == 0) | (given == 1)).all()):
        raise InvalidInputError("mask has values other than 0 and 1")
    try:
        usable = np.broadcast_to(fit_to_input(given, shape, tested=tested).numpy().astype(bool), region)
    except ValueError as error:
        if "layout=" in str(error):
            raise
        raise InvalidInputError(
            f"mask has shape {tuple(given.shape)}; it must have the region's shape, {region} or without the "
            "axes of length one"
        ) from error
    if not usable.any():
        raise InvalidInputError("mask leaves no pixel")
    return usable.copy()
