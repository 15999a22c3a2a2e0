"""How many threads a test uses: one where operations are short, and afterwards as many as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from roi_networks import Cam, export, run, sharpen
from torch import nn

import selkit
from selkit.errors import NoHypothesisError
from selkit.graph import Graph
from selkit.inference import BackMeanDiff
from selkit.inference.threads import threads, useful


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two")
def test_two_threads_are_used_where_a_step_is_long():
    small = Graph.load(export(Cam(), (1, 1, 8, 8))).compile({"x": (1, 1, 8, 8)})
    wide = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    large = Graph.load(export(wide, (1, 1, 32, 32))).compile({"x": (1, 1, 32, 32)})
    assert useful(small, 256) == 1
    assert useful(large, 256) == 2
    torch.set_num_threads(1)
    assert useful(large, 256) == 1


@pytest.mark.usefixtures("two")
def test_what_was_set_is_set_again_even_after_an_error():
    model = export(sharpen(Cam(), 3), (1, 1, 8, 8))
    x = np.random.default_rng(0).normal(size=(1, 1, 8, 8))
    selkit.load(model, BackMeanDiff(float(np.median(run(model, x)))), var=1.0).inference(x)
    assert torch.get_num_threads() == 2
    with pytest.raises(NoHypothesisError):
        selkit.load(model, BackMeanDiff(1e6), var=1.0).inference(x)
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


class Mobile(nn.Module):
    """A heat map by depthwise blocks with shortcuts, at half the size and brought back."""

    def __init__(self, channels: int = 8, blocks: int = 3) -> None:
        super().__init__()
        wide = 3 * channels
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, wide, 1),
                nn.ReLU6(),
                nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
                nn.ReLU6(),
                nn.Conv2d(wide, channels, 1),
            )
            for _ in range(blocks)
        )
        self.back = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, groups=channels)
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.back(x))


@pytest.mark.parametrize("dynamo", [False, True])
def test_depthwise_networks_agree_with_onnxruntime(dynamo):
    model = export(sharpen(Mobile(), 5, 1.0), (1, 1, 32, 32), dynamo=dynamo)
    graph = Graph.load(model)
    (name,) = (spec.name for spec in graph.inputs)
    program = graph.compile({name: (1, 1, 32, 32)}, decompose=True)
    x = np.random.default_rng(2).normal(size=(24, 1, 32, 32)).astype(np.float32)
    stack = torch.from_numpy(x)[:, None]
    y = next(iter(program.run({name: stack.double()}).values())).numpy()[:, 0]
    truth = run(model, x)
    np.testing.assert_allclose(y, truth, atol=1e-5 * np.abs(truth).max())
