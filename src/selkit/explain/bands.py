"""Multipliers in bands of channels, so that what several nodes do in turn to a band stays in cache.

A network that keeps appending features (a DenseNet) has wide values to which each layer adds its
multipliers: a convolution back, a rule, a sum. Done for all channels at once, each of these passes waits for
memory; done for a band of channels after the other, it does not. Nothing else changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selkit.graph.ops import BatchNormalization, Concat, Conv
from selkit.graph.ops.base import PiecewiseLinear, Smooth
from selkit.graph.program import Program, Step
from selkit.graph.symbols import Symbol
from selkit.graph.tape import Tape, Written

BYTES = 2**20
"""Size of a band at most: several fit into cache, and onnxruntime still divides the work between threads."""
ROWS = 5
"""Most references at once where there are bands; more of them per band cost less than more bands."""
LEAST = 32
"""Channels of a band at least, so that convolutions stay efficient."""


@dataclass(frozen=True, eq=False)
class Bands:
    """A value in parts along its axis of channels."""

    tape: Tape
    parts: tuple[Symbol, ...]

    @property
    def ends(self) -> list[tuple[int, int]]:
        """First channel of each part, and the one behind its last."""
        places, start = [], 0
        for part in self.parts:
            places.append((start, start + part.shape[1]))
            start += part.shape[1]
        return places

    def whole(self) -> Symbol:
        """All of it as one value."""
        return self.parts[0] if len(self.parts) == 1 else self.tape.concat(self.parts, 1)

    def cut(self, start: int, stop: int) -> Bands:
        """Channels from ``start`` to before ``stop``."""
        kept = []
        for part, (first, last) in zip(self.parts, self.ends, strict=True):
            low, high = max(start, first), min(stop, last)
            if low < high:
                kept.append(self.tape.slice(part, 1, low - first, high - first))
        return Bands(self.tape, tuple(kept))

    def plus(self, other: Symbol | Bands) -> Bands:
        """The sum with a value, in the same parts."""
        other = Bands(self.tape, (other,)) if isinstance(other, Symbol) else other
        channels = [sum(part.shape[1] for part in value.parts) for value in (self, other)]
        if channels[1] == 1 < channels[0]:  # the same everywhere
            return Bands(self.tape, tuple(part + other.parts[0] for part in self.parts))
        sums = [part + other.cut(*ends).whole() for part, ends in zip(self.parts, self.ends, strict=True)]
        return Bands(self.tape, tuple(sums))


def total(parts: Sequence[Symbol | Bands]) -> Symbol | Bands | None:
    """The sum of multipliers from several readers; in bands if any of them is."""
    ordered = sorted(parts, key=lambda part: not isinstance(part, Bands))  # bands have a sum of their own
    if not ordered:
        return None
    found, *others = ordered
    for other in others:
        found = found.plus(other) if isinstance(found, Bands) else found + other
    return found


def readers(steps: Sequence[Step], outputs: Sequence[str]) -> dict[str, list[Step]]:
    """Who reads a value; nobody for an output, which is read elsewhere too."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.inputs:
            if name not in outputs:
                found.setdefault(name, []).append(step)
    return found


def plan(program: Program, steps: Sequence[Step], rows: int) -> dict[str, int]:
    """Which values' multipliers come in bands, by name, and how many channels a band has.

    They are what a convolution reads, back over elementwise steps to a Concat that is part of a chain.
    """
    maker = {step.outputs[0]: step for step in steps}
    readers_of = readers(steps, program.outputs)
    chained = _chained(steps, maker, program)
    found: dict[str, int] = {}
    for step in steps:
        if not isinstance(step.operator, Conv) or step.operator.group != 1 or step.live[:2] != (True, False):
            continue
        path, name = [], step.inputs[0]
        while name in maker and name not in chained and len(readers_of.get(name, [])) == 1:
            if not _elementwise(program, maker[name]):
                break
            path.append(name)
            name = maker[name].inputs[0]
        if path and name in chained:
            width = _width(program, name, rows)
            if width < program.shapes[name][1]:
                found.update(dict.fromkeys((*path, name), width))
    return found


def _chained(steps: Sequence[Step], maker: Mapping[str, Step], program: Program) -> set[str]:
    """Results of Concats along the channels that read one another."""
    found: set[str] = set()
    for step in steps:
        if not _stacks(step, program):
            continue
        for name in step.inputs:
            if name in maker and _stacks(maker[name], program):
                found |= {name, step.outputs[0]}
    return found


def _stacks(step: Step, program: Program) -> bool:
    ndim = len(program.shapes[step.outputs[0]])
    return isinstance(step.operator, Concat) and ndim > 2 and step.operator.axis % ndim == 1


def _elementwise(program: Program, step: Step) -> bool:
    """Whether a step does the same to any of its channels, with constants that are known for each."""
    others = [name for name in step.inputs[1:] if name]
    if step.live[0] is False or any(step.live[1:]):
        return False
    if isinstance(step.operator, BatchNormalization):
        return True
    plain = isinstance(step.operator, PiecewiseLinear | Smooth)
    return plain and all(program.constants[name][0].numel() == 1 for name in others)


def _width(program: Program, name: str, rows: int) -> int:
    shape = program.shapes[name]
    one = rows * math.prod(shape[2:]) * program.dtype.itemsize
    return max(BYTES // max(one, 1) // LEAST, 1) * LEAST


def narrow(tape: Tape, value: Symbol | None, index: int, band: tuple[int, int], step: Step) -> Symbol | None:
    """What a step's input is for a band of its first one's channels."""
    if value is None:
        return None
    if value.value is None:
        return tape.slice(value, 1, *band)
    if isinstance(step.operator, Conv) and index == 1:
        return tape.stored(value.value[:, slice(*band)])
    if isinstance(step.operator, BatchNormalization):
        return tape.stored(value.value[slice(*band)])
    return value


def late(nodes: Sequence[Written]) -> list[Written]:
    """Sums right before they are read.

    Of the nodes that a node reads, onnxruntime goes to the last one first: a sum's earlier terms are then
    added up while they are in cache, instead of all terms being computed before.
    """
    waiting: dict[str, Written] = {}
    result: list[Written] = []

    def place(node: Written) -> None:
        open_ = [node]
        while open_:
            name = next((v.name for v in open_[-1].inputs if v is not None and v.name in waiting), None)
            if name is None:
                result.append(open_.pop())
            else:
                open_.append(waiting.pop(name))

    for node in nodes:
        if node.op == "Add":
            waiting[node.outputs[0].name] = node
        else:
            place(node)
    while waiting:
        place(waiting.pop(next(iter(waiting))))
    return result
