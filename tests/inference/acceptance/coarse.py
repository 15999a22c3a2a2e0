"""A small network whose region is the strongest cell of a 4 x 4 map, and scores that accept its inputs."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import selkit
from selkit.inference import Region
from selkit.scores import EuclideanScore, MaxLogitScore, UncertaintyScore

SIDE, CELLS = 8, 4


class Network(nn.Module):
    """A map of 4 x 4 cells, the channel maxima of the features, and the strongest cell."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Conv2d(4, 1, 1, bias=False)
        with torch.no_grad():
            self.head.weight.abs_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.first(x)
        cells = self.head(features)
        return cells, features.amax((2, 3)), cells.amax((2, 3))


@dataclass(frozen=True)
class StrongestCell(Region):
    """The block of pixels below the strongest cell."""

    def select(self, score: np.ndarray) -> np.ndarray:
        return np.kron(score == score.max(), np.ones((SIDE // CELLS,) * 2)).astype(bool)

    def condition(self, g, score, selected):
        step = SIDE // CELLS
        chosen = selected[..., ::step, ::step].reshape(-1)
        flat = g.add("Reshape", score, torch.tensor([-1]))
        inside, outside = (torch.as_tensor(np.flatnonzero(part)) for part in (chosen, ~chosen))
        best = g.add("ReduceMax", g.add("Gather", flat, outside, axis=0), keepdims=1)
        return g.add("Sub", g.add("Gather", flat, inside, axis=0), best)


def network(outputs: tuple[str, ...] = ("map", "maxima", "top")) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Network().eval(),
            (torch.zeros(1, 1, SIDE, SIDE),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["map", "maxima", "top"],
            dynamic_axes={name: {0: "n"} for name in ("x", "map", "maxima", "top")},
        )
    model = onnx.load_from_string(buffer.getvalue())
    kept = [value for value in model.graph.output if value.name in outputs]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model


def run(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": images.astype(np.float32)}), strict=True))


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 1, SIDE, SIDE))


def coarse_test(model: onnx.ModelProto) -> selkit.RoiTest:
    return selkit.load(model, selkit.BackMeanDiff(region=StrongestCell()), var=1.0)


def neighbours(model: onnx.ModelProto, coverage: float = 0.5) -> UncertaintyScore:
    """5-NN of channel maxima."""
    reference, calibration = (run(model, noise(300, seed))["maxima"] for seed in (1, 2))
    return EuclideanScore(k=5).fit(X=reference, Y=calibration).set_threshold(q=coverage)


def sureness(model: onnx.ModelProto, coverage: float = 0.2) -> UncertaintyScore:
    """The network is sure where its strongest cell is strong."""
    top = run(model, noise(2000, 3))["top"]
    return MaxLogitScore(task="multilabel").fit(X=top, Y=top).set_threshold(q=coverage)
