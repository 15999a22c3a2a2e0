"""The steps that most composite operators are made of, with their constants written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selkit.graph.ops.arithmetic import Mul
from selkit.graph.ops.base import Decomposition, integers
from selkit.graph.ops.shape import Concat, Expand, Gather, Reshape, Slice, Transpose


def ints(values: Sequence[int]) -> Tensor:
    """Shapes, axes and positions, as an operator reads them."""
    return torch.tensor(list(values), dtype=torch.int64)


def real(value: float) -> Tensor:
    """A number; it gets the program's dtype."""
    return torch.tensor(value, dtype=torch.float64)


def reshape(build: Decomposition, x: str, shape: Sequence[int]) -> str:
    """The same elements in another shape."""
    return build(Reshape(allowzero=1), x, ints(shape))


def transpose(build: Decomposition, x: str, order: Sequence[int]) -> str:
    """Axes in another order."""
    return build(Transpose(tuple(order)), x)


def concat(build: Decomposition, values: Sequence[str | Tensor], axis: int) -> str:
    """Values side by side."""
    return build(Concat(axis), *values)


def expand(build: Decomposition, x: str, shape: Sequence[int]) -> str:
    """Repeat by broadcasting."""
    return build(Expand(), x, ints(shape))


def cut(build: Decomposition, x: str, axis: int, start: int, stop: int, *, step: int = 1) -> str:
    """A range of one axis."""
    return build(Slice(), x, ints([start]), ints([stop]), ints([axis]), ints([step]))


def take(build: Decomposition, x: str, axis: int, index: int) -> str:
    """One place of an axis, without that axis."""
    return build(Gather(axis), x, torch.tensor(index, dtype=torch.int64))


def scaled(build: Decomposition, x: str, factor: float) -> str:
    """``factor x``."""
    return x if factor == 1 else build(Mul(), x, real(factor))


def known_integers(build: Decomposition, index: int) -> tuple[int, ...] | None:
    """An integer input as Python numbers; ``None`` if it is left out or depends on the model's input."""
    value = build.constants[index] if index < len(build.constants) else None
    return None if value is None else integers(value)
