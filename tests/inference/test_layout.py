"""Axes: networks with channels first and their twins with channels last give the same tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from roi_networks import Autoencoder, export, run, sharpen
from scipy import ndimage
from torch import nn

import selkit
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.inference import (
    Abs,
    ArgMax,
    AverageFilter,
    BackMeanDiff,
    GaussianFilter,
    Hypothesis,
    InputDiff,
    L1Norm,
    NeighborMeanDiff,
    ReferenceMeanDiff,
    TopK,
    plot_region,
)
from selkit.inference.layout import axes_by_size, check_layout

SIDES = {1: (24,), 2: (8, 6), 3: (4, 4, 6)}


def last(array: NDArray[Any]) -> NDArray[Any]:
    """Channels last."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def twin(model: onnx.ModelProto, ends: str = "both") -> onnx.ModelProto:
    """The same network, with its channels last at both ends, at the input or at the output."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    for value, at_input in ((graph.input[0], True), (graph.output[0], False)):
        if ends not in ("both", "input" if at_input else "output"):
            continue
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        rank, inner = len(sizes), value.name + "_first"
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [inner if name == value.name else name for name in names]
        if at_input:
            perm = [0, rank - 1, *range(1, rank - 1)]
            graph.node.insert(0, helper.make_node("Transpose", [value.name], [inner], perm=perm))
        else:
            graph.node.append(
                helper.make_node("Transpose", [inner], [value.name], perm=[0, *range(2, rank), 1])
            )
        moved = [sizes[0], *sizes[2:], sizes[1]]
        value.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, moved))
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return model


HYPOTHESES: dict[str, Callable[[], Hypothesis]] = {
    "back": lambda: BackMeanDiff(0.8, post_process=[InputDiff(), Abs()]),
    "neighbor": lambda: NeighborMeanDiff(0.8, post_process=[InputDiff(), Abs()]),
    "average": lambda: NeighborMeanDiff(0.4, post_process=[InputDiff(), Abs(), AverageFilter(3)]),
    "gaussian": lambda: BackMeanDiff(0.6, post_process=[InputDiff(), Abs(), GaussianFilter(5, 1.2)]),
    "l1": lambda: NeighborMeanDiff(1.0, post_process=[InputDiff(), L1Norm()]),
    "norm": lambda: BackMeanDiff(0.5, post_process=InputDiff(), use_norm=True),
    "top": lambda: NeighborMeanDiff(region=TopK(9), post_process=[InputDiff(), Abs()]),
    "reference": lambda: ReferenceMeanDiff(0.5, post_process=[InputDiff(), Abs(), AverageFilter(3)]),
}


@pytest.fixture(scope="module")
def networks() -> dict[tuple[int, int], tuple[onnx.ModelProto, onnx.ModelProto]]:
    found = {}
    for rank, channels in ((1, 2), (2, 1), (2, 3), (3, 1)):
        model = export(sharpen(Autoencoder(rank, channels, 2), 4, 1.0), (1, channels, *SIDES[rank]))
        found[rank, channels] = model, twin(model)
    return found


@pytest.mark.parametrize("name", sorted(HYPOTHESES))
@pytest.mark.parametrize(("rank", "channels"), [(1, 2), (2, 1), (2, 3), (3, 1)])
def test_twins_give_the_same_test(networks: Any, name: str, rank: int, channels: int) -> None:
    model, other = networks[rank, channels]
    x = np.random.default_rng(6).normal(size=(2, channels, *SIDES[rank]))
    pair = name == "reference"
    first = selkit.load(model, HYPOTHESES[name](), var=0.5).inference(
        (x[:1], x[1:]) if pair else x[:1], inference_mode="decision"
    )
    test = selkit.load(other, HYPOTHESES[name](), var=0.5)
    second = test.inference((last(x[:1]), last(x[1:])) if pair else last(x[:1]), inference_mode="decision")
    assert second.p_value == pytest.approx(first.p_value, abs=1e-9)
    assert second.stat == pytest.approx(first.stat)
    for one, two in (
        (first.roi, second.roi),
        (first.non_roi, second.non_roi),
        (first.score_map, second.score_map),
    ):
        if one is not None:
            moved = np.moveaxis(one, 0, -1) if one.ndim > rank else one
            np.testing.assert_allclose(two, moved, atol=1e-12)


@pytest.mark.parametrize("ends", ["input", "output"])
def test_the_map_may_have_other_axes_first_than_the_image(networks: Any, ends: str) -> None:
    model, _ = networks[2, 3]
    x = np.random.default_rng(6).normal(size=(1, 3, 8, 6))
    mask = np.ones((8, 6))
    mask[:, 0] = 0
    image = last(x) if ends == "input" else x
    for name in ("back", "average"):
        first = selkit.load(model, HYPOTHESES[name](), var=0.5).inference(x, mask=mask)
        second = selkit.load(twin(model, ends), HYPOTHESES[name](), var=0.5).inference(image, mask=mask)
        assert second.p_value == pytest.approx(first.p_value, abs=1e-9)
    plain = BackMeanDiff(0.0)
    first = selkit.load(model, plain, var=0.5).inference(x, mask=mask)
    second = selkit.load(twin(model, ends), plain, var=0.5).inference(image, mask=mask)
    assert second.p_value == pytest.approx(first.p_value, abs=1e-9)
    np.testing.assert_array_equal(
        second.roi if ends == "output" else np.moveaxis(second.roi, -1, 0), first.roi
    )


class Segmenter(nn.Module):
    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.net = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_classes_and_components_in_both_layouts(rank: int) -> None:
    model = export(sharpen(Segmenter(rank), 0), (1, 1, *SIDES[rank]))
    x = np.random.default_rng(1).normal(size=(1, 1, *SIDES[rank]))
    other = twin(model)
    winners = run(model, x).argmax(1)
    common = np.argsort(np.bincount(winners.reshape(-1), minlength=3))
    for rule in (ArgMax(int(common[2])), ArgMax(int(common[1]))):
        hypothesis = NeighborMeanDiff(region=rule)
        first = selkit.load(model, hypothesis, var=1.0).inference(x)
        second = selkit.load(other, hypothesis, var=1.0).inference(last(x))
        assert second.p_value == pytest.approx(first.p_value, abs=1e-9)
        np.testing.assert_array_equal(second.roi, first.roi)
        np.testing.assert_array_equal(np.squeeze(winners == rule.index), first.roi)
        np.testing.assert_allclose(np.moveaxis(second.score_map, -1, 0), first.score_map, atol=1e-12)


def test_components_are_numbered_alike(networks: Any) -> None:
    model, other = networks[2, 3]
    x = np.random.default_rng(9).normal(size=(1, 3, 8, 6))
    hypothesis = NeighborMeanDiff(1.5, post_process=[InputDiff(), Abs()])
    first = selkit.load(model, hypothesis, var=1.0).inference_components(x, inference_mode="decision")
    second = selkit.load(other, hypothesis, var=1.0).inference_components(last(x), inference_mode="decision")
    assert len(first) == len(second) > 2
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(np.moveaxis(two.roi, -1, 0), one.roi)
        assert two.p_value == pytest.approx(one.p_value, abs=1e-9)


def test_the_first_report_of_a_wrong_neighbourhood() -> None:
    pool = """<ir_version: 8, opset_import: ["" : 13]>
        g (float[1, 1, 8, 8] x) => (float[1, 1, 8, 8] y)
        { y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x) }"""
    model = onnx.parser.parse_model(pool)
    x = np.random.default_rng(2).normal(size=(1, 1, 8, 8))
    x[..., 2:6, 2:6] += 2.5
    for steps in ([], [GaussianFilter(3)], [AverageFilter(3)]):
        hypothesis = NeighborMeanDiff(0.8, post_process=steps)
        first = selkit.load(model, hypothesis, var=1.0).inference(x)
        second = selkit.load(twin(model), hypothesis, var=1.0).inference(last(x))
        assert second.p_value == pytest.approx(first.p_value, abs=1e-9)
        ring = ndimage.binary_dilation(second.roi, np.ones((3, 3))) & ~second.roi
        np.testing.assert_array_equal(second.non_roi, ring)


def elementwise(*shape: int) -> onnx.ModelProto:
    """A network that says nothing about its axes."""
    sizes = ", ".join(map(str, shape))
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{sizes}] x) => (float[{sizes}] y) {{ h = Relu(x) y = Sub(x, h) }}"""
    )


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 1, 8, 6), "NCHW"),
        ((1, 8, 6, 1), "NHWC"),
        ((1, 3, 32, 32), "NCHW"),
        ((1, 32, 32, 3), "NHWC"),
        ((1, 3, 4, 4), "NCHW"),
        ((1, 4, 4, 3), "NHWC"),
        ((1, 3, None, None), "NCHW"),
        ((None, None, None, 3), "NHWC"),
        ((1, 1, 24), "NCL"),
        ((1, 24, 1), "NLC"),
        ((1, 2, 24), "NCL"),
        ((1, 24, 2), "NLC"),
        ((1, 1, 4, 4, 6), "NCDHW"),
        ((1, 4, 4, 6, 1), "NDHWC"),
        ((1, 36), "NL"),
        ((1, 8, 8, 8), None),
        ((1, 6, 8, 8), None),
        ((1, 8, 1, 1), None),
        ((1, 3, 100, 1), None),
        ((1, 3, 3, 3), None),
        ((1, 8, 8), None),
        ((1, 12, 1000), None),
        ((1, None, None, None), None),
    ],
)
def test_what_sizes_tell(shape: tuple[int | None, ...], layout: str | None) -> None:
    found = axes_by_size(shape)
    assert (None if found is None else str(found)) == layout


def test_what_cannot_be_told_is_refused_only_where_it_matters() -> None:
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 6))
    model = elementwise(1, 6, 6, 6)
    assert 0 < selkit.load(model, BackMeanDiff(-0.1), var=1.0).inference(x).p_value < 1
    with pytest.raises(InvalidInputError, match=r"NeighborMeanDiff.*layout='NCHW' or layout='NHWC'"):
        selkit.load(model, NeighborMeanDiff(-0.1), var=1.0).inference(x)
    with pytest.raises(InvalidInputError, match=r"AverageFilter.*layout="):
        selkit.load(model, BackMeanDiff(-0.1, post_process=AverageFilter(3)), var=1.0).inference(x)
    with pytest.raises(InvalidInputError, match=r"ArgMax.*layout="):
        selkit.load(model, BackMeanDiff(region=ArgMax(1)), var=1.0).inference(x)
    with pytest.raises(InvalidInputError, match=r"shape \(6, 6\) lies.*layout="):
        selkit.load(model, BackMeanDiff(-0.1), var=1.0).inference(x, mask=np.ones((6, 6)))
    hypothesis = NeighborMeanDiff(-0.9)
    first = selkit.load(model, hypothesis, var=1.0, layout="NCHW").inference(x)
    second = selkit.load(model, hypothesis, var=1.0, layout="NHWC").inference(last(x))
    assert second.p_value == pytest.approx(first.p_value, abs=1e-9)
    own = selkit.load(model, replace(hypothesis, layout="channels_last"), var=1.0).inference(last(x))
    assert own.p_value == second.p_value


def test_convolutions_tell_what_sizes_do_not() -> None:
    model = export(sharpen(Autoencoder(2, 6, 2), 4, 1.0), (1, 6, 6, 6))
    x = np.random.default_rng(3).normal(size=(1, 6, 6, 6))
    for name in ("neighbor", "average"):
        first = selkit.load(model, HYPOTHESES[name](), var=1.0).inference(x, inference_mode="decision")
        second = selkit.load(twin(model), HYPOTHESES[name](), var=1.0).inference(
            last(x), inference_mode="decision"
        )
        assert second.p_value == pytest.approx(first.p_value, abs=1e-9)


def test_an_image_without_channels() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[8, 8] x) => (float[8, 8] y) <int64[2] axes = {0, 1}>
        { u = Unsqueeze(x, axes)
          h = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(u)
          y = Squeeze(h, axes) }"""
    )
    x = np.random.default_rng(2).normal(size=(8, 8))
    result = selkit.load(model, NeighborMeanDiff(0.3), var=1.0).inference(x)
    ring = ndimage.binary_dilation(result.roi, np.ones((3, 3))) & ~result.roi
    np.testing.assert_array_equal(result.non_roi, ring)
    same = selkit.load(model, NeighborMeanDiff(0.3), var=1.0, layout="HW").inference(x)
    assert same.p_value == result.p_value


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 36), (2, 8, 8, 1)])
def test_a_batch_that_is_fixed_makes_no_single_region(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(2).normal(size=shape)
    with pytest.raises(InvalidInputError, match=rf"batch is fixed at {shape[0]}.*batch of 1"):
        selkit.load(elementwise(*shape), BackMeanDiff(-0.1), var=1.0).inference(x)


def test_layouts_that_make_no_sense() -> None:
    model = elementwise(1, 6, 6, 6)
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 6))
    for layout, match in [
        ("NXHW", "layout is 'NXHW'"),
        ("NCHH", "layout is 'NCHH'"),
        ("HWN", "layout is 'HWN'"),
        ("", "layout is ''"),
    ]:
        with pytest.raises(InvalidInputError, match=match):
            selkit.load(model, BackMeanDiff(0.0), layout=layout)
    with pytest.raises(InvalidTypeError, match="layout is 3"):
        selkit.load(model, BackMeanDiff(0.0), layout=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="names 3 axes"):
        selkit.load(model, NeighborMeanDiff(-0.1), var=1.0, layout="NCL").inference(x)
    assert check_layout(None) == (None, None)


def test_plots_follow() -> None:
    pytest.importorskip("matplotlib")
    model = export(sharpen(Autoencoder(2, 3, 2), 4, 1.0), (1, 3, 8, 6))
    x = np.random.default_rng(6).normal(size=(1, 3, 8, 6))
    result = selkit.load(twin(model), HYPOTHESES["back"](), var=0.5).inference(last(x))
    shown = plot_region(last(x), result, channel=2).images[0].get_array()
    np.testing.assert_allclose(shown, x[0, 2])
    l1 = selkit.load(twin(model), BackMeanDiff(1.5, post_process=[InputDiff(), L1Norm()]), var=0.5)
    shown = plot_region(last(x), l1.inference(last(x)), channel=1).images[0].get_array()
    np.testing.assert_allclose(shown, x[0, 1])
