"""From a model and references to the graph that explains."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from selkit.embeddings.batches import Key
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.explain import bands
from selkit.explain.assemble import Assembler, Names
from selkit.explain.batches import read_reference_batch
from selkit.explain.facts import Facts
from selkit.explain.question import Choice, Question, ask, check_outputs, join
from selkit.explain.rules import chained, in_parts, rowwise, write
from selkit.explain.scopes import WEIGHT, Parts, divide
from selkit.explain.storage import Package, options
from selkit.explain.targets import Target, check_target
from selkit.graph.files import Source
from selkit.utils.arrays import as_tensor
from selkit.utils.checks import given, integer
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
    target: Target,
    *,
    choice: Choice,
    weights: object,
    cache: bool | Literal["auto"],
    chunk: int | Literal["auto"],
    threads: int | None,
    key: Key,
) -> Package:
    """Do the work of :class:`selkit.explain.Explainer`."""
    if not _is_auto(cache) and not _is_truth(cache):
        raise InvalidInputError(f"cache is {given(cache)}; it must be True, False or 'auto'")
    question = ask(model, choice)
    if not _is_auto(chunk):
        integer(chunk, "chunk", 1, 2**31)
    behind = question.behind
    given_references = references if behind is None else behind.references(references)
    batches = read_reference_batch(given_references, question.inputs, key)
    share = read_weights(weights, len(batches[0]))
    _check_names(question)
    asked = question.answer([batch.shape[1:] for batch in batches], decompose=in_parts)
    program = asked.program
    rows = join(batches, str(program.dtype).removeprefix("torch."))
    chosen = check_target(target, asked.classes)
    few, more = (_rows(chunk, len(rows), most) for most in (ROWS, bands.ROWS))
    if more > 1 and not rowwise(program):
        few = more = 1
    banded = bool(bands.plan(program, chained(program.steps), more))
    opset, kept = question.graph.opset.get("", 0), bool(cache)
    parts = divide(write(program, more if kept and banded else few, opset, ahead=kept), cache=kept)
    if cache == "auto" and _size(parts, len(rows)) > min(MOST_STORED, _free() // 8):
        kept = False
        del parts  # rules with more work for the references alone pay only where that is stored
        parts = divide(write(program, few, opset, ahead=False), cache=False)  # few, for all of them is held
    made = Assembler(parts)
    _set_units(made, rows, threads)
    scanned, outputs = _references(made, rows, share, threads)
    outputs = outputs[: len(rows)]
    check_outputs(outputs, "references")
    base = (share[:, None] * outputs.astype(np.float64)).sum(0).astype(rows.dtype)
    several = isinstance(chosen, tuple)
    indices = chosen if isinstance(chosen, tuple) else (-1 if chosen == "top" else chosen,)
    proto = made.explanation(Names(asked.inputs, asked.raw), scanned, base, indices, several=several)
    facts = Facts(asked.inputs, asked.raw, asked.classes, chosen, len(rows), kept, question.notes)
    return Package(proto, made.arrays, facts, behind)


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def _check_names(question: Question) -> None:
    """Refuse names that the explanation's own inputs and outputs have."""
    own = Names((), question.output).own
    for name in (*(spec.name for spec in question.specs), question.output):
        if name in own or name.startswith(("selkit.", "attributions.")):
            raise InvalidInputError(
                f"the model calls a value {name!r}, as the explanation's graph does; rename it, for instance "
                "with input_names and output_names when it is exported"
            )


def read_weights(weights: object, count: int) -> NDArray[np.float64]:
    """Shares of the references, which sum to 1.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If there is not one positive number for each reference.
    """
    if weights is None:
        return np.full(count, 1 / count)
    tensor = as_tensor(weights, "weights")
    if tensor.is_complex():
        raise InvalidTypeError(f"weights must be real numbers; got {tensor.dtype}")
    found = tensor.double().cpu().numpy()
    fits = found.shape == (count,) and np.isfinite(found).all() and (found > 0).all()
    share = found / found.max() if fits else found
    if not fits or not (share / share.sum() > 0).all():
        raise InvalidInputError(
            f"weights has shape {found.shape} and values from {found.min(initial=0)}; there must be one "
            f"positive number for each of the {count} references"
        )
    return np.asarray(share / share.sum())


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
