"""From the nodes of an ONNX graph to operators, in an order in which they can be run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto

from selkit.errors import FileFormatError, UnsupportedModelError, UnsupportedNode
from selkit.graph.ops.base import Operator, UnsupportedAttribute, find, versions
from selkit.graph.ops.types import to_tensor
from selkit.graph.schemas import schema_of


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
        Names of values, "" for one that is left out.
    """

    name: str
    op_type: str
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def unsupported(name: str, reason: str, kind: str = "value") -> UnsupportedNode:
    """Describe something that is not a node."""
    return UnsupportedNode(name, kind, "", 0, reason)


def build_nodes(graph: onnx.GraphProto, opset: Mapping[str, int], known: set[str]) -> list[Node]:
    """Find the operator of each node.

    Parameters
    ----------
    graph
        Of the model.
    opset
        Version of each domain.
    known
        Names of the inputs and initializers.

    Raises
    ------
    FileFormatError
        If a value is missing, defined twice, or defined in a circle.
    UnsupportedModelError
        If nodes are not supported; all of them are listed.
    """
    problems: list[UnsupportedNode] = []
    nodes = []
    for proto in sort_nodes(graph.node, known):
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        try:
            operator = _operator(proto, domain, opset.get(domain))
        except UnsupportedAttribute as error:
            version = opset.get(domain, 0)
            problems.append(UnsupportedNode(proto.name, proto.op_type, domain, version, str(error)))
            continue
        nodes.append(Node(proto.name, proto.op_type, operator, tuple(proto.input), tuple(proto.output)))
    if problems:
        raise UnsupportedModelError(problems)
    return nodes


def sort_nodes(nodes: Sequence[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """Order nodes so that each comes after those whose outputs it reads; keep the order otherwise.

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
    missing = {name for node in nodes for name in node.input if name and name not in known | producer.keys()}
    if missing:
        names = ", ".join(sorted(missing))
        raise FileFormatError(f"nodes read values that nothing defines: {names}")
    readers: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    for index, node in enumerate(nodes):
        for source in {producer[name] for name in node.input if name in producer}:
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
            raise UnsupportedAttribute("subgraphs (If, Loop, Scan) are not supported")
        case _:
            raise UnsupportedAttribute(f"attribute {attribute.name!r} is of a type that is not supported")
