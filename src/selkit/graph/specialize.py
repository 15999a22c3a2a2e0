"""Specialize a graph to one shape of its inputs, and lengthen what has been specialized."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selkit.errors import InternalError, InvalidInputError, UnsupportedModelError
from selkit.graph.compiler import Builder, Choice
from selkit.graph.nodes import needed
from selkit.graph.ops.base import LARGEST, Operator
from selkit.graph.program import Program, Shape, finish

if TYPE_CHECKING:
    from selkit.graph.model import Graph


def compile_graph(
    graph: Graph,
    shapes: Mapping[str, Shape],
    outputs: Sequence[str] | None,
    *,
    live: Sequence[str] | None,
    constants: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    seed: int | None,
    decompose: Choice,
) -> Program:
    """Do the work of :meth:`selkit.graph.model.Graph.compile`."""
    wanted = [spec.name for spec in graph.outputs] if outputs is None else list(outputs)
    known = graph.values
    if live is None:
        live = [spec.name for spec in graph.inputs if spec.name not in constants]
    for argument, names in (
        ("outputs", wanted),
        ("live", live),
        ("constants", constants),
        ("shapes", shapes),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InvalidInputError(f"{argument}: the model has no value(s) {', '.join(unknown)}")
    if not wanted:
        raise InvalidInputError("outputs is empty; name at least one value of the model")
    cut = {*live, *constants}
    nodes, roots = _needed(graph, wanted, cut)
    free = [spec.name for spec in graph.inputs if spec.name in roots and spec.name not in cut]
    if free:
        raise InvalidInputError(f"input(s) {', '.join(free)} are neither live nor given in constants")
    inputs = {name: _shape(graph, name, shapes) for name in live if name in roots}
    builder = Builder(dtype, device, decompose=decompose, opset=graph.opset, seed=seed)
    for name in roots:
        if name in inputs:
            builder.add_input(name, inputs[name], _input_dtype(graph, name, dtype))
        elif name in graph.unreadable and name not in constants:
            builder.refuse(graph.unreadable[name], [name])
        else:
            value = _typed(graph, name, constants[name]) if name in constants else graph.initializers[name]
            builder.values[name] = value.detach().unsqueeze(0)
    for index in nodes:
        builder.add_node(graph.nodes[index], (index,))
    problems = builder.standing(wanted)
    faults = [str(problem) for problem in problems if problem.internal]
    if faults:
        raise InternalError(
            "selkit failed at nodes of this model, which is an error of selkit and not of the model; please "
            "report it with the model: " + "; ".join(faults)
        )
    if problems:
        raise UnsupportedModelError(problems)
    return builder.finish(inputs, wanted)


def extend_program(
    program: Program, operator: Operator, inputs: Sequence[str | Tensor], prefix: str
) -> tuple[Program, str]:
    """Do the work of :meth:`selkit.graph.program.Program.extend`."""
    builder = Builder(program.dtype, program.device, decompose=False)
    builder.values.update(program.constants)
    for name, shape in program.shapes.items():
        if name not in program.constants:
            builder.add_input(name, shape, program.dtype)
    names = []
    for value in inputs:
        if isinstance(value, str) and value and value not in program.shapes:
            raise InvalidInputError(f"the program has no value {value!r}; it has {', '.join(program.shapes)}")
        names.append(value if isinstance(value, str) else builder.constant(value))
    free = (f"{prefix}_{i}" for i in itertools.count(1))
    name = next(candidate for candidate in free if candidate not in program.shapes)
    builder.keep = True
    builder.emit(operator, names, (name,), name)
    if builder.problems:
        raise InvalidInputError(f"{prefix}: {builder.problems[0].reason}")
    constants = {**program.constants, **{key: builder.program_value(key) for key in builder.values}}
    shapes = {**program.shapes, **{key: tuple(value.shape[1:]) for key, value in constants.items()}}
    shapes |= {key: value for key, value in builder.shapes.items() if key not in shapes}
    steps = (*program.steps, *builder.steps)
    outputs = (*program.outputs, name)
    longer = finish(
        steps,
        program.inputs,
        outputs,
        constants=constants,
        shapes=shapes,
        dtype=program.dtype,
        device=program.device,
    )
    return longer, name


def _needed(graph: Graph, wanted: Sequence[str], cut: set[str]) -> tuple[list[int], list[str]]:
    """Positions of the nodes that the wanted values need, and the values that they start from."""
    nodes = needed(graph.nodes, wanted, cut)
    read = {*wanted, *(name for index in nodes for name in graph.nodes[index].inputs if name)}
    produced = {name for index in nodes for name in graph.nodes[index].outputs}
    return nodes, sorted(name for name in read if name in cut or name not in produced)


def _shape(graph: Graph, name: str, shapes: Mapping[str, Shape]) -> Shape:
    """The shape given for a live value, if it fits what the model declares."""
    if name not in shapes:
        raise InvalidInputError(f"shapes has no shape for {name!r}")
    shape = tuple(int(size) for size in shapes[name])
    if any(size < 0 for size in shape) or math.prod(shape) > LARGEST:
        raise InvalidInputError(
            f"shapes: {name!r} has the shape {shape}; sizes may not be negative, nor elements over {LARGEST}"
        )
    declared = next((spec.shape for spec in graph.inputs if spec.name == name), None)
    if declared is not None:
        fits = len(declared) == len(shape) and all(
            size in (None, given) for size, given in zip(declared, shape, strict=False)
        )
        if not fits:
            text = ", ".join("?" if size is None else str(size) for size in declared)
            raise InvalidInputError(f"shapes: {name!r} has shape {shape}, but the model wants ({text})")
    return shape


def _input_dtype(graph: Graph, name: str, dtype: torch.dtype) -> torch.dtype:
    declared = next((spec.dtype for spec in graph.inputs if spec.name == name), None)
    return dtype if declared is None or declared.is_floating_point else declared


def _typed(graph: Graph, name: str, value: Tensor) -> Tensor:
    """A constant for an input, as an integer or a condition where the model wants one."""
    declared = next((spec.dtype for spec in graph.inputs if spec.name == name), None)
    return value if declared is None or declared.is_floating_point else value.to(declared)
