"""Put a second graph of the same inputs into a model, sharing everything that both compute."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import onnx
from onnx import numpy_helper

from selkit.bundle.emitter import Emitter, known_values
from selkit.bundle.source import check_names, inputs_of
from selkit.errors import InvalidInputError

RANDOM = ("Multinomial", "Bernoulli", "Dropout")


def merge(
    g: Emitter, other: onnx.ModelProto, what: str, called: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Append the nodes of another model, except those whose result is there already.

    Inputs are matched by name, stored numbers by their content, and nodes by operator, attributes and inputs:
    what both models compute is computed once. Graphs inside nodes (those of a Scan) are copied as they are.

    Parameters
    ----------
    g
        Where to append.
    other
        A model of the same opset, without local functions.
    what
        How to call it in messages.
    called
        Other names for its optional inputs.

    Returns
    -------
    dict
        The name here of each output of ``other``.

    Raises
    ------
    InvalidInputError
        If it takes inputs that the model does not have, or an optional one whose name is taken.
    """
    here = {value.name: value for value in inputs_of(g.model)}
    strangers = [value.name for value in inputs_of(other) if value.name not in here]
    if strangers:
        raise InvalidInputError(
            f"{what} takes the inputs {strangers}; the model has {list(here)}: use the same model"
        )
    names = {name: name for name in here} | _store(g, other, called or {})
    made = {_computation(node, list(node.input)): list(node.output) for node in g.model.graph.node}
    made.pop("", None)
    for node in other.graph.node:
        inputs = [names[name] if name else "" for name in node.input]
        key = _computation(node, inputs)
        outputs = made.get(key)
        if outputs is None:
            outputs = [g.name(node.op_type) if name else "" for name in node.output]
            g.model.graph.node.append(_copied(g, node, outputs, names))
        if key:
            made[key] = outputs
        names.update({old: new for old, new in zip(node.output, outputs, strict=True) if old})
    return {value.name: names[value.name] for value in other.graph.output}


def _copied(
    g: Emitter, node: onnx.NodeProto, outputs: Sequence[str], names: Mapping[str, str]
) -> onnx.NodeProto:
    """A node with other names, also in the graphs inside it."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(names.get(name, name) if name else "" for name in node.input)
    copy.output.extend(outputs)
    copy.name = g.name("node")
    for attribute in copy.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            _rename(g, inner, names)
    return copy


def _rename(g: Emitter, inner: onnx.GraphProto, outside: Mapping[str, str]) -> None:
    """Give the values of a graph inside a node names that nothing else has, in place."""
    names = dict(outside)
    del inner.value_info[:]
    for value in (*inner.input, *inner.initializer):
        names[value.name] = g.name("inner")
    for node in inner.node:
        names.update({name: g.name("inner") for name in node.output if name})
    for value in (*inner.input, *inner.initializer, *inner.output):
        value.name = names[value.name]
    nodes = [_copied(g, node, [names[n] if n else "" for n in node.output], names) for node in inner.node]
    del inner.node[:]
    inner.node.extend(nodes)


def _store(g: Emitter, other: onnx.ModelProto, called: Mapping[str, str]) -> dict[str, str]:
    """Stored numbers; those that are optional inputs stay so."""
    optional = {value.name: value for value in other.graph.input}
    inputs = {value.name for value in g.model.graph.input}
    present = {_content(t): t.name for t in g.model.graph.initializer if t.name not in inputs}
    names = {}
    for tensor in other.graph.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        key = _content(tensor)
        if tensor.name in optional:
            copy.name = called.get(tensor.name, tensor.name)
            check_names([copy.name], known_values(g.model.graph))
            g.model.graph.input.append(optional[tensor.name])
            g.model.graph.input[-1].name = copy.name
        elif key not in present:
            copy.name = present[key] = g.name("stored")
        else:
            names[tensor.name] = present[key]
            continue
        g.model.graph.initializer.append(copy)
        names[tensor.name] = copy.name
    return names


def _content(tensor: onnx.TensorProto) -> str:
    """What a stored value holds, whatever it is called and however it is written."""
    array = numpy_helper.to_array(tensor)
    head = f"{tensor.data_type} {tuple(tensor.dims)} "
    return head + hashlib.sha256(array.tobytes()).hexdigest()


def _has_graphs(node: onnx.NodeProto) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attribute)


def _computation(node: onnx.NodeProto, inputs: list[str]) -> str:
    """What a node computes, as a key; empty where twice the same need not give the same."""
    if node.op_type.startswith("Random") or node.op_type in RANDOM or _has_graphs(node):
        return ""
    attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
    digest = hashlib.sha256()
    for attribute in attributes:
        digest.update(attribute.SerializeToString(deterministic=True))
    wanted = tuple(bool(name) for name in node.output)
    domain = "" if node.domain == "ai.onnx" else node.domain
    return f"{domain}|{node.op_type}|{inputs}|{wanted}|{digest.hexdigest()}"
