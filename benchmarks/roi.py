"""Time per test of a region, beside si4onnx 0.1.13, on the same models, images and hypothesis.

    python benchmarks/roi.py --peers PYTHON [--cases cam8 unet16_8 ...] [--images 5]

``PYTHON`` runs in an environment that has si4onnx (it wants numpy < 2). Writes results/roi.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

import selkit
from roi_models import CASES, Case, build, images, threshold
from selkit.errors import NoHypothesisError
from selkit.inference import Abs, BackMeanDiff, InputDiff

RESULTS = Path(__file__).parent / "results" / "roi.md"
HERE = Path(__file__).parent


def ours(case: Case, path: Path, level: float, batch: np.ndarray) -> list[dict[str, float]]:
    """selkit's rows; one image first that is not timed, as for the peer's imports."""
    steps = [InputDiff(), Abs()] if case.reconstruction else []
    test = selkit.load(path, BackMeanDiff(level, post_process=steps), var=1.0)
    rows = []
    for place, image in enumerate([batch[0], *batch]):
        begin = time.perf_counter()
        try:
            result = test.inference(image)
        except NoHypothesisError:
            rows.append({})
            continue
        row = {"p": result.p_value, "seconds": time.perf_counter() - begin, "count": result.windows}
        rows.append(row if place else {})
    return rows[1:]


def theirs(python: str, case: Case, path: Path, level: float, batch: np.ndarray) -> list[dict[str, float]]:
    """si4onnx's rows, in a process of its own."""
    stored = path.with_suffix(".npy")
    np.save(stored, batch)
    job = {
        "model": str(path),
        "images": str(stored),
        "threshold": level,
        "reconstruction": case.reconstruction,
    }
    done = subprocess.run(
        [python, str(HERE / "roi_peer.py"), json.dumps(job)], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    """Run the cases and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", required=True, help="python of an environment with si4onnx")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--images", type=int, default=5)
    arguments = parser.parse_args()
    table = [
        "| model | images | si4onnx s | selkit s | ratio | slowest ratio | largest difference of p |",
        "|---|---|---|---|---|---|---|",
    ]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for key in arguments.cases:
            case, path = build(key, Path(folder))
            # The threshold comes from an image that is not tested: else one of its pixels may lie on it.
            first, *batch = images(case, 1 + min(arguments.images, case.most))
            level = threshold(case, path, first)
            batch = np.stack(batch)
            mine, peer = ours(case, path, level, batch), theirs(arguments.peers, case, path, level, batch)
            pairs = [(m, p) for m, p in zip(mine, peer, strict=True) if "p" in m and "p" in p]
            if not pairs:
                table.append(f"| {case.name} | 0 | - | - | - | - | {peer[0].get('error', '')} |")
                continue
            ratio = [p["seconds"] / m["seconds"] for m, p in pairs]
            ratios.append(float(np.median(ratio)))
            table.append(
                f"| {case.name} | {len(pairs)} | {np.median([p['seconds'] for _, p in pairs]):.2f} "
                f"| {np.median([m['seconds'] for m, _ in pairs]):.3f} | {np.median(ratio):.0f} "
                f"| {min(ratio):.0f} | {max(abs(m['p'] - p['p']) for m, p in pairs):.1e} |"
            )
            print(table[-1], flush=True)
    table.append("")
    table.append(f"Median of the ratios {np.median(ratios):.0f}, smallest {min(ratios):.0f}.")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
