"""Time and memory of the scores, beside a bare matrix product, seapig 0.3 and pytorch-ood.

    python benchmarks/scores.py [--peers PYTHON] [--ood PYTHON] [--threads 2] [--only search seapig ...]

``--peers`` is the Python of an environment with seapig 0.3, ``--ood`` of one with pytorch-ood 0.4. Writes
results/scores.md; parts that are not run keep their last table.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selkit import scores as s
from selkit.scores.search import References, nearest

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "scores.md"
K = 10


def clustered(count: int, width: int, seed: int) -> Tensor:
    """Embeddings like those of a trained network: clusters, not negative, of unequal spread."""
    fixed = torch.Generator().manual_seed(0)
    centers = torch.randn(50, width, generator=fixed) * 1.5
    mixing = torch.randn(width // 4, width, generator=fixed) / (width // 4) ** 0.5
    own = torch.Generator().manual_seed(seed)
    cluster = torch.randint(0, 50, (count,), generator=own)
    inside = torch.randn(count, width // 4, generator=own) @ mixing
    return (centers[cluster] + inside + 0.1 * torch.randn(count, width, generator=own)).relu()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def product(query: Tensor, reference: Tensor, rows: int, columns: int) -> None:
    """All inner products, block by block into one buffer."""
    buffer = torch.empty(rows * columns)
    for i in range(0, len(query), rows):
        for j in range(0, len(reference), columns):
            q, r = query[i : i + rows], reference[j : j + columns]
            torch.mm(q, r.T, out=buffer[: len(q) * len(r)].view(len(q), len(r)))


def search(threads: int) -> list[str]:
    """100,000 x 512 references and 20,000 queries: exact search against the bare product.

    In turns of 2,000 queries, so that whatever else the machine does falls on both.
    """
    lines = [
        "| data | product s | search s | ratio | ratio of processor time | median ratio of turns |",
        "|---|---|---|---|---|---|",
    ]
    for name, make in (
        ("normal", lambda n, seed: torch.randn(n, 512, generator=torch.Generator().manual_seed(seed))),
        ("clustered, not negative", lambda n, seed: clustered(n, 512, seed)),
    ):
        reference, query = make(100_000, 1), make(20_000, 2)
        references = References.of(reference)
        nearest(query[:1000], references, K)
        rows = []
        for part in torch.split(query, 2000):
            clocks = [(time.perf_counter(), time.process_time())]
            product(part, reference, 2048, 8192)
            clocks.append((time.perf_counter(), time.process_time()))
            nearest(part, references, K)
            clocks.append((time.perf_counter(), time.process_time()))
            rows.append(np.diff(np.array(clocks), axis=0).ravel())
        wall_product, cpu_product, wall, cpu = np.sum(rows, axis=0)
        turns = np.median([row[2] / row[0] for row in rows])
        lines.append(
            f"| {name} | {wall_product:.1f} | {wall:.1f} "
            f"| {wall / wall_product:.2f} | {cpu / cpu_product:.2f} "
            f"| {turns:.2f} |"
        )
        print(lines[-1], flush=True)
    return [
        f"k = {K}, {threads} thread(s), float32; preparing the references is one pass over them.",
        "",
        *lines,
    ]


MEMORY = """
import torch
from selkit.scores import EuclideanScore
torch.set_num_threads({threads})
reference = torch.zeros(100_000, 512).normal_()
query = torch.zeros(20_000, 512).normal_()
EuclideanScore(k=10).fit(X=reference[:2000]).score(query[:10])
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
before = peak()
score = EuclideanScore(k=10).fit(X=reference)
fitted = peak()
score.score(query)
print(before, fitted - before, peak() - fitted)
"""


def memory(threads: int) -> list[str]:
    """Peak memory over that of references and queries alone, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(threads=threads)], capture_output=True, text=True, check=True
    )
    before, fit, score = map(float, done.stdout.split())
    return [
        "| | MiB |",
        "|---|---|",
        f"| process with references (195 MiB) and queries (39 MiB) | {before:.0f} |",
        f"| more at the peak of fit | {fit:.0f} |",
        f"| more at the peak of scoring; one block of products is 64 MiB | {score:.0f} |",
    ]


def peer(python: str, job: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [python, str(HERE / "scores_peer.py"), json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{job}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def truth(kind: str, reference: Tensor, query: Tensor, unbiased: bool) -> Tensor:
    """Mean distance to the K nearest by all differences, in float64."""
    r, q = reference.double(), query.double()
    if kind == "cosine":
        r, q = torch.nn.functional.normalize(r), torch.nn.functional.normalize(q)
    if kind == "mahalanobis":
        covariance = r.T.cov(correction=int(unbiased))
        root = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        r, q = r @ root, q @ root
    parts = [torch.cdist(p, r, compute_mode="donot_use_mm_for_euclid_dist") for p in torch.split(q, 500)]
    near = torch.cat([p.topk(K, largest=False).values for p in parts])
    return (near.square() / 2 if kind == "cosine" else near).mean(1)


def against_seapig(python: str, threads: int) -> list[str]:
    """Fit, calibrate and select; errors are against all differences in float64, for 500 queries."""
    lines = [
        "| score | references | seapig s | selkit s | ratio | largest error of seapig | of selkit |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = {
        "euclidean": lambda: s.EuclideanScore(K, "mean"),
        "cosine": lambda: s.CosineScore(K, "mean"),
        "mahalanobis": lambda: s.MahalanobisScore(K, "mean", shrinkage=0.0),
    }
    for count, width, repeats in ((5_000, 64, 5), (20_000, 128, 3), (100_000, 512, 1)):
        reference, calibration, query = (
            clustered(n, width, seed) for n, seed in ((count, 1), (2_000, 2), (10_000, 3))
        )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, values in (("reference", reference), ("calibration", calibration), ("query", query)):
                np.save(folder / f"{file}.npy", values.numpy())
            for kind, make in kinds.items():
                job = {
                    "job": "seapig",
                    "folder": name,
                    "threads": threads,
                    "kind": kind,
                    "k": K,
                    "repeats": repeats,
                }
                theirs = peer(python, job)

                def run(make: Callable[[], s.UncertaintyScore] = make) -> dict[str, Tensor]:
                    fitted = make().fit(X=reference, Y=calibration)  # noqa: B023 - run at once
                    return fitted.set_threshold(0.9).select(query)  # noqa: B023

                mine = min((timed(run) for _ in range(repeats)), key=lambda pair: pair[0])
                found = torch.from_numpy(np.load(folder / "peer_score.npy"))[:500].double()
                expected = [truth(kind, reference, query[:500], unbiased) for unbiased in (True, False)]
                error = float((found / expected[0] - 1).abs().max())
                own = float((mine[1]["score"][:500].double() / expected[1] - 1).abs().max())
                lines.append(
                    f"| {kind} | {count} x {width} | {theirs['seconds']:.2f} | {mine[0]:.2f} "
                    f"| {theirs['seconds'] / mine[0]:.1f} | {error:.1e} | {own:.1e} |"
                )
                print(lines[-1], flush=True)
    return [
        f"Clustered embeddings, 2,000 calibration samples, 10,000 queries, k = {K}, {threads} threads.",
        "",
        *lines,
    ]


def against_ood(python: str, threads: int) -> list[str]:
    """Fit and score, and the rank correlation of the two packages' scores."""
    from scipy.stats import spearmanr

    reference, query = clustered(20_000, 256, 1), clustered(5_000, 256, 2)
    labels = torch.randint(0, 10, (20_000,), generator=torch.Generator().manual_seed(0))
    head = torch.randn(10, 256, generator=torch.Generator().manual_seed(1)) / 4
    bias = torch.zeros(10)
    kinds: dict[str, Callable[[], Tensor]] = {
        "knn": lambda: s.CosineScore(K, "max").fit(X=reference).score(query),
        "mahalanobis": lambda: s.GaussianScore(shrinkage=0.0).fit(reference, labels).score(query),
        "relative": lambda: s.RelativeMahalanobisScore(shrinkage=0.0).fit(reference, labels).score(query),
        "vim": lambda: s.ViMScore((head, bias), 128).fit(X=reference).score(query),
    }
    lines = [
        "| pytorch-ood | selkit | pytorch-ood s | selkit s | ratio | rank correlation |",
        "|---|---|---|---|---|---|",
    ]
    names = {
        "knn": ("KNN", "CosineScore"),
        "mahalanobis": ("Mahalanobis", "GaussianScore"),
        "relative": ("RMD", "RelativeMahalanobisScore"),
        "vim": ("ViM", "ViMScore"),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = {"reference": reference, "query": query, "labels": labels, "head": head, "bias": bias}
        for file, values in stored.items():
            np.save(folder / f"{file}.npy", values.numpy())
        for kind, run in kinds.items():
            job = {
                "job": "pytorch-ood",
                "folder": name,
                "threads": threads,
                "kind": kind,
                "k": K,
                "repeats": 3,
            }
            theirs = peer(python, job)
            seconds, found = min((timed(run) for _ in range(3)), key=lambda pair: pair[0])
            agreement = spearmanr(np.load(folder / "peer_score.npy"), found.numpy()).statistic
            lines.append(
                f"| {names[kind][0]} | {names[kind][1]} | {theirs['seconds']:.2f} | {seconds:.2f} "
                f"| {theirs['seconds'] / seconds:.1f} | {agreement:.6f} |"
            )
            print(lines[-1], flush=True)
    return [f"20,000 x 256 references, 5,000 queries, {threads} threads.", "", *lines]


def approximate(threads: int) -> list[str]:
    """index="faiss" against exact search: time to fit and to score, and recall."""
    import faiss

    faiss.omp_set_num_threads(threads)
    lines = ["| data | index | fit s | score s | recall |", "|---|---|---|---|---|"]
    for name, make in (
        (
            "normal, 64 dimensions",
            lambda n, seed: torch.randn(n, 64, generator=torch.Generator().manual_seed(seed)),
        ),
        ("clustered, 256 dimensions", lambda n, seed: clustered(n, 256, seed)),
    ):
        reference, query = make(50_000, 1), make(5_000, 2)
        found = {}
        for index in ("exact", "faiss"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit, score = timed(lambda: s.EuclideanScore(K, index=index).fit(X=reference))  # noqa: B023
            seconds, (_, found[index]) = timed(lambda: score.knn_search(query))  # noqa: B023
            pairs = zip(found["exact"].tolist(), found[index].tolist(), strict=True)
            recall = np.mean([len(set(a) & set(b)) / K for a, b in pairs])
            lines.append(f"| {name} | {index} | {fit:.2f} | {seconds:.2f} | {recall:.4f} |")
            print(lines[-1], flush=True)
    return [f"50,000 references, 5,000 queries, k = {K}, {threads} threads.", "", *lines]


def wide(threads: int) -> list[str]:
    """200 samples of 3,000 dimensions: fits beside scikit-learn's PCA of the same data."""
    from sklearn.decomposition import PCA

    X = np.random.default_rng(0).normal(size=(200, 3000)).astype(np.float32)
    lines = ["| score | fit s | PCA s | ratio |", "|---|---|---|---|"]
    for score in (s.PCAScore(), s.MahalanobisScore(), s.GaussianScore(one_class=True)):
        pairs = [(timed(lambda: score.fit(X))[0], timed(lambda: PCA(0.9).fit(X))[0]) for _ in range(5)]  # noqa: B023
        own, theirs = np.median(pairs, axis=0)
        lines.append(f"| {type(score).__name__} | {own:.3f} | {theirs:.3f} | {own / theirs:.2f} |")
        print(lines[-1], flush=True)
    return [f"Medians of 5 fits in turn, {threads} thread(s), float32.", "", *lines]


TITLES = {
    "search": "Exact search against the bare matrix product, 100,000 x 512 references and 20,000 queries",
    "memory": "Memory of the same search",
    "seapig": "Fit, calibrate and select, beside seapig 0.3",
    "ood": "Fit and score, beside pytorch-ood 0.4",
    "faiss": "Approximate search",
    "wide": "Fewer samples than dimensions, beside scikit-learn's PCA",
}


def write(parts: dict[str, list[str]]) -> None:
    """Put new tables beside those of parts that were not run."""
    known: dict[str, str] = {}
    if RESULTS.exists():
        pieces = re.split(r"^## (.*)$", RESULTS.read_text(), flags=re.M)[1:]
        known = dict(zip(pieces[::2], (text.strip() for text in pieces[1::2]), strict=True))
    known |= {TITLES[name]: "\n".join(lines) for name, lines in parts.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    ordered = [title for title in TITLES.values() if title in known]
    RESULTS.write_text("\n\n".join(f"## {title}\n\n{known[title]}" for title in ordered) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", help="python of an environment with seapig 0.3")
    parser.add_argument("--ood", help="python of an environment with pytorch-ood 0.4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(TITLES), default=list(TITLES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs: dict[str, Callable[[], list[str]]] = {
        "search": lambda: search(arguments.threads),
        "memory": lambda: memory(arguments.threads),
        "seapig": lambda: against_seapig(arguments.peers, arguments.threads),
        "ood": lambda: against_ood(arguments.ood, arguments.threads),
        "faiss": lambda: approximate(arguments.threads),
        "wide": lambda: wide(arguments.threads),
    }
    needs = {"seapig": arguments.peers, "ood": arguments.ood}
    for name in arguments.only:
        if name in needs and needs[name] is None:
            print(f"{name}: skipped, no environment given")
            continue
        write({name: runs[name]()})
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
