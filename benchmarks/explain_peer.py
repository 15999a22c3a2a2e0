"""The networks of explain.py, and shap and captum on them; runs in an environment with torchvision.

PYTHON benchmarks/explain_peer.py '{"job": "export" | "shap" | "captum" | "small", "net": ..., "folder": ...}'
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explain_worker import memory, serve

SIDE = 224


def network(name: str) -> nn.Module:
    """One of torchvision's, with random weights; statistics of its normalizations are those of noise."""
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
    if norms:
        model.train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


class Bottleneck(nn.Module):
    """A block of resnet50 that uses each module once and adds out of place."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2, nn.ReLU())
        self.last = nn.Sequential(block.conv3, block.bn3)
        self.downsample = block.downsample or nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.last(self.first(x)) + self.downsample(x))


class Residual(nn.Module):
    """A block of efficientnet that adds out of place."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.residual = block.block, block.use_res_connect

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        return result + x if self.residual else result


def replace(stage: nn.Sequential, make: Callable[[nn.Module], nn.Module]) -> None:
    for place, block in enumerate(stage):
        stage[place] = make(block)


def for_hooks(name: str, model: nn.Module) -> nn.Module:
    """The same network in the form that lets shap and captum run at all; selkit takes the original."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    if name == "resnet50":
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            replace(stage, Bottleneck)
    if name == "densenet201":
        model = nn.Sequential(
            model.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier
        )
    if name == "efficientnet_b0":
        for stage in model.features[1:-1]:
            replace(stage, Residual)
    return model.eval()


def export(job: dict[str, Any], folder: Path) -> None:
    model = network(job["net"])
    torch.manual_seed(1)
    x = torch.randn(1, 3, SIDE, SIDE)
    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "references.npy", torch.randn(job["references"], 3, SIDE, SIDE).numpy())
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.onnx.export(
        model,
        (x,),
        folder / "model.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
    )


def loaded(job: dict[str, Any], folder: Path) -> tuple[nn.Module, Tensor, Tensor, int, float]:
    """The network, x, references, x's top class and the difference that attributions must sum to."""
    import torchvision

    model = getattr(torchvision.models, job["net"])()
    model.load_state_dict(torch.load(folder / "weights.pt"))
    model.eval()
    x = torch.from_numpy(np.load(folder / "x.npy"))
    references = torch.from_numpy(np.load(folder / "references.npy")[: job["references"]])
    with torch.no_grad():
        output = model(x)[0]
        target = int(output.argmax())
        base = float(np.mean([float(model(reference[None])[0, target]) for reference in references]))
    fixed = for_hooks(job["net"], model)
    with torch.no_grad():
        torch.testing.assert_close(fixed(x)[0], output)
    return fixed, x, references, target, float(output[target]) - base


def with_shap(model: nn.Module, x: Tensor, references: Tensor, target: int) -> Callable[[], np.ndarray]:
    import shap
    from shap.explainers._deep import deep_pytorch

    deep_pytorch.op_handler["SiLU"] = deep_pytorch.nonlinear_1d
    explainer = shap.DeepExplainer(model, references)

    def run() -> np.ndarray:
        # The check of sums raises for ranked outputs even where the values are right.
        values, chosen = explainer.shap_values(x, ranked_outputs=1, check_additivity=False)
        assert int(chosen[0, 0]) == target
        return np.asarray(values)[..., 0]

    return run


def with_captum(model: nn.Module, x: Tensor, references: Tensor, target: int) -> Callable[[], np.ndarray]:
    from captum.attr import DeepLiftShap
    from captum.attr._core import deep_lift

    deep_lift.SUPPORTED_NON_LINEAR[nn.SiLU] = deep_lift.nonlinear
    explainer = DeepLiftShap(model)
    return lambda: explainer.attribute(x, baselines=references, target=target).detach().numpy()


def measure(job: dict[str, Any], folder: Path) -> None:
    torch.set_num_threads(job["threads"])
    begin = time.perf_counter()
    before = memory("VmRSS")
    model, x, references, target, difference = loaded(job, folder)
    run = {"shap": with_shap, "captum": with_captum}[job["job"]](model, x, references, target)

    def found(values: np.ndarray) -> dict[str, Any]:
        return {"error": float(values.sum(dtype=np.float64)) - difference, "difference": difference}

    serve(run, found, load=time.perf_counter() - begin, imports=before)


class Reused(nn.Module):
    """One module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head, self.relu = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8 * 12 * 12, 3),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.two(self.relu(self.one(x)))).flatten(1))


class Functional(Reused):
    """No modules for the nonlinearities at all."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))).flatten(1))


class Squeeze(nn.Module):
    """Squeeze-and-excitation: a product of two values that both depend on x."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid()
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return self.head((z * self.gate(z)).mean((2, 3)))


def plain(*middle: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, nn.Flatten(), nn.Linear(width, 3))


def small_networks() -> dict[str, nn.Module]:
    full, half, strided = 8 * 12 * 12, 8 * 6 * 6, 8 * 5 * 5
    return {
        "ReLU": plain(nn.ReLU(), width=full),
        "ReLU, max-pool 2x2": plain(nn.ReLU(), nn.MaxPool2d(2), width=half),
        "max-pool 3x3, stride 2": plain(nn.MaxPool2d(3, 2), width=strided),
        "ReLU, max-pool 3x3, stride 2": plain(nn.ReLU(), nn.MaxPool2d(3, 2), width=strided),
        "SiLU": plain(nn.SiLU(), width=full),
        "Hardswish": plain(nn.Hardswish(), width=full),
        "PReLU": plain(nn.PReLU(), width=full),
        "ReLU6": plain(nn.ReLU6(), width=full),
        "GELU": plain(nn.GELU(), width=full),
        "torch.relu, no module": Functional(),
        "one ReLU module twice": Reused(),
        "squeeze-and-excitation": Squeeze(),
    }


def small(job: dict[str, Any], folder: Path) -> None:
    """Write the small networks and print what stock shap and captum make of them."""
    import shap
    from captum.attr import DeepLiftShap

    torch.set_num_threads(job["threads"])
    rows = {}
    for number, (name, model) in enumerate(small_networks().items()):
        torch.manual_seed(number)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=2 / max(1, parameter[0].numel()) ** 0.5)
        model.eval()
        x, references = 2 * torch.randn(1, 3, 12, 12), 2 * torch.randn(5, 3, 12, 12)
        place = folder / f"small{number}"
        place.mkdir(exist_ok=True)
        np.save(place / "x.npy", x.numpy())
        np.save(place / "references.npy", references.numpy())
        torch.onnx.export(
            model,
            (x,),
            place / "model.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )
        with torch.no_grad():
            difference = float(model(x)[0, 0] - model(references)[:, 0].double().mean())
        tools: dict[str, Callable[[nn.Module], Any]] = {
            "shap": lambda m, x=x, r=references: shap.DeepExplainer(m, r).shap_values(
                x, check_additivity=False
            )[..., 0],
            "captum": lambda m, x=x, r=references: (
                DeepLiftShap(m).attribute(x, baselines=r, target=0).detach().numpy()
            ),
        }
        rows[name] = {"folder": str(place), "difference": difference}
        for tool, run in tools.items():
            try:
                total = float(np.sum(run(copy.deepcopy(model)), dtype=np.float64))
                rows[name][tool] = abs(total - difference) / abs(difference)
            except Exception as error:  # noqa: BLE001 - what a tool raises is the finding
                rows[name][tool] = type(error).__name__
    print(json.dumps(rows))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task = json.loads(sys.argv[1])
    {"export": export, "small": small}.get(task["job"], measure)(task, Path(task["folder"]))
