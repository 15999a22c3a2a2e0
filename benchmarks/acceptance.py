"""What conditioning on acceptance does to p-values: uniformity under the null, and power.

Images of white noise are accepted by a score, and the region that a network points at is tested on the
accepted ones, with and without conditioning on acceptance. Writes results/acceptance.md and acceptance.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from acceptance_models import SCORES, fitted, network, noise, region_test, run
from selkit.errors import InvalidInputError, NoHypothesisError
from selkit.utils.progress import track

HERE = Path(__file__).parent
CACHE = HERE / ".cache" / "acceptance"
KNN, STRONG, WEAK = "5-NN of channel maxima", "strongest cell is strong", "strongest cell is weak"
COVERAGES = (0.2, 0.5, 0.8)
SIGNALS = (1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes
    ----------
    coarse
        Whether the region is the strongest of 4 x 4 cells, or the pixels above a threshold.
    score
        Name of what accepts.
    coverage
        Fraction of null images that are accepted.
    signal
        Added to one cell of the image.
    """

    coarse: bool
    score: str
    coverage: float
    signal: float = 0.0

    @property
    def name(self) -> str:
        """For a file."""
        kind = list(SCORES).index(self.score)
        return f"{'coarse' if self.coarse else 'fine'}-{kind}-{self.coverage}-{self.signal}"


def images(setting: Setting, model: object, accepts: object, most: int) -> Iterator[NDArray[np.float64]]:
    """Accepted images, in the order in which they are drawn."""
    for seed in range(100, 100 + most):
        drawn = noise(500, seed, setting.signal)
        features = run(model, drawn)[SCORES[setting.score]]  # type: ignore[arg-type]
        chosen = accepts.select(torch.from_numpy(features))["selected"]  # type: ignore[attr-defined]
        yield from drawn[chosen.numpy()]


def measure(setting: Setting, count: int) -> NDArray[np.float64]:
    """p-values with and without conditioning, and naive ones, of shape (count, 3); kept in a file."""
    path = CACHE / f"{setting.name}-{count}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    model = network(setting.coarse)
    test = region_test(setting.coarse, model)
    accepts = fitted(setting.score, model).set_threshold(q=setting.coverage)
    found: list[tuple[float, float, float]] = []
    stream = images(setting, model, accepts, most=400)
    for _ in track(range(count), setting.name, count):
        while True:
            try:
                result = test.inference(next(stream), accepted_by=accepts, embedding=SCORES[setting.score])
                break
            except (NoHypothesisError, InvalidInputError):  # no region, or a tie within rounding
                continue
        found.append((result.p_value, result.p_value_unconditioned, result.naive_p_value()))
    CACHE.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(found))
    return np.array(found)


def rate(values: NDArray[np.float64], level: float = 0.05) -> str:
    """Fraction of p-values up to a level, with its 95 % interval."""
    test = stats.binomtest(int((values <= level).sum()), len(values))
    low, high = test.proportion_ci(method="wilson")
    return f"{test.statistic:.3f} ({low:.3f}, {high:.3f})"


def uniform(values: NDArray[np.float64]) -> str:
    """p-value of the Kolmogorov-Smirnov test."""
    found = float(stats.kstest(values, "uniform").pvalue)
    return f"{found:.2f}" if found >= 0.01 else f"{found:.0e}"


def null_rows(settings: list[Setting], count: int) -> list[str]:
    """The table of null images."""
    rows = [
        "| region | accepted by | accepted | p moved by | uniform: conditioned | not "
        "| p <= 0.05: conditioned | not |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for setting in settings:
        p = measure(setting, count)
        rows.append(
            f"| {'strongest cell' if setting.coarse else 'thresholded map'} | {setting.score} "
            f"| {setting.coverage:.0%} | {np.abs(p[:, 0] - p[:, 1]).mean():.3f} | {uniform(p[:, 0])} "
            f"| {uniform(p[:, 1])} | {rate(p[:, 0])} | {rate(p[:, 1])} |"
        )
    return rows


def power_rows(settings: list[Setting], count: int) -> list[str]:
    """The table of images with a signal."""
    rows = ["| region | signal | p <= 0.05: conditioned | not | both |", "|---|---:|---:|---:|---:|"]
    for setting in settings:
        p = measure(setting, count)
        both = float((p[:, :2] <= 0.05).all(1).mean())
        rows.append(
            f"| {'strongest cell' if setting.coarse else 'thresholded map'} | {setting.signal} "
            f"| {rate(p[:, 0])} | {rate(p[:, 1])} | {both:.3f} |"
        )
    return rows


def figure(settings: list[Setting], count: int, path: Path) -> None:
    """Distribution functions minus that of the uniform distribution."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "selkit", "font.size": 8})
    drawing, axes = plt.subplots(1, len(settings), figsize=(2.6 * len(settings), 2.6), sharey=True)
    for axis, setting in zip(axes, settings, strict=True):
        p = measure(setting, count)
        grid = np.linspace(0, 1, 201)
        band = 1.358 / np.sqrt(count)  # of the Kolmogorov-Smirnov test at 5 %
        axis.fill_between(grid, -band, band, color="0.9", lw=0)
        for column, label, color in ((0, "conditioned", "#1b6ca8"), (1, "not", "#c1440e")):
            share = np.searchsorted(np.sort(p[:, column]), grid, side="right") / count
            axis.plot(grid, share - grid, color=color, label=label, lw=1.2)
        region = "strongest cell" if setting.coarse else "thresholded map"
        axis.set_title(f"{region}\n{setting.score}\n{setting.coverage:.0%} accepted", fontsize=8)
        axis.set_xlabel("p")
    axes[0].set_ylabel("fraction of p-values up to p, minus p")
    axes[0].legend(frameon=False)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure what is not in the cache, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="null images for each row")
    parser.add_argument("--power", type=int, default=300, help="images with a signal for each row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    usual = [Setting(coarse, KNN, coverage) for coarse in (True, False) for coverage in COVERAGES]
    far = [
        Setting(coarse, kind, coverage)
        for coarse in (True, False)
        for kind in (STRONG, WEAK)
        for coverage in (0.05, *COVERAGES)
    ]
    power = [Setting(coarse, KNN, 0.5, signal) for coarse in (True, False) for signal in SIGNALS]
    text = (HERE / "results" / "acceptance.head.md").read_text(encoding="utf-8")
    tables = {
        "usual": null_rows(usual, options.count),
        "far": null_rows(far, options.count),
        "power": power_rows(power, options.power),
    }
    for name, rows in tables.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(rows))
    (HERE / "results" / "acceptance.md").write_text(text, encoding="utf-8")
    shown = [usual[0], Setting(True, STRONG, 0.2), Setting(True, WEAK, 0.2), usual[3]]
    figure(shown, options.count, HERE / "results" / "acceptance.svg")


if __name__ == "__main__":
    main()
