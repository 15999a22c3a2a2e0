"""From a model and references to the graph that explains."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from selkit.embeddings.batches import Key
from selkit.errors import InvalidInputError, InvalidTypeError, UnsupportedModelError
from selkit.explain import bands
from selkit.explain.assemble import WEIGHT, Assembler, Names, Parts, divide
from selkit.explain.permutation import Target, check_target
from selkit.explain.references import read_references
from selkit.explain.rules import chained, in_parts, rowwise, write
from selkit.explain.storage import Facts, Package, options
from selkit.graph.files import Source
from selkit.graph.model import Graph, ValueSpec
from selkit.graph.program import Program
from selkit.utils.arrays import as_tensor, check_count
from selkit.utils.progress import track

MOST_STORED = 2**30
"""Bytes of activations that are stored by default, and at most an eighth of the free memory."""
MEASURED = 16
"""References that say how large activations are."""
ROWS = 2
"""Most references at once where nothing else is said."""


def build(
    model: Source,
    references: object,
    output: str | None,
    target: Target,
    *,
    weights: object,
    cache: bool | Literal["auto"],
    chunk: int | Literal["auto"],
    threads: int | None,
    key: Key,
) -> Package:
    """Do the work of :class:`selkit.explain.Explainer`."""
    if cache not in (True, False, "auto"):
        raise InvalidInputError(f"cache is {cache!r}; it must be True, False or 'auto'")
    graph = Graph.load(model)
    spec = input_of(graph)
    dtype = spec.dtype or torch.float32
    if chunk != "auto":
        check_count(chunk, "chunk")
    given = read_references(references, spec.shape, str(dtype).removeprefix("torch."), key=key)
    share = _weights(weights, len(given))
    name = _output_of(graph, output)
    _check_names(spec.name, name)
    program = _program(graph, spec, name, given.shape[1:], dtype)
    chosen = check_target(target, program.shapes[name][1])
    few, more = (_rows(chunk, len(given), most) for most in (ROWS, bands.ROWS))
    if more > 1 and not rowwise(program):
        few = more = 1
    banded = bool(bands.plan(program, chained(program.steps), more))
    opset, kept = graph.opset.get("", 0), bool(cache)
    parts = divide(write(program, more if kept and banded else few, opset, ahead=kept), cache=kept)
    if cache == "auto" and _size(parts, len(given)) > min(MOST_STORED, _free() // 8):
        kept = False
        del parts  # rules with more work for the references alone pay only where that is stored
        parts = divide(write(program, few, opset, ahead=False), cache=False)  # few, for all of them is held
    made = Assembler(parts)
    _set_units(made, given, threads)
    scanned, outputs = _references(made, given, share, threads)
    base = (share[:, None] * outputs[: len(given)].astype(np.float64)).sum(0).astype(given.dtype)
    several = isinstance(chosen, tuple)
    indices = chosen if isinstance(chosen, tuple) else (-1 if chosen == "top" else chosen,)
    proto = made.explanation(Names(spec.name, name), scanned, base, indices, several=several)
    facts = Facts(spec.name, name, given.shape[1:], str(given.dtype), chosen, len(given), kept)
    return Package(proto, made.arrays, facts)


def input_of(graph: Graph) -> ValueSpec:
    """The model's only input, if it can be explained."""
    names = [spec.name for spec in graph.inputs]
    if len(names) != 1:
        raise InvalidInputError(
            f"the model takes {len(names)} inputs ({', '.join(names)}); an explainer needs exactly one. "
            "Fix the others by making them initializers of the model"
        )
    (spec,) = graph.inputs
    if spec.dtype not in (torch.float32, torch.float64):
        kind = str(spec.dtype).removeprefix("torch.")
        raise InvalidTypeError(
            f"the model's input {spec.name!r} is {kind}; attributions are for float32 or float64. For token "
            "indices, cut the model behind the embedding (onnx.utils.extract_model) and explain that"
        )
    if spec.shape is not None and spec.shape[:1] not in ((None,), (1,)):
        raise InvalidInputError(
            f"the model's input {spec.name!r} has the fixed batch size {spec.shape[:1]}; export the model "
            "with a batch of 1 or a dynamic batch axis"
        )
    return spec


def _output_of(graph: Graph, name: str | None) -> str:
    names = [spec.name for spec in graph.outputs]
    if name is None:
        return names[0]
    known = {*names, *(value for node in graph.nodes for value in node.outputs if value)}
    if name not in known:
        raise InvalidInputError(f"output is {name!r}, but the model has the outputs {', '.join(names)}")
    return name


def _check_names(x: str, output: str) -> None:
    """Refuse names that the explanation's own inputs and outputs have."""
    own = Names(x, output)
    taken = {own.target, own.attributions, own.base, own.targets}
    for name in (x, output):
        if name in taken or name.startswith("selkit."):
            raise InvalidInputError(
                f"the model calls a value {name!r}, as the explanation's graph does; rename it, for instance "
                "with input_names and output_names when it is exported"
            )


def _program(
    graph: Graph, spec: ValueSpec, output: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Program:
    try:
        program = graph.compile({spec.name: (1, *shape)}, [output], dtype=dtype, decompose=in_parts)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(error.nodes, "explain this model") from error
    found = program.shapes.get(output)
    if found is None or len(found) != 2 or found[0] != 1:
        raise InvalidInputError(
            f"the output {output!r} has shape {found} for one sample; it must be 2-D, (samples, outputs). "
            "Name another with output=, or add a Reshape, or a mean over positions, to the model"
        )
    if output in program.constants or spec.name not in program.inputs:
        raise InvalidInputError(f"the output {output!r} does not depend on the input {spec.name!r}")
    return program


def _weights(weights: object, count: int) -> NDArray[np.float64]:
    if weights is None:
        return np.full(count, 1 / count)
    given = as_tensor(weights, "weights").double().numpy()
    if given.shape != (count,) or not np.isfinite(given).all() or (given <= 0).any():
        raise InvalidInputError(
            f"weights has shape {given.shape} and values from {given.min(initial=0)}; there must be one "
            f"positive number for each of the {count} references"
        )
    return np.asarray(given / given.sum())


def _rows(chunk: int | Literal["auto"], count: int, most: int) -> int:
    """How many references at once; by default so that no chunk has to be filled up."""
    if chunk == "auto":
        return next(rows for rows in range(most, 0, -1) if count % rows == 0)
    return -(-count // -(-count // min(chunk, count)))


def _size(parts: Parts, count: int) -> int:
    return count * sum(math.prod(value.shape) * value.dtype.itemsize for value in parts.stored)


def _free() -> int:
    """Free memory in bytes, as far as the system says."""
    try:
        with Path("/proc/meminfo").open() as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (OSError, ValueError, AttributeError):
        return 8 * MOST_STORED


def _set_units(made: Assembler, references: NDArray[Any], threads: int | None) -> None:
    """Store the units of the rules that scale, by the largest of some references."""
    import onnxruntime as ort

    sizes = made.parts.recipe.tape.sizes
    if not sizes:
        return
    session = ort.InferenceSession(
        made.sizes().SerializeToString(), options(threads), providers=["CPUExecutionProvider"]
    )
    chosen = np.unique(np.linspace(0, len(references) - 1, MEASURED).round().astype(np.int64))
    largest = np.zeros(len(sizes))
    for start in range(0, len(chosen), made.rows):
        chunk = references[np.resize(chosen[start : start + made.rows], made.rows)]
        results = session.run(None, {made.parts.recipe.reference.name: chunk})
        largest = np.fmax(largest, [np.max(result) for result in results])
    for (unit, _), size in zip(sizes.values(), largest.tolist(), strict=True):
        if unit.value is not None and math.isfinite(size) and size > 0:
            unit.value.fill_(min(1 / size, 1e20))  # times what a rule adds, no overflow


def _references(
    made: Assembler, references: NDArray[Any], share: NDArray[np.float64], threads: int | None
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """What is scanned, as stacks of chunks, and the references' outputs."""
    import onnxruntime as ort

    parts, rows = made.parts, made.rows
    count = -(-len(references) // rows)
    extra = count * rows - len(references)
    padded = np.concatenate([references, np.repeat(references[-1:], extra, axis=0)]) if extra else references
    weights = np.concatenate([share, np.zeros(extra)]).astype(references.dtype)
    rank = references.ndim
    scanned: dict[str, NDArray[Any]] = {
        parts.recipe.reference.name: padded.reshape(count, rows, *references.shape[1:]),
        WEIGHT: weights.reshape(count, rows, *(1,) * (rank - 1)),
    }
    session = ort.InferenceSession(
        made.references().SerializeToString(), options(threads), providers=["CPUExecutionProvider"]
    )
    outputs = []
    for index in track(range(count), "running the references", count):
        chunk = scanned[parts.recipe.reference.name][index]
        first, *kept = session.run(None, {parts.recipe.reference.name: chunk})
        outputs.append(first)
        for value, result in zip(parts.stored, kept, strict=True):
            stack = scanned.setdefault(value.name, np.empty((count, *result.shape), result.dtype))
            stack[index] = result
    return scanned, np.concatenate(outputs)
