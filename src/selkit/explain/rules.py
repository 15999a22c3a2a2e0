"""From a network to the nodes of its explanation: forward at both points, and multipliers back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selkit.errors import UnsupportedModelError, UnsupportedNode
from selkit.explain.bands import Bands, narrow, plan, readers, total
from selkit.graph.ops import BatchNormalization, Concat, Conv, MaxPool, Relu
from selkit.graph.ops.base import Kind, Operator, UnsupportedAttribute
from selkit.graph.program import Program, Step
from selkit.graph.pulling import Pull
from selkit.graph.symbols import Symbol, Uses, where
from selkit.graph.tape import Tape
from selkit.utils.progress import track

SOURCES = "selkit.x", "selkit.reference", "selkit.target"


@dataclass(frozen=True)
class Recipe:
    """What the graph of an explanation is put together from.

    Attributes
    ----------
    tape
        Every node.
    x, reference, target
        A sample, a chunk of references, the index of an output.
    output
        Of shape ``(1, outputs)``, at the sample and at the references.
    raw
        The model's own output at the sample.
    multipliers
        Of the input, for one target.
    """

    tape: Tape
    x: Symbol
    reference: Symbol
    target: Symbol
    output: Symbol
    output_reference: Symbol
    raw: Symbol
    multipliers: Symbol


def has_rule(operator: Operator) -> bool:
    """Whether an operator has a rule of its own."""
    return type(operator).pull is not Operator.pull


def in_parts(operator: Operator) -> bool:
    """Whether a composite operator is explained by what it is made of."""
    return operator.KIND is not Kind.COMPOSITE or not has_rule(operator)


def write(program: Program, rows: int, opset: int, *, ahead: bool) -> Recipe:
    """Write the nodes that explain the first output of a program with one input.

    A second output is the model's own, where the first is made of it.

    Raises
    ------
    UnsupportedModelError
        If operators have no rule; all of them are listed.
    """
    ((name, shape),) = program.inputs.items()
    output, raw = program.outputs[0], program.outputs[-1]
    tape = Tape(program.dtype, rows, ahead=ahead)
    steps = chained(program.steps)
    values = [
        {name: tape.source(source, shape, uses)}
        for source, uses in zip(SOURCES[:2], (Uses.SAMPLE, Uses.REFERENCE), strict=True)
    ]
    stored = {key: tape.stored(value[0], "weight") for key, value in program.constants.items()}
    writer = _Writer(tape, program, steps, opset=opset, values=values, stored=stored)
    for step in track(steps, "writing the forward pass", len(steps)):
        writer.forward(step)
    count = program.shapes[output][-1]
    target = tape.source(SOURCES[2], (), Uses.TARGET, torch.int64)
    places = tape.lift(torch.arange(count).reshape(1, count))
    hit = tape.op("Equal", places, target, shape=(1, count), dtype=torch.bool)
    seed = where(hit, 1.0, 0.0)
    if not writer.problems:
        writer.grads[output] = [seed]
        for step in track(steps[::-1], "writing the way back", len(steps)):
            writer.back(step)
    if writer.problems:
        raise UnsupportedModelError(writer.problems, "explain this model")
    grad = writer.total(name)
    if grad is None:
        grad = tape.lift(torch.zeros((1,) * len(shape), dtype=tape.dtype))
    x, r = values
    return Recipe(tape, x[name], r[name], target, x[output], r[output], x[raw], grad)


class _Writer:
    def __init__(
        self,
        tape: Tape,
        program: Program,
        steps: Sequence[Step],
        *,
        opset: int,
        values: list[dict[str, Symbol]],
        stored: dict[str, Symbol],
    ) -> None:
        self.tape = tape
        self.program = program
        self.opset = opset
        self.steps = steps
        self.values = values
        self.stored = stored
        self.grads: dict[str, list[Symbol | Bands]] = {}
        self.problems: list[UnsupportedNode] = []
        self._extra: dict[str, tuple[Symbol, ...]] = {}
        self._broken: set[str] = set()
        self._absorbed: dict[str, str] = _absorbed(steps, program.outputs)
        self._passed = _passed(steps, program.outputs)
        self._widths = plan(program, steps, tape.rows)

    def _at(self, point: int, names: Sequence[str]) -> list[Symbol | None]:
        values = self.values[point]
        return [(values[n] if n in values else self.stored[n]) if n else None for n in names]

    def _problem(self, step: Step, reason: object) -> None:
        shapes = ", ".join(str(self.program.shapes[n]) for n in step.inputs if n)
        problem = UnsupportedNode(
            step.name,
            type(step.operator).__name__,
            "",
            self.opset,
            f"{reason} (its inputs have the shapes {shapes})",
        )
        if problem not in self.problems:  # of several bands, only once
            self.problems.append(problem)

    def forward(self, step: Step) -> None:
        """Write a step at the sample and at the references."""
        if step.kind is Kind.STEP and not has_rule(step.operator):
            advice = f"; {step.operator.ADVICE}" if step.operator.ADVICE else ""
            self._problem(step, f"it jumps, so there is no attribution rule for it{advice}")
        if not self._broken.isdisjoint(step.inputs):
            self._broken.update(step.outputs)
            return
        shapes = [self.program.shapes[n] for n in step.outputs if n]
        try:
            for point in (0, 1):
                results = step.operator.emit(self.tape, self._at(point, step.inputs), shapes)
                named = [n for n in step.outputs if n]
                self.values[point].update(zip(named, results, strict=False))
                self._extra[step.outputs[0]] = self._extra.get(step.outputs[0], ()) + tuple(results[1:])
        except UnsupportedAttribute as error:
            self._problem(step, error)
            self._broken.update(step.outputs)

    def _scale(self, name: str) -> Tensor:
        """The factors of the BatchNormalization that makes a value."""
        step = next(step for step in self.steps if step.outputs[0] == name)
        scale, var = (self.program.constants[step.inputs[i]][0] for i in (1, 4))
        if not isinstance(step.operator, BatchNormalization):
            raise TypeError(f"{name} is not made by a BatchNormalization")
        return step.operator.factor(scale, var).to(self.tape.dtype)

    def total(self, name: str) -> Symbol | None:
        """Sum of the multipliers of a value from all its readers."""
        found = total(self.grads.pop(name, []))
        return found.whole() if isinstance(found, Bands) else found

    def back(self, step: Step) -> None:
        """Write the multipliers of a step's inputs."""
        grads = [total(self.grads.pop(name, [])) if name else None for name in step.outputs]
        if all(grad is None for grad in grads) or (grads[0] is not None and self._in_bands(step, grads[0])):
            return
        named = [grad for grad, name in zip(grads, step.outputs, strict=True) if name]
        kept = [grad.whole() if isinstance(grad, Bands) else grad for grad in named]
        for name, result in zip(self._sources(step), self._pulled(step, kept), strict=False):
            if result is not None:
                self.grads.setdefault(name, []).append(result)

    def _in_bands(self, step: Step, grad: Symbol | Bands) -> bool:
        """Whether the multipliers of a step's inputs come in bands; if so, they are written."""
        source = step.inputs[0]
        if isinstance(step.operator, Concat):
            if not isinstance(grad, Bands):
                return False
            start = 0
            for name, alive in zip(step.inputs, step.live, strict=True):
                stop = start + self.program.shapes[name][1]
                if alive:
                    part = grad.cut(start, stop)
                    self.grads.setdefault(name, []).append(part if name in self._widths else part.whole())
                start = stop
            return True
        if source not in self._widths:
            return False
        if isinstance(step.operator, Conv):
            if step.operator.group != 1 or step.live[:2] != (True, False):
                return False
            size, width = self.program.shapes[source][1], self._widths[source]
            whole = grad.whole() if isinstance(grad, Bands) else grad
            pairs = [((a, min(a + width, size)), whole) for a in range(0, size, width)]
        elif isinstance(grad, Bands):
            pairs = list(zip(grad.ends, grad.parts, strict=True))
        else:
            return False
        parts = [self._pulled(step, [part], band)[0] for band, part in pairs]
        self.grads.setdefault(source, []).append(Bands(self.tape, tuple(p for p in parts if p is not None)))
        return True

    def _sources(self, step: Step) -> tuple[str, ...]:
        """What a step's multipliers go to."""
        if isinstance(step.operator, MaxPool) and step.inputs[0] in self._absorbed:
            return (self._absorbed[step.inputs[0]],)
        return step.inputs

    def _pulled(
        self, step: Step, grads: Sequence[Symbol | None], band: tuple[int, int] | None = None
    ) -> tuple[Symbol | None, ...]:
        """The multipliers of a step's inputs, or of a band of its first one's channels."""
        inputs = self._sources(step)
        named = [n for n in step.outputs if n]
        x, r = self._at(0, inputs), self._at(1, inputs)
        y, yr = ([values[n] for n in named] for values in self.values)
        scale = self._scale(self._passed[inputs[0]]) if inputs[0] in self._passed else None
        if band is not None:
            scale = None if scale is None else scale[slice(*band)]
            x, r = ([narrow(self.tape, v, i, band, step) for i, v in enumerate(at)] for at in (x, r))
            if not isinstance(step.operator, Conv):
                y, yr = ([self.tape.slice(v, 1, *band) for v in at] for at in (y, yr))
        pull = Pull(self.tape, x=x, r=r, y=y, yr=yr, grads=grads, live=step.live, kind=step.kind)
        pull.places, pull.scale = self._extra.get(step.outputs[0], ()), scale
        if step.outputs[0] in self._passed.values():  # a convolution behind it has done this
            return (pull.grad,)
        try:
            results = step.operator.pull(pull)
        except UnsupportedAttribute as error:
            self._problem(step, error)
            zero = self.tape.lift(0.0)
            results = tuple(None if v is None else self.tape.expand(zero, v.shape) for v in x)
        return tuple(v if alive else None for v, alive in zip(results, step.live, strict=False))


def _absorbed(steps: Sequence[Step], outputs: Sequence[str]) -> dict[str, str]:
    """Outputs of Relu that only a MaxPool reads, with what the Relu reads: both are one rule."""
    readers_of = readers(steps, outputs)
    return {
        step.outputs[0]: step.inputs[0]
        for step in steps
        if isinstance(step.operator, Relu)
        and [type(reader.operator) for reader in readers_of.get(step.outputs[0], [])] == [MaxPool]
    }


def _passed(steps: Sequence[Step], outputs: Sequence[str]) -> dict[str, str]:
    """Inputs of convolutions behind BatchNormalization and Relu, with what the normalization makes.

    A factor for each channel may be applied before or after a Relu's multiplier, and costs nothing in the
    convolution's weights.
    """
    readers_of = readers(steps, outputs)
    found = {}
    for step in steps:
        if isinstance(step.operator, BatchNormalization):
            made = step.outputs[0]
            for kind in (Relu, Conv):
                after = readers_of.get(made, [])
                if len(after) != 1 or not isinstance(after[0].operator, kind):
                    break
                if kind is Conv and after[0].live[:2] == (True, False):
                    found[made] = step.outputs[0]
                made = after[0].outputs[0]
    return found


def chained(steps: Sequence[Step]) -> list[Step]:
    """Let a Concat that begins with all inputs of an earlier one read that one's result instead.

    Networks that keep appending features would otherwise pass multipliers back in as many pieces as they
    have layers, from each of their layers.
    """
    made: dict[tuple[int, tuple[str, ...]], str] = {}
    result = []
    for step in steps:
        if isinstance(step.operator, Concat) and all(step.live):
            axis, inputs = step.operator.axis, step.inputs
            for length in range(len(inputs), 1, -1):
                earlier = made.get((axis, inputs[:length]))
                if earlier is not None:
                    new = (earlier, *inputs[length:])
                    step = replace(step, inputs=new, live=(True,) * len(new))  # noqa: PLW2901
                    break
            made[axis, inputs] = step.outputs[0]
        result.append(step)
    return result


def rowwise(program: Program) -> bool:
    """Whether the first axis is a batch axis throughout, so that references may be stacked on it.

    Tried out: every step is applied to two random samples, once as two points and once as a batch.
    """
    if any(
        program.shapes[name][:1] != (1,)
        for step in program.steps
        for name in (*step.inputs, *step.outputs)
        if name and name not in program.constants
    ):
        return False
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Tensor] = dict(program.constants)
    for name, shape in program.inputs.items():
        values[name] = torch.randn((2, *shape), generator=generator, dtype=program.dtype)
    for step in program.steps:
        inputs = [values[name] if name else None for name in step.inputs]
        expected = step.operator.forward(*inputs)
        if not _reshapes(step):
            batched = [
                value.transpose(0, 1) if alive and value is not None else value
                for value, alive in zip(inputs, step.live, strict=True)
            ]
            try:
                results = step.operator.forward(*batched)
            except (UnsupportedAttribute, RuntimeError, ValueError, IndexError):
                return False
            for one, other in zip(expected, results, strict=True):
                if one.transpose(0, 1).shape != other.shape:
                    return False
                if not torch.allclose(one.transpose(0, 1), other, rtol=1e-3, atol=1e-3, equal_nan=True):
                    return False
        values.update((n, v) for n, v in zip(step.outputs, expected, strict=False) if n)
        for name in step.release:
            del values[name]
    return True


def _reshapes(step: Step) -> bool:
    """Whether a step only regroups the other axes; the first is kept when it is written."""
    from selkit.graph.ops import Expand, Flatten, Reshape, Squeeze, Unsqueeze

    return isinstance(step.operator, Expand | Flatten | Reshape | Squeeze | Unsqueeze)
