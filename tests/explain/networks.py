"""Networks on which other explainers fail, exported by both exporters of torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 8
CLASSES = 10


class Functional(nn.Module):
    """Functional and reused activations, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(6 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = self.act(x + self.act(self.second(x)))
        x = self.act(self.second(x) - 0.1)
        return self.head(functional.max_pool2d(x, 2).flatten(1))


class Dense(nn.Module):
    """Features that are kept and appended to, normalized before each activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 * i + 1) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(4 * i + 1, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(13, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for norm, layer in zip(self.norms, self.convs, strict=False):
            features.append(layer(functional.relu(norm(torch.cat(features, 1)))))
        last = functional.relu(self.norms[3](torch.cat(features, 1)))
        return self.head(last.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels weighted by what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.conv(x))
        gate = torch.sigmoid(self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head((x * gate).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block over rows, written with plain operations."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, 12)
        self.norm, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0])
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 12**0.5, -1) @ v)
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


class Normalized(nn.Module):
    """Normalized by instance and by group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3)
        self.instance, self.group = nn.InstanceNorm2d(6), nn.GroupNorm(2, 6)
        self.head = nn.Linear(6 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.instance(self.first(x)))
        return self.head(functional.softplus(self.group(self.second(x))).flatten(1))


class Built(nn.Module):
    """torch's own encoder layer, which puts the sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(SIDE, 2, 16, dropout=0.0)
        self.head = nn.Linear(SIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0].transpose(0, 1)).mean(0))


Maker = Callable[[], nn.Module]


def conv(act: Maker, pool: Maker | None = None) -> Maker:
    """Two convolutions with an activation, and possibly a pooling."""

    def make() -> nn.Module:
        middle = [pool()] if pool is not None else []
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            act(),
            *middle,
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            act(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )

    return make


NETWORKS: dict[str, Maker] = {
    "relu_pool": conv(nn.ReLU, lambda: nn.MaxPool2d(2)),
    "overlapping_pool": conv(nn.ReLU, lambda: nn.MaxPool2d(3, 2, 1)),
    "silu": conv(nn.SiLU),
    "hardswish": conv(nn.Hardswish),
    "prelu": conv(lambda: nn.PReLU(init=0.3)),
    "relu6": conv(nn.ReLU6),
    "gelu": conv(nn.GELU),
    "elu_average": conv(nn.ELU, lambda: nn.AvgPool2d(2)),
    "mish": conv(nn.Mish),
    "normalized": Normalized,
    "functional": Functional,
    "dense": Dense,
    "squeeze_excite": SqueezeExcite,
    "attention": Attention,
    "encoder_layer": Built,
    "softmax": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10), nn.Softmax(-1)
    ),
}


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """A few steps of gradient descent."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def export(model: nn.Module, example: Tensor, *, dynamo: bool, dynamic: bool = False) -> bytes:
    """The model as ONNX, by the old or the new exporter."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
            program = torch.onnx.export(
                model.eval(), (example,), dynamo=True, verbose=False, dynamic_shapes=shapes, opset_version=18
            )
            return program.model_proto.SerializeToString()
        axes = {"x": {0: "batch"}, "y": {0: "batch"}} if dynamic else None
        torch.onnx.export(
            model.eval(),
            (example,),
            buffer,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
            opset_version=17,
        )
    return buffer.getvalue()
