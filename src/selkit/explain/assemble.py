"""Put the nodes of an explanation together: one ONNX graph of three nested scans.

The outermost scan takes one sample after the other, so that a sample's attributions cannot depend on the
rest of its batch. Within it, one target after the other, and within that one chunk of references after the
other; onnxruntime hands the slices of what is scanned on without copying them. Every node is placed in the
outermost scan that knows all it reads: the forward pass of a sample is done once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from selkit.explain.ends import Ends, value_info
from selkit.explain.facts import Given
from selkit.explain.scopes import CHUNK, MAIN, SAMPLE, STORED, SUM, TARGET, Parts, reached
from selkit.graph.symbols import Shape, Symbol, Uses
from selkit.graph.tape import OPSET, Written

IR_VERSION = 9
ROW = "selkit.row"

_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.bool: TensorProto.BOOL,
}


@dataclass(frozen=True)
class Names:
    """How inputs and outputs of the graph are called."""

    inputs: tuple[Given, ...]
    output: str
    base: str = "base_values"
    target: str = "target"
    targets: str = "targets"
    value: str = "output_values"

    @property
    def own(self) -> set[str]:
        """Names that the model's values may not have."""
        return {"attributions", self.base, self.target, self.targets, self.value}


class Assembler:
    """Makes ONNX graphs of the nodes of a recipe; big values stay in ``arrays``, outside the protobuf."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.rows = parts.recipe.tape.rows
        self.arrays: dict[str, NDArray[Any]] = {}

    def shape(self, value: Symbol) -> Shape:
        """The shape of a value within a scan."""
        return (self.rows, *value.shape[1:]) if self.rows > 1 and value.uses & Uses.REFERENCE else value.shape

    def info(self, value: Symbol, name: str | None = None) -> onnx.ValueInfoProto:
        """Declare a value."""
        return helper.make_tensor_value_info(name or value.name, _TYPES[value.dtype], self.shape(value))

    def references(self) -> onnx.ModelProto:
        """The graph that computes, for a chunk of references, their outputs and what is kept of them."""
        return self._ahead(self.parts.nodes[STORED], [self.parts.recipe.output_reference, *self.parts.stored])

    def sizes(self) -> onnx.ModelProto:
        """The graph that computes, for a chunk of references, how large values are that rules scale."""
        tape = self.parts.recipe.tape
        ends = [size for _, size in tape.sizes.values()]
        maker = {out.name: node for node in tape.nodes for out in node.outputs}
        needed = reached(ends, maker)
        return self._ahead([node for node in tape.nodes if id(node) in needed], ends)

    def _ahead(self, nodes: Sequence[Written], outputs: Sequence[Symbol]) -> onnx.ModelProto:
        parts = self.parts
        graph = helper.make_graph(
            [_node(node) for node in nodes],
            "references",
            [self.info(parts.recipe.reference)],
            [self.info(value) for value in outputs],
        )
        model = _model(graph)
        for name, value in _stored_in(nodes).items():
            _store(model.graph, value, name)
        return model

    def explanation(
        self,
        names: Names,
        scanned: Mapping[str, NDArray[Any]],
        base: NDArray[Any],
        targets: Sequence[int],
        *,
        several: bool,
    ) -> onnx.ModelProto:
        """The whole graph; ``scanned`` are the stacks of chunks, by name."""
        parts, recipe = self.parts, self.parts.recipe
        scopes = (MAIN, SAMPLE, TARGET, CHUNK)
        homes = _homes({scope: parts.nodes[scope] for scope in scopes})
        nodes = {
            scope: [_node(node, homes.names.get(scope, {})) for node in parts.nodes[scope]]
            for scope in scopes
        }
        real = _TYPES[recipe.tape.dtype]
        chunk = helper.make_graph(
            nodes[CHUNK],
            "chunk",
            [value_info(SUM, real, recipe.x.shape), *(self._slice(name, scanned) for name in scanned)],
            [value_info(parts.total.name, real, recipe.x.shape)],
        )
        stacks = {name: f"{name}.all" for name in scanned}
        self.arrays.update({stacks[name]: array for name, array in scanned.items()})
        target = self._target(nodes[TARGET], chunk, list(stacks.values()))
        sample = self._sample(nodes[SAMPLE], target, names)
        model = _model(self._main(nodes[MAIN], sample, names, base, targets, several=several))
        # only now: a graph is copied whenever it is put into a node, and weights are large
        inside = {MAIN: model.graph}
        for outer, scope in pairwise(scopes):
            inside[scope] = _body(inside[outer])
        for (scope, name), value in homes.values.items():
            _store(inside[scope], value, name)
        return model

    def _main(
        self,
        nodes: list[onnx.NodeProto],
        sample: onnx.GraphProto,
        names: Names,
        base: NDArray[Any],
        targets: Sequence[int],
        *,
        several: bool,
    ) -> onnx.GraphProto:
        """One sample after the other; targets come first if there are several."""
        recipe = self.parts.recipe
        real = _TYPES[recipe.tape.dtype]
        constants = {
            "selkit.zero": np.zeros(recipe.x.shape, base.dtype),
            "selkit.rest": np.array(recipe.x.shape[1:], np.int64),
            "selkit.base": base,
            "selkit.first": np.zeros(1, np.int64),
            "selkit.one": np.ones(1, np.int64),
            "selkit.none": np.zeros((), np.int64),
            names.target: np.array(targets, np.int64),
        }
        lead = ("targets", "batch") if several else ("batch",)
        ends = Ends(names.inputs, real, recipe.x.shape[1:], lead)
        raw = [names.output, "selkit.attributions", "selkit.targets", "selkit.bases", "selkit.values"]
        scan = helper.make_node("Scan", [ends.rows], raw, body=sample, num_scan_inputs=1)
        outer = [*nodes, *ends.before(constants), scan]
        extras = (len(recipe.x.shape) - 1, 0, 0, 0)
        done = (ends.whole, names.targets, names.base, names.value)
        for source, end, extra in zip(raw[1:], done, extras, strict=True):
            if several:
                perm = [1, 0, *range(2, 2 + extra)]
                outer.append(helper.make_node("Transpose", [source], [end], perm=perm))
            else:
                outer.append(helper.make_node("Squeeze", [source, "selkit.one"], [end]))
        outer.extend(ends.after(constants))
        return helper.make_graph(
            outer,
            "explanation",
            [*ends.inputs(), value_info(names.target, TensorProto.INT64, ("targets" if several else 1,))],
            [
                value_info(names.output, real, ("batch", *recipe.raw.shape[1:])),
                *ends.outputs(),
                value_info(names.base, real, lead),
                value_info(names.targets, TensorProto.INT64, lead),
                value_info(names.value, real, lead),
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )

    def _target(
        self, nodes: list[onnx.NodeProto], chunk: onnx.GraphProto, stacks: Sequence[str]
    ) -> onnx.GraphProto:
        """One chunk of references after the other, summed."""
        recipe = self.parts.recipe
        scan = helper.make_node(
            "Scan",
            ["selkit.zero", *stacks],
            ["selkit.attribution"],
            body=chunk,
            num_scan_inputs=len(stacks),
        )
        return helper.make_graph(
            [
                *nodes,
                scan,
                helper.make_node("Reshape", ["selkit.attribution", "selkit.rest"], ["selkit.flat"]),
            ],
            "target",
            [value_info(recipe.target.name, TensorProto.INT64, ())],
            [value_info("selkit.flat", _TYPES[recipe.tape.dtype], recipe.x.shape[1:])],
        )

    def _slice(self, name: str, scanned: Mapping[str, NDArray[Any]]) -> onnx.ValueInfoProto:
        array = scanned[name]
        return value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape[1:])

    def _sample(
        self,
        nodes: list[onnx.NodeProto],
        target: onnx.GraphProto,
        names: Names,
    ) -> onnx.GraphProto:
        recipe = self.parts.recipe
        rest, output = recipe.x.shape[1:], recipe.output.name
        real = _TYPES[recipe.tape.dtype]
        # onnxruntime starts from a graph's last ends and there from the last inputs: with the scan at the end
        # and the choice of a target right behind the output, each layer's part is done while it is in cache
        place = next((i + 1 for i, node in enumerate(nodes) if output in node.output), 0)
        return helper.make_graph(
            [
                helper.make_node("Unsqueeze", [ROW, "selkit.first"], [recipe.x.name]),
                *nodes[:place],
                helper.make_node("Squeeze", [output, "selkit.first"], ["selkit.outputs"]),
                helper.make_node("ArgMax", [output], ["selkit.top"], axis=1, keepdims=0),
                helper.make_node("Less", [names.target, "selkit.none"], ["selkit.open"]),
                helper.make_node("Where", ["selkit.open", "selkit.top", names.target], ["selkit.chosen"]),
                helper.make_node("Gather", ["selkit.base", "selkit.chosen"], ["selkit.picked"]),
                helper.make_node("Gather", ["selkit.outputs", "selkit.chosen"], ["selkit.value"]),
                helper.make_node("Squeeze", [recipe.raw.name, "selkit.first"], ["selkit.prediction"]),
                *nodes[place:],
                helper.make_node("Scan", ["selkit.chosen"], ["selkit.rows"], body=target, num_scan_inputs=1),
            ],
            "sample",
            [value_info(ROW, real, rest)],
            [
                value_info("selkit.prediction", real, recipe.raw.shape[1:]),
                value_info("selkit.rows", real, (None, *rest)),
                value_info("selkit.chosen", TensorProto.INT64, (None,)),
                value_info("selkit.picked", real, (None,)),
                value_info("selkit.value", real, (None,)),
            ],
        )


@dataclass(frozen=True)
class _Homes:
    """Where stored values are put, and what they are called in scopes that have a copy of their own."""

    values: dict[tuple[str, str], Symbol]
    names: dict[str, dict[str, str]]


def _homes(nodes: Mapping[str, Sequence[Written]]) -> _Homes:
    """Put a stored value where it is read, else into the main graph.

    Convolutions are laid out for the processor only where their weights are in the same graph, so each
    scope that convolves with them has a copy.
    """
    readers: dict[str, dict[str, bool]] = {}
    symbols: dict[str, Symbol] = {}
    for scope, written in nodes.items():
        for node in written:
            for value in node.inputs:
                if value is not None and value.value is not None:
                    symbols[value.name] = value
                    convolves = node.op in ("Conv", "ConvTranspose")
                    known = readers.setdefault(value.name, {})
                    known[scope] = known.get(scope, False) or convolves
    values: dict[tuple[str, str], Symbol] = {}
    names: dict[str, dict[str, str]] = {}
    for name, scopes in readers.items():
        if len(scopes) == 1:
            values[next(iter(scopes)), name] = symbols[name]
        elif all(scopes.values()):
            for scope in scopes:
                values[scope, f"{name}.{scope}"] = symbols[name]
                names.setdefault(scope, {})[name] = f"{name}.{scope}"
        else:
            values[MAIN, name] = symbols[name]
    return _Homes(values, names)


def _stored_in(nodes: Iterable[Written]) -> dict[str, Symbol]:
    return {v.name: v for node in nodes for v in node.inputs if v is not None and v.value is not None}


def _body(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The graph that a graph's scan repeats."""
    scan = next(node for node in graph.node if node.op_type == "Scan")
    body: onnx.GraphProto = next(entry.g for entry in scan.attribute if entry.name == "body")
    return body


def _store(graph: onnx.GraphProto, value: Symbol, name: str) -> None:
    """Add a stored value to a graph, without another copy of it."""
    if value.value is None:
        return
    array = np.ascontiguousarray(value.value.numpy())
    tensor = graph.initializer.add(name=name, data_type=_TYPES[value.dtype], dims=value.shape)
    tensor.raw_data = array.tobytes()


def _node(node: Written, names: Mapping[str, str] | None = None) -> onnx.NodeProto:
    inputs = ["" if v is None else (names or {}).get(v.name, v.name) for v in node.inputs]
    return helper.make_node(node.op, inputs, [v.name for v in node.outputs], **node.attributes)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        graph, producer_name="selkit", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
