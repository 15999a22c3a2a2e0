"""Cropped programs: the same numbers as the whole, from less of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from roi_networks import Autoencoder, Unet, export, sharpen
from torch import Tensor, nn

from selkit.graph import Graph
from selkit.inference.crop import crop, work


class Mixed(nn.Module):
    """Strides, dilation, groups, uneven sizes, a map of constants, PReLU, average pooling, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=2)
        self.second = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.slope, self.norm = nn.PReLU(4), nn.BatchNorm2d(4)
        self.back = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)
        self.register_buffer("prior", torch.randn(1, 3, 11, 11))
        self.last = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.slope(self.norm(self.second(torch.relu(self.first(x)))))
        h = self.back(torch.nn.functional.avg_pool2d(h, 3, 1, 1))[:, :, :11, :11]
        return self.last(torch.cat([h * self.prior, torch.minimum(h, self.prior)], 1))


class Pooled(nn.Module):
    """A dense part in the middle: from there back, all is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 3)
        self.up = nn.Upsample(scale_factor=2)
        self.last = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.max_pool2d(torch.relu(self.first(x)), 2)
        return self.last(self.up(h + self.gate(h.mean((2, 3)))[:, :, None, None]))


NETWORKS = {
    "unet": (lambda: Unet(3), (1, 1, 12, 12)),
    "unet sigmoid": (lambda: Unet(3, sigmoid=True), (1, 1, 12, 12)),
    "autoencoder": (lambda: Autoencoder(2, 2, 3), (1, 2, 12, 8)),
    "signals": (lambda: Autoencoder(1, 1, 3), (1, 1, 16)),
    "volumes": (lambda: Autoencoder(3, 1, 2), (1, 1, 4, 6, 8)),
    "mixed": (Mixed, (1, 1, 21, 21)),
    "pooled": (Pooled, (1, 1, 8, 8)),
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_patches_are_parts_of_the_whole(name: str) -> None:
    network, shape = NETWORKS[name]
    program = Graph.load(export(sharpen(network(), 0), shape)).compile({"x": shape}, decompose=True)
    (output,) = program.outputs
    rng = np.random.default_rng(0)
    stack = {"x": torch.as_tensor(rng.normal(size=(3, *shape)))}
    whole = program.run(stack)[output]
    sizes = whole.shape[3:]
    corners = [tuple((0, 1) for _ in sizes), tuple((size - 1, size) for size in sizes)]
    random = []
    for _ in range(12):
        low = [int(rng.integers(0, size)) for size in sizes]
        random.append(
            tuple((a, int(rng.integers(a + 1, size + 1))) for a, size in zip(low, sizes, strict=True))
        )
    for patch in [*corners, *random]:
        part = crop(program, output, patch)
        expected = whole[(..., *(slice(*span) for span in patch))]
        torch.testing.assert_close(part.run(stack)[output], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["unet", "autoencoder", "signals"])
def test_one_pixel_needs_less_than_all(name: str) -> None:
    network, shape = NETWORKS[name]
    program = Graph.load(export(sharpen(network(), 0), shape)).compile({"x": shape}, decompose=True)
    (output,) = program.outputs
    part = crop(program, output, tuple((0, 1) for _ in program.shapes[output][2:]))
    assert work(part.steps, part) < 0.7 * work(program.steps, program)
