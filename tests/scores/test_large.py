from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from selkit.errors import (
    FileFormatError,
    InvalidInputError,
    InvalidTypeError,
    MissingExtraError,
    NotAvailableError,
)
from selkit.scores import CosineScore, EuclideanScore, KNNScore, MahalanobisScore, rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3000, 6)).astype(np.float32) + 1
QUERY = RNG.normal(size=(40, 6)).astype(np.float32)
KINDS = [EuclideanScore, CosineScore, MahalanobisScore]


@pytest.fixture
def file(tmp_path: Path) -> np.memmap[Any, Any]:
    np.save(tmp_path / "references.npy", X)
    return np.load(tmp_path / "references.npy", mmap_mode="r")


@pytest.mark.parametrize("pca", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_what_memory_gives(
    kind: type[KNNScore],
    pca: int | None,
    file: np.memmap[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = kind(k=4, pca=pca).fit(X=X, Y=QUERY).set_threshold(0.7)
    monkeypatch.setattr(rows, "BLOCK", 700)
    score = kind(k=4, pca=pca).fit(X=file, Y=QUERY).set_threshold(0.7)
    assert score.reference is None
    torch.testing.assert_close(score.score(QUERY), expected.score(QUERY), rtol=1e-5, atol=0)
    assert torch.equal(score.knn_search(QUERY)[1], expected.knn_search(QUERY)[1])
    own = kind(k=4, pca=pca).fit(X=file).set_threshold(0.7)
    torch.testing.assert_close(
        own.threshold, kind(k=4, pca=pca).fit(X=X).set_threshold(0.7).threshold, rtol=1e-5, atol=0
    )
    score.save(tmp_path / "score.safetensors")
    assert (tmp_path / "score.safetensors").stat().st_size < X.nbytes / 2
    assert torch.equal(kind.load(tmp_path / "score.safetensors").score(QUERY), score.score(QUERY))
    pickled = pickle.dumps(score)
    assert len(pickled) < X.nbytes / 2
    assert torch.equal(pickle.loads(pickled).score(QUERY), score.score(QUERY))


def test_a_file_that_changed_or_went_is_noticed(file: np.memmap[Any, Any], tmp_path: Path) -> None:
    score = EuclideanScore(k=2).fit(X=file)
    score.save(tmp_path / "score.safetensors")
    path = tmp_path / "references.npy"
    content = path.read_bytes()
    np.save(path, X[::-1])
    with pytest.raises(FileFormatError, match="does not hold the references of fit any more"):
        EuclideanScore.load(tmp_path / "score.safetensors").score(QUERY)
    path.write_bytes(content[:1000])
    with pytest.raises(FileFormatError, match="cannot be read any more"):
        EuclideanScore.load(tmp_path / "score.safetensors").score(QUERY)


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    np.save(tmp_path / "half.npy", X.astype(np.float16))
    half = np.load(tmp_path / "half.npy", mmap_mode="r")
    expected = EuclideanScore(k=2).fit(X=X.astype(np.float16)).score(QUERY)
    assert torch.equal(EuclideanScore(k=2).fit(X=half).score(QUERY), expected)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    def opened(array: np.ndarray) -> np.memmap[Any, Any]:
        np.save(tmp_path / "bad.npy", array)
        return np.load(tmp_path / "bad.npy", mmap_mode="r")

    bad = X.copy()
    bad[2500, 1] = np.nan
    with pytest.raises(
        InvalidInputError,
        match=r"X\[0:3000\] has NaN or infinite values in 1 of 3000 rows, first in row 2500",
    ):
        EuclideanScore().fit(X=opened(bad))
    with pytest.raises(InvalidTypeError, match="X must hold floating numbers; the file has int64"):
        EuclideanScore().fit(X=opened(np.arange(12).reshape(4, 3)))
    with pytest.raises(InvalidInputError, match="X must have shape"):
        EuclideanScore().fit(X=opened(X[0]))
    with pytest.raises(NotAvailableError, match="q= needs references in memory"):
        EuclideanScore().fit(X=opened(X), q=0.9)
    with pytest.raises(NotAvailableError, match="index='faiss' needs references in memory"):
        EuclideanScore(index="faiss").fit(X=opened(X))


@pytest.fixture(scope="module")
def cluster() -> Any:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as workers,
        Client(workers) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("kind", "pca"), [(EuclideanScore, None), (CosineScore, None), (MahalanobisScore, 3)]
)
def test_a_cluster_of_two_workers_gives_what_memory_gives(
    kind: type[KNNScore], pca: int | None, cluster: Any
) -> None:
    array = da.from_array(X, chunks=(900, 4))  # the last block is smaller, columns are cut
    score = kind(k=4, pca=pca).fit(X=array, Y=QUERY).set_threshold(0.7)
    expected = kind(k=4, pca=pca).fit(X=X, Y=QUERY).set_threshold(0.7)
    torch.testing.assert_close(score.score(QUERY), expected.score(QUERY), rtol=1e-5, atol=0)
    assert torch.equal(score.knn_search(QUERY, offset=1)[1], expected.knn_search(QUERY, offset=1)[1])
    assert torch.equal(score.select(QUERY)["selected"], expected.select(QUERY)["selected"])
    assert len(cluster.scheduler_info()["workers"]) == 2


def test_dask_arrays_that_cannot_be_used(tmp_path: Path) -> None:
    score = EuclideanScore(k=3).fit(X=da.from_array(X[:10], chunks=2))  # blocks smaller than k
    torch.testing.assert_close(score.score(QUERY), EuclideanScore(k=3).fit(X=X[:10]).score(QUERY))
    with pytest.raises(NotAvailableError, match="references in a Dask array cannot be saved"):
        score.save(tmp_path / "score.safetensors")
    with pytest.raises(InvalidInputError, match="11 neighbours are asked for, but there are 10 references"):
        score.knn_search(QUERY, offset=8)
    with pytest.raises(InvalidInputError, match="known shape"):
        EuclideanScore().fit(X=da.from_array(X)[da.from_array(X)[:, 0] > 0])
    with pytest.raises(InvalidInputError, match="a block of X has NaN"):
        EuclideanScore().fit(X=da.full((6, 2), np.nan, chunks=3))
    with pytest.raises(InvalidTypeError, match="floating"):
        EuclideanScore().fit(X=da.ones((6, 2), dtype=int, chunks=3))


def test_faiss_says_that_it_is_approximate_and_finds_nearly_all(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="searches approximately"):
        score = EuclideanScore(k=5, index="faiss").fit(X=X)
    distances, index = score.knn_search(QUERY)
    exact, expected = EuclideanScore(k=5).fit(X=X).knn_search(QUERY)
    recall = np.mean(
        [len(set(a) & set(b)) / 5 for a, b in zip(index.tolist(), expected.tolist(), strict=True)]
    )
    assert recall > 0.95
    named = (torch.tensor(QUERY)[:, None] - torch.tensor(X)[index]).norm(dim=2)
    torch.testing.assert_close(distances, named)
    assert (distances >= exact - 1e-6).all()
    assert "index='faiss'" in repr(score)
    with pytest.warns(UserWarning, match="searches approximately"):
        filtered = EuclideanScore(k=5, index="faiss").fit(
            X=X, q=0.5
        )  # the graph of the first fit is not kept
    assert filtered.reference is not None
    assert int(filtered.knn_search(QUERY)[1].max()) < len(filtered.reference) == 1500
    score.save(tmp_path / "score.safetensors")
    assert torch.equal(EuclideanScore.load(tmp_path / "score.safetensors").score(QUERY), score.score(QUERY))


@pytest.mark.parametrize(
    ("module", "use", "text"),
    [
        ("faiss", lambda: EuclideanScore(index="faiss").fit(X=X), r"pip install 'selkit\[faiss\]'"),
        ("dask", lambda: EuclideanScore().fit(X=da.from_array(X)), r"pip install 'selkit\[dask\]'"),
        ("matplotlib", lambda: EuclideanScore().fit(X=X, Y=X).plot(), r"pip install 'selkit\[report\]'"),
    ],
)
def test_a_missing_extra_is_named(module: str, use: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=text):
        use()
