"""Every score that can be followed along a line, fitted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from selkit.scores import (
    CosineScore,
    EnergyScore,
    EntropyScore,
    EuclideanScore,
    GaussianScore,
    MahalanobisScore,
    MarginScore,
    MaxLogitScore,
    MutualInformationScore,
    PCAScore,
    PredictiveVarianceScore,
    RelativeMahalanobisScore,
    SoftmaxScore,
    UncertaintyScore,
    ViMScore,
)

WIDTH = 5


def references(count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes around different centres, in double precision."""
    draw = torch.Generator().manual_seed(seed)
    X = torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (count,), generator=draw)
    return X + y[:, None], y


def embedding_scores(X: Tensor, y: Tensor) -> dict[str, UncertaintyScore]:
    """Scores of embeddings, by name."""
    found: dict[str, UncertaintyScore] = {}
    for kind in (EuclideanScore, MahalanobisScore, CosineScore):
        for stat in ("max", "mean", "median", "min"):
            for k, pca in ((1, None), (4, None), (4, 3), (len(X), None)):
                found[f"{kind.__name__}-{k}-{stat}-{pca}"] = kind(k, stat, pca).fit(X=X)  # type: ignore[arg-type]
    torch.manual_seed(0)
    head = torch.nn.Linear(X.shape[1], 4).double()
    return found | {
        "GaussianScore": GaussianScore().fit(X, y),
        "RelativeMahalanobisScore": RelativeMahalanobisScore().fit(X, y),
        "PCAScore": PCAScore(3).fit(X),
        "ViMScore": ViMScore(head, 3).fit(X),
    }


LOGITS = {
    "multiclass": ((5,), (5, 3)),
    "binary": ((1,), (2,), (1, 3)),
    "multilabel": ((4,), (4, 3)),
}


def logit_scores() -> Iterator[tuple[str, UncertaintyScore, tuple[int, ...]]]:
    """Scores of logits, with the shape of what they take."""
    for task, shapes in LOGITS.items():
        for shape in shapes:
            members = len(shape) == 2
            for kind in (EnergyScore, SoftmaxScore, MaxLogitScore, EntropyScore, MarginScore):
                name = f"{kind.__name__}-{task}-{shape}"
                yield name, kind(0.7, task, per_member=members), shape  # type: ignore[arg-type]
            for ensemble in (MutualInformationScore, PredictiveVarianceScore):
                if members:
                    yield f"{ensemble.__name__}-{task}-{shape}", ensemble(0.7, task), shape  # type: ignore[arg-type]
