"""Where each score is at most its threshold on straight pieces: against the score itself on a dense grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyod.models.knn import KNN
from score_cases import WIDTH, embedding_scores, logit_scores, references

from selkit.errors import InvalidTypeError, NotAvailableError
from selkit.inference.acceptance.sets import register, score_set
from selkit.inference.acceptance.spans import Spans
from selkit.scores import (
    CosineScore,
    EntropyScore,
    EuclideanScore,
    PCAScore,
    PyODScore,
    RandomScore,
    TensorPCA,
    UncertaintyScore,
)

X, Y = references()
CASES = {name: (score, (WIDTH,)) for name, score in embedding_scores(X, Y).items()}
CASES |= {name: (score, shape) for name, score, shape in logit_scores()}
PLACES = np.linspace(0, 1, 101)


def pieces(shape: tuple[int, ...], count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Short, middle and long pieces."""
    rng = np.random.default_rng(seed)
    ones = (1,) * len(shape)
    start = rng.normal(size=(count, *shape)) * 2
    return start, start + rng.normal(size=start.shape) * rng.choice([0.02, 0.3, 4.0], size=(count, *ones))


def values(score: UncertaintyScore, start: np.ndarray, stop: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Scores at places of shape (pieces, M)."""
    place = t.reshape(*t.shape, *(1,) * (start.ndim - 1))
    points = start[:, None] + (stop - start)[:, None] * place
    flat = torch.from_numpy(points.reshape(-1, *start.shape[1:]))
    return score.score(flat).numpy().reshape(t.shape)


def check(
    score: UncertaintyScore, start: np.ndarray, stop: np.ndarray, threshold: float, found: Spans
) -> int:
    """Compare with a grid and at the ends; return how many ends lie inside of pieces."""
    grid = np.broadcast_to(PLACES, (len(start), len(PLACES)))
    truth = values(score, start, stop, grid)
    inside = np.zeros(truth.shape, bool)
    for row, low, high in zip(found.row, found.low, found.high, strict=True):
        inside[row] |= (low <= PLACES) & (high >= PLACES)
    clear = np.abs(truth - threshold) > 1e-9
    assert (inside == (truth <= threshold))[clear].all()
    ends, row = np.concatenate([found.low, found.high]), np.concatenate([found.row, found.row])
    inner = (ends > 0) & (ends < 1)
    at = values(score, start[row[inner]], stop[row[inner]], ends[inner, None])
    assert np.abs(at - threshold).max(initial=0.0) < 1e-11
    return int(inner.sum())


@pytest.mark.parametrize("name", CASES)
def test_sets_agree_with_the_score(name):
    score, shape = CASES[name]
    start, stop = pieces(shape)
    ends = values(score, start, stop, np.broadcast_to([0.0, 1.0], (len(start), 2)))
    crossings = 0
    for q in (0.2, 0.5, 0.8):
        threshold = float(np.quantile(ends, q))
        found = score_set(score).below(start, stop, threshold)
        crossings += check(score, start, stop, threshold, found)
    assert crossings >= 3


def test_the_check_fails_on_a_wrong_set():
    score, shape = CASES["GaussianScore"]
    start, stop = pieces(shape)
    threshold = float(np.quantile(values(score, start, stop, np.full((len(start), 1), 0.5)), 0.5))
    right = score_set(score).below(start, stop, threshold)
    check(score, start, stop, threshold, right)
    for wrong in (
        Spans(right.row[1:], right.low[1:], right.high[1:], right.count),
        Spans(right.row, right.low, right.high - 0.02, right.count),
        Spans(right.row, np.maximum(right.low - 1e-6, 0) + 1e-7, right.high, right.count),
    ):
        with pytest.raises(AssertionError):
            check(score, start, stop, threshold, wrong)


@pytest.mark.parametrize(
    "name", ["EuclideanScore-4-mean-None", "CosineScore-4-max-None", "EntropyScore-multiclass-(5,)"]
)
def test_points_and_thresholds_out_of_reach(name):
    score, shape = CASES[name]
    start, _ = pieces(shape)
    value = values(score, start, start, np.zeros((len(start), 1)))[:, 0]
    threshold = float(np.median(value)) + 1e-6
    found = score_set(score).below(start, start, threshold)  # pieces that do not move
    assert sorted(found.row) == sorted(np.flatnonzero(value <= threshold))
    assert not len(score_set(score).below(start, start + 1.0, float(value.min()) - 1e6).row)
    assert len(score_set(score).below(start, start + 1.0, float(value.max()) + 1e6).row) == len(start)


def test_many_references_are_searched_in_chunks(monkeypatch):
    from selkit.inference.acceptance import cosine, neighbors

    start, stop = pieces((WIDTH,), 60, seed=3)
    for stat in ("max", "mean"):
        for kind in (EuclideanScore, CosineScore):
            score = kind(4, stat).fit(X=references(300)[0])
            threshold = float(score.score(torch.from_numpy(start)).median())
            whole = score_set(score).below(start, stop, threshold)
            with monkeypatch.context() as patch:
                patch.setattr(neighbors, "ENTRIES", 1000)
                parts = score_set(score).below(start, stop, threshold)
            assert cosine.chunks is neighbors.chunks
            order = np.lexsort((parts.low, parts.row)), np.lexsort((whole.low, whole.row))
            for first, last in ((parts.low, whole.low), (parts.high, whole.high)):
                assert np.allclose(first[order[0]], last[order[1]], atol=1e-13)


def test_a_dead_embedding_has_no_direction():
    score = CosineScore(2, "mean").fit(X=X)
    zero = np.zeros((1, WIDTH))
    assert float(score.score(torch.zeros(1, WIDTH, dtype=torch.float64))) == 1.0
    for stat in ("mean", "max"):
        found = score_set(CosineScore(2, stat).fit(X=X))  # type: ignore[arg-type]
        assert len(found.below(zero, zero, 1.0).row) == 1
        assert not len(found.below(zero, zero, 0.99).row)


def test_what_is_not_available_says_why():
    with pytest.raises(NotAvailableError, match="PyOD detector is an arbitrary program"):
        score_set(PyODScore(KNN()).fit(X=X))
    with pytest.raises(NotAvailableError, match="do not depend on the input"):
        score_set(RandomScore())
    fourier = TensorPCA(3, gamma=0.1, M=20)
    for score in (PCAScore(fourier), EuclideanScore(2, pca=fourier)):
        with pytest.raises(NotAvailableError, match="random Fourier features is not available, because"):
            score_set(score.fit(X=X))
    with pytest.raises(InvalidTypeError, match="accepted_by is a str"):
        score_set("EuclideanScore")  # type: ignore[arg-type]


def test_a_subclass_is_not_taken_for_its_base():
    class Other(EntropyScore):
        def _compute(self, logits, temperature):
            return -super()._compute(logits, temperature)

    with pytest.raises(NotAvailableError, match="Other is not available, because selkit does not know"):
        score_set(Other())
    with pytest.raises(ValueError, match="EntropyScore has a set already"):
        register(EntropyScore)(lambda score: None)
