"""Padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops.base import Affine, UnsupportedAttribute, check_size, integers, plain, register

_NUMPY = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@lru_cache(maxsize=256)
def _indices(length: int, begin: int, end: int, mode: str) -> Tensor:
    """Element read at each position of a padded axis; negative pads cut first, as onnxruntime does."""
    kept = np.arange(max(-begin, 0), length - max(-end, 0))
    if not len(kept):
        raise UnsupportedAttribute(f"pads {begin} and {end} leave nothing of {length} elements to repeat")
    positions = np.pad(kept, (max(begin, 0), max(end, 0)), mode=mode)  # type: ignore[call-overload]
    return torch.from_numpy(positions)


@register("Pad", since=(2, 11, 13, 18, 19, 21, 23, 24, 25))
@dataclass(frozen=True)
class Pad(Affine):
    """More elements around a value (or fewer, for negative pads)."""

    LIVE = 1
    HOST = (2,)

    mode: str = "constant"
    pads: tuple[int, ...] = ()
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.mode != "constant" and self.mode not in _NUMPY:
            raise UnsupportedAttribute(f"mode={self.mode!r} is not constant, {', '.join(_NUMPY)}")

    def _sides(self, rank: int, pads: Tensor | None, axes: Tensor | None) -> list[tuple[int, int]]:
        given = self.pads if pads is None else integers(pads)
        chosen = list(range(rank)) if axes is None else [axis % rank for axis in integers(axes)]
        if len(given) != 2 * len(chosen):
            raise UnsupportedAttribute(f"pads={list(given)} has {len(given)} values for {len(chosen)} axes")
        sides = [(0, 0)] * rank
        for position, axis in enumerate(chosen):
            sides[axis] = (given[position], given[position + len(chosen)])
        return sides

    def _pad(self, x: Tensor, sides: Sequence[tuple[int, int]], value: float | bool) -> Tensor:
        check_size([size + sum(side) for size, side in zip(x.shape[1:], sides, strict=True)])
        if self.mode == "constant":
            return functional.pad(x, [side for pair in reversed(sides) for side in pair], value=value)
        for dim, (begin, end) in enumerate(sides, start=1):
            if begin or end:
                x = x.index_select(dim, _indices(x.shape[dim], begin, end, self.mode).to(x.device))
        return x

    def transparent(self, x: Tensor, pads: Tensor | None = None, *rest: Tensor | None) -> bool:
        return not any(map(any, self._sides(x.ndim - 1, pads, rest[1] if len(rest) > 1 else None)))

    def forward(self, x: Tensor, pads: Tensor | None = None, *rest: Tensor | None) -> tuple[Tensor, ...]:
        value, axes = (*rest, None, None)[:2]
        fill = self.value if value is None else plain(value).reshape(-1)[0].item()
        return (self._pad(x, self._sides(x.ndim - 1, pads, axes), fill),)

    def _given(self, inputs: Sequence[Any]) -> tuple[list[tuple[int, int]], float]:
        """Sides and the value between them, for symbols."""
        pads, value, axes = ([None if i is None else i.value.unsqueeze(0) for i in inputs[1:]] + [None] * 3)[
            :3
        ]
        fill = self.value if value is None else float(plain(value).reshape(-1)[0])
        return self._sides(inputs[0].ndim, pads, axes), fill

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Sides become an input."""
        sides, fill = self._given(inputs)
        pads = tape.lift([side[0] for side in sides] + [side[1] for side in sides])
        value = tape.lift(fill) if self.mode == "constant" else None
        given = (inputs[0], pads) if value is None else (inputs[0], pads, value)
        return (tape.op("Pad", *given, shape=shapes[0], mode=self.mode),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Drop the padding; what repeats elements is followed by a table."""
        if self.mode != "constant":
            return tuple(pull.moved(self))
        sides, _ = self._given(pull.x)
        return tuple(pull.only(0, pull.tape.pad(pull.full, [(-begin, -end) for begin, end in sides])))

    def spread(
        self, live: Sequence[bool], x: Tensor, pads: Tensor | None = None, *rest: Tensor | None
    ) -> tuple[Tensor, ...]:
        axes = rest[1] if len(rest) > 1 else None
        return (self._pad(x, self._sides(x.ndim - 1, pads, axes), 0.0),)
