"""A model specialized to one shape of its inputs: a list of steps that can be run over stacks of points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.graph.ops.base import Kind, Operator, floating

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One operator applied.

    Attributes
    ----------
    operator
        What to apply.
    inputs, outputs
        Names of values; an input that is left out is "".
    live
        For each input, whether it depends on the program's inputs.
    kind
        What the operator is for these live inputs.
    release
        Names of live values that no later step needs.
    name
        Of the ONNX node.
    """

    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    live: tuple[bool, ...]
    kind: Kind
    release: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, eq=False)
class Program:
    """Steps, the constants that they read, and the shapes of all values.

    Attributes
    ----------
    steps
        In the order in which they are run.
    inputs
        ONNX shape of each input.
    outputs
        Names of the values that :meth:`run` returns.
    constants
        Values that do not depend on the inputs, with a stack axis of 1. Real numbers have the program's
        dtype and device; shapes, axes, indices, scales stay on the CPU.
    shapes
        ONNX shape of each value, without a stack axis.
    dtype, device
        Of all real numbers.

    Examples
    --------
    >>> import onnx, torch
    >>> from selkit.graph import Graph, ops
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[N, 2] x) => (float[N, 2] y) { h = Relu(x)  y = Neg(h) }''')
    >>> program = Graph.load(model).compile({"x": (1, 2)})
    >>> [(type(step.operator).__name__, step.kind.value) for step in program.steps]
    [('Relu', 'piecewise linear'), ('Neg', 'affine')]
    >>> program, name = program.extend(ops.Sub(), ["y", "x"])
    >>> program.prune([name]).run({"x": torch.tensor([[[1.0, -3.0]]], dtype=torch.float64)})[name].tolist()
    [[[-2.0, 3.0]]]
    """

    steps: tuple[Step, ...]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]
    shapes: Mapping[str, Shape]
    dtype: torch.dtype
    device: torch.device

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate the program at all points of a stack.

        Parameters
        ----------
        inputs
            For each input a tensor of shape ``(S, *onnx_shape)`` of the program's dtype and device.

        Returns
        -------
        dict
            Each output, of shape ``(S, *onnx_shape)``; one that does not depend on the inputs is expanded.

        Raises
        ------
        InvalidInputError
            If a name or a shape is wrong.
        InvalidTypeError
            If a dtype or device is not the program's.
        """
        count = self._check(inputs)
        values: dict[str, Tensor] = {**self.constants, **inputs}
        for step in self.steps:
            results = step.operator.forward(*[values[name] if name else None for name in step.inputs])
            for name, result in zip(step.outputs, results, strict=False):
                # a number made of a condition has the model's dtype
                foreign = result.is_floating_point() and result.dtype != self.dtype
                values[name] = result.to(self.dtype) if foreign else result
            for name in step.release:
                del values[name]
        return {name: values[name].expand(count, *self.shapes[name]) for name in self.outputs}

    def extend(
        self, operator: Operator, inputs: Sequence[str | Tensor], prefix: str = "post"
    ) -> tuple[Program, str]:
        """Append one step.

        Parameters
        ----------
        operator
            To apply.
        inputs
            Names of values of the program ("" for one that is left out), or constants in ONNX shape.
        prefix
            Of the new value's name.

        Returns
        -------
        program
            A new one, with the new value as one more output.
        name
            Of the new value.

        Raises
        ------
        InvalidInputError
            If a name is unknown or the operator does not fit its inputs.
        """
        from selkit.graph.specialize import extend_program

        return extend_program(self, operator, inputs, prefix)

    def prune(self, outputs: Sequence[str]) -> Program:
        """Keep what these outputs need.

        Raises
        ------
        InvalidInputError
            If a name is unknown.
        """
        unknown = [name for name in outputs if name not in self.shapes]
        if unknown:
            raise InvalidInputError(f"the program has no value(s) {', '.join(unknown)}")
        return finish(
            self.steps,
            self.inputs,
            outputs,
            constants=self.constants,
            shapes=self.shapes,
            dtype=self.dtype,
            device=self.device,
        )

    def to(self, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> Program:
        """Return the program for another dtype or device."""
        dtype = self.dtype if dtype is None else dtype
        device = self.device if device is None else torch.device(device)
        host = _host(self.steps)
        constants = {
            name: convert(value, dtype, torch.device("cpu") if name in host else device)
            for name, value in self.constants.items()
        }
        return dataclasses.replace(self, constants=constants, dtype=dtype, device=device)

    @cached_property
    def single(self) -> Program:
        """The program in single precision."""
        return self.to(torch.float32)

    def _check(self, inputs: Mapping[str, Tensor]) -> int:
        if inputs.keys() != self.inputs.keys():
            raise InvalidInputError(f"inputs are {sorted(inputs)}; expected {sorted(self.inputs)}")
        counts = set()
        for name, shape in self.inputs.items():
            value = inputs[name]
            if tuple(value.shape[1:]) != shape or value.ndim != len(shape) + 1:
                raise InvalidInputError(
                    f"input {name!r} has shape {tuple(value.shape)}; expected {('S', *shape)}"
                )
            if floating(value) and (value.dtype != self.dtype or value.device.type != self.device.type):
                raise InvalidTypeError(
                    f"input {name!r} is {value.dtype} on {value.device}; "
                    f"this program works in {self.dtype} on {self.device} (see Program.to)"
                )
            counts.add(value.shape[0])
        if len(counts) > 1:
            raise InvalidInputError(f"inputs have stacks of different lengths: {sorted(counts)}")
        return counts.pop() if counts else 1


def convert(value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bring a constant into a program: real numbers get its dtype, integers stay on the CPU."""
    if floating(value):
        return value.to(device, dtype)
    return value.to(device) if value.dtype == torch.bool else value


def _host(steps: Iterable[Step]) -> set[str]:
    """Constants that are only ever read as Python numbers."""
    host: set[str] = set()
    elsewhere: set[str] = set()
    for step in steps:
        for place, name in enumerate(step.inputs):
            (host if place in step.operator.HOST else elsewhere).add(name)
    return host - elsewhere


def finish(
    steps: Iterable[Step],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    *,
    constants: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    dtype: torch.dtype,
    device: torch.device,
) -> Program:
    """Drop what no output needs and find out when each value can be released."""
    needed = set(outputs)
    kept: list[Step] = []
    for step in reversed(tuple(steps)):
        if needed.isdisjoint(step.outputs):
            continue
        # walking backwards, the first reader of a value is the last one to need it
        released = {name for name in (*step.inputs, *step.outputs) if name and name not in needed}
        released -= constants.keys()
        kept.append(dataclasses.replace(step, release=tuple(sorted(released))))
        needed.update(filter(None, step.inputs))
    names = {*needed, *(name for step in kept for name in step.outputs)}
    host = _host(kept)
    return Program(
        steps=tuple(reversed(kept)),
        inputs=dict(inputs),
        outputs=tuple(dict.fromkeys(outputs)),
        constants={
            name: value.cpu() if name in host else value
            for name, value in constants.items()
            if name in needed
        },
        shapes={name: shape for name, shape in shapes.items() if name in names or name in inputs},
        dtype=dtype,
        device=device,
    )
