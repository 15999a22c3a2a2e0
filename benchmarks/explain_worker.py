"""A process that runs one thing as often as it is told to: onnxruntime with numpy alone, or a build.

PYTHON benchmarks/explain_worker.py '{"model": FILE, "inputs": {name: FILE.npy}, "results": {...}, ...}'

One line on standard input is one run and gives its seconds, by the clock and of the processor. When the
input ends, the process prints what it found, its peak memory in GB among it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def memory(field: str) -> float:
    """Memory of this process in GB: VmHWM is its peak so far, VmRSS what it holds now."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) * 1024 / 1e9 for line in status if line.startswith(field))


def serve(run: Callable[[], Any], found: Callable[[Any], dict[str, Any]], **ready: Any) -> None:
    """Run on demand; ``found`` makes of the last result what is reported."""
    print(json.dumps(ready), flush=True)
    result = None
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        result = run()
        spent = time.perf_counter() - wall, time.process_time() - processor
        print(json.dumps(spent), flush=True)
    peak = memory("VmHWM")
    print(json.dumps({"peak": peak, **found(result)}), flush=True)


def build(job: dict[str, Any]) -> None:
    """Make the graph that predicts and explains, and write it."""
    from selkit.explain import Explainer

    references = np.load(job["references"])[: job["count"]]

    def run() -> None:
        Explainer(job["build"], references, target="top").export(job["graph"])

    def found(_: None) -> dict[str, Any]:
        import onnx

        proto = onnx.load(job["graph"], load_external_data=False)
        return {"outputs": [output.name for output in proto.graph.output], "references": job["count"]}

    serve(run, found, imports=memory("VmRSS"))


def session(job: dict[str, Any]) -> None:
    """A session, and its arrays written to ``results`` at the end."""
    import onnxruntime as ort

    begin = time.perf_counter()
    before = memory("VmRSS")
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.log_severity_level = 3
    model = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    inputs = {name: np.load(path) for name, path in job["inputs"].items()}
    outputs = job.get("outputs") or [output.name for output in model.get_outputs()]

    def found(result: Any) -> dict[str, Any]:
        for name, array in zip(outputs, result, strict=True):
            if name in job.get("results", {}):
                np.save(job["results"][name], array)
        return {}

    serve(lambda: model.run(outputs, inputs), found, load=time.perf_counter() - begin, imports=before)


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    (build if "build" in task else session)(task)
