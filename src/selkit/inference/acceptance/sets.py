"""Where a score is at most its threshold on pieces along which its input is linear.

Each family of scores has a file of its own, which registers what it knows; this one finds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module

import torch

from selkit.errors import InvalidTypeError, NotAvailableError
from selkit.inference.acceptance.spans import Floats, Spans
from selkit.scores import UncertaintyScore

FAMILIES = ("neighbors", "cosine", "gaussian", "components", "logits", "classwise", "independent")


class ScoreSet(ABC):
    """What is known of a fitted score along straight lines of its input."""

    @abstractmethod
    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold.

        Parameters
        ----------
        start, stop
            The score's input at both ends of each piece, float64 of shape ``(B, *features)``; linear in
            between.
        threshold
            Finite.

        Returns
        -------
        Spans
            Places within [0, 1] on each piece, sorted and disjoint.
        """


_SETS: dict[type[UncertaintyScore], Callable[..., ScoreSet]] = {}


def register(*kinds: type[UncertaintyScore]) -> Callable[[Callable[..., ScoreSet]], Callable[..., ScoreSet]]:
    """Say which set belongs to scores of these classes (not of subclasses, which may compute otherwise)."""

    def keep(build: Callable[..., ScoreSet]) -> Callable[..., ScoreSet]:
        for kind in kinds:
            if kind in _SETS:
                raise ValueError(f"{kind.__name__} has a set already")
            _SETS[kind] = build
        return build

    return keep


def score_set(score: UncertaintyScore) -> ScoreSet:
    """Return what is known of a score along lines.

    Parameters
    ----------
    score
        Fitted.

    Raises
    ------
    InvalidTypeError
        If it is no score.
    NotAvailableError
        If its acceptance cannot be followed along a line, with the reason.
    """
    if not isinstance(score, UncertaintyScore):
        raise InvalidTypeError(
            f"accepted_by is a {type(score).__name__}; give a fitted score of selkit.scores, or "
            "selkit.inference.Acceptance(score, ...)"
        )
    for family in FAMILIES:
        import_module(f"selkit.inference.acceptance.{family}")
    build = _SETS.get(type(score))
    if build is None:
        known = ", ".join(sorted(kind.__name__ for kind in _SETS))
        raise NotAvailableError(
            f"accepted_by={type(score).__name__} is not available, because selkit does not know where that "
            f"score is below its threshold along a line; known are {known}. Add yours with "
            "selkit.inference.acceptance.register"
        )
    score._check_fitted()
    with torch.no_grad():
        return build(score)
