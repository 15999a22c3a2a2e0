"""What is explained: which inputs of a model, and which numbers of its output.

A model becomes a program with one input and an output of shape ``(1, outputs)``: several explained inputs
are parts of one row, and positions of the output (of a map, of a sequence) are chosen or brought together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from selkit.errors import InvalidInputError, InvalidTypeError, NotFiniteError, UnsupportedModelError
from selkit.explain.facts import Given
from selkit.explain.heads import ClassAxis, Head, Position, Reduce, read_head
from selkit.explain.integers import Behind, behind_of
from selkit.graph.files import Source, read_apart
from selkit.graph.model import Graph, Quantization, ValueSpec
from selkit.graph.ops.base import Kind, Operator
from selkit.graph.ops.shape import Reshape, Slice
from selkit.graph.ops.types import torch_dtype
from selkit.graph.program import Program, Step, finish
from selkit.utils.arrays import as_tensor
from selkit.utils.checks import given, text

Inputs: TypeAlias = "str | Sequence[str] | None"
"""Names of the inputs to explain; by default all floating ones."""

ROW = "selkit.row"
"""The program's input where several inputs are explained."""
FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Choice:
    """What a user says about the question; checked where it is used.

    Attributes
    ----------
    output, input, fixed
        Name of the output, of the explained inputs, and values of other inputs.
    reduce, position, mask, class_axis
        What becomes of the output's positions (:func:`selkit.explain.heads.read_head`).
    quantization
        Whether activations are rounded where the model rounds them.
    """

    output: str | None = None
    input: Inputs = None
    fixed: Mapping[str, Any] | None = None
    reduce: Reduce = None
    position: Position = None
    mask: object = None
    class_axis: ClassAxis = None
    quantization: Quantization = "keep"


@dataclass(frozen=True, eq=False)
class Question:
    """A model and what is asked of it, before the sizes of its inputs are known.

    Attributes
    ----------
    graph
        The model.
    specs
        The explained inputs, with a floating type each.
    output
        Name of the explained output.
    fixed
        Values of other inputs, the same for all samples.
    choice
        What the user said.
    behind
        What makes the explained value of integers, where these are the model's input.
    """

    graph: Graph
    specs: tuple[ValueSpec, ...]
    output: str
    fixed: Mapping[str, torch.Tensor]
    choice: Choice
    behind: Behind | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is computed otherwise than the model's file says, as sentences."""
        return self.graph.notes + (() if self.behind is None else (self.behind.entry.note("explained"),))

    @property
    def dtype(self) -> torch.dtype:
        """The widest of the inputs' types, in which all is computed."""
        return max((spec.dtype or torch.float32 for spec in self.specs), key=lambda kind: kind.itemsize)

    @property
    def inputs(self) -> list[tuple[str, tuple[int | None, ...] | None, str]]:
        """Name, declared shape and NumPy's name of the dtype of each explained input."""
        return [(s.name, s.shape, str(s.dtype or torch.float32).removeprefix("torch.")) for s in self.specs]

    def answer(
        self,
        shapes: Sequence[tuple[int, ...]],
        *,
        dtype: torch.dtype | None = None,
        decompose: Any = False,
    ) -> Asked:
        """Compile the model for samples of these shapes (without the batch axis).

        Raises
        ------
        UnsupportedModelError
            If nodes cannot be run.
        InvalidInputError
            If the output does not depend on the inputs, or what becomes of its positions is not clear.
        """
        dtype = self.dtype if dtype is None else dtype
        live = {spec.name: (1, *shape) for spec, shape in zip(self.specs, shapes, strict=True)}
        held = {} if self.behind is None else self.behind.held
        try:
            self.graph.check([self.output])
            program = self.graph.compile(
                live,
                [self.output],
                live=list(live),
                constants={**self.fixed, **held},
                dtype=dtype,
                decompose=decompose,
            )
        except UnsupportedModelError as error:
            raise UnsupportedModelError(error.nodes, "explain this model") from error
        except InvalidInputError as error:
            if "neither live" not in str(error):
                raise
            raise InvalidInputError(
                f"{error}: the output needs them beside {', '.join(live)}; explain them with input=, or "
                "give their values with fixed={name: array}"
            ) from error
        absent = [name for name in live if name not in program.inputs]
        if self.output in program.constants or absent:
            missing = ", ".join(repr(name) for name in absent or live)
            raise InvalidInputError(
                f"the output {self.output!r} does not depend on the input {missing}; name the inputs to "
                "explain with input="
            )
        _check_weights(program)
        shape = tuple(program.shapes[self.output])
        head = read_head(
            shape,
            tuple(live.values()),
            self.output,
            reduce=self.choice.reduce,
            position=self.choice.position,
            mask=self.choice.mask,
            class_axis=self.choice.class_axis,
        )
        if len(live) > 1:
            program = _in_one_row(program, live)
        program, name = head.append(program)
        names = [name] if name == self.output else [name, self.output]
        parts = tuple(
            Given(spec.name, tuple(shape), kind)
            for spec, shape, (_, _, kind) in zip(self.specs, shapes, self.inputs, strict=True)
        )
        return Asked(program.prune(names), name, self.output, parts, head)


@dataclass(frozen=True, eq=False)
class Asked:
    """A program that answers a question.

    Attributes
    ----------
    program
        With one input, the sample or a row of all its parts, and ``outputs`` first.
    outputs
        Name of the value of shape ``(1, outputs)`` to choose a target from.
    raw
        Name of the model's own output.
    inputs
        What is explained.
    head
        How the one is made of the other.
    """

    program: Program
    outputs: str
    raw: str
    inputs: tuple[Given, ...]
    head: Head

    @property
    def classes(self) -> int:
        """How many outputs there are to choose from."""
        return int(self.program.shapes[self.outputs][1])

    def join(self, parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        """Batches of all inputs as one batch for the program."""
        return join(parts, dtype)


def join(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """Batches of several inputs as rows; one of one input as it is."""
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0], dtype=dtype)
    return np.concatenate([part.reshape(len(part), -1).astype(dtype, copy=False) for part in parts], axis=1)


def divide(rows: NDArray[Any], inputs: Sequence[Given]) -> Any:
    """Undo :func:`join` for attributions of shape ``(..., size)``: an array for each input, by name."""
    if len(inputs) == 1:
        return rows
    found, start = {}, 0
    for part in inputs:
        size = math.prod(part.shape)
        found[part.name] = rows[..., start : start + size].reshape(*rows.shape[:-1], *part.shape)
        start += size
    return found


def ask(model: Source, choice: Choice) -> Question:
    """Read a model and what is asked of it.

    Raises
    ------
    FileFormatError, UnsupportedModelError
        If the model cannot be read or run.
    InvalidInputError, InvalidTypeError
        If a name is unknown, an input cannot be explained, or the fixed values do not fit.
    """
    graph = Graph.load(model, (), quantization=choice.quantization)
    output = _output_of(graph, choice.output)
    fixed = _fixed(graph, choice.fixed)
    behind = behind_of(graph, output, choice.input, fixed)
    names = choice.input if behind is None else behind.entry.value
    return Question(graph, _specs(graph, model, names, fixed), output, fixed, choice, behind)


def _fixed(graph: Graph, values: object) -> dict[str, torch.Tensor]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InvalidTypeError(f"fixed must be a mapping from input names to arrays; got {given(values)}")
    specs = {spec.name: spec for spec in graph.inputs}
    found = {}
    for name, value in values.items():
        if name not in specs:
            raise InvalidInputError(f"fixed names {given(name)}; the model's inputs are {', '.join(specs)}")
        tensor = as_tensor(value, f"fixed[{name!r}]")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(f"fixed[{name!r}] has NaN or infinite values; give finite ones")
        wanted = specs[name].dtype
        if wanted is not None and tensor.is_floating_point() != wanted.is_floating_point:
            kind = str(wanted).removeprefix("torch.")
            raise InvalidTypeError(f"fixed[{name!r}] is {tensor.dtype}; the model takes {kind}")
        declared = specs[name].shape
        sizes = tuple(tensor.shape)
        fits = declared is None or (
            len(declared) == len(sizes)
            and all(side in (None, size) for side, size in zip(declared, sizes, strict=True))
        )
        if not fits:
            raise InvalidInputError(f"fixed[{name!r}] has shape {sizes}; the model declares {declared}")
        found[name] = tensor if wanted is None else tensor.to(wanted)
    return found


def _specs(graph: Graph, model: Source, names: object, fixed: Mapping[str, object]) -> tuple[ValueSpec, ...]:
    """The inputs to explain."""
    declared = {spec.name: spec for spec in graph.inputs}
    if names is None:
        free = [spec for spec in graph.inputs if spec.name not in fixed]
        whole = [spec for spec in free if spec.dtype not in FLOATS]
        if whole or not free:
            _refuse_whole(whole, free)
        chosen = free
    else:
        wanted = [names] if isinstance(names, str) else names
        if not isinstance(wanted, Sequence | set | frozenset) or isinstance(wanted, bytes) or not wanted:
            raise InvalidTypeError(f"input must be a name, or a list of names; got {given(names)}")
        wanted = [text(name, "input") for name in wanted]
        if len(set(wanted)) < len(wanted):
            raise InvalidInputError(f"input names a value twice: {given(names)}")
        chosen = [declared[name] if name in declared else _inner(graph, model, name) for name in wanted]
        _refuse_whole([spec for spec in chosen if spec.dtype not in FLOATS], chosen)
    for spec in chosen:
        if spec.shape is not None and spec.shape[:1] not in ((None,), (1,)):
            raise InvalidInputError(
                f"the model's input {spec.name!r} has the fixed batch size {spec.shape[:1]}; export the "
                "model with a batch of 1 or a dynamic batch axis"
            )
    return tuple(chosen)


def _refuse_whole(whole: Sequence[ValueSpec], free: Sequence[ValueSpec]) -> None:
    if whole:
        listed = ", ".join(f"{s.name!r} is {str(s.dtype).removeprefix('torch.')}" for s in whole)
        raise InvalidTypeError(
            f"the model's input {listed}; attributions are for float32 or float64. Give it the same value "
            "for all samples with fixed={name: array}, or, for token indices, explain the value behind the "
            "embedding: input='its name'"
        )
    if not free:
        raise InvalidInputError("all inputs of the model are fixed; leave at least one to be explained")


def _inner(graph: Graph, model: Source, name: str) -> ValueSpec:
    """An inner value as an input; its shape and type are what ONNX infers."""
    known = {value for node in graph.nodes for value in node.outputs if value}
    if name not in known:
        inputs = ", ".join(spec.name for spec in graph.inputs)
        raise InvalidInputError(
            f"input is {name!r}, which is no value of the model; its inputs are {inputs}, and each node's "
            "output can be named, too"
        )
    try:
        proto, _ = read_apart(model)  # without the values of other files
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # noqa: BLE001 - the C++ code raises whatever its checks raise; it is a hint only
        return ValueSpec(name, None, torch.float32)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.tensor_type
        if value.name == name and kind.elem_type:
            sides = [d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in kind.shape.dim]
            shape = (None, *sides[1:]) if kind.HasField("shape") and sides else None
            return ValueSpec(name, shape, torch_dtype(kind.elem_type))
    return ValueSpec(name, None, torch.float32)


def _output_of(graph: Graph, name: str | None) -> str:
    names = [spec.name for spec in graph.outputs]
    if name is None:
        return names[0]
    text(name, "output")
    known = {*names, *(value for node in graph.nodes for value in node.outputs if value)}
    if name not in known:
        raise InvalidInputError(f"output is {name!r}, but the model has the outputs {', '.join(names)}")
    return name


def _check_weights(program: Program) -> None:
    """Refuse weights that are not numbers; infinite ones may be masks, and are judged by what comes out."""
    for step in program.steps:
        for name in step.inputs:
            value = program.constants.get(name)
            if value is not None and value.is_floating_point() and bool(torch.isnan(value).any()):
                where = f" (read by {type(step.operator).__name__} {step.name!r})"
                raise InvalidInputError(
                    f"the model's weights {name!r}{where} are NaN at {int(torch.isnan(value).sum())} of "
                    f"{value.numel()} places; train or export it again"
                )


def check_outputs(outputs: NDArray[Any], what: str) -> None:
    """Refuse outputs that are no numbers: nothing can be attributed then.

    Raises
    ------
    NotFiniteError
        If one is NaN or infinite.
    """
    bad = ~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    if bad.any():
        raise NotFiniteError(
            f"the model's output is NaN or infinite for {int(bad.sum())} of {len(bad)} {what}, first for "
            f"number {int(bad.argmax())}: its weights are infinite, or numbers overflow on the way. Scale "
            "the inputs as in training, or leave these out"
        )


def _in_one_row(program: Program, live: Mapping[str, tuple[int, ...]]) -> Program:
    """The program of one row that all inputs are cut from."""
    constants, shapes = dict(program.constants), dict(program.shapes)
    steps: list[Step] = []
    total = sum(math.prod(shape) for shape in live.values())

    def step(operator: Operator, source: str, result: str, **given: Sequence[int]) -> None:
        names = []
        for key, values in given.items():
            names.append(f"selkit.{key}.{result}")
            constants[names[-1]] = torch.tensor([list(values)], dtype=torch.int64)
            shapes[names[-1]] = (len(values),)
        made = (True, *(False for _ in names))
        steps.append(Step(operator, (source, *names), (result,), made, Kind.AFFINE, (), result))

    start = 0
    for name, shape in live.items():
        stop = start + math.prod(shape)
        flat = f"selkit.part.{name}"
        step(Slice(), ROW, flat, starts=[start], ends=[stop], axes=[1])
        step(Reshape(), flat, name, shape=shape)
        shapes[flat] = (1, stop - start)
        start = stop
    shapes[ROW] = (1, total)
    return finish(
        [*steps, *program.steps],
        {ROW: (1, total)},
        program.outputs,
        constants=constants,
        shapes=shapes,
        dtype=program.dtype,
        device=program.device,
    )


Method: TypeAlias = Literal["deepshap", "integrated_gradients", "permutation"]
