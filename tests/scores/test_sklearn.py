from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import exceptions
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, KFold, PredefinedSplit, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from selkit.calibration import cross_val_scores
from selkit.errors import InvalidInputError, NotFittedError
from selkit.scores import CosineScore, EuclideanScore, GaussianScore, PCAScore, TensorPCA

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


@pytest.mark.parametrize("y", [None, np.zeros(200)])
def test_a_search_without_scoring_compares_held_out_densities(y: Any) -> None:
    """scikit-learn asks score() for one number, as of a density estimator."""
    search = GridSearchCV(EuclideanScore(), {"k": [1, 3, 5]}, cv=4).fit(X, y)
    expected = []
    for k in (1, 3, 5):
        folds = []
        for train, test in KFold(4).split(X):
            found = NearestNeighbors(n_neighbors=k).fit(X[train]).kneighbors(X[test])[0]
            folds.append(-found[:, -1].mean())
        expected.append(np.mean(folds))
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected, rtol=1e-9)
    pipe = make_pipeline(StandardScaler(), EuclideanScore())
    assert len(cross_val_score(pipe, X, cv=3)) == 3
    assert GridSearchCV(pipe, {"euclideanscore__k": [1, 2]}, cv=3).fit(X).best_params_
    assert EuclideanScore().fit(X).score(QUERY).shape == (30,)
    with pytest.raises(InvalidInputError, match="score takes no y"):
        EuclideanScore().fit(X).score(QUERY, np.zeros(30))


@pytest.mark.parametrize("score", [EuclideanScore(k=2), GaussianScore(one_class=True), PCAScore(2)], ids=repr)
def test_fit_predict_judges_each_reference_without_itself(score: Any) -> None:
    found = score.fit_predict(X, q=0.9)
    assert set(found) == {1, -1}
    assert abs((found == 1).mean() - 0.9) <= 0.01
    far = X.copy()
    far[7] += 1e5
    assert score.fit_predict(far)[7] == -1
    pipe = make_pipeline(StandardScaler(), score)
    assert (pipe.fit_predict(X, **{f"{pipe.steps[-1][0]}__q": 0.9}) == 1).sum() == 180
    assert pipe.predict(QUERY).shape == (30,)
