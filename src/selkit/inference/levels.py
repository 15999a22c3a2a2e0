"""Take increasing and decreasing functions off the end of a map, and move the threshold instead.

A map that ends in a Relu, a Clip or a HardSigmoid is flat over whole stretches of the line; a threshold at
that level is one on the function's input, which is not flat. The same holds for a sigmoid, whose input is
piecewise linear where its output is smooth.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selkit.errors import InvalidInputError
from selkit.graph.ops.base import Maximum, Smooth
from selkit.graph.program import Program, Step

TIE = 1e-10
"""Differences up to this share of a map's largest value are ties: far above the rounding of double precision,
far below that of single precision."""

MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Identity")
"""Operators that commute with any elementwise function."""

POOLS = ("MaxPool", "GlobalMaxPool")
"""Operators that commute with any increasing elementwise function."""


@dataclass(frozen=True, eq=False)
class Level:
    """The region ``value > level`` of a program's value, or ``value < level``.

    Attributes
    ----------
    program
        Outputs the value.
    value
        Its name.
    level
        What it is compared with.
    above
        Whether the region is above the level.
    """

    program: Program
    value: str
    level: float
    above: bool = True


def tie(scores: NDArray[Any]) -> float:
    """Return the difference up to which scores are equal.

    Parameters
    ----------
    scores
        All that are compared, float64.

    Examples
    --------
    >>> import numpy as np
    >>> tie(np.array([-2.0, 1.0]))
    2e-10
    """
    # Where all are zero, nothing tells their scale: rounding is far below 1e-10 there too.
    return TIE * (float(np.abs(scores).max(initial=0.0)) or 1.0)


def representable(threshold: float, dtype: torch.dtype | None) -> float:
    """Return the threshold as scores of a dtype see it: no score between the two is above the one only.

    A map that is flat at the single-precision number next to 0.1 is not above a threshold of 0.1 there, as
    numpy and torch compare it too.

    Examples
    --------
    >>> representable(0.5, torch.float32), representable(0.1, torch.float32) > 0.1
    (0.5, True)
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return threshold
    return max(threshold, float(torch.tensor(threshold, dtype=dtype)))


def undo(program: Program, value: str, threshold: float, dtype: torch.dtype | None) -> Level:
    """Return the region ``value > threshold``, as one of an earlier value where that is possible.

    Parameters
    ----------
    program
        Outputs the value.
    value
        Name of the score map.
    threshold
        What it is compared with.
    dtype
        Of the map outside selkit, in whose rounding a threshold at a flat level counts as equal to it.

    Raises
    ------
    InvalidInputError
        If a smooth function never reaches the threshold.
    """
    steps = {name: step for step in program.steps for name in step.outputs if name}
    rounding = torch.finfo(dtype if dtype is not None and dtype.is_floating_point else torch.float64).eps
    level, above, slack = representable(threshold, dtype), True, rounding * abs(threshold)
    current, pooled = value, False
    bypassed: dict[str, str] = {}
    while (step := steps.get(current)) is not None:
        live = [name for name, alive in zip(step.inputs, step.live, strict=True) if alive]
        if len(live) != 1:
            break
        back = _undo_step(step, program, level, above, slack)
        if back is not None and not (pooled and back[1] != above):
            _check(back[0], threshold, step)
            edge = step.operator.undo(
                level + slack if above else level - slack, above, *_constants(step, program)
            )
            moved = abs(edge[0] - back[0]) if edge is not None and math.isfinite(edge[0]) else 0.0
            slack = moved + rounding * abs(back[0])
            level, above = back
            bypassed[step.outputs[0]] = live[0]
        elif _commutes(step):
            pooled = pooled or type(step.operator).__name__ in POOLS
        else:
            break
        current = live[0]
    return Level(*_without(program, value, bypassed), level, above)


def _undo_step(
    step: Step, program: Program, level: float, above: bool, slack: float
) -> tuple[float, bool] | None:
    """The operator's answer; for a level within rounding of one that has an answer, the answer to that."""
    if program.shapes[step.outputs[0]] != program.shapes[_live(step)]:
        return None
    inputs = _constants(step, program)
    back = step.operator.undo(level, above, *inputs)
    if back is None and slack > 0:
        back = step.operator.undo(level + slack if above else level - slack, above, *inputs)
    return back


def _constants(step: Step, program: Program) -> list[Any]:
    return [
        None if alive or not name else program.constants[name]
        for name, alive in zip(step.inputs, step.live, strict=True)
    ]


def _live(step: Step) -> str:
    return next(name for name, alive in zip(step.inputs, step.live, strict=True) if alive)


def _commutes(step: Step) -> bool:
    name = type(step.operator).__name__
    return name in MOVES or (name in POOLS and isinstance(step.operator, Maximum))


def _check(level: float, threshold: float, step: Step) -> None:
    if not math.isfinite(level) and isinstance(step.operator, Smooth):
        raise InvalidInputError(
            f"threshold is {threshold}, which {type(step.operator).__name__} never reaches"
        )


def _without(program: Program, value: str, bypassed: dict[str, str]) -> tuple[Program, str]:
    """A program without the steps that make some values, whose readers get what these were made of."""
    if not bypassed:
        return program, value

    def source(name: str) -> str:
        while name in bypassed:
            name = bypassed[name]
        return name

    kept = tuple(
        dataclasses.replace(step, inputs=tuple(source(name) for name in step.inputs))
        for step in program.steps
        if step.outputs[0] not in bypassed
    )
    value = source(value)
    return dataclasses.replace(program, steps=kept).prune([value]), value
