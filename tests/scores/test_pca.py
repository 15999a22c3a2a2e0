from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from selkit.errors import InvalidInputError, NotAvailableError, NotFittedError
from selkit.scores import PCAScore, TensorPCA

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 8)) @ np.diag([5, 4, 3, 1, 0.5, 0.1, 0.1, 0.1]) @ RNG.normal(size=(8, 8)) + 7
QUERY = RNG.normal(size=(15, 8)) * 5


@pytest.mark.parametrize("components", [1, 3, 7, 0.5, 0.9, 0.999])
def test_components_are_those_of_sklearn(components: float) -> None:
    ours, theirs = TensorPCA(components).fit(X), PCA(components).fit(X)
    assert ours.components is not None
    assert ours.components.shape == theirs.components_.shape
    signs = np.sign((ours.components.numpy() * theirs.components_).sum(1))
    np.testing.assert_allclose(ours.transform(QUERY).numpy() * signs, theirs.transform(QUERY), atol=1e-8)
    np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(ours.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-9)
    back = theirs.inverse_transform(theirs.transform(QUERY))
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(QUERY)).numpy(), back, atol=1e-8)
    kept, error = ours.reconstruct(QUERY)
    np.testing.assert_allclose(kept.numpy(), back, atol=1e-8)
    np.testing.assert_allclose(error.numpy(), np.linalg.norm(QUERY - back, axis=1), rtol=1e-8)
    np.testing.assert_allclose(PCAScore(components).fit(X=X).score(QUERY).numpy(), error.numpy(), rtol=1e-12)


@pytest.mark.parametrize("center", [True, False])
def test_a_stream_gives_what_all_at_once_gives(center: bool) -> None:
    stream = TensorPCA(3, mean_center=center)
    for part in np.array_split(X, [1, 2, 40, 41]):
        stream.partial_fit(part)
    whole = TensorPCA(3, mean_center=center).fit(X)
    stream.finalize()
    np.testing.assert_allclose(stream.reconstruct(QUERY)[1], whole.reconstruct(QUERY)[1], rtol=1e-9)
    if not center:
        _, _, rows = np.linalg.svd(X, full_matrices=False)
        left = QUERY - QUERY @ rows[:3].T @ rows[:3]
        np.testing.assert_allclose(whole.reconstruct(QUERY)[1], np.linalg.norm(left, axis=1), rtol=1e-8)
    stream.partial_fit(QUERY).finalize()
    more = TensorPCA(3, mean_center=center).fit(np.concatenate([X, QUERY]))
    np.testing.assert_allclose(stream.reconstruct(QUERY)[1], more.reconstruct(QUERY)[1], rtol=1e-9)
    assert not stream.reset_partial().is_fitted


def test_a_stream_far_from_the_origin_keeps_its_digits() -> None:
    far = X + 1e6
    stream = TensorPCA(2)
    for part in np.array_split(far, 7):
        stream.partial_fit(part)
    np.testing.assert_allclose(
        stream.finalize().explained_variance, PCA(2).fit(X).explained_variance_, rtol=1e-6
    )


def test_random_features_approach_the_kernel() -> None:
    pca = TensorPCA(5, gamma=0.02, M=20000, seed=3)
    pca._draw(torch.tensor(X))
    features = pca._features(torch.tensor(QUERY)).numpy()
    kernel = np.exp(-0.02 * ((QUERY[:, None] - QUERY) ** 2).sum(2))
    np.testing.assert_allclose(features @ features.T, kernel, atol=0.04)
    assert np.abs(kernel - np.eye(15)).max() > 0.2  # the tolerance is below the signal


def test_random_features_are_reproducible_and_have_an_error_but_no_inverse() -> None:
    one, two = (TensorPCA(5, gamma=0.02, M=64, seed=1).fit(X) for _ in range(2))
    other = TensorPCA(5, gamma=0.02, M=64, seed=2).fit(X)
    assert torch.equal(one.reconstruct(QUERY)[1], two.reconstruct(QUERY)[1])
    assert not torch.equal(one.reconstruct(QUERY)[1], other.reconstruct(QUERY)[1])
    features = one._features(torch.tensor(QUERY)).numpy()
    theirs = PCA(5).fit(one._features(torch.tensor(X)).numpy())
    left = features - theirs.inverse_transform(theirs.transform(features))
    np.testing.assert_allclose(one.reconstruct(QUERY)[1], np.linalg.norm(left, axis=1), rtol=1e-6)
    with pytest.raises(NotAvailableError, match="cannot be undone"):
        one.inverse_transform(one.transform(QUERY))
    far = PCAScore(TensorPCA(10, gamma=0.01, M=64)).fit(X=X)
    assert far.score(X).mean() < far.score(X * 10).mean()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: TensorPCA(9).fit(X), InvalidInputError, "at most 8 components"),
        (lambda: TensorPCA(5).fit(X[:4]), InvalidInputError, "at most 3 components"),
        (lambda: TensorPCA(0).fit(X), InvalidInputError, "n_components must be a whole number"),
        (lambda: TensorPCA(1.5).fit(X), InvalidInputError, "n_components must be a fraction"),
        (lambda: TensorPCA(2).fit(X[:1]), InvalidInputError, "at least 2 samples"),
        (lambda: TensorPCA(2).fit(np.ones((5, 3))), InvalidInputError, "do not vary"),
        (lambda: TensorPCA(2, mode="rff").fit(X), InvalidInputError, "need both gamma= and M="),
        (
            lambda: TensorPCA(2, gamma=-1.0, M=4).fit(X),
            InvalidInputError,
            "gamma must be a finite number above 0",
        ),
        (lambda: TensorPCA(2, mode="rbf").fit(X), InvalidInputError, "mode must be"),  # type: ignore[arg-type]
        (lambda: TensorPCA(2).transform(X), NotFittedError, "not fitted yet"),
        (lambda: TensorPCA(2).finalize(), NotFittedError, "has seen no samples"),
        (lambda: TensorPCA(2).fit(X).transform(X[:, :3]), InvalidInputError, "X has 3 features"),
        (lambda: TensorPCA(2).partial_fit(X).partial_fit(X[:, :3]), InvalidInputError, "X has 3 features"),
        (lambda: TensorPCA(2).fit(np.full((3, 3), np.nan)), InvalidInputError, "NaN"),
        (lambda: PCAScore(8).fit(X=X), InvalidInputError, "all 8 components are kept"),
        (lambda: PCAScore(1.0).fit(X=X), InvalidInputError, "all 8 components are kept"),
    ],
)
def test_misuse_is_refused(make: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()  # type: ignore[operator]
