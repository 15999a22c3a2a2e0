"""Control flow that is decided when a model is compiled: a branch that is known, a loop of known length."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selkit.errors import UnsupportedNode
from selkit.graph.ops.base import Composite, UnsupportedAttribute
from selkit.graph.ops.shape import Concat, Gather, Unsqueeze

if TYPE_CHECKING:
    from selkit.graph.compiler import Builder
    from selkit.graph.nodes import Node

MOST_NODES = 5_000
"""Nodes that one loop may become; more would take minutes to compile."""


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A branch, or the body of a loop.

    Attributes
    ----------
    inputs, outputs
        Names of values.
    nodes
        In an order in which they can be run; without those that no output needs.
    initializers
        Stored values by name, without a stack axis.
    unreadable
        What is wrong with stored values that cannot be read, by name.
    captured
        Names of the values outside that it reads.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    initializers: Mapping[str, Tensor]
    unreadable: Mapping[str, UnsupportedNode]
    captured: tuple[str, ...]

    def inline(
        self, builder: Builder, names: Mapping[str, str], prefix: str, path: tuple[int, ...]
    ) -> list[str]:
        """Add the nodes to a program that is being built, and return the names of the outputs there.

        Parameters
        ----------
        builder
            Of the program.
        names
            What the subgraph's inputs and the values outside are called in the program.
        prefix
            Of the names that its own values get.
        path
            Where it stands in the model, for the seeds of random operators.
        """
        known = dict(names)
        for name, value in self.initializers.items():
            known[name] = f"{prefix}/{name}"
            builder.values[known[name]] = value.unsqueeze(0)
        for name, problem in self.unreadable.items():
            known[name] = f"{prefix}/{name}"
            builder.refuse(problem, [known[name]])
        for index, node in enumerate(self.nodes):
            inputs = tuple(known.get(name, name) for name in node.inputs)
            known.update({name: f"{prefix}/{name}" for name in node.outputs if name})
            outputs = tuple(known[name] if name else "" for name in node.outputs)
            builder.add_node(dataclasses.replace(node, inputs=inputs, outputs=outputs), (*path, index))
        return [known.get(name, name) for name in self.outputs]


@dataclass(frozen=True, eq=False)
class Flow(Composite):
    """An operator that runs other graphs; its last inputs are the values outside that these read.

    Attributes
    ----------
    captured
        What these inputs are called inside.
    """

    OUTPUTS = None

    captured: tuple[str, ...]

    def deciding(self, inputs: Sequence[str]) -> Sequence[str]:
        """The inputs that say which nodes are run."""
        return ()

    def certain(self, inputs: Sequence[str]) -> Sequence[str]:
        """The inputs that are needed whatever is decided, as far as can be said."""
        return inputs

    def unroll(self, builder: Builder, node: Node, path: tuple[int, ...]) -> Sequence[str]:
        """Add the nodes that are run to a program, and return the names of the outputs there."""
        raise TypeError(f"{type(self).__name__} does not define unroll")

    @property
    def subgraphs(self) -> dict[str, Subgraph]:
        """What it may run, by attribute."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Subgraph)}

    def outside(self, node: Node) -> dict[str, str]:
        """What the values outside are called in the program."""
        own = len(node.inputs) - len(self.captured)
        return dict(zip(self.captured, node.inputs[own:], strict=True))

    def own(self, node: Node) -> tuple[str, ...]:
        """The inputs that the operator itself has."""
        return node.inputs[: len(node.inputs) - len(self.captured)]


@dataclass(frozen=True, eq=False)
class If(Flow):
    """One of two branches; the condition must be known when the model is compiled."""

    then_branch: Subgraph
    else_branch: Subgraph

    def deciding(self, inputs: Sequence[str]) -> Sequence[str]:
        """The condition."""
        return inputs[:1]

    def certain(self, inputs: Sequence[str]) -> Sequence[str]:
        """The condition."""
        return inputs[:1]

    def unroll(self, builder: Builder, node: Node, path: tuple[int, ...]) -> Sequence[str]:
        """The branch that is taken."""
        condition = builder.known(node.inputs[0])
        if condition is None:
            raise UnsupportedAttribute(
                f"its condition {node.inputs[0]!r} depends on the values of the model's input, so the "
                "network is not one function; give the input that it depends on as a constant, "
                "or export the model for one branch"
            )
        taken = self.then_branch if bool(_single(condition, "condition")) else self.else_branch
        return taken.inline(builder, self.outside(node), node.outputs[0], path)


@dataclass(frozen=True, eq=False)
class Loop(Flow):
    """A loop, unrolled; how often it runs must be known when the model is compiled."""

    body: Subgraph

    def deciding(self, inputs: Sequence[str]) -> Sequence[str]:
        """The number of steps and the condition."""
        return inputs[:2]

    def unroll(self, builder: Builder, node: Node, path: tuple[int, ...]) -> Sequence[str]:
        """One step after the other."""
        limit, condition, *states = (*self.own(node), "", "")[: max(2, len(self.own(node)))]
        most = None if not limit else int(_single(_fixed(builder, limit, "trip count"), "trip count"))
        go = not condition or bool(_single(_fixed(builder, condition, "condition"), "condition"))
        rows: list[list[str]] = []
        count = 0
        while go and (most is None or count < most):
            _check_length(self.body, count)
            first = (builder.constant(torch.tensor(count)), builder.constant(torch.tensor(data=True)))
            names = dict(zip(self.body.inputs, (*first, *states), strict=True))
            results = self.body.inline(
                builder, {**self.outside(node), **names}, f"{node.outputs[0]}/{count}", (*path, count)
            )
            if builder.failed(results[0]):
                return [results[0]] * len(node.outputs)
            go = bool(_single(_fixed(builder, results[0], "condition to go on"), "condition"))
            states = results[1 : 1 + len(states)]
            rows.append(results[1 + len(states) :])
            count += 1
        scans = len(self.body.outputs) - 1 - len(states)
        return [*states, *(_stack(builder, [row[k] for row in rows], 0) for k in range(scans))]


@dataclass(frozen=True, eq=False)
class Scan(Flow):
    """A loop over an axis of its inputs, unrolled."""

    body: Subgraph
    num_scan_inputs: int
    scan_input_axes: tuple[int, ...] = ()
    scan_input_directions: tuple[int, ...] = ()
    scan_output_axes: tuple[int, ...] = ()
    scan_output_directions: tuple[int, ...] = ()

    def unroll(self, builder: Builder, node: Node, path: tuple[int, ...]) -> Sequence[str]:
        """One step for each entry."""
        own = self.own(node)
        split = len(own) - self.num_scan_inputs
        states, scanned = list(own[:split]), own[split:]
        if not scanned or split < 0:
            raise UnsupportedAttribute(f"num_scan_inputs={self.num_scan_inputs} does not fit its inputs")
        failed = next((name for name in scanned if builder.failed(name)), None)
        if failed is not None:
            return [failed] * len(node.outputs)
        axes = self.scan_input_axes or (0,) * len(scanned)
        back = self.scan_input_directions or (0,) * len(scanned)
        lengths = {builder.shape_of(name)[axis] for name, axis in zip(scanned, axes, strict=True)}
        if len(lengths) != 1:
            raise UnsupportedAttribute(f"its scanned inputs have the different lengths {sorted(lengths)}")
        (length,) = lengths
        rows: list[list[str]] = []
        for count in range(length):
            _check_length(self.body, count)
            prefix = f"{node.outputs[0]}/{count}"
            entries = []
            for place, name in enumerate(scanned):
                index = length - 1 - count if back[place] else count
                entry = f"{prefix}/entry.{place}"
                builder.emit(
                    Gather(axes[place]), (name, builder.constant(torch.tensor(index))), (entry,), node.name
                )
                entries.append(entry)
            names = dict(zip(self.body.inputs, (*states, *entries), strict=True))
            results = self.body.inline(builder, {**self.outside(node), **names}, prefix, (*path, count))
            states = results[: len(states)]
            rows.append(results[len(states) :])
        made = []
        for place in range(len(self.body.outputs) - len(states)):
            axis = self.scan_output_axes[place] if self.scan_output_axes else 0
            parts = [row[place] for row in rows]
            reverse = self.scan_output_directions and self.scan_output_directions[place]
            made.append(_stack(builder, parts[::-1] if reverse else parts, axis))
        return [*states, *made]


def _single(value: Tensor, what: str) -> Any:
    if value.numel() != 1:
        raise UnsupportedAttribute(f"its {what} has {value.numel()} elements; it must have one")
    return value.reshape(()).item()


def _fixed(builder: Builder, name: str, what: str) -> Tensor:
    value = builder.known(name)
    if value is None:
        raise UnsupportedAttribute(
            f"its {what} {name!r} depends on the values of the model's input, so it cannot be unrolled; give "
            "the input that it depends on as a constant, or export the model with a fixed number of steps"
        )
    return value


def _check_length(body: Subgraph, count: int) -> None:
    if (count + 1) * max(1, len(body.nodes)) > MOST_NODES:
        raise UnsupportedAttribute(
            f"unrolled, it has over {MOST_NODES} nodes ({len(body.nodes)} in each step); "
            "use shorter inputs, or export the model with an operator for the whole loop"
        )


def _stack(builder: Builder, parts: Sequence[str], axis: int) -> str:
    """Values of the steps side by side on a new axis."""
    if not parts:
        raise UnsupportedAttribute("it collects the results of its steps, but there is no step")
    rows = []
    for part in parts:
        rows.append(f"{part}.row")
        builder.emit(Unsqueeze((axis,)), (part,), rows[-1:])
    builder.emit(Concat(axis), rows, (f"{parts[0]}.rows",))
    return f"{parts[0]}.rows"
