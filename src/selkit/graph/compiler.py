"""Build a program: emit steps for what depends on the inputs, and evaluate the rest."""

from __future__ import annotations

import dataclasses
import itertools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from selkit.errors import InvalidInputError, UnsupportedNode
from selkit.graph.flow import Flow
from selkit.graph.fusion import Fusion
from selkit.graph.nodes import Unsupported
from selkit.graph.ops.base import (
    Composite,
    Decomposition,
    Kind,
    Operator,
    Random,
    UnsupportedAttribute,
    check_size,
    floating,
)
from selkit.graph.ops.constants import Identity
from selkit.graph.program import Program, Shape, Step, convert, finish

if TYPE_CHECKING:
    from selkit.graph.model import Node

Choice: TypeAlias = "bool | Callable[[Operator], bool]"
"""Whether to decompose composite operators: all, none, or those that a function picks."""

EXPECTED = (UnsupportedAttribute, RuntimeError, IndexError, ValueError, ArithmeticError)
"""What torch raises where a model's shapes do not fit, and operators for what they do not cover."""
FAULTS = (TypeError, KeyError, AttributeError, NameError, AssertionError)
"""What a model that was read without complaint cannot be blamed for."""

MODEST = 2**24
"""Elements up to which the shape of a result is found by computing it, where no rule tells it."""


class Builder:
    """Emits steps for operators with a live input and evaluates all others at once.

    ``values`` are constants in the model's own number types, so that shape arithmetic rounds as it does in
    onnxruntime; :meth:`program_value` is what steps read. Live values are known by shape and dtype alone.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        *,
        decompose: Choice,
        opset: Mapping[str, int] = types.MappingProxyType({}),
        seed: int | None = None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.decompose = decompose
        self.opset = opset
        self.seed = seed
        self.keep = False
        self.values: dict[str, Tensor] = {}
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.alias: dict[str, str] = {}
        self.steps: list[Step] = []
        self.problems: list[UnsupportedNode] = []
        self._broken: dict[str, frozenset[int]] = {}
        self._converted: dict[str, Tensor] = {}
        self._count = itertools.count()

    def add_input(self, name: str, shape: Shape, dtype: torch.dtype) -> None:
        """Declare a live value."""
        check_size(shape)
        self.shapes[name] = tuple(shape)
        self.dtypes[name] = dtype

    def constant(self, value: Tensor) -> str:
        """Add a constant in ONNX shape and return its name."""
        name = f"constant.{next(self._count)}"
        while name in self.values or name in self.shapes:
            name = f"constant.{next(self._count)}"
        self.values[name] = value.detach().unsqueeze(0)
        return name

    def program_value(self, name: str) -> Tensor:
        """A constant in the program's dtype and on its device."""
        if name not in self._converted:
            self._converted[name] = convert(self.values[name], self.dtype, self.device)
        return self._converted[name]

    def known(self, name: str) -> Tensor | None:
        """A constant without its stack axis; ``None`` for a live value."""
        value = self.values.get(self.alias.get(name, name))
        return None if value is None else value[0]

    def shape_of(self, name: str) -> Shape:
        """ONNX shape of a value."""
        return self._shape_of(self.alias.get(name, name))

    def failed(self, name: str) -> bool:
        """Whether a value cannot be computed."""
        return bool(self._blame([name]))

    def refuse(self, problem: UnsupportedNode, outputs: Iterable[str]) -> None:
        """Note why values cannot be computed."""
        self.problems.append(problem)
        self._broken.update(dict.fromkeys(filter(None, outputs), frozenset({len(self.problems) - 1})))

    def standing(self, wanted: Iterable[str]) -> list[UnsupportedNode]:
        """The problems that stand in the way of these values."""
        return [self.problems[index] for index in sorted(self._blame(wanted))]

    def _blame(self, names: Iterable[str]) -> frozenset[int]:
        """Problems because of which at least one of these values cannot be computed."""
        if not self._broken:
            return frozenset()
        found = (self._broken.get(self.alias.get(name, name), frozenset()) for name in names)
        return frozenset().union(*found)

    def add_node(self, node: Node, path: tuple[int, ...]) -> None:
        """Emit or evaluate one node of a graph; note why if that is not possible."""
        operator = node.operator
        if isinstance(operator, Flow):
            self._add_flow(operator, node, path)
            return
        if isinstance(operator, Random):
            operator = operator.seeded(_node_seed(node, operator, self.seed, path))
        self.emit(operator, node.inputs, node.outputs, node.name, op_type=node.op_type, domain=node.domain)

    def _add_flow(self, flow: Flow, node: Node, path: tuple[int, ...]) -> None:
        """Add the nodes that an ``If`` or a loop runs."""
        blame = self._blame(flow.deciding(node.inputs))
        if blame:
            self._broken.update(dict.fromkeys(filter(None, node.outputs), blame))
            return
        try:
            results = flow.unroll(self, node, path)
        except (UnsupportedAttribute, LookupError, ValueError) as error:
            opset = self.opset.get(node.domain, 0)
            problem = UnsupportedNode(node.name, node.op_type, node.domain, opset, str(error))
            self.refuse(problem, node.outputs)
            return
        for output, result in zip(node.outputs, results, strict=False):
            if output:
                self.alias[output] = self.alias.get(result, result)

    def emit(
        self,
        operator: Operator,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str = "",
        *,
        op_type: str = "",
        domain: str = "",
    ) -> None:
        """Emit or evaluate one operator; what is not possible is added to ``problems``."""
        inputs = tuple(self.alias.get(value, value) for value in inputs)
        blame = self._blame(inputs)
        if blame:
            self._broken.update(dict.fromkeys(outputs, blame))
            return
        try:
            self._emit(operator, inputs, tuple(outputs), name)
        except (*EXPECTED, *FAULTS) as error:
            internal = isinstance(error, FAULTS)
            shapes = ", ".join(str(self._shape_of(value)) for value in inputs if value)
            own = isinstance(operator, Unsupported)
            said = f"{type(error).__name__}: {error}" if internal else str(error)
            reason = f"{said} (its inputs have the shapes {shapes})" if shapes and not own else said
            kind, opset = op_type or type(operator).__name__, self.opset.get(domain, 0)
            self.refuse(UnsupportedNode(name, kind, domain, opset, reason, internal), outputs)

    def _shape_of(self, name: str) -> Shape:
        return self.shapes[name] if name in self.shapes else tuple(self.values[name].shape[1:])

    def _emit(self, operator: Operator, inputs: tuple[str, ...], outputs: tuple[str, ...], name: str) -> None:
        live = tuple(value in self.shapes for value in inputs)
        if operator.LIVE is not None and any(live[operator.LIVE :]):
            late = next(i for i in range(operator.LIVE, len(live)) if live[i])
            raise UnsupportedAttribute(
                f"its input {late} ({inputs[late]}) must not depend on the model's input"
            )
        kind = operator.kind(live)
        if kind is Kind.CONSTANT:
            self._evaluate(operator, inputs, outputs)
            return
        if kind is Kind.COMPOSITE and isinstance(operator, Composite) and self._replaces(operator):
            self._replace(operator, inputs, outputs)
            return
        known = [self._placeholder(value) for value in inputs]
        if not self.keep and not any(outputs[1:]) and live[0] and operator.transparent(*known):
            self.alias[outputs[0]] = inputs[0]
            return
        for output, result in zip(outputs, self._probe(operator, known), strict=False):
            if output:
                dtype = self.dtype if result.is_floating_point() else result.dtype
                self.add_input(output, tuple(result.shape[1:]), dtype)
        self.steps.append(Step(operator, inputs, outputs, live, kind, (), name))

    def _replaces(self, operator: Composite) -> bool:
        return self.decompose(operator) if callable(self.decompose) else self.decompose

    def _placeholder(self, name: str) -> Tensor | None:
        """A constant, or a live value without data: enough to find shapes."""
        if not name:
            return None
        if name in self.shapes:
            return torch.empty((1, *self.shapes[name]), dtype=self.dtypes[name], device="meta")
        return self.program_value(name)

    @staticmethod
    def _probe(operator: Operator, known: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Outputs of zeros; without data where a rule tells them, or they are large and torch can do that."""
        outline = operator.outline(*known) if known[0] is not None else None
        if outline is not None:
            return outline
        if sum(value.numel() for value in known if value is not None) <= MODEST:
            # Without data, torch would import its compiler to find the shape of a sum: seconds.
            return operator.forward(*map(_filled, known))
        data_free = [
            value.to("meta")
            if value is not None and (floating(value) or value.dtype == torch.bool)
            else value
            for value in known
        ]
        try:
            return operator.forward(*data_free)
        except RuntimeError:
            return operator.forward(*map(_filled, known))

    def _evaluate(self, operator: Operator, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        arguments = [
            _filled(self._placeholder(name)) if name in self.shapes else self.values[name] if name else None
            for name in inputs
        ]
        for output, result in zip(outputs, operator.forward(*arguments), strict=False):
            if output:
                self.values[output] = result[:1]

    def _replace(self, operator: Composite, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        """Emit what a composite operator is made of."""
        prefix = outputs[0]

        def emit(operator: Operator, *inputs: str | Tensor, outputs: int = 1) -> tuple[str, ...]:
            names = [
                self.alias.get(value, value) if isinstance(value, str) else self.constant(value)
                for value in inputs
            ]
            results = tuple(f"{prefix}.{next(self._count)}" for _ in range(outputs))
            self._emit(operator, tuple(names), results, prefix)
            return results

        shapes = [self._shape_of(value) if value else None for value in inputs]
        constants = [self.values.get(value) if value else None for value in inputs]
        dtypes = [self.dtypes.get(v, self.values[v].dtype if v in self.values else None) for v in inputs]
        results = operator.decompose(Decomposition(emit, shapes, constants, dtypes), *inputs)
        for output, result in zip(outputs, results, strict=False):
            if output:
                self.alias[output] = self.alias.get(result, result)

    def finish(self, inputs: Mapping[str, Shape], wanted: Sequence[str]) -> Program:
        """The program, with every output under its own name."""
        renamed: dict[str, str] = {}
        produced = {name for step in self.steps for name in step.outputs}
        for name in wanted:
            source = self.alias.get(name)
            if source is None:
                continue
            if source in produced and source not in renamed and source not in wanted:
                renamed[source] = name
            else:
                del self.alias[name]
                self.keep = True
                self.emit(Identity(), (source,), (name,), name)
        steps = [_rename(step, renamed) for step in self.steps]
        read = {name for step in steps for name in step.inputs} | set(wanted)
        stored = {name: self.program_value(name) for name in self.values if name in read}
        shapes = {renamed.get(name, name): shape for name, shape in self.shapes.items()}
        fusion = Fusion(steps, stored, shapes, wanted)
        steps = _without_identities(fusion.run(), wanted)
        shapes |= {name: tuple(value.shape[1:]) for name, value in fusion.constants.items()}
        return finish(
            steps,
            inputs,
            wanted,
            constants=fusion.constants,
            shapes=shapes,
            dtype=self.dtype,
            device=self.device,
        )


def _filled(value: Tensor | None) -> Tensor | None:
    """Zeros for a value without data, which take no memory."""
    if value is None or not value.is_meta:
        return value
    return torch.zeros((), dtype=value.dtype).expand(value.shape)


def _without_identities(steps: Sequence[Step], wanted: Sequence[str]) -> list[Step]:
    """Let the readers of an identity read its input, unless it makes an output of the program."""
    source: dict[str, str] = {}
    kept = []
    for step in steps:
        step = _rename(step, source)  # noqa: PLW2901 - outputs are never renamed: they are made once
        if isinstance(step.operator, Identity) and step.outputs[0] not in wanted:
            source[step.outputs[0]] = step.inputs[0]
        else:
            kept.append(step)
    return kept


def _rename(step: Step, names: Mapping[str, str]) -> Step:
    if not names:
        return step
    return dataclasses.replace(
        step,
        inputs=tuple(names.get(name, name) for name in step.inputs),
        outputs=tuple(names.get(name, name) for name in step.outputs),
    )


def _node_seed(node: Node, operator: Random, seed: int | None, path: Sequence[int]) -> int:
    """A seed that differs between nodes but not between programs of the same model."""
    if seed is not None:
        return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])
    if operator.own_seed is None:
        raise InvalidInputError(
            f"the model draws random numbers (node {node.name or node.op_type!r}); pass a seed to fix them"
        )
    return operator.own_seed
