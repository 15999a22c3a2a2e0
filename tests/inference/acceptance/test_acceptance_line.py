"""Acceptance along a line through a network: against onnxruntime and the score itself on a dense grid."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from score_cases import embedding_scores, logit_scores, references
from torch import Tensor, nn

from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError, NotFittedError
from selkit.graph import Graph
from selkit.inference import Acceptance, AcceptanceEvent
from selkit.inference.acceptance.build import build_event
from selkit.inference.line import Line
from selkit.scores import (
    EnergyScore,
    EuclideanClassWiseScore,
    EuclideanScore,
    MahalanobisClassWiseScore,
    UncertaintyScore,
)

SIDE = 6


class Trunk(nn.Module):
    """Convolutions, pooling by maximum and by mean, and one linear layer; a map and a vector."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.last = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.1))
        self.head = nn.Linear(8, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.last(self.first(x))
        pooled = torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)
        return features, 3.0 * self.head(pooled), pooled


def exported(width: int, seed: int) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Trunk(width, seed).eval(),
            (torch.zeros(1, 1, SIDE, SIDE),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["map", "vector", "pooled"],
            dynamic_axes={name: {0: "n"} for name in ("x", "map", "vector", "pooled")},
        )
    return onnx.load_from_string(buffer.getvalue())


def vectors(model: onnx.ModelProto, images: np.ndarray, name: str = "vector") -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"x": images.astype(np.float32)})[0]


def line_of(seed: int) -> Line:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 1, 1, SIDE, SIDE))
    return Line(torch.from_numpy(a), torch.from_numpy(b / np.linalg.norm(b) * 2))


def event_of(acceptance: Acceptance, model: onnx.ModelProto) -> AcceptanceEvent:
    return build_event(
        acceptance, Graph.load(model), "x", (1, 1, SIDE, SIDE), {}, device=torch.device("cpu"), seed=None
    )


def check(found: np.ndarray, z: np.ndarray, value: np.ndarray, threshold: np.ndarray | float) -> int:
    """Compare intervals with values on a grid; return how many points lie inside and outside, the fewer."""
    assert (found[:, 0] < found[:, 1]).all()
    assert (found[1:, 0] > found[:-1, 1]).all()
    inside = ((z[:, None] >= found[:, 0]) & (z[:, None] <= found[:, 1])).any(1)
    clear = np.abs(value - threshold) > 3e-5 * np.maximum(1.0, np.abs(value))
    assert (inside == (value <= threshold))[clear].all()
    return int(min(inside.sum(), (~inside).sum()))


X, LABELS = references()
EMBEDDING = embedding_scores(X, LABELS)
LOGIT = {name: (score, shape) for name, score, shape in logit_scores() if len(shape) == 1}
Z = np.linspace(-4, 4, 401)
WINDOWS = np.array([[-4.0, -1.5], [-1.0, 4.0]])
SEEN = (Z <= -1.5) | (Z >= -1.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([*EMBEDDING, *LOGIT]), st.integers(0, 10_000), st.floats(0.2, 0.8))
def test_events_of_random_networks(name, seed, q):
    score, width = (EMBEDDING[name], 5) if name in EMBEDDING else (LOGIT[name][0], LOGIT[name][1][0])
    model, line = exported(width, seed), line_of(seed)
    images = (line.a + line.b * torch.from_numpy(Z)[:, None, None, None]).numpy()
    value = score.score(torch.from_numpy(vectors(model, images).astype(np.float64))).numpy()
    assume(np.isfinite(value).all() and np.ptp(value) > 1e-3)
    threshold = float(np.quantile(value, q))
    event = event_of(Acceptance(score, "vector", threshold=threshold), model)
    found = event.on(line, WINDOWS)
    assert ((found >= -4) & (found <= 4)).all()
    assert not ((found[:, 0] > -1.5) & (found[:, 1] < -1.0)).any()
    assert check(found, Z[SEEN], value[SEEN], threshold) >= 0


@pytest.mark.parametrize("seed", range(3))
def test_both_sides_are_met_and_wrong_sets_are_noticed(seed):
    score, model, line = EMBEDDING["EuclideanScore-4-mean-None"], exported(5, seed), line_of(seed)
    images = (line.a + line.b * torch.from_numpy(Z)[:, None, None, None]).numpy()
    value = score.score(torch.from_numpy(vectors(model, images).astype(np.float64))).numpy()
    threshold = float(np.median(value))
    event = event_of(Acceptance(score, "vector", threshold=threshold), model)
    whole = np.array([[-4.0, 4.0]])
    found = event.on(line, whole)
    assert check(found, Z, value, threshold) > 50
    for wrong in (found[1:], found + 0.05, np.array([[-4.0, 4.0]])):
        with pytest.raises(AssertionError):
            check(wrong, Z, value, threshold)
    # the same in many small windows, and at other thresholds of the same event
    edges = np.linspace(-4, 4, 40)
    parts = event.on(line, np.column_stack([edges[:-1], edges[1:]]))
    assert np.allclose(parts, found, atol=1e-10)
    other = float(np.quantile(value, 0.3))
    assert check(event.at(Acceptance(score, "vector", threshold=other)).on(line, whole), Z, value, other) > 50


@pytest.mark.parametrize("kind", [EuclideanClassWiseScore, MahalanobisClassWiseScore])
@pytest.mark.parametrize("seed", range(3))
def test_class_wise_scores_follow_the_prediction(kind, seed):
    model, line = exported(3, seed), line_of(seed)
    images = (line.a + line.b * torch.from_numpy(Z)[:, None, None, None]).numpy()
    logits, features = vectors(model, images), vectors(model, images, "pooled")
    rng = np.random.default_rng(seed)
    cloud = rng.normal(size=(300, 1, SIDE, SIDE)) * 2
    reference = vectors(model, cloud, "pooled")
    labels = np.arange(300) % 3
    calibration, predicted = vectors(model, cloud[::2] * 0.9, "pooled"), np.arange(150) % 3
    score = kind(k=3, stat="mean").fit(X=reference, y=labels, Y=calibration, y_cal=predicted)
    score.set_threshold(q=0.5)
    chosen = score.select(
        {"embedding": torch.from_numpy(features), "prediction": torch.from_numpy(logits.argmax(1))}
    )
    event = event_of(Acceptance(score, "pooled", prediction="vector"), model)
    limits = dict(zip(score.threshold_groups.tolist(), score.threshold.tolist(), strict=True))
    threshold = np.array([limits[int(label)] for label in logits.argmax(1)])
    value = chosen["score"].numpy()
    found = event.on(line, np.array([[-4.0, 4.0]]))
    top = np.sort(logits, 1)
    clear = top[:, -1] - top[:, -2] > 1e-4
    check(found, Z[clear], value[clear], threshold[clear])
    at, limit, accepted = event.observe(torch.from_numpy(images[200:201].astype(np.float64)))
    assert at == pytest.approx(float(value[200]), rel=1e-4)
    assert np.isnan(limit)
    assert accepted == bool(chosen["selected"][200])


def test_feature_maps_are_pooled_as_the_score_remembers():
    model, line = exported(5, 1), line_of(1)
    images = (line.a + line.b * torch.from_numpy(Z)[:, None, None, None]).numpy()
    features = vectors(model, images, "map")
    for pool, reduced in (("mean", features.mean((2, 3))), ("flatten", features.reshape(len(Z), -1))):
        score = EuclideanScore(k=2).fit(X=reduced[::50].copy())
        value = score.score(torch.from_numpy(reduced)).numpy()
        threshold = float(np.median(value))
        event = event_of(Acceptance(score, "map", pool=pool, threshold=threshold), model)
        assert check(event.on(line, np.array([[-4.0, 4.0]])), Z, value, threshold) > 50
    score._where["pool"] = lambda h: h.amax((2, 3))
    with pytest.raises(NotAvailableError, match="pool is a function"):
        event_of(Acceptance(score, "map", threshold=1.0), model).on(line, WINDOWS)


def test_thresholds_without_an_end():
    model, line = exported(5, 1), line_of(1)
    score = EMBEDDING["GaussianScore"]
    event = event_of(Acceptance(score, "vector", threshold=np.inf), model)
    assert np.array_equal(event.on(line, WINDOWS), WINDOWS)
    assert not len(event.at(Acceptance(score, "vector", threshold=-np.inf)).on(line, WINDOWS))
    assert not len(event.on(line, np.array([[1.0, 1.0]])))


def fitted(q: float = 0.5) -> UncertaintyScore:
    return EuclideanScore(k=2).fit(X=X, Y=X + 0.1).set_threshold(q=q)


def test_errors_say_what_to_do():
    model = exported(5, 0)
    cases: list[tuple[Acceptance, type[Exception], str]] = [
        (Acceptance(fitted(), "vektor"), InvalidInputError, r"embedding='vektor' is no value.*'vector'"),
        (Acceptance(fitted()), InvalidInputError, "embedding= is missing: the model has the outputs map"),
        (Acceptance(EuclideanScore(k=1).fit(X=X), "vector"), NotFittedError, "no threshold yet"),
        (Acceptance(EuclideanScore(), "vector", threshold=1.0), NotFittedError, "not fitted yet"),
    ]
    for acceptance, error, text in cases:
        with pytest.raises(error, match=text):
            event_of(acceptance, model)
    groups = fitted().calibrate(coverage=0.5, groups=np.arange(len(X)) % 2)
    with pytest.raises(InvalidInputError, match="threshold for each group"):
        event_of(Acceptance(groups, "vector"), model)
    with pytest.raises(InvalidTypeError, match="score is a str"):
        Acceptance("score", "vector")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="threshold is NaN"):
        Acceptance(fitted(), threshold=float("nan"))


def test_smooth_and_constant_embeddings_are_refused():
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[1, 1, 6, 6] x) => (float[1, 36] smooth, float[1, 4] fixed, float[1, 36] logits)
        {
            logits = Flatten(x)
            smooth = Softmax(logits)
            sides = Shape(x)
            numbers = Cast<to = 1>(sides)
            fixed = Flatten<axis = 0>(numbers)
        }
    """
    model = onnx.parser.parse_model(text)
    wide = EuclideanScore(k=1).fit(X=torch.zeros(1, 36))
    with pytest.raises(NotAvailableError, match=r"smooth.*not piecewise linear in the input"):
        event_of(Acceptance(wide, "smooth", threshold=1.0), model)
    accepts = EnergyScore()
    line = line_of(0)
    assert len(event_of(Acceptance(accepts, "logits", threshold=1e6), model).on(line, WINDOWS))
    with pytest.raises(InvalidInputError, match="'fixed' does not depend on the tested input"):
        event_of(Acceptance(wide, "fixed", threshold=1.0), model)


def test_a_class_without_references_is_never_accepted():
    model = exported(3, 0)
    pooled = vectors(model, np.random.default_rng(0).normal(size=(40, 1, SIDE, SIDE)), "pooled")
    score = EuclideanClassWiseScore(k=1).fit(X=pooled, y=1 + np.arange(40) % 2)
    event = event_of(Acceptance(score, "pooled", prediction="vector", threshold=1e6), model)
    line = line_of(0)
    images = (line.a + line.b * torch.from_numpy(Z)[:, None, None, None]).numpy()
    predicted = vectors(model, images).argmax(1)
    found = event.on(line, np.array([[-4.0, 4.0]]))
    inside = ((Z[:, None] >= found[:, 0]) & (Z[:, None] <= found[:, 1])).any(1)
    assert 0 < (predicted == 0).sum() < len(Z)
    assert (inside == (predicted != 0)).mean() > 0.99
    score.set_threshold(q=0.5, scores=np.ones(4), groups=1 + np.arange(4) % 2)
    with pytest.raises(NotAvailableError, match="needs the logits that the class is predicted from"):
        event_of(Acceptance(score, "pooled"), model).on(line, WINDOWS)
    many = EuclideanClassWiseScore(k=1).fit(X=pooled, y=np.eye(2, dtype=int)[np.arange(40) % 2])
    with pytest.raises(NotAvailableError, match="several labels for each input"):
        event_of(Acceptance(many, "pooled", threshold=1.0), model)
