"""Which elements a resampled axis reads, with which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """How one axis is resampled: sizes, the scale as the model gives it, and the part that is read."""

    before: int
    after: int
    scale: float
    begin: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """The attributes of Resize that say which elements are read, with which weights."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False

    def positions(self, axis: Axis) -> NDArray[Any]:
        """Where in the input each output element is read; in float32 for nearest, as onnxruntime rounds."""
        return np.asarray(self._positions(axis))

    def _positions(self, axis: Axis) -> Any:
        real: Any = np.float32 if self.mode == "nearest" else np.float64
        x = np.arange(axis.after, dtype=real)
        scale, before, after = real(axis.scale), real(axis.before), real(axis.after)
        half, one = real(0.5), real(1)
        if self.coordinates == "pytorch_half_pixel" and axis.after == 1:
            return np.zeros(1, real)
        if self.coordinates in ("half_pixel", "pytorch_half_pixel"):
            return (x + half) / scale - half
        if self.coordinates == "half_pixel_symmetric":
            offset = before / 2 * (one - after / (scale * before))
            return offset + (x + half) / scale - half
        if self.coordinates == "align_corners":
            return x * (before - one) / (after - one) if axis.after > 1 else np.zeros(axis.after, real)
        if self.coordinates == "asymmetric":
            return x / scale
        if self.coordinates == "tf_half_pixel_for_nn":
            return (x + half) / scale
        begin, end = real(axis.begin), real(axis.end)
        if axis.after == 1:
            return np.full(1, half * (begin + end) * (before - one))
        step = (end - begin) * (before - one) / (after - one)
        return begin * (before - one) + x * step

    def indices(self, axis: Axis) -> NDArray[np.int64]:
        """Element read for each output element (nearest)."""
        x = self.positions(axis)
        # opset 10 and below ("simple") read the next element when they shrink
        up = self.nearest == "ceil" or (self.nearest == "simple" and axis.scale < 1)
        if self.nearest == "round_prefer_floor":
            picked = np.ceil(x - x.dtype.type(0.5))
        elif self.nearest == "round_prefer_ceil":
            picked = np.floor(x + x.dtype.type(0.5))
        else:
            picked = np.ceil(x) if up else np.floor(x)
        return np.asarray(np.clip(picked, 0, axis.before - 1), dtype=np.int64)

    def matrix(self, axis: Axis) -> NDArray[np.float64]:
        """Weights of shape ``(after, before)``."""
        result = np.zeros((axis.after, axis.before))
        rows = np.arange(axis.after)
        if self.mode == "nearest":
            result[rows, self.indices(axis)] = 1
            return result
        x = self.positions(axis).astype(np.float64)
        width = 1.0 if self.mode == "linear" else 2.0
        shrink = min(axis.scale, 1.0) if self.antialias else 1.0
        first = np.floor(x) + (np.floor(-width / shrink) + 1)
        taps = 2 * int(np.ceil(width / shrink)) if self.antialias else int(2 * width)
        reach = first[:, None] + np.arange(taps)
        weights = self._kernel((reach - x[:, None]) * shrink)
        inside = (reach >= 0) & (reach <= axis.before - 1)
        if self.exclude_outside:
            weights = weights * inside
        weights = weights / weights.sum(axis=1, keepdims=True)
        index = np.clip(reach, 0, axis.before - 1).astype(np.int64)
        np.add.at(result, (np.broadcast_to(rows[:, None], index.shape), index), weights)
        return result

    def _kernel(self, distance: NDArray[np.float64]) -> NDArray[np.float64]:
        d = np.abs(distance)
        if self.mode == "linear":
            return np.asarray(np.clip(1 - d, 0, None))
        a = self.cubic
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    def outside(self, axis: Axis) -> NDArray[np.bool_]:
        """Which output elements lie outside the input (tf_crop_and_resize)."""
        if self.coordinates != "tf_crop_and_resize":
            return np.zeros(axis.after, dtype=bool)
        x = self.positions(axis)
        return np.asarray((x < 0) | (x > axis.before - 1))
