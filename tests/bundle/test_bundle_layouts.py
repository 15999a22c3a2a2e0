"""Regions of models with channels last and of small maps, in the file as in Python."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import selkit
from selkit.inference import (
    Abs,
    ArgMax,
    AverageFilter,
    BackMeanDiff,
    InputDiff,
    L1Norm,
    NeighborMeanDiff,
    TopK,
)

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 8, 6, 2] x) => (float[N, 8, 6, 2] y, float[N, 4, 3, 3] z)
    <float[2, 2, 1, 1] w = {1, -0.5, 0.3, 0.8}, float[3, 2, 1, 1] v = {1, -1, 0.5, 1, -1, 0.3}>
    { f = Transpose<perm = [0, 3, 1, 2]>(x)
      c = Conv(f, w)
      r = Relu(c)
      y = Transpose<perm = [0, 2, 3, 1]>(r)
      p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
      k = Conv(p, v)
      z = Transpose<perm = [0, 2, 3, 1]>(k) }"""

TESTS = {
    "average": ({}, NeighborMeanDiff(0.4, post_process=[InputDiff(), Abs(), AverageFilter(3)])),
    "l1": ({}, BackMeanDiff(1.2, post_process=[InputDiff(), L1Norm()])),
    "resize": ({"channel": 0, "resize": "linear"}, BackMeanDiff(0.3, o_idx=1)),
    "nearest": ({"resize": "nearest"}, BackMeanDiff(region=ArgMax(1), o_idx=1)),
    "inner": ({"score_map": "r", "channel": 1}, BackMeanDiff(region=TopK(5))),
}


@pytest.mark.parametrize("name", sorted(TESTS))
def test_channels_last(name, tmp_path):
    options, hypothesis = TESTS[name]
    model = onnx.parser.parse_model(MODEL)
    images = np.random.default_rng(2).normal(size=(5, 8, 6, 2)).astype(np.float32)
    test = selkit.load(model, hypothesis, **options)
    bundle = selkit.export_bundle(model, roi=test, path=tmp_path / "b.onnx")
    found = bundle.run(images)
    for place, image in enumerate(images):
        selection = test.select(image[None])
        assert found["roi"][place : place + 1].shape == selection.roi.shape
        np.testing.assert_array_equal(found["roi"][place : place + 1], selection.roi)
        np.testing.assert_allclose(found["score_map"][place], selection.score[0], rtol=1e-4, atol=1e-5)
    assert bundle.verify(images).ok
