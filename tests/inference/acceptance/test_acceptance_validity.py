"""p-values of accepted null images are uniform if they are conditioned on acceptance, and not if not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from coarse import coarse_test, network, noise, run, sureness
from scipy import stats

from selkit.inference import RoiResult

LEVEL = 0.01
"""Of the Kolmogorov-Smirnov tests; seeds are fixed, so a right method passes always."""


def accepted(model, score, embedding: str) -> Iterator[np.ndarray]:
    for seed in range(100, 400):
        images = noise(200, seed)
        yield from images[score.select(torch.from_numpy(run(model, images)[embedding]))["selected"].numpy()]


def check_uniform(p_values: list[float]) -> None:
    values = np.asarray(p_values)
    assert np.isfinite(values).all()
    assert ((values >= 0) & (values <= 1)).all()
    assert stats.kstest(values, "uniform").pvalue > LEVEL


@pytest.fixture(scope="module")
def results() -> list[RoiResult]:
    """Tests of 400 images of noise on which the network is sure, as it is on one in ten."""
    model = network()
    score, test = sureness(model, 0.1), coarse_test(model)
    stream = accepted(model, score, "top")
    return [test.inference(next(stream), accepted_by=score, embedding="top") for _ in range(400)]


def test_conditioned_p_values_are_uniform(results):
    check_uniform([result.p_value for result in results])


def test_p_values_without_acceptance_are_not(results):
    with pytest.raises(AssertionError):
        check_uniform([result.p_value_unconditioned for result in results])
    with pytest.raises(AssertionError):
        check_uniform([result.naive_p_value() for result in results])


def test_the_rejection_rate_holds(results):
    count = sum(result.p_value <= 0.05 for result in results)
    low, high = stats.binom.ppf([0.005, 0.995], len(results), 0.05)
    assert low <= count <= high
