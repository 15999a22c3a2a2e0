"""Features of an ONNX model: any of its values, computed by onnxruntime."""

from __future__ import annotations

import contextlib
import difflib
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

_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def read_model(model: str | Path | bytes | onnx.ModelProto) -> onnx.ModelProto:
    """An ONNX model from a file, bytes or as it is.

    Raises
    ------
    FileFormatError
        If it is not an ONNX model.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise FileFormatError(
            f"{'the bytes' if isinstance(model, bytes) else model} is not an ONNX model: {error}"
        ) from error
    if not proto.graph.node:
        raise FileFormatError(
            f"{'the bytes' if isinstance(model, bytes) else model} is not an ONNX model: it has no nodes"
        )
    return proto


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
        proto = read_model(model)
        self.want, self.pool = want, pool
        self.layer = _value_name(proto, layer, want)
        self.content = _with_output(proto, self.layer).SerializeToString()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(self.content, options, providers=ort.get_available_providers())
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise InvalidInputError(
                f"the model takes {[i.name for i in inputs]}; only one input is supported"
            )
        self._input = inputs[0]
        if self._input.type not in _FLOATS:
            raise InvalidTypeError(f"the model's input is {self._input.type}; a floating one is needed")

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
        array = inputs.detach().cpu().numpy().astype(_FLOATS[self._input.type], copy=False)
        shape = self._input.shape
        if array.ndim != len(shape):
            raise InvalidInputError(f"the model takes {shape}; got an array of shape {array.shape}")
        fixed = shape[0] if isinstance(shape[0], int) else None
        parts = [self._run(array)] if fixed in (None, len(array)) else list(self._pieces(array, fixed or 1))
        features = torch.from_numpy(np.concatenate(parts)).to(inputs.device)
        return pooled(features, self.pool) if self.want == "embedding" else features

    def _run(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        try:
            result: np.ndarray[Any, Any] = self._session.run([self.layer], {self._input.name: array})[0]
        # onnxruntime raises classes of its own, all of which mean the same here
        except Exception as error:
            raise InvalidInputError(
                f"onnxruntime cannot run the model, whose input is {self._input.shape}, on an array of shape "
                f"{array.shape}: {error}"
            ) from error
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


def _with_output(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy whose only output is this value, with its type from shape inference."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    declared = {value.name: value for value in copy.graph.output}
    if name not in declared:
        inferred = onnx.shape_inference.infer_shapes(copy).graph
        declared.update({value.name: value for value in inferred.value_info})
    value = onnx.ValueInfoProto()
    value.CopyFrom(declared[name]) if name in declared else value.__setattr__("name", name)
    del copy.graph.output[:]
    copy.graph.output.append(value)
    return copy
