from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import exceptions
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, KFold, PredefinedSplit
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from selkit.calibration import cross_val_scores
from selkit.errors import InvalidInputError, NotFittedError
from selkit.scores import CosineScore, EuclideanScore, GaussianScore, TensorPCA

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4)) * [1, 10, 100, 1000]
QUERY = RNG.normal(size=(30, 4)) * [2, 20, 200, 2000]


def test_at_the_end_of_a_pipeline() -> None:
    pipe = make_pipeline(StandardScaler(), EuclideanScore(k=3))
    with pytest.raises(NotFittedError):
        pipe[-1].score_samples(QUERY)
    pipe.fit(X, np.zeros(200))
    check_is_fitted(pipe[-1])
    scaled = StandardScaler().fit(X)
    expected = NearestNeighbors(n_neighbors=3).fit(scaled.transform(X)).kneighbors(scaled.transform(QUERY))[0]
    samples = pipe.score_samples(QUERY)
    assert isinstance(samples, np.ndarray)
    np.testing.assert_allclose(samples, -expected[:, 2], rtol=1e-9)
    pipe[-1].set_threshold(0.9)
    decision = pipe.decision_function(QUERY)
    np.testing.assert_allclose(decision, float(pipe[-1].threshold) + samples, rtol=1e-9)
    assert (pipe.predict(QUERY) == np.where(decision >= 0, 1, -1)).all()
    assert pipe[-1].fit(pd.DataFrame(X)).score_samples(pd.DataFrame(QUERY)).shape == (30,)


def test_labels_reach_the_score() -> None:
    labels = np.arange(200) % 2
    pipe = make_pipeline(StandardScaler(), GaussianScore()).fit(X + labels[:, None], labels)
    assert pipe[-1].classes.tolist() == [0, 1]


def test_clones_are_unfitted_and_equal() -> None:
    for score in (EuclideanScore(k=4, stat="mean"), CosineScore(k=2, pca=TensorPCA(2, seed=5))):
        twin = clone(score.fit(X))
        assert not twin.is_fitted
        assert repr(twin.get_params()) == repr(score.get_params())
    search = GridSearchCV(
        make_pipeline(StandardScaler(), EuclideanScore()),
        {"euclideanscore__k": [1, 5]},
        scoring=lambda fitted, held, y=None: float(fitted.score_samples(held).mean()),
        cv=3,
    ).fit(X)
    assert search.best_params_ == {"euclideanscore__k": 1}


def test_out_of_fold_scores_use_nothing_of_their_fold() -> None:
    pipe = make_pipeline(StandardScaler(), PCA(2), EuclideanScore(k=2))
    found = cross_val_scores(pipe, X, cv=4)
    for train, test in KFold(4).split(X):
        scaler = StandardScaler().fit(X[train])
        reduce = PCA(2).fit(scaler.transform(X[train]))
        near = NearestNeighbors(n_neighbors=2).fit(reduce.transform(scaler.transform(X[train])))
        expected = near.kneighbors(reduce.transform(scaler.transform(X[test])))[0][:, 1]
        np.testing.assert_allclose(found[test], expected, rtol=1e-7)
    with pytest.raises(exceptions.NotFittedError):
        pipe.score_samples(X)  # cloned, not fitted
    with pytest.raises(InvalidInputError, match="leaves 100 of 200 samples in no test fold"):
        cross_val_scores(pipe, X, cv=PredefinedSplit(np.repeat([-1, 0], 100)))


def test_thresholds_out_of_folds_keep_their_coverage_and_training_scores_do_not() -> None:
    fresh = RNG.normal(size=(20000, 4)) * [1, 10, 100, 1000]
    pipe = make_pipeline(StandardScaler(), EuclideanScore(k=1))
    scores = cross_val_scores(pipe, X)
    pipe.fit(X)
    pipe[-1].calibrate(coverage=0.9, scores=scores)
    assert 0.87 < (pipe.predict(fresh) == 1).mean() < 0.96
    pipe[-1].set_threshold(0.9, scores=-pipe.score_samples(X))  # each sample is its own neighbour
    assert (pipe.predict(fresh) == 1).mean() < 0.01


def test_torch_and_sklearn_say_the_same() -> None:
    score = EuclideanScore(k=2).fit(X=X).set_threshold(0.8)
    chosen = score.select(torch.tensor(QUERY))
    assert (score.predict(QUERY) == 2 * chosen["selected"].int().numpy() - 1).all()
