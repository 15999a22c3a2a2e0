"""One job of scores.py with a peer's package; runs in the peer's own environment.

PYTHON benchmarks/scores_peer.py '{"job": "seapig" | "pytorch-ood", "folder": ..., "threads": 2, ...}'
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def array(folder: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"{name}.npy"))


def seapig(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    import faiss
    from seapig.scores import CosineScore, EuclideanScore, MahalanobisScore
    from seapig.utils.progress import disable

    disable()
    faiss.omp_set_num_threads(job["threads"])
    kind = {"euclidean": EuclideanScore, "cosine": CosineScore, "mahalanobis": MahalanobisScore}[job["kind"]]
    reference, calibration, query = (array(folder, name) for name in ("reference", "calibration", "query"))
    seconds = []
    for _ in range(job["repeats"]):
        begin = time.perf_counter()
        score = kind(k=job["k"], stat="mean")
        score.fit(ref=reference, cal=calibration)
        score.set_threshold(q=0.9)
        chosen = score.select(query)
        seconds.append(time.perf_counter() - begin)
    np.save(folder / "peer_score.npy", chosen["score"].numpy())
    return {"seconds": min(seconds), "selected": float(chosen["selected"].float().mean())}


def import_torchvision() -> None:
    """pytorch-ood imports torchvision, whose build for CUDA misses its operators beside a CPU torch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(50):
        try:
            import torchvision  # noqa: F401

            return
        except RuntimeError as error:
            missing = re.search(r"torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]


def pytorch_ood(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    import_torchvision()
    from pytorch_ood.detector import KNN, RMD, Mahalanobis, ViM

    reference, query, labels = (array(folder, name) for name in ("reference", "query", "labels"))
    head, bias = array(folder, "head"), array(folder, "bias")
    width = reference.shape[1]
    make = {
        "knn": lambda: KNN(None, k=job["k"]),
        "mahalanobis": lambda: Mahalanobis(None),
        "relative": lambda: RMD(None),
        "vim": lambda: ViM(None, d=width // 2, w=head, b=bias),
    }[job["kind"]]
    seconds = []
    for _ in range(job["repeats"]):
        begin = time.perf_counter()
        detector = make()
        detector.fit_features(reference, labels)
        found = detector.predict_features(query)
        seconds.append(time.perf_counter() - begin)
    np.save(folder / "peer_score.npy", np.asarray(found))
    return {"seconds": min(seconds)}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    run = {"seapig": seapig, "pytorch-ood": pytorch_ood}[job["job"]]
    print(json.dumps(run(Path(job["folder"]), job)))


if __name__ == "__main__":
    main()
