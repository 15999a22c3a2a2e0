"""Features of an ONNX model: any of its values, computed by onnxruntime."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from selkit.embeddings.batches import to_device
from selkit.embeddings.sources import Identity, Pool, Want, pooled
from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.graph import large
from selkit.graph.files import read_apart
from selkit.graph.large import Arrays
from selkit.graph.tidy import keep

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    **{
        f"tensor({sign}int{bits})": getattr(np, f"{sign}int{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "tensor(bool)": np.bool_,
}


def read_model(model: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Arrays]:
    """A copy of an ONNX model from a file, bytes or a model, and its large values in other files.

    Raises
    ------
    FileFormatError
        If it is not an ONNX model.
    """
    if isinstance(model, str | Path) and not Path(model).exists():
        raise FileNotFoundError(f"no such file: {model}")
    what = (
        "the bytes"
        if isinstance(model, bytes)
        else "the model"
        if isinstance(model, onnx.ModelProto)
        else model
    )
    try:
        proto, arrays = read_apart(model)
    except FileFormatError as error:
        raise FileFormatError(f"{what} is not an ONNX model: {error}") from error
    if not proto.graph.node:
        raise FileFormatError(f"{what} is not an ONNX model: it has no nodes")
    return proto, arrays


class OnnxSource:
    """Features of an ONNX model with one input.

    Parameters
    ----------
    model
        Path, bytes or ``ModelProto``.
    want
        What the features are for; logits are taken as they come, embeddings are pooled to ``(N, D)``.
    layer
        Name of an output or of an inner value of the graph. Without it the first output is taken for
        logits, and the only output for embeddings.
    pool
        See :func:`selkit.embeddings.sources.pooled`.

    Raises
    ------
    FileFormatError
        If it is not an ONNX model.
    InvalidInputError
        If there is no such value, or the model has several inputs, or several outputs and none is named.
    """

    def __init__(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        want: Want = "embedding",
        *,
        layer: str | None = None,
        pool: Pool = None,
    ) -> None:
        proto, held = read_model(model)
        self.want, self.pool = want, pool
        self.layer = _value_name(proto, layer, want)
        _only_output(proto, self.layer)
        arrays = {tensor.name: held[tensor.name] for tensor in proto.graph.initializer if tensor.name in held}
        if proto.ByteSize() > large.LIMIT:
            arrays = large.apart(proto, arrays)
        content = proto.SerializeToString()
        self.content = content + b"".join(_digest(name, array) for name, array in sorted(arrays.items()))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = large.open_session(proto, arrays, options, ort.get_available_providers())
        except Exception as error:  # onnxruntime's errors have no common base
            raise InvalidInputError(f"onnxruntime cannot load the model: {error}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise InvalidInputError(
                f"the model takes {[i.name for i in inputs]}; only one input is supported"
            )
        self._input = inputs[0]
        if self._input.type not in _TYPES:
            raise InvalidTypeError(
                f"the model's input is {self._input.type}; it must be one of {list(_TYPES)}"
            )

    @property
    def identity(self) -> Identity:
        """What the features depend on."""
        return self.content, (self.want, self.layer, self.pool)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """An ONNX model has no modes: nothing to do."""
        yield

    def __call__(self, inputs: Any) -> Tensor:
        """Features of one batch, on the device of the input."""
        inputs = to_device(inputs, None)
        if not isinstance(inputs, Tensor):
            raise InvalidTypeError(f"an ONNX model takes one tensor; got {type(inputs).__name__}")
        array = _as(inputs.detach().cpu().numpy(), np.dtype(_TYPES[self._input.type]))
        shape = self._input.shape
        if array.ndim != len(shape):
            raise InvalidInputError(f"the model takes {shape}; got an array of shape {array.shape}")
        if not len(array):
            raise InvalidInputError(f"the batch is empty: its shape is {array.shape}")
        fixed = shape[0] if shape and isinstance(shape[0], int) else None
        whole = fixed is None or fixed == len(array)
        parts = [self._run(array)] if whole else list(self._pieces(array, fixed or 1))
        features = torch.from_numpy(np.concatenate(parts)).to(inputs.device)
        return pooled(features, self.pool) if self.want == "embedding" else features

    def _run(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        try:
            result: np.ndarray[Any, Any] = self._session.run([self.layer], {self._input.name: array})[0]
        except Exception as error:  # onnxruntime's errors have no common base
            raise InvalidInputError(
                f"onnxruntime cannot run the model, which takes {self._input.shape}, on an array of shape "
                f"{array.shape}: {error}"
            ) from error
        if not result.ndim or result.shape[0] != len(array):
            raise InvalidInputError(
                f"{self.layer!r} has the shape {result.shape} for {len(array)} samples; its first axis must "
                "be that of the samples, so that each row belongs to one of them. Name another value with "
                "layer=, or export the model with an open batch axis"
            )
        return result

    def _pieces(self, array: np.ndarray[Any, Any], size: int) -> Iterator[np.ndarray[Any, Any]]:
        """The batch cut to the size that the model was exported with; the last piece is filled up."""
        for start in range(0, len(array), size):
            piece = array[start : start + size]
            missing = size - len(piece)
            if missing:
                piece = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
            yield self._run(piece)[: size - missing]


def _value_name(proto: onnx.ModelProto, layer: str | None, want: Want) -> str:
    outputs = [value.name for value in proto.graph.output]
    if layer is None:
        if want == "embedding" and len(outputs) > 1:
            raise InvalidInputError(
                f"the model has the outputs {outputs}; say which is the embedding: layer="
            )
        return str(outputs[0])
    values = {name for node in proto.graph.node for name in node.output if name} | set(outputs)
    if layer not in values:
        near = difflib.get_close_matches(layer, values, n=5, cutoff=0.3)
        raise InvalidInputError(
            f"the model has no value {layer!r}; near it are {near}, its outputs are {outputs}"
        )
    return layer


def _only_output(proto: onnx.ModelProto, name: str) -> None:
    """Make a value the only output, with its type from shape inference; what it does not need is removed."""
    declared = {value.name: value for value in proto.graph.output}
    if name not in declared:
        inferred = onnx.shape_inference.infer_shapes(_sketch(proto)).graph
        declared.update({value.name: value for value in inferred.value_info})
    value = onnx.ValueInfoProto()
    value.CopyFrom(declared[name]) if name in declared else value.__setattr__("name", name)
    del proto.graph.output[:]
    proto.graph.output.append(value)
    keep(proto, [name])


def _sketch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model, without its large values if it is too large to be written."""
    if proto.ByteSize() <= large.LIMIT:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    large.apart(copy)
    return copy


def _digest(name: str, array: np.ndarray[Any, Any]) -> bytes:
    """What a large value is known by."""
    digest = hashlib.blake2b(name.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _as(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Numbers in the type that the model takes; integers stay integers, and nothing is rounded.

    Raises
    ------
    InvalidTypeError
        If real numbers are given where the model takes integers.
    InvalidInputError
        If integers are beyond what the type holds.
    """
    if dtype.kind == "f" or array.dtype == dtype:
        return array.astype(dtype, copy=False)
    if array.dtype.kind not in "iub":
        raise InvalidTypeError(
            f"the model takes {dtype} (bytes, token ids), but the batch is {array.dtype}; give integers"
        )
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if array.size and not (low <= int(array.min()) and int(array.max()) <= high):
        raise InvalidInputError(
            f"the model takes {dtype}, but the batch has values from {array.min()} to {array.max()}"
        )
    return array.astype(dtype)
