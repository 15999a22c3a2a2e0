from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance, LedoitWolf

from selkit.errors import InvalidInputError, NotFittedError
from selkit.scores import GaussianScore, RelativeMahalanobisScore

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 200) * 5  # 0, 5 and 10
X = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4)) + LABELS[:, None]
QUERY = RNG.normal(size=(30, 4)) * 5


def squared(query: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.einsum("nd,de,ne->n", query - mean, np.linalg.inv(covariance), query - mean)


def class_conditional(kind: type) -> np.ndarray:
    means = [X[c == LABELS].mean(0) for c in (0, 5, 10)]
    centred = X - np.array([means[c // 5] for c in LABELS])
    covariance = kind(assume_centered=True).fit(centred).covariance_
    return np.stack([squared(QUERY, mean, covariance) for mean in means], 1)


@pytest.mark.parametrize(("shrinkage", "kind"), [("ledoit-wolf", LedoitWolf), (0.0, EmpiricalCovariance)])
def test_values_are_those_of_sklearn(shrinkage: float, kind: type) -> None:
    score = GaussianScore(shrinkage=shrinkage).fit(X, LABELS)
    expected = class_conditional(kind)
    np.testing.assert_allclose(score.class_distances(QUERY).numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(score.score(QUERY).numpy(), expected.min(1), rtol=1e-8)
    relative = RelativeMahalanobisScore(shrinkage=shrinkage).fit(X, LABELS)
    background = squared(QUERY, X.mean(0), kind().fit(X).covariance_)
    np.testing.assert_allclose(relative.score(QUERY).numpy(), expected.min(1) - background, rtol=1e-7)
    alone = GaussianScore(shrinkage=shrinkage, one_class=True).fit(X, LABELS)
    np.testing.assert_allclose(alone.score(QUERY).numpy(), background, rtol=1e-8)


def test_float32_far_from_the_origin() -> None:
    far = torch.tensor(X + 1e4, dtype=torch.float32)
    found = GaussianScore().fit(far, LABELS).score(far[:20])
    expected = GaussianScore().fit(far.double(), LABELS).score(far[:20].double())
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=2e-3)


def test_shrinkage_lets_few_samples_work() -> None:
    few = RNG.normal(size=(10, 40))
    assert torch.isfinite(GaussianScore().fit(few, np.arange(10) % 2).score(few)).all()
    with pytest.raises(InvalidInputError, match="singular"):
        GaussianScore(shrinkage=0.0, one_class=True).fit(few)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (None, "needs the labels of the references: give y="),
        (np.zeros(200, dtype=int), "y has one class only"),
        (np.arange(199), r"y must have shape \(200,\)"),
        (np.full(200, np.nan), "whole numbers; got others or NaN"),
        (np.full(200, 0.5), "whole numbers"),
        (np.eye(200, dtype=int), "one label for each reference"),
        (RNG.normal(size=(200, 4)), "Calibration embeddings are given by name: Y="),
    ],
)
def test_bad_labels_are_refused(labels: np.ndarray | None, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        RelativeMahalanobisScore().fit(X, labels)


def test_labels_come_from_the_loader() -> None:
    loader = [(torch.tensor(X), torch.tensor(LABELS))]
    score = GaussianScore().fit(model=torch.nn.Identity(), loaders={"train": loader}, layer="")
    np.testing.assert_allclose(score.class_distances(QUERY).numpy(), class_conditional(LedoitWolf), rtol=1e-8)
    with pytest.raises(InvalidInputError, match="labels are needed, but the loader yields a Tensor"):
        GaussianScore().fit(model=torch.nn.Identity(), loaders={"train": [torch.tensor(X)]}, layer="")
    with pytest.raises(InvalidInputError, match="needs the labels"):
        GaussianScore().fit(X)


def test_use_before_fit_and_training_scores_as_calibration_are_refused() -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        GaussianScore().class_distances(QUERY)
    with pytest.raises(NotFittedError, match="no calibration scores"):
        GaussianScore().fit(X, LABELS).set_threshold(0.9)


def test_a_small_difference_of_distances_keeps_its_digits():
    random = np.random.default_rng(0)
    X, y = random.normal(size=(200, 6)).astype(np.float32), np.arange(200) % 3  # classes that hardly differ
    score = RelativeMahalanobisScore().fit(X=X, y=y)
    parts = []
    for one in (score, score.background):
        center, whitening, means = (t.double().numpy() for t in (one.center, one.whitening, one.means))
        inside = (X - center) @ whitening
        parts.append(np.square(inside[:, None] - means[None]).sum(2).min(1))
    np.testing.assert_allclose(score.score(X).numpy(), parts[0] - parts[1], rtol=2e-7)
