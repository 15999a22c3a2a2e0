"""Write nodes behind a model, in the version of the operators that the model uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.utils.arrays import check_count

PREFIX = "selkit/"
Array: TypeAlias = npt.NDArray[Any]
Value: TypeAlias = str | Tensor | Array
Sizes: TypeAlias = tuple[int | None, ...]

SMALL = 4096  # values up to this size are kept for shape inference: they may be shapes
AXES_SINCE = {"ReduceSum": 13}  # the version from which axes are an input; 18 for the other reductions


def as_array(values: Tensor | Array) -> Array:
    """Numbers of a tensor or an array, on the CPU."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


class Emitter:
    """Appends standard operators to a model, under names that the model does not use.

    Scores are computed in float64: every value named by a method is, unless it says otherwise.

    Parameters
    ----------
    model
        Is changed in place.
    max_references
        How many references scores may store in it, all together.

    Attributes
    ----------
    model
        The model so far.
    max_references, references
        How many references may be stored, and how many are.
    opset
        Version of ONNX' own operators in it.
    """

    def __init__(self, model: onnx.ModelProto, max_references: int = 100_000) -> None:
        self.model = model
        self.max_references = check_count(max_references, "max_references")
        self.references = 0
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._names = set(known_values(model.graph))
        self._count = 0
        self._shapes: dict[str, Sizes] = {}
        self._kinds: dict[str, int] = {}
        self._inferred = -1

    def name(self, hint: str) -> str:
        """A name that is not used yet."""
        while True:
            self._count += 1
            name = f"{PREFIX}{hint}_{self._count}"
            if name not in self._names:
                self._names.add(name)
                return name

    def op(self, op_type: str, *inputs: Value, **attributes: Any) -> str:
        """Append an operator with one output, and return its name.

        Parameters
        ----------
        op_type
            Name of the ONNX operator.
        *inputs
            Names of values, or numbers for constants; ``""`` leaves an optional input out.
        **attributes
            The operator's ONNX attributes.
        """
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, outputs: int, *inputs: Value, **attributes: Any) -> list[str]:
        """Append an operator with several outputs, and return their names."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        results = [self.name(op_type) for _ in range(outputs)]
        node = helper.make_node(op_type, names, results, name=f"{results[0]}_node", **attributes)
        self.model.graph.node.append(node)
        return results

    def constant(self, values: Tensor | Array, name: str | None = None) -> str:
        """Store numbers as they are, and return their name."""
        array = np.ascontiguousarray(as_array(values)).reshape(np.shape(as_array(values)))
        label = self.name("constant") if name is None else name
        self.model.graph.initializer.append(numpy_helper.from_array(array, label))
        return label

    def double(self, values: Value) -> str:
        """Values in float64: of a value by a cast, of stored numbers as well, so that float32 stays small."""
        if isinstance(values, str):
            return self.cast(values, np.float64)
        array = as_array(values)
        wide = array.dtype == np.float64 or array.size <= SMALL
        return (
            self.constant(array.astype(np.float64)) if wide else self.cast(self.constant(array), np.float64)
        )

    def number(self, value: float) -> str:
        """One number in float64."""
        return self.constant(np.asarray(value, dtype=np.float64))

    def cast(self, value: str, dtype: npt.DTypeLike) -> str:
        """Values in another type."""
        return self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reduce(self, op_type: str, value: str, axes: Sequence[int], *, keepdims: bool = False) -> str:
        """A reduction, whose axes are an attribute or an input by version."""
        if self.opset >= AXES_SINCE.get(op_type, 18):
            return self.op(op_type, value, np.asarray(axes, dtype=np.int64), keepdims=int(keepdims))
        return self.op(op_type, value, axes=list(axes), keepdims=int(keepdims))

    def count_references(self, number: int) -> None:
        """Note that a score stores this many references more.

        Raises
        ------
        InvalidInputError
            If the user allows fewer.
        """
        self.references += number
        if self.references > self.max_references:
            raise InvalidInputError(
                f"the score needs {self.references} references in the file, but max_references is "
                f"{self.max_references}; raise it, or fit on fewer (fit(..., q=0.5) keeps the usual half)"
            )

    def top(self, values: str, k: int, *, largest: bool, axis: int = 1) -> tuple[str, str]:
        """The k smallest or largest along an axis, the extreme one first, and where they are."""
        count = np.asarray([k], dtype=np.int64)
        found, place = self.ops("TopK", 2, values, count, axis=axis, largest=int(largest), sorted=1)
        return found, place

    def output(self, value: str, name: str, kind: int, shape: Sequence[int | str | None]) -> None:
        """Make a value an output of the model, under a name of its own."""
        self.model.graph.node.append(
            helper.make_node("Identity", [value], [name], name=f"{PREFIX}{name}_out")
        )
        self.model.graph.output.append(helper.make_tensor_value_info(name, kind, list(shape)))

    # what is known of values

    def kind(self, name: str) -> int:
        """ONNX' number of a value's type.

        Raises
        ------
        InvalidInputError
            If it cannot be inferred.
        """
        self._infer()
        if name not in self._kinds:
            raise InvalidInputError(
                f"the type of the value {name!r} cannot be inferred from the model; make it an output of the "
                "model with a declared type"
            )
        return self._kinds[name]

    def shape(self, name: str) -> Sizes | None:
        """ONNX shape of a value, ``None`` for a size that is not fixed, and for an unknown number of axes."""
        self._infer()
        return self._shapes.get(name)

    def _infer(self) -> None:
        if self._inferred == len(self.model.graph.node):
            return
        self._inferred = len(self.model.graph.node)
        self._shapes, self._kinds = {}, {}
        for value in described(self.model):
            tensor = value.type.tensor_type
            if tensor.elem_type:
                self._kinds[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self._shapes[value.name] = tuple(
                    size.dim_value if size.WhichOneof("value") == "dim_value" else None
                    for size in tensor.shape.dim
                )
        for stored in self.model.graph.initializer:
            self._kinds[stored.name], self._shapes[stored.name] = stored.data_type, tuple(stored.dims)


def known_values(graph: onnx.GraphProto) -> list[str]:
    """Names of all values of a graph and its subgraphs."""
    names = [value.name for value in (*graph.input, *graph.initializer, *graph.output)]
    for node in graph.node:
        names.extend(name for name in node.output if name)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                names.extend(known_values(inner))
    return names


def described(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What shape inference finds out about the values of a model, whose weights are left aside."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.output.extend(model.graph.output)
    stored = {tensor.name for tensor in model.graph.initializer}
    light.graph.input.extend(value for value in model.graph.input if value.name not in stored)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) <= SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return [*inferred.input, *inferred.value_info, *inferred.output]
