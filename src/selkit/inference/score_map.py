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
from selkit.inference.layout import Axes, Layouts, channels_first, unknown
from selkit.inference.levels import TIE, Level, undo
from selkit.inference.postprocess import Builder, channels_to_front

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
    tested, mapped
        Axes of the tested input and of the score map, where they are known.
    dtype
        Of the score map outside selkit.
    scaled
        Whether the score map is scaled by its minimum and maximum.
    """

    observed: Program
    margins: Program
    output: str
    score: str
    margin: str
    raw: str
    level: float = 0.0
    tested: Axes | None = None
    mapped: Axes | None = None
    dtype: torch.dtype | None = None
    scaled: bool = False

    def tie(self, raw: Tensor, margin: Tensor) -> float:
        """Up to which a margin is a tie: the score equals the threshold.

        Parameters
        ----------
        raw, margin
            The values of these names on an image, and on others of the same size.
        """
        # A map that is scaled by itself has lost its size; else the margin has the size of what is compared.
        values = (raw, margin) if self.scaled else (margin,)
        largest = [float(value.nan_to_num(0.0, 0.0, 0.0).abs().max()) for value in values]
        return TIE * max(*largest, abs(self.level))

    def axes_of(self, chosen: Tensor) -> Axes | None:
        """The axes of selected pixels, if they are those of the score map; a rule may return any shape."""
        own, rule = self.mapped, self.margin == self.score
        if own is not None and rule and own.channel is not None:
            own = channels_first(len(own.space) + 2)
        return own if own is not None and chosen.ndim == own.rank else None

    def as_made(self, shown: Tensor) -> Tensor:
        """A map that a rule was given, with its axes as the model has them."""
        own = self.mapped
        if own is None or own.channel is None or own.usual or shown.ndim != len(own.space) + 2:
            return shown
        front = shown.reshape(*(1,) * (own.rank - len(own.space) - 1), *shown.shape[1:])
        return front.permute(sorted(range(own.rank), key=own.first.__getitem__))


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
    layouts = Layouts.of(hypothesis.layout, program, x)
    layouts.place_map(program, output)
    builder = Builder(program, layouts)
    score = output
    for step in hypothesis.steps:
        score = step.build(builder, score, x)
    tested, mapped = layouts.tested, builder.known_axes(score)
    observed = builder.program.prune([output, score])
    if hypothesis.region is not None:
        needs, region = hypothesis.region.needs, hypothesis.region
        if mapped is None and region.by_channel:
            raise unknown(f"region is {type(region).__name__}, which", "the score map", builder.shape(score))
        if region.by_channel and mapped is not None and mapped.channel is None:
            raise InvalidInputError(
                f"region is {type(region).__name__}, but the score map has shape {builder.shape(score)}, "
                "without an axis of channels"
            )
        if mapped is not None and mapped.channel is not None:  # a rule is given (1, channels, *space)
            score = channels_to_front(builder, score, mapped)
        observed = builder.program.prune([output, score, *needs])
        margins = builder.program.prune([score, *needs])
        return ScoreMap(observed, margins, output, score, score, score, 0.0, tested, mapped, dtype)
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
    observed = observed.prune([output, score, raw])
    return ScoreMap(
        *(observed, margins, output, score, margin, raw, found.level, tested, mapped),
        dtype=dtype,
        scaled=hypothesis.use_norm,
    )


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
        advice = dict.fromkeys(
            step.operator.ADVICE
            or "use the part of the model before these nodes: choose another output, or drop them before "
            "exporting"
            for step in bad
        )
        raise NotAvailableError(
            f"the score map jumps or has no bounds along a line: {listed}. To test it, {'; '.join(advice)}"
        )
    return program
