"""What compiling costs: loading, compiling, the first and the second test of twelve kinds of networks.

Each network has a process of its own, so that nothing is warm. A second test on the same shape finds the
program compiled.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MOST = 300
"""Seconds after which a network is given up."""

RESULT = Path(__file__).parent / "results" / "compile.md"


def measure(name: str, threads: int) -> dict[str, object]:
    """Seconds of each step for one network; an error where it cannot be tested."""
    import torch

    import selkit
    from compile_models import build
    from selkit.graph import Graph

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        path, shape = build(name, Path(folder))
        images = np.random.default_rng(0).normal(size=(2, *shape))
        seconds: dict[str, object] = {"name": name}
        try:
            start = time.perf_counter()
            graph = Graph.load(path)
            loaded = time.perf_counter()
            program = graph.compile({"x": shape}, decompose=True)
            compiled = time.perf_counter()
            x = torch.from_numpy(images[0])[None]
            level = float(torch.quantile(program.run({"x": x})["y"].flatten(), 0.85))
            test = selkit.load(path, selkit.BackMeanDiff(threshold=level), var=1.0)
            windows = []
            for place, key in ((0, "first"), (0, "second")):
                begin = time.perf_counter()
                result = test.inference(images[place], precision=1e-2)
                seconds[key] = time.perf_counter() - begin
                windows.append(result.windows)
            seconds |= {
                "load": loaded - start,
                "compile": compiled - loaded,
                "nodes": len(graph.nodes),
                "exact": result.exact,
            }
        except selkit.errors.SelkitError as error:
            seconds["error"] = str(error).splitlines()[0]
    return seconds


def row(found: dict[str, object]) -> str:
    """A line of the table."""
    if "error" in found:
        return f"| {found['name']} | | | | | | {found['error']} |"
    times = " | ".join(f"{float(str(found[key])):.3f}" for key in ("load", "compile", "first", "second"))
    kind = "exact" if found["exact"] else "bracketed"
    return f"| {found['name']} | {found['nodes']} | {times} | {kind} |"


def main() -> None:
    """Measure each network in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="measure this network here, and print JSON")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.threads)))
        return
    from compile_models import NETWORKS

    lines = [
        "| network | nodes | load s | compile s | first test s | second test s | p-values |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        command = [sys.executable, __file__, "--only", name, "--threads", str(options.threads)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=MOST)
            lines.append(row(json.loads(ended.stdout.splitlines()[-1])))
        except subprocess.TimeoutExpired:
            lines.append(f"| {name} | | | | | | over {MOST} s |")
        print(lines[-1], flush=True)
    text = f"{options.threads} thread(s). The second test is of the same image; precision 0.01."
    RESULT.write_text("\n".join([*lines, "", text, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
