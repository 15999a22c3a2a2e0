"""Keep of a program what one patch of its output depends on.

Going backwards, each operator says which patch of its inputs a patch of its output needs; going forwards, it
is applied to that patch alone, with padding only where the patch touches the border of the image. Where an
operator mixes all places (a dense layer, a global pooling), its whole input is needed from there on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selkit.graph.ops.base import Affine, Kind
from selkit.graph.program import Program, Step, finish

Span = tuple[int, int]
Patch = tuple[Span, ...]
"""First and last-but-one element along each spatial axis: those after batch and channels."""

SAME = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Neg", "Identity", "Sum")
"""Operators beside those with knots that work on each place alone."""


MIXES = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")
"""Operators with many multiplications for each element of their result."""


@dataclass(frozen=True)
class Window(Affine):
    """Cut a patch out of a value; ``spans`` count from the value's own first element."""

    spans: Patch

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Cut; the result shares no memory with the whole."""
        place = (slice(None),) * (x.ndim - len(self.spans)) + tuple(slice(*span) for span in self.spans)
        return (x[place].contiguous(),)


@dataclass(frozen=True)
class Repeat(Affine):
    """Repeat each element along the spatial axes."""

    factors: tuple[int, ...]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Repeat."""
        for axis, factor in enumerate(reversed(self.factors), start=1):
            if factor > 1:
                x = x.repeat_interleave(factor, -axis)
        return (x,)


@dataclass(frozen=True)
class Plan:
    """How one step makes a patch of its output.

    Attributes
    ----------
    wants
        Patch of each input; ``None`` for one that is used as it is.
    operator
        What to apply to these patches.
    after
        What to cut out of the result, where it is more than the patch.
    """

    wants: tuple[Patch | None, ...]
    operator: Any
    after: Patch | None = None


def crop(program: Program, output: str, patch: Patch) -> Program:
    """Return a program for one patch of an output.

    Parameters
    ----------
    program
        Whose steps are followed along a line.
    output
        Name of a value of shape (N, C, *spatial).
    patch
        Of that value.
    """
    needs: dict[str, Patch] = {output: patch}
    plans: dict[int, Plan] = {}
    for place in reversed(range(len(program.steps))):
        step = program.steps[place]
        made = [name for name in step.outputs if name in needs]
        if not made:
            continue
        plan = _plan(step, program, needs[made[0]]) if len(step.outputs) == 1 else None
        if plan is None:
            needs.update((name, _whole(program, name)) for name in made)
            wants: Sequence[Patch | None] = [None] * len(step.inputs)
        else:
            plans[place], wants = plan, plan.wants
        for name, live, want in zip(step.inputs, step.live, wants, strict=True):
            if live:
                whole = _whole(program, name)
                needs[name] = _hull(needs.get(name), whole if want is None else want)
    return _Cropper(program, needs).build(plans, output)


def _whole(program: Program, name: str) -> Patch:
    return tuple((0, size) for size in program.shapes[name][2:])


def _hull(first: Patch | None, second: Patch) -> Patch:
    if first is None:
        return second
    return tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(first, second, strict=True))


def _plan(step: Step, program: Program, patch: Patch) -> Plan | None:
    """How a step makes a patch, or ``None`` if it needs all of its inputs."""
    kind = type(step.operator).__name__
    whole = program.shapes[step.outputs[0]]
    mixed = not step.live[0] and kind not in (*SAME, "Concat")
    if mixed or len(whole) != len(patch) + 2:
        return None
    rule = RULES.get(kind)
    if rule is not None:
        return rule(step, program, patch)
    if step.kind in (Kind.PIECEWISE_LINEAR, Kind.SMOOTH) or kind in SAME:
        return _same(step, program, patch)
    return None


def _same(step: Step, program: Program, patch: Patch) -> Plan | None:
    """The same patch of every input; axes along which an input is repeated stay whole."""
    wants: list[Patch | None] = []
    for name, live in zip(step.inputs, step.live, strict=True):
        if not live:
            wants.append(None)
            continue
        sizes = program.shapes[name][2:]
        if len(sizes) != len(patch):
            return None
        spans = zip(sizes, patch, strict=True)
        wants.append(tuple((0, 1) if size == 1 else span for size, span in spans))
    return Plan(tuple(wants), step.operator)


def _concat(step: Step, program: Program, patch: Patch) -> Plan | None:
    """The same patch of every part, if they lie one after the other along batch or channels."""
    operator: Any = step.operator
    return None if operator.axis % (len(patch) + 2) > 1 else _same(step, program, patch)


def _windows(step: Step, program: Program, patch: Patch) -> Plan | None:
    """Convolutions and poolings."""
    operator: Any = step.operator
    if operator.auto_pad != "NOTSET" or getattr(operator, "ceil_mode", 0) or any(step.live[1:]):
        return None
    dims = len(patch)
    kernel = operator.kernel_shape or tuple(program.constants[step.inputs[1]].shape[3:])
    strides, dilations = operator.strides or (1,) * dims, operator.dilations or (1,) * dims
    pads = operator.pads or (0,) * 2 * dims
    want, begin, end = [], [], []
    for axis, ((low, high), size) in enumerate(zip(patch, program.shapes[step.inputs[0]][2:], strict=True)):
        first = low * strides[axis] - pads[axis]
        last = (high - 1) * strides[axis] - pads[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        want.append((max(0, first), min(size, last)))
        begin.append(max(0, -first))
        end.append(max(0, last - size))
    if any(low >= high for low, high in want):
        return None
    changed = dataclasses.replace(operator, pads=(*begin, *end))
    return Plan((tuple(want), *(None,) * (len(step.inputs) - 1)), changed)


def _transposed(step: Step, program: Program, patch: Patch) -> Plan | None:
    """Transposed convolutions: the inputs whose stamps reach the patch."""
    operator: Any = step.operator
    if operator.auto_pad != "NOTSET" or operator.output_shape or any(step.live[1:]):
        return None
    dims = len(patch)
    kernel = tuple(program.constants[step.inputs[1]].shape[3:])
    strides, dilations = operator.strides or (1,) * dims, operator.dilations or (1,) * dims
    pads = operator.pads or (0,) * 2 * dims
    want, begin, end = [], [], []
    for axis, ((low, high), size) in enumerate(zip(patch, program.shapes[step.inputs[0]][2:], strict=True)):
        stride, reach = strides[axis], (kernel[axis] - 1) * dilations[axis]
        first = max(0, math.ceil((low + pads[axis] - reach) / stride))
        last = min(size, (high - 1 + pads[axis]) // stride + 1)
        before = low + pads[axis] - first * stride
        after = (last - first - 1) * stride + reach + 1 - before - (high - low)
        if first >= last or before < 0 or after < 0:
            return None
        want.append((first, last))
        begin.append(before)
        end.append(after)
    changed = dataclasses.replace(operator, pads=(*begin, *end), output_padding=())
    return Plan((tuple(want), *(None,) * (len(step.inputs) - 1)), changed)


def _resized(step: Step, program: Program, patch: Patch) -> Plan | None:
    """Only where each element is repeated a whole number of times."""
    source, target = program.shapes[step.inputs[0]], program.shapes[step.outputs[0]]
    operator: Any = step.operator
    if source[:2] != target[:2] or any(step.live[1:]):
        return None
    parameters = [program.constants[name] if name else None for name in step.inputs[1:]]
    if not operator.repeats(source, *parameters):
        return None
    factors = tuple(after // before for before, after in zip(source[2:], target[2:], strict=True))
    want = tuple((low // f, (high - 1) // f + 1) for (low, high), f in zip(patch, factors, strict=True))
    after = tuple(
        (low - first * f, high - first * f)
        for (low, high), (first, _), f in zip(patch, want, factors, strict=True)
    )
    return Plan((want, *(None,) * (len(step.inputs) - 1)), Repeat(factors), after)


RULES: Mapping[str, Callable[[Step, Program, Patch], Plan | None]] = {
    "Conv": _windows,
    "MaxPool": _windows,
    "AveragePool": _windows,
    "ConvTranspose": _transposed,
    "Resize": _resized,
    "Upsample": _resized,
    "Concat": _concat,
}


class _Cropper:
    """Writes the steps of a cropped program."""

    def __init__(self, program: Program, needs: Mapping[str, Patch]) -> None:
        self.program, self.needs = program, needs
        self.steps: list[Step] = []
        self.constants = dict(program.constants)
        self.shapes = dict(program.shapes)
        for name, patch in needs.items():
            self.shapes[name] = self._sized(name, patch)
        self.names = {name: name for name in needs}
        for name in program.inputs:  # the whole input is given
            if name in needs and needs[name] != _whole(program, name):
                self.shapes[name] = program.shapes[name]
                self.names[name] = self._cut(name, needs[name], f"{name} patch")

    def build(self, plans: Mapping[int, Plan], output: str) -> Program:
        for place, step in enumerate(self.program.steps):
            if not any(name in self.needs for name in step.outputs):
                continue
            plan = plans.get(place)
            if plan is None:
                inputs = tuple(self.names.get(name, name) for name in step.inputs)
                self.steps.append(dataclasses.replace(step, inputs=inputs, release=()))
            else:
                self._apply(step, plan)
        return finish(
            self.steps,
            self.program.inputs,
            [output],
            constants=self.constants,
            shapes=self.shapes,
            dtype=self.program.dtype,
            device=self.program.device,
        )

    def _apply(self, step: Step, plan: Plan) -> None:
        (output,) = step.outputs
        patch = self.needs[output]
        inputs = []
        for name, live, want in zip(step.inputs, step.live, plan.wants, strict=True):
            if live and want is not None and want != self.needs[name]:
                offset = self.needs[name]
                spans = tuple((a - o[0], b - o[0]) for (a, b), o in zip(want, offset, strict=True))
                inputs.append(self._cut(self.names[name], spans, f"{name} for {output}"))
            elif live:
                inputs.append(self.names[name])
            else:
                inputs.append(self._constant(name, step, patch))
        operator, alive = plan.operator, step.live
        if isinstance(operator, Repeat):
            inputs, alive = inputs[:1], alive[:1]
        made = output if plan.after is None else f"{output} repeated"
        self.steps.append(
            dataclasses.replace(
                step, operator=operator, inputs=tuple(inputs), outputs=(made,), live=alive, release=()
            )
        )
        if plan.after is not None:
            self.shapes[made] = self.shapes[output]
            self._step(Window(plan.after), made, output)

    def _constant(self, name: str, step: Step, patch: Patch) -> str:
        """A constant, cut where it has one value for each place."""
        if not name or type(step.operator).__name__ not in (*SAME, "Concat", "PRelu"):
            return name
        value = self.program.constants[name]
        own = tuple(value.shape[value.ndim - len(patch) :]) if value.ndim > len(patch) else ()
        whole = self.program.shapes[step.outputs[0]][2:]
        spans = tuple(
            span if mine == size else (0, mine) for span, mine, size in zip(patch, own, whole, strict=False)
        )
        if spans == tuple((0, size) for size in own):
            return name
        part = f"{name} for {step.outputs[0]}"
        self.constants[part] = Window(spans).forward(value)[0]
        self.shapes[part] = tuple(self.constants[part].shape[1:])
        return part

    def _cut(self, name: str, spans: Patch, target: str) -> str:
        self.shapes[target] = (*self.shapes[name][:2], *(high - low for low, high in spans))
        self._step(Window(spans), name, target)
        return target

    def _step(self, operator: Affine, source: str, target: str) -> None:
        self.steps.append(Step(operator, (source,), (target,), (True,), Kind.AFFINE))

    def _sized(self, name: str, patch: Patch) -> tuple[int, ...]:
        return (*self.program.shapes[name][:2], *(high - low for low, high in patch))


def work(steps: Sequence[Step], program: Program) -> float:
    """Multiplications of some steps, roughly: those with the largest weight, or one, per element made."""
    total = 0.0
    for step in steps:
        each = 1.0
        if type(step.operator).__name__ in MIXES:
            weights = [program.constants[name] for name in step.inputs if name in program.constants]
            # A weight has a stack axis; one of its next two axes is that of the result.
            each = max([1.0, *(w.numel() / max(w.shape[1:3]) for w in weights if w.ndim > 2)])
        total += each * math.prod(program.shapes[step.outputs[0]])
    return total
