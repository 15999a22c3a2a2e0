"""The region of a class-activation map, where the class is the predicted one: end to end for a classifier."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import selkit
from selkit.errors import InvalidInputError, NotAcceptedError
from selkit.inference import PredictedClass, TopK
from selkit.scores import EnergyScore

SIDE = 8


class Classifier(nn.Module):
    """Convolutions, a map for each class, and logits from the channel maxima."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.maps = nn.Conv2d(4, classes, 1, bias=False)
        self.head = nn.Linear(4, classes)
        with torch.no_grad():  # every class looks for something bright
            self.first[0].weight.abs_()
            self.maps.weight.abs_()
            self.head.bias.zero_()
            self.head.bias -= self(torch.randn(200, 1, SIDE, SIDE))[1].mean(0)  # all classes occur

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.first(x)
        logits = self.head(features.amax((2, 3)))
        return nn.functional.interpolate(self.maps(features), scale_factor=2), logits


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Classifier().eval(),
            (torch.zeros(1, 1, SIDE, SIDE),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["maps", "logits"],
        )
    return onnx.load_from_string(buffer.getvalue())


def run(model: onnx.ModelProto, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"x": image[None].astype(np.float32)}) for image in images]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, SIDE, SIDE))


def level(model: onnx.ModelProto) -> float:
    maps, logits = run(model, np.stack([noise(seed) for seed in range(1000, 1100)]))
    return float(np.quantile(np.stack([m[c] for m, c in zip(maps, logits.argmax(1), strict=True)]), 0.6))


def test_the_truncation_set_fixes_region_and_class(model):
    threshold = level(model)
    test = selkit.load(model, selkit.BackMeanDiff(region=PredictedClass("logits", threshold)), var=1.0)
    by_class = 0
    for seed in range(6):
        x = noise(seed)
        maps, logits = run(model, x[None])
        label = int(logits.argmax())
        result = test.inference(x, inference_mode="exhaustive")
        assert np.array_equal(result.roi, maps[0, label] > threshold)
        assert np.allclose(result.score_map, maps[0, label], atol=1e-5)
        near = np.clip(result.truncated_intervals, result.stat - 0.5, result.stat + 0.5)
        values = np.concatenate(
            [np.linspace(-4, 4, 400) * result.scale, np.linspace(near.min() - 0.1, near.max() + 0.1, 400)]
        )
        maps, logits = run(model, result.image_at(values)[:, 0])
        same_class = logits.argmax(1) == label
        same = ((maps[:, label] > threshold) == result.roi).all((1, 2))
        intervals = result.truncated_intervals
        inside = ((values[:, None] >= intervals[:, 0]) & (values[:, None] <= intervals[:, 1])).any(1)
        doubtful = np.abs(maps[:, label] - threshold).min((1, 2)) < 1e-5
        top = np.sort(logits, 1)
        doubtful |= top[:, -1] - top[:, -2] < 1e-5
        assert (inside == (same & same_class))[~doubtful].all()
        assert inside.any()
        by_class += int((same & ~same_class).sum())
    assert by_class >= 0


def test_the_class_alone_can_cut_the_set(model):
    # the strongest cell of the class's map, four pixels: where another class wins, the set ends
    test = selkit.load(model, selkit.BackMeanDiff(region=PredictedClass("logits", TopK(4))), var=1.0)
    cut = 0
    for seed in range(8):
        x = noise(seed)
        result = test.inference(x, inference_mode="exhaustive")
        values = np.linspace(-5, 5, 500) * result.scale
        maps, logits = run(model, result.image_at(values)[:, 0])
        label = int(run(model, x[None])[1].argmax())
        same_class = logits.argmax(1) == label
        flat = maps[:, label].reshape(len(values), -1)
        roi = result.roi.ravel()
        same = flat[:, roi].min(1) > flat[:, ~roi].max(1)
        intervals = result.truncated_intervals
        inside = ((values[:, None] >= intervals[:, 0]) & (values[:, None] <= intervals[:, 1])).any(1)
        clear = np.abs(values[:, None] - intervals.ravel()).min(1) > 1e-5
        assert (inside == (same & same_class))[clear].all()
        cut += int((same & ~same_class).sum())
    assert cut > 20


def test_p_values_of_explained_regions_are_uniform(model):
    test = selkit.load(model, selkit.BackMeanDiff(region=PredictedClass("logits", TopK(4))), var=1.0)
    accepts = EnergyScore().fit(X=run(model, np.stack([noise(s) for s in range(2000, 2200)]))[1])
    accepts.set_threshold(q=0.7)
    conditioned, naive, seed = [], [], 0
    while len(conditioned) < 150:
        seed += 1
        try:
            result = test.inference(noise(seed), accepted_by=accepts, embedding="logits")
        except NotAcceptedError:
            continue
        conditioned.append(result.p_value)
        naive.append(result.naive_p_value())
    assert stats.kstest(conditioned, "uniform").pvalue > 0.01
    assert stats.kstest(naive, "uniform").pvalue < 1e-6


def test_what_does_not_fit(model):
    for region, text in (
        (PredictedClass("maps", 0.0), r"the logits 'maps' have shape \(1, 3, 8, 8\)"),
        (PredictedClass("logitz", 0.0), "logitz"),
    ):
        test = selkit.load(model, selkit.BackMeanDiff(region=region), var=1.0)
        with pytest.raises(InvalidInputError, match=text):
            test.inference(noise(0))
    two = PredictedClass("l", 0.0).given({"l": np.array([[0.0, 1.0]])})
    with pytest.raises(InvalidInputError, match="needs one map for each of the 2 classes"):
        two.select(np.zeros((1, 3, 2, 2)))
    rule = PredictedClass("logits", 0.0)
    for use in (lambda: rule.select(np.zeros((1, 3, 2))), lambda: rule.condition(None, "s", np.zeros(1))):
        with pytest.raises(InvalidInputError, match="needs the logits of the image first"):
            use()
