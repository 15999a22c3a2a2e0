"""Put a second graph of the same inputs into a model, sharing everything that both compute."""

from __future__ import annotations

import hashlib

import onnx
from onnx import numpy_helper

from selkit.bundle.emitter import Emitter, known_values
from selkit.bundle.source import check_names, inputs_of
from selkit.errors import InvalidInputError, NotAvailableError

RANDOM = ("Multinomial", "Bernoulli", "Dropout")


def merge(g: Emitter, other: onnx.ModelProto, what: str) -> dict[str, str]:
    """Append the nodes of another model, except those whose result is there already.

    Inputs are matched by name, stored numbers by their content, and nodes by operator, attributes and inputs:
    a forward pass that both models have is computed once.

    Parameters
    ----------
    g
        Where to append.
    other
        A model without local functions.
    what
        How to call it in messages.

    Returns
    -------
    dict
        The name here of each output of ``other``.

    Raises
    ------
    InvalidInputError
        If it takes inputs that the model does not have.
    NotAvailableError
        If it uses another opset.
    """
    own = next(entry.version for entry in other.opset_import if entry.domain in ("", "ai.onnx"))
    if own != g.opset:
        other = _converted(other, g.opset, what)
    here = {value.name: value for value in inputs_of(g.model)}
    strangers = [value.name for value in inputs_of(other) if value.name not in here]
    if strangers:
        raise InvalidInputError(
            f"{what} takes the inputs {strangers}; the model has {list(here)}: use the same model"
        )
    names = {name: name for name in here} | _store(g, other)
    made = {_computation(node, list(node.input)): list(node.output) for node in g.model.graph.node}
    made.pop("", None)
    for node in other.graph.node:
        if _has_graphs(node):
            raise NotAvailableError(
                f"{what} has the node {node.name or node.op_type} with a graph inside, which cannot be merged"
            )
        inputs = [names[name] if name else "" for name in node.input]
        key = _computation(node, inputs)
        outputs = made.get(key) or _copied(g, node, inputs)
        if key:
            made[key] = outputs
        names.update({old: new for old, new in zip(node.output, outputs, strict=True) if old})
    return {value.name: names[value.name] for value in other.graph.output}


def _copied(g: Emitter, node: onnx.NodeProto, inputs: list[str]) -> list[str]:
    """Append a node with other names, and return those of its outputs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    outputs = [g.name(node.op_type) if name else "" for name in node.output]
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.extend(outputs)
    copy.name = g.name("node")
    g.model.graph.node.append(copy)
    return outputs


def _store(g: Emitter, other: onnx.ModelProto) -> dict[str, str]:
    """Stored numbers, those that are optional inputs under their own names."""
    optional = {value.name: value for value in other.graph.input}
    fixed = {value.name for value in g.model.graph.input}
    present = {_content(t): t.name for t in g.model.graph.initializer if t.name not in fixed}
    names = {}
    for tensor in other.graph.initializer:
        key = _content(tensor)
        if tensor.name in optional:
            check_names([tensor.name], known_values(g.model.graph))
            g.model.graph.input.append(optional[tensor.name])
            g.model.graph.initializer.append(tensor)
            names[tensor.name] = tensor.name
            continue
        if key not in present:
            present[key] = g.name("stored")
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = present[key]
            g.model.graph.initializer.append(copy)
        names[tensor.name] = present[key]
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


def _converted(model: onnx.ModelProto, opset: int, what: str) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, opset)
    # the C++ converter raises whatever its checks raise
    except Exception as error:
        raise NotAvailableError(
            f"{what} uses another opset than the model, {opset}, and ONNX cannot convert it ({error}); "
            "export "
            "the model with the same one"
        ) from error
