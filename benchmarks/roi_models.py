"""The networks on which tests of regions are timed, exported to ONNX; random weights at fixed seeds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One model, and how its region is selected.

    Attributes
    ----------
    name
        Of the row in the table.
    shape
        Of the input.
    level
        Quantile of the score map at the first image that is the threshold; a number given as text is the
        threshold itself.
    reconstruction
        Whether the score map is ``|output - input|``.
    most
        Images that are tested at most, because the peer takes minutes for one.
    """

    name: str
    shape: tuple[int, ...]
    level: float | str
    reconstruction: bool = False
    most: int = 1000


class Cam(nn.Module):
    """The network of "Bounded P-values in Parametric Programming-based Selective Inference"."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        c = channels
        self.first = nn.Sequential(
            nn.Conv2d(1, c, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c, c, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.second = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Conv2d(c, 1, 1, bias=False)
        # Nearest-neighbour upsampling; si4onnx 0.1.13 raises on the Resize that torch exports for it.
        self.register_buffer("copy", torch.eye(c)[:, :, None, None].expand(c, c, 2, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        up = nn.functional.conv_transpose2d(self.second(self.first(x)), self.copy, stride=2)
        return self.head(up)


class Autoencoder(nn.Module):
    """Two poolings down, two transposed convolutions up."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        c = channels
        self.net = nn.Sequential(
            nn.Conv2d(1, c, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(c, 2 * c, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * c, 2 * c, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * c, 2 * c, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * c, c, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(c, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Vae(nn.Module):
    """A variational autoencoder at its mean: dense layers around convolutions."""

    def __init__(self, channels: int = 8, latent: int = 10, side: int = 28) -> None:
        super().__init__()
        inner = side // 4
        self.shape = (2 * channels, inner, inner)
        width = 2 * channels * inner * inner
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width, latent),
        )
        self.widen = nn.Sequential(nn.Linear(latent, width), nn.ReLU())
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2 * channels, channels, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 1, 2, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.widen(self.encoder(x)).reshape(1, *self.shape))


class Unet(nn.Module):
    """Two levels, one or two spatial axes, with skip connections."""

    def __init__(self, channels: int, rank: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if rank == 2 else nn.Conv1d
        back = nn.ConvTranspose2d if rank == 2 else nn.ConvTranspose1d
        pool = nn.MaxPool2d if rank == 2 else nn.MaxPool1d

        def twice(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                conv(inputs, outputs, 3, padding=1),
                nn.ReLU(),
                conv(outputs, outputs, 3, padding=1),
                nn.ReLU(),
            )

        c = channels
        self.down = nn.ModuleList([twice(1, c), twice(c, 2 * c), twice(2 * c, 4 * c)])
        self.up = nn.ModuleList([back(4 * c, 2 * c, 2, stride=2), back(2 * c, c, 2, stride=2)])
        self.join = nn.ModuleList([twice(4 * c, 2 * c), twice(2 * c, c)])
        self.pool, self.head = pool(2), conv(c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](self.pool(first))
        bottom = self.down[2](self.pool(second))
        second = self.join[0](torch.cat([self.up[0](bottom), second], 1))
        return self.head(self.join[1](torch.cat([self.up[1](second), first], 1)))


CASES = {
    **{f"cam{side}": (Case(f"CAM {side}", (1, 1, side, side), 0.8), Cam) for side in (8, 16, 32, 64)},
    **{
        f"ae{side}": (Case(f"autoencoder {side}", (1, 1, side, side), 0.85, True), Autoencoder)
        for side in (16, 64)
    },
    "vae28": (Case("VAE 28", (1, 1, 28, 28), 0.9, True), Vae),
    **{
        f"unet{side}_{c}": (
            Case(
                f"U-Net {side}, {c} channels", (1, 1, side, side), 0.85, most=1 if side * c >= 1024 else 1000
            ),
            lambda c=c: Unet(c),
        )
        for side in (16, 32)
        for c in (8, 32)
    },
    "unet1d": (Case("1-D U-Net 128", (1, 1, 128), 0.85), lambda: Unet(8, 1)),
}


def build(key: str, folder: Path) -> tuple[Case, Path]:
    """Export one case; He-normal weights, so that the maps vary over the image."""
    case, network = CASES[key]
    torch.manual_seed(0)
    model = network()
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
    path = folder / f"{key}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (torch.zeros(case.shape),),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
        )
    return case, path


def images(case: Case, count: int) -> np.ndarray:
    """Pure noise."""
    return np.random.default_rng(0).normal(size=(count, *case.shape))


def threshold(case: Case, path: Path, x: np.ndarray) -> float:
    """The threshold of a case."""
    import onnxruntime

    if isinstance(case.level, str):
        return float(case.level)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output = session.run(None, {"x": x.astype(np.float32)})[0]
    return float(np.quantile(np.abs(output - x) if case.reconstruction else output, case.level))
