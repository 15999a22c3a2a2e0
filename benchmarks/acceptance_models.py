"""Networks, regions and scores on which conditioning on acceptance is measured."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import selkit
from selkit.inference import Region
from selkit.scores import EuclideanScore, MaxLogitScore, UncertaintyScore

SIDE, CELLS = 16, 4


class Network(nn.Module):
    """A class-activation map, and the channel maxima of the features below it.

    Parameters
    ----------
    coarse
        One number for each of 4 x 4 cells, or one for each pixel.
    channels
        Of the features.
    """

    def __init__(self, coarse: bool, channels: int = 8) -> None:
        super().__init__()
        c = channels
        self.first = nn.Sequential(nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(c, 1, 1, bias=False)
        self.coarse = coarse

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.second(self.first(x))
        if self.coarse:
            features = nn.functional.avg_pool2d(features, SIDE // 2 // CELLS)
        score_map = self.head(features)
        top = nn.functional.adaptive_max_pool2d(score_map, 1).flatten(1)
        if not self.coarse:
            score_map = nn.functional.interpolate(score_map, scale_factor=2)
        return score_map, nn.functional.adaptive_max_pool2d(features, 1).flatten(1), top


@dataclass(frozen=True)
class StrongestCell(Region):
    """The block of pixels below the strongest cell of a coarse map.

    Attributes
    ----------
    size
        Side of a block.
    """

    size: int

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """The pixels of the strongest cell."""
        return np.kron(score == score.max(), np.ones((self.size, self.size))).astype(bool)

    def condition(self, g: Any, score: str, selected: NDArray[np.bool_]) -> str:
        """Its lead over the other cells."""
        chosen = selected[..., :: self.size, :: self.size].reshape(-1)
        flat = g.add("Reshape", score, torch.tensor([-1]))
        inside, outside = (torch.as_tensor(np.flatnonzero(part)) for part in (chosen, ~chosen))
        best = g.add("ReduceMax", g.add("Gather", flat, outside, axis=0), keepdims=1)
        return g.add("Sub", g.add("Gather", flat, inside, axis=0), best)


def network(coarse: bool, bright: bool = False, seed: int = 0) -> onnx.ModelProto:
    """A network, exported.

    Parameters
    ----------
    coarse
        See :class:`Network`.
    bright
        All filters look for something bright, as those of a trained detector do; else they are random.
    seed
        Of the weights.
    """
    torch.manual_seed(seed)
    model = Network(coarse).eval()
    with torch.no_grad():
        model.head.weight.abs_()  # the map is high where the features are
        if bright:
            model.first[0].weight.abs_()
            model.second[0].weight.abs_()
    buffer = io.BytesIO()
    names = ["map", "maxima", "top"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, SIDE, SIDE),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=names,
            dynamic_axes={name: {0: "n"} for name in ["x", *names]},
        )
    return onnx.load_from_string(buffer.getvalue())


def run(model: onnx.ModelProto, images: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
    """All outputs of onnxruntime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    parts = [
        session.run(names, {"x": images[at : at + 500].astype(np.float32)})
        for at in range(0, len(images), 500)
    ]
    return {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(names)}


def noise(count: int, seed: int, signal: float = 0.0) -> NDArray[np.float64]:
    """White noise; a signal is added to one block of pixels, a cell of the coarse map."""
    images = np.random.default_rng(seed).normal(size=(count, 1, SIDE, SIDE))
    size = SIDE // CELLS
    images[:, :, size : 2 * size, 2 * size : 3 * size] += signal
    return images


def region_test(coarse: bool, model: onnx.ModelProto) -> selkit.RoiTest:
    """The test of the strongest cell, or of the pixels whose map is in the top tenth."""
    if coarse:
        hypothesis = selkit.BackMeanDiff(region=StrongestCell(SIDE // CELLS))
    else:
        level = float(np.quantile(run(model, noise(500, 1))["map"], 0.9))
        hypothesis = selkit.BackMeanDiff(threshold=level)
    return selkit.load(model, hypothesis, var=1.0)


SCORES = {
    "5-NN of channel maxima": "maxima",
    "5-NN of the strongest cell": "top",
    "strongest cell is strong": "top",
    "strongest cell is weak": "top",
}
"""What accepts an image, and which value of the network the score is given."""


def fitted(kind: str, model: onnx.ModelProto) -> UncertaintyScore:
    """A score with calibration scores of null images, still without a threshold."""
    reference, calibration = (run(model, noise(2000, seed))[SCORES[kind]] for seed in (2, 3))
    if kind.startswith("5-NN"):
        return EuclideanScore(k=5).fit(X=reference, Y=calibration)
    if kind == "strongest cell is strong":  # a label that the network is sure of
        return MaxLogitScore(task="multilabel").fit(X=reference, Y=calibration)
    quiet = np.array([[reference.min() - 1.0]], dtype=np.float32)
    return EuclideanScore(k=1).fit(X=quiet, Y=calibration)
