from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from selkit.errors import InvalidInputError, NoGuaranteeError, NotAvailableError, NotFittedError
from selkit.scores import (
    ClassWiseScore,
    CosineClassWiseScore,
    EuclideanClassWiseScore,
    EuclideanScore,
    GaussianScore,
    MahalanobisClassWiseScore,
    MahalanobisScore,
    SoftmaxScore,
    UncertaintyScore,
)

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 300) * 2  # 0, 2 and 4
X = RNG.normal(size=(300, 4)) + Y[:, None]
CAL_Y = RNG.integers(0, 3, 150) * 2
CAL = RNG.normal(size=(150, 4)) + CAL_Y[:, None]
QUERY = RNG.normal(size=(40, 4)) * 3
PREDICTED = RNG.integers(0, 3, 40) * 2
MANY = (RNG.uniform(size=(300, 3)) < 0.5).astype(int)
CAL_MANY = (RNG.uniform(size=(150, 3)) < 0.5).astype(int)


def kth(query: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    return np.sort(cdist(query, reference), 1)[:, k - 1]


def matrix(query: np.ndarray, k: int) -> np.ndarray:
    return np.stack([kth(query, X[c == Y], k) for c in (0, 2, 4)], 1)


def test_single_label_scores_and_thresholds() -> None:
    score = EuclideanClassWiseScore(k=3).fit(X, Y, Y=CAL, y_cal=CAL_Y).set_threshold(0.8)
    expected = matrix(QUERY, 3)[np.arange(40), PREDICTED // 2]
    query = {"embedding": QUERY, "prediction": PREDICTED}
    np.testing.assert_allclose(score.score(query).numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(score.class_scores(QUERY).numpy(), matrix(QUERY, 3), rtol=1e-9)
    own = matrix(CAL, 3)[np.arange(150), CAL_Y // 2]
    limits = np.array([np.quantile(own[c == CAL_Y], 0.8) for c in (0, 2, 4)])
    assert score.threshold_groups is not None
    assert score.threshold_groups.tolist() == [0, 2, 4]
    np.testing.assert_allclose(score.threshold, limits, rtol=1e-9)
    chosen = score.select(query)
    assert (chosen["selected"].numpy() == (expected <= limits[PREDICTED // 2])).all()


def test_without_predictions_the_nearest_class_counts() -> None:
    score = EuclideanClassWiseScore(k=3).fit(X, Y, Y=CAL, y_cal=CAL_Y).calibrate(coverage=0.8)
    all_ = matrix(QUERY, 3)
    nearest = all_.argmin(1)
    chosen = score.select(QUERY)
    np.testing.assert_allclose(chosen["score"].numpy(), all_.min(1), rtol=1e-9)
    limits = score.threshold.numpy()  # type: ignore[union-attr]
    assert (chosen["selected"].numpy() == (all_.min(1) <= limits[nearest])).all()
    same = score.select({"embedding": QUERY, "prediction": nearest * 2})
    assert torch.equal(same["selected"], chosen["selected"])


@pytest.mark.parametrize("aggregate", ["max", "mean", "min"])
def test_several_labels(aggregate: str) -> None:
    score = EuclideanClassWiseScore(k=2, aggregate=aggregate)  # type: ignore[arg-type]
    score.fit(X, MANY, Y=CAL, y_cal=CAL_MANY).set_threshold(0.7)
    all_ = np.stack([kth(QUERY, X[MANY[:, c] == 1], 2) for c in range(3)], 1)
    predicted = (RNG.uniform(size=(40, 3)) < 0.5).astype(int)
    predicted[0] = 0
    none = predicted.sum(1) == 0
    assert none.sum() > 1
    masked = np.where(predicted == 1, all_, np.nan)
    masked[none] = all_[none].min(1, keepdims=True)
    expected = {"max": np.nanmax, "mean": np.nanmean, "min": np.nanmin}[aggregate](masked, axis=1)
    chosen = score.select({"embedding": QUERY, "prediction": predicted})
    np.testing.assert_allclose(chosen["score"].numpy(), expected, rtol=1e-9)
    own = np.stack([kth(CAL, X[MANY[:, c] == 1], 2) for c in range(3)], 1)
    limits = np.array([np.quantile(own[CAL_MANY[:, c] == 1, c], 0.7) for c in range(3)])
    inside = ((all_ <= limits) | (predicted == 0)).all(1)
    inside[none] = (all_.min(1) <= limits[all_.argmin(1)])[none]
    assert (chosen["selected"].numpy() == inside).all()


@pytest.mark.parametrize(
    "kind", [EuclideanClassWiseScore, CosineClassWiseScore, MahalanobisClassWiseScore, ClassWiseScore]
)
def test_saved_and_loaded(kind: type[ClassWiseScore], tmp_path: Path) -> None:
    score = kind(GaussianScore(one_class=True)) if kind is ClassWiseScore else kind(k=2, pca=3)  # type: ignore[call-arg]
    score.fit(X, Y, Y=CAL, y_cal=CAL_Y).set_threshold(0.8)
    score.save(tmp_path / "score.safetensors")
    loaded = UncertaintyScore.load(tmp_path / "score.safetensors")
    state = kind(**score.get_params(deep=False))
    state.load_state_dict(score.state_dict())
    query = {"embedding": QUERY, "prediction": PREDICTED}
    for other in (loaded, state):
        assert all(
            torch.equal(a, b)
            for a, b in zip(other.select(query).values(), score.select(query).values(), strict=True)
        )


def test_each_class_has_a_base_score_of_its_own() -> None:
    base = MahalanobisScore(k=2)
    score = ClassWiseScore(base).fit(X, Y)
    assert not base.is_fitted
    one = MahalanobisScore(k=2).fit(X=X[Y == 2]).score(QUERY)
    assert torch.equal(score.class_scores(QUERY)[:, 1], one)
    kept = EuclideanClassWiseScore(k=2).fit(X, Y, q=0.9)
    expected = EuclideanScore(k=2).fit(X=X[Y == 2], q=0.9).score(QUERY)
    assert torch.equal(kept.class_scores(QUERY)[:, 1], expected)


class Net(nn.Module):
    """Embeddings are inputs; the logits name the nearest of 0, 1, 2."""

    def embed(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean(1, keepdim=True) - torch.arange(3)).abs()


def test_with_a_model_calibration_and_queries_use_its_predictions(tmp_path: Path) -> None:
    labels = torch.tensor(Y // 2)
    reference, cal = torch.tensor(X / 2, dtype=torch.float32), torch.tensor(CAL / 2, dtype=torch.float32)
    train = DataLoader(TensorDataset(reference, labels), batch_size=64)
    val = DataLoader(TensorDataset(cal, torch.zeros(150, dtype=torch.long)), batch_size=64)
    model = Net()
    predicted = model(cal).argmax(1)
    expected = EuclideanClassWiseScore(k=2).fit(reference, labels, Y=cal, y_cal=predicted).set_threshold(0.8)
    query = {"embedding": cal, "prediction": predicted}
    for cache in (None, tmp_path, tmp_path):
        score = EuclideanClassWiseScore(k=2)
        score.fit(model=model, loaders={"train": train, "val": val}, cache=cache).set_threshold(0.8)
        assert torch.equal(score.threshold, expected.threshold)  # type: ignore[arg-type]
        assert torch.equal(score.select(model=model, loader=val, cache=cache)["score"], expected.score(query))
        chosen = score.select(score.extract(model, cal))
        assert torch.equal(chosen["selected"], expected.select(query)["selected"])


def test_with_a_model_of_several_labels() -> None:
    targets = torch.tensor(MANY)
    reference = torch.tensor(X, dtype=torch.float32)
    loader = DataLoader(TensorDataset(reference, targets), batch_size=50)
    model = nn.Linear(4, 3)
    score = EuclideanClassWiseScore(k=2).fit(model=model, loaders={"train": loader, "val": loader}, layer="")
    found: Any = score.extract(model, reference[:5])
    assert torch.equal(found["prediction"], (model(reference[:5]) > 0).long())
    assert torch.equal(found["embedding"], model(reference[:5]))
    with pytest.raises(NotAvailableError, match="need a torch module"):
        score.extract(b"onnx", reference)


def test_groups_without_enough_calibration_samples_are_named() -> None:
    score = EuclideanClassWiseScore().fit(X, Y, Y=CAL[:40], y_cal=CAL_Y[:40])
    with pytest.raises(NoGuaranteeError, match=r"group 0: coverage=0.99 needs at least 99"):
        score.calibrate(coverage=0.99)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: EuclideanClassWiseScore().fit(X), InvalidInputError, "needs references and their labels"),
        (lambda: EuclideanClassWiseScore().fit(X, Y, Y=CAL), InvalidInputError, "give y_cal="),
        (
            lambda: EuclideanClassWiseScore().fit(X, Y, Y=CAL[:1], y_cal=CAL_Y[:1]).set_threshold(),
            InvalidInputError,
            "have no sample in the calibration set",
        ),
        (
            lambda: EuclideanClassWiseScore(k=200).fit(X, Y),
            InvalidInputError,
            "class 0: k=200 neighbours need",
        ),
        (lambda: EuclideanClassWiseScore().fit(X, MANY * 0), InvalidInputError, "class 0 has no references"),
        (lambda: EuclideanClassWiseScore().fit(X, MANY * 2), InvalidInputError, "0/1 matrix"),
        (
            lambda: ClassWiseScore(SoftmaxScore()).fit(X, Y),
            InvalidInputError,
            "base must be a score of embeddings",
        ),
        (lambda: ClassWiseScore().fit(X, Y), InvalidInputError, "base must be a score of embeddings"),
        (lambda: EuclideanClassWiseScore(aggregate="sum").fit(X, Y), InvalidInputError, "aggregate must be"),  # type: ignore[arg-type]
        (lambda: EuclideanClassWiseScore().class_scores(X), NotFittedError, "not fitted yet"),
        (
            lambda: (
                EuclideanClassWiseScore().fit(X, Y).score({"embedding": QUERY, "prediction": PREDICTED + 1})
            ),
            InvalidInputError,
            r"classes \[1, 3, 5\] were predicted, but fit had only \[0, 2, 4\]",
        ),
        (
            lambda: EuclideanClassWiseScore().fit(X, Y).score({"embedding": QUERY, "prediction": MANY[:40]}),
            InvalidInputError,
            "do not fit the 3 classes",
        ),
        (lambda: EuclideanClassWiseScore().fit(X, Y).select(QUERY), NotFittedError, "no threshold yet"),
    ],
)
def test_misuse_is_refused(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
