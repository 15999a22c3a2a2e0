"""Bins keep the order of numbers, their edges are exact, and what they blur stays within the stated bound."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from selkit.errors import InvalidInputError, NotAvailableError
from selkit.metrics import RiskCoverageMetric, risk_coverage
from selkit.metrics.bins import bin_of, upper_edge

numbers = st.floats(width=32, allow_nan=False)


@hypothesis.given(numbers, numbers, st.integers(10, 26))
@hypothesis.example(0.0, -0.0, 12)
@hypothesis.example(-1e-45, 0.0, 26)
def test_bins_are_in_the_order_of_the_numbers(a, b, bits):
    low, high = sorted((a, b))
    first, second = bin_of(torch.tensor([low, high]), bits).tolist()
    assert 0 <= first <= second < 2**bits
    assert low != high or first == second


@hypothesis.given(numbers, st.integers(10, 26))
def test_edges_are_the_last_number_of_a_bin(value, bits):
    index = bin_of(torch.tensor([value]), bits)
    edge = upper_edge(index, bits)
    assert float(edge) >= value
    assert torch.equal(bin_of(edge, bits), index)
    beyond = torch.tensor(np.nextafter(edge.numpy(), np.float32(np.inf)))
    assert float(edge) == np.inf or int(bin_of(beyond, bits)) > int(index)


def metrics_of(score, loss, bins, batch=64):
    exact, rough = RiskCoverageMetric(), RiskCoverageMetric(bins=bins)
    for rows in torch.arange(len(score)).split(batch):
        exact.update(score[rows], loss[rows])
        rough.update(score[rows], loss[rows])
    return exact, rough


@hypothesis.given(st.integers(0, 10**6), st.sampled_from(["binary", "continuous", "negative"]))
@hypothesis.settings(max_examples=40)
def test_areas_are_within_the_stated_bound(seed, kind):
    draw = torch.Generator().manual_seed(seed)
    score = torch.randn(80, generator=draw)
    loss = torch.rand(80, generator=draw)
    loss = {"binary": (loss < 0.4).float(), "continuous": loss, "negative": loss - 2}[kind]
    exact, rough = metrics_of(score, loss, bins=1024)  # sign, exponent and one bit: very coarse
    first, second = exact.compute(), rough.compute()
    for name in ("aurc", "augrc"):
        bound = float(second[f"rc/{name}_error"])
        assert bound > 0
        assert abs(float(first[f"rc/{name}"] - second[f"rc/{name}"])) <= bound + 1e-12


def test_the_bound_is_reached_by_the_worst_order():
    """Two samples in one bin, the bad one first: the largest difference that there can be."""
    exact, rough = metrics_of(torch.tensor([1.0, 1.01]), torch.tensor([1.0, 0.0]), bins=1024)
    difference = float(exact.compute()["rc/aurc"] - rough.compute()["rc/aurc"])
    assert difference == pytest.approx(float(rough.compute()["rc/aurc_error"]))


def test_points_of_a_binned_curve_are_exact():
    score, loss = torch.randn(500), torch.rand(500)
    _, rough = metrics_of(score, loss, bins=1024)
    curve = rough.get_curve()
    for threshold, accepted, total in zip(curve.threshold, curve.accepted, curve.loss_sum, strict=True):
        chosen = score <= threshold
        assert int(accepted) == int(chosen.sum())
        assert float(total) == pytest.approx(float(loss[chosen].double().sum()), rel=1e-9)


def test_fine_bins_are_close_and_need_no_more_memory_for_more_samples():
    score = torch.rand(20_000)
    loss = (torch.rand(20_000) < score).float()
    exact, rough = metrics_of(score, loss, bins=2**20, batch=1000)
    size = sum(getattr(rough, name).numel() for name in rough._defaults)
    assert size == 4 * 2**20 + 3
    for name, value in exact.compute().items():
        assert float(rough.compute()[name]) == pytest.approx(float(value), abs=2e-4), name
    assert float(rough.compute()["rc/aurc_error"]) < 2e-3
    assert torch.equal(rough.compute()["rc/excess_aurc"] >= 0, torch.tensor(True))


def test_constant_losses_are_exact():
    _, rough = metrics_of(torch.rand(10), torch.full((10,), 0.25), bins=1024)
    assert float(rough.compute()["rc/aurc"]) == pytest.approx(0.25)
    assert float(rough.compute()["rc/aurc_error"]) == 0.0


def test_bins_refuse_nan_when_computing_and_order_infinities():
    metric = RiskCoverageMetric(bins=1024)
    metric.update(torch.tensor([-torch.inf, 0.0, torch.inf]), torch.tensor([0.0, 0.0, 1.0]))
    assert float(metric.get_curve().coverage_at_risk(0)) == pytest.approx(2 / 3)
    assert metric.get_curve().threshold.tolist()[-1] == torch.inf
    metric.update(torch.tensor([torch.nan]), torch.tensor([0.0]))
    with pytest.raises(InvalidInputError, match="1 samples had a NaN score"):
        metric.compute()


@pytest.mark.parametrize("bins", [1000, 512, 2**27, 0])
def test_other_numbers_of_bins_are_refused(bins):
    with pytest.raises(InvalidInputError, match="power of two"):
        RiskCoverageMetric(bins=bins)


def test_the_bootstrap_needs_samples():
    with pytest.raises(NotAvailableError, match="bins=None or n_boot=0"):
        RiskCoverageMetric(bins=1024, n_boot=10)


@pytest.mark.filterwarnings("ignore:.*called before the ``update`` method.*")
def test_an_empty_binned_metric_is_nan():
    values = RiskCoverageMetric(bins=1024).compute()
    assert float(values.pop("rc/count")) == 0
    assert all(torch.isnan(value) for value in values.values())
    assert risk_coverage(torch.rand(2), torch.rand(2)).aurc_error == 0
