"""Random numbers, fixed by a seed when a program is compiled."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from selkit.graph.ops.base import Operator, Random, UnsupportedAttribute, check_size, register
from selkit.graph.ops.types import torch_dtype


class _Seeded(Random):
    """Draws with the generator of its seed; numpy's, because its numbers stay the same everywhere."""

    seed: float | None

    @property
    def own_seed(self) -> int | None:
        return None if self.seed is None else int(struct.unpack("<Q", struct.pack("<d", self.seed))[0])

    def seeded(self, seed: int) -> Operator:
        # 32 bits fit into the attribute, a float
        fixed = float(np.random.SeedSequence(seed).generate_state(1)[0])
        return dataclasses.replace(self, seed=fixed)  # type: ignore[type-var]

    def _generator(self) -> np.random.Generator:
        if self.own_seed is None:
            raise UnsupportedAttribute("random numbers need a seed")
        return np.random.default_rng(self.own_seed)


class _Normal(_Seeded):
    mean: float
    scale: float

    def _draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
        check_size(shape)
        numbers = self._generator().standard_normal(shape) * self.scale + self.mean
        return (torch.as_tensor(numbers).to(dtype).unsqueeze(0),)


class _Uniform(_Seeded):
    low: float
    high: float

    def _draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
        check_size(shape)
        numbers = self._generator().uniform(self.low, self.high, shape)
        return (torch.as_tensor(numbers).to(dtype).unsqueeze(0),)


def _dtype(given: int | None, x: Tensor) -> torch.dtype:
    return x.dtype if given is None else torch_dtype(given)


@register("RandomNormalLike", since=(1, 22))
@dataclass(frozen=True)
class RandomNormalLike(_Normal):
    """Normal numbers in the shape of a value."""

    mean: float = 0.0
    scale: float = 1.0
    dtype: int | None = None
    seed: float | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self._draw(tuple(x.shape[1:]), _dtype(self.dtype, x))


@register("RandomNormal", since=(1, 22))
@dataclass(frozen=True)
class RandomNormal(_Normal):
    """Normal numbers in a given shape."""

    shape: tuple[int, ...]
    mean: float = 0.0
    scale: float = 1.0
    dtype: int = TensorProto.FLOAT
    seed: float | None = None

    def forward(self) -> tuple[Tensor, ...]:
        return self._draw(self.shape, torch_dtype(self.dtype))


@register("RandomUniformLike", since=(1, 22))
@dataclass(frozen=True)
class RandomUniformLike(_Uniform):
    """Uniform numbers in the shape of a value."""

    low: float = 0.0
    high: float = 1.0
    dtype: int | None = None
    seed: float | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self._draw(tuple(x.shape[1:]), _dtype(self.dtype, x))


@register("RandomUniform", since=(1, 22))
@dataclass(frozen=True)
class RandomUniform(_Uniform):
    """Uniform numbers in a given shape."""

    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0
    dtype: int = TensorProto.FLOAT
    seed: float | None = None

    def forward(self) -> tuple[Tensor, ...]:
        return self._draw(self.shape, torch_dtype(self.dtype))
