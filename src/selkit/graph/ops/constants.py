"""Operators whose result does not depend on the values of the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.base import (
    Affine,
    Composite,
    Constant,
    Decomposition,
    Kind,
    UnsupportedAttribute,
    check_size,
    integers,
    register,
)
from selkit.graph.ops.types import cast, element_type, torch_dtype


@register("Constant", since=(1, 9, 11, 12, 13, 19, 21, 23, 24, 25))
@dataclass(frozen=True, eq=False)
class Literal(Constant):
    """A value written in the model."""

    value: Tensor | None = None
    value_float: float | None = None
    value_floats: tuple[float, ...] | None = None
    value_int: int | None = None
    value_ints: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = (self.value, self.value_float, self.value_floats, self.value_int, self.value_ints)
        if sum(value is not None for value in given) != 1:
            raise UnsupportedAttribute("a constant needs exactly one value: a tensor, floats or ints")

    def forward(self) -> tuple[Tensor, ...]:
        if self.value is not None:
            return (self.value.unsqueeze(0),)
        if self.value_float is not None or self.value_floats is not None:
            floats = self.value_float if self.value_floats is None else list(self.value_floats)
            return (torch.tensor(floats, dtype=torch.float32).unsqueeze(0),)
        ints = self.value_int if self.value_ints is None else list(self.value_ints)
        return (torch.tensor(ints, dtype=torch.int64).unsqueeze(0),)


@register("ConstantOfShape", since=(9, 20, 21, 23, 24, 25))
@dataclass(frozen=True, eq=False)
class ConstantOfShape(Constant):
    """One value everywhere."""

    LIVE = 0

    value: Tensor | None = None

    def forward(self, shape: Tensor) -> tuple[Tensor, ...]:
        sizes = integers(shape)
        check_size(sizes)
        value = torch.zeros(1) if self.value is None else self.value
        return (value.reshape(1, *(1,) * len(sizes)).expand(1, *sizes),)


@register("Identity", since=(1, 13, 14, 16, 19, 21, 23, 24, 25))
@dataclass(frozen=True)
class Identity(Affine):
    """``x``."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,)

    def transparent(self, x: Tensor) -> bool:
        return True

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return (pull.grad,)

    def spread(self, live: Sequence[bool], x: Tensor) -> tuple[Tensor, ...]:
        return (x,)


@register("Dropout", since=(7, 10, 12, 13, 22))
@dataclass(frozen=True)
class Dropout(Affine):
    """``x``: nothing is dropped at inference."""

    LIVE = 1
    OUTPUTS = 2

    ratio: float = 0.5
    seed: int = 0

    def forward(
        self, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if training is not None and any(integers(training)):
            raise UnsupportedAttribute("training_mode is on; export the model in eval mode")
        return x, torch.ones_like(x[:1], dtype=torch.bool)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Write an Identity, and a mask that keeps everything."""
        kept = tape.stored(torch.ones(shapes[0], dtype=torch.bool))
        return tape.op("Identity", inputs[0], shape=shapes[0]), kept

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return tuple(pull.only(0, pull.grad))

    def transparent(self, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> bool:
        return training is None or not any(integers(training))

    def spread(self, live: Sequence[bool], *inputs: Tensor) -> tuple[Tensor, ...]:
        return (inputs[0], torch.zeros_like(inputs[0][:1]))


@register("CastLike", since=(15, 19, 21, 23, 24, 25))
@dataclass(frozen=True)
class CastLike(Composite):
    """The number type of another value."""

    NOTE = "a jump from real numbers to integers"

    saturate: int = 1
    round_mode: str = "up"

    def kind(self, live: Sequence[bool]) -> Kind:
        """The other value's own numbers do not count."""
        return super().kind(live[:1])

    def forward(self, x: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        return (x.to(like.dtype),)

    def decompose(self, build: Decomposition, x: str, like: str) -> tuple[str, ...]:
        """A cast."""
        kind = build.dtypes[1] or torch.float32
        return (build(Cast(element_type(kind), self.saturate, self.round_mode), x),)


@register("Cast", since=(6, 9, 13, 19, 21, 23, 24, 25, 28))
@dataclass(frozen=True)
class Cast(Affine):
    """Another number type; real numbers stay in the program's own precision."""

    NOTE = "a jump from real numbers to integers"

    to: int
    saturate: int = 1
    round_mode: str = "up"

    def __post_init__(self) -> None:
        torch_dtype(self.to)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (cast(x, self.to),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Real numbers stay in the graph's own precision."""
        (x,) = inputs
        if not torch_dtype(self.to).is_floating_point:
            return (tape.operator(self, "Cast", inputs, shapes)[0],)
        if x.dtype.is_floating_point:
            return (tape.op("Identity", x, shape=shapes[0]),)
        return (x.tape.lifted(x),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """A condition is 0 or 1."""
        if pull.kind is not Kind.AFFINE:
            return super().pull(pull)
        return (pull.grad,)

    def transparent(self, x: Tensor) -> bool:
        dtype = torch_dtype(self.to)
        return x.dtype == dtype or (x.is_floating_point() and dtype.is_floating_point)

    def kind(self, live: Sequence[bool]) -> Kind:
        """``STEP`` from real numbers to integers, else ``AFFINE``."""
        jumps = not torch_dtype(self.to).is_floating_point
        return Kind.STEP if any(live) and jumps else super().kind(live)

    def spread(self, live: Sequence[bool], x: Tensor) -> tuple[Tensor, ...]:
        return (x,)
