"""Time, peak memory and additivity error of explanations, beside shap and captum.

    python benchmarks/explain.py --peers PYTHON [--only small vgg19 ...] [--threads 2] [--repeats 4]

``--peers`` is the Python of an environment with torchvision, onnx, onnxscript, shap 0.51 and captum 0.9.
Each tool runs in a process of its own. Writes results/explain.md from results/explain.json; networks that
are not run keep their last rows. On a machine that does other work, --threads 1 --clock processor gives
ratios that can be trusted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "explain.json"
NETWORKS = ("vgg19", "resnet50", "densenet201", "efficientnet_b0")
FEW, MANY = 10, 200
LARGE_PAGES = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184",
}
"""Makes shap's large arrays cheaper to allocate, which matters where memory is slow to come by."""

Found = dict[str, Any]


class Worker:
    """A process that runs one job on demand and is timed inside; see explain_worker.py."""

    def __init__(
        self, python: str, script: str, job: Found, environment: dict[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(job["threads"]), **(environment or {})},
        )
        self.seconds: list[tuple[float, float]] = []
        self.found: Found = self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise SystemExit(f"{self.process.args}: {self.process.stderr.read()[-2000:]}")
        return json.loads(line)

    def run(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        self.seconds.append(self._read())

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.process.kill()
        else:
            assert self.process.stdin is not None
            self.process.stdin.close()
            # The first run allocates, and is not counted where there are others.
            counted = self.seconds[1:] or self.seconds
            wall, processor = (statistics.median(spent) for spent in zip(*counted, strict=True))
            self.found |= {"wall": wall, "processor": processor, **self._read()}
        self.process.wait()


def peer(python: str, job: Found) -> str:
    """What one job with the peers' environment prints last."""
    done = subprocess.run(
        [python, str(HERE / "explain_peer.py"), json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{job}: {done.stderr[-2000:]}")
    return (done.stdout.splitlines() or [""])[-1]


def build(folder: Path, references: int, threads: int) -> Found:
    """The explaining graph, built and written in a process of its own."""
    job = {
        "build": str(folder / "model.onnx"),
        "references": str(folder / "references.npy"),
        "count": references,
        "graph": str(folder / f"graph{references}.onnx"),
        "threads": threads,
    }
    with Worker(sys.executable, "explain_worker.py", job) as worker:
        worker.run()
    size = sum(path.stat().st_size for path in folder.glob(f"graph{references}*"))
    return {**worker.found, "size": size / 1e9}


def graph_job(folder: Path, found: Found, threads: int) -> Found:
    return {
        "model": str(folder / f"graph{found['references']}.onnx"),
        "inputs": {"x": str(folder / "x.npy")},
        "results": {name: str(folder / f"{name}.npy") for name in found["outputs"]},
        "threads": threads,
    }


def forward_job(folder: Path, rows: str, threads: int) -> Found:
    return {
        "model": str(folder / "model.onnx"),
        "inputs": {"x": str(folder / f"{rows}.npy")},
        "results": {"y": str(folder / f"y_{rows}.npy")},
        "threads": threads,
    }


def error_of(folder: Path, attribution: str) -> Found:
    """What the attributions' sum misses, by outputs that the plain model gave."""
    output, base = np.load(folder / "y_x.npy")[0], np.load(folder / "y_few.npy").astype(np.float64).mean(0)
    target = int(output.argmax())
    difference = float(output[target]) - float(base[target])
    total = float(np.load(folder / f"{attribution}.npy").sum(dtype=np.float64))
    return {"error": total - difference, "difference": difference}


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> Found:
    """All tools on one network."""
    threads, repeats = arguments.threads, arguments.repeats
    folder.mkdir(exist_ok=True)
    job = {"net": name, "folder": str(folder), "threads": threads}
    if not (folder / "model.onnx").exists():
        peer(arguments.peers, {**job, "job": "export", "references": MANY})
    np.save(folder / "few.npy", np.load(folder / "references.npy")[:FEW])
    row: Found = {"clock": arguments.clock, "threads": threads, "build": build(folder, FEW, threads)}
    workers = {
        "one": Worker(sys.executable, "explain_worker.py", forward_job(folder, "x", threads)),
        "ten": Worker(sys.executable, "explain_worker.py", forward_job(folder, "few", threads)),
        "selkit": Worker(sys.executable, "explain_worker.py", graph_job(folder, row["build"], threads)),
    }
    with workers["one"], workers["ten"], workers["selkit"]:
        for _ in range(2 * repeats + 1):  # in turns, so that whatever else the machine does falls on all
            for worker in workers.values():
                worker.run()
    row |= {key: worker.found for key, worker in workers.items()}
    row["selkit"] |= error_of(folder, row["build"]["outputs"][1])
    print(name, row, flush=True)
    peers = {"shap": ("shap", {}), "captum": ("captum", {}), "shap, large pages": ("shap", LARGE_PAGES)}
    for key, (tool, environment) in peers.items():
        peer_job = {**job, "job": tool, "references": FEW}
        with Worker(arguments.peers, "explain_peer.py", peer_job, environment) as worker:
            for _ in range(repeats):
                worker.run()
        row[key] = worker.found
        print(name, key, row[key], flush=True)
    if arguments.many:
        row["build, many"] = build(folder, MANY, threads)
        many = graph_job(folder, row["build, many"], threads)
        with Worker(sys.executable, "explain_worker.py", many) as worker:
            for _ in range(2):
                worker.run()
        row["many"] = worker.found
        print(name, "many", row["many"], flush=True)
    return row


def small(arguments: argparse.Namespace, folder: Path) -> Found:
    """Additivity on small networks, the peers as they come."""
    from selkit.explain import Explainer

    folder.mkdir(exist_ok=True)
    rows: Found = json.loads(
        peer(arguments.peers, {"job": "small", "folder": str(folder), "threads": arguments.threads})
    )
    for row in rows.values():
        place = Path(row.pop("folder"))
        explainer = Explainer(place / "model.onnx", np.load(place / "references.npy"), target=0)
        total = float(explainer.explain(np.load(place / "x.npy")).attributions.sum(dtype=np.float64))
        row["selkit"] = abs(total - row["difference"]) / abs(row["difference"])
    return rows


def relative(found: Found) -> float:
    return float(abs(found["error"]) / abs(found["difference"]))


def number(value: float | str) -> str:
    """Small numbers in powers of ten, errors that were raised by their names."""
    return value if isinstance(value, str) else f"{value:.0e}" if value < 1e-3 else f"{value:.2g}"


def of_networks(rows: Found) -> list[str]:
    clock, threads = (next(iter(rows.values()))[key] for key in ("clock", "threads"))
    kind = "of the processor" if clock == "processor" else "by the clock"
    lines = [
        f"## {FEW} references, 224 x 224, one image, its top class, {threads} thread(s)",
        "",
        "Networks of torchvision with random weights; statistics of normalizations are those of noise. "
        f"Seconds {kind} are medians after a first run. Peak memory is that of the whole process, in GB, "
        "Python and packages included. The floor is one onnxruntime forward of the image and one of the "
        "references. shap and captum get rewritten networks, without which they raise (modules used once, "
        "nothing in place, SiLU registered); selkit gets the file as torch exports it. Shown for shap "
        "too: the same with an allocator that asks for large pages and keeps them. What is in one row was "
        "measured in one run; rows may come from several.",
        "",
        "| | selkit s | floor s | shap s | shap, large pages s | captum s | selkit / floor "
        "| shap / selkit | captum / selkit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        floor = row["one"][clock] + row["ten"][clock]
        own = row["selkit"][clock]
        peers = [row[key][clock] for key in ("shap", "shap, large pages", "captum")]
        lines.append(
            f"| {name} | {own:.2f} | {floor:.2f} | {' | '.join(f'{value:.2f}' for value in peers)} "
            f"| {own / floor:.2f} | {peers[0] / own:.1f} | {peers[2] / own:.1f} |"
        )
    lines += [
        "",
        "| peak GB | selkit | shap | captum | selkit / shap "
        f"| selkit, {MANY} references | {MANY} / {FEW} references | s with {MANY} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        own, shap, captum = (row[key]["peak"] for key in ("selkit", "shap", "captum"))
        many = row.get("many")
        flat = f"{many['peak']:.2f} | {many['peak'] / own:.2f} | {many[clock]:.1f}" if many else " | | "
        lines.append(f"| {name} | {own:.2f} | {shap:.2f} | {captum:.2f} | {own / shap:.2f} | {flat} |")
    lines += [
        "",
        "| | difference to explain | selkit's error of it | shap's | captum's | build s | build's peak GB "
        "| load s | file GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        errors = " | ".join(number(relative(row[key])) for key in ("selkit", "shap", "captum"))
        made = row["build"]
        lines.append(
            f"| {name} | {row['selkit']['difference']:.3g} | {errors} | {made[clock]:.1f} "
            f"| {made['peak']:.2f} | {row['selkit']['load']:.1f} | {made['size']:.2f} |"
        )
    return lines


def tables(found: Found) -> list[str]:
    rows = {name: found[name] for name in NETWORKS if name in found}
    lines: list[str] = []
    for way in sorted({(row["clock"], row["threads"]) for row in rows.values()}):  # each in tables of its own
        alike = {name: row for name, row in rows.items() if (row["clock"], row["threads"]) == way}
        lines += [*([""] if lines else []), *of_networks(alike)]
    if "small" in found:
        lines += [
            *([""] if lines else []),
            "## Small networks, shap 0.51 and captum 0.9 as they come",
            "",
            "A convolution, what is named, and a linear layer; random weights, 5 references, the first "
            "output. What the sum of attributions misses, relative to what it should be; or what was raised.",
            "",
            "| | selkit | shap | captum |",
            "|---|---|---|---|",
            *(
                f"| {name} | {' | '.join(number(row[tool]) for tool in ('selkit', 'shap', 'captum'))} |"
                for name, row in found["small"].items()
            ),
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", required=True, help="python of an environment with torchvision, shap, captum"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=["wall", "processor"], default="wall", help="processor: with one thread"
    )
    parser.add_argument("--repeats", type=int, default=4, help="runs of each peer, the first not counted")
    parser.add_argument("--only", nargs="*", choices=["small", *NETWORKS], default=["small", *NETWORKS])
    parser.add_argument("--folder", type=Path, help="keep the networks here; by default they are deleted")
    parser.add_argument(
        "--many", action=argparse.BooleanOptionalAction, default=True, help=f"{MANY} references"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in arguments.only:
            place = folder / name
            row = small(arguments, place) if name == "small" else measure(name, arguments, place)
            found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            found[name] = row
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            RESULTS.with_suffix(".md").write_text("\n".join(tables(found)) + "\n")
    print(RESULTS.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
