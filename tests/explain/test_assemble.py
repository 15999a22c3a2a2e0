"""The order in which an explanation's graph is written, which onnxruntime follows."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from selkit.explain import Explainer


def test_each_layers_part_is_done_before_the_next_layer(tmp_path):
    """What a rule needs of the sample is made from a layer's values while they are in cache."""
    torch.manual_seed(0)
    sizes = (5, 7, 11, 13, 3)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    path = tmp_path / "model.onnx"
    torch.onnx.export(nn.Sequential(*layers[:-1]).eval(), (torch.zeros(1, 5),), path, dynamo=False)
    Explainer(path, torch.randn(4, 5), cache=True).export(tmp_path / "explainer.onnx")

    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = ort.InferenceSession(tmp_path / "explainer.onnx", options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: np.ones((1, 5), np.float32)})
    profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [entry for entry in profile if entry["name"].endswith("_kernel_time")]
    nodes.sort(key=lambda entry: entry["ts"])
    order = [(node["args"]["op_name"], node["args"]["output_type_shape"]) for node in nodes]

    def first(op: str, size: int) -> int:
        return order.index((op, [{"float": [1, size]}]))

    for before, after in pairwise(sizes[1:]):
        assert first("Gemm", before) < first("Reciprocal", before) < first("Gemm", after)
