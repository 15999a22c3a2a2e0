from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import stats

from selkit.errors import InvalidInputError
from selkit.scores import RandomScore


def test_numbers_are_uniform_and_follow_the_seed() -> None:
    drawn = RandomScore(seed=3).score(torch.zeros(20000, 2))
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > 0.01
    assert torch.equal(drawn, RandomScore(seed=3).score(torch.zeros(20000, 7)))
    assert not torch.equal(drawn, RandomScore(seed=4).score(torch.zeros(20000, 2)))


def test_each_call_goes_on_and_a_saved_score_too(tmp_path: Path) -> None:
    whole = RandomScore(seed=1).score(torch.zeros(100, 1))
    score = RandomScore(seed=1)
    first = score.score(torch.zeros(40, 1))
    score.save(tmp_path / "random.safetensors")
    for other in (score, RandomScore.load(tmp_path / "random.safetensors")):
        assert torch.equal(torch.cat([first, other.score(torch.zeros(60, 1))]), whole)


def test_the_threshold_is_the_quantile_itself() -> None:
    score = RandomScore().set_threshold(0.25)
    assert float(score.threshold) == 0.25  # type: ignore[arg-type]
    assert 0.22 < float(score.select(torch.zeros(10000, 1))["selected"].float().mean()) < 0.28
    fitted = RandomScore().fit(X=torch.zeros(99, 3), Y=torch.zeros(999, 3)).calibrate(coverage=0.9)
    assert 0.87 < float(fitted.threshold) < 0.93  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="query is empty"):
        score.score(torch.zeros(0, 3))
