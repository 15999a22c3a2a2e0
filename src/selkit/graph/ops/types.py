"""ONNX number types and tensors as torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from selkit.graph.ops.base import UnsupportedAttribute

_DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    # half precision is for speed: every number that it has exists in single precision
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    # torch calculates with signed integers only
    TensorProto.UINT16: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
}

_STORED: dict[int, torch.dtype] = {
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.FLOAT8E4M3FN: torch.float32,
    TensorProto.FLOAT8E4M3FNUZ: torch.float32,
    TensorProto.FLOAT8E5M2: torch.float32,
    TensorProto.FLOAT8E5M2FNUZ: torch.float32,
}
"""Types that only stored values of quantized models have."""

HALF = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
"""Types that are computed in higher precision."""


def torch_dtype(element_type: int) -> torch.dtype:
    """Torch's dtype for an ONNX element type.

    Raises
    ------
    UnsupportedAttribute
        For a type that selkit does not calculate with (strings, complex numbers, 8-bit floats, ...).
    """
    dtype = _DTYPES.get(element_type)
    if dtype is None:
        known = TensorProto.DataType.items()
        name = next((name for name, value in known if value == element_type), str(element_type))
        raise UnsupportedAttribute(f"number type {name} is not supported")
    return dtype


def element_type(dtype: torch.dtype) -> int:
    """An ONNX element type for torch's dtype."""
    return next(kind for kind, known in _DTYPES.items() if known == dtype)


_WIDTHS: dict[int, int] = {TensorProto.UINT16: 16, TensorProto.UINT32: 32, TensorProto.UINT64: 64}


def cast(x: Tensor, element_type: int) -> Tensor:
    """Convert to an ONNX element type, as onnxruntime does.

    Raises
    ------
    UnsupportedAttribute
        For numbers beyond what an unsigned type holds, where processors differ.
    """
    y = x.to(torch_dtype(element_type))
    width = _WIDTHS.get(element_type)
    if width is None or x.is_meta:
        return y
    if x.is_floating_point() and not bool((x.abs() < 2**63).all()):
        raise UnsupportedAttribute("casts numbers that are not finite, or too large, to an unsigned type")
    if width == 64 and bool((y < 0).any()):
        raise UnsupportedAttribute(
            "casts negative numbers to uint64; those of 2**63 and above are not supported"
        )
    return y if width == 64 else y & (2**width - 1)


def to_tensor(proto: TensorProto, held: NDArray[Any] | None = None) -> Tensor:
    """Convert an ONNX tensor whose data is in memory; the result has no stack axis.

    Parameters
    ----------
    proto
        With its data, unless that is ``held`` apart.
    held
        The values, where they are not in ``proto``.

    Raises
    ------
    UnsupportedAttribute
        For an unsupported number type.
    """
    dtype = _STORED.get(proto.data_type) or torch_dtype(proto.data_type)
    array = onnx.numpy_helper.to_array(proto) if held is None else held
    if dtype == torch.float32:
        return torch.from_numpy(
            np.array(array, dtype=np.float32) if held is None else held.astype(np.float32, copy=False)
        )
    if array.dtype == np.uint64 and array.size and int(array.max()) >= 2**63:
        raise UnsupportedAttribute("uint64 numbers of 2**63 and above are not supported")
    if array.dtype in (np.uint16, np.uint32, np.uint64) or proto.data_type in _STORED:
        return torch.from_numpy(array.astype(np.int64)).to(dtype)
    return torch.from_numpy(np.array(array))
