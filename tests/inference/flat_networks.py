"""Networks whose score maps are flat at the threshold, and the truth about them by onnxruntime on a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from selkit.inference import RoiResult

Scores = NDArray[np.float32]
Select = Callable[[Scores], NDArray[np.bool_]]


def above(level: float) -> Select:
    """The region rule: scores above a level, compared in the scores' precision."""
    return lambda scores: scores > np.float32(level)


@dataclass(frozen=True)
class End:
    """The end of a network: ONNX text from ``h`` to ``y``, a threshold, and whether the map is scaled."""

    text: str
    threshold: float
    use_norm: bool = False

    def select(self, scores: Scores) -> NDArray[np.bool_]:
        """The region of each map of a stack, written without selkit."""
        if self.use_norm:
            axes = tuple(range(1, scores.ndim))
            low, high = scores.min(axes, keepdims=True), scores.max(axes, keepdims=True)
            with np.errstate(invalid="ignore"):
                scores = (scores - low) / (high - low)
        return above(self.threshold)(scores)


ENDS = {
    "relu": End("y = Relu(h)", 0.0),
    "clip, low": End("y = Clip(h, zero, one)", 0.0),
    "clip, high": End("c = Clip(h, zero, half)  y = Sub(half, c)", 0.0),
    "hard sigmoid, low": End("y = HardSigmoid<alpha = 0.5, beta = 0.25>(h)", 0.0),
    "hard sigmoid, high": End("c = HardSigmoid<alpha = 0.5, beta = 0.75>(h)  y = Neg(c)", -1.0),
    "max pool": End("r = Relu(h)  y = MaxPool<kernel_shape = [K], pads = [P], strides = [S]>(r)", 0.0),
    "average pool": End(
        "r = Relu(h)  y = AveragePool<kernel_shape = [K], pads = [P], strides = [S]>(r)", 0.0
    ),
    "scaled": End("y = Relu(h)", 0.0, use_norm=True),
    "shifted": End("r = Relu(h)  y = Add(r, half)", 0.5),
    "shifted, rounded": End("r = Relu(h)  y = Add(r, tenth)", 0.1),
    "scaled, shifted": End("r = Relu(h)  m = Mul(r, three)  y = Sub(m, tenth)", -0.1),
    "turned round": End("r = Relu(h)  m = Mul(r, minus)  y = Add(m, one)", 0.9999999),
    "sigmoid": End("r = Relu(h)  y = Sigmoid(r)", 0.5),
    "tanh": End("r = Relu(h)  y = Tanh(r)", 0.0),
    "two of them": End("r = Relu(h)  s = Relu(k)  y = Sub(r, s)", 0.0),
    "maximum": End("y = Max(h, zero)", 0.0),
    "convolution": End("r = Relu(h)  y = Conv<pads = [P], kernel_shape = [K]>(r, v)", 0.0),
    "maximum of two": End("r = Relu(h)  s = Relu(k)  y = Max(r, s)", 0.0),
    "batch norm": End("r = Relu(h)  y = BatchNormalization(r, bs, bb, bm, bv)", 0.15242786705493927),
    "sigmoid of a difference": End(
        "r = Relu(h)  s = Relu(k)  d = Sub(r, s)  o = Add(d, tenth)  y = Sigmoid(o)", 0.5249791741371155
    ),
    "large": End("r = Relu(h)  m = Mul(r, million)  y = Add(m, tenth)", 0.1),
    "leaky below": End("r = Relu(h)  y = LeakyRelu<alpha = 0.2>(r)", 0.0),
}


def network(end: End, sides: tuple[int, ...], seed: int) -> onnx.ModelProto:
    """A network of two convolutions and an end; the batch axis is open, for the grid.

    Parameters
    ----------
    end
        What follows.
    sides
        Of the image, one axis of space or more.
    seed
        Of the weights.
    """
    rng = np.random.default_rng(seed)
    rank = len(sides)
    text = end.text.replace("[K]", str([3] * rank)).replace("[P]", str([1] * 2 * rank))
    text = text.replace("[S]", str([1] * rank))
    size = ", ".join(map(str, sides))
    kernel = ", ".join(["3"] * rank)

    def numbers(count: int, low: float = -1.0) -> str:
        return ", ".join(f"{value:.4f}" for value in rng.uniform(low, 1.0, count))

    width = 3**rank
    model = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 1, {size}] x) => (float[N, 1, {size}] y)
    <float[2, 1, {kernel}] u = {{{numbers(2 * width)}}}, float[1, 2, {kernel}] w = {{{numbers(2 * width)}}},
     float[1, 2, {kernel}] q = {{{numbers(2 * width)}}}, float[1, 1, {kernel}] v = {{{numbers(width, 0.0)}}},
     float[1] b = {{{rng.uniform(-1.5, 0.0):.4f}}}, float zero = {{0.0}}, float half = {{0.5}},
     float one = {{1.0}}, float tenth = {{0.1}}, float three = {{3.0}}, float minus = {{-1.0}},
     float million = {{1000000.0}},
     float[1] bs = {{0.7}}, float[1] bb = {{0.3}}, float[1] bm = {{0.2}}, float[1] bv = {{0.9}}>
    {{
      a = Conv<pads = {[1] * 2 * rank}>(x, u)  l = LeakyRelu<alpha = 0.3>(a)
      h = Conv<pads = {[1] * 2 * rank}>(l, w, b)  k = Conv<pads = {[1] * 2 * rank}>(l, q)
      {text}
    }}"""
    proto = onnx.parser.parse_model(model)
    onnx.checker.check_model(proto)
    return proto


def run(model: onnx.ModelProto, images: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """All outputs of onnxruntime for a stack of images."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of constants that an end does not use
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"x": images.astype(np.float32)}))


def check_grid(
    result: RoiResult,
    model: onnx.ModelProto,
    chosen: Callable[[list[NDArray[np.float32]]], NDArray[np.bool_]],
    *,
    points: int = 400,
) -> int:
    """Compare a truncation set with a dense grid; return how many points lie inside and outside, the fewer.

    A point next to an end of the set is left out, where single precision cannot tell.

    Parameters
    ----------
    result
        Of an exhaustive search.
    model
        Is run on the images at the points.
    chosen
        Whether the observed region is selected on each of them, from the model's outputs.
    points
        Of the grid.
    """
    intervals = result.truncated_intervals
    assert any(low <= result.stat <= high for low, high in intervals)
    values = np.concatenate(
        [
            np.linspace(-4.0, 4.0, points // 2) * result.scale,
            result.stat + np.linspace(-1.0, 1.0, points // 2) * result.scale,
        ]
    )
    found = chosen(run(model, result.image_at(values)[:, 0]))
    inside = ((intervals[:, 0] <= values[:, None]) & (values[:, None] <= intervals[:, 1])).any(1)
    near = np.abs(values[:, None] - intervals.reshape(-1)).min(1) < 3e-4 * result.scale
    wrong = (inside != found) & ~near
    assert not wrong.any(), f"{wrong.sum()} of {len(values)} points differ, the first at {values[wrong][0]}"
    return int(min((inside & ~near).sum(), (~inside & ~near).sum()))
