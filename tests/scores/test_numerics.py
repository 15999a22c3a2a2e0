"""Digits of scores: far from the origin, alone and in a batch, saved and loaded, in any dtype."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf, shrunk_covariance
from sklearn.decomposition import PCA
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from selkit.errors import InvalidInputError
from selkit.scores import (
    ClassWiseScore,
    CosineClassWiseScore,
    CosineScore,
    EnergyScore,
    EntropyScore,
    EuclideanClassWiseScore,
    EuclideanScore,
    GaussianScore,
    MahalanobisClassWiseScore,
    MahalanobisScore,
    MarginScore,
    MaxLogitScore,
    MutualInformationScore,
    PCAScore,
    PredictiveVarianceScore,
    RelativeMahalanobisScore,
    SoftmaxScore,
    TensorPCA,
    UncertaintyScore,
    ViMScore,
)

D = 16
RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(D, D)) / 4 + np.eye(D)
WEIGHT, BIAS = RNG.normal(size=(3, D)), RNG.normal(size=3)
WEIGHT[0] = np.abs(WEIGHT[0])  # a logit that is large where ViM needs one


def drawn(count: int, mean: float) -> np.ndarray:
    """Float32 data whose mean is that many standard deviations from the origin."""
    return (RNG.normal(size=(count, D)) @ MIX + mean).astype(np.float32)


def covariance(rows: np.ndarray, members: np.ndarray) -> np.ndarray:
    centred = np.concatenate([rows[members == c] - rows[members == c].mean(0) for c in np.unique(members)])
    return ledoit_wolf(centred, assume_centered=True)[0]


def nearest_of(distances: np.ndarray, k: int) -> np.ndarray:
    return np.sort(distances, 1)[:, k - 1]


def mahalanobis(q: np.ndarray, means: np.ndarray, cov: np.ndarray) -> np.ndarray:
    return cdist(q, means, "mahalanobis", VI=np.linalg.inv(cov))


def cosine(q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """From the angle's sine, in extended precision: 1 - cos of nearly equal directions cancels."""
    q, r = q.astype(np.longdouble), r.astype(np.longdouble)
    q, r = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (q, r))
    return (((q[:, None] - r) ** 2).sum(2) / 2).astype(np.float64)


def of_class(one: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Any:
    def score(q: np.ndarray, r: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.min([one(q, r[y == c]) for c in np.unique(y)], 0)

    return score


def residual(q: np.ndarray, r: np.ndarray, number: int) -> np.ndarray:
    pca = PCA(number, svd_solver="full").fit(r)
    return np.linalg.norm(q - pca.inverse_transform(pca.transform(q)), axis=1)


def whole(q: np.ndarray, r: np.ndarray) -> np.ndarray:
    return mahalanobis(q, r, covariance(r, np.zeros(len(r))))


def means(r: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([r[y == c].mean(0) for c in np.unique(y)])


def relative(q: np.ndarray, r: np.ndarray, y: np.ndarray) -> np.ndarray:
    one = np.zeros(len(r))
    near = mahalanobis(q, means(r, y), covariance(r, y)).min(1) ** 2
    return near - mahalanobis(q, means(r, one), covariance(r, one))[:, 0] ** 2


def vim(q: np.ndarray, r: np.ndarray, y: np.ndarray) -> np.ndarray:
    origin = -np.linalg.pinv(WEIGHT) @ BIAS
    outside = np.linalg.svd(r - origin)[2][5:]
    lengths = [np.linalg.norm((x - origin) @ outside.T, axis=1) for x in (q, r)]
    logits = [x @ WEIGHT.T + BIAS for x in (q, r)]
    alpha = logits[1].max(1).mean() / lengths[1].mean()
    return alpha * lengths[0] - logsumexp(logits[0], axis=1)


FAR: list[tuple[UncertaintyScore, Callable[[Any, Any, Any], np.ndarray]]] = [
    (EuclideanScore(k=3), lambda q, r, y: nearest_of(cdist(q, r), 3)),
    (EuclideanScore(k=3, stat="mean"), lambda q, r, y: np.sort(cdist(q, r), 1)[:, :3].mean(1)),
    (
        EuclideanScore(pca=4),
        lambda q, r, y: nearest_of(
            cdist(*(PCA(4, svd_solver="full").fit(r).transform(x) for x in (q, r))), 1
        ),
    ),
    (CosineScore(k=2), lambda q, r, y: nearest_of(cosine(q, r), 2)),
    (MahalanobisScore(k=2), lambda q, r, y: nearest_of(whole(q, r), 2)),
    (GaussianScore(), lambda q, r, y: mahalanobis(q, means(r, y), covariance(r, y)).min(1) ** 2),
    (
        GaussianScore(one_class=True),
        lambda q, r, y: mahalanobis(q, r.mean(0)[None], covariance(r, np.zeros(len(r))))[:, 0] ** 2,
    ),
    (RelativeMahalanobisScore(), relative),
    (PCAScore(10), lambda q, r, y: residual(q, r, 10)),
    (ViMScore((WEIGHT, BIAS), n_components=5), vim),
    (EuclideanClassWiseScore(k=2), of_class(lambda q, r: nearest_of(cdist(q, r), 2))),
    (CosineClassWiseScore(), of_class(lambda q, r: nearest_of(cosine(q, r), 1))),
    (MahalanobisClassWiseScore(), of_class(lambda q, r: nearest_of(whole(q, r), 1))),
    (ClassWiseScore(PCAScore(7)), of_class(lambda q, r: residual(q, r, 7))),
]


def called(score: Any) -> str:
    return repr(score).split("head=")[0].split("\n")[0]


NAMES = [called(score) for score, _ in FAR]


def oracle_holds(found: torch.Tensor, expected: np.ndarray) -> None:
    # a difference of large numbers is as exact as they are
    scale = np.maximum(np.abs(expected), 1e-6 * np.abs(expected).max())
    assert np.max(np.abs(found.double().numpy() - expected) / scale) < 1e-5


@pytest.mark.parametrize("mean", [0.0, 1e5])
@pytest.mark.parametrize(("score", "oracle"), FAR, ids=NAMES)
def test_far_from_the_origin_scores_are_those_of_float64(score: Any, oracle: Any, mean: float) -> None:
    reference, query = drawn(300, mean), drawn(50, mean)
    # among the queries, some that nearly are references
    query[:5] = reference[:5] + np.float32(0.05)
    y = np.arange(300) % 3
    made = type(score)(**score.get_params(deep=False)).fit(reference, y)
    expected = oracle(query.astype(np.float64), reference.astype(np.float64), y)
    found = made.score(query)
    assert found.dtype is torch.float32
    oracle_holds(found, expected)
    oracle_holds(made.score(query.astype(np.float64)), expected)
    with pytest.raises(AssertionError):
        oracle_holds(found * (1 + 3e-5), expected)


def test_neighbours_far_from_the_origin_are_the_right_ones() -> None:
    reference, query = drawn(500, 1e5), drawn(200, 1e5)
    _, index = MahalanobisScore().fit(X=reference).knn_search(query)
    exact = whole(query.astype(np.float64), reference.astype(np.float64))
    assert (index[:, 0].numpy() == exact.argmin(1)).all()


MEMBERS = np.stack([drawn(40, 0.0)[:, :4], drawn(40, 0.0)[:, :4]], 2)
LOGITS: list[UncertaintyScore] = [
    EnergyScore(),
    EnergyScore(0.7),
    EnergyScore(task="multilabel"),
    SoftmaxScore(),
    MaxLogitScore(),
    MarginScore(),
    EntropyScore(),
    EntropyScore("fit"),
    MutualInformationScore(),
    PredictiveVarianceScore(),
]
ALL = [score for score, _ in FAR] + LOGITS


def made_of(score: Any, mean: float, dtype: type = np.float32) -> tuple[Any, np.ndarray]:
    """A fitted score, and its calibration set."""
    rng = np.random.default_rng(1)
    shape = (300, 4, 2) if isinstance(score, MutualInformationScore | PredictiveVarianceScore) else (300, D)
    X, Y = ((rng.normal(size=shape) + mean).astype(dtype) for _ in range(2))
    y, y_cal = (rows.reshape(300, -1)[:, :3].argmax(1) * (np.arange(300) % 4 > 0) for rows in (X, Y))
    fresh = type(score)(**score.get_params(deep=False))
    return fresh.fit(X, y, Y=Y, y_cal=y_cal), Y


def query_of(score: Any, rows: np.ndarray, at: slice) -> Any:
    if isinstance(score, ClassWiseScore):
        assert score.calibration_labels is not None
        return {"embedding": rows[at], "prediction": score.calibration_labels[at]}
    return rows[at]


@pytest.mark.parametrize("mean", [1e3])
@pytest.mark.parametrize("score", ALL, ids=called)
def test_decisions_at_calibration_samples_do_not_depend_on_how_they_are_asked(
    score: Any, mean: float
) -> None:
    """Batch, dtype and threads change last digits; every calibration sample is at the threshold once."""
    threads = torch.get_num_threads()
    for dtype in (np.float32, np.float64):
        made, Y = made_of(score, mean, dtype)
        known = made.calibration_scores
        ways = [slice(at, at + 1) for at in range(6)], [slice(0, 20)], [slice(0, 7), slice(7, 20)]
        for values in (Y, Y.astype(np.float64)):
            for number in (1, 2):
                torch.set_num_threads(number)
                for way in ways:
                    found = torch.cat([made.score(query_of(made, values, at)) for at in way])
                    assert torch.equal(found, known[: len(found)])
                torch.set_num_threads(threads)


@pytest.mark.parametrize("score", [*(s for s, _ in FAR[:7]), EnergyScore()], ids=called)
def test_the_sample_on_the_threshold_is_selected_for_a_coverage_and_rejected_for_a_risk(score: Any) -> None:
    made, Y = made_of(score, 1e3)
    known = made.calibration_scores
    losses = (known >= known.sort().values[200]).float()
    made.calibrate(coverage=0.8)
    on = int((known == made.threshold).nonzero()[0, 0])
    assert bool(made.select(Y[on : on + 1])["selected"])
    # from scores that are given, too: they are not those of the calibration set
    made.calibration_scores = None
    for scores in (known, known.double()):
        made.calibrate(risk=0.05, losses=losses, scores=scores)
        limit = float(made.threshold)
        on = int((known.double() - limit).where(known > limit, torch.inf).argmin())
        assert limit < float(known[on]) < limit + abs(limit) * 1e-6
        for values in (Y, Y.astype(np.float64)):
            assert not bool(made.select(values[on : on + 1])["selected"])
        expected = known < known[on]
        assert torch.equal(made.select(Y)["selected"], expected)
        made.calibrate(coverage=0.8, scores=scores)
        assert int(made.select(Y)["selected"].sum()) == int((known <= known.sort().values[240]).sum())


@pytest.mark.parametrize("score", ALL, ids=called)
def test_a_score_hardly_depends_on_the_batch(score: Any) -> None:
    made, Y = made_of(score, 1e3)
    if isinstance(made, ClassWiseScore):
        made.fit(Y, np.arange(300) % 3)
    else:
        made.calibration_scores = None  # nothing is put onto known scores
    query = Y + np.float32(0.25)
    alone = torch.cat([made.score(row[None]) for row in query[:40]]).double()
    batch = made.score(query)[:40].double()
    assert float(((alone - batch).abs() / batch.abs().clamp(min=1e-9)).max()) < 1e-6


@pytest.mark.parametrize("score", ALL, ids=called)
def test_state_has_one_layout_from_fit_on(score: Any, tmp_path: Path) -> None:
    """Another layout is another kernel on some processor, whose last digits differ."""
    made, _ = made_of(score, 0.0)
    made.set_threshold(0.9)
    assert all(value.is_contiguous() for value in made.state_dict().values())
    made.save(tmp_path / "score.safetensors")
    loaded = type(made).load(tmp_path / "score.safetensors")
    for name, value in made.state_dict().items():
        other = loaded.state_dict()[name]
        assert (other.dtype, other.stride()) == (value.dtype, value.stride())
        assert torch.equal(other, value)


def test_references_of_any_layout_are_stored_in_rows() -> None:
    X = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).T
    made = EuclideanScore().fit(X=X)
    assert made.state_dict()["reference"].is_contiguous()
    state = {name: value.T if value.ndim == 2 else value for name, value in made.state_dict().items()}
    state["reference"] = X
    again = EuclideanScore()
    again.load_state_dict(state)
    assert again.state_dict()["reference"].is_contiguous()


@pytest.mark.parametrize("score", [EuclideanScore(), GaussianScore(one_class=True), MahalanobisScore()])
@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_a_score_keeps_its_digits_where_the_module_around_it_loses_them(score: Any, cast: str) -> None:
    made, Y = made_of(score, 0.0)
    expected = made.set_threshold(0.9).select(Y)
    around = torch.nn.ModuleDict({"score": made, "layer": torch.nn.Linear(2, 2)})
    getattr(around, cast)()
    assert around["layer"].weight.dtype in (torch.float16, torch.bfloat16)
    found = made.select(Y)
    assert torch.equal(found["score"], expected["score"])
    assert found["score"].dtype is torch.float32
    assert torch.equal(found["selected"], expected["selected"])
    assert made.double().score(Y).dtype is torch.float64


@pytest.mark.parametrize("score", [s for s, _ in FAR], ids=called)
def test_numbers_whose_squares_overflow_are_refused_not_made_into_nan(score: Any) -> None:
    made, Y = made_of(score, 0.0, np.float64)
    cosine_like = isinstance(score, CosineScore | CosineClassWiseScore)
    huge = Y[:5] * 1e300
    if cosine_like:
        assert bool(torch.isfinite(made.score(huge)).all())
        return
    with pytest.raises(InvalidInputError, match="overflow"):
        made.score(huge)
    fresh = type(score)(**score.get_params(deep=False))
    with pytest.raises(InvalidInputError, match="overflow"):
        fresh.fit(Y, np.arange(300) % 3, Y=huge, y_cal=np.arange(5) % 3).set_threshold(0.9)
    with pytest.raises(InvalidInputError, match=r"overflow|ViM cannot match"):
        fresh.fit(Y * 1e300, np.arange(300) % 3)


def test_components_of_data_far_from_the_origin() -> None:
    X = drawn(200, 1e5)
    pca = TensorPCA(5).fit(X)
    expected = PCA(5, svd_solver="full").fit(X.astype(np.float64))
    found = pca.transform(X).double().numpy()
    want = expected.transform(X.astype(np.float64))
    signs = np.sign((found * want).sum(0))
    np.testing.assert_allclose(found * signs, want, rtol=1e-5, atol=1e-5)
    _, error = pca.reconstruct(X)
    np.testing.assert_allclose(error, residual(*(X.astype(np.float64),) * 2, 5), rtol=1e-5)


@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", 0.1])
def test_fewer_samples_than_dimensions_score_as_a_dense_covariance_does(shrinkage: Any) -> None:
    X, query = RNG.normal(size=(40, 90)) * np.geomspace(1, 5, 90), RNG.normal(size=(20, 90))
    y = np.arange(40) % 2

    def dense(members: np.ndarray) -> np.ndarray:
        if shrinkage == "ledoit-wolf":
            return covariance(X, members)
        centred = np.concatenate([X[members == c] - X[members == c].mean(0) for c in np.unique(members)])
        return shrunk_covariance(centred.T @ centred / 40, shrinkage)

    one = np.zeros(40)
    found = MahalanobisScore(shrinkage=shrinkage).fit(X).score(query)
    np.testing.assert_allclose(found, mahalanobis(query, X, dense(one)).min(1), rtol=1e-9)
    found = GaussianScore(shrinkage).fit(X, y).score(query)
    np.testing.assert_allclose(found, mahalanobis(query, means(X, y), dense(y)).min(1) ** 2, rtol=1e-9)
    np.testing.assert_allclose(PCAScore(12).fit(X).score(query), residual(query, X, 12), rtol=1e-9)
    with pytest.raises(InvalidInputError, match="singular"):
        MahalanobisScore(shrinkage=0.0).fit(X)


@pytest.mark.parametrize("score", [PCAScore(), MahalanobisScore(), GaussianScore(one_class=True)], ids=called)
def test_wide_data_need_no_matrix_of_their_width(score: Any) -> None:
    """What takes minutes is a D x D matrix; nothing that is kept, or made on the way, is that large."""
    X = RNG.normal(size=(40, 1500)).astype(np.float32)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in pytree.tree_leaves(made) if isinstance(t, torch.Tensor))
            return made

    with Sizes():
        score.fit(X).score(X[:3])
    assert 40 * 1500 <= max(sizes) < 1500 * 1500 / 4
    rows = torch.from_numpy(X)
    with Sizes():
        rows.T @ rows
    assert max(sizes) == 1500**2  # it would be seen


@pytest.mark.parametrize("score", [GaussianScore(one_class=True), EuclideanScore(k=3)], ids=called)
def test_a_calibration_set_that_equals_the_references_is_told(score: Any) -> None:
    X = drawn(50, 0.0)
    with pytest.warns(UserWarning, match="equals its references"):
        score.fit(X=X, Y=X.copy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score.fit(X=X, Y=drawn(50, 0.0))
        EnergyScore().fit(X=X, Y=X)


def test_a_loader_alone_fits_a_score_of_logits_and_references() -> None:
    z = torch.tensor(drawn(60, 0.0))
    head = torch.nn.Linear(D, 3)
    loader = [z[:40], z[40:]]
    made = EntropyScore().fit(model=head, loader=loader)
    with torch.no_grad():
        torch.testing.assert_close(made.calibration_scores, EntropyScore().score(head(z)))
    assert torch.equal(EnergyScore().fit(loader=loader).calibration_scores, EnergyScore().score(z))
    assert torch.equal(
        EuclideanScore().fit(loader=loader).score(z + 1), EuclideanScore().fit(X=z).score(z + 1)
    )
    with pytest.raises(InvalidInputError, match="loader= or loaders="):
        EntropyScore().fit(loader=loader, loaders={"train": loader})
