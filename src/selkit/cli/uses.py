"""What each output of a model can be used for: found by trying, without running the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from selkit.graph import Graph
    from selkit.graph.program import Program

ATTEMPTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"resize": "linear"},
    {"channel": 0},
    {"channel": 0, "resize": "linear"},
)
"""What :func:`selkit.load` may be told for an output to become a score map, from little to much."""


@dataclass(frozen=True)
class Use:
    """What one output can be used for.

    Attributes
    ----------
    output, shape
        Name, and ONNX shape for the given input; ``None`` where it is not known.
    p_values
        Of regions that it selects: "exact", "bracketed", or "" where it can be no score map.
    score_map, class_scores, embedding, explanation
        One sentence each; "" where it cannot be that.
    call
        How to test a region, as Python.
    reason
        Why it can be no score map.
    """

    output: str
    shape: tuple[int, ...] | None = None
    p_values: str = ""
    score_map: str = ""
    class_scores: str = ""
    embedding: str = ""
    explanation: str = ""
    call: str = ""
    reason: str = ""

    def text(self) -> str:
        """Some lines for reading."""
        shape = "of unknown shape" if self.shape is None else f"of shape {self.shape}"
        lines = [f"output {self.output}, {shape}"]
        names = ("class_scores", "embedding", "explanation")
        if self.score_map:
            lines += [f"  score map: {self.score_map}", f"    {self.call}"]
        lines += [f"  {name.replace('_', ' ')}: {said}" for name in names if (said := getattr(self, name))]
        lines += [f"  no score map: {self.reason}"] * bool(self.reason)
        return "\n".join(lines)


@dataclass(frozen=True)
class Asked:
    """What is known of a model.

    Attributes
    ----------
    graph, path
        The model.
    shape
        Of the input that is tested, the first one.
    others
        Zeros for the others.
    silent
        Names of the values that have no rule for an explanation behind them.
    """

    graph: Graph
    path: str
    shape: tuple[int, ...]
    others: Mapping[str, Tensor]
    silent: frozenset[str]


def use(asked: Asked, index: int) -> Use:
    """Find out what an output can be used for."""
    from selkit.errors import NotAvailableError, SelkitError

    graph, spec = asked.graph, asked.graph.outputs[index]
    tested = graph.inputs[0].name
    try:
        program = graph.compile(
            {tested: asked.shape}, [spec.name], constants=asked.others, seed=0, decompose=True
        )
    except SelkitError as error:
        return Use(spec.name, reason=f"the model cannot be tested at this shape: {error}")
    shape = tuple(program.shapes[spec.name])
    if spec.dtype is not None and not spec.dtype.is_floating_point:
        return Use(spec.name, shape, reason=f"its numbers are {str(spec.dtype).removeprefix('torch.')}")
    if not program.steps:
        return Use(spec.name, shape, reason="it does not depend on the input")
    found: dict[str, str] = {}
    reason = ""
    for given in ATTEMPTS:
        try:
            kind = _as_map(asked, program, index, given)
        except NotAvailableError as error:
            reason = f"regions by a threshold cannot be tested: {error}"
            break
        except SelkitError as error:
            reason = reason or str(error).partition(";")[0]  # what it advises has been tried here
            continue
        found, reason = _testable(asked, index, given, kind), ""
        break
    return Use(
        spec.name,
        shape,
        class_scores=_classes(graph, spec.name, shape),
        embedding=f"{math.prod(shape[1:])} numbers for each input" if math.prod(shape[1:]) > 1 else "",
        explanation=_explained(asked, spec.name, shape),
        reason=reason,
        **found,
    )


def _as_map(asked: Asked, program: Program, index: int, given: Mapping[str, Any]) -> str:
    """Whether p-values of regions by a threshold are exact or bracketed; raises where there are none."""
    import torch

    from selkit.errors import InvalidInputError
    from selkit.inference import BackMeanDiff, RoiTest
    from selkit.inference.layout import fit_to_input
    from selkit.inference.score_map import build_score_map, is_piecewise_linear
    from selkit.inference.tail import split

    spec, tested = asked.graph.outputs[index], asked.graph.inputs[0].name
    test = RoiTest(asked.graph, BackMeanDiff(threshold=0.5, o_idx=index), **given)
    maps = build_score_map(program, test.hypothesis, tested, spec.dtype)
    chosen = torch.zeros(maps.observed.shapes[maps.score], dtype=torch.bool)
    if "resize" in given and math.prod(program.shapes[spec.name][1:]) == _channels(program, spec.name):
        raise InvalidInputError("it has one place only, which says nothing about where")
    fit_to_input(chosen, asked.shape, maps.axes_of(chosen), maps.tested)
    if not maps.margins.steps:
        raise InvalidInputError("it does not depend on the input")
    return "exact" if is_piecewise_linear(split(maps.margins)[0]) else "bracketed"


def _channels(program: Program, name: str) -> int:
    """The longest axis behind the batch: with one place, all of the value."""
    return max(program.shapes[name][1:], default=1)


def _testable(asked: Asked, index: int, given: Mapping[str, Any], kind: str) -> dict[str, str]:
    """What is said of an output that can be a score map."""
    why = {
        "exact": "what is smooth, if anything, is a light end",
        "bracketed": "smooth operators before it are bounded",
    }[kind]
    output = f", o_idx={index}" if index else ""
    told = "".join(f", {name}={value!r}" for name, value in given.items())
    x = (
        "x"
        if len(asked.graph.inputs) == 1
        else f"[x, {', '.join(spec.name for spec in asked.graph.inputs[1:])}]"
    )
    return {
        "p_values": kind,
        "score_map": f"p-values of regions by a threshold are {kind}: {why}",
        "call": f"selkit.load({asked.path!r}, selkit.BackMeanDiff(threshold=0.5{output}){told})"
        f".inference({x}, var=1.0)",
    }


def _classes(graph: Graph, output: str, shape: Sequence[int]) -> str:
    """Whether an output is one number for each class."""
    sizes = [size for size in shape[1:] if size != 1]
    if len(shape) < 2 or shape[0] != 1 or len(sizes) > 1:
        return ""
    last = next((node.op_type for node in graph.nodes if output in node.outputs), "")
    kind = "probabilities" if last in ("Softmax", "Sigmoid") else "numbers, such as logits"
    return f"{sizes[0]} {kind}" if sizes else "one number, such as the logit of two classes"


HEADS: tuple[Mapping[str, Any], ...] = ({}, {"reduce": "mean"}, {"reduce": "mean", "class_axis": 1})
"""What an explainer may be told for an output with positions, from little to much."""


def _explained(asked: Asked, output: str, shape: Sequence[int]) -> str:
    """Whether Shapley values can be had, by which method, and what the explainer must be told."""
    from selkit.errors import SelkitError
    from selkit.explain.heads import read_head

    if len(shape) < 2:
        return ""
    inputs = asked.graph.inputs
    live = [asked.shape, *(tuple(value.shape) for value in asked.others.values())]
    whole = [spec.name for spec in inputs if spec.dtype is not None and not spec.dtype.is_floating_point]
    for given in HEADS:
        try:
            read_head(shape, live, output, **given)
        except SelkitError:
            continue
        break
    else:
        return ""
    told = [f"{name}={value!r}" for name, value in given.items()]
    if whole and len(inputs) > 1:
        told.append(f"fixed={{{', '.join(f'{name!r}: its value' for name in whole)}}}")
    method = "by its graph (DeepSHAP), or method='permutation'"
    if output in asked.silent:
        method = "by method='permutation' alone: an operator before it has no rule"
    return method + (f"; say {', '.join(told)}" if told else "")


def silent(graph: Graph, unruled: Sequence[str]) -> frozenset[str]:
    """Values of a graph behind one of the nodes whose first outputs are named in ``unruled``."""
    behind = set(unruled)
    for node in graph.nodes:
        if not behind.isdisjoint(node.inputs) or not behind.isdisjoint(node.outputs):
            behind.update(filter(None, node.outputs))
    return frozenset(behind)
