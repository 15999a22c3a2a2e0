"""From the nodes of an ONNX graph to operators, in an order in which they can be run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import AttributeProto
from torch import Tensor

from selkit.errors import FileFormatError, UnsupportedNode
from selkit.graph.flow import Flow, If, Loop, Scan, Subgraph
from selkit.graph.ops.base import Kind, Operator, UnsupportedAttribute, find, versions
from selkit.graph.ops.quantized import Rounding
from selkit.graph.ops.types import to_tensor
from selkit.graph.schemas import schema_of
from selkit.graph.tidy import reads


@dataclass(frozen=True)
class Node:
    """One node of a model.

    Attributes
    ----------
    name, op_type
        As in the file; the name may be empty.
    operator
        With the node's attributes.
    inputs, outputs
        Names of values, "" for one that is left out. Behind the inputs of an ``If``, ``Loop`` or ``Scan``
        are the values outside that its subgraphs read.
    domain
        Of the operator; "" is ONNX' own.
    """

    name: str
    op_type: str
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str = ""


@dataclass(frozen=True)
class Unsupported(Operator):
    """Stands for an operator that selkit cannot run; refused as soon as a wanted value needs it."""

    reason: str

    def kind(self, live: Sequence[bool]) -> Kind:
        """Refuse, with the reason."""
        raise UnsupportedAttribute(self.reason)


FLOWS: Mapping[str, type[Flow]] = {"If": If, "Loop": Loop, "Scan": Scan}
"""Operators that run other graphs; they become the nodes that are run."""

Stored = dict[str, Tensor]
Unreadable = dict[str, UnsupportedNode]


def unsupported(name: str, reason: str, kind: str = "value") -> UnsupportedNode:
    """Describe something that is not a node."""
    return UnsupportedNode(name, kind, "", 0, reason)


def build_nodes(
    graph: onnx.GraphProto, opset: Mapping[str, int], known: Set[str], outside: Set[str] = frozenset()
) -> list[Node]:
    """Find the operator of each node; a node without one gets :class:`Unsupported`.

    Parameters
    ----------
    graph
        Of the model, or a subgraph.
    opset
        Version of each domain.
    known
        Names of the inputs and initializers.
    outside
        Names of the values that a subgraph may read.

    Raises
    ------
    FileFormatError
        If a value is missing, defined twice, or defined in a circle.
    """
    protos = sort_nodes(graph.node, known, outside)
    names = {*outside, *known, *(name for proto in protos for name in proto.output if name)}
    types = _element_types(graph)
    nodes = []
    for proto in protos:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        inputs = tuple(proto.input)
        operator: Operator
        try:
            if proto.op_type in FLOWS and not domain:
                operator = _flow(proto, opset, names)
                inputs += operator.captured
            else:
                operator = _operator(proto, domain, opset.get(domain)).typed(
                    [types.get(name, 0) for name in inputs]
                )
        except UnsupportedAttribute as error:
            operator = Unsupported(str(error))
        nodes.append(Node(proto.name, proto.op_type, operator, inputs, tuple(proto.output), domain))
    return nodes


def needed(
    nodes: Sequence[Node], wanted: Iterable[str], cut: Set[str] = frozenset(), *, certain: bool = False
) -> list[int]:
    """Positions of the nodes that some values need, ascending.

    Parameters
    ----------
    nodes
        In an order in which they can be run.
    wanted
        Names of the values.
    cut
        Names of values that are given, not computed.
    certain
        Leave out what only one branch of an ``If`` may need.
    """
    names = set(wanted)
    found = []
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if any(name in names and name not in cut for name in node.outputs if name):
            found.append(index)
            names.update(filter(None, certain_inputs(node) if certain else node.inputs))
    return found[::-1]


def certain_inputs(node: Node) -> Sequence[str]:
    """The inputs of a node that are needed whatever branch is taken."""
    return node.operator.certain(node.inputs) if isinstance(node.operator, Flow) else node.inputs


def without_rounding(nodes: Iterable[Node]) -> tuple[list[Node], bool]:
    """Nodes that do not round activations, and whether any of them did."""
    changed = False
    result = []
    for node in nodes:
        operator: Operator = node.operator
        if isinstance(operator, Rounding):
            operator = operator.unrounded()
        elif isinstance(operator, Flow):
            parts: dict[str, Any] = {}
            for name, graph in operator.subgraphs.items():
                inner, any_inside = without_rounding(graph.nodes)
                if any_inside:
                    parts[name] = dataclasses.replace(graph, nodes=tuple(inner))
            operator = dataclasses.replace(operator, **parts) if parts else operator
        changed |= operator is not node.operator
        result.append(node if operator is node.operator else dataclasses.replace(node, operator=operator))
    return result, changed


def read_initializers(
    graph: onnx.GraphProto, arrays: Mapping[str, NDArray[Any]] | None = None
) -> tuple[Stored, Unreadable]:
    """Stored values by name, and what is wrong with those that cannot be read.

    Parameters
    ----------
    graph
        Of the model, or a subgraph.
    arrays
        Values that are held beside it.

    Raises
    ------
    FileFormatError
        If one is defined twice.
    """
    values: Stored = {}
    bad: Unreadable = {}
    for tensor in graph.initializer:
        if tensor.name in values or tensor.name in bad:
            raise FileFormatError(f"the initializer {tensor.name!r} is defined twice")
        try:
            values[tensor.name] = to_tensor(tensor, (arrays or {}).get(tensor.name))
        except UnsupportedAttribute as error:
            bad[tensor.name] = unsupported(tensor.name, str(error), "initializer")
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        bad[name] = unsupported(name, "sparse tensors are not supported", "sparse initializer")
    return values, bad


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """ONNX' number types of inputs and stored values; torch has fewer."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            types.update((node.output[0], a.t.data_type) for a in node.attribute if a.name == "value")
    return types


def _flow(node: onnx.NodeProto, opset: Mapping[str, int], names: Set[str]) -> Flow:
    """An operator that runs other graphs."""
    version = opset.get("", 0)
    if node.op_type == "Scan" and version < 9:
        raise UnsupportedAttribute("schema version 8 is not covered; supported: 9 and later")
    schema = schema_of(node.op_type, version, "")
    _check_arity(node, schema, FLOWS[node.op_type])
    given: dict[str, Any] = {}
    captured: dict[str, None] = {}
    for attribute in node.attribute:
        if attribute.name not in schema.attributes:
            raise UnsupportedAttribute(f"unknown attribute {attribute.name!r}")
        if attribute.type == AttributeProto.GRAPH:
            graph = _subgraph(attribute.g, opset, names)
            captured.update(dict.fromkeys(graph.captured))
            given[attribute.name] = graph
        else:
            given[attribute.name] = _value(attribute)
    fields = {f.name for f in dataclasses.fields(FLOWS[node.op_type]) if f.default is dataclasses.MISSING}
    missing = sorted(fields - given.keys() - {"captured"})
    if missing:
        raise UnsupportedAttribute(f"required attribute(s) {', '.join(missing)} are missing")
    return FLOWS[node.op_type](captured=tuple(captured), **given)


def _subgraph(graph: onnx.GraphProto, opset: Mapping[str, int], outside: Set[str]) -> Subgraph:
    initializers, unreadable = read_initializers(graph)
    inputs = tuple(value.name for value in graph.input)
    own = {*inputs, *initializers, *unreadable}
    nodes = build_nodes(graph, opset, own, outside)
    made = own | {name for node in nodes for name in node.outputs}
    outputs = tuple(value.name for value in graph.output)
    unknown = sorted(set(outputs) - made - outside)
    if unknown:
        raise FileFormatError(f"no node computes the output(s) {', '.join(unknown)} of a subgraph")
    kept = [nodes[index] for index in needed(nodes, outputs)]
    read = dict.fromkeys((*(name for node in kept for name in node.inputs), *outputs))
    captured = tuple(name for name in read if name and name not in made)
    return Subgraph(inputs, outputs, tuple(kept), initializers, unreadable, captured)


def sort_nodes(
    nodes: Sequence[onnx.NodeProto], known: Set[str], outside: Set[str] = frozenset()
) -> list[onnx.NodeProto]:
    """Order nodes so that each comes after those whose outputs it reads; keep the order otherwise.

    Parameters
    ----------
    nodes
        Of one graph.
    known
        Names of its inputs and initializers.
    outside
        Names of the values that it may read if it is a subgraph.

    Raises
    ------
    FileFormatError
        If a value is missing, defined twice, or defined in a circle.
    """
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in producer or name in known:
                raise FileFormatError(f"the value {name!r} is defined twice")
            producer[name] = index
    read = [list(reads(node)) for node in nodes]
    defined = {*known, *outside, *producer}
    missing = {name for names in read for name in names if name not in defined}
    if missing:
        listed = ", ".join(sorted(missing))
        raise FileFormatError(f"nodes read values that nothing defines: {listed}")
    readers: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    for index, names in enumerate(read):
        for source in {producer[name] for name in names if name in producer}:
            readers[source].append(index)
            waiting[index] += 1
    ready = [index for index, count in enumerate(waiting) if not count]
    order = []
    for index in ready:
        order.append(index)
        for reader in readers[index]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(order) < len(nodes):
        circle = [nodes[i].name or nodes[i].op_type for i, count in enumerate(waiting) if count]
        raise FileFormatError(f"nodes depend on each other in a circle: {', '.join(circle[:10])}")
    return [nodes[index] for index in order]


def _operator(node: onnx.NodeProto, domain: str, version: int | None) -> Operator:
    """Construct a node's operator, or raise :class:`UnsupportedAttribute` with the reason."""
    if version is None:
        raise UnsupportedAttribute(f"the model does not import the operator domain {domain!r}")
    if domain == "com.microsoft.nchwc":
        raise UnsupportedAttribute(
            "onnxruntime made it for one kind of processor; save the model without layout optimizations "
            "(graph_optimization_level up to ORT_ENABLE_EXTENDED), or use the model that it was made from"
        )
    covered = versions(node.op_type, domain)
    if not covered:
        raise UnsupportedAttribute("this operator is not supported")
    schema = schema_of(node.op_type, version, domain)
    registration = find(node.op_type, schema.since_version, domain)
    if registration is None:
        listed = ", ".join(map(str, covered))
        raise UnsupportedAttribute(
            f"schema version {schema.since_version} is not covered; supported: {listed}"
        )
    _check_arity(node, schema, registration.operator)
    return _construct(registration.operator, node, schema)


def _check_arity(node: onnx.NodeProto, schema: Any, operator: type[Operator]) -> None:
    inputs = len(node.input)
    if not schema.min_input <= inputs <= schema.max_input:
        raise UnsupportedAttribute(
            f"has {inputs} inputs; {schema.min_input} to {schema.max_input} are possible"
        )
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for position, formal in enumerate(schema.inputs[:inputs]):
        if formal.option == single and not node.input[position]:
            raise UnsupportedAttribute(f"input {position} ({formal.name}) is left out but required")
    if not any(node.output):
        raise UnsupportedAttribute("has no output")
    if operator.OUTPUTS is not None:
        extra = [name for name in node.output[operator.OUTPUTS :] if name]
        if extra:
            raise UnsupportedAttribute(
                f"output(s) {', '.join(extra)} are not supported, only the first {operator.OUTPUTS}"
            )


def _construct(cls: type[Operator], node: onnx.NodeProto, schema: Any) -> Operator:
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for attribute in node.attribute:
        name = attribute.name
        if name not in schema.attributes:
            raise UnsupportedAttribute(f"unknown attribute {name!r}")
        if attribute.type != int(schema.attributes[name].type.value):
            raise UnsupportedAttribute(f"attribute {name!r} is of the wrong type")
        if name not in fields:
            listed = ", ".join(fields) or "none"
            raise UnsupportedAttribute(f"attribute {name!r} is not supported; supported: {listed}")
        if name in given:
            raise UnsupportedAttribute(f"attribute {name!r} is given twice")
        given[name] = _value(attribute)
    needed = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = sorted(needed - given.keys())
    if missing:
        raise UnsupportedAttribute(f"required attribute(s) {', '.join(missing)} are missing")
    if node.op_type == "Split" and "num_outputs" not in given:
        given["num_outputs"] = len(node.output)
    return cls(**given)


def _value(attribute: AttributeProto) -> Any:
    kinds = AttributeProto
    match attribute.type:
        case kinds.INT:
            return int(attribute.i)
        case kinds.FLOAT:
            return float(attribute.f)
        case kinds.STRING:
            return attribute.s.decode("utf-8", errors="replace")
        case kinds.INTS:
            return tuple(int(value) for value in attribute.ints)
        case kinds.FLOATS:
            return tuple(float(value) for value in attribute.floats)
        case kinds.STRINGS:
            return tuple(value.decode("utf-8", errors="replace") for value in attribute.strings)
        case kinds.TENSOR:
            return to_tensor(attribute.t)
        case kinds.GRAPH | kinds.GRAPHS:
            raise UnsupportedAttribute("subgraphs are supported in If, Loop and Scan only")
        case _:
            raise UnsupportedAttribute(f"attribute {attribute.name!r} is of a type that is not supported")
