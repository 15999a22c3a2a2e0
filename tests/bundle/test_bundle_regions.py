"""Regions in the file beside those that a test in Python finds, and beside NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from bundle_models import opened
from onnx import TensorProto, helper, numpy_helper
from scipy.ndimage import convolve, gaussian_filter

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError
from selkit.inference import (
    Abs,
    ArgMax,
    AverageFilter,
    BackMeanDiff,
    GaussianFilter,
    InputDiff,
    L1Norm,
    Neg,
    NeighborMeanDiff,
    ReferenceMeanDiff,
    TopK,
)
from selkit.inference.postprocess import PostProcess
from selkit.inference.regions import Region


def model(batch="N", opset=17, channels=1):
    """Outputs 0: three classes, 1: a reconstruction, 2: probabilities, 3: a map without a channel axis."""
    random = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(random.normal(size=(3, channels, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(random.normal(size=(channels, channels, 3, 3)).astype(np.float32), "v"),
        numpy_helper.from_array(np.asarray([1], dtype=np.int64), "one"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["classes"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "v"], ["r"], pads=[1] * 4),
        helper.make_node("Relu", ["r"], ["rebuilt"]),
        helper.make_node("Sigmoid", ["r"], ["probability"]),
    ]
    shapes = {
        "classes": (batch, 3, 8, 8),
        "rebuilt": (batch, channels, 8, 8),
        "probability": (batch, channels, 8, 8),
    }
    if channels == 1:
        nodes.append(helper.make_node("Squeeze", ["r", "one"], ["flat"]))
        shapes["flat"] = (batch, 8, 8)
    graph = helper.make_graph(
        nodes,
        "maps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, channels, 8, 8))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@dataclass(frozen=True)
class Scaled(PostProcess):
    """Lowered by half the largest of the map, and flattened on the way: what breaks if batches are not "
    "looked "
    "at."""

    def build(self, g, score, x):
        import torch

        shape = g.shape(score)
        flat = g.add("Reshape", score, torch.tensor([1, -1]))
        top = g.add("Mul", g.add("ReduceMax", flat, keepdims=1), g.constant(0.5))
        return g.add("Reshape", g.add("Sub", flat, top), torch.tensor(shape))


IMAGES = np.random.default_rng(2).normal(size=(7, 1, 8, 8)).astype(np.float32)
HYPOTHESES = [
    BackMeanDiff(threshold=0.5, o_idx=1),
    BackMeanDiff(threshold=0.7, o_idx=2),
    BackMeanDiff(threshold=0.7, o_idx=3),
    BackMeanDiff(threshold=0.6, o_idx=1, post_process=[InputDiff(), Abs(), GaussianFilter(3)]),
    BackMeanDiff(threshold=0.6, o_idx=1, post_process=[InputDiff(), Abs(), AverageFilter(5)], use_norm=True),
    BackMeanDiff(threshold=-0.4, o_idx=1, post_process=Scaled()),
    BackMeanDiff(threshold=-0.3, o_idx=1, post_process=Neg()),
    BackMeanDiff(threshold=0.3, o_idx=1, post_process=L1Norm()),
    BackMeanDiff(region=ArgMax(1), o_idx=0),
    BackMeanDiff(region=TopK(5), o_idx=2),
    NeighborMeanDiff(threshold=0.5, o_idx=1),
    ReferenceMeanDiff(threshold=0.5, o_idx=1),
]


@pytest.mark.parametrize("hypothesis", HYPOTHESES, ids=lambda h: repr(h)[:90])
@pytest.mark.parametrize("batch", ["N", 1])
def test_regions_are_those_of_the_test(hypothesis, batch, tmp_path):
    test = selkit.load(model(batch), hypothesis)
    bundle = selkit.export_bundle(model(batch), roi=test, path=tmp_path / "b.onnx")
    found = bundle.run(IMAGES)
    for place, image in enumerate(IMAGES):
        given = (image[None], image[None]) if isinstance(hypothesis, ReferenceMeanDiff) else image[None]
        selection = test.select(given)
        assert found["roi"][place : place + 1].shape == selection.roi.shape
        assert (found["roi"][place : place + 1] == selection.roi).all()
        np.testing.assert_allclose(found["score_map"][place], selection.score[0], rtol=1e-4, atol=1e-5)
    assert 0 < found["roi"].mean() < 1
    assert bundle.verify(IMAGES).ok
    assert bundle.outputs[-2:] == ["score_map", "roi"]


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_regions_in_other_opsets(opset, tmp_path):
    for hypothesis in (HYPOTHESES[4], HYPOTHESES[7], HYPOTHESES[8]):
        bundle = selkit.export_bundle(model(opset=opset), roi=hypothesis, path=tmp_path / "b.onnx")
        assert bundle.verify(IMAGES).ok


def test_regions_equal_numpy(tmp_path):
    images = np.random.default_rng(3).normal(size=(5, 3, 8, 8)).astype(np.float32)
    direct = opened(model(channels=3)).run(["rebuilt"], {"x": images})[0]
    error = np.abs(direct - images).sum(1, keepdims=True).repeat(3, axis=1)
    steps = [InputDiff(), L1Norm(), GaussianFilter(5, 1.5)]
    hypothesis = BackMeanDiff(threshold=0.5, o_idx=1, post_process=steps, use_norm=True)
    bundle = selkit.export_bundle(model(channels=3), roi=hypothesis, path=tmp_path / "b.onnx")
    # scipy cuts the kernel where truncate says: two pixels to each side
    smooth = gaussian_filter(error, (0, 0, 1.5, 1.5), mode="constant", truncate=2 / 1.5)
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(bundle.run(images)["score_map"], (smooth - low) / (high - low), atol=1e-5)
    assert (bundle.run(images)["roi"] == ((smooth - low) / (high - low) > 0.5)).all()
    mean = BackMeanDiff(threshold=1.0, o_idx=1, post_process=AverageFilter(3))
    found = selkit.export_bundle(model(channels=3), roi=mean, path=tmp_path / "b.onnx").run(images)
    expected = convolve(direct, np.full((1, 1, 3, 3), 1 / 9), mode="constant")
    np.testing.assert_allclose(found["score_map"], expected, atol=1e-5)
    assert (found["roi"] == (expected > 1.0)).all()


def test_nothing_and_constant_maps_select_nothing(tmp_path):
    images = np.stack([IMAGES[0], np.zeros_like(IMAGES[0])])
    none = BackMeanDiff(threshold=1e6, o_idx=1)
    bundle = selkit.export_bundle(model(), roi=none, path=tmp_path / "b.onnx")
    assert not bundle.run(images)["roi"].any()
    assert bundle.verify(images).ok
    scaled = BackMeanDiff(threshold=0.2, o_idx=1, use_norm=True)
    found = selkit.export_bundle(model(), roi=scaled, path=tmp_path / "b.onnx").run(images)
    assert found["roi"][0].any()
    assert not found["roi"][1].any()


def test_the_score_and_the_region_go_into_one_file(network, fit_on, calibrate_on, judge, tmp_path):
    score = selkit.scores.MarginScore().fit(Y=calibrate_on.logits).calibrate(coverage=0.9)
    rich = type(network)()
    rich.CopyFrom(network)
    rich.graph.node.append(helper.make_node("ReduceMean", ["map"], ["heat"], axes=[1], keepdims=1))
    rich.graph.output.append(helper.make_tensor_value_info("heat", TensorProto.FLOAT, ("N", 1, 8, 8)))
    hypothesis = BackMeanDiff(threshold=0.5, o_idx=1)
    bundle = selkit.export_bundle(rich, score=score, roi=hypothesis, path=tmp_path / "b.onnx")
    assert bundle.outputs == ["logits", "heat", "score", "selected", "score_map", "roi"]
    verification = bundle.verify(judge.images[:7])
    assert verification.ok
    assert {one.name for one in verification.comparisons} >= {*bundle.outputs}


class Brightest(Region):
    """The pixels within one of the largest."""

    def select(self, score):
        return score > score.max() - 1.0

    def condition(self, g, score, selected):
        level = g.add("Sub", g.add("ReduceMax", score, keepdims=1), g.constant(1.0))
        return g.add("Mul", g.add("Sub", score, level), g.constant(np.where(selected, 1.0, -1.0)))


def test_rules_of_your_own_need_nodes(tmp_path):
    rule = Brightest()
    with pytest.raises(NotAvailableError, match=r"rule Brightest, whose select\(\) is Python code"):
        selkit.export_bundle(model(), roi=BackMeanDiff(region=rule, o_idx=1), path=tmp_path / "b.onnx")

    def to_onnx(g, score):
        top = g.reduce("ReduceMax", score, [1, 2, 3], keepdims=True)
        return g.op("Greater", score, g.op("Sub", top, np.float32([1.0])))

    Brightest.to_onnx = staticmethod(to_onnx)
    try:
        bundle = selkit.export_bundle(
            model(), roi=BackMeanDiff(region=rule, o_idx=1), path=tmp_path / "b.onnx"
        )
    finally:
        del Brightest.to_onnx
    assert bundle.verify(IMAGES).ok


def test_what_cannot_be_written_is_refused(tmp_path):
    path = tmp_path / "b.onnx"

    class Peek(PostProcess):
        def build(self, g, score, x):
            return g.program.outputs[0]

    class Total(PostProcess):
        def build(self, g, score, x):
            return g.add("Sub", score, g.add("ReduceMax", score, keepdims=0))

    class Across(PostProcess):
        def build(self, g, score, x):
            import torch

            return g.add("Reshape", score, torch.tensor([-1]))

    for step, match in (
        (Peek, "uses g.program"),
        (Total, "keepdims=0 over the first axis"),
        (Across, "does not keep"),
    ):
        with pytest.raises(NotAvailableError, match=match):
            selkit.export_bundle(
                model(), roi=BackMeanDiff(threshold=0.1, o_idx=1, post_process=step()), path=path
            )
    for hypothesis, match in (
        (BackMeanDiff(threshold=0.1, o_idx=0), "which matches neither"),
        (BackMeanDiff(threshold=0.1, o_idx=9), "o_idx=9; the model has"),
        (BackMeanDiff(region=ArgMax(7), o_idx=0), "ArgMax.index=7."),
        (BackMeanDiff(region=TopK(64), o_idx=1), "has 64 pixels"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            selkit.export_bundle(model(), roi=hypothesis, path=path)
    with pytest.raises(InvalidTypeError, match=r"roi is a float; give what selkit.load returned"):
        selkit.export_bundle(model(), roi=0.5, path=path)
    other = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,8,8] z) => (float[1,1,8,8] y) { y = Relu(z) }'
    )
    with pytest.raises(InvalidInputError, match="load the test from the same model"):
        selkit.export_bundle(model(), roi=selkit.load(other, BackMeanDiff(threshold=0.1)), path=path)
    steps = BackMeanDiff(threshold=0.1, post_process=AverageFilter(3))
    with pytest.raises(NotAvailableError, match="needs fixed sizes, except that of the batch"):
        selkit.export_bundle(free(1, 1), roi=steps, path=path)
    with pytest.raises(InvalidInputError, match="which matches neither"):
        selkit.export_bundle(free(1, 3), roi=BackMeanDiff(threshold=0.1), path=path)
    assert not path.exists()


def free(channels, maps):
    """A model of images of any size."""
    ones = ", ".join(["1"] * maps * channels)
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, {channels}, H, W] x) => (float[N, {maps}, H, W] y)
        <float[{maps}, {channels}, 1, 1] w = {{{ones}}}> {{ y = Conv(x, w) }}""")


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size(channels, tmp_path):
    for hypothesis in (
        BackMeanDiff(threshold=0.4, post_process=Abs()),
        BackMeanDiff(threshold=0.6, use_norm=True),
    ):
        bundle = selkit.export_bundle(free(channels, 1), roi=hypothesis, path=tmp_path / "b.onnx")
        for side in (5, 9):
            x = np.random.default_rng(side).normal(size=(3, channels, side, side)).astype(np.float32)
            assert bundle.verify(x).ok
            assert bundle.run(x)["roi"].any()
