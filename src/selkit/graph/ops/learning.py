"""Operators of ``ai.onnx.ml`` that prepare features, as skl2onnx writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selkit.graph.ops.arithmetic import Div
from selkit.graph.ops.base import Affine, Composite, Decomposition, UnsupportedAttribute, register
from selkit.graph.ops.normalization import LpNormalization
from selkit.graph.ops.reduction import ReduceMax


@register("Scaler", since=(1,), domain="ai.onnx.ml")
@dataclass(frozen=True)
class Scaler(Affine):
    """``(x - offset) scale``, with one of each, or one for each feature (last axis)."""

    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.offset or not self.scale:
            raise UnsupportedAttribute("needs both an offset and a scale")

    def _row(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        if len(values) not in (1, x.shape[-1]):
            raise UnsupportedAttribute(f"has {len(values)} factors or offsets for {x.shape[-1]} features")
        return torch.tensor(values, dtype=x.dtype, device=x.device)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x if x.is_floating_point() else x.float()
        return ((x - self._row(self.offset, x)) * self._row(self.scale, x),)

    def spread(self, live: Sequence[bool], x: Tensor) -> tuple[Tensor, ...]:
        return (x * self._row(self.scale, x).abs(),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """A difference and a product."""
        offset, scale = (torch.tensor(values, dtype=tape.dtype) for values in (self.offset, self.scale))
        return ((inputs[0] - offset) * scale,)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        return (pull.grad * torch.tensor(self.scale, dtype=pull.tape.dtype),)


@register("Normalizer", since=(1,), domain="ai.onnx.ml")
@dataclass(frozen=True)
class Normalizer(Composite):
    """Each row divided by its largest element (MAX) or its 1- or 2-norm (L1, L2)."""

    norm: str = "MAX"

    def __post_init__(self) -> None:
        if self.norm not in ("MAX", "L1", "L2"):
            raise UnsupportedAttribute(f"norm={self.norm!r} is not one of MAX, L1, L2")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.norm != "MAX":
            return LpNormalization(-1, int(self.norm[1])).forward(x)
        largest = x.amax(-1, keepdim=True)
        return (x / largest.masked_fill(largest == 0, 1),)

    def decompose(self, build: Decomposition, x: str) -> tuple[str, ...]:
        """A norm and a quotient."""
        if self.norm != "MAX":
            return (build(LpNormalization(-1, int(self.norm[1])), x),)
        return (build(Div(), x, build(ReduceMax(axes=(-1,)), x)),)
