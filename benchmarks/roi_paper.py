"""Repeat the table of "Bounded P-values in Parametric Programming-based Selective Inference".

    python benchmarks/roi_paper.py [--sides 8 16 32 64] [--signals 1 2 3 4] [--images 1000]

As there (arXiv 2307.11351): a convolutional network with a class-activation map is trained to tell noise from
noise with a bright square; the region is where the map is not negative, the contrast is the mean inside minus
the mean outside, the noise is N(0, 1), images without a region or without a background are left out, and the
precision is 0.001. Writes results/roi_paper.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest, kstest
from torch import Tensor, nn

import selkit
from selkit.errors import NoHypothesisError
from selkit.inference import BackMeanDiff, RoiTest

RESULTS = Path(__file__).parent / "results" / "roi_paper.md"
LEVEL = 0.05
EDGE = -1e-3
"""Threshold of the map: a little below 0, where it is constant as long as no unit of the last layer is on."""

PUBLISHED = {
    8: (0.048, 0.071, 2.0),
    16: (0.039, 0.286, 5.2),
    32: (0.052, 0.629, 12.9),
    64: (0.048, 1.0, 199.0),
}
POWER = {1: 0.118, 2: 0.344, 3: 0.551, 4: 0.644}


class Classifier(nn.Module):
    """The paper's network; :attr:`map` is its class-activation map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *[nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()],
            nn.MaxPool2d(2),
            *[nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()],
            nn.Upsample(scale_factor=2),
        )
        self.head = nn.Linear(4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class ActivationMap(nn.Module):
    """Feature maps weighted by the classifier's last layer."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.features, self.weight = model.features, model.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.features(x), self.weight[:, :, None, None])


def noise(rng: np.random.Generator, count: int, side: int, square: int, signal: float) -> np.ndarray:
    """Noise images with a square of another mean at a random place."""
    x = rng.normal(size=(count, 1, side, side))
    for image in x:
        row, column = rng.integers(0, side - square, 2)
        image[0, row : row + square, column : column + square] += signal
    return x


def network(side: int) -> Path:
    """Train as the paper does (700 images, 100 epochs of Adam) and export the map."""
    rng = np.random.default_rng(0)
    x = np.concatenate([noise(rng, 280, side, side // 4, 0.0), noise(rng, 420, side, side // 4, 2.0)])
    y = np.repeat([0.0, 1.0], [280, 420])
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    for _ in range(100):
        for rows in torch.randperm(len(inputs)).split(32):
            loss = nn.functional.binary_cross_entropy_with_logits(model(inputs[rows])[:, 0], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path = Path(tempfile.mkdtemp()) / f"cam{side}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ActivationMap(model).eval(),
            (inputs[:1],),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
        )
    return path


@dataclass
class Run:
    """p-values, naive ones, and seconds of each test."""

    p: np.ndarray
    naive: np.ndarray
    seconds: np.ndarray

    def rate(self) -> str:
        """How many are rejected, with the interval of a binomial share."""
        found = int((self.p <= LEVEL).sum())
        low, high = binomtest(found, len(self.p)).proportion_ci(0.95)
        return f"{found / len(self.p):.3f} ({low:.3f} to {high:.3f})"


def repeat(test: RoiTest, side: int, signal: float, count: int) -> Run:
    """Test images until ``count`` had a region."""
    rng = np.random.default_rng(1)
    rows: list[tuple[float, float, float]] = []
    while len(rows) < count:
        image = noise(rng, 1, side, side // 3, signal)
        begin = time.perf_counter()
        try:
            result = test.inference(image)
        except NoHypothesisError:
            continue
        rows.append((result.p_value, result.naive_p_value(), time.perf_counter() - begin))
    return Run(*np.array(rows).T)


def main() -> None:
    """Run and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="*", type=int, default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--signals", nargs="*", type=int, default=list(POWER), choices=list(POWER))
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    table = [
        f"Rejected at {LEVEL} of {arguments.images} images without a signal, with 95 % intervals.",
        "The network is trained anew as the paper says; naive rates and power depend on what it has learned.",
        "",
        "| side | selkit | paper | naive | paper, naive | uniform (KS p) | selkit s | paper s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side in arguments.sides:
        run = repeat(selkit.load(network(side), BackMeanDiff(EDGE), var=1.0), side, 0.0, arguments.images)
        rate, naive, seconds = PUBLISHED[side]
        table.append(
            f"| {side} | {run.rate()} | {rate} | {(run.naive <= LEVEL).mean():.3f} | {naive} "
            f"| {kstest(run.p, 'uniform').pvalue:.2f} | {run.seconds.mean():.3f} | {seconds} |"
        )
        print(table[-1], flush=True)
    table += ["", "Power at side 16.", "", "| signal | selkit | paper | selkit s |", "|---|---|---|---|"]
    for signal in arguments.signals:
        run = repeat(selkit.load(network(16), BackMeanDiff(EDGE), var=1.0), 16, signal, arguments.images)
        table.append(f"| {signal} | {run.rate()} | {POWER[signal]} | {run.seconds.mean():.3f} |")
        print(table[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
