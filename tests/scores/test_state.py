from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyod.models.knn import KNN
from safetensors.torch import load_file, save_file

from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.scores import (
    CosineScore,
    EnergyScore,
    EntropyScore,
    EuclideanClassWiseScore,
    EuclideanScore,
    GaussianScore,
    MahalanobisScore,
    MutualInformationScore,
    PCAScore,
    PyODScore,
    RelativeMahalanobisScore,
    TensorPCA,
    UncertaintyScore,
)

X, Y, QUERY = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (90, 50, 20))
LABELS = X[:, :3].argmax(1) * (torch.arange(90) % 4 > 0)  # one in four may be wrong
SCORES: list[tuple[Any, Any, Any]] = [
    (EuclideanScore(k=3, stat="median"), X, QUERY),
    (CosineScore(k=2, pca=TensorPCA(3)), X, QUERY),
    (MahalanobisScore(k=2, pca=0.9, shrinkage=0.25), X, QUERY),
    (GaussianScore(), X, QUERY),
    (RelativeMahalanobisScore(shrinkage=0.1), X, QUERY),
    (PCAScore(2), X, QUERY),
    (PCAScore(TensorPCA(3, gamma=0.1, M=16)), X, QUERY),
    (EntropyScore("fit"), X, QUERY),
    (EnergyScore(2.0, task="multilabel"), X, QUERY),
    (
        MutualInformationScore(),
        X[:, :, None] * torch.tensor([1.0, 2.0]),
        QUERY[:, :, None] * torch.tensor([1.0, 2.0]),
    ),
    (EuclideanClassWiseScore(k=2), X, QUERY),
    (PyODScore(KNN(n_neighbors=2)), X, QUERY),
]


def fitted(score: Any, reference: Any) -> UncertaintyScore:
    cal = (Y[:, :, None] * torch.tensor([1.0, 2.0])) if reference.ndim == 3 else Y
    y_cal = torch.arange(50) % 3
    made = type(score)(**score.get_params(deep=False)).fit(reference, LABELS, Y=cal, y_cal=y_cal)
    return made.set_threshold(0.8)


@pytest.mark.parametrize(("score", "reference", "query"), SCORES, ids=lambda v: type(v).__name__)
def test_a_loaded_score_gives_identical_numbers(
    score: Any, reference: Any, query: Any, tmp_path: Path
) -> None:
    made = fitted(score, reference)
    expected = made.select(query)
    made.save(tmp_path / "score.safetensors")
    trust = isinstance(score, PyODScore)
    for kind in (UncertaintyScore, type(score)):
        loaded = kind.load(tmp_path / "score.safetensors", trust=trust)
        assert type(loaded) is type(score)
        assert repr(loaded.get_params(deep=False).keys()) == repr(score.get_params(deep=False).keys())
        found = loaded.select(query)
        assert torch.equal(found["score"], expected["score"])
        assert torch.equal(found["selected"], expected["selected"])


@pytest.mark.parametrize(("score", "reference", "query"), SCORES[:-1], ids=lambda v: type(v).__name__)
def test_a_state_dict_inside_another_module_too(
    score: Any, reference: Any, query: Any, tmp_path: Path
) -> None:
    made = torch.nn.ModuleDict({"score": fitted(score, reference)})
    torch.save(made.state_dict(), tmp_path / "state.pt")
    fresh = torch.nn.ModuleDict({"score": type(score)(**score.get_params(deep=False))})
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected: Any = made["score"]
    other: Any = fresh["score"]
    assert torch.equal(other.select(query)["score"], expected.select(query)["score"])
    assert torch.equal(other.threshold, expected.threshold)


@pytest.mark.parametrize(("score", "reference", "query"), SCORES, ids=lambda v: type(v).__name__)
def test_copies_and_pickles(score: Any, reference: Any, query: Any) -> None:
    made = fitted(score, reference)
    copy = pickle.loads(pickle.dumps(made))
    assert torch.equal(copy.select(query)["score"], made.select(query)["score"])


@pytest.mark.parametrize(("score", "reference", "query"), SCORES, ids=lambda v: type(v).__name__)
def test_a_batch_equals_its_singles_and_gradients_are_off(score: Any, reference: Any, query: Any) -> None:
    made = fitted(score, reference)
    whole = made.score(query.requires_grad_())
    query.requires_grad_(False)
    assert not whole.requires_grad
    singles = torch.cat([made.score(row[None]) for row in query])
    torch.testing.assert_close(singles, whole, rtol=2e-5, atol=1e-6)
    as_array = made.score(query.numpy())
    assert torch.equal(as_array, whole)


@pytest.mark.parametrize(("score", "reference", "query"), SCORES[:-1], ids=lambda v: type(v).__name__)
def test_reduced_precision_around_a_score_does_not_reach_it(score: Any, reference: Any, query: Any) -> None:
    made = fitted(score, reference)
    expected = made.select(query)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made.select(query)
        again = fitted(score, reference)
    assert torch.equal(found["score"], expected["score"])
    torch.testing.assert_close(again.threshold, made.threshold)


def test_every_buffer_moves_and_everything_is_in_the_state(tmp_path: Path) -> None:
    made = fitted(SCORES[2][0], X).double()
    assert all(b.dtype in (torch.float64, torch.int64, torch.uint8) for b in made.buffers())
    keys = {"reference", "center", "norms", "whitening", "projection.components", "threshold", "width"}
    assert keys <= set(made.state_dict())


def test_the_layer_is_remembered_and_a_function_cannot_be_saved(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU())
    score = EuclideanScore().fit(model=model, loaders={"train": [X]}, layer="0")
    score.save(tmp_path / "score.safetensors")
    loaded = EuclideanScore.load(tmp_path / "score.safetensors")
    assert torch.equal(loaded.extract(model, QUERY), model[0](QUERY))
    score.fit(model=model, loaders={"train": [X]}, layer="0", pool=torch.relu)
    with pytest.raises(InvalidTypeError, match="pool is a function"):
        score.save(tmp_path / "score.safetensors")


class TestDamagedFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        EuclideanScore().fit(X=X, Y=Y).set_threshold(0.9).save(tmp_path / "score.safetensors")
        return tmp_path / "score.safetensors"

    def test_not_safetensors(self, path: Path) -> None:
        for content in (b"", b"hello", pickle.dumps(1), path.read_bytes()[:100], path.read_bytes()[:-8]):
            path.write_bytes(content)
            with pytest.raises(FileFormatError, match="not a readable safetensors file"):
                UncertaintyScore.load(path)

    def test_foreign_safetensors(self, path: Path) -> None:
        save_file({"a": X}, str(path))
        with pytest.raises(FileFormatError, match="selkit did not write it"):
            UncertaintyScore.load(path)
        save_file({"a": X}, str(path), metadata={"selkit": "{}"})
        with pytest.raises(FileFormatError, match="selkit did not write it"):
            UncertaintyScore.load(path)

    def test_one_flipped_bit(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(FileFormatError, match="damaged: its checksum"):
            UncertaintyScore.load(path)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"format": 99}, "has format 99; this selkit reads format 1"),
            ({"class": "NoSuchScore"}, "holds a NoSuchScore, which is not known here"),
            ({"class": "GaussianScore"}, "does not fit this version of GaussianScore"),
            ({"class": "CosineScore"}, "holds a CosineScore, not a EuclideanScore"),
            ({"params": {"k": 1, "no_such": 2}}, "does not fit this version of EuclideanScore"),
            ({"params": {"k": {"object": "a.b"}}}, "which a file cannot hold"),
            ({"params": None}, "incomplete description"),
        ],
    )
    def test_another_header(self, path: Path, change: dict[str, Any], text: str) -> None:
        from safetensors import safe_open

        with safe_open(str(path), "pt") as file:
            spec = json.loads(file.metadata()["selkit"])
        save_file(load_file(path), str(path), metadata={"selkit": json.dumps(spec | change)})
        with pytest.raises((FileFormatError, InvalidTypeError), match=text):
            EuclideanScore.load(path)

    def test_missing_file(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            UncertaintyScore.load(path.with_suffix(".other"))


def test_parameters_as_in_sklearn() -> None:
    score = CosineScore(k=3, pca=TensorPCA(2))
    params = score.get_params()
    assert params["k"] == 3
    assert params["pca__n_components"] == 2
    score.set_params(k=5, pca__n_components=4)
    assert (score.k, score.pca.n_components) == (5, 4)  # type: ignore[union-attr]
    with pytest.raises(InvalidInputError, match="CosineScore has no parameter 'neighbors'"):
        score.set_params(neighbors=2)
    assert repr(EuclideanScore(k=2)) == "EuclideanScore(k=2, stat='max', pca=None, index='exact')"


def test_abstract_scores_cannot_be_made_and_own_scores_can(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="abstract"):
        UncertaintyScore()  # type: ignore[abstract]

    class NormScore(UncertaintyScore):
        def _fit(self, X: torch.Tensor, y: torch.Tensor | None) -> None:
            """Nothing to learn."""

        def _score(self, query: torch.Tensor) -> torch.Tensor:
            return query.norm(dim=1)

    score = NormScore().fit(X=X, Y=Y).set_threshold(0.5)
    score.save(tmp_path / "norm.safetensors")
    loaded = UncertaintyScore.load(tmp_path / "norm.safetensors")
    np.testing.assert_allclose(loaded.score(QUERY), QUERY.norm(dim=1))
