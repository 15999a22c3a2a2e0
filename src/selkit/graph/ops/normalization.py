"""Normalizations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from selkit.graph.ops.base import Affine, UnsupportedAttribute, register


@register("BatchNormalization", since=(7, 9, 14, 15))
@dataclass(frozen=True)
class BatchNormalization(Affine):
    """``scale (x - mean) / sqrt(var + epsilon) + bias`` with the stored mean and variance."""

    LIVE = 1

    epsilon: float = 9.999999747378752e-06
    momentum: float = 0.8999999761581421
    training_mode: int = 0
    spatial: int = 1

    def __post_init__(self) -> None:
        if self.training_mode:
            raise UnsupportedAttribute(
                "training_mode=1 normalizes by the batch; export the model in eval mode"
            )
        if not self.spatial:
            raise UnsupportedAttribute("spatial=0; only one statistic for each channel is supported")

    def _slope(self, x: Tensor, scale: Tensor, var: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        shape = (1, 1, -1, *(1,) * (x.ndim - 3))
        return (scale / (var + self.epsilon).sqrt()).reshape(shape), shape

    def forward(
        self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, ...]:
        slope, shape = self._slope(x, scale, var)
        return (x * slope + (bias.reshape(shape) - mean.reshape(shape) * slope),)

    def spread(self, live: Sequence[bool], *inputs: Tensor) -> tuple[Tensor, ...]:
        x, scale, _, _, var = inputs
        return (x * self._slope(x, scale, var)[0].abs(),)
