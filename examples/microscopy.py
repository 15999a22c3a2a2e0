"""Microscopy, end to end: train a U-Net, abstain on foreign images, test the regions that it points at.

``make demo`` runs it and writes ``selkit-report/index.html``; the data and the network are in ``nuclei.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import selkit
from nuclei import Patches, UNet, export_unet, make_patches, quiet_trainer, train_unet
from selkit.metrics import dice_loss
from selkit.report import Report, Sample
from selkit.scores import EuclideanScore

Result = TypeVar("Result")


@dataclass
class Clock:
    """Seconds that each step took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str, step: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a step, and print and keep its time."""
        start = time.perf_counter()
        result = step(*args, **kwargs)
        self.seconds[name] = time.perf_counter() - start
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)
        return result


@dataclass(frozen=True)
class Findings:
    """What the demo found.

    Attributes
    ----------
    metrics
        As ``Trainer.test`` returns them.
    outputs
        Each query's score, decision, region and p-value, as ``SelectiveInferenceTask`` keeps them.
    kinds
        Of each query: ``"nuclei"``, or the name of a foreign image.
    threshold
        Of the score.
    calibration
        Scores of the calibration patches.
    """

    metrics: dict[str, float]
    outputs: dict[str, Any]
    kinds: list[str]
    threshold: float
    calibration: Tensor

    def rejected(self, *, nuclei: bool) -> float:
        """The share of nuclei patches, or of foreign ones, that was rejected."""
        selected = np.asarray(self.outputs["selected"])
        return 1 - float(selected[[(kind == "nuclei") == nuclei for kind in self.kinds]].mean())


def judge(patches: Patches, model: UNet, onnx_file: Path, clock: Clock) -> Findings:
    """Fit a score, calibrate its threshold, and let Lightning test the model with both."""
    loaders = {
        "train": DataLoader(patches.train, batch_size=256),
        "val": DataLoader(patches.calibration, batch_size=256),
    }
    score = EuclideanScore(k=5, stat="mean")
    clock.time("fit the score", score.fit, model=model, loaders=loaders)
    score.set_threshold(q=0.90)

    hypothesis = selkit.NeighborMeanDiff(threshold=0.5, neighborhood_range=5)
    roi_test = selkit.load(onnx_file, hypothesis=hypothesis, var=patches.variance)

    queries, kinds = patches.queries()
    task = selkit.SelectiveInferenceTask(
        task=model, score=score, roi_test=roi_test, loss=dice_loss, acc_test_outputs=True
    )
    loader = DataLoader(queries, batch_size=32)
    metrics = clock.time(
        "test it with abstention and p-values", quiet_trainer().test, task, loader, verbose=False
    )[0]
    (outputs,) = task.test_outputs
    return Findings(
        metrics,
        outputs,
        kinds,
        float(score.threshold),
        score.calibration_scores,
    )


def make_samples(patches: Patches, found: Findings) -> list[Sample]:
    """One record for each query."""
    images, masks = patches.queries()[0].tensors
    samples = []
    for i, kind in enumerate(found.kinds):
        tested = found.outputs["roi_result"][i]
        reason = found.outputs["roi_reason"][i]
        details = {} if reason is None else {"not tested": reason}
        if tested is not None:
            details["standardised difference"] = f"{tested.stat / tested.scale:.1f}"
        samples.append(
            Sample(
                images[i],
                score=float(found.outputs["score"][i]),
                selected=bool(found.outputs["selected"][i]),
                name=f"{kind} {found.kinds[:i].count(kind) + 1}",
                group=kind,
                roi=found.outputs["predictions"][i] > 0.5,
                target=masks[i] if kind == "nuclei" else None,
                loss=float(found.outputs["loss"][i]),
                p_value=None if tested is None else tested.p_value,
                p_value_without_acceptance=None if tested is None else tested.accepted_by.p_value,
                naive_p_value=None if tested is None else tested.naive_p_value(),
                details=details,
            )
        )
    return samples


def make_report(patches: Patches, found: Findings, clock: Clock) -> Report:
    """Everything that the page shows."""
    return Report(
        title="Nuclei under the microscope: abstain, and test what is left",
        summary=[
            "A small U-Net has learned to outline nuclei on the left half of one image. It is now asked "
            "about patches of the right half, and about patches of brick, grass, gravel and cells, which it "
            "should not be asked about.",
            "A patch is selected if its distance to the five nearest training patches, in the network's "
            "embedding, is at most the threshold: the 0.90 quantile over calibration patches.",
            "For each selected patch, the p-value answers whether the mean inside the region that the "
            "network outlines differs from the mean of its neighbourhood.",
        ],
        guarantees=[
            "The threshold is an empirical quantile: about 90 % of patches like those of the calibration set "
            "are selected, without a promise.",
            "Under the null hypothesis, each p-value is uniform given that the network outlined this region "
            "and that the patch was selected. It is exact for Gaussian noise of known variance, here "
            "estimated from background pixels.",
        ],
        samples=make_samples(patches, found),
        threshold=found.threshold,
        facts={
            "nuclei rejected": f"{found.rejected(nuclei=True):.1%}",
            "foreign rejected": f"{found.rejected(nuclei=False):.1%}",
            "noise variance": patches.variance,
        },
        metrics={**found.metrics, **{f"seconds to {name}": s for name, s in clock.seconds.items()}},
        risk_name="mean Dice loss",
        scores={"calibration": found.calibration},
    )


def main(arguments: list[str] | None = None) -> Findings:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("selkit-report"), help="folder to write to")
    parser.add_argument("--epochs", type=int, default=8, help="of training")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # the images are small: threads would mostly wait for each other
    clock = Clock()
    patches = make_patches()
    model = clock.time("train the U-Net", train_unet, patches.train, options.epochs)
    onnx_file = clock.time("export to ONNX", export_unet, model, options.output / "model.onnx")
    found = judge(patches, model, onnx_file, clock)
    page = selkit.write_report(options.output, make_report(patches, found, clock))

    p_values = np.asarray(found.outputs["p_value"])
    p_values = p_values[~np.isnan(p_values)]
    print(f"rejected: {found.rejected(nuclei=True):.1%} of the nuclei patches")
    print(f"rejected: {found.rejected(nuclei=False):.1%} of the foreign patches")
    print(
        f"Dice: {found.metrics['selected/Dice']:.3f} selected, {found.metrics['rejected/Dice']:.3f} rejected"
    )
    print(f"p-values: {len(p_values)} regions tested, {np.mean(p_values <= 0.05):.0%} at most 0.05")
    print(f"report: {page}")
    return found


if __name__ == "__main__":
    main()
