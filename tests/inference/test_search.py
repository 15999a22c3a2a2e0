"""When a search has seen enough, and what it proposes next."""

from __future__ import annotations

import numpy as np

from selkit.inference.events import Settled
from selkit.inference.intervals import EMPTY
from selkit.inference.search import Goal, Search
from selkit.inference.truncated import Normal


def test_the_interval_around_the_statistic_is_found_even_where_its_mass_hardly_matters() -> None:
    search = Search(Normal(), 3.2, "two-sided", Goal())
    beyond = np.array([[-40.0, 3.186], [3.22, 45.0]])
    search.record(Settled(np.array([[-2.7, 3.186]]), beyond))
    lower, upper = search.bounds()
    assert upper - lower < 1e-3
    assert not search.finished()
    search.record(Settled(np.array([[3.19, 3.21]]), EMPTY))
    assert search.finished()


def test_what_is_deferred_is_not_proposed_again() -> None:
    search = Search(Normal(), 0.5, "two-sided", Goal())
    search.record(Settled(np.array([[0.4, 0.6]]), np.array([[0.0, 0.4], [0.7, 1.0]])))
    search.deferred = np.array([[0.6, 0.7]])
    assert search.home_is_known()
    windows = search.propose(1.0, 8)
    assert windows
    assert all(high <= 0.0 or low >= 1.0 for low, high in windows)
    lower, upper = search.bounds()
    assert lower < search.p_value() < upper
