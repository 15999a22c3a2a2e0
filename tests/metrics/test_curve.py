"""Risk-coverage against its definitions, written out: every order of ties, every threshold."""

from __future__ import annotations

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis.extra import numpy as hnp
from scipy.integrate import trapezoid
from sklearn.metrics import roc_auc_score

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import (
    augrc,
    aurc,
    coverage_at_risk,
    excess_aurc,
    risk_at_coverage,
    risk_coverage,
)
from selkit.metrics.blocks import harmonic_difference


def orders_of_ties(score):
    """Every order of the rows that sorts the scores."""
    blocks = [np.flatnonzero(score == value) for value in np.unique(score)]
    for parts in itertools.product(*(itertools.permutations(block) for block in blocks)):
        yield np.concatenate([np.array(part) for part in parts])


def aurc_of_order(loss):
    return np.mean([np.mean(loss[:k]) for k in range(1, len(loss) + 1)])


def augrc_of_order(loss):
    n = len(loss)
    risks = [loss[:k].sum() / n for k in range(n + 1)]
    return trapezoid(risks, np.arange(n + 1) / n)


def by_definition(area, score, loss):
    return np.mean([area(loss[order]) for order in orders_of_ties(score)])


small = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])),
        hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.25, 1.0, 3.0])),
    )
)


@hypothesis.given(small)
@hypothesis.settings(max_examples=60)
def test_areas_are_expectations_over_the_order_of_ties(data):
    score, loss = data
    curve = risk_coverage(score, loss)
    assert float(curve.aurc) == pytest.approx(by_definition(aurc_of_order, score, loss), abs=1e-12)
    assert float(curve.augrc) == pytest.approx(by_definition(augrc_of_order, score, loss), abs=1e-12)
    best = min(aurc_of_order(loss[list(order)]) for order in itertools.permutations(range(len(loss))))
    assert float(curve.aurc_reference) == pytest.approx(best, abs=1e-12)
    assert float(curve.excess_aurc) == pytest.approx(float(curve.aurc) - best, abs=1e-12)


@hypothesis.given(
    small, st.sampled_from([0.1, 0.34, 0.5, 0.7, 1.0]), st.sampled_from([-1.0, 0.0, 0.2, 0.5, 3.0])
)
@hypothesis.settings(max_examples=100)
def test_points_are_those_of_thresholds(data, coverage, risk):
    score, loss = data
    chosen = [loss[score <= threshold] for threshold in np.unique(score)]
    enough = next(rows for rows in chosen if len(rows) >= coverage * len(loss) - 1e-9)
    assert float(risk_at_coverage(score, loss, coverage)) == pytest.approx(enough.mean(), abs=1e-12)
    good = [len(rows) / len(loss) for rows in chosen if rows.mean() <= risk + 1e-12]
    assert float(coverage_at_risk(score, loss, risk)) == pytest.approx(max(good, default=0.0))


@hypothesis.given(small, st.randoms(use_true_random=False))
def test_order_of_rows_changes_no_bit(data, random):
    score, loss = data
    order = list(range(len(score)))
    random.shuffle(order)
    first, second = risk_coverage(score, loss), risk_coverage(score[order], loss[order])
    for name in (
        "aurc",
        "excess_aurc",
        "augrc",
        "excess_augrc",
        "coverage",
        "risk",
        "reference",
        "threshold",
    ):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_sorting_rows_as_they_come_is_not_invariant_but_this_is():
    """What seapig and torch-uncertainty do, on tied scores: the area depends on the order of the rows."""
    score, loss = np.repeat([0.0, 1.0], 500), np.tile(np.repeat([0.0, 1.0], 250), 2)

    def as_they_come(order):
        return aurc_of_order(loss[order][np.argsort(score[order], kind="stable")])

    up, down = np.arange(1000), np.arange(1000)[::-1]
    assert abs(as_they_come(up) - as_they_come(down)) > 0.1
    assert torch.equal(aurc(score[up], loss[up]), aurc(score[down], loss[down]))
    assert float(aurc(score, loss)) == pytest.approx(0.5, abs=1e-9)  # either half is half wrong


def test_constant_score_has_the_mean_loss_at_every_coverage():
    loss = torch.rand(37)
    curve = risk_coverage(torch.zeros(37), loss)
    assert float(curve.aurc) == pytest.approx(float(loss.double().mean()), rel=1e-6)
    assert curve.coverage.tolist() == [1.0]


@pytest.mark.parametrize("ties", [False, True])
def test_many_samples_agree_with_cumulative_sums(ties):
    draw = np.random.default_rng(0)
    score = draw.random(20_000)
    loss = draw.random(20_000) * score
    if ties:
        score = np.round(score, 2)
    mean = {value: loss[score == value].mean() for value in np.unique(score)}
    expected = np.array([mean[value] for value in np.sort(score)])
    naive = np.mean(np.cumsum(expected) / np.arange(1, len(loss) + 1))
    assert float(aurc(score, loss)) == pytest.approx(naive, rel=1e-12)


def test_augrc_is_the_auroc_of_failure_detection_rewritten():
    """Traub et al. 2024, equation 6: AUGRC = (1 - AUROC) e (1 - e) + e^2 / 2."""
    draw = np.random.default_rng(1)
    loss = (draw.random(500) < 0.3).astype(float)
    score = np.round(loss * 0.3 + draw.random(500), 1)  # with ties
    e = loss.mean()
    assert float(augrc(score, loss)) == pytest.approx(
        (1 - roc_auc_score(loss, score)) * e * (1 - e) + e**2 / 2, rel=1e-12
    )


def test_reference_of_zero_one_losses_tends_to_its_limit():
    """Geifman et al. 2019: the best AURC for error e is e + (1 - e) log(1 - e)."""
    loss = torch.zeros(100_000)
    loss[:20_000] = 1
    assert float(risk_coverage(torch.rand(100_000), loss).aurc_reference) == pytest.approx(
        0.2 + 0.8 * math.log(0.8), abs=2e-5
    )


def test_a_perfect_score_has_no_excess():
    loss = torch.tensor([0.0, 0.5, 0.5, 2.0])
    assert float(excess_aurc(loss * 7, loss)) == 0.0


def test_all_correct_is_covered_at_any_risk_and_all_wrong_at_none():
    score = torch.rand(10)
    assert float(coverage_at_risk(score, torch.zeros(10), 0.05)) == 1.0
    assert float(coverage_at_risk(score, torch.zeros(10), 0.0)) == 1.0
    assert float(coverage_at_risk(score, torch.ones(10), 0.05)) == 0.0


def test_exact_fractions_are_not_missed_by_rounding():
    loss = torch.cat([torch.zeros(71), torch.ones(29)])
    curve = risk_coverage(torch.arange(100.0), loss)
    assert float(curve.coverage_at_risk(0.29)) == 1.0  # 0.29 * 100 < 29 in floating point
    assert curve.index_at_coverage(0.7) == 69


@pytest.mark.parametrize("kind", ["selective", "generalized"])
def test_curve_and_reference_of_either_kind(kind):
    score, loss = torch.tensor([1.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    curve = risk_coverage(score, loss, risk=kind)
    scale = torch.tensor([1.0, 1.0, 1.0]) if kind == "selective" else torch.tensor([0.5, 0.75, 1.0])
    assert torch.allclose(curve.risk, torch.tensor([1 / 2, 1 / 3, 1 / 2]).double() * scale)
    assert torch.allclose(curve.reference, torch.tensor([0, 1 / 3, 1 / 2]).double() * scale)
    assert torch.equal(curve.excess, curve.risk - curve.reference)
    assert float(curve.auc_empirical) == float(curve.aurc if kind == "selective" else curve.augrc)
    assert float(curve.auc_excess) == pytest.approx(float(curve.auc_empirical - curve.auc_reference))
    assert curve.threshold.tolist() == [1.0, 2.0, 3.0]


def test_harmonic_differences_against_exact_sums():
    pairs = [
        (0, 0),
        (0, 1),
        (3, 3),
        (0, 64),
        (5, 70),
        (63, 64),
        (64, 65),
        (64, 64),
        (200, 5000),
        (10**6, 10**6 + 3),
    ]
    low, high = (torch.tensor(column).double() for column in zip(*pairs, strict=True))
    expected = [math.fsum(1 / k for k in range(a + 1, b + 1)) for a, b in pairs]
    assert harmonic_difference(low, high).tolist() == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float64])
def test_dtypes_give_the_numbers_of_their_values(dtype):
    score, loss = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])
    expected = aurc(score.double(), loss.double())
    assert torch.equal(aurc(score.to(dtype) if dtype != torch.bool else score, loss.to(dtype)), expected)
    assert torch.equal(aurc(score.numpy(), loss.numpy()[:, None]), expected)


def test_large_integer_scores_stay_distinct():
    base = 2**24
    assert len(risk_coverage(torch.tensor([base, base + 1]), torch.zeros(2))) == 2


def test_infinite_scores_are_ordered():
    curve = risk_coverage(torch.tensor([torch.inf, 0.0, -torch.inf]), torch.tensor([1.0, 0.0, 0.0]))
    assert float(curve.coverage_at_risk(0.0)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("score", "loss", "error", "text"),
    [
        ([0.0, math.nan], [0.0, 0.0], InvalidInputError, "1 of 2 scores are NaN"),
        ([0.0, 1.0], [0.0, math.inf], InvalidInputError, "1 losses are NaN or infinite"),
        ([], [], InvalidInputError, "at least one sample"),
        ([0.0], [0.0, 1.0], InvalidInputError, "got 1 scores and 2 losses"),
        ([[0.0, 1.0]], [0.0], InvalidInputError, "score must be one number per sample"),
        ([0.0 + 1j], [0.0], InvalidTypeError, "must"),
        ("ab", [0.0], InvalidTypeError, "score"),
    ],
)
def test_bad_input_is_refused(score, loss, error, text):
    score = np.array(score) if isinstance(score, list) else score
    with pytest.raises(error, match=text):
        risk_coverage(score, np.array(loss))


def test_bad_arguments_are_refused():
    curve = risk_coverage(torch.rand(3), torch.rand(3))
    with pytest.raises(InvalidInputError, match="risk must be 'selective'"):
        risk_coverage(torch.rand(3), torch.rand(3), risk="mean")
    for coverage in (0.0, 1.1, math.nan, True):
        with pytest.raises(InvalidInputError, match=r"coverage must lie in \(0, 1\]"):
            curve.risk_at_coverage(coverage)
    with pytest.raises(InvalidInputError, match="risk must be a finite number"):
        curve.coverage_at_risk(math.nan)
    with pytest.raises(InvalidInputError, match="nothing to plot"):
        curve.plot(empirical=False, reference=False, excess=False)


def test_the_plot_shows_the_numbers_of_the_curve():
    draw = torch.Generator().manual_seed(3)
    score = torch.randint(0, 20, (300,), generator=draw).double()
    loss = (torch.rand(300, generator=draw) < 0.2).double()
    curve = risk_coverage(score, loss)
    axes = curve.plot(digits=6).axes[0]
    drawn = {line.get_label().split(":")[0]: line for line in axes.lines}
    for name, area in (
        ("empirical", curve.aurc),
        ("reference", curve.aurc_reference),
        ("excess", curve.excess_aurc),
    ):
        assert drawn[name].get_label() == f"{name}: {float(area):.6f}"
        # AURC is the mean of the risk over all coverages, and all of them are drawn
        assert np.mean(drawn[name].get_ydata()) == pytest.approx(float(area), abs=1e-12)
    at = curve.accepted.numpy() - 1
    assert drawn["empirical"].get_ydata()[at] == pytest.approx(curve.risk.numpy())
    assert drawn["empirical"].get_xdata()[at] == pytest.approx(curve.coverage.numpy())


def test_a_plot_of_many_points_is_thinned():
    curve = risk_coverage(torch.rand(5000), torch.rand(5000), risk="generalized")
    axes = curve.plot(max_points=100, excess=False).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [100, 100]
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(float(curve.risk[-1]))
    assert axes.get_ylabel() == "generalized risk"


def test_repr_says_the_areas():
    assert "aurc=0.1111" in repr(risk_coverage(torch.arange(3.0), torch.tensor([0.0, 0.0, 1.0])))
