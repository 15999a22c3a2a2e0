from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logsumexp, softmax

from selkit.errors import InvalidInputError, NotFittedError
from selkit.scores import (
    EnergyScore,
    EntropyScore,
    LogitScore,
    MarginScore,
    MaxLogitScore,
    MutualInformationScore,
    PredictiveVarianceScore,
    SoftmaxScore,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(50, 4)) * 3
MEMBERS = RNG.normal(size=(50, 4, 7)) * 3
POINTWISE = [EnergyScore, EntropyScore, MarginScore, MaxLogitScore, SoftmaxScore]


def softmax_oracle(kind: type[LogitScore], z: np.ndarray, t: float) -> np.ndarray:
    """Formula in float64, for classes on axis 1."""
    s = z / t
    ordered = np.sort(s, axis=1)
    return {
        EnergyScore: lambda: -t * logsumexp(s, axis=1),
        EntropyScore: lambda: stats.entropy(softmax(s, axis=1), axis=1),
        MarginScore: lambda: ordered[:, -2] - ordered[:, -1],
        MaxLogitScore: lambda: -ordered[:, -1],
        SoftmaxScore: lambda: -softmax(s, axis=1).max(1),
    }[kind]()


def sigmoid_oracle(kind: type[LogitScore], z: np.ndarray, t: float) -> np.ndarray:
    """Formula in float64 for each label."""
    s = z / t
    p = expit(s)
    return {
        EnergyScore: lambda: -t * np.log1p(np.exp(s)),
        EntropyScore: lambda: -(p * log_expit(s) + (1 - p) * log_expit(-s)),
        MarginScore: lambda: -np.abs(s),
        MaxLogitScore: lambda: -np.abs(s),
        SoftmaxScore: lambda: -np.maximum(p, 1 - p),
    }[kind]()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", POINTWISE)
def test_values_of_each_task(kind: type[LogitScore], temperature: float) -> None:
    def found(z: np.ndarray, **options: object) -> np.ndarray:
        return kind(temperature, **options).score(z).numpy()  # type: ignore[arg-type]

    np.testing.assert_allclose(found(LOGITS), softmax_oracle(kind, LOGITS, temperature), rtol=1e-10)
    two = LOGITS[:, :2]
    np.testing.assert_allclose(found(two, task="binary"), softmax_oracle(kind, two, temperature), rtol=1e-10)
    each = sigmoid_oracle(kind, LOGITS, temperature)
    single = each[:, 0]
    if kind is EnergyScore:  # which sees a shift of both logits
        half = LOGITS[:, :1] / 2
        single = softmax_oracle(kind, np.concatenate([-half, half], 1), temperature)
    np.testing.assert_allclose(found(LOGITS[:, 0], task="binary"), single, rtol=1e-10)
    np.testing.assert_allclose(found(LOGITS[:, :1], task="binary"), single, rtol=1e-10)
    combined = each.sum(1) if kind is EnergyScore else each.max(1)
    np.testing.assert_allclose(found(LOGITS, task="multilabel"), combined, rtol=1e-10)
    mean = np.mean([softmax_oracle(kind, MEMBERS[:, :, m], temperature) for m in range(7)], axis=0)
    np.testing.assert_allclose(found(MEMBERS, per_member=True), mean, rtol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("kind", [*POINTWISE, MutualInformationScore, PredictiveVarianceScore])
def test_a_single_logit_treats_both_classes_alike(kind: type[LogitScore], temperature: float) -> None:
    """A confident negative is as usual as a confident positive, and the boundary is the least usual."""
    z = np.array([0.0, 0.1, 1.0, 3.0, 10.0, 50.0, 1e4])
    if kind in POINTWISE:
        score = kind(temperature, task="binary")
        plus, minus = score.score(z).numpy(), score.score(-z).numpy()
        assert np.array_equal(plus.argsort(kind="stable")[::-1][:5], np.arange(5))
        members = kind(temperature, task="binary", per_member=True).score(np.stack([z, -z], 1)).numpy()
        np.testing.assert_allclose(members, plus, rtol=1e-12)
        assert (np.diff(plus) <= 0).all()
    else:
        draws = np.stack([z, z + 1, z + 2], 1)
        plus, minus = (kind(temperature, task="binary").score(x).numpy() for x in (draws, -draws))
    np.testing.assert_allclose(plus, minus, rtol=1e-9, atol=1e-15)


def test_values_of_ensembles() -> None:
    p = softmax(MEMBERS, axis=1)
    mutual = stats.entropy(p.mean(2), axis=1) - stats.entropy(p, axis=1).mean(1)
    np.testing.assert_allclose(MutualInformationScore().score(MEMBERS).numpy(), mutual, rtol=1e-9)
    variance = ((p - p.mean(2, keepdims=True)) ** 2).mean(2).sum(1)
    np.testing.assert_allclose(PredictiveVarianceScore().score(MEMBERS).numpy(), variance, rtol=1e-9)
    q = expit(MEMBERS)

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(p) + (1 - p) * np.log(1 - p))

    each = entropy(q.mean(2)) - entropy(q).mean(2)
    np.testing.assert_allclose(
        MutualInformationScore(task="multilabel").score(MEMBERS).numpy(), each.max(1), rtol=1e-8
    )
    np.testing.assert_allclose(
        MutualInformationScore(task="binary").score(MEMBERS[:, 0]).numpy(), each[:, 0], rtol=1e-8
    )
    np.testing.assert_allclose(
        PredictiveVarianceScore(task="multilabel").score(MEMBERS).numpy(), q.var(2).max(1), rtol=1e-9
    )


@pytest.mark.parametrize("kind", [*POINTWISE, MutualInformationScore, PredictiveVarianceScore])
def test_extreme_logits_stay_finite(kind: type[LogitScore]) -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-1e4, -1e4, -1e4]])
    members = torch.stack([extreme, extreme.flip(1)], 2)
    pointwise = kind in POINTWISE
    for task in ("multiclass", "multilabel"):
        score = kind(task=task)  # type: ignore[arg-type]
        assert torch.isfinite(score.score(extreme if pointwise else members)).all()


@pytest.mark.parametrize("kind", POINTWISE)
def test_a_sure_prediction_scores_lower(kind: type[LogitScore]) -> None:
    for task in ("multiclass", "multilabel"):
        sure, unsure = kind(task=task).score([[9.0, 8.0 if task == "multilabel" else 0.0], [0.1, 0.0]])  # type: ignore[arg-type]
        assert sure < unsure


def labels_of(z: np.ndarray, task: str) -> np.ndarray:
    """Labels drawn from logits that are three times too large."""
    if task == "multiclass":
        return np.array([RNG.choice(z.shape[1], p=softmax(row / 3)) for row in z])
    return (RNG.uniform(size=z.shape) < expit(z / 3)).astype(int)


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_the_fitted_temperature_is_the_best_one(task: str) -> None:
    z = RNG.normal(size=(400, 1 if task == "binary" else 3)) * 4
    y = labels_of(z, task)

    def loss(log_t: float) -> float:
        s = z / np.exp(log_t)
        if task == "multiclass":
            return -log_softmax(s, axis=1)[np.arange(len(y)), y].mean()
        return -(y * log_expit(s) + (1 - y) * log_expit(-s)).mean()

    best = np.exp(minimize_scalar(loss, bracket=(-1, 2), tol=1e-10).x)
    score = EnergyScore("fit", task=task)  # type: ignore[arg-type]
    with pytest.raises(NotFittedError, match="not fitted yet"):
        score.score(z)
    score.fit(z, y)
    np.testing.assert_allclose(score.T, best, rtol=1e-5)
    assert 2 < score.T < 4
    plain = EnergyScore(score.T, task=task)  # type: ignore[arg-type]
    np.testing.assert_allclose(score.score(z), plain.score(z), rtol=1e-12)


def test_a_temperature_that_does_not_exist_is_refused() -> None:
    z = np.array([[5.0, 0.0], [0.0, 5.0]])
    with pytest.raises(InvalidInputError, match="no temperature between"):
        EnergyScore("fit").fit(z, np.array([0, 1]))
    with pytest.raises(InvalidInputError, match="needs labels"):
        EnergyScore("fit").fit(z)
    with pytest.raises(InvalidInputError, match="labels must be class numbers 0 to 1"):
        EnergyScore("fit").fit(z, np.array([0, 2]))
    with pytest.raises(InvalidInputError, match="temperature must be positive"):
        EnergyScore(0.0).score(z)
    with pytest.raises(InvalidInputError, match="fitted on X="):
        EnergyScore("fit").fit(Y=z)


def test_thresholds_from_logits_of_a_calibration_set() -> None:
    for fitted in (EntropyScore().fit(Y=LOGITS), EntropyScore().fit(X=LOGITS)):
        chosen = fitted.set_threshold(0.8).select(LOGITS)
        assert int(chosen["selected"].sum()) == 40
        assert torch.equal(chosen["selected"], chosen["score"] <= fitted.threshold)
    with pytest.raises(NotFittedError, match="no threshold yet"):
        EntropyScore().select(LOGITS)
    with pytest.raises(NotFittedError, match="no calibration scores"):
        EntropyScore().set_threshold(0.5)


@pytest.mark.parametrize(
    ("score", "shape", "text"),
    [
        (EnergyScore(), (5,), r"multiclass logits without members must have shape \(N, C\); got \(5,\)"),
        (EnergyScore(), (5, 1), "need 2 classes or more"),
        (EnergyScore(task="binary"), (5, 3), "binary logits have 1 or 2 columns"),
        (EnergyScore(per_member=True), (5, 3), r"with members must have shape \(N, C, M\)"),
        (MutualInformationScore(), (5, 3, 1), "compares members"),
        (EnergyScore(), (0, 3), "query is empty"),
    ],
)
def test_bad_logits_are_refused(score: LogitScore, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        score.score(torch.zeros(shape))


def test_other_misuse_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="task must be one of"):
        EnergyScore(task="ordinal")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        EnergyScore().score([[np.nan, 0.0]])
    with pytest.raises(InvalidInputError, match="query has 3 classes, but EnergyScore was fitted on 4"):
        EnergyScore().fit(Y=LOGITS).score(LOGITS[:, :3])
    with pytest.raises(InvalidInputError, match="q= has no meaning"):
        EnergyScore().fit(Y=LOGITS, q=0.9)


def test_small_differences_of_large_logits_keep_their_digits():
    random = np.random.default_rng(0)
    logits = (random.normal(size=(50, 4)) * 8).astype(np.float32)
    exact = logits.astype(np.float64)
    chances = softmax(exact, axis=1)
    expected = {
        EntropyScore(): stats.entropy(chances, axis=1),
        EnergyScore(): -logsumexp(exact, axis=1),
        MarginScore(): np.sort(exact, axis=1)[:, -2] - exact.max(1),
    }
    for score, wanted in expected.items():
        np.testing.assert_allclose(score.score(logits).numpy(), wanted, rtol=2e-7)
