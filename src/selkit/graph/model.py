"""An ONNX model, loaded and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import onnx
import torch
from torch import Tensor

from selkit.errors import FileFormatError, InvalidInputError, UnsupportedModelError, UnsupportedNode
from selkit.graph.files import Source, read_apart
from selkit.graph.nodes import (
    Node,
    Unsupported,
    build_nodes,
    certain_inputs,
    needed,
    read_initializers,
    unsupported,
    without_rounding,
)
from selkit.graph.ops.base import Operator, UnsupportedAttribute
from selkit.graph.ops.types import torch_dtype
from selkit.graph.program import Program
from selkit.graph.tidy import half_types
from selkit.utils.boundary import public
from selkit.utils.checks import seed as check_seed

__all__ = ["Graph", "Node", "Quantization", "ValueSpec"]

Quantization: TypeAlias = Literal["keep", "ignore"]
"""Whether activations are rounded where the model rounds them."""

HALF_NOTE = "numbers that the file has as {} are computed in higher precision"
ROUNDING_NOTE = "the file rounds activations; here they are limited, but not rounded (quantization='ignore')"


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
    """An ONNX model as far as selkit can run it: a node without an operator stands only in its own way.

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
    unreadable
        What is wrong with inputs and stored values that cannot be used, by name.
    notes
        What is computed otherwise than the file says, as sentences; results repeat them.

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
        *,
        unreadable: Mapping[str, UnsupportedNode] = MappingProxyType({}),
        notes: Sequence[str] = (),
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.nodes = tuple(nodes)
        self.initializers: Mapping[str, Tensor] = MappingProxyType(dict(initializers))
        self.opset: Mapping[str, int] = MappingProxyType(dict(opset))
        self.unreadable: Mapping[str, UnsupportedNode] = MappingProxyType(dict(unreadable))
        self.notes = tuple(notes)

    def __reduce__(self) -> tuple[Callable[..., Graph], tuple[object, ...]]:
        """Pickle by what the graph is made of: read-only mappings cannot be pickled."""
        stored = dict(self.initializers), dict(self.opset)
        made = partial(Graph, unreadable=dict(self.unreadable), notes=self.notes)
        return made, (self.inputs, self.outputs, self.nodes, *stored)

    @classmethod
    @public
    def load(
        cls, model: Source, outputs: Sequence[str] | None = None, *, quantization: Quantization = "keep"
    ) -> Graph:
        """Load and check a model.

        Parameters
        ----------
        model
            Path of an ONNX file, its content as bytes, or an ``onnx.ModelProto``.
        outputs
            Names of the values that are wanted. What stands in their way is refused here, other nodes are
            not looked at; by default it is enough if one of the model's outputs can be computed.
        quantization
            "keep" rounds activations where the model does; "ignore" leaves the rounding out and keeps its
            limits, which makes a quantized network piecewise linear. Stored values are read exactly in
            both cases.

        Raises
        ------
        FileFormatError
            If it is no ONNX model, is damaged or inconsistent, or wants files outside its own folder.
        InvalidInputError
            If ``quantization`` is neither.
        UnsupportedModelError
            If nodes are not supported; all of them are listed.
        """
        if quantization not in get_args(Quantization):
            raise InvalidInputError(
                f"quantization is {quantization!r}; it must be one of {list(get_args(Quantization))}"
            )
        proto, arrays = read_apart(model)
        opset = {_domain(entry.domain): entry.version for entry in proto.opset_import}
        _check_opset(opset)
        initializers, unreadable = read_initializers(proto.graph, arrays)
        stored = {*initializers, *unreadable}
        inputs = [_input(value, unreadable) for value in proto.graph.input if value.name not in stored]
        results = [_output(value) for value in proto.graph.output]
        nodes = build_nodes(proto.graph, opset, {*stored, *(spec.name for spec in inputs)})
        notes = [HALF_NOTE.format(kind) for kind in half_types(proto)]
        if quantization == "ignore":
            nodes, changed = without_rounding(nodes)
            notes += [ROUNDING_NOTE] * changed
        graph = cls(inputs, results, nodes, initializers, opset, unreadable=unreadable, notes=notes)
        missing = [spec.name for spec in results if spec.name not in graph.values]
        if missing:
            raise FileFormatError(f"no node computes the model's output(s) {', '.join(missing)}")
        if outputs is not None:
            graph.check(outputs)
        elif all(graph.obstacles([spec.name]) for spec in results):
            graph.check([spec.name for spec in results])
        return graph

    @property
    def values(self) -> set[str]:
        """Names of all values: inputs, stored ones, and what nodes compute."""
        made = {name for node in self.nodes for name in node.outputs if name}
        return {*(spec.name for spec in self.inputs), *self.initializers, *self.unreadable, *made}

    def obstacles(self, outputs: Sequence[str]) -> list[UnsupportedNode]:
        """What is not supported of all that some values need.

        Parameters
        ----------
        outputs
            Names of values, inner ones too.
        """
        nodes = [self.nodes[index] for index in needed(self.nodes, outputs, certain=True)]
        read = dict.fromkeys((*(name for node in nodes for name in certain_inputs(node)), *outputs))
        problems = [self.unreadable[name] for name in read if name in self.unreadable]
        for node in nodes:
            if isinstance(node.operator, Unsupported):
                version = self.opset.get(node.domain, 0)
                reason = node.operator.reason
                problems.append(UnsupportedNode(node.name, node.op_type, node.domain, version, reason))
        return problems

    def check(self, outputs: Sequence[str]) -> None:
        """Refuse what is not supported of all that some values need.

        Parameters
        ----------
        outputs
            Names of values, inner ones too.

        Raises
        ------
        InvalidInputError
            If a name is unknown.
        UnsupportedModelError
            If nodes are not supported; all of them are listed.
        """
        unknown = sorted(set(outputs) - self.values)
        if unknown:
            raise InvalidInputError(f"outputs: the model has no value(s) {', '.join(unknown)}")
        problems = self.obstacles(outputs)
        if problems:
            raise UnsupportedModelError(problems)

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
        from selkit.graph.specialize import compile_graph

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


def _input(value: onnx.ValueInfoProto, unreadable: dict[str, UnsupportedNode]) -> ValueSpec:
    """What a model says about an input, whose type must be declared."""
    kind = value.type.WhichOneof("value")
    what = ""
    if kind != "tensor_type":
        what = f"is a {kind or 'value without type'}, but only tensors are supported"
    else:
        try:
            return ValueSpec(value.name, _sizes(value), torch_dtype(value.type.tensor_type.elem_type))
        except UnsupportedAttribute as error:
            what = str(error)
    unreadable[value.name] = unsupported(value.name, what)
    return ValueSpec(value.name, None, None)


def _output(value: onnx.ValueInfoProto) -> ValueSpec:
    """What a model says about an output, if it does."""
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type":
        return ValueSpec(value.name, None, None)
    try:
        dtype = torch_dtype(tensor.elem_type) if tensor.elem_type else None
    except UnsupportedAttribute:
        return ValueSpec(value.name, _sizes(value), None)
    return ValueSpec(value.name, _sizes(value), dtype)


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = []
    for dim in tensor.shape.dim:
        fixed = dim.WhichOneof("value") == "dim_value"
        if fixed and not 0 <= dim.dim_value < 2**31:
            raise FileFormatError(f"{value.name} declares the size {dim.dim_value}; damaged or hostile file")
        sizes.append(dim.dim_value if fixed else None)
    return tuple(sizes)
