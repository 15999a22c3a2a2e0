"""What operators share about tensors: broadcasting behind the stack axis, parameters, limits of size.

Part of :mod:`selkit.graph.ops.base`; import it from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Input = Tensor | None
"""An operator's input: a tensor with a stack axis, or ``None`` for an optional input that is left out."""


class UnsupportedAttribute(Exception):  # noqa: N818 - never leaves selkit.graph
    """Raised by an operator's constructor for attributes that it does not cover; the text is the reason."""


def radii(values: Sequence[Input], live: Sequence[bool], data: int | None = None) -> list[Any]:
    """Inputs for a spread: constants among the first ``data`` inputs have radius 0, parameters stay."""
    count = len(values) if data is None else data
    return [
        torch.zeros_like(value) if value is not None and index < count and not alive else value
        for index, (alive, value) in enumerate(zip(live, values, strict=True))
    ]


def align(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Insert unit axes behind the stack axis, so that ONNX' broadcasting becomes torch's."""
    rank = max(tensor.ndim for tensor in tensors)
    return tuple(
        tensor.reshape(tensor.shape[0], *(1,) * (rank - tensor.ndim), *tensor.shape[1:]) for tensor in tensors
    )


def plain(tensor: Tensor) -> Tensor:
    """Return a constant without its stack axis; refuse a live value."""
    if tensor.shape[0] != 1:
        raise UnsupportedAttribute("an input that must be constant depends on the model's input")
    return tensor[0]


def integers(tensor: Tensor) -> tuple[int, ...]:
    """Return a constant integer input (a shape, axes, ...) as Python integers."""
    return tuple(int(value) for value in plain(tensor).reshape(-1).tolist())


LARGEST = 2**28
"""Most elements that one value may have; files that ask for more are refused before memory is taken."""


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """Shape that several broadcast to."""
    return tuple(np.broadcast_shapes(*map(tuple, shapes)))


def check_size(shape: Sequence[int]) -> None:
    """Refuse a result whose size no real model has.

    Raises
    ------
    UnsupportedAttribute
        If a size is negative or the elements are more than :data:`LARGEST`.
    """
    if any(size < 0 for size in shape):
        raise UnsupportedAttribute(f"its result would have the shape {tuple(shape)}")
    if math.prod(shape) > LARGEST:
        raise UnsupportedAttribute(f"its result of shape {tuple(shape)} would have over {LARGEST} elements")


def largest(
    function: Callable[[Tensor], Tensor], extremes: Sequence[float], lower: Tensor, upper: Tensor
) -> Tensor:
    """Largest absolute value on ``[lower, upper]`` of a function that is monotone between its extremes."""
    bound = torch.maximum(function(lower).abs(), function(upper).abs())
    for point in extremes:
        inside = (lower <= point) & (point <= upper)
        value = function(torch.full((), point, dtype=lower.dtype, device=lower.device)).abs()
        bound = torch.where(inside, torch.maximum(bound, value), bound)
    return bound


def floating(tensor: Tensor) -> bool:
    """Whether a tensor carries real numbers (not shapes, indices or conditions)."""
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
