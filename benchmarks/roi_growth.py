"""How the cost of one test grows with the image's side and the network's depth.

    python benchmarks/roi_growth.py [--sides 16 32 64 128 256] [--depths 1 2 3 4] [--images 3]

Time is given in seconds and in forward passes of onnxruntime; memory is the peak of a process of its own,
torch and the model included. Writes results/roi_growth.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import selkit
from selkit.inference import BackMeanDiff

RESULTS = Path(__file__).parent / "results" / "roi_growth.md"


class Net(nn.Module):
    """Convolutions at full size, twice ``depth`` of them, or a class-activation map with one pooling."""

    def __init__(self, depth: int, channels: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, padding=1), nn.ReLU()]
        for place in range(2 * depth - 1):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
            if place == 0:
                layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.interpolate(self.body(x), scale_factor=2))


def measure(side: int, depth: int, images: int) -> dict[str, float]:
    """One row; run in a process of its own, because of the peak of memory."""
    torch.manual_seed(0)
    net = Net(depth)
    for weight in net.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "net.onnx"
        torch.onnx.export(net.eval(), (torch.zeros(1, 1, side, side),), path, dynamo=False, input_names=["x"])
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        batch = np.random.default_rng(0).normal(size=(images, 1, 1, side, side))
        level = float(np.quantile(session.run(None, {"x": batch[0].astype(np.float32)})[0], 0.8))
        test = selkit.load(path, BackMeanDiff(level), var=1.0)
    single = batch[0].astype(np.float32)
    begin = time.perf_counter()
    for _ in range(20):
        session.run(None, {"x": single})
    forward = (time.perf_counter() - begin) / 20
    test.inference(batch[0])
    seconds, windows = [], []
    for image in batch:
        begin = time.perf_counter()
        windows.append(test.inference(image).windows)
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": float(np.median(seconds)),
        "passes": float(np.median(seconds)) / forward,
        "windows": float(np.median(windows)),
        "peak": peak,
    }


def main() -> None:
    """Run the rows and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="*", default=[16, 32, 64, 128, 256])
    parser.add_argument("--depths", type=int, nargs="*", default=[1, 2, 3, 4])
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--one", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(measure(*arguments.one)) + "\n")
        return
    table = [
        "| side | convolutions | s per test | forward passes | windows | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    rows = [(side, 2) for side in arguments.sides] + [(32, depth) for depth in arguments.depths]
    for side, depth in rows:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(side), str(depth), str(arguments.images)],
            capture_output=True,
            text=True,
            check=True,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        table.append(
            f"| {side} | {2 * depth} | {row['seconds']:.3f} | {row['passes']:.0f} | {row['windows']:.0f} "
            f"| {row['peak']:.2f} |"
        )
        sys.stdout.write(table[-1] + "\n")
        sys.stdout.flush()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
