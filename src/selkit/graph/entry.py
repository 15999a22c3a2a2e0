"""The real value behind an integer input: what is tested or explained in the place of bytes or token ids."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.graph.nodes import Node, needed
from selkit.graph.ops.activations import Clip
from selkit.graph.ops.arithmetic import Add, Max, Min, Mul, Sub
from selkit.graph.ops.base import Operator
from selkit.graph.ops.constants import Cast, Identity
from selkit.graph.ops.indexing import Size
from selkit.graph.ops.quantized import DequantizeLinear
from selkit.graph.ops.shape import (
    Concat,
    Expand,
    Flatten,
    Gather,
    Reshape,
    Shape,
    Slice,
    Squeeze,
    Transpose,
    Unsqueeze,
)
from selkit.graph.ops.types import torch_dtype

if TYPE_CHECKING:
    from selkit.graph.model import Graph

MOVES: tuple[type[Operator], ...] = (
    *(Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Slice, Concat, Expand, Identity),
    *(Add, Sub, Mul, Max, Min, Clip),
)
"""Integers in, integers out; a comparison is not among them: it asks where ids are, not what they mean."""


@dataclass(frozen=True)
class Entry:
    """Where integers become real numbers.

    Attributes
    ----------
    input
        Name of the model's integer input.
    value
        Name of the real value behind it.
    how
        By a table ("embedding") or as a number ("cast").
    elsewhere
        Operators that read the integers besides, other than for their shape.
    shaped
        Whether the model needs the integers' shape besides.
    """

    input: str
    value: str
    how: Literal["embedding", "cast"]
    elsewhere: tuple[str, ...] = ()
    shaped: bool = False

    def note(self, what: str) -> str:
        """A sentence for results; ``what`` is "tested" or "explained"."""
        by = "the embedding of" if self.how == "embedding" else "the numbers of"
        return f"{what} is the value {self.value!r}, {by} the integer input {self.input!r}"

    def of(self, graph: Graph, integers: Tensor, others: dict[str, Tensor] | None = None) -> Tensor:
        """The real value for some integers; float64."""
        fixed = next(spec.shape for spec in graph.inputs if spec.name == self.input)
        rows = list(torch.split(integers, 1)) if fixed is not None and fixed[:1] == (1,) else [integers]
        parts = []
        for row in rows:
            constants = {**(others or {}), self.input: row}
            parts.append(graph.compile({}, [self.value], live=[], constants=constants).run({})[self.value][0])
        return torch.cat(parts)


def find_entry(
    graph: Graph, name: str, outputs: Sequence[str], chosen: str | None = None, *, argument: str = "entry"
) -> Entry:
    """Find the one real value behind an integer input.

    Parameters
    ----------
    graph
        The model.
    name
        Of its input.
    outputs
        Names of the values that are wanted.
    chosen
        The value that is meant, where there are several.
    argument
        What it is called, for messages.

    Raises
    ------
    InvalidInputError
        If there is none, or several and none is chosen; candidates are listed.
    """
    nodes = [graph.nodes[index] for index in needed(graph.nodes, outputs)]
    integers, rows, found, other, shaped = {name}, set[str](), {}, [], False
    for node in nodes:
        read = [place for place, value in enumerate(node.inputs) if value in integers]
        if not read:
            continue
        kind = _becomes(node, read)
        if kind == "embedding" and _whole(graph, node.inputs[0]):  # of a quantized table, made real later
            integers.add(node.outputs[0])
            rows.add(node.outputs[0])
        elif kind is not None:
            found[node.outputs[0]] = "embedding" if rows.intersection(node.inputs) else kind
        elif isinstance(node.operator, Shape | Size):
            shaped = True
        elif _stays(node, read):
            integers.update(filter(None, node.outputs))
        else:
            other.append(node.op_type)
    if chosen is not None and chosen not in found:
        near = difflib.get_close_matches(chosen, found, n=3, cutoff=0.3)
        raise InvalidInputError(
            f"{argument} is {chosen!r}, which is no real value made of the integer input {name!r}; there are "
            f"{sorted(found)}{f' (near it: {near})' if near else ''}"
        )
    if not found:
        raise InvalidInputError(
            f"the input {name!r} holds integers, and no real value is made of it by a table (Gather) or a "
            "Cast, so there is nothing that noise could be added to"
        )
    if chosen is None and len(found) > 1:
        listed = ", ".join(f"{value!r} ({how})" for value, how in found.items())
        raise InvalidInputError(
            f"the input {name!r} holds integers, and several real values are made of it: {listed}; say which "
            f"one is meant with {argument}="
        )
    value = next(iter(found)) if chosen is None else chosen
    other += ["Gather" if how == "embedding" else "Cast" for one, how in found.items() if one != value]
    return Entry(name, value, found[value], tuple(other), shaped)


def _becomes(node: Node, read: Sequence[int]) -> Literal["embedding", "cast"] | None:
    """How a node makes real numbers of integers, if it does."""
    operator = node.operator
    if isinstance(operator, Gather) and read == [1]:
        return "embedding"
    if isinstance(operator, Cast) and torch_dtype(operator.to).is_floating_point:
        return "cast"
    return "cast" if isinstance(operator, DequantizeLinear) and read == [0] else None


def _whole(graph: Graph, table: str) -> bool:
    """Whether a stored table holds integers."""
    values = graph.initializers.get(table)
    return values is not None and not values.is_floating_point()


def _stays(node: Node, read: Sequence[int]) -> bool:
    """Whether a node makes integers of integers."""
    if isinstance(node.operator, Cast):
        return torch_dtype(node.operator.to) != torch.bool
    if isinstance(node.operator, Gather):
        return read == [0]
    return isinstance(node.operator, MOVES)
