"""Score maps of other sizes, with channels, channels last, or inner values: sets against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from roi_networks import export, sharpen
from test_layout import last, twin
from torch import nn

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.inference import (
    BackMeanDiff,
    Crop,
    Hypothesis,
    NeighborMeanDiff,
    Resize,
    RoiResult,
    SelectChannel,
    Transpose,
)


class HeatMap(nn.Module):
    """A network with a stride: two maps at a quarter of the image's size, and one number."""

    def __init__(self, rank: int = 2, stride: int = 4) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
        self.first = nn.Sequential(conv(1, 3, 3, padding=1), nn.ReLU(), pool(stride))
        self.second = conv(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def outputs(model: onnx.ModelProto, images: NDArray[Any], name: str | None = None) -> NDArray[Any]:
    """A value of the model by onnxruntime, for a stack of images."""
    if name is not None:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = session.get_inputs()[0].name
    return np.stack([session.run(None, {x: image.astype(np.float32)})[0] for image in images])


def check(result: RoiResult, regions: NDArray[np.bool_], values: NDArray[Any], margin: NDArray[Any]) -> None:
    """The truncation set holds those values at which the same region is selected."""
    same = (regions.reshape(len(values), -1) == result.roi.reshape(-1)).all(1)
    inside = np.array([any(a <= v <= b for a, b in result.truncated_intervals) for v in values])
    sure = np.abs(margin).reshape(len(values), -1).min(1) > 2e-5
    np.testing.assert_array_equal(inside[sure], same[sure])
    assert same[sure].sum() > 10
    assert (~same[sure]).sum() > 10


def grid(result: RoiResult, points: int = 400) -> NDArray[Any]:
    home = next(row for row in result.truncated_intervals if row[0] <= result.stat <= row[1])
    near = result.stat + 3 * np.ptp(home) * np.linspace(-1, 1, points)
    return np.concatenate([near, np.linspace(-4, 4, points) * result.scale])


def enlarged(maps: NDArray[Any], size: tuple[int, ...], mode: str) -> NDArray[Any]:
    """Resized by torch, in double precision; maps (points, *space)."""
    if mode == "linear":
        name = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
        options: dict[str, Any] = {"mode": name, "align_corners": False}
    else:
        options = {"mode": "nearest"}
    tensor = torch.from_numpy(maps.astype(np.float64))[:, None]
    return nn.functional.interpolate(tensor, size=size, **options)[:, 0].numpy()


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_maps_with_a_stride(rank: int, mode: Any) -> None:
    sides = {1: (24,), 2: (8, 12), 3: (4, 4, 8)}[rank]
    model = export(sharpen(HeatMap(rank, 2 if rank == 3 else 4), 1), (1, 1, *sides))
    x = np.random.default_rng(3).normal(size=(1, 1, *sides))
    threshold = float(np.quantile(outputs(model, x[None])[0, 0, 1], 0.6))
    test = selkit.load(model, NeighborMeanDiff(threshold), var=1.0, channel=1, resize=mode)
    result = test.inference(x, inference_mode="exhaustive")
    values = grid(result)
    maps = enlarged(outputs(model, result.image_at(values))[:, 0, 1], sides, mode)
    check(result, maps > threshold, values, maps - threshold)
    np.testing.assert_allclose(
        result.score_map, enlarged(outputs(model, x[None])[0, :, 1], sides, mode)[0], atol=1e-4
    )
    other = selkit.load(twin(model), NeighborMeanDiff(threshold), var=1.0, channel=1, resize=mode)
    again = other.inference(last(x), inference_mode="exhaustive")
    np.testing.assert_allclose(again.truncated_intervals, result.truncated_intervals, atol=1e-9)
    steps = BackMeanDiff(threshold, post_process=[SelectChannel(-1), Resize(mode)])
    same = selkit.load(model, steps, var=1.0).select(x)
    np.testing.assert_array_equal(np.squeeze(same.roi), result.roi)


def test_inner_values_with_their_channels() -> None:
    model = export(sharpen(HeatMap(), 1), (1, 1, 8, 12))
    (relu,) = (node.output[0] for node in model.graph.node if node.op_type == "Relu")
    x = np.random.default_rng(3).normal(size=(1, 1, 8, 12))
    test = selkit.load(model, BackMeanDiff(0.5), var=1.0, score_map=relu, channel=2)
    result = test.inference(x, inference_mode="exhaustive")
    values = grid(result)
    maps = outputs(model, result.image_at(values), relu)[:, 0, 2]
    check(result, maps > 0.5, values, maps - 0.5)
    with pytest.raises(InvalidInputError, match=r"3 channels.*channel="):
        selkit.load(model, BackMeanDiff(0.5), var=1.0, score_map=relu).inference(x)
    with pytest.raises(InvalidInputError, match=r"score_map is 'relu'.*did you mean"):
        selkit.load(model, BackMeanDiff(0.5), score_map="relu")


def test_transposed_and_cropped_maps() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 1, 6, 8] x) => (float[1, 12, 10, 1] y)
        <float[1, 1, 3, 3] w = {1, -1, 2, 0.5, 1, -2, 1, 1, 0.3}>
        { c = Conv<pads = [3, 3, 3, 3]>(x, w)
          r = Relu(c)
          y = Transpose<perm = [0, 3, 2, 1]>(r) }"""
    )
    x = np.random.default_rng(3).normal(size=(1, 1, 6, 8))
    hypothesis = NeighborMeanDiff(1.0, post_process=[Transpose((0, 3, 2, 1)), Crop(2, -2)])
    result = selkit.load(model, hypothesis, var=1.0).inference(x, inference_mode="exhaustive")
    values = grid(result)
    maps = outputs(model, result.image_at(values))[:, 0, :, :, 0].swapaxes(1, 2)[:, 2:-2, 2:-2]
    check(result, maps > 1.0, values, maps - 1.0)


def test_small_maps_need_a_size() -> None:
    model = export(sharpen(HeatMap(), 1), (1, 1, 8, 12))
    x = np.random.default_rng(3).normal(size=(1, 1, 8, 12))
    with pytest.raises(InvalidInputError, match=r"shape \(1, 1, 2, 3\).*resize="):
        selkit.load(model, BackMeanDiff(0.0), var=1.0, channel=0).inference(x)

    def refused(steps: Any, match: str, **options: Any) -> None:
        with pytest.raises(InvalidInputError, match=match):
            selkit.load(model, BackMeanDiff(0.0, post_process=steps), var=1.0, **options).inference(x)

    refused([SelectChannel(2)], r"channel is 2.*2 channel\(s\)")
    refused([SelectChannel(0), Resize(size=(3, 4, 5))], "size has 3 numbers")
    refused([SelectChannel(0), Crop(2)], "leaves nothing")
    refused([Transpose((1, 0))], "4 axes")
    with pytest.raises(InvalidInputError, match=r"mode of Resize must be one of .*'cubic'"):
        selkit.load(model, BackMeanDiff(0.0), resize="cubic")  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="channel is 'a'"):
        selkit.load(model, BackMeanDiff(0.0), channel="a")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="perm is"):
        Transpose((0, 0))
    with pytest.raises(InvalidInputError, match="no o_idx"):
        BackMeanDiff(0.0, score_map="y", o_idx=1)
    assert isinstance(BackMeanDiff(0.0, score_map="y"), Hypothesis)
