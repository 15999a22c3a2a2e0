"""From a model to the margins whose signs are the region: ``score map > threshold``.

A margin is positive where a pixel belongs to the region. It is chosen piecewise linear wherever that is
possible: a threshold on a sigmoid is a threshold on its argument, and a threshold on a map scaled by its
minimum and maximum is one on a combination of the three. What stays smooth is bounded, not followed.

A score that equals the threshold is not above it. Where a map is flat it may do so all along the line, so
"equal" must not depend on rounding: within :data:`TIE` of the map's largest value, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, NotAvailableError
from selkit.graph.ops.base import Kind
from selkit.graph.program import Program
from selkit.inference.hypotheses import Hypothesis
from selkit.inference.levels import TIE, Level, undo
from selkit.inference.postprocess import Builder

FOLLOWED = (Kind.AFFINE, Kind.PIECEWISE_LINEAR, Kind.MAXIMUM)
"""Kinds of steps whose composition is piecewise linear along a line."""

BOUNDED = (*FOLLOWED, Kind.SMOOTH, Kind.PRODUCT)
"""Kinds of steps that can at least be bounded on a window."""


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
    raw
        Name of the score map before it is scaled.
    level
        What the margin's value is compared with.
    """

    observed: Program
    margins: Program
    output: str
    score: str
    margin: str
    raw: str
    level: float = 0.0

    def tie(self, raw: Tensor, margin: Tensor) -> float:
        """Up to which a margin is a tie: the score equals the threshold.

        Parameters
        ----------
        raw, margin
            The values of these names on an image, and on others of the same size.
        """
        largest = [float(value.nan_to_num(0.0, 0.0, 0.0).abs().max()) for value in (raw, margin)]
        return TIE * max(*largest, abs(self.level))


def build_score_map(
    program: Program, hypothesis: Hypothesis, x: str, dtype: torch.dtype | None = None
) -> ScoreMap:
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
    dtype
        Of the output outside selkit: thresholds are compared as in it.

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
        return ScoreMap(observed, builder.program.prune([score, *needs]), output, score, score, score)
    threshold, raw = float(hypothesis.threshold or 0.0), score
    if hypothesis.use_norm:  # scaling does not commute with functions at the end of the map
        found = Level(builder.program.prune([score]), score, 0.0)
        builder = Builder(found.program)
        margin = _normalized_margin(builder, score, threshold)
        observed, score = _normalized_score(observed, score)
    else:
        found = undo(builder.program.prune([score]), score, threshold, dtype)
        builder = Builder(found.program)
        level = builder.constant(found.level)
        margin = builder.add("Sub", *((found.value, level) if found.above else (level, found.value)))
    margins = require_bounded(builder.program.prune([margin]))
    return ScoreMap(observed.prune([output, score, raw]), margins, output, score, margin, raw, found.level)


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
