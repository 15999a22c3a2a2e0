"""Maps that are smooth at their end: solved on each piece, against onnxruntime and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from roi_networks import check_truncation, export, run, sharpen
from torch import Tensor, nn

import selkit
from selkit.inference import ArgMax, AverageFilter, BackMeanDiff

SHAPE = (1, 1, 8, 8)


class Segmenter(nn.Module):
    """Scores of three classes per pixel, and a smooth function of them."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.end = end
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if self.end == "classes":
            return torch.softmax(logits, 1)
        if self.end == "log":
            return torch.log_softmax(logits, 1)[:, 2:]
        if self.end == "product":
            return torch.sigmoid(logits[:, :1]) * torch.tanh(logits[:, 1:2])
        return torch.softmax(logits, 1)[:, 1:2]


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE)


@pytest.mark.parametrize("end", ["softmax", "log", "product"])
@pytest.mark.parametrize("seed", [0, 1])
def test_truncation_sets(end: str, seed: int) -> None:
    network = sharpen(Segmenter(end), seed, 1.5)
    model, x = export(network, SHAPE), image(seed)
    threshold = float(np.quantile(run(model, x), 0.75))
    result = selkit.load(model, BackMeanDiff(threshold)).inference(x, var=1.0, inference_mode="exhaustive")
    assert result.exact
    assert check_truncation(result, model, lambda y, x: y, threshold) > 20
    # At each end that is not the search's own, a pixel is on the threshold.
    network = network.double()
    reach = np.abs(result.searched_intervals).max() * (1 - 1e-9)
    for end_point in result.truncated_intervals.ravel():
        if abs(end_point) < reach:
            with torch.no_grad():
                score = network(torch.as_tensor(result.image_at(end_point).reshape(SHAPE))).numpy()
            assert np.abs(score - threshold).min() < 1e-6 * np.ptp(score)


def test_modes_that_need_pieces() -> None:
    model, x = export(sharpen(Segmenter("softmax"), 0, 1.5), SHAPE), image(0)
    threshold = float(np.quantile(run(model, x), 0.75))
    test = selkit.load(model, BackMeanDiff(threshold), var=1.0)
    whole = test.inference(x, inference_mode="exhaustive")
    narrow = test.inference(x, inference_mode="over_conditioning")
    (inner,) = narrow.truncated_intervals
    assert any(low <= inner[0] and inner[1] <= high for low, high in whole.truncated_intervals)
    close = test.inference(x, precision=1e-9)
    assert close.p_value == pytest.approx(whole.p_value, abs=2e-9)


def test_steps_behind_the_smooth_end() -> None:
    model, x = export(sharpen(Segmenter("softmax"), 3, 1.5), SHAPE), image(3)
    test = selkit.load(model, BackMeanDiff(0.4, post_process=[AverageFilter(3)]), var=1.0)
    level = float(np.quantile(test.inference(x).score_map, 0.7))
    result = selkit.load(model, BackMeanDiff(level, post_process=[AverageFilter(3)]), var=1.0).inference(x)
    assert result.exact
    assert result.sup_p - result.inf_p < 1e-3


def test_the_winning_class_of_probabilities_is_that_of_scores() -> None:
    network = sharpen(Segmenter("classes"), 0, 1.5)
    model, x = export(network, SHAPE), image(0)
    most = int(np.bincount(run(model, x)[0].argmax(0).ravel(), minlength=3).argmax())
    result = selkit.load(model, BackMeanDiff(region=ArgMax(most))).inference(x, var=1.0, precision=1e-6)
    scores = selkit.load(export(network.net, SHAPE), BackMeanDiff(region=ArgMax(most)))
    expected = scores.inference(x, var=1.0, precision=1e-6)
    assert result.exact
    assert result.p_value == pytest.approx(expected.p_value, abs=2e-6)


def test_a_network_that_is_smooth_from_its_start_is_not_cut() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.GELU(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 1)
    )
    model, x = export(sharpen(network, 0, 1.5), SHAPE), image(0)
    threshold = float(np.quantile(run(model, x), 0.75))
    assert not selkit.load(model, BackMeanDiff(threshold)).inference(x, var=1.0).exact
