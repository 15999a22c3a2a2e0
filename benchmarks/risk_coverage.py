"""Risk-coverage of a million samples, beside seapig 0.3 and torch-uncertainty; ten million in bounded memory.

Each measurement runs in its own process. The peers need their own environments: set SELKIT_PEERS (seapig)
and SELKIT_PEERS_TU (torch-uncertainty) to their directories, or leave them out.

    python benchmarks/risk_coverage.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

RESULT = Path(__file__).with_name("results") / "risk_coverage.md"
MILLION = 1_000_000


def samples(rows: int, *, ties: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in [0, 1/2], and 0/1 losses that grow with them."""
    draw = torch.Generator().manual_seed(seed)
    score = torch.rand(rows, generator=draw) / 2
    loss = (torch.rand(rows, generator=draw) < score).float()
    return (score * 20).round() / 20 if ties else score, loss


def as_probabilities(score: torch.Tensor, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A binary classifier with confidence 1 - score that is wrong where there is a loss."""
    return 1 - score, (loss == 0).long()


def metric_of(kind: str):
    """An empty metric, and how to add scores and losses to it."""
    if kind == "seapig":
        from seapig import RiskCoverageMetric

        metric = RiskCoverageMetric(risk="selective", error_fn=lambda preds, _: preds[:, 0])
        return metric, lambda score, loss: metric.update(loss, loss, score)
    if kind == "torch-uncertainty":
        from torch_uncertainty.metrics.classification import AURC

        metric = AURC()
        return metric, lambda score, loss: metric.update(*as_probabilities(score, loss))
    from selkit.metrics import RiskCoverageMetric

    metric = RiskCoverageMetric(bins=2**20 if kind == "selkit, bins" else None)
    return metric, metric.update


def value_of(found) -> float:
    if isinstance(found, dict):
        found = found.get("rc/aurc", found.get("rc/auc_empirical"))
    return float(found)


def measure(kind: str, rows: int, task: str) -> dict[str, float]:
    metric, add = metric_of(kind)
    if task == "ties":
        score, loss = samples(10_000, ties=True)
        order = torch.argsort(loss)
        found = {}
        for name, rows_ in (("first", order), ("last", order.flip(0))):
            metric.reset()
            add(score[rows_], loss[rows_])
            found[name] = value_of(metric.compute())
        return found
    add(*samples(1000))
    metric.compute()
    metric.reset()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = 0.0
    for part in range(rows // MILLION):
        score, loss = samples(MILLION, seed=part)
        start = time.process_time()
        for low in range(0, MILLION, 1000):
            add(score[low : low + 1000], loss[low : low + 1000])
        seconds += time.process_time() - start
    start = time.process_time()
    found = metric.compute()
    seconds += time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = float(found["rc/aurc_error"]) if kind == "selkit, bins" else 0.0
    return {"seconds": seconds, "mib": (peak - before) / 1024, "aurc": value_of(found), "error": error}


def run(kind: str, rows: int, task: str = "stream") -> dict[str, float] | None:
    python = sys.executable
    variable = {"seapig": "SELKIT_PEERS", "torch-uncertainty": "SELKIT_PEERS_TU"}.get(kind)
    if variable:
        if variable not in os.environ:
            return None
        python = str(Path(os.environ[variable]) / "bin" / "python")
    command = [python, __file__, "--worker", kind, "--rows", str(rows), "--task", task]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return json.loads(text.splitlines()[-1])


def table(rounds: int) -> list[str]:
    kinds = ["selkit", "selkit, bins", "torch-uncertainty", "seapig"]
    jobs = [(kind, MILLION) for kind in kinds] + [("selkit", 10 * MILLION), ("selkit, bins", 10 * MILLION)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {job: [] for job in jobs}
    for _ in range(rounds):
        for job in jobs:
            result = run(*job)
            if result is not None:
                found[job].append(result)
    base = statistics.median(result["seconds"] for result in found["selkit", MILLION])
    lines = [
        "| metric | samples | CPU seconds | ratio | memory above start, MiB | AURC |",
        "|---|---|---|---|---|---|",
    ]
    for (kind, rows), results in found.items():
        if results:
            seconds = statistics.median(result["seconds"] for result in results)
            area = f"{results[0]['aurc']:.6f}" + (f" ± {results[0]['error']:.6f}" if "bins" in kind else "")
            memory = max(result["mib"] for result in results)
            lines.append(
                f"| {kind} | {rows:,} | {seconds:.2f} | {seconds / base:.1f} | {memory:.0f} | {area} |"
            )
    return lines


def ties() -> list[str]:
    lines = ["| metric | right rows first | right rows last |", "|---|---|---|"]
    for kind in ("selkit", "selkit, bins", "torch-uncertainty", "seapig"):
        found = run(kind, 0, "ties")
        if found is not None:
            lines.append(f"| {kind} | {found['first']:.4f} | {found['last']:.4f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=MILLION)
    parser.add_argument("--task", default="stream")
    parser.add_argument("--worker")
    options = parser.parse_args()
    if options.worker:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options.worker, options.rows, options.task)))
        return
    lines = [
        "# Risk-coverage",
        "",
        "Updates in batches of 1,000 and one `compute()`; scores in [0, 1/2], 0/1 losses that grow with "
        f"them. Median of {options.rounds} interleaved runs, each in its own process, one thread.",
        "",
        *table(options.rounds),
        "",
        "`selkit, bins` is `RiskCoverageMetric(bins=2**20)`; behind ± is the bound that it reports. seapig "
        "reads the area from 100 bins of the curve, selkit and torch-uncertainty from all samples; "
        "torch-uncertainty integrates by trapezoids from coverage 1/n on. selkit's numbers include excess "
        "AURC, AUGRC and excess AUGRC. Memory includes the million samples that the script draws at a time, "
        "about 20 MiB, and not the bins, 32 MiB from the start.",
        "",
        "The same 10,000 samples with 11 distinct scores, in two orders of the rows:",
        "",
        *ties(),
        "",
        "Made by `python benchmarks/risk_coverage.py`.",
        "",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
