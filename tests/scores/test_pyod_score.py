from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN

from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.scores import PyODScore, UncertaintyScore

X = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
QUERY = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32) * 3


@pytest.mark.parametrize("detector", [KNN(n_neighbors=3), ECOD(), IForest(n_estimators=20, random_state=0)])
def test_values_are_those_of_the_detector(detector: object) -> None:
    score = PyODScore(detector).fit(X=X, Y=QUERY).set_threshold(0.9)
    theirs = type(detector)(**detector.get_params()).fit(X).decision_function(QUERY)  # type: ignore[attr-defined]
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
