from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selkit.calibration import conformal_pvalues, conformal_threshold, risk_threshold
from selkit.errors import InvalidInputError, InvalidTypeError, NoGuaranteeError, NotFittedError
from selkit.scores import EuclideanScore, RandomScore

RNG = np.random.default_rng(0)
X, CAL, QUERY = RNG.normal(size=(200, 3)), RNG.normal(size=(400, 3)), RNG.normal(size=(60, 3)) * 1.5
SCORE = EuclideanScore(k=2).fit(X=X, Y=CAL, y_cal=np.arange(400) % 2)
KNOWN = SCORE.score(CAL).numpy()
LOSSES = (np.quantile(KNOWN, 0.9) < KNOWN).astype(float)


def test_the_threshold_is_the_quantile_and_selected_means_at_most() -> None:
    for q, method in ((0.0, "linear"), (0.5, "linear"), (0.9, "inverted_cdf"), (1.0, "linear")):
        chosen = SCORE.set_threshold(q, method=method).select(CAL)
        limit = np.quantile(KNOWN, q, method=method)  # type: ignore[call-overload]
        assert float(SCORE.threshold) == limit  # type: ignore[arg-type]
        assert (chosen["selected"].numpy() == (limit >= KNOWN)).all()
    assert int(SCORE.set_threshold(1.0).select(CAL)["selected"].sum()) == 400  # seapig loses the largest
    assert int(SCORE.set_threshold(0.0).select(CAL)["selected"].sum()) == 1


def test_a_float32_score_equal_to_its_threshold_is_selected() -> None:
    score = EuclideanScore().fit(X=X.astype("f4"), Y=CAL.astype("f4"))
    own = score.score(CAL.astype("f4"))
    for coverage in np.linspace(0.1, 0.9, 9):
        rank = int(np.ceil(401 * coverage - 1e-9))
        assert int(score.calibrate(coverage=coverage).select(CAL.astype("f4"))["selected"].sum()) == rank
        assert float(score.threshold) == own.sort().values[rank - 1]  # type: ignore[arg-type]


def test_calibrate_uses_the_functions_of_selkit_calibration() -> None:
    SCORE.calibrate(coverage=0.9)
    assert float(SCORE.threshold) == conformal_threshold(KNOWN, 0.9)  # type: ignore[arg-type]
    SCORE.calibrate(risk=0.1, losses=LOSSES, confidence=0.9)
    assert float(SCORE.threshold) == risk_threshold(KNOWN, LOSSES, 0.1, confidence=0.9)  # type: ignore[arg-type]
    own = RNG.normal(size=99)
    SCORE.calibrate(coverage=0.8, scores=own)
    assert float(SCORE.threshold) == np.sort(own)[79]  # type: ignore[arg-type]


def test_a_risk_threshold_is_rounded_to_the_safe_side() -> None:
    score = EuclideanScore().fit(X=X.astype("f4"), Y=CAL.astype("f4"))
    own = score.score(CAL.astype("f4")).double().numpy()
    wrong = (own > np.quantile(own, 0.8)).astype(float)
    score.calibrate(risk=0.1, losses=wrong)
    limit = risk_threshold(own, wrong, 0.1)
    assert float(score.threshold) <= limit  # type: ignore[arg-type]
    selected = score.select(CAL.astype("f4"))["selected"].numpy()
    assert (selected == (own <= limit)).all()


def test_one_threshold_for_each_group() -> None:
    groups = np.arange(400) % 3 - 1
    SCORE.calibrate(coverage=0.8, groups=groups)
    expected = [conformal_threshold(KNOWN[groups == g], 0.8) for g in (-1, 0, 1)]
    assert SCORE.threshold.tolist() == expected  # type: ignore[union-attr]
    of_query = np.arange(60) % 3 - 1
    chosen = SCORE.select(QUERY, groups=of_query)
    assert (chosen["selected"].numpy() == (chosen["score"].numpy() <= np.array(expected)[of_query + 1])).all()
    with pytest.raises(
        InvalidInputError, match=r"groups \[7\] have no threshold; those that have: \[-1, 0, 1\]"
    ):
        SCORE.select(QUERY, groups=np.full(60, 7))
    with pytest.raises(InvalidInputError, match="one threshold for each of 3 groups"):
        SCORE.select(QUERY)
    with pytest.raises(InvalidInputError, match=r"groups must have shape \(60,\)"):
        SCORE.select(QUERY, groups=of_query[:5])
    with pytest.raises(InvalidTypeError, match="groups must be whole numbers"):
        SCORE.select(QUERY, groups=of_query + 0.5)
    with pytest.raises(NotFittedError, match="needs one threshold for this"):
        SCORE.decision_function(QUERY)
    SCORE.calibrate(coverage=0.8, groups="label")
    assert SCORE.threshold_groups.tolist() == [0, 1]  # type: ignore[union-attr]
    SCORE.set_threshold(0.5)
    with pytest.raises(InvalidInputError, match="there is one threshold for all"):
        SCORE.select(QUERY, groups=of_query)


def test_pvalues_and_flags() -> None:
    pvalues = SCORE.pvalues(QUERY)
    own = SCORE.score(QUERY).numpy()
    assert np.array_equal(pvalues, conformal_pvalues(KNOWN, own))
    flagged = SCORE.flag(np.concatenate([QUERY[:50], np.full((10, 3), 50.0)]), fdr=0.2)
    assert flagged["flagged"][50:].all()
    ordered = np.sort(flagged["pvalue"].numpy())
    cut = max(k for k in range(61) if k == 0 or ordered[k - 1] <= 0.2 * k / 60)
    assert int(flagged["flagged"].sum()) == cut


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, InvalidInputError, "give either coverage= or risk="),
        ({"coverage": 0.9, "risk": 0.1}, InvalidInputError, "give either coverage= or risk="),
        ({"risk": 0.1}, InvalidInputError, "risk= needs losses="),
        (
            {"risk": 0.1, "losses": LOSSES[:5]},
            InvalidInputError,
            "for each of the 400 calibration scores; got 5",
        ),
        ({"coverage": 0.9, "losses": LOSSES}, InvalidInputError, "losses= belong to risk="),
        ({"coverage": 0.9, "otherwise": "accept_nothing"}, InvalidInputError, "belongs to risk="),
        ({"risk": 0.1, "losses": LOSSES, "otherwise": "accept_all"}, InvalidInputError, "promises nothing"),
        ({"coverage": 1.0}, InvalidInputError, "coverage must be a fraction"),
        ({"coverage": 0.9999}, NoGuaranteeError, "needs at least 9999 calibration scores; got 400"),
        ({"risk": 0.01, "losses": LOSSES * 0 + 1}, NoGuaranteeError, "no threshold can promise a risk"),
        ({"coverage": 0.9, "groups": "class"}, InvalidInputError, "groups must be an array or 'label'"),
    ],
)
def test_misuse_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        SCORE.calibrate(**options)


def test_explicitly_accepting_all_or_nothing() -> None:
    assert SCORE.calibrate(coverage=0.9999, otherwise="accept_all").select(QUERY)["selected"].all()
    nothing = SCORE.calibrate(risk=0.01, losses=LOSSES * 0 + 1, otherwise="accept_nothing")
    assert not nothing.select(QUERY)["selected"].any()


def test_the_order_of_use_is_checked() -> None:
    fresh = EuclideanScore()
    for use in (lambda: fresh.score(QUERY), lambda: fresh.select(QUERY), lambda: fresh.pvalues(QUERY)):
        with pytest.raises(NotFittedError, match=r"EuclideanScore is not fitted yet: call fit\(...\) first"):
            use()
    with pytest.raises(NotFittedError, match=r"EuclideanScore has no threshold yet: call set_threshold"):
        EuclideanScore().fit(X=X).select(QUERY)
    with pytest.raises(InvalidInputError, match=r"groups='label' needs the labels"):
        EuclideanScore().fit(X=X, Y=CAL).calibrate(coverage=0.9, groups="label")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"X": X, "model": 1, "loaders": {}}, "either X= and Y=, or model= and loaders="),
        ({"model": torch.nn.Identity()}, "belong together"),
        ({"X": X, "ref": X}, "X= and ref= are two names for one argument"),
        ({"X": X, "y": X}, "Calibration embeddings are given by name: Y="),
        ({"X": X, "y": [0], "labels": [0]}, "y= and labels= are two names"),
        ({"X": {"features": X}}, "is a mapping with the keys"),
        ({"model": torch.nn.Identity(), "loaders": {"test": []}}, "loaders may hold 'train' and 'val'"),
    ],
)
def test_unclear_arguments_of_fit_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        EuclideanScore().fit(**options)


def test_other_names_and_forms_of_the_arguments() -> None:
    expected = SCORE.score(QUERY)
    for score in (
        EuclideanScore(k=2).fit(X),
        EuclideanScore(k=2).fit(ref=X, cal=CAL),
        EuclideanScore(k=2).fit(X={"embedding": X, "label": np.arange(200)}),
        EuclideanScore(k=2).fit(X.tolist()),
    ):
        assert torch.equal(score.score(QUERY), expected)
        assert torch.equal(score.score({"embedding": QUERY}), expected)
        assert torch.equal(score(torch.tensor(QUERY)), expected)


def test_a_threshold_remembers_what_it_promises(tmp_path: Path) -> None:
    scores = np.arange(99.0)
    made = RandomScore()
    assert made.set_threshold(0.9).guarantee is None  # no calibration scores: nothing is promised
    assert made.set_threshold(0.5, scores=scores).guarantee["quantile"] == 0.5
    made.calibrate(coverage=0.9, scores=scores)
    assert made.guarantee["coverage"] == 0.9
    assert "at least 0.9 (split conformal, 99" in made.guarantee["text"]
    groups = np.arange(99) % 2
    assert (
        "within each of 2 groups"
        in made.calibrate(coverage=0.9, scores=scores, groups=groups).guarantee["text"]
    )
    made.calibrate(risk=0.1, confidence=0.9, losses=np.zeros(99), scores=scores)
    assert (made.guarantee["risk"], made.guarantee["confidence"]) == (0.1, 0.9)
    made.save(tmp_path / "score.safetensors")
    assert RandomScore.load(tmp_path / "score.safetensors").guarantee == made.guarantee
    assert made.fit(Y=np.zeros((3, 2))).guarantee is None
