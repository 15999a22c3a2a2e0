"""Tests of regions: truncation sets against onnxruntime on a dense grid, and bad input."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from roi_networks import Autoencoder, Cam, Unet, check_truncation, export, run, sharpen
from scipy import ndimage

import selkit
from selkit.errors import (
    FileFormatError,
    InvalidInputError,
    InvalidTypeError,
    NoHypothesisError,
    UnsupportedModelError,
)
from selkit.inference import (
    Abs,
    AverageFilter,
    BackMeanDiff,
    GaussianFilter,
    InputDiff,
    L1Norm,
    Neg,
    NeighborMeanDiff,
    ReferenceMeanDiff,
)


def plain(output: np.ndarray, x: np.ndarray) -> np.ndarray:
    return output


def error(output: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.abs(output - x)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, *shape))


def middle(model: onnx.ModelProto, x: np.ndarray, level: float = 0.75) -> float:
    """A threshold that some pixels exceed."""
    return float(np.quantile(run(model, x), level))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("network", [Cam, Unet])
def test_truncation_sets_of_exported_networks(network: type, dynamo: bool, dynamic: bool) -> None:
    model = export(sharpen(network(), 0), (1, 1, 8, 8), dynamo=dynamo, dynamic=dynamic)
    x = noise(0, 1, 8, 8)
    threshold = middle(model, x)
    for hypothesis in (BackMeanDiff(threshold), NeighborMeanDiff(threshold)):
        result = selkit.load(model, hypothesis).inference(x, var=1.0, inference_mode="exhaustive")
        assert check_truncation(result, model, plain, threshold) > 20


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([Cam, Unet]), st.floats(0.3, 0.95), st.booleans())
def test_truncation_sets_of_random_networks(seed: int, network: type, level: float, neighbors: bool) -> None:
    model = export(sharpen(network(2), seed, 2.5), (1, 1, 8, 8))
    x = noise(seed, 1, 8, 8)
    threshold = middle(model, x, level)
    assume((run(model, x) > threshold + 1e-6).any())  # else the map is constant: no unit is on
    hypothesis = NeighborMeanDiff(threshold) if neighbors else BackMeanDiff(threshold)
    result = selkit.load(model, hypothesis).inference(x, var=1.0, inference_mode="exhaustive")
    check_truncation(result, model, plain, threshold, points=800)


def normalized(output: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (output - output.min()) / (output.max() - output.min())


POST = {
    "diff": ([InputDiff()], lambda y, x: y - x),
    "diff-abs": ([InputDiff(), Abs()], error),
    "neg": ([Neg()], lambda y, x: -y),
    "average": (
        [InputDiff(), Abs(), AverageFilter(3)],
        lambda y, x: ndimage.uniform_filter(np.abs(y - x), (0, 3, 3), mode="constant"),
    ),
    "gaussian": (
        [InputDiff(), GaussianFilter(5, 1.2)],
        lambda y, x: ndimage.gaussian_filter(y - x, (0, 1.2, 1.2), mode="constant", radius=(0, 2, 2)),
    ),
    "l1": ([InputDiff(), L1Norm()], error),
}


@pytest.mark.parametrize("name", sorted(POST))
def test_post_processing(name: str) -> None:
    steps, truth = POST[name]
    model = export(sharpen(Autoencoder(), 1, 1.0), (1, 1, 8, 8))
    x = noise(3, 1, 8, 8)
    threshold = float(np.quantile(truth(run(model, x)[0], x[0]), 0.75))
    test = selkit.load(model, BackMeanDiff(threshold, post_process=steps), var=1.0)
    result = test.inference(x, inference_mode="exhaustive")
    assert check_truncation(result, model, truth, test.hypothesis.threshold) > 5
    observed = truth(result.output[0], x[0])
    np.testing.assert_allclose(result.score_map, np.squeeze(observed), atol=1e-9)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.8])
def test_normalized_maps(threshold: float) -> None:
    model = export(sharpen(Cam(), 2), (1, 1, 8, 8))
    x = noise(4, 1, 8, 8)
    hypothesis = BackMeanDiff(threshold, use_norm=True)
    result = selkit.load(model, hypothesis).inference(x, var=1.0, inference_mode="exhaustive")
    check_truncation(result, model, normalized, threshold)
    assert result.score_map.min() == 0
    assert result.score_map.max() == 1


def test_a_sigmoid_at_the_end_is_exact() -> None:
    logits = export(sharpen(Unet(), 3), (1, 1, 8, 8))
    model = export(sharpen(Unet(sigmoid=True), 3), (1, 1, 8, 8))
    x = noise(5, 1, 8, 8)
    result = selkit.load(model, BackMeanDiff(0.7)).inference(x, var=1.0, inference_mode="exhaustive")
    assert check_truncation(result, model, plain, 0.7) > 5
    level = float(np.log(0.7 / 0.3))
    same = selkit.load(logits, BackMeanDiff(level)).inference(x, var=1.0, inference_mode="exhaustive")
    np.testing.assert_allclose(result.truncated_intervals, same.truncated_intervals, atol=1e-9)
    assert result.output.max() <= 1


@pytest.mark.parametrize(("rank", "inputs", "sides"), [(1, 2, (24,)), (2, 3, (8, 8)), (3, 1, (4, 4, 6))])
def test_any_number_of_axes_and_channels(rank: int, inputs: int, sides: tuple[int, ...]) -> None:
    model = export(sharpen(Autoencoder(rank, inputs), 4, 1.0), (1, inputs, *sides))
    x = noise(6, inputs, *sides)
    for hypothesis in (
        BackMeanDiff(1.0, post_process=[InputDiff(), Abs()]),
        NeighborMeanDiff(1.0, post_process=[InputDiff(), Abs()]),
    ):
        result = selkit.load(model, hypothesis).inference(x, var=0.5, inference_mode="exhaustive")
        check_truncation(result, model, error, 1.0)


def test_masks_leave_pixels_out_of_both_regions() -> None:
    model = export(sharpen(Cam(), 5), (1, 1, 8, 8))
    x = noise(7, 1, 8, 8)
    threshold = middle(model, x, 0.5)
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:, :6] = True
    result = selkit.load(model, BackMeanDiff(threshold)).inference(x, 1.0, mask, "exhaustive")
    check_truncation(result, model, plain, threshold, mask=mask)
    assert not (result.roi & ~mask).any()
    assert result.non_roi is not None
    np.testing.assert_array_equal(result.roi | result.non_roi, mask)
    as_tensor = selkit.load(model, BackMeanDiff(threshold)).inference(
        torch.tensor(x), torch.tensor(1.0), torch.tensor(mask), "exhaustive"
    )
    assert as_tensor.p_value == result.p_value


def test_statistics_are_what_they_say() -> None:
    model = export(sharpen(Cam(), 6), (1, 1, 8, 8))
    x = noise(8, 1, 8, 8)
    threshold = middle(model, x)
    variance = np.random.default_rng(0).uniform(0.5, 2.0, x.shape)
    back = selkit.load(model, BackMeanDiff(threshold)).inference(x, variance)
    pixels = x[0, 0]
    assert back.stat == pytest.approx(pixels[back.roi].mean() - pixels[~back.roi].mean())
    eta = back.roi / back.roi.sum() - ~back.roi / (~back.roi).sum()
    assert back.scale == pytest.approx(np.sqrt((eta**2 * variance[0, 0]).sum()))
    ring = selkit.load(model, NeighborMeanDiff(threshold, neighborhood_range=2)).inference(x, 1.0)
    grown = ndimage.binary_dilation(ring.roi, np.ones((5, 5))) & ~ring.roi
    np.testing.assert_array_equal(ring.non_roi, grown)
    assert ring.stat == pytest.approx(pixels[ring.roi].mean() - pixels[grown].mean())
    reference = noise(9, 1, 8, 8)
    pair = selkit.load(model, ReferenceMeanDiff(threshold)).inference((x, reference), 2.0)
    assert pair.stat == pytest.approx(pixels[pair.roi].mean() - reference[0, 0][pair.roi].mean())
    assert pair.scale == pytest.approx(np.sqrt(2 * 2.0 / pair.roi.sum()))
    np.testing.assert_allclose(pair.image_at(pair.stat)[0], x)


def test_modes_agree_where_they_should() -> None:
    model = export(sharpen(Cam(), 7), (1, 1, 8, 8))
    test = selkit.load(model, BackMeanDiff(middle(model, noise(10, 1, 8, 8))), var=1.0)
    for seed in range(10, 16):
        x = noise(seed, 1, 8, 8)
        try:
            full = test.inference(x, inference_mode="exhaustive")
        except NoHypothesisError:
            continue
        parametric = test.inference(x)
        assert parametric.sup_p - parametric.inf_p < 1e-3
        assert parametric.inf_p - 1e-9 <= full.p_value <= parametric.sup_p + 1e-9
        decision = test.inference(x, inference_mode="decision", significance_level=0.3)
        assert (decision.sup_p <= 0.3) == (full.p_value <= 0.3)
        piece = test.inference(x, inference_mode="over_conditioning")
        assert len(piece.truncated_intervals) == 1
        low, high = piece.truncated_intervals[0]
        assert any(a - 1e-12 <= low and high <= b + 1e-12 for a, b in full.truncated_intervals)
        less, greater = (test.inference(x, alternative=name).p_value for name in ("less", "greater"))
        assert less + greater == pytest.approx(1.0, abs=2e-3)
        assert full.p_value == pytest.approx(2 * min(less, greater), abs=2e-3)


def test_a_tighter_search_gives_tighter_bounds() -> None:
    model = export(sharpen(Unet(), 8), (1, 1, 8, 8))
    x = noise(11, 1, 8, 8)
    test = selkit.load(model, BackMeanDiff(middle(model, x)), var=1.0)
    loose, tight = test.inference(x, precision=0.05), test.inference(x, precision=1e-6)
    assert tight.sup_p - tight.inf_p < 1e-6
    assert loose.inf_p <= tight.p_value <= loose.sup_p


def test_a_null_value_shifts_the_test() -> None:
    model = export(sharpen(Cam(), 21), (1, 1, 8, 8))
    x = noise(12, 1, 8, 8)
    test = selkit.load(model, BackMeanDiff(middle(model, x)), var=1.0)
    result = test.inference(x, inference_mode="exhaustive")
    lower, upper = result.confidence_interval(0.9)
    at_lower = test.inference(x, inference_mode="exhaustive", null_value=lower)
    assert at_lower.p_value == pytest.approx(0.1, abs=1e-3)
    assert lower < result.estimate() < upper


def test_the_result_does_not_depend_on_threads_or_repetition() -> None:
    model = export(sharpen(Unet(), 10), (1, 1, 8, 8))
    x = noise(13, 1, 8, 8)
    test = selkit.load(model, BackMeanDiff(middle(model, x)), var=1.0)
    first, second = test.inference(x), test.inference(x)
    np.testing.assert_array_equal(first.truncated_intervals, second.truncated_intervals)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        other = test.inference(x)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(first.truncated_intervals, other.truncated_intervals, atol=1e-10)


def test_single_precision_and_float_images_give_the_same() -> None:
    model = export(sharpen(Cam(), 11), (1, 1, 8, 8))
    x = noise(14, 1, 8, 8).astype(np.float32)
    test = selkit.load(model, BackMeanDiff(middle(model, x)), var=1.0)
    expected = test.inference(x.astype(np.float64))
    for same in (x, x[0], torch.tensor(x), torch.tensor(x[0])):
        assert test.inference(same).p_value == pytest.approx(expected.p_value, abs=1e-9)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return export(sharpen(Cam(), 12), (1, 1, 8, 8))


def test_a_test_can_be_sent_to_another_process(model: onnx.ModelProto) -> None:
    x = noise(16, 1, 8, 8)
    test = selkit.load(model, BackMeanDiff(middle(model, x)), var=1.0)
    expected = test.inference(x)
    copy = pickle.loads(pickle.dumps(test))
    np.testing.assert_array_equal(copy.inference(x).truncated_intervals, expected.truncated_intervals)


class TestBadInput:
    """What each mistake is answered with."""

    def test_not_a_model(self, tmp_path: object) -> None:
        with pytest.raises(FileFormatError):
            selkit.load(b"not a model", BackMeanDiff(0.0))

    def test_unsupported_operators_are_listed_at_once(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            agraph (float[1, 1, 8] x) => (float[1, 1, 8] y) {
                a = Det(x)
                y = Hardmax(a)
            }"""
        )
        with pytest.raises(UnsupportedModelError, match=r"(?s)2 node.*Det.*Hardmax"):
            selkit.load(model, BackMeanDiff(0.0))

    def test_regions_that_leave_nothing_to_test(self, model: onnx.ModelProto) -> None:
        x = noise(0, 1, 8, 8)
        with pytest.raises(NoHypothesisError, match=r"region is empty.*lower the threshold"):
            selkit.load(model, BackMeanDiff(1e6)).inference(x, 1.0)
        with pytest.raises(NoHypothesisError, match="covers everything"):
            selkit.load(model, BackMeanDiff(-1e6)).inference(x, 1.0)
        with pytest.raises(NoHypothesisError, match="no neighbourhood"):
            selkit.load(model, NeighborMeanDiff(-1e6)).inference(x, 1.0)

    @pytest.mark.parametrize(
        ("x", "match"),
        [
            (np.full((1, 1, 8, 8), np.nan), "NaN or infinite"),
            (np.zeros((1, 1, 8, 9)), "has shape"),
            (np.zeros((2, 1, 8, 8)), "one image|has shape"),
            ((np.zeros((1, 1, 8, 8)),) * 2, "2 array"),
        ],
    )
    def test_images(self, model: onnx.ModelProto, x: object, match: str) -> None:
        with pytest.raises(InvalidInputError, match=match):
            selkit.load(model, BackMeanDiff(0.0)).inference(x, 1.0)  # type: ignore[arg-type]
        with pytest.raises(InvalidTypeError, match="numpy array or a torch tensor"):
            selkit.load(model, BackMeanDiff(0.0)).inference("x", 1.0)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "var", [0.0, -1.0, np.nan, np.inf, np.ones(3), None, np.zeros((64, 64)), -np.eye(64)]
    )
    def test_variances(self, model: onnx.ModelProto, var: object) -> None:
        x = noise(0, 1, 8, 8)
        with pytest.raises(InvalidInputError, match="var"):
            selkit.load(model, BackMeanDiff(middle(model, x))).inference(x, var)

    def test_masks(self, model: onnx.ModelProto) -> None:
        x = noise(0, 1, 8, 8)
        test = selkit.load(model, BackMeanDiff(middle(model, x)), var=1.0)
        for mask, match in [
            (np.zeros((8, 8)), "no pixel"),
            (np.ones((3, 3)), "mask has shape"),
            (np.full((8, 8), 0.5), "other than 0 and 1"),
        ]:
            with pytest.raises(InvalidInputError, match=match):
                test.inference(x, mask=mask)

    def test_options(self, model: onnx.ModelProto) -> None:
        x = noise(0, 1, 8, 8)
        test = selkit.load(model, BackMeanDiff(middle(model, x)), var=1.0)
        for options, match in [
            ({"inference_mode": "fast"}, "inference_mode is 'fast'"),
            ({"alternative": "up"}, "alternative is 'up'"),
            ({"precision": 0.0}, "precision"),
            ({"significance_level": 2.0}, "significance_level"),
        ]:
            with pytest.raises(InvalidInputError, match=match):
                test.inference(x, **options)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="o_idx is 3; the model's outputs"):
            selkit.load(model, BackMeanDiff(0.0, o_idx=3))
        with pytest.raises(InvalidInputError, match="i_idx is 1; the model's inputs"):
            selkit.load(model, BackMeanDiff(0.0, i_idx=1))
        with pytest.raises(InvalidTypeError, match="hypothesis is a str"):
            selkit.load(model, "back")  # type: ignore[arg-type]

    def test_a_constant_map_cannot_be_normalized(self) -> None:
        net = Cam()
        with torch.no_grad():
            net.head.weight.zero_()
        model = export(net, (1, 1, 8, 8))
        with pytest.raises(InvalidInputError, match="constant"):
            selkit.load(model, BackMeanDiff(0.5, use_norm=True)).inference(noise(0, 1, 8, 8), 1.0)

    def test_an_output_that_does_not_depend_on_the_input(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            agraph (float[1, 1, 4] x) => (float[1, 1, 4] y)
            <float[1, 1, 4] c = {1, 2, 3, 4}> { s = Shape(x) y = Expand(c, s) }"""
        )
        with pytest.raises(InvalidInputError, match="does not depend on the tested input"):
            selkit.load(model, BackMeanDiff(1.5)).inference(np.zeros((1, 1, 4)), 1.0)

    def test_hypotheses(self) -> None:
        for arguments, match in [
            ({"threshold": np.nan}, "threshold is nan"),
            ({}, "either threshold or region"),
            ({"threshold": 1.5, "use_norm": True}, r"\[0, 1\)"),
        ]:
            with pytest.raises(InvalidInputError, match=match):
                BackMeanDiff(**arguments)
        with pytest.raises(InvalidInputError, match="neighborhood_range is 0"):
            NeighborMeanDiff(0.0, neighborhood_range=0)
        with pytest.raises(InvalidTypeError, match="post_process contains 'abs'"):
            BackMeanDiff(0.0, post_process=["abs"])  # type: ignore[list-item]
        with pytest.raises(InvalidInputError, match="kernel_size is 4"):
            AverageFilter(4)
        with pytest.raises(InvalidInputError, match="sigma is 0"):
            GaussianFilter(3, 0)


def test_the_grid_check_fails_on_a_wrong_set() -> None:
    model = export(sharpen(Cam(), 13), (1, 1, 8, 8))
    x = noise(15, 1, 8, 8)
    threshold = middle(model, x)
    result = selkit.load(model, BackMeanDiff(threshold)).inference(x, 1.0, inference_mode="exhaustive")
    check_truncation(result, model, plain, threshold)
    home = next(row for row in result.truncated_intervals if row[0] <= result.stat <= row[1])
    wider = dataclasses.replace(
        result, truncated_intervals=np.array([[home[0] - 0.3 * np.ptp(home), home[1] + 0.3 * np.ptp(home)]])
    )
    with pytest.raises(AssertionError, match="points differ"):
        check_truncation(wider, model, plain, threshold)
