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

HERE = Path(__file__).parent
CACHE = HERE / ".cache" / "acceptance"
KNN, STRONG, WEAK = "5-NN of channel maxima", "strongest cell is strong", "strongest cell is weak"
COVERAGES = (0.2, 0.5, 0.8)
SIGNALS = (0.5, 0.75, 1.0)
TEXT = (
    "# p-values of accepted images\n"
    "\n"
    "White noise, 16 x 16, variance 1: every region that is found is nothing. A network with two "
    "convolutions points at a region, the strongest of 4 x 4 cells (a block of 4 x 4 pixels) or the "
    "pixels whose 8 x 8 map is in the top tenth; a score accepts part of the images, and the region "
    "of each accepted one is tested against the rest of the image. The p-value that is conditioned on"
    " acceptance and the one that is not come from the same test. Uniform: p-value of the Kolmogorov-"
    "Smirnov test over all images of a row. Rates have 95 % intervals. Rows of less than 1,000 images "
    "(300 with a signal) were cut short by time.\n"
    "\n"
    "## A network that looks for something bright\n"
    "\n"
    "All filters are positive, and the test is one-sided: is the region brighter than the rest?\n"
    "\n"
    "<!-- usual -->\n"
    "\n"
    "![Distribution functions of p-values minus that of the uniform distribution](acceptance.svg)\n"
    "\n"
    "Grey: where a uniform sample of this size stays with 95 %.\n"
    "\n"
    "## How far it goes\n"
    "\n"
    'The score looks at the strongest cell alone and accepts where it is strong ("the network is '
    'sure") or weak. Same network, one-sided.\n'
    "\n"
    "<!-- far -->\n"
    "\n"
    "## A network with random filters\n"
    "\n"
    "Two-sided tests. Single p-values move as much, but in both directions: their distribution hardly"
    " shows it.\n"
    "\n"
    "<!-- random -->\n"
    "\n"
    "## Power\n"
    "\n"
    "A signal is added to the 16 pixels of one cell, in standard deviations of the noise; the score "
    "is fitted on images without it, with the threshold that accepts half of those; the network looks "
    "for something bright. The region that is tested need not be the cell with the signal.\n"
    "\n"
    "<!-- power -->\n"
    "\n"
    "Made by `python benchmarks/acceptance.py`; p-values are kept in `benchmarks/.cache/acceptance`.\n"
)


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
    bright
        Whether the network looks for something bright and the test asks whether the region is brighter than
        the rest; else filters are random, and the test has two sides.
    """

    coarse: bool
    score: str
    coverage: float
    signal: float = 0.0
    bright: bool = True

    @property
    def name(self) -> str:
        """For a file."""
        kind = list(SCORES).index(self.score)
        network = "bright-" if self.bright else ""
        return f"{network}{'coarse' if self.coarse else 'fine'}-{kind}-{self.coverage}-{self.signal}"

    @property
    def region(self) -> str:
        """For a table."""
        return "strongest cell" if self.coarse else "thresholded map"


def images(setting: Setting, model: object, accepts: object, most: int) -> Iterator[NDArray[np.float64]]:
    """Accepted images, in the order in which they are drawn."""
    for seed in range(100, 100 + most):
        drawn = noise(500, seed, setting.signal)
        features = run(model, drawn)[SCORES[setting.score]]  # type: ignore[arg-type]
        chosen = accepts.select(torch.from_numpy(features))["selected"]  # type: ignore[attr-defined]
        yield from drawn[chosen.numpy()]


def measure(setting: Setting, count: int) -> NDArray[np.float64]:
    """p-values with and without conditioning, and naive ones, of shape (count, 3); kept in a file."""
    path = CACHE / f"{setting.name}.npy"
    known = np.load(path) if path.exists() else np.empty((0, 3))
    if len(known) >= count or count == 0:
        return np.asarray(known[: count or None])
    model = network(setting.coarse, setting.bright)
    test = region_test(setting.coarse, model)
    accepts = fitted(setting.score, model).set_threshold(q=setting.coverage)
    found: list[tuple[float, float, float]] = []
    CACHE.mkdir(parents=True, exist_ok=True)
    for image in images(setting, model, accepts, most=400):
        try:
            result = test.inference(
                image,
                alternative="greater" if setting.bright else "two-sided",
                accepted_by=accepts,
                embedding=SCORES[setting.score],
            )
        except (NoHypothesisError, InvalidInputError):  # no region, or a tie within rounding
            continue
        found.append((result.p_value, result.p_value_unconditioned, result.naive_p_value()))
        if len(found) % 50 == 0 and len(found) > len(known):
            np.save(path, np.array(found))
        if len(found) == count:
            break
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
        "| region | accepted by | accepted | images | p moved by | uniform: conditioned | not "
        "| p <= 0.05: conditioned | not |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for setting in settings:
        p = measure(setting, count)
        if not len(p):
            continue
        rows.append(
            f"| {setting.region} | {setting.score} | {setting.coverage:.0%} | {len(p):,} "
            f"| {np.abs(p[:, 0] - p[:, 1]).mean():.3f} | {uniform(p[:, 0])} | {uniform(p[:, 1])} "
            f"| {rate(p[:, 0])} | {rate(p[:, 1])} |"
        )
    return rows


def power_rows(settings: list[Setting], count: int) -> list[str]:
    """The table of images with a signal."""
    rows = [
        "| region | signal | images | p <= 0.05: conditioned | not | both |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for setting in settings:
        p = measure(setting, count)
        if not len(p):
            continue
        both = float((p[:, :2] <= 0.05).all(1).mean())
        rows.append(
            f"| {setting.region} | {setting.signal} | {len(p):,} | {rate(p[:, 0])} | {rate(p[:, 1])} "
            f"| {both:.3f} |"
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
        band = 1.358 / np.sqrt(len(p))  # of the Kolmogorov-Smirnov test at 5 %
        axis.fill_between(grid, -band, band, color="0.9", lw=0)
        for column, label, color in ((0, "conditioned", "#1b6ca8"), (1, "not", "#c1440e")):
            share = np.searchsorted(np.sort(p[:, column]), grid, side="right") / len(p)
            axis.plot(grid, share - grid, color=color, label=label, lw=1.2)
        axis.set_title(f"{setting.region}\n{setting.score}\n{setting.coverage:.0%} accepted", fontsize=8)
        axis.set_xlabel("p")
    axes[0].set_ylabel("fraction of p-values up to p, minus p")
    axes[0].legend(frameon=False)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})


USUAL = [Setting(coarse, KNN, coverage) for coarse in (True, False) for coverage in COVERAGES]
RANDOM = [Setting(coarse, KNN, part, bright=False) for coarse in (True, False) for part in COVERAGES]
FAR = [Setting(True, kind, coverage) for coverage in (0.05, 0.2) for kind in (STRONG, WEAK)]
POWER = [Setting(coarse, KNN, 0.5, signal) for coarse in (True, False) for signal in SIGNALS]


def main() -> None:
    """Measure what is not in the cache, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="null images for each row; 0: those known")
    parser.add_argument("--power", type=int, default=300, help="the same with a signal")
    parser.add_argument("--row", type=int, help="measure this row only, counted over all tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.row is not None:
        setting = [*USUAL, *FAR, *POWER, *RANDOM][options.row]
        measure(setting, options.power if setting.signal else options.count)
        return
    tables = {
        "usual": null_rows(USUAL, options.count),
        "random": null_rows(RANDOM, options.count),
        "far": null_rows(FAR, options.count),
        "power": power_rows(POWER, options.power),
    }
    text = TEXT
    for name, rows in tables.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(rows))
    (HERE / "results" / "acceptance.md").write_text(text, encoding="utf-8")
    shown = [USUAL[0], USUAL[1], *FAR[:2]]
    shown = [setting for setting in shown if len(measure(setting, options.count))]
    figure(shown, options.count, HERE / "results" / "acceptance.svg")


if __name__ == "__main__":
    main()
