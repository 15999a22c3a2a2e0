"""Maps that are smooth in the input: bounds against dense samples, refinement against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from roi_networks import check_truncation, export, run, sharpen
from torch import Tensor, nn

import selkit
from selkit.errors import InvalidInputError, NotAvailableError
from selkit.graph import Graph
from selkit.inference import BackMeanDiff
from selkit.inference.bounds import Bounder
from selkit.inference.line import Line


class Activated(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), act, nn.Conv2d(3, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Excited(nn.Module):
    """Squeeze and excitation: a product of two values that both depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 3)
        self.last = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(h * torch.sigmoid(self.gate(h.mean((2, 3))))[:, :, None, None])


class Classes(nn.Module):
    """The probability of one of three classes, per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.net(x), 1)[:, 1:2]


class Normalized(nn.Module):
    """Instance normalization after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


NETWORKS = {
    "sigmoid": lambda: Activated(nn.Sigmoid()),
    "tanh": lambda: Activated(nn.Tanh()),
    "gelu": lambda: Activated(nn.GELU()),
    "silu": lambda: Activated(nn.SiLU()),
    "hardswish": lambda: Activated(nn.Hardswish()),
    "elu": lambda: Activated(nn.ELU()),
    "excited": Excited,
    "softmax": Classes,
    "normalized": Normalized,
}


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 1, 8, 8))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_truncation_sets(name: str) -> None:
    model = export(sharpen(NETWORKS[name](), 0, 1.5), (1, 1, 8, 8))
    x = noise(0)
    threshold = float(np.quantile(run(model, x), 0.75))
    result = selkit.load(model, BackMeanDiff(threshold)).inference(x, var=1.0)
    assert result.exact == (name == "softmax")  # its smooth end is solved on each piece
    assert result.sup_p - result.inf_p < 1e-3
    assert check_truncation(result, model, lambda y, x: y, threshold) > 20


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("width", [0.01, 0.3, 3.0])
def test_bands_contain_every_value(name: str, width: float) -> None:
    program = Graph.load(export(sharpen(NETWORKS[name](), 1, 1.5), (1, 1, 8, 8))).compile(
        {"x": (1, 1, 8, 8)}, decompose=True
    )
    rng = np.random.default_rng(1)
    line = Line(*torch.as_tensor(rng.normal(size=(2, 1, 1, 8, 8))))
    starts = torch.linspace(-3, 3, 7, dtype=torch.float64)
    windows = torch.stack([starts, starts + width], 1)
    output = program.outputs[0]
    band = Bounder(program).bound(line, windows)[output]
    for place in torch.linspace(0, 1, 41, dtype=torch.float64):
        exact = program.run({"x": line.at(windows[:, 0] + width * place)})[output]
        chord = torch.lerp(band.left, band.right, place)
        assert bool((exact - chord <= band.upper + 1e-9).all())
        assert bool((exact - chord >= band.lower - 1e-9).all())
    if width == 0.01:
        assert float(band.radius.max()) < 0.05 * float(band.left.std())


def test_exact_modes_are_refused() -> None:
    model = export(sharpen(NETWORKS["gelu"](), 0, 1.5), (1, 1, 8, 8))
    test = selkit.load(model, BackMeanDiff(float(np.quantile(run(model, noise(0)), 0.75))), var=1.0)
    with pytest.raises(NotAvailableError, match=r"piecewise linear.*'parametric' or 'decision'"):
        test.inference(noise(0), inference_mode="exhaustive")
    assert test.inference(noise(0), inference_mode="decision").windows > 0


def test_a_level_that_a_sigmoid_never_reaches() -> None:
    model = export(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Sigmoid()), (1, 1, 8, 8))
    with pytest.raises(InvalidInputError, match=r"threshold is 1.0, which Sigmoid never reaches"):
        selkit.load(model, BackMeanDiff(1.0)).inference(noise(0), 1.0)


def test_maps_that_jump_are_refused() -> None:
    class Jump(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x + 1.0, x)

    model = export(Jump(), (1, 1, 8, 8))
    with pytest.raises((NotAvailableError, selkit.errors.UnsupportedModelError), match=r"Where|Greater"):
        selkit.load(model, BackMeanDiff(1.0)).inference(noise(0), 1.0)
