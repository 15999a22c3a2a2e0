"""Resampling of a grid: one matrix for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from typing import Literal as Choice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selkit.graph.ops.base import (
    Affine,
    Operator,
    UnsupportedAttribute,
    check_size,
    integers,
    plain,
    register,
)
from selkit.graph.ops.sampling import Axis, Sampling

_MODES = ("nearest", "linear", "cubic")
_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple")
_POLICIES = ("stretch", "not_larger", "not_smaller")
SMALL = 48
"""Size up to which one matrix for each axis is faster than torch's own linear resampling on the CPU."""

_NATIVE = {1: "linear", 2: "bilinear", 3: "trilinear"}


@lru_cache(maxsize=256)
def _matrix(sampling: Sampling, axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix with which values are multiplied from the right: shape ``(before, after)``."""
    check_size((axis.before, axis.after))
    return torch.from_numpy(sampling.matrix(axis).T.copy()).to(device, dtype)


@lru_cache(maxsize=256)
def _indices(sampling: Sampling, axis: Axis, device: torch.device) -> Tensor:
    return torch.from_numpy(sampling.indices(axis)).to(device)


@lru_cache(maxsize=256)
def _repeats(sampling: Sampling, axis: Axis) -> bool:
    """Whether each element is simply repeated a whole number of times."""
    if axis.after % axis.before:
        return False
    expected = np.arange(axis.after) // (axis.after // axis.before)
    return bool(np.array_equal(sampling.indices(axis), expected))


def _repeat(x: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat each element of the spatial axes a whole number of times."""
    grid = x.shape[3:]
    spread, shape = x, list(x.shape[:3])
    for dim, (before, after) in enumerate(zip(grid, size, strict=True)):
        spread = spread.unsqueeze(2 * dim + 4)
        shape += [before, after // before]
    return spread.expand(shape).reshape(*x.shape[:3], *size)


def _native(x: Tensor, axes: Sequence[Axis], sampling: Sampling) -> Tensor | None:
    """The result by torch's own resampling where it means the same, else ``None``."""
    dims = x.ndim - 3
    if dims not in _NATIVE or any(axis.before != axis.after for axis in axes[:2]):
        return None
    grid = axes[2:]
    size = [axis.after for axis in grid]
    flat = x.flatten(0, 1)
    if sampling.mode == "nearest":
        if not all(_repeats(sampling, axis) for axis in grid):
            return None
        if x.is_cpu:
            return _repeat(x, size)
        y = functional.interpolate(flat, size=size, mode="nearest")
    elif sampling.mode == "linear" and not sampling.antialias:
        corners = sampling.coordinates == "align_corners"
        centers = sampling.coordinates == "half_pixel" or (
            sampling.coordinates == "pytorch_half_pixel" and min(size) > 1
        )
        if x.is_cpu and max(axis.before for axis in grid) <= SMALL:
            return None
        exact = all(abs(axis.scale * axis.before - axis.after) <= 1e-6 * axis.after for axis in grid)
        if not (corners or (centers and exact)):
            return None
        mode: Choice["linear", "bilinear", "trilinear"] = _NATIVE[dims]  # type: ignore[assignment]
        y = functional.interpolate(flat, size=size, mode=mode, align_corners=corners)
    else:
        return None
    return y.reshape(*x.shape[:3], *size)


def _unchanged(axes: Sequence[Axis], sampling: Sampling) -> bool:
    """Whether no size changes: onnxruntime then copies, whatever the scales."""
    return all(axis.before == axis.after for axis in axes) and sampling.coordinates != "tf_crop_and_resize"


def resample(x: Tensor, axes: Sequence[Axis], sampling: Sampling, *, absolute: bool = False) -> Tensor:
    """Resample all ONNX axes of a stacked value (with absolute weights for radii)."""
    check_size([axis.after for axis in axes])
    if _unchanged(axes, sampling):
        return x
    if not (absolute and sampling.mode == "cubic"):
        y = _native(x, axes, sampling)
        if y is not None:
            return y
    for dim in range(len(axes), 0, -1):
        axis = axes[dim - 1]
        # onnxruntime's smoothed resampling leaves an axis alone whose size stays, whatever its scale
        same = axis.before == axis.after and (axis.scale == 1 or sampling.antialias)
        if same and sampling.coordinates != "tf_crop_and_resize":
            continue
        if sampling.mode == "nearest":
            x = x.index_select(dim, _indices(sampling, axis, x.device))
            continue
        matrix = _matrix(sampling, axis, x.dtype, x.device)
        matrix = matrix.abs() if absolute else matrix
        if dim == x.ndim - 2:
            x = torch.matmul(matrix.mT, x)  # keeps the memory in order
        else:
            x = torch.matmul(x.movedim(dim, -1), matrix).movedim(-1, dim)
    return x


class _Resampling(Operator):
    """What Resize and Upsample share; subclasses say which axes become what."""

    KIND = Affine.KIND
    LIVE = 1
    HOST = (1, 2)

    @property
    def sampling(self) -> Sampling:
        """Which elements are read, with which weights."""
        raise TypeError(f"{type(self).__name__} does not define sampling")

    def axes_of(self, shape: Sequence[int], *parameters: Tensor | None) -> tuple[Axis, ...]:
        """One :class:`Axis` for each ONNX axis."""
        raise TypeError(f"{type(self).__name__} does not define axes_of")

    def repeats(self, shape: Sequence[int], *parameters: Tensor | None) -> bool:
        """Whether each element is simply repeated a whole number of times, along every axis."""
        nearest = self.sampling.mode == "nearest"
        return nearest and all(_repeats(self.sampling, axis) for axis in self.axes_of(shape, *parameters))

    def transparent(self, x: Tensor, *parameters: Tensor | None) -> bool:
        """Whether nothing changes."""
        return _unchanged(self.axes_of(x.shape[1:], *parameters), self.sampling)

    def forward(self, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        """Resample."""
        return (resample(x, self.axes_of(x.shape[1:], *parameters), self.sampling),)

    def spread(self, live: Sequence[bool], x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        """Resample with absolute weights, as :meth:`Affine.spread`."""
        return (resample(x, self.axes_of(x.shape[1:], *parameters), self.sampling, absolute=True),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Gather (nearest), or multiply by one matrix for each axis."""
        return (_written(tape, inputs[0], self._axes(inputs), self.sampling),)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Multiply by the same matrices, transposed."""
        return tuple(
            pull.only(0, _written(pull.tape, pull.full, self._axes(pull.x), self.sampling, back=True))
        )

    def _axes(self, inputs: Sequence[Any]) -> tuple[Axis, ...]:
        given = [None if i is None or i.value is None else i.value.unsqueeze(0) for i in inputs[1:]]
        return self.axes_of(inputs[0].shape, *given)


def _written(tape: Any, x: Any, axes: Sequence[Axis], sampling: Sampling, *, back: bool = False) -> Any:
    """Nodes that resample, or their transpose."""
    if _unchanged(axes, sampling):
        return x
    for place, axis in enumerate(axes):
        matrix = _matrix(sampling, axis, tape.dtype, torch.device("cpu"))
        if axis.before == axis.after and torch.equal(matrix, torch.eye(axis.before, dtype=tape.dtype)):
            continue
        same = axis.before == axis.after and (axis.scale == 1 or sampling.antialias)
        if same and sampling.coordinates != "tf_crop_and_resize":
            continue
        if sampling.mode == "nearest" and not back:
            index = _indices(sampling, axis, torch.device("cpu"))
            shape = (*x.shape[:place], axis.after, *x.shape[place + 1 :])
            x = tape.op("Gather", x, index, shape=shape, axis=place)
            continue
        order = [*(i for i in range(x.ndim) if i != place), place]
        y = tape.matmul(tape.transpose(x, order), tape.stored(matrix.mT if back else matrix))
        x = tape.transpose(y, sorted(range(x.ndim), key=order.__getitem__))
    return x


@register("Upsample", since=(7, 9))
@register("Resize", since=(10,))
@dataclass(frozen=True)
class Upsample(_Resampling):
    """Resize of opset 10 and below: asymmetric coordinates; scales are an attribute or an input."""

    mode: str = "nearest"
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in ("nearest", "linear"):
            raise UnsupportedAttribute(f"mode={self.mode!r} is not nearest or linear")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.mode, "asymmetric", "simple")

    def axes_of(self, shape: Sequence[int], *parameters: Tensor | None) -> tuple[Axis, ...]:
        given = parameters[0] if parameters else None
        scales = self.scales if given is None else tuple(plain(given).tolist())
        return tuple(_scaled(size, scale) for size, scale in zip(shape, scales, strict=True))


def _scaled(size: int, scale: float) -> Axis:
    """An axis for a scale; its new size is rounded down in float32, as onnxruntime does."""
    if not 0 < scale < 2**31:
        raise UnsupportedAttribute(f"the scale {scale} is not positive")
    return Axis(size, int(np.float32(size) * np.float32(scale)), scale)


@register("Resize", since=(11, 13, 18, 19))
@dataclass(frozen=True)
class Resize(_Resampling):
    """Resample by scales or to sizes."""

    mode: str = "nearest"
    coordinate_transformation_mode: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    extrapolation_value: float = 0.0
    antialias: int = 0
    axes: tuple[int, ...] = ()
    keep_aspect_ratio_policy: str = "stretch"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, _MODES),
            ("coordinate_transformation_mode", self.coordinate_transformation_mode, _COORDINATES),
            ("nearest_mode", self.nearest_mode, _NEAREST[:-1]),
            ("keep_aspect_ratio_policy", self.keep_aspect_ratio_policy, _POLICIES),
        ):
            if value not in allowed:
                raise UnsupportedAttribute(f"{name}={value!r} is not one of {', '.join(allowed)}")

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            self.mode,
            self.coordinate_transformation_mode,
            self.nearest_mode,
            self.cubic_coeff_a,
            bool(self.exclude_outside),
            bool(self.antialias),
        )

    def axes_of(self, shape: Sequence[int], *parameters: Tensor | None) -> tuple[Axis, ...]:
        given = [None if value is None or not value.numel() else value for value in parameters]
        roi, scales, sizes = (*given, None, None, None)[:3]
        rank = len(shape)
        chosen = [axis % rank for axis in self.axes] or list(range(rank))
        if (scales is None) == (sizes is None):
            raise UnsupportedAttribute("needs either scales or sizes")
        if sizes is not None:
            resized = self._by_sizes([shape[axis] for axis in chosen], integers(sizes))
        else:
            factors = plain(scales).tolist() if scales is not None else []
            resized = [_scaled(shape[a], factor) for a, factor in zip(chosen, factors, strict=True)]
        axes = [Axis(size, size, 1.0) for size in shape]
        for position, (axis, new) in enumerate(zip(chosen, resized, strict=True)):
            axes[axis] = new
            if roi is not None and self.coordinate_transformation_mode == "tf_crop_and_resize":
                part = plain(roi).tolist()
                begin, end = part[position], part[position + len(chosen)]
                axes[axis] = Axis(new.before, new.after, new.scale, begin, end)
        return tuple(axes)

    def _by_sizes(self, shape: Sequence[int], sizes: Sequence[int]) -> list[Axis]:
        ratios = [np.float32(after) / np.float32(before) for before, after in zip(shape, sizes, strict=True)]
        if self.keep_aspect_ratio_policy == "stretch":
            return [Axis(b, a, float(r)) for b, a, r in zip(shape, sizes, ratios, strict=True)]
        ratio = min(ratios) if self.keep_aspect_ratio_policy == "not_larger" else max(ratios)
        return [Axis(b, int(np.floor(np.float32(b) * ratio + np.float32(0.5))), float(ratio)) for b in shape]

    def _fill(self, y: Tensor, axes: Sequence[Axis], value: float) -> Tensor:
        """Give elements that lie outside the input one value."""
        for dim, axis in enumerate(axes, start=1):
            outside = self.sampling.outside(axis)
            if outside.any():
                mask = torch.from_numpy(outside).to(y.device).reshape(-1, *(1,) * (y.ndim - dim - 1))
                y = y.masked_fill(mask, value)
        return y

    def forward(self, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        axes = self.axes_of(x.shape[1:], *parameters)
        return (self._fill(resample(x, axes, self.sampling), axes, self.extrapolation_value),)

    def spread(self, live: Sequence[bool], x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        axes = self.axes_of(x.shape[1:], *parameters)
        return (self._fill(resample(x, axes, self.sampling, absolute=True), axes, 0.0),)

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        axes = self._axes(inputs)
        y = _written(tape, inputs[0], axes, self.sampling)
        inside = self._fill(torch.ones((1, *y.shape)), axes, 0.0)[0]
        return (
            (y * inside.to(tape.dtype) + (1 - inside).to(tape.dtype) * self.extrapolation_value,)
            if not inside.all()
            else (y,)
        )

    def pull(self, pull: Any) -> tuple[Any, ...]:
        axes = self._axes(pull.x)
        inside = self._fill(torch.ones((1, *pull.y[0].shape)), axes, 0.0)[0]
        grad = pull.full if inside.all() else pull.full * inside.to(pull.tape.dtype)
        return tuple(pull.only(0, _written(pull.tape, grad, axes, self.sampling, back=True)))
