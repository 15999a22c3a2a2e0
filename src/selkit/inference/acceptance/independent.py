"""Scores whose acceptance cannot, or need not, be followed along a line."""

from __future__ import annotations

from selkit.errors import NotAvailableError
from selkit.inference.acceptance.sets import ScoreSet, register
from selkit.scores.pyod import PyODScore
from selkit.scores.random import RandomScore


@register(PyODScore)
def _detector(score: PyODScore) -> ScoreSet:
    raise NotAvailableError(
        f"accepted_by=PyODScore({type(score.detector).__name__}) is not available, because a PyOD detector "
        "is an arbitrary program (trees, ranks, histograms): selkit cannot know where it is below its "
        "threshold along a line. Use a score that is a formula of the embedding, such as EuclideanScore or "
        "GaussianScore"
    )


@register(RandomScore)
def _random(_: RandomScore) -> ScoreSet:
    raise NotAvailableError(
        "accepted_by=RandomScore is not available, because its numbers do not depend on the input: being "
        "accepted says nothing about it, and the p-value is valid without accepted_by"
    )
