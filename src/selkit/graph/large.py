"""Models beyond what protobuf writes in one piece (2 GiB): large stored values are held beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = dict[str, NDArray[Any]]

LARGE = 2**16
"""Bytes from which a stored value is held apart."""
LIMIT = 3 * 2**29
"""Bytes up to which a model is written in one piece; protobuf ends at 2 GiB."""


def apart(model: onnx.ModelProto, held: Mapping[str, NDArray[Any]] = {}) -> Arrays:
    """Take the large stored values out of a model, in place, and return them by name.

    Parameters
    ----------
    model
        Afterwards it has names in their place, as onnxruntime's ``add_external_initializers`` expects them.
    held
        Values that have been taken out already.
    """
    arrays: Arrays = dict(held)
    for tensor in model.graph.initializer:
        if tensor.name not in arrays and len(tensor.raw_data) >= LARGE:
            arrays[tensor.name] = numpy_helper.to_array(tensor).copy()
            tensor.CopyFrom(placeholder(tensor.name, tensor.data_type, arrays[tensor.name]))
    return arrays


def placeholder(name: str, kind: int, array: NDArray[Any]) -> TensorProto:
    """What stands in the model for a value that is held apart."""
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "in-memory"), ("offset", 0), ("length", array.nbytes)):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    return tensor


def whole(kind: int) -> bool:
    """Whether an element of an ONNX type fills whole bytes, so that numpy reads it from a file."""
    try:
        return helper.tensor_dtype_to_np_dtype(kind).itemsize * 8 >= 8 and kind not in _PACKED
    except KeyError:
        return False


_PACKED = {
    getattr(TensorProto, name)
    for name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1", "STRING")
    if hasattr(TensorProto, name)
}


def open_session(
    model: onnx.ModelProto, held: Mapping[str, NDArray[Any]], options: Any, providers: Any
) -> Any:
    """An onnxruntime session of a model of any size.

    Parameters
    ----------
    model
        Is changed in place if it is large.
    held
        Values that are held apart.
    options, providers
        Of the session.
    """
    import onnxruntime as ort

    arrays = dict(held)
    if model.ByteSize() > LIMIT:
        arrays = apart(model, held)
    if arrays:
        values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
