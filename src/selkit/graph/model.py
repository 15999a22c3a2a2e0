"""An ONNX model, loaded and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx
import torch
from torch import Tensor

from selkit.errors import FileFormatError, UnsupportedModelError, UnsupportedNode
from selkit.graph.files import Source, read
from selkit.graph.nodes import Node, build_nodes, unsupported
from selkit.graph.ops.base import Operator, UnsupportedAttribute
from selkit.graph.ops.types import to_tensor, torch_dtype
from selkit.graph.program import Program
from selkit.utils.boundary import public
from selkit.utils.checks import seed as check_seed

__all__ = ["Graph", "Node", "ValueSpec"]


@dataclass(frozen=True)
class ValueSpec:
    """An input or output as the model declares it.

    Attributes
    ----------
    name
        Of the value.
    shape
        ONNX shape, ``None`` for each size that is not fixed; ``None`` altogether where it is not declared.
    dtype
        Torch's dtype; ``None`` for an output whose type is not declared.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: torch.dtype | None


class Graph:
    """An ONNX model that selkit can run: every node has an operator.

    Attributes
    ----------
    inputs, outputs
        What the model declares; inputs with a stored value are not inputs.
    nodes
        In an order in which they can be run.
    initializers
        Stored values by name, without a stack axis.
    opset
        Version of each operator domain ("" is ONNX' own).

    Examples
    --------
    >>> import onnx, torch
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }''')
    >>> graph = Graph.load(model)
    >>> graph.inputs[0].name, graph.inputs[0].shape
    ('x', (None, 2))
    >>> program = graph.compile({"x": (1, 2)})
    >>> program.run({"x": torch.tensor([[[-1.0, 2.0]], [[3.0, -4.0]]], dtype=torch.float64)})["y"].tolist()
    [[[0.0, 2.0]], [[3.0, 0.0]]]
    """

    @public
    def __init__(
        self,
        inputs: Sequence[ValueSpec],
        outputs: Sequence[ValueSpec],
        nodes: Sequence[Node],
        initializers: Mapping[str, Tensor],
        opset: Mapping[str, int],
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.nodes = tuple(nodes)
        self.initializers: Mapping[str, Tensor] = MappingProxyType(dict(initializers))
        self.opset: Mapping[str, int] = MappingProxyType(dict(opset))

    def __reduce__(self) -> tuple[type[Graph], tuple[object, ...]]:
        """Pickle by what the graph is made of: read-only mappings cannot be pickled."""
        return Graph, (self.inputs, self.outputs, self.nodes, dict(self.initializers), dict(self.opset))

    @classmethod
    @public
    def load(cls, model: Source) -> Graph:
        """Load and check a model.

        Parameters
        ----------
        model
            Path of an ONNX file, its content as bytes, or an ``onnx.ModelProto``.

        Raises
        ------
        FileFormatError
            If it is no ONNX model, is damaged or inconsistent, or wants files outside its own folder.
        UnsupportedModelError
            If nodes are not supported; all of them are listed.
        """
        proto = read(model)
        opset = {_domain(entry.domain): entry.version for entry in proto.opset_import}
        _check_opset(opset)
        initializers = _initializers(proto.graph)
        inputs = [_spec(value) for value in proto.graph.input if value.name not in initializers]
        outputs = [_spec(value, declared=False) for value in proto.graph.output]
        nodes = build_nodes(proto.graph, opset, {*initializers, *(spec.name for spec in inputs)})
        known = {*initializers, *(spec.name for spec in inputs), *(n for node in nodes for n in node.outputs)}
        missing = [spec.name for spec in outputs if spec.name not in known]
        if missing:
            raise FileFormatError(f"no node computes the model's output(s) {', '.join(missing)}")
        return cls(inputs, outputs, nodes, initializers, opset)

    @public
    def compile(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: Sequence[str] | None = None,
        *,
        live: Sequence[str] | None = None,
        constants: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        seed: int | None = None,
        decompose: bool | Callable[[Operator], bool] = False,
    ) -> Program:
        """Specialize the model to one shape of its inputs.

        What does not depend on the live inputs is computed here, once and in the model's own number types;
        what no output needs is dropped.

        Parameters
        ----------
        shapes
            ONNX shape, with the batch axis, of each live input.
        outputs
            Names of any values of the model, inner ones too; by default the model's outputs.
        live
            Names of the values that the program takes as inputs, inner ones too; by default the model's
            inputs that ``constants`` does not fix.
        constants
            Values in ONNX shape that replace values of the model, such as a second input.
        dtype, device
            Of all real numbers in the program.
        seed
            Fixes the results of random operators.
        decompose
            Replace composite operators (Softmax, LayerNormalization, ...) by the simpler ones that they
            are made of: all of them, or those for which a function says so.

        Raises
        ------
        InvalidInputError
            If a name is unknown, a shape is missing or does not fit the model, or a seed is needed.
        UnsupportedModelError
            If a node cannot be run in this setting; all of them are listed.
        """
        from selkit.graph.compiler import compile_graph

        return compile_graph(
            self,
            shapes,
            outputs,
            live=live,
            constants=constants or {},
            dtype=dtype,
            device=torch.device(device),
            seed=None if seed is None else check_seed(seed),
            decompose=decompose,
        )

    def __repr__(self) -> str:
        names = ", ".join(spec.name for spec in self.inputs)
        results = ", ".join(spec.name for spec in self.outputs)
        return f"Graph({names} -> {results}, {len(self.nodes)} nodes, opset {self.opset.get('', '-')})"


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_opset(opset: Mapping[str, int]) -> None:
    """Refuse versions that the installed onnx does not know: their operators may mean something else."""
    newest = onnx.defs.onnx_opset_version()
    version = opset.get("")
    if version is None or 1 <= version <= newest:
        return
    raise FileFormatError(
        f"the model uses opset {version}; the installed onnx knows 1 to {newest}: "
        "update onnx, or export the model with an older opset"
    )


def _initializers(graph: onnx.GraphProto) -> dict[str, Tensor]:
    values, problems = {}, []
    for tensor in graph.initializer:
        if tensor.name in values:
            raise FileFormatError(f"the initializer {tensor.name!r} is defined twice")
        try:
            values[tensor.name] = to_tensor(tensor)
        except UnsupportedAttribute as error:
            problems.append(UnsupportedNode(tensor.name, "initializer", "", 0, str(error)))
    problems.extend(
        UnsupportedNode(sparse.values.name, "sparse initializer", "", 0, "sparse tensors are not supported")
        for sparse in graph.sparse_initializer
    )
    if problems:
        raise UnsupportedModelError(problems)
    return values


def _spec(value: onnx.ValueInfoProto, *, declared: bool = True) -> ValueSpec:
    """What a model says about an input (whose type must be declared) or an output."""
    kind = value.type.WhichOneof("value")
    if kind is None and not declared:
        return ValueSpec(value.name, None, None)
    if kind != "tensor_type":
        what = f"is a {kind or 'value without type'}, but only tensors are supported"
        raise UnsupportedModelError([unsupported(value.name, what)])
    tensor = value.type.tensor_type
    try:
        dtype = torch_dtype(tensor.elem_type) if declared or tensor.elem_type else None
    except UnsupportedAttribute as error:
        raise UnsupportedModelError([unsupported(value.name, str(error))]) from error
    if not tensor.HasField("shape"):
        return ValueSpec(value.name, None, dtype)
    sizes = []
    for dim in tensor.shape.dim:
        fixed = dim.WhichOneof("value") == "dim_value"
        if fixed and not 0 <= dim.dim_value < 2**31:
            raise FileFormatError(f"{value.name} declares the size {dim.dim_value}; damaged or hostile file")
        sizes.append(dim.dim_value if fixed else None)
    return ValueSpec(value.name, tuple(sizes), dtype)
