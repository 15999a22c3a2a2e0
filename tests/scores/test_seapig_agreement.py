"""The numbers of seapig 0.3, where it has the score: SELKIT_PEERS names an environment that has it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from selkit import scores as s

PEERS = os.environ.get("SELKIT_PEERS")
RNG = np.random.default_rng(0)
ARRAYS = {
    "reference": RNG.normal(size=(400, 6)) @ RNG.normal(size=(6, 6)),
    "calibration": RNG.normal(size=(100, 6)),
    "query": RNG.normal(size=(50, 6)),
    "logits": RNG.normal(size=(60, 4)) * 3,
    "members": RNG.normal(size=(60, 4, 5)) * 3,
}
WHOLE = {
    "classes": RNG.integers(0, 3, 400),
    "calibration_classes": RNG.integers(0, 3, 100),
    "predicted": RNG.integers(0, 3, 50),
}
WHOLE["labels"] = np.where(RNG.uniform(size=60) < 0.7, ARRAYS["logits"].argmax(1), 0)


@pytest.fixture(scope="module")
def seapig(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    if PEERS is None:
        pytest.skip("SELKIT_PEERS is not set")
    folder = tmp_path_factory.mktemp("seapig")
    for name, values in ARRAYS.items():
        np.save(folder / f"in_{name}.npy", values.astype(np.float32))
    for name, values in WHOLE.items():
        np.save(folder / f"in_{name}.npy", values)
    script = Path(__file__).with_name("seapig_scores.py")
    python = Path(PEERS) / "bin" / "python"
    done = subprocess.run([python, script, folder], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    return {path.stem[4:]: np.load(path) for path in folder.glob("out_*.npy")}


def same(found: object, expected: np.ndarray, rtol: float = 2e-5) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=1e-6)


def given(name: str) -> np.ndarray:
    return ARRAYS[name].astype(np.float32)


@pytest.mark.parametrize("stat", ["max", "mean", "median", "min"])
@pytest.mark.parametrize("name", ["EuclideanScore", "CosineScore", "MahalanobisScore"])
def test_neighbours_and_thresholds(name: str, stat: str, seapig: dict[str, np.ndarray]) -> None:
    options = {"shrinkage": 0.0} if name == "MahalanobisScore" else {}
    score = getattr(s, name)(k=4, stat=stat, **options).fit(X=given("reference"), Y=given("calibration"))
    score.set_threshold(0.8)
    # seapig divides the covariance by N - 1
    factor = np.sqrt(399 / 400) if name == "MahalanobisScore" else 1.0
    same(score.score(given("query")) * factor, seapig[f"{name}-{stat}"])
    same(score.threshold * factor, seapig[f"{name}-{stat}-threshold"])


@pytest.mark.parametrize("components", [3, 0.9])
def test_components(components: float, seapig: dict[str, np.ndarray]) -> None:
    score = s.PCAScore(components).fit(X=given("reference"))
    same(score.score(given("query")), seapig[f"PCAScore-{components}"], rtol=1e-3)


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
@pytest.mark.parametrize("name", ["EnergyScore", "EntropyScore", "MarginScore", "SoftmaxScore"])
def test_logits(name: str, task: str, seapig: dict[str, np.ndarray]) -> None:
    values = given("logits")[:, 0] if task == "binary" else given("logits")
    same(getattr(s, name)(1.5, task).score(values), seapig[f"{name}-{task}"])


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("name", ["MutualInformationScore", "PredictiveVarianceScore"])
def test_members(name: str, task: str, seapig: dict[str, np.ndarray]) -> None:
    same(getattr(s, name)(1.5, task).score(given("members")), seapig[f"{name}-{task}"], rtol=2e-4)


def test_temperature(seapig: dict[str, np.ndarray]) -> None:
    same(s.EnergyScore("fit").fit(given("logits"), WHOLE["labels"]).T, seapig["temperature"], rtol=1e-3)


def test_classes(seapig: dict[str, np.ndarray]) -> None:
    score = s.EuclideanClassWiseScore(k=2).fit(given("reference"), WHOLE["classes"])
    found = score.score({"embedding": given("query"), "prediction": WHOLE["predicted"]})
    same(found, seapig["EuclideanClassWiseScore"])
