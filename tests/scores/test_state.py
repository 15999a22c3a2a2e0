from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyod.models.knn import KNN
from safetensors.torch import load_file, save_file

from selkit import scores
from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError, SelkitError
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
    RandomScore,
    RelativeMahalanobisScore,
    TensorPCA,
    UncertaintyScore,
    ViMScore,
)
from selkit.scores.state import _digest

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
            ({"format": 99}, "has format 99; this selkit reads format 2"),
            ({"format": 1}, "format 1; .* written before the checksum covered parameters"),
            ({"format": 2.0}, "has format 2.0"),
            ({"format": True}, "has format True"),
            ({"format": "2"}, "has format '2'"),
            ({"params": {"k": 0}}, "cannot be: k must be a whole number"),
            ({"params": {"k": 1, "stat": "maX"}}, "cannot be: stat must be one of"),
            ({"params": {"k": 1, "pca": "x"}}, "cannot be: pca must be a TensorPCA"),
            ({"extra": {"layer": 3}}, "cannot be: layer must be text"),
            ({"extra": {"pool": "max"}}, "cannot be: pool must be one of"),
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
        tensors, spec = load_file(path), spec | change
        spec.pop("sha256")
        spec["sha256"] = _digest(tensors, spec)
        save_file(tensors, str(path), metadata={"selkit": json.dumps(spec)})
        with pytest.raises((FileFormatError, InvalidTypeError), match=text):
            EuclideanScore.load(path)

    def test_every_bit_counts(self, path: Path, tmp_path: Path) -> None:
        """A flipped bit is noticed wherever it is, or changes nothing."""
        EnergyScore(1.0).fit(Y=Y).calibrate(coverage=0.9).save(path)
        content, expected = path.read_bytes(), EnergyScore.load(path)
        rng, damaged = np.random.default_rng(0), tmp_path / "damaged.safetensors"
        noticed = 0
        header = 8 + int.from_bytes(content[:8], "little")
        places = [*rng.integers(0, header, 250), *rng.integers(header, len(content), 150)]
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 1 << int(rng.integers(8))
            damaged.write_bytes(bytes(changed))
            try:
                found = EnergyScore.load(damaged)
            except FileFormatError:
                noticed += 1
                continue
            assert found.guarantee == expected.guarantee
            assert found.get_params() == expected.get_params()
            assert found.state_dict().keys() == expected.state_dict().keys()
            for name, value in expected.state_dict().items():
                assert torch.equal(found.state_dict()[name], value)
        assert noticed > 0.98 * len(places)

    def test_deeply_nested_json(self, path: Path) -> None:
        for text in ("[" * 100_000, '{"params": ' + '{"a": ' * 50_000):
            save_file({"a": X}, str(path), metadata={"selkit": text})
            with pytest.raises(FileFormatError, match="selkit did not write it"):
                UncertaintyScore.load(path)

    @pytest.mark.parametrize("name", [None, 3, b"x", ["a"], ""])
    def test_what_is_no_path(self, name: Any) -> None:
        with pytest.raises((InvalidInputError, InvalidTypeError), match="path"):
            UncertaintyScore.load(name)
        with pytest.raises((InvalidInputError, InvalidTypeError), match="path"):
            EuclideanScore().fit(X=X).save(name)

    def test_a_file_is_written_whole_or_not_at_all(self, path: Path) -> None:
        """A limit on the size of files stands for a full disk."""
        before = path.read_bytes()
        code = (
            "import resource, sys, torch\n"
            "from selkit.scores import EuclideanScore\n"
            "score = EuclideanScore().fit(X=torch.ones(20000, 20) * torch.arange(20000.0)[:, None])\n"
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try:\n    score.save(sys.argv[1])\n"
            "except OSError as error:\n    print('refused', type(error).__name__)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        assert done.stdout.startswith("refused"), done.stderr
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == [path.name]

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


@pytest.mark.parametrize(
    ("score", "params"),
    [
        (EuclideanScore(), {"stat": "maX"}),
        (EuclideanScore(), {"k": 0}),
        (EuclideanScore(), {"k": 1.5}),
        (EuclideanScore(), {"k": None}),
        (EuclideanScore(), {"index": "annoy"}),
        (EuclideanScore(), {"pca": "x"}),
        (EuclideanScore(), {"pca": np.nan}),
        (EuclideanScore(), {"pca__n_components": 3}),
        (EuclideanScore(pca=TensorPCA(3)), {"pca__n_components": -1}),
        (MahalanobisScore(), {"shrinkage": "ledoit"}),
        (GaussianScore(), {"shrinkage": 2.0}),
        (GaussianScore(), {"one_class": "yes"}),
        (RelativeMahalanobisScore(), {"shrinkage": np.nan}),
        (PCAScore(), {"pca": None}),
        (PCAScore(), {"pca": 0}),
        (TensorPCA(), {"gamma": -1.0}),
        (TensorPCA(), {"mode": "fft"}),
        (TensorPCA(), {"M": "many"}),
        (TensorPCA(), {"seed": -1}),
        (TensorPCA(), {"seed": 0.5}),
        (ViMScore(), {"n_components": 0}),
        (EnergyScore(), {"temperature": 0.0}),
        (EnergyScore(), {"temperature": "x"}),
        (EnergyScore(), {"temperature": None}),
        (EnergyScore(), {"temperature": np.nan}),
        (EnergyScore(), {"temperature": 10**400}),
        (EnergyScore(), {"temperature": 1e-320}),
        (EnergyScore(), {"task": "multi"}),
        (EnergyScore(), {"per_member": 1}),
        (EuclideanClassWiseScore(), {"aggregate": "median"}),
        (EuclideanClassWiseScore(), {"k": -3}),
        (RandomScore(), {"seed": "x"}),
        (RandomScore(), {"seed": 2**64}),
    ],
    ids=str,
)
def test_parameters_are_checked_when_they_are_set(score: Any, params: dict[str, Any]) -> None:
    made = type(score)(**score.get_params(deep=False))
    before = made.get_params()
    with pytest.raises((InvalidInputError, InvalidTypeError)):
        made.set_params(**params)
    assert made.get_params() == before
    name, value = next(iter(params.items()))
    if "__" not in name:
        with pytest.raises((InvalidInputError, InvalidTypeError)):
            type(score)(**{**score.get_params(deep=False), name: value})
        setattr(made, name, value)
        with pytest.raises((InvalidInputError, InvalidTypeError)):
            made.fit(X, LABELS)


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


WRONG = [
    float("nan"),
    "a",
    None,
    float("inf"),
    -1,
    10**400,
    b"x",
    [],
    {},
    object(),
    1 + 1j,
    torch.tensor(torch.nan),
]
COUNTS = {"k", "n_components", "pca", "M"}  # too many is only known when there are data
ANY = {"head", "base", "detector"}  # checked against the data, or anything that fits


@pytest.mark.parametrize(
    "kind", [name for name in scores.__all__ if not inspect.isabstract(getattr(scores, name))]
)
def test_parameters_are_refused_where_they_are_given(kind):
    made = getattr(scores, kind)
    for name, parameter in inspect.signature(made).parameters.items():
        for value in WRONG:
            if (
                name in ANY
                or value is parameter.default
                or (isinstance(value, int) and value > 0 and name in COUNTS)
            ):
                continue
            with pytest.raises(SelkitError, match=name.split("_")[0]):
                made(**{name: value})
