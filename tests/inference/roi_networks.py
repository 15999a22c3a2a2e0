"""Small networks that torch exports, and the truth about them by onnxruntime on a dense grid."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from selkit.inference import RoiResult

ScoreMap = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Cam(nn.Module):
    """Class-activation map: convolutions, one pooling, and back to full size."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.head(self.second(self.first(x))), scale_factor=2)


class Unet(nn.Module):
    """One level down and up, with a skip connection."""

    def __init__(self, channels: int = 3, sigmoid: bool = False) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, channels, 3, padding=1)
        self.inner = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.head = nn.Conv2d(2 * channels, 1, 3, padding=1)
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        inner = torch.relu(self.inner(nn.functional.max_pool2d(skip, 2)))
        score = self.head(torch.cat([torch.relu(self.up(inner)), skip], 1))
        return torch.sigmoid(score) if self.sigmoid else score


class Autoencoder(nn.Module):
    """Reconstructs its input; any number of spatial axes and channels."""

    def __init__(self, rank: int = 2, inputs: int = 1, channels: int = 4) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
        back = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
        self.net = nn.Sequential(
            conv(inputs, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            pool(2),
            conv(channels, channels, 3, padding=1),
            nn.ReLU(),
            back(channels, inputs, 2, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def sharpen(model: nn.Module, seed: int, gain: float = 2.0) -> nn.Module:
    """Draw larger weights than torch's defaults, so that maps vary over the image."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            fan = max(int(np.prod(weight.shape[1:])), 1)
            weight.copy_(torch.randn(weight.shape, generator=generator) * gain / fan**0.5)
    return model.eval()


def export(
    model: nn.Module, shape: Sequence[int], *, dynamo: bool = False, dynamic: bool = False
) -> onnx.ModelProto:
    """Export with one of torch's exporters, to memory."""
    x = torch.zeros(*shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            # A batch of one would be taken for a constant.
            sample = torch.zeros(2, *shape[1:]) if dynamic else x
            shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
            program = torch.onnx.export(model, (sample,), dynamo=True, dynamic_shapes=shapes, verbose=False)
            return program.model_proto
        buffer = io.BytesIO()
        axes = {"x": {0: "batch"}} if dynamic else None
        torch.onnx.export(
            model, (x,), buffer, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes
        )
    return onnx.load_from_string(buffer.getvalue())


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """First output of onnxruntime for each image of a stack, one at a time."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None].astype(np.float32)})[0] for image in images])


def check_truncation(
    result: RoiResult,
    model: onnx.ModelProto,
    score_map: ScoreMap,
    threshold: float,
    *,
    mask: np.ndarray | None = None,
    points: int = 2500,
) -> int:
    """Compare a truncation set with a dense grid; return how many points lie inside and outside, the fewer.

    Points are left out where single precision cannot tell: within a small distance of an end of the set or
    where a score is too near to the threshold.
    """
    intervals = result.truncated_intervals
    assert np.all(intervals[:, 0] <= intervals[:, 1])
    assert np.all(intervals[1:, 0] > intervals[:-1, 1])
    assert any(low <= result.stat <= high for low, high in intervals)
    assert result.inf_p <= result.p_value <= result.sup_p
    spread = np.linspace(-4.0, 4.0, points // 2) * result.scale
    near = result.stat + np.linspace(-1.0, 1.0, points // 2) * max(
        3 * float(np.ptp(intervals[next(i for i, (a, b) in enumerate(intervals) if a <= result.stat <= b)])),
        1e-3 * result.scale,
    )
    values = np.concatenate([spread, near])
    searched = np.array(
        [any(low <= value <= high for low, high in result.searched_intervals) for value in values]
    )
    values = values[searched]
    images = result.image_at(values)[:, 0]
    scores = np.stack([score_map(out, x) for out, x in zip(run(model, images), images, strict=True)]).reshape(
        len(values), -1
    )
    usable = np.ones(scores.shape[1], bool) if mask is None else mask.reshape(-1)
    scores, roi = scores[:, usable], result.roi.reshape(-1)[usable]
    chosen = ((scores > threshold) == roi).all(1)
    doubtful = np.abs(scores - threshold).min(1) < 2e-5 * max(1.0, float(np.abs(scores).max()))
    ends = intervals.reshape(-1)
    doubtful |= np.abs(values[:, None] - ends[None]).min(1) < 1e-6 * result.scale
    inside = np.array([any(low <= value <= high for low, high in intervals) for value in values])
    wrong = (inside != chosen) & ~doubtful
    assert not wrong.any(), f"{wrong.sum()} of {len(values)} points differ, the first at {values[wrong][0]}"
    return int(min((inside & ~doubtful).sum(), (~inside & ~doubtful).sum()))
