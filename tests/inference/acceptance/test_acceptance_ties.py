"""Scores that stay on their threshold over whole stretches: zero embeddings behind a Relu, tied classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import selkit
from selkit.inference import Acceptance
from selkit.scores import (
    CosineScore,
    EnergyScore,
    EuclideanClassWiseScore,
    EuclideanScore,
    GaussianScore,
    MahalanobisScore,
    MaxLogitScore,
    PCAScore,
    SoftmaxScore,
)

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 1, 6, 6] x) => (float[N, 1, 6, 6] y, float[N, 4] e, float[N, 3] logits)
<float[1, 1, 3, 3] w = {%s}, float[1] b = {-0.3}, float[4, 1, 3, 3] u = {%s}, float[4] c = {%s},
 float[4, 3] v = {%s}, float[3] d = {-0.5, -0.5, -0.5}>
{ h = Conv<pads = [1, 1, 1, 1]>(x, w, b)  y = Relu(h)
  k = Conv(x, u, c)  m = GlobalMaxPool(k)  f = Flatten(m)  e = Relu(f)
  s = Gemm(e, v, d)  logits = Relu(s) }"""


def network(seed: int, bias: float = -4.2) -> onnx.ModelProto:
    """Its embedding is zero on most noise images, and so are its logits."""
    rng = np.random.default_rng(seed)
    parts = [", ".join(f"{value:.4f}" for value in rng.uniform(-1, 1, size)) for size in (9, 36)]
    weights = ", ".join(f"{value:.4f}" for value in rng.uniform(-1, 1, 12))
    return onnx.parser.parse_model(TEXT % (*parts, ", ".join([str(bias)] * 4), weights))


def run(model: onnx.ModelProto, images: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"x": images.astype(np.float32)}), strict=True))


def noise(count: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, 1, 6, 6))


MODEL = network(0)
CALIBRATION = run(MODEL, noise(200, 1))
REFERENCES = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3

CASES = {
    "euclidean": (EuclideanScore(k=1), "e"),
    "mean": (EuclideanScore(k=3, stat="mean"), "e"),
    "median": (EuclideanScore(k=4, stat="median"), "e"),
    "mahalanobis": (MahalanobisScore(k=2), "e"),
    "cosine": (CosineScore(k=2), "e"),
    "gaussian": (GaussianScore(), "e"),
    "components": (PCAScore(2), "e"),
    "energy": (EnergyScore(), "logits"),
    "softmax": (SoftmaxScore(), "logits"),
    "maximum": (MaxLogitScore(), "logits"),
}


def fitted(name: str, dtype: torch.dtype) -> tuple[Any, str]:
    score, value = CASES[name]
    Y = torch.from_numpy(CALIBRATION[value]).to(dtype)
    X = torch.cat([REFERENCES, REFERENCES[:5]]).to(dtype)  # some neighbours are tied everywhere
    if value == "logits":
        score.fit(Y=Y)
    else:
        score.fit(X=X, y=torch.cat([LABELS, LABELS[:5]]), Y=Y) if name == "gaussian" else score.fit(X=X, Y=Y)
    zero = score.score(torch.zeros(1, Y.shape[1], dtype=dtype))
    ranks = (score.calibration_scores <= zero).double().mean()
    return score.set_threshold(q=float(ranks) - 0.05), value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_a_stretch_on_the_threshold_is_accepted_as_by_the_score(name: str, dtype: torch.dtype) -> None:
    score, value = fitted(name, dtype)
    zero = torch.zeros(1, CALIBRATION[value].shape[1], dtype=dtype)
    assert float(score.score(zero)) == float(score.threshold)  # the threshold is where the embedding is zero
    test, tested, both = selkit.load(MODEL, selkit.BackMeanDiff(0.0), var=1.0), 0, 0
    for x in noise(25, 2):
        out = run(MODEL, x[None])
        if (out[value] != 0).any() or not (out["y"] > 0).any():
            continue
        result = test.inference(
            x[None], inference_mode="exhaustive", accepted_by=Acceptance(score, embedding=value)
        )
        points = np.linspace(-4, 4, 301) * result.scale
        outputs = run(MODEL, result.image_at(points)[:, 0])
        accepted = score.select(torch.from_numpy(outputs[value]).to(dtype))["selected"].numpy()
        truth = ((outputs["y"] > 0) == (out["y"] > 0)).all((1, 2, 3)) & accepted
        intervals = result.truncated_intervals
        inside = ((intervals[:, 0] <= points[:, None]) & (points[:, None] <= intervals[:, 1])).any(1)
        ends = np.concatenate([intervals.ravel(), result.accepted_by.truncated_intervals.ravel()])
        near = np.abs(points[:, None] - ends).min(1) < 3e-4 * result.scale
        assert ((inside == truth) | near).all()
        tested, both = tested + 1, both + int(inside.any())
    assert tested >= 5
    assert both >= 5


@pytest.mark.parametrize("bias", [-4.2, -3.4])
def test_tied_classes_are_the_first_as_for_the_score(bias: float) -> None:
    """All logits are zero: the first class is predicted, and its own threshold decides."""
    model = network(0, bias)
    calibration = run(model, noise(200, 1))
    score = EuclideanClassWiseScore(k=1).fit(X=REFERENCES, y=LABELS)
    Y, logits = torch.from_numpy(calibration["e"]), torch.from_numpy(calibration["logits"])
    groups = logits.argmax(1)
    known = {"embedding": Y, "prediction": groups}
    score.set_threshold(q=0.5, scores=score.score(known), groups=groups)
    test = selkit.load(model, selkit.BackMeanDiff(0.0), var=1.0)
    tested = 0
    for x in noise(20, 3):
        out = run(model, x[None])
        first = int(out["logits"][0].argmax())
        query = {"embedding": torch.from_numpy(out["e"]), "prediction": torch.tensor([first])}
        if not bool(score.select(query)["selected"]) or not (out["y"] > 0).any():
            continue
        accepted = Acceptance(score, embedding="e", prediction="logits")
        result = test.inference(x[None], inference_mode="exhaustive", accepted_by=accepted)
        points = np.linspace(-4, 4, 301) * result.scale
        outputs = run(model, result.image_at(points)[:, 0])
        prediction = torch.from_numpy(outputs["logits"]).argmax(1)
        chosen = score.select({"embedding": torch.from_numpy(outputs["e"]), "prediction": prediction})
        truth = ((outputs["y"] > 0) == (out["y"] > 0)).all((1, 2, 3)) & chosen["selected"].numpy()
        intervals = result.truncated_intervals
        inside = ((intervals[:, 0] <= points[:, None]) & (points[:, None] <= intervals[:, 1])).any(1)
        ends = np.concatenate([intervals.ravel(), result.accepted_by.truncated_intervals.ravel()])
        near = np.abs(points[:, None] - ends).min(1) < 3e-4 * result.scale
        assert ((inside == truth) | near).all()
        tested += 1
    assert tested >= 4
