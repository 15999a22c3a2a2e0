"""Recurrent layers, attention and grids as torch exports them, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from test_exporters import export
from torch import Tensor, nn

from selkit.errors import UnsupportedModelError
from selkit.graph import Graph


class Recurrent(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, layer: nn.Module, *, wide: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(wide, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class Scaled(nn.Module):
    """Attention as one call, with its causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (made(x).unflatten(-1, (2, 4)).transpose(1, 2) for made in self.maps)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Warped(nn.Module):
    """An image read along a fixed curve."""

    def __init__(self, mode: str, padding: str) -> None:
        super().__init__()
        self.mode, self.padding = mode, padding
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        angle = torch.linspace(0, 3, 12).reshape(1, 3, 4)
        self.register_buffer("grid", torch.stack([angle.cos(), angle.sin()], -1) * 1.1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.grid_sample(
            self.first(x), self.grid, mode=self.mode, padding_mode=self.padding, align_corners=False
        )


class Best(nn.Module):
    """The mean of the largest values; where they are is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).topk(5, dim=-1).values.mean(-1)


class Patches(nn.Module):
    """Patches as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2))


NETWORKS = {
    "lstm": (lambda: Recurrent(nn.LSTM(3, 4, bidirectional=True, batch_first=True), wide=8), (5, 3)),
    "lstm-layers": (
        lambda: Recurrent(nn.LSTM(3, 4, num_layers=2, bias=False, batch_first=True), wide=4),
        (5, 3),
    ),
    "gru": (lambda: Recurrent(nn.GRU(3, 4, bidirectional=True, batch_first=True), wide=8), (5, 3)),
    "rnn": (lambda: Recurrent(nn.RNN(3, 4, nonlinearity="relu", batch_first=True), wide=4), (5, 3)),
    "encoder": (Patches, (8, 5)),
    "attention": (Scaled, (5, 8)),
    "groups": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU()), (1, 8, 8)),
    "grid-linear": (lambda: Warped("bilinear", "reflection"), (1, 6, 6)),
    "grid-nearest": (lambda: Warped("nearest", "border"), (1, 6, 6)),
    "best": (Best, (4, 9)),
}
NEW = ("gru", "encoder", "groups", "grid-linear")
WAYS = [  # an export by dynamo takes seconds: one of each kind
    *((name, False, 20) for name in NETWORKS),
    *((name, True, 23) for name in NEW),
]


@pytest.mark.parametrize(("name", "dynamo", "opset"), WAYS)
def test_exported_layers_equal_onnxruntime(name: str, dynamo: bool, opset: int, onnxruntime_of):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    content = export(make().eval(), shape, dynamo=dynamo, dynamic=False, opset=opset)
    graph = Graph.load(content)
    (spec,) = graph.inputs
    points = torch.randn(3, 1, *shape)
    expected = onnxruntime_of(content, {spec.name: points.numpy()})
    for decompose in (False, True):
        program = graph.compile({spec.name: (1, *shape)}, decompose=decompose)
        actual = program.run({spec.name: points.double()})
        for output in graph.outputs:
            np.testing.assert_allclose(actual[output.name], expected[output.name], rtol=1e-5, atol=2e-6)


def test_models_that_onnxruntime_optimized_equal_it(tmp_path, onnxruntime_of):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 4, stride=4), nn.Flatten(2), Patches()
    )
    content = export(network.eval(), (1, 16, 16), dynamo=False, dynamic=False, opset=17)
    points = torch.randn(3, 1, 1, 16, 16)
    found = set()
    for level in ("BASIC", "EXTENDED"):
        path = tmp_path / f"{level}.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        graph = Graph.load(path)
        found |= {node.op_type for node in graph.nodes}
        (spec,) = graph.inputs
        program = graph.compile({spec.name: (1, 1, 16, 16)})
        (name,) = program.outputs
        expected = onnxruntime_of(content, {spec.name: points.numpy()})[name]
        np.testing.assert_allclose(
            program.run({spec.name: points.double()})[name], expected, rtol=1e-4, atol=1e-5
        )
    assert {"FusedConv", "SkipLayerNormalization"} & found


def test_models_for_one_kind_of_processor_are_refused_with_what_to_do(tmp_path):
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
    content = export(network.eval(), (16, 16, 16), dynamo=False, dynamic=False, opset=17)
    path = tmp_path / "all.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run() -> None:
        graph = Graph.load(path)
        graph.compile({graph.inputs[0].name: (1, 16, 16, 16)})

    with pytest.raises(UnsupportedModelError, match="without layout optimizations"):
        run()
