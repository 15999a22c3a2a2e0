from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.cd import CD
from pyod.models.cof import COF
from pyod.models.copod import COPOD
from pyod.models.deep_svdd import DeepSVDD
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lunar import LUNAR
from pyod.models.vae import VAE
from sklearn.base import clone

from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.scores import PyODScore, UncertaintyScore

X = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
QUERY = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32) * 3


@pytest.mark.parametrize("detector", [KNN(n_neighbors=3), ECOD(), IForest(n_estimators=20, random_state=0)])
def test_values_are_those_of_the_detector(detector: object) -> None:
    score = PyODScore(detector).fit(X=X, Y=QUERY).set_threshold(0.9)
    fitted = type(detector)(**detector.get_params()).fit(X)  # type: ignore[attr-defined]
    theirs = np.concatenate([fitted.decision_function(row[None]) for row in QUERY])
    np.testing.assert_allclose(score.score(QUERY).numpy(), theirs, rtol=1e-5)
    assert int(score.select(QUERY)["selected"].sum()) == 18
    assert not hasattr(detector, "decision_scores_")  # the user's own detector is not fitted


def test_files_and_states_need_trust(tmp_path: Path) -> None:
    score = PyODScore(KNN(n_neighbors=3), pca=3).fit(X=X, Y=QUERY).set_threshold(0.9)
    expected = score.select(QUERY)
    path = tmp_path / "score.safetensors"
    score.save(path)
    with pytest.raises(InvalidInputError, match="unpickling can run any code; say trust=True"):
        UncertaintyScore.load(path)
    loaded = UncertaintyScore.load(path, trust=True)
    assert torch.equal(loaded.select(QUERY)["score"], expected["score"])
    fresh = PyODScore(KNN(), pca=3)
    fresh.load_state_dict(score.state_dict())
    with pytest.raises(NotFittedError, match="its detector is still pickled"):
        fresh.score(QUERY)
    assert torch.equal(fresh.unpickle(trust=True).select(QUERY)["selected"], expected["selected"])


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was opened without trust",)


def test_no_pickle_is_opened_before_trust(tmp_path: Path) -> None:
    score = PyODScore(KNN(n_neighbors=3)).fit(X=X)
    state = score.state_dict()
    state["pickled"] = torch.frombuffer(bytearray(pickle.dumps(Bomb())), dtype=torch.uint8)
    PyODScore(KNN()).load_state_dict(state)
    with pytest.raises(InvalidInputError, match="trust=True"):
        _with(state).unpickle()
    with pytest.raises(pytest.fail.Exception, match="opened without trust"):
        _with(state).unpickle(trust=True)


def _with(state: dict[str, torch.Tensor]) -> PyODScore:
    score = PyODScore(KNN())
    score.load_state_dict(state)
    return score


def test_misuse_is_refused() -> None:
    with pytest.raises(InvalidTypeError, match="detector must have fit"):
        PyODScore(object()).fit(X=X)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        PyODScore(KNN()).score(QUERY)
    with pytest.raises(NotFittedError, match="no calibration scores"):
        PyODScore(KNN()).fit(X=X).set_threshold(0.9)


TRANSDUCTIVE = [ECOD(), COPOD(), COF(n_neighbors=10), CD()]


@pytest.mark.parametrize("detector", TRANSDUCTIVE, ids=lambda d: type(d).__name__)
def test_a_query_has_one_score_whatever_its_batch(detector: Any, tmp_path: Path) -> None:
    fitted = clone(detector).fit(X)
    with contextlib.suppress(IndexError):  # too few rows for some
        alone = fitted.decision_function(QUERY[:1])
        assert not np.allclose(alone, fitted.decision_function(QUERY)[:1], rtol=1e-3)
    rng = np.random.default_rng(2)
    cal, near = rng.normal(size=(2, 60, 5)).astype(np.float32)
    foreign = (rng.normal(size=(60, 5)) * 0.1 + 6).astype(np.float32)
    score = PyODScore(detector).fit(X=X, Y=cal).calibrate(coverage=0.9)
    for rows in (foreign, near):
        batch = score.select(rows)
        single = torch.cat([score.select(row[None])["selected"] for row in rows[:15]])
        assert torch.equal(single, batch["selected"][:15])
        other = score.score(np.concatenate([rows[30:], foreign[:10], rows[:5]]))
        assert torch.equal(other[-5:], batch["score"][:5])
        assert torch.equal(other[:30], batch["score"][30:])
    assert score.select(foreign)["selected"].float().mean() < 0.1
    assert score.select(near)["selected"].float().mean() > 0.75
    score.save(tmp_path / "score.safetensors")
    loaded = PyODScore.load(tmp_path / "score.safetensors", trust=True)
    assert torch.equal(loaded.score(near), score.score(near))


DEEP = [
    AutoEncoder(epoch_num=2, hidden_neuron_list=[8, 4], verbose=0),
    VAE(epoch_num=2, verbose=0),
    DeepSVDD(n_features=5, epochs=2, verbose=0),
    LUNAR(n_epochs=2),
]


@pytest.mark.parametrize("detector", DEEP, ids=lambda d: type(d).__name__)
def test_deep_detectors_learn_and_score(detector: Any, tmp_path: Path) -> None:
    with torch.no_grad():  # as in a validation loop
        score = PyODScore(detector).fit(X=X, Y=QUERY).set_threshold(0.9)
    found = score.select(QUERY)
    assert int(found["selected"].sum()) == 18
    with torch.inference_mode():
        singles = torch.cat([score.select(row[None])["selected"] for row in QUERY[:8]])
        again = score.score(QUERY)
    assert torch.equal(singles, found["selected"][:8])
    torch.testing.assert_close(again, found["score"], rtol=1e-4, atol=1e-5)
    score.save(tmp_path / "score.safetensors")
    loaded = PyODScore.load(tmp_path / "score.safetensors", trust=True)
    torch.testing.assert_close(loaded.score(QUERY), found["score"], rtol=1e-4, atol=1e-5)


def test_random_numbers_around_a_detector_stay_as_they_were() -> None:
    score = PyODScore(CD()).fit(X=X)
    assert score.background is not None
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    score.score(QUERY[:2])
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])  # noqa: NPY002
