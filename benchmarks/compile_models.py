"""Twelve kinds of networks, small, exported to ONNX with random weights at fixed seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from roi_models import Autoencoder, Cam, Unet, Vae

Shape = tuple[int, ...]


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalization, relu."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6() if groups > 1 else nn.ReLU())


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Dense(nn.Module):
    """Concatenates what it is given with what it makes of it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.net(x)], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, 4, 1),
            nn.SiLU(),
            nn.Conv2d(4, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.net(x)


class Attention(nn.Module):
    """Patches, two layers of attention, and back to the image."""

    def __init__(self, width: int = 16, side: int = 8) -> None:
        super().__init__()
        self.patches, self.width, self.side = nn.Conv2d(1, width, 4, 4), width, side // 4
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.head = nn.ConvTranspose2d(width, 1, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        for place in range(2):
            q, k, v = self.qkv[place](self.norm[2 * place](tokens)).chunk(3, -1)
            tokens = tokens + torch.softmax(q @ k.transpose(1, 2) / self.width**0.5, -1) @ v
            tokens = tokens + self.mlp[place](self.norm[2 * place + 1](tokens))
        return self.head(tokens.transpose(1, 2).reshape(1, self.width, self.side, self.side))


class Recurrent(nn.Module):
    """A score for each time by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.transpose(1, 2))[0]).transpose(1, 2)


class Next(nn.Module):
    """Depthwise 7 x 7, layer normalization over channels, a wide pair of dense layers."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.deep = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        return x + self.narrow(nn.functional.gelu(self.wide(y))).permute(0, 3, 1, 2)


def inverted(
    channels: int, wide: int, act: Callable[[], nn.Module] = nn.ReLU6, *, gate: bool = False
) -> Residual:
    """Wide, depthwise, narrow: MobileNet's block, and with a gate EfficientNet's."""
    return Residual(
        nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), act()),
        nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), act()
        ),
        Gate(wide) if gate else nn.Identity(),
        nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)),
    )


def heat(*body: nn.Module, channels: int) -> nn.Sequential:
    """A heat map at a quarter of the size, brought back."""
    return nn.Sequential(
        block(1, channels, 3, 2),
        block(channels, channels, 3, 2),
        *body,
        nn.Conv2d(channels, 1, 1),
        nn.Upsample(scale_factor=4),
    )


def plain(channels: int) -> Residual:
    """ResNet's block, its second relu left out."""
    return Residual(block(channels, channels), nn.Conv2d(channels, channels, 3, padding=1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "CNN": (Cam, (1, 1, 32, 32)),
    "U-Net": (lambda: Unet(8), (1, 1, 16, 16)),
    "autoencoder": (Autoencoder, (1, 1, 32, 32)),
    "VAE": (Vae, (1, 1, 28, 28)),
    "MobileNet-like": (lambda: heat(*[inverted(8, 24) for _ in range(4)], channels=8), (1, 1, 64, 64)),
    "ResNet-like": (lambda: heat(*[plain(8) for _ in range(4)], channels=8), (1, 1, 64, 64)),
    "DenseNet-like": (
        lambda: heat(*[Dense(8 + 4 * k, 4) for k in range(6)], nn.Conv2d(32, 8, 1), channels=8),
        (1, 1, 32, 32),
    ),
    "EfficientNet-like": (lambda: heat(inverted(4, 8, nn.SiLU, gate=True), channels=4), (1, 1, 8, 8)),
    "ViT-like": (Attention, (1, 1, 8, 8)),
    "1-D series": (lambda: Unet(8, 1), (1, 1, 128)),
    "LSTM": (Recurrent, (1, 1, 8)),
    "ConvNeXt-like": (lambda: heat(Next(4), channels=4), (1, 1, 8, 8)),
}


def build(name: str, folder: Path) -> tuple[Path, Shape]:
    """Export one network; batch normalization has seen noise, as in a trained network."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        with torch.no_grad():
            for _ in range(20):
                model(torch.randn(8, *shape[1:]))
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (torch.zeros(shape),),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
        )
    return path, shape
