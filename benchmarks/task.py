"""What abstention adds to a Lightning test of 1,000 batches, beside seapig 0.3.

Each measurement runs in its own process. ``plain`` is ``trainer.test`` of the model alone, ``score`` is
embedding and scoring the same batches without Lightning; ``selkit`` is ``trainer.test`` of a
SelectiveInferenceTask with a kNN score, SelectiveMetric and RiskCoverageMetric. seapig needs its own
environment: set SELKIT_PEERS to its directory, or leave it out.

    python benchmarks/task.py [--batches 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

RESULT = Path(__file__).with_name("results") / "task.md"
BATCH, CLASSES, REFERENCES = 32, 10, 5000


class Images(Dataset):
    """Random images, few in memory, with labels."""

    def __init__(self, rows: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(512, 3, 32, 32, generator=draw)
        self.y = torch.randint(0, CLASSES, (512,), generator=draw)
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i % 512], self.y[i % 512]


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(64, CLASSES)
        self.test_metrics = MulticlassAccuracy(CLASSES, average="micro")

    def embed(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.body(x))

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.test_metrics.update(self(x), y)

    def on_test_epoch_end(self):
        self.log("accuracy", self.test_metrics.compute())


class OnePass(Model):
    """The same with prediction and embedding from one pass, as seapig 0.3 asks for."""

    def extract(self, batch):
        x, y = batch
        embedding = self.body(x)
        return {"prediction": self.head(embedding).argmax(1), "embedding": embedding, "label": y}


def trainer() -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet)


def references(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        found = torch.cat([model.embed(torch.randn(100, 3, 32, 32, generator=draw)) for _ in range(60)])
    return found[:REFERENCES], found[REFERENCES:]


def extra(batches: int) -> float:
    """Seconds that the task adds to the model's own metric and to scoring."""
    from selkit.metrics import RiskCoverageMetric, zero_one_loss
    from selkit.task.report import SelectionReport

    plain = MulticlassAccuracy(CLASSES, average="micro")
    report = SelectionReport(plain, RiskCoverageMetric(), None)
    preds, target = torch.randn(BATCH, CLASSES), torch.randint(0, CLASSES, (BATCH,))
    selection = {"score": torch.rand(BATCH), "selected": torch.rand(BATCH) < 0.9}
    with torch.inference_mode():
        start = time.process_time()
        for _ in range(batches):
            plain.update(preds, target)
        middle = time.process_time()
        for _ in range(batches):
            report.update(preds, target, selection, zero_one_loss(preds, target), None)
        report.compute()
        return time.process_time() - middle - (middle - start)


def measure(kind: str, batches: int) -> tuple[float, dict[str, float]]:
    """Seconds of one run, and the numbers it reports."""
    if kind == "extra":
        return extra(batches), {}
    loader = DataLoader(Images(batches * BATCH), batch_size=BATCH)
    model = (OnePass() if "one_pass" in kind or kind == "seapig" else Model()).eval()
    train, val = references(
        model
    )  # in every process, since what was allocated before changes what comes after
    if kind == "plain":
        start = time.process_time()
        found = trainer().test(model, loader, verbose=False)[0]
        return time.process_time() - start, found
    if kind == "seapig":
        from seapig import RiskCoverageMetric, SelectiveInferenceTask
        from seapig.scores import EuclideanScore

        score = EuclideanScore(k=5, stat="mean")
        score.fit(ref=train, cal=val)
        score.set_threshold(q=0.9)
        task = SelectiveInferenceTask(model, score, rc_metric=RiskCoverageMetric(risk="selective"))
    else:
        from selkit.scores import EuclideanScore
        from selkit.task import SelectiveInferenceTask

        score = EuclideanScore(k=5, stat="mean").fit(X=train, Y=val).set_threshold(q=0.9)
        task = SelectiveInferenceTask(model, score)
    if kind.startswith("score"):
        seconds = 0.0
        with torch.inference_mode():
            for x, _ in loader:  # loading is not counted: the model's own test has that already
                embedding = model.embed(x) if kind == "score_alone" else None
                start = time.process_time()
                score.score(model.embed(x) if embedding is None else embedding)
                seconds += time.process_time() - start
        return seconds, {}
    start = time.process_time()
    found = trainer().test(task, loader, verbose=False)[0]
    return time.process_time() - start, found


def run(kind: str, batches: int) -> float | None:
    python = sys.executable
    if kind == "seapig":
        peers = os.environ.get("SELKIT_PEERS")
        if not peers:
            return None
        python = str(Path(peers) / "bin" / "python")
    command = [python, __file__, "--worker", kind, "--batches", str(batches)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return json.loads(text.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker")
    options = parser.parse_args()
    if options.worker:
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        measure(options.worker, 5)  # imports and first calls
        print(json.dumps(measure(options.worker, options.batches)[0]))
        return
    kinds = ["plain", "score", "selkit", "score_alone", "selkit_one_pass", "seapig", "extra"]
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):  # interleaved, so that a busy machine slows all alike
        for kind in kinds:
            seconds = run(kind, options.batches)
            if seconds is not None:
                times[kind].append(seconds)
    median = {kind: statistics.median(values) for kind, values in times.items() if values}
    bare = median["plain"] + median["score"]
    bare_one = median["plain"] + median["score_alone"]
    rows = [
        ("the model's own test, plus embedding and scoring", bare, "1.00"),
        ("selkit", median["selkit"], f"{median['selkit'] / bare:.2f}"),
        ("the model's own test, plus scoring", bare_one, "1.00"),
        (
            "selkit, prediction and embedding from one pass",
            median["selkit_one_pass"],
            f"{median['selkit_one_pass'] / bare_one:.2f}",
        ),
    ]
    if "seapig" in median:
        rows.append(("seapig 0.3, one pass", median["seapig"], f"{median['seapig'] / bare_one:.2f}"))
    lines = [
        "# A Lightning test that abstains",
        "",
        f"`trainer.test` over {options.batches:,} batches of {BATCH} images (3x32x32), a small convolutional "
        f"network, nearest neighbours among {REFERENCES:,} references of width 64, accuracy by selection and "
        f"risk-coverage. Median of {options.rounds} interleaved runs, each in its own process with one "
        "thread; CPU seconds.",
        "",
        "| what | CPU seconds | ratio |",
        "|---|---|---|",
        *(f"| {name} | {seconds:.2f} | {ratio} |" for name, seconds, ratio in rows),
        "",
        "Ratios are to the row of plain test and bare score above; processes differ by a few percent. By "
        "itself, reporting accuracy by selection and risk-coverage costs "
        f"{median['extra'] / options.batches * 1e3:.2f} ms a batch more than the model's own accuracy. Made "
        "by `python benchmarks/task.py`.",
        "",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
