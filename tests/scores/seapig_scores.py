"""Scores of seapig 0.3 on the arrays of a folder; runs in an environment that has it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    from seapig import scores as s
    from seapig.scores.utils import TensorPCA
    from seapig.utils.progress import disable

    disable()
    folder = Path(sys.argv[1])
    given = {path.stem: torch.from_numpy(np.load(path)) for path in folder.glob("in_*.npy")}
    reference, calibration, query = (given[f"in_{name}"] for name in ("reference", "calibration", "query"))
    found: dict[str, torch.Tensor] = {}
    for name in ("EuclideanScore", "CosineScore", "MahalanobisScore"):
        for stat in ("max", "mean", "median", "min"):
            score = getattr(s, name)(k=4, stat=stat)
            score.fit(ref=reference, cal=calibration)
            score.set_threshold(q=0.8)
            found[f"{name}-{stat}"] = score.score(query)
            found[f"{name}-{stat}-threshold"] = torch.as_tensor(score.get_threshold())
    for components in (3, 0.9):
        score = s.PCAScore(TensorPCA(n_components=components))
        score.fit(ref=reference, cal=calibration)
        found[f"PCAScore-{components}"] = score.score(query)
    logits, members = given["in_logits"], given["in_members"]
    for name in ("EnergyScore", "EntropyScore", "MarginScore", "SoftmaxScore"):
        for task, values in (("multiclass", logits), ("multilabel", logits), ("binary", logits[:, 0])):
            found[f"{name}-{task}"] = getattr(s, name)(temperature=1.5, task=task).score(values)
    for name in ("MutualInformationScore", "PredictiveVarianceScore"):
        for task in ("multiclass", "multilabel"):
            found[f"{name}-{task}"] = getattr(s, name)(temperature=1.5, task=task).score(members)
    score = s.EnergyScore()
    score.fit(ref={"logit": logits, "label": given["in_labels"]}, temp_scale=True)
    found["temperature"] = torch.as_tensor(score.T)
    classwise = s.EuclideanClassWiseScore(k=2)
    classwise.fit(
        ref={"embedding": reference, "label": given["in_classes"]},
        cal={"embedding": calibration, "label": given["in_calibration_classes"]},
    )
    found["EuclideanClassWiseScore"] = classwise.score(
        {"embedding": query, "prediction": given["in_predicted"]}
    )
    for name, values in found.items():
        np.save(folder / f"out_{name}.npy", values.detach().numpy())


if __name__ == "__main__":
    main()
