"""Maps that are flat at their threshold, tied classes and ranks: one answer everywhere, and uniform."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import pytest
from flat_networks import ENDS, End, check_grid, network, run
from numpy.typing import NDArray
from scipy import ndimage, stats

import selkit
from selkit.errors import InvalidInputError, NoHypothesisError
from selkit.inference import ArgMax, BackMeanDiff, NeighborMeanDiff, PredictedClass, Threshold, TopK, levels

SIDES = [(6, 6), (12,), (5, 7), (3, 4, 4)]


def image(sides: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(1, 1, *sides))


def hypothesis(end: End, **options: Any) -> BackMeanDiff:
    return BackMeanDiff(end.threshold, use_norm=end.use_norm, **options)


@pytest.mark.parametrize("name", ENDS)
def test_the_set_equals_a_grid_of_onnxruntime(name: str) -> None:
    """23 networks for each of the 22 ends: 506."""
    end = ENDS[name]
    tested = crossed = 0
    for seed in range(150):
        sides = SIDES[seed % len(SIDES)]
        model = network(end, sides, seed)
        x = image(sides, 1000 + seed)
        truth = end.select(run(model, x)[0])[0]
        if truth.all() or not truth.any():
            continue
        result = selkit.load(model, hypothesis(end)).inference(x, 1.0, inference_mode="exhaustive")
        np.testing.assert_array_equal(result.roi, truth.squeeze())
        crossed += (
            check_grid(
                result,
                model,
                lambda outputs, truth=truth: (end.select(outputs[0]) == truth).reshape(400, -1).all(1),
            )
            > 0
        )
        tested += 1
        if tested == 23:
            break
    assert tested == 23
    assert crossed > 15


@pytest.mark.parametrize("name", ["relu", "clip, high", "average pool", "scaled", "sigmoid", "convolution"])
def test_all_modes_agree(name: str) -> None:
    end, x = ENDS[name], image((6, 6), 3)
    test = selkit.load(network(end, (6, 6), 1), hypothesis(end), var=1.0)
    exhaustive = test.inference(x, inference_mode="exhaustive")
    quick = test.inference(x, precision=1e-6)
    assert quick.inf_p - 1e-9 <= exhaustive.p_value <= quick.sup_p + 1e-9
    assert (test.inference(x, inference_mode="decision").p_value <= 0.05) == (exhaustive.p_value <= 0.05)
    piece = test.inference(x, inference_mode="over_conditioning").truncated_intervals
    whole = exhaustive.truncated_intervals
    assert all(((whole[:, 0] <= low + 1e-9) & (high - 1e-9 <= whole[:, 1])).any() for low, high in piece)


def test_a_relu_at_zero_is_the_identity() -> None:
    """The twin of a network without the Relu at its end selects the same region, and tests it alike."""
    flat, plain = (network(end, (6, 6), 5) for end in (ENDS["relu"], End("y = Identity(h)", 0.0)))
    x, mask = image((6, 6), 0), np.ones((6, 6), dtype=bool)
    mask[:2] = False
    for options in ({}, {"mask": mask}):
        one, two = (selkit.load(m, BackMeanDiff(0.0), var=1.0).inference(x, **options) for m in (flat, plain))
        np.testing.assert_allclose(one.truncated_intervals, two.truncated_intervals, atol=1e-9)
        assert one.p_value == pytest.approx(two.p_value, abs=1e-9)
    one, two = (selkit.load(m, BackMeanDiff(0.0), var=1.0) for m in (flat, plain))
    for first, second in zip(one.inference_components(x), two.inference_components(x), strict=True):
        assert first.p_value == pytest.approx(second.p_value, abs=1e-9)
    randomized = [test.inference_randomized(x, noise_var=1.0, seed=0).p_value for test in (one, two)]
    assert randomized[0] == pytest.approx(randomized[1], abs=1e-9)


def p_values(model: onnx.ModelProto, rule: Any, count: int, **options: Any) -> NDArray[np.float64]:
    test, found = selkit.load(model, rule, var=1.0), []
    for seed in range(count):
        with contextlib.suppress(NoHypothesisError, InvalidInputError):
            found.append(test.inference(image((6, 6), seed), **options).p_value)
    return np.array(found)


@pytest.mark.parametrize("name", ["relu", "clip, high", "average pool", "scaled", "convolution"])
def test_uniform_under_the_null(name: str) -> None:
    end = ENDS[name]
    p = p_values(network(end, (6, 6), 2), hypothesis(end), 400)
    assert len(p) > 350
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_rounding_that_decides_is_not_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check fails where the flat map is followed, and what rounding says about it is believed."""

    def follow(program: Any, value: str, threshold: float, dtype: Any) -> levels.Level:
        return levels.Level(program, value, threshold)

    nine = ", ".join(["0.3333"] * 9)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1, 1, 6, 6] x) => (float[1, 1, 6, 6] y)
        <float[1, 1, 3, 3] w = {{{nine}}}, float[1] b = {{-0.5}}>
        {{ h = Conv<pads = [1, 1, 1, 1]>(x, w, b)  y = Relu(h) }}"""
    )
    assert stats.kstest(p_values(model, BackMeanDiff(0.0), 100), "uniform").pvalue > 0.01
    monkeypatch.setattr("selkit.inference.score_map.TIE", 0.0)
    monkeypatch.setattr("selkit.inference.score_map.undo", follow)
    assert stats.kstest(p_values(model, BackMeanDiff(0.0), 100), "uniform").pvalue < 1e-6


CLASSES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 1, 6, 6] x) => (float[N, 3, 6, 6] y, float[N, 3] logits)
<float[3, 1, 3, 3] w = {%s}, float[3] b = {-0.4, -0.2, -0.3}, float[3, 3] v = {%s}, float[3] c = {%s}>
{ h = Conv<pads = [1, 1, 1, 1]>(x, w, b)  y = Relu(h)
  m = GlobalAveragePool(h)  f = Flatten(m)  s = Gemm(f, v, c)  logits = Relu(s) }"""


def classes(seed: int, bias: str = "0.1, 0.0, -0.1") -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    parts = [", ".join(f"{v:.4f}" for v in rng.uniform(-1, 1, size)) for size in (27, 9)]
    return onnx.parser.parse_model(CLASSES % (*parts, bias))


def test_tied_classes_by_hand() -> None:
    """Both classes are 0 at two of four places; the class wins at the last one wherever it is above 0.5."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 1, 4] x) => (float[1, 2, 4] y)
        <float[2, 1, 1] w = {1.0, 2.0}, float[2] b = {0.0, -1.0}> { h = Conv(x, w, b)  y = Relu(h) }"""
    )
    x = np.array([[[0.2, 0.5, 0.3, 1.5]]])
    hypothesis = BackMeanDiff(region=ArgMax(1))
    result = selkit.load(model, hypothesis).inference(x, 1.0, inference_mode="exhaustive")
    np.testing.assert_array_equal(result.roi, [False, False, False, True])
    ends = result.image_at(result.truncated_intervals[:, 0])[:, 0, 0, 3]
    # Class 1 wins where 2 x - 1 > max(x, 0): the last place must be above 1, and others stay below.
    assert len(result.truncated_intervals) == 1
    assert ends[0] == pytest.approx(1.0, abs=1e-8)
    assert result.truncated_intervals[0, 1] == pytest.approx((result.stat / result.scale + 10) * result.scale)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_tied_classes_equal_a_grid(index: int) -> None:
    tested = 0
    for seed in range(40):
        model, x = classes(seed), image((6, 6), seed)

        def wins(outputs: list[NDArray[Any]]) -> NDArray[np.bool_]:
            score = outputs[0]
            return np.asarray(score[:, index] > np.delete(score, index, 1).max(1))

        truth = wins(run(model, x))[0]
        if not truth.any():
            continue
        test = selkit.load(model, NeighborMeanDiff(region=ArgMax(index)), var=1.0)
        result = test.inference(x, inference_mode="exhaustive")
        np.testing.assert_array_equal(result.roi, truth)
        check_grid(result, model, lambda outputs, truth=truth: (wins(outputs) == truth).all((1, 2)))
        tested += 1
    assert tested > 20


def test_tied_classes_are_uniform() -> None:
    p = p_values(classes(1), BackMeanDiff(region=ArgMax(1)), 150)
    assert len(p) > 140  # images with ties are tested like others
    assert stats.kstest(p, "uniform").pvalue > 0.01


MAPS = {
    "shifted": ("y = Add(r, tenth)", 0.1),
    "sigmoid": ("o = Add(r, tenth)  y = Sigmoid(o)", 0.5249791741371155),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("plain", [True, False])
def test_the_map_of_the_predicted_class_is_flat_at_its_threshold(name: str, plain: bool) -> None:
    end, threshold = MAPS[name]
    weights = ", ".join(f"{v:.4f}" for v in np.random.default_rng(7).uniform(-1, 1, 27))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 1, 6, 6] x) => (float[N, 3, 6, 6] y, float[N, 3] logits)
        <float[3, 1, 3, 3] w = {{{weights}}}, float[3] b = {{-0.4, -0.2, -0.3}}, float tenth = {{0.1}}>
        {{ h = Conv<pads = [1, 1, 1, 1]>(x, w, b)  r = Relu(h)  {end}
           m = GlobalAveragePool(r)  logits = Flatten(m) }}"""
    )
    rule = PredictedClass("logits", threshold if plain else Threshold(threshold))
    for seed in range(4):
        x = image((6, 6), seed)
        scores, logits = run(model, x)
        first = int(logits[0].argmax())
        truth = scores[0, first] > np.float32(threshold)

        def same(outputs: list[NDArray[Any]], first: int = first, truth: Any = truth) -> NDArray[np.bool_]:
            regions = outputs[0][:, first] > np.float32(threshold)
            return np.asarray((outputs[1].argmax(1) == first) & (regions == truth).all((1, 2)))

        result = selkit.load(model, BackMeanDiff(region=rule), var=1.0).inference(
            x, inference_mode="exhaustive"
        )
        np.testing.assert_array_equal(result.roi, truth)
        check_grid(result, model, same)


@pytest.mark.parametrize("bias", ["0.1, 0.0, -0.1", "-0.4, -0.4, -0.4"])
def test_a_tied_prediction_is_the_first_class(bias: str) -> None:
    """With low biases all logits are often 0: then argmax predicts class 0."""
    tied = 0
    for seed in range(25):
        model, x = classes(seed, bias), image((6, 6), seed)
        logits = run(model, x)[1][0]
        first = int(logits.argmax())
        tied += int((logits == logits.max()).sum() > 1)
        truth = run(model, x)[0][0, first] > 0
        if truth.all() or not truth.any():
            continue
        test = selkit.load(model, BackMeanDiff(region=PredictedClass("logits", 0.0)), var=1.0)
        result = test.inference(x, inference_mode="exhaustive")
        np.testing.assert_array_equal(result.roi, truth)

        def same(outputs: list[NDArray[Any]], first: int = first, truth: Any = truth) -> NDArray[np.bool_]:
            regions = (outputs[0][:, first] > 0) == truth
            return np.asarray(regions.all((1, 2)) & (outputs[1].argmax(1) == first))

        check_grid(result, model, same)
    assert tied > (0 if bias.startswith("0") else 10)


def test_tied_ranks() -> None:
    """A rank is refused where it is tied, with the ranks that are not, and the grid agrees elsewhere."""
    model = network(ENDS["relu"], (6, 6), 4)
    tested = 0
    for seed in range(30):
        x = image((6, 6), seed)
        scores = run(model, x)[0].reshape(-1)
        positive = int((scores > 0).sum())
        if not 5 <= positive <= 30:
            continue
        with pytest.raises(InvalidInputError, match=rf"several scores are equal there; choose k={positive}$"):
            selkit.load(model, BackMeanDiff(region=TopK(positive + 2)), var=1.0).inference(x)
        k = positive - 2
        test = selkit.load(model, BackMeanDiff(region=TopK(k)), var=1.0)
        result = test.inference(x, inference_mode="exhaustive")
        roi = result.roi.reshape(-1)

        def same(outputs: list[NDArray[Any]], roi: Any = roi) -> NDArray[np.bool_]:
            score = outputs[0].reshape(len(outputs[0]), -1)
            return np.asarray(score[:, roi].min(1) > score[:, ~roi].max(1))

        check_grid(result, model, same)
        tested += 1
    assert tested > 10


def test_components_of_a_flat_map_equal_a_grid() -> None:
    end = ENDS["average pool"]
    model, x = network(end, (6, 6), 8), image((6, 6), 12)
    results = selkit.load(model, hypothesis(end), var=1.0).inference_components(
        x, inference_mode="exhaustive"
    )
    truth = end.select(run(model, x)[0])[0]
    assert len(results) == ndimage.label(truth[0])[1]
    for result in results:
        check_grid(
            result,
            model,
            lambda outputs, truth=truth: (end.select(outputs[0]) == truth).reshape(400, -1).all(1),
        )


@pytest.mark.parametrize("seed", range(12))
def test_masks_and_scaling_together_equal_a_grid(seed: int) -> None:
    end = End("y = LeakyRelu<alpha = 0.1>(h)", 0.4, use_norm=True)
    model, x = network(end, (6, 6), seed), image((6, 6), seed)
    mask = np.random.default_rng(seed).random((6, 6)) < 0.6
    truth = end.select(run(model, x)[0])[0, 0]
    if not (truth & mask).any() or (truth | ~mask).all():
        pytest.skip("there is no region inside this mask")
    test = selkit.load(model, hypothesis(end), var=1.0)
    result = test.inference(x, mask=mask, inference_mode="exhaustive")
    np.testing.assert_array_equal(result.roi, truth & mask)
    check_grid(result, model, lambda outputs: ((end.select(outputs[0])[:, 0] == truth) | ~mask).all((1, 2)))


def test_advice_applies_to_the_rule() -> None:
    """What rounding alone decides is refused, and no threshold is named where there is none."""
    assert "threshold" not in ArgMax(1).advice
    assert "another k" in TopK(1).advice
    with pytest.raises(InvalidInputError, match="all scores are equal"):
        TopK(2).select(np.zeros((1, 1, 4)))
    with pytest.raises(InvalidInputError, match="choose k=1 or k=3"):
        TopK(2).select(np.array([[[3.0, 2.0, 2.0, 1.0]]]))


def test_advice_on_an_empty_region_is_that_of_the_rule() -> None:
    model, x = classes(1), image((6, 6), 0)
    mask = np.zeros((6, 6), dtype=bool)
    mask[0, 0] = True
    plain = network(ENDS["relu"], (6, 6), 5)
    for network_, rule, options, match in (
        (plain, BackMeanDiff(1e6), {}, "lower the threshold$"),
        (model, BackMeanDiff(region=PredictedClass("logits", 1e6)), {}, "lower its threshold"),
        (plain, BackMeanDiff(region=TopK(1)), {"mask": mask}, "larger k"),
        (plain, BackMeanDiff(region=Threshold(0.0).remove_small(99)), {}, "clean-up take less"),
    ):
        with pytest.raises(NoHypothesisError, match=match) as caught:
            selkit.load(network_, rule, var=1.0).inference(x, **options)
        assert "threshold=None" not in str(caught.value)
