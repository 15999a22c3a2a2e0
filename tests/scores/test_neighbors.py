from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import NearestNeighbors

from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.scores import CosineScore, EuclideanScore, KNNScore, MahalanobisScore, TensorPCA
from selkit.scores.neighbors import STATS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)) @ RNG.normal(size=(6, 6)) + RNG.normal(size=6)
QUERY = RNG.normal(size=(40, 6)) * 2
REDUCE = {
    "max": lambda d: d[:, -1],
    "min": lambda d: d[:, 0],
    "mean": lambda d: d.mean(1),
    "median": lambda d: np.sort(d, 1)[:, (d.shape[1] - 1) // 2],
}


def oracle(kind: type[KNNScore]) -> np.ndarray:
    """All distances, by scipy and scikit-learn."""
    if kind is CosineScore:
        return cosine_distances(QUERY, X)
    if kind is MahalanobisScore:
        return cdist(QUERY, X, "mahalanobis", VI=np.linalg.inv(LedoitWolf().fit(X).covariance_))
    return cdist(QUERY, X)


@pytest.mark.parametrize("stat", STATS)
@pytest.mark.parametrize("k", [1, 4, 5])
@pytest.mark.parametrize("kind", [EuclideanScore, CosineScore, MahalanobisScore])
def test_scores_are_those_of_scipy_and_sklearn(kind: type[KNNScore], k: int, stat: str) -> None:
    score = kind(k=k, stat=stat).fit(X=X)  # type: ignore[arg-type]
    expected = REDUCE[stat](np.sort(oracle(kind), 1)[:, :k])
    np.testing.assert_allclose(score.score(QUERY).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_and_arrays_of_any_precision(dtype: torch.dtype) -> None:
    reference, query = torch.tensor(X, dtype=dtype), torch.tensor(QUERY, dtype=dtype)
    found = EuclideanScore(k=3).fit(X=reference).score(query)
    assert found.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    expected = np.sort(cdist(query.double().numpy(), reference.double().numpy()), 1)[:, 2]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_integers_are_taken_where_float32_holds_them() -> None:
    whole = torch.tensor([[0, 3], [4, 0]])
    assert EuclideanScore().fit(X=whole).score(torch.tensor([[0, 0]])).tolist() == [3.0]
    assert EuclideanScore().fit(X=np.array([[True, False]])).score([[1, 1]]).tolist() == [1.0]
    with pytest.raises(InvalidTypeError, match=r"X holds integers above 2\*\*24"):
        EuclideanScore().fit(X=torch.tensor([[2**24 + 1]]))


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (
            np.full((3, 6), np.nan),
            InvalidInputError,
            "query has NaN or infinite values in 3 of 3 rows, first in row 0",
        ),
        (np.array([[0.0] * 6, [np.inf] * 6]), InvalidInputError, "in 1 of 2 rows, first in row 1"),
        (np.zeros((0, 6)), InvalidInputError, "query is empty"),
        (np.zeros(6), InvalidInputError, r"query must have shape \(samples, features\); got \(6,\)"),
        (np.zeros((2, 5)), InvalidInputError, "query has 5 features, but EuclideanScore was fitted on 6"),
        (np.zeros((2, 6), dtype=complex), InvalidTypeError, "real numbers"),
        (np.array([["a"] * 6]), InvalidTypeError, "query must hold real numbers"),
        ("text", InvalidTypeError, "got str"),
        (torch.zeros(2, 6).to_sparse(), InvalidTypeError, "sparse"),
    ],
)
def test_bad_queries_are_refused(values: object, error: type[Exception], text: str) -> None:
    score = EuclideanScore(k=2).fit(X=X)
    with pytest.raises(error, match=text):
        score.score(values)  # type: ignore[arg-type]
    with pytest.raises(error):
        score.knn_search(values)  # type: ignore[arg-type]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="k=4 neighbours need at least as many references; got 3"):
        EuclideanScore(k=4).fit(X=X[:3])
    with pytest.raises(InvalidInputError, match="k must be a whole number"):
        EuclideanScore(k=0).fit(X=X)
    with pytest.raises(InvalidInputError, match="stat must be one of"):
        EuclideanScore(stat="sum").fit(X=X)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="needs references"):
        EuclideanScore().fit(Y=X)
    with pytest.raises(InvalidInputError, match="same width"):
        EuclideanScore().fit(X=X, Y=X[:, :4])
    with pytest.raises(NotFittedError, match="EuclideanScore is not fitted yet"):
        EuclideanScore().knn_search(QUERY)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_knn_search_names_neighbours_and_can_skip_the_nearest(offset: int) -> None:
    score = EuclideanScore(k=4).fit(X=X)
    distances, index = score.knn_search(X[:50], offset=offset)
    expected, neighbours = NearestNeighbors(n_neighbors=4 + offset).fit(X).kneighbors(X[:50])
    np.testing.assert_allclose(distances.numpy(), expected[:, offset:], atol=1e-12)
    assert (index.numpy() == neighbours[:, offset:]).all()
    with pytest.raises(InvalidInputError, match="301 neighbours are asked for"):
        score.knn_search(X[:1], offset=297)
    with pytest.raises(InvalidInputError, match="offset must be a whole number"):
        score.knn_search(X[:1], offset=-1)


def test_duplicates_are_at_distance_zero() -> None:
    same = np.repeat(X[:5], 30, axis=0)
    score = EuclideanScore(k=20, stat="max").fit(X=same)
    assert score.score(X[:5]).tolist() == [0.0] * 5
    assert score.set_threshold(1.0).threshold == 0


def test_pca_is_that_of_sklearn() -> None:
    reduced = PCA(3).fit(X)
    expected = np.sort(cdist(reduced.transform(QUERY), reduced.transform(X)), 1)[:, 1]
    for pca in (3, TensorPCA(3), TensorPCA(3).fit(X)):
        score = EuclideanScore(k=2, pca=pca).fit(X=X)
        np.testing.assert_allclose(score.score(QUERY).numpy(), expected, rtol=1e-8)
    unfitted = TensorPCA(3)
    EuclideanScore(pca=unfitted).fit(X=X)
    assert not unfitted.is_fitted
    with pytest.raises(InvalidInputError, match="X has 5 features; TensorPCA was fitted on 6"):
        EuclideanScore(pca=TensorPCA(3).fit(X)).fit(X=X[:, :5])


def test_q_keeps_the_usual_references() -> None:
    outliers = np.concatenate([X, [[100.0] * 6, [-100.0] * 6]])
    score = EuclideanScore(k=2).fit(X=outliers, q=0.99)
    own = NearestNeighbors(n_neighbors=3).fit(outliers).kneighbors(outliers)[0][:, 2]
    kept = outliers[own <= np.quantile(own, 0.99)]
    assert len(kept) < len(outliers)
    np.testing.assert_allclose(score.score(QUERY).numpy(), np.sort(cdist(QUERY, kept), 1)[:, 1], rtol=1e-9)
    assert score.score(np.full((1, 6), 100.0)) > 50
    for q in (0, 1.5, True, "0.5"):
        with pytest.raises(InvalidInputError, match=r"q .*must be a fraction"):
            EuclideanScore().fit(X=X, q=q)  # type: ignore[arg-type]


def test_cosine_of_a_zero_vector_is_one_and_zero_references_are_refused() -> None:
    score = CosineScore(k=2).fit(X=X)
    assert score.score(np.zeros((1, 6))).tolist() == [1.0]
    huge = torch.tensor(QUERY * 1e150)
    np.testing.assert_allclose(score.score(huge), score.score(QUERY), rtol=1e-9)
    with pytest.raises(InvalidInputError, match="references are zero everywhere, first in row 1"):
        CosineScore().fit(X=np.array([[1.0, 0.0], [0.0, 0.0]]))


def test_cosine_of_nearly_parallel_vectors_keeps_its_digits() -> None:
    angle = 1e-4
    query = torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float32)
    found = CosineScore().fit(X=torch.tensor([[1.0, 0.0]])).score(query)
    naive = 1 - torch.nn.functional.cosine_similarity(query, torch.tensor([[1.0, 0.0]]))
    assert abs(float(naive) / (angle**2 / 2) - 1) > 0.5
    np.testing.assert_allclose(float(found), 1 - np.cos(angle), rtol=1e-4)


def test_mahalanobis_works_with_fewer_samples_than_dimensions() -> None:
    few = RNG.normal(size=(20, 50))
    query = RNG.normal(size=(5, 50))
    inverse = np.linalg.inv(LedoitWolf().fit(few).covariance_)
    expected = np.sort(cdist(query, few, "mahalanobis", VI=inverse), 1)[:, 0]
    np.testing.assert_allclose(MahalanobisScore().fit(X=few).score(query).numpy(), expected, rtol=1e-8)
    with pytest.raises(InvalidInputError, match=r"covariance of the references is singular.*ledoit-wolf"):
        MahalanobisScore(shrinkage=0.0).fit(X=few)
    with pytest.raises(InvalidInputError, match="covariance of the references is zero"):
        MahalanobisScore().fit(X=np.ones((10, 3)))
    with pytest.raises(InvalidInputError, match="shrinkage"):
        MahalanobisScore(shrinkage="oas").fit(X=X)  # type: ignore[arg-type]


def test_mahalanobis_does_not_depend_on_units() -> None:
    units = np.diag([1e-3, 1.0, 1e3, 5.0, 2.0, 0.1])
    one = MahalanobisScore(k=3, shrinkage=0.0).fit(X=X).score(QUERY)
    two = MahalanobisScore(k=3, shrinkage=0.0).fit(X=X @ units).score(QUERY @ units)
    np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-7)


def test_without_a_calibration_set_the_references_judge_each_other() -> None:
    score = EuclideanScore(k=3).fit(X=X).set_threshold(0.9, method="inverted_cdf")
    own = NearestNeighbors(n_neighbors=4).fit(X).kneighbors(X)[0][:, 3]
    assert score.threshold is not None
    np.testing.assert_allclose(
        float(score.threshold), np.quantile(own, 0.9, method="inverted_cdf"), rtol=1e-9
    )
    with pytest.raises(NotFittedError, match="no calibration scores"):
        score.calibrate(coverage=0.9)  # its promise needs data that were not fitted on
    with pytest.raises(NotFittedError, match="no calibration scores"):
        EuclideanScore(k=3).fit(X=X[:3]).set_threshold(0.9)


def test_fitting_again_starts_afresh() -> None:
    score = EuclideanScore().fit(X=X, Y=QUERY).set_threshold(0.5)
    score.fit(X=QUERY[:, :3])
    assert score.threshold is None
    assert score.calibration_scores is None
    assert score.score(QUERY[:, :3]).abs().max() == 0


def test_a_score_of_moved_references_answers_on_the_query_device() -> None:
    score = EuclideanScore().fit(X=torch.tensor(X)).to("meta")
    assert all(buffer.device.type == "meta" for buffer in score.buffers())
