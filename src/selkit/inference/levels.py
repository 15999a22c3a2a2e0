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


def undo(
    program: Program, value: str, threshold: float, dtype: torch.dtype | None, keep: tuple[str, ...] = ()
) -> Level:
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
    keep
        Other values that the program shall still output.

    Raises
    ------
    InvalidInputError
        If a smooth function never reaches the threshold.
    """
    steps = {name: step for step in program.steps for name in step.outputs if name}
    rounding = torch.finfo(dtype if dtype is not None and dtype.is_floating_point else torch.float64).eps
    level, above = representable(threshold, dtype), True
    # One unit in the last place: the next number but one of the dtype is another one.
    slack = math.ldexp(rounding, math.frexp(level)[1] - 1) if level else 0.0
    current, pooled = value, False
    path: list[Step] = []  # what stays, above the last that was undone
    passed: list[Step] = []  # and what may have to stay, if nothing more is undone
    source = value
    while (step := steps.get(current)) is not None:
        live = [name for name, alive in zip(step.inputs, step.live, strict=True) if alive]
        if len(live) != 1:
            break
        back = _undo_step(step, program, _Near(level, above, slack, rounding))
        if back is not None and not (pooled and back.above != above):
            _check(back.level, threshold, step)
            level, above, slack = back.level, back.above, back.slack
            path, passed, source = path + passed, [], live[0]
        elif _commutes(step):
            pooled = pooled or type(step.operator).__name__ in POOLS
            passed.append(step)
        else:
            break
        current = live[0]
    found = Level(*_again(program, source, path, keep), level, above)
    # Where the map is flat, single precision may have rounded its level to the threshold. Values of half
    # precision are computed in double, so that its coarser rounding is not theirs.
    slack *= min(1.0, torch.finfo(torch.float32).eps / rounding)
    if not _flat_at(found, slack):
        return found
    return dataclasses.replace(found, level=level + slack if above else level - slack)


@dataclass(frozen=True)
class _Near:
    """A level that is known up to rounding; what lies within ``slack`` of it counts as equal to it."""

    level: float
    above: bool
    slack: float
    rounding: float

    @property
    def beyond(self) -> float:
        """The last level that counts as equal, on the region's side."""
        return self.level + self.slack if self.above else self.level - self.slack

    @property
    def before(self) -> float:
        """The last one on the other side."""
        return self.level - self.slack if self.above else self.level + self.slack


def _undo_step(step: Step, program: Program, near: _Near) -> _Near | None:
    """The operator's answer; where it is flat within rounding of the level, it is flat at the level."""
    if program.shapes[step.outputs[0]] != program.shapes[_live(step)]:
        return None
    inputs = _constants(step, program)
    back, beyond, before = (
        step.operator.undo(level, near.above, *inputs) for level in (near.level, near.beyond, near.before)
    )
    if beyond is None:
        return None
    if back is None or before is None:
        level, above = back or beyond
        return _Near(level, above, near.rounding * abs(level), near.rounding)
    level, above = back
    moved = abs(beyond[0] - level) if math.isfinite(beyond[0]) and math.isfinite(level) else 0.0
    grown = near.rounding * abs(level) if math.isfinite(level) else 0.0
    return _Near(level, above, moved + grown, near.rounding)


def _flat_at(found: Level, slack: float) -> bool:
    """Whether the value comes this close to its level on fixed noise: by chance it does so next to never."""
    if slack <= 0 or not math.isfinite(found.level) or not found.program.steps:
        return False
    random = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.1, 1.0, 1.0, 10.0, 100.0], dtype=torch.float64)
    inputs = {}
    for name, shape in found.program.inputs.items():
        noise = torch.randn((len(sizes), *shape), generator=random, dtype=torch.float64)
        noise *= sizes.reshape(-1, *(1,) * len(shape))
        inputs[name] = noise.to(found.program.device, found.program.dtype)
    value = found.program.run(inputs)[found.value]
    return bool(((value - found.level).abs() <= slack).any())


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


def _again(program: Program, source: str, path: list[Step], keep: tuple[str, ...]) -> tuple[Program, str]:
    """A program that also takes steps, the last of ``path`` first, from another value than before."""
    for step in reversed(path):
        inputs = [source if alive else name for name, alive in zip(step.inputs, step.live, strict=True)]
        program, source = program.extend(step.operator, inputs)
    return program.prune([source, *keep]), source
