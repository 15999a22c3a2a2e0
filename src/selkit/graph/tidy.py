"""What files say in their own way, brought into one form: open axes, maps, nodes nobody needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto, TensorProto, helper

from selkit.graph.ops.types import HALF


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Open the axes of impossible sizes; changes the model in place.

    A negative size means an open axis (PaddlePaddle writes -1), and so does a size of zero where a result is
    declared: onnxruntime reads both like this.

    Examples
    --------
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }''')
    >>> model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    >>> tidy(model).graph.input[0].type.tensor_type.shape.dim[0].WhichOneof("value") is None
    True
    """
    for graph in _graphs(model.graph):
        for value in graph.input:
            _open(value, lowest=0)
        for value in (*graph.output, *graph.value_info):
            _open(value, lowest=1)
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its subgraphs."""
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def half_types(model: onnx.ModelProto) -> list[str]:
    """Which types of half precision a model uses: ``float16``, ``bfloat16``."""
    found: set[int] = set()
    for graph in _graphs(model.graph):
        found.update(tensor.data_type for tensor in graph.initializer)
        found.update(v.type.tensor_type.elem_type for v in (*graph.input, *graph.output))
        for node in graph.node:
            found.update(a.t.data_type for a in node.attribute if a.type == AttributeProto.TENSOR)
            found.update(a.i for a in node.attribute if a.name == "to")
    return [name for kind, name in HALF.items() if kind in found]


def _open(value: onnx.ValueInfoProto, *, lowest: int) -> None:
    if value.type.WhichOneof("value") != "tensor_type":
        return
    for size in value.type.tensor_type.shape.dim:
        if size.WhichOneof("value") == "dim_value" and size.dim_value < lowest:
            size.ClearField("dim_value")


def cut_maps(model: onnx.ModelProto) -> None:
    """Put an array in the place of the list of dictionaries that ``ZipMap`` makes of it; in place."""
    cut = set()
    graph = model.graph
    for node in graph.node:
        if (node.op_type, node.domain) == ("ZipMap", "ai.onnx.ml") and len(node.input) == len(
            node.output
        ) == 1:
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
            cut.add(node.output[0])
    for value in graph.output:
        if value.name in cut and value.type.WhichOneof("value") != "tensor_type":
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [None, None]))


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node reads, those that its subgraphs take from outside included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            own = {value.name for value in (*graph.input, *graph.initializer)}
            own.update(sparse.values.name for sparse in graph.sparse_initializer)
            own.update(name for inner in graph.node for name in inner.output)
            for name in (*(n for inner in graph.node for n in reads(inner)), *(v.name for v in graph.output)):
                if name not in own:
                    yield name


def keep(model: onnx.ModelProto, outputs: Iterable[str]) -> None:
    """Remove the nodes, stored values and inputs that some values do not need; in place.

    Outputs that remain are those that are named; without a name all that the model has.
    """
    graph = model.graph
    wanted = set(outputs) or {value.name for value in graph.output}
    needed = set(wanted)
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waiting = [makers[name] for name in needed if name in makers]
    kept: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index in kept:
            continue
        kept.add(index)
        for name in reads(graph.node[index]):
            needed.add(name)
            if name in makers:
                waiting.append(makers[name])
    _retain(graph.node, [index in kept for index in range(len(graph.node))])
    _retain(graph.output, [value.name in wanted for value in graph.output])
    _retain(graph.initializer, [tensor.name in needed for tensor in graph.initializer])
    _retain(graph.sparse_initializer, [s.values.name in needed for s in graph.sparse_initializer])
    _retain(graph.input, [value.name in needed for value in graph.input])


def _retain(field: object, keep_these: list[bool]) -> None:
    """Delete the other entries of a repeated field, which protobuf does one by one."""
    for index in range(len(keep_these) - 1, -1, -1):
        if not keep_these[index]:
            del field[index]  # type: ignore[attr-defined]
