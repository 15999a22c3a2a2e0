"""Regions by arg-max and by rank, components, several contrasts: grids, uniformity, bad input."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from roi_networks import Autoencoder, check_truncation, export, run, sharpen
from scipy import ndimage, stats
from torch import Tensor, nn

import selkit
from selkit.errors import InvalidInputError, NoHypothesisError, NotAvailableError
from selkit.inference import (
    ArgMax,
    BackMeanDiff,
    Contrast,
    Hypothesis,
    InputDiff,
    Neg,
    NeighborMeanDiff,
    TopK,
)


class Segmenter(nn.Module):
    """Scores of three classes per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 3, 2, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.fixture(scope="module")
def segmenter() -> onnx.ModelProto:
    return export(sharpen(Segmenter(), 0), (1, 1, 8, 8))


@pytest.fixture(scope="module")
def autoencoder() -> onnx.ModelProto:
    return export(sharpen(Autoencoder(), 1, 0.3), (1, 1, 8, 8))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 1, 8, 8))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_arg_max_over_classes(segmenter: onnx.ModelProto, index: int) -> None:
    def lead(output: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
        return output[index] - np.delete(output, index, 0).max(0)

    x = noise(3)
    hypothesis = BackMeanDiff(region=ArgMax(index))
    result = selkit.load(segmenter, hypothesis).inference(x, 1.0, inference_mode="exhaustive")
    np.testing.assert_array_equal(result.roi, run(segmenter, x)[0].argmax(0) == index)
    assert check_truncation(result, segmenter, lead, 0.0) > 5


@pytest.mark.parametrize("k", [1, 5, 40])
def test_largest_scores(autoencoder: onnx.ModelProto, k: int) -> None:
    x = noise(4)
    hypothesis = NeighborMeanDiff(region=TopK(k), post_process=InputDiff())
    result = selkit.load(autoencoder, hypothesis).inference(x, 1.0, inference_mode="exhaustive")
    roi = result.roi.reshape(-1)

    def rank(output: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
        score = (output - x).reshape(-1)
        return np.where(roi, score - score[~roi].max(), score - score[roi].min())

    assert roi.sum() == k
    assert check_truncation(result, autoencoder, rank, 0.0) > 5


@pytest.mark.parametrize("rule", [TopK(20), ArgMax(1)])
def test_what_a_mask_leaves_out_stays_in_the_condition(
    segmenter: onnx.ModelProto, autoencoder: onnx.ModelProto, rule: TopK | ArgMax
) -> None:
    model, steps = (autoencoder, [InputDiff()]) if isinstance(rule, TopK) else (segmenter, [])
    x, mask = noise(3), np.zeros((8, 8), dtype=bool)
    mask[:, :4] = True
    whole = selkit.load(model, BackMeanDiff(region=rule, post_process=steps), var=1.0)
    part = whole.inference(x, mask=mask, inference_mode="exhaustive")
    all_of_it = whole.inference(x).roi
    np.testing.assert_array_equal(part.roi, all_of_it & mask)
    assert (all_of_it & ~mask).any()

    def same(output: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
        score = output - x if steps else output
        chosen = rule.select(score[None]).reshape(8, 8)
        # The region of the whole image is selected again, or it is not.
        return np.where((chosen == all_of_it).all(), 1.0, -1.0) * np.where(part.roi, 1.0, -1.0)

    assert check_truncation(part, model, same, 0.0) > 5


@pytest.mark.parametrize("rule", ["top", "components", "chi"])
def test_uniform_under_the_null(autoencoder: onnx.ModelProto, rule: str) -> None:
    p_values, naive = [], []
    hypothesis: Hypothesis = {
        "top": BackMeanDiff(region=TopK(3), post_process=InputDiff()),
        "components": BackMeanDiff(1.7, post_process=InputDiff()),
        "chi": Halves(1.0, post_process=InputDiff()),
    }[rule]
    test = selkit.load(autoencoder, hypothesis, var=1.0)
    for seed in range(200):
        with contextlib.suppress(NoHypothesisError):
            if rule == "components":
                result = test.inference_components(noise(seed))[0]
            else:
                result = test.inference(noise(seed))
            p_values.append(result.p_value)
            naive.append(result.naive_p_value())
    assert len(p_values) >= 150
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert stats.kstest(naive, "uniform").pvalue < 1e-3


def test_components_are_tested_apart(autoencoder: onnx.ModelProto) -> None:
    x = noise(5)
    test = selkit.load(autoencoder, BackMeanDiff(1.2, post_process=InputDiff()), var=1.0)
    whole = test.inference(x)
    parts = test.inference_components(x)
    labels, count = ndimage.label(whole.roi)
    assert len(parts) == count > 1
    for place, part in enumerate(parts, 1):
        np.testing.assert_array_equal(part.roi, labels == place)
        np.testing.assert_array_equal(part.non_roi, ~whole.roi)
        assert part.stat == pytest.approx(x[0, 0][part.roi].mean() - x[0, 0][~whole.roi].mean())


@dataclass(frozen=True, kw_only=True)
class Halves(Hypothesis):
    """The means of the left and of the right half of the region, tested together."""

    def contrast(self, roi: NDArray[np.bool_], usable: NDArray[np.bool_], shape: tuple[int, ...]) -> Contrast:
        left = np.zeros(shape, dtype=bool)
        left[..., : shape[-1] // 2] = True
        halves = [part / part.sum() for part in (roi & left, roi & ~left) if part.any()]
        return Contrast(np.stack(halves) if len(halves) > 1 else halves[0])


def test_a_chi_statistic_is_the_length_of_standardised_contrasts(autoencoder: onnx.ModelProto) -> None:
    x = noise(6)
    test = selkit.load(autoencoder, Halves(1.0, post_process=InputDiff()), var=2.0)
    result = test.inference(x)
    left = result.roi.copy()
    left[:, 4:] = False
    right = result.roi & ~left
    parts = [x[0, 0][part].mean() * np.sqrt(part.sum() / 2.0) for part in (left, right)]
    assert result.stat == pytest.approx(np.hypot(*parts))
    assert result.naive_p_value() == pytest.approx(stats.chi(2).sf(result.stat))
    np.testing.assert_allclose(result.image_at(result.stat)[0], x, atol=1e-12)
    with pytest.raises(NotAvailableError, match="single contrast"):
        result.confidence_interval()
    with pytest.raises(InvalidInputError, match="no direction"):
        test.inference(x, alternative="less")


def test_bad_rules(segmenter: onnx.ModelProto, autoencoder: onnx.ModelProto) -> None:
    with pytest.raises(InvalidInputError, match=r"ArgMax\(index=3\).*shape \(1, 3, 8, 8\)"):
        selkit.load(segmenter, BackMeanDiff(region=ArgMax(3))).inference(noise(0), 1.0)
    with pytest.raises(InvalidInputError, match="k is 64"):
        selkit.load(autoencoder, BackMeanDiff(region=TopK(64))).inference(noise(0), 1.0)
    with pytest.raises(InvalidInputError, match="either threshold or region"):
        BackMeanDiff(0.5, region=TopK(3))
    with pytest.raises(InvalidInputError, match="no use with region"):
        BackMeanDiff(region=TopK(3), use_norm=True)
    constant = export(nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False), (1, 1, 8, 8))
    for weight in constant.graph.initializer:
        weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), weight.name))
    with pytest.raises(InvalidInputError, match="several scores are equal"):
        selkit.load(constant, BackMeanDiff(region=TopK(3), post_process=Neg())).inference(noise(0), 1.0)
