"""From a model to the margins whose signs are the region: ``score map > threshold``.

A margin is positive where a pixel belongs to the region. It is chosen piecewise linear wherever that is
possible: a threshold on a sigmoid is a threshold on its argument, and a threshold on a map scaled by its
minimum and maximum is one on a combination of the three. What stays smooth is bounded, not followed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, NotAvailableError
from selkit.graph.ops.base import Kind, Smooth
from selkit.graph.program import Program, Step
from selkit.inference.hypotheses import Hypothesis
from selkit.inference.postprocess import Builder

FOLLOWED = (Kind.AFFINE, Kind.PIECEWISE_LINEAR, Kind.MAXIMUM)
"""Kinds of steps whose composition is piecewise linear along a line."""

BOUNDED = (*FOLLOWED, Kind.SMOOTH, Kind.PRODUCT)
"""Kinds of steps that can at least be bounded on a window."""

MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Identity")
"""Operators that commute with any elementwise function."""


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """Two programs of the tested input.

    Attributes
    ----------
    observed
        Outputs the model's output and the score map (names in ``output`` and ``score``).
    margins
        Outputs the margins (name in ``margin``); with a rule for the region, the score map before it.
    output, score, margin
        Names of values.
    """

    observed: Program
    margins: Program
    output: str
    score: str
    margin: str


def build_score_map(program: Program, hypothesis: Hypothesis, x: str) -> ScoreMap:
    """Append post-processing and threshold to a compiled model.

    Parameters
    ----------
    program
        The model, compiled with the one output that the hypothesis selects, and behind it what its rule for
        the region needs.
    hypothesis
        Says how the score map comes out of it.
    x
        Name of the tested input.

    Raises
    ------
    NotAvailableError
        If an operator can neither be followed nor bounded.
    """
    output = program.outputs[0]
    builder = Builder(program)
    score = output
    for step in hypothesis.steps:
        score = step.build(builder, score, x)
    observed = builder.program.prune([output, score])
    if hypothesis.region is not None:
        needs = hypothesis.region.needs
        observed = builder.program.prune([output, score, *needs])
        return ScoreMap(observed, builder.program.prune([score, *needs]), output, score, score)
    margins, logits, threshold = _undo(builder.program.prune([score]), score, hypothesis)
    builder = Builder(margins)
    if hypothesis.use_norm:
        margin = _normalized_margin(builder, logits, threshold)
        observed, score = _normalized_score(observed, score)
    else:
        margin = builder.add("Sub", logits, builder.constant(threshold))
    margins = require_bounded(builder.program.prune([margin]))
    return ScoreMap(observed.prune([output, score]), margins, output, score, margin)


def _normalized_margin(g: Builder, score: str, threshold: float) -> str:
    """``s - (1 - t) min - t max``: positive exactly where ``(s - min) / (max - min) > t``."""
    low, high = g.add("ReduceMin", score, keepdims=1), g.add("ReduceMax", score, keepdims=1)
    level = g.add(
        "Add",
        g.add("Mul", low, g.constant(1.0 - threshold)),
        g.add("Mul", high, g.constant(threshold)),
    )
    return g.add("Sub", score, level)


def _normalized_score(program: Program, score: str) -> tuple[Program, str]:
    g = Builder(program)
    low, high = g.add("ReduceMin", score, keepdims=1), g.add("ReduceMax", score, keepdims=1)
    name = g.add("Div", g.add("Sub", score, low), g.add("Sub", high, low))
    return g.program, name


def _undo(program: Program, score: str, hypothesis: Hypothesis) -> tuple[Program, str, float]:
    """Take increasing smooth functions off the end of a program, and move the threshold instead."""
    threshold = float(hypothesis.threshold or 0.0)
    if hypothesis.use_norm:
        return program, score, threshold  # scaling does not commute with them
    steps = {name: step for step in program.steps for name in step.outputs}
    current = score
    undone: list[Step] = []
    while (step := steps.get(current)) is not None:
        live = [name for name, alive in zip(step.inputs, step.live, strict=True) if alive]
        if isinstance(step.operator, Smooth) and step.operator.monotone and not undone:
            inverse = step.operator.inverse(torch.tensor(threshold, dtype=torch.float64))
            threshold = float(inverse)
            undone.append(step)
        elif not (type(step.operator).__name__ in MOVES and len(live) == 1):
            break
        current = live[0]
    if not undone:
        return program, score, threshold
    if not math.isfinite(threshold):
        raise InvalidInputError(
            f"threshold is {hypothesis.threshold}, which {type(undone[0].operator).__name__} never reaches"
        )
    bypassed = {undone[0].outputs[0]: undone[0].inputs[0]}
    kept = tuple(_rewire(step, bypassed) for step in program.steps if step is not undone[0])
    score = bypassed.get(score, score)
    return dataclasses.replace(program, steps=kept).prune([score]), score, threshold


def _rewire(step: Step, names: dict[str, str]) -> Step:
    return dataclasses.replace(step, inputs=tuple(names.get(name, name) for name in step.inputs))


def is_piecewise_linear(program: Program) -> bool:
    """Whether a program can be followed exactly."""
    return all(step.kind in FOLLOWED for step in program.steps)


def require_bounded(program: Program) -> Program:
    """Return a program that can be followed or at least bounded along a line.

    Raises
    ------
    NotAvailableError
        If it cannot; all steps that stand in the way are listed.
    """
    bad = [step for step in program.steps if step.kind not in BOUNDED]
    if bad:
        listed = ", ".join(
            f"{type(step.operator).__name__} ({step.kind.value}{', node ' + step.name if step.name else ''})"
            for step in bad
        )
        raise NotAvailableError(
            f"the score map jumps or has no bounds along a line: {listed}. Use the part of the model before "
            "these nodes: choose another output, or drop them before exporting"
        )
    return program


def fit_to_input(score: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give a score map the rank of the input, so that it broadcasts against it.

    Parameters
    ----------
    score
        In ONNX shape.
    shape
        Of the input, with batch and channel axes.

    Raises
    ------
    InvalidInputError
        If no axis of the map can be matched.
    """

    def squeezed(sides: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(side for side in sides if side != 1)

    if tuple(score.shape) == shape:
        return score
    if squeezed(tuple(score.shape)) == squeezed(shape):
        return score.reshape(shape)
    if len(shape) > 2 and squeezed(tuple(score.shape)) == squeezed(shape[2:]):
        return score.reshape(1, 1, *shape[2:])
    raise InvalidInputError(
        f"the score map has shape {tuple(score.shape)}, which matches neither the input's shape {shape} nor "
        f"its spatial part {shape[2:]}; choose another output with o_idx, or resize it in post_process"
    )
