"""What a user hands in as numbers, turned into checked tensors."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.checks import given

ArrayLike: TypeAlias = Tensor | npt.NDArray[Any]

EXACT_INTEGER = 2**24  # float32 holds every integer up to here


def as_tensor(values: object, name: str) -> Tensor:
    """Any array as a tensor that shares its memory where it can.

    Parameters
    ----------
    values
        A tensor, a NumPy array, or anything that NumPy can turn into a numeric array.
    name
        How the argument is called, for messages.

    Returns
    -------
    Tensor
        Detached from any graph, on the device of the input.

    Raises
    ------
    InvalidTypeError
        For what is not an array of numbers.
    """
    if isinstance(values, Tensor):
        if values.layout is not torch.strided:
            raise InvalidTypeError(f"{name} is a sparse tensor; call .to_dense() first")
        if values.is_meta:
            raise InvalidTypeError(f"{name} is a tensor on the device 'meta', which has no values")
        return values.detach()
    if values is None or isinstance(values, (str, bytes, dict)) or hasattr(values, "toarray"):
        raise InvalidTypeError(
            f"{name} must be a dense torch tensor or NumPy array of numbers; got {type(values).__name__}"
        )
    if isinstance(values, np.ma.MaskedArray):
        hidden = int(np.asarray(values.mask).sum()) if np.ndim(values.mask) else 0
        if hidden or values.mask is np.True_:
            raise InvalidInputError(
                f"{name} is a masked array with {hidden} masked entries, whose values mean nothing; drop "
                "them first, or fill them in with .filled(...)"
            )
        values = values.data
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInputError(
            f"{name} must be one array: {error}; bring its samples to one shape"
        ) from error
    except Exception as error:  # an object whose own conversion fails
        raise InvalidTypeError(f"{name} cannot be read as one array of numbers: {error}") from error
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise InvalidTypeError(f"{name} must hold real numbers of at most 64 bits; got dtype {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = array.view(f"{array.dtype.kind}{array.dtype.itemsize}")  # C's long long is of 64 bits too
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()  # torch can share neither read-only nor reversed memory
    return torch.from_numpy(array)


def as_floating(values: Tensor, name: str) -> Tensor:
    """A floating tensor of at least 32 bits; nothing is rounded on the way.

    Half precision and bfloat16 become float32; so do booleans and integers up to 2**24.

    Raises
    ------
    InvalidTypeError
        For complex numbers, and integers that float32 cannot hold.
    """
    if values.dtype in (torch.float32, torch.float64):
        return values
    if values.is_floating_point():
        return values.float()
    if values.is_complex():
        raise InvalidTypeError(f"{name} must be real; got {values.dtype}")
    wide = values.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64)
    # in float64, where the smallest int64 has an absolute value and unsigned integers have a maximum
    if wide and values.numel() and float(values.double().abs().max()) > EXACT_INTEGER:
        raise InvalidTypeError(
            f"{name} holds integers above 2**24, which float32 rounds; convert it to float64 yourself"
        )
    return values.float()


def check_finite(values: Tensor, name: str) -> None:
    """Refuse NaN and infinity, naming the first row that has one.

    Raises
    ------
    InvalidInputError
        If any entry is NaN or infinite.
    """
    if not values.numel():
        return
    low, high = torch.aminmax(values)  # both carry a NaN on, and need no memory
    if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
        return
    rows = values.reshape(values.shape[0], -1) if values.ndim else values.reshape(1, 1)
    count, first = 0, -1
    for start, block in enumerate(torch.split(rows, 4096)):
        bad = (~torch.isfinite(block)).any(1)
        if first < 0 and bool(bad.any()):
            first = start * 4096 + int(bad.nonzero()[0, 0])
        count += int(bad.sum())
    raise InvalidInputError(
        f"{name} has NaN or infinite values in {count} of {len(rows)} rows, first in row {first}; "
        "remove these rows or mend what made them"
    )


def as_matrix(values: object, name: str) -> Tensor:
    """A finite floating tensor of shape ``(N, D)`` with at least one row and one column.

    Raises
    ------
    InvalidInputError
        For another number of axes, an empty array, NaN or infinity.
    InvalidTypeError
        For what is not an array of real numbers.
    """
    tensor = as_tensor(values, name)
    if tensor.ndim != 2:
        raise InvalidInputError(
            f"{name} must have shape (samples, features); got {tuple(tensor.shape)}. "
            "One sample needs a first axis of length 1"
        )
    if not tensor.numel():
        raise InvalidInputError(f"{name} is empty: its shape is {tuple(tensor.shape)}")
    tensor = as_floating(tensor, name)
    check_finite(tensor, name)
    return tensor


def as_labels(values: object, name: str, rows: int) -> Tensor:
    """Integer class labels, ``(N,)``, or a 0/1 matrix ``(N, C)`` for several labels a sample.

    Raises
    ------
    InvalidInputError
        For another length, labels that are not whole numbers, a matrix that is not 0/1.
    """
    tensor = as_tensor(values, name)
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim not in (1, 2) or tensor.shape[0] != rows:
        raise InvalidInputError(
            f"{name} must have shape ({rows},) or ({rows}, classes); got {tuple(tensor.shape)}"
        )
    if tensor.is_floating_point():
        if not bool((torch.isfinite(tensor) & (tensor == tensor.round())).all()):
            raise InvalidInputError(
                f"{name} must hold whole numbers; got others or NaN (missing labels must be dropped)"
            )
    elif tensor.is_complex():
        raise InvalidTypeError(f"{name} must hold whole numbers; got {tensor.dtype}")
    tensor = tensor.long()
    if tensor.ndim == 2 and not bool(((tensor == 0) | (tensor == 1)).all()):
        raise InvalidInputError(f"{name} with several columns must be a 0/1 matrix (samples, classes)")
    return tensor


def as_vector(values: object, name: str, *, finite: bool = True) -> npt.NDArray[np.float64]:
    """A float64 NumPy vector with at least one entry, without NaN.

    Raises
    ------
    InvalidInputError
        For another number of axes, an empty array, NaN, or infinity where ``finite``.
    """
    tensor = as_tensor(values, name)
    if tensor.ndim != 1 or not tensor.numel():
        raise InvalidInputError(
            f"{name} must be one number per sample, shape (samples,); got {tuple(tensor.shape)}"
        )
    if tensor.is_complex():
        raise InvalidTypeError(f"{name} must be real; got {tensor.dtype}")
    vector: npt.NDArray[np.float64] = tensor.double().cpu().numpy()
    bad = ~np.isfinite(vector) if finite else np.isnan(vector)
    if bad.any():
        raise InvalidInputError(
            f"{name} has {'NaN or infinite' if finite else 'NaN'} values: {int(bad.sum())} of {len(vector)}, "
            f"first at position {int(bad.argmax())}"
        )
    return vector


def check_count(value: object, name: str, minimum: int = 1) -> int:
    """A whole number, or an error that names the argument.

    Raises
    ------
    InvalidInputError
        For another type or a smaller number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise InvalidInputError(f"{name} must be a whole number of at least {minimum}; got {given(value)}")
    return int(value)


def check_fraction(value: object, name: str, *, zero: bool = True, one: bool = True) -> float:
    """A number between 0 and 1, with or without the ends.

    Raises
    ------
    InvalidInputError
        For another type or a number outside.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not (0 <= value <= 1) or (value == 0 and not zero) or (value == 1 and not one):  # type: ignore[operator]
        ends = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise InvalidInputError(f"{name} must be a fraction in {ends}; got {given(value)}")
    return float(value)  # type: ignore[arg-type]
