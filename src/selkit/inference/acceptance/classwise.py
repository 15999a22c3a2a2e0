"""Class-wise scores, along a line: on each part where one class is predicted, the score of that class."""

from __future__ import annotations

import numpy as np

from selkit.errors import NotAvailableError, NotFittedError
from selkit.inference.acceptance.neighbors import numbers
from selkit.inference.acceptance.sets import ScoreSet, register, score_set
from selkit.inference.acceptance.spans import Floats, Spans, together
from selkit.inference.levels import tie
from selkit.scores.base import UncertaintyScore
from selkit.scores.classwise import (
    ClassWiseScore,
    CosineClassWiseScore,
    EuclideanClassWiseScore,
    MahalanobisClassWiseScore,
)


@register(ClassWiseScore, EuclideanClassWiseScore, CosineClassWiseScore, MahalanobisClassWiseScore)
class ClassWiseSet(ScoreSet):
    """The predicted class is the one with the largest logit, and its score is at most its threshold.

    Parameters
    ----------
    score
        Fitted on one label for each reference.
    """

    def __init__(self, score: ClassWiseScore) -> None:
        if score.classes is None or score.multilabel is None or score.width is None:
            raise NotFittedError("the score of accepted_by is not fitted yet: call fit(...) first")
        if bool(score.multilabel):
            raise NotAvailableError(
                f"accepted_by={type(score).__name__} with several labels for each input is not available, "
                "because the class that is nearest decides where no label is predicted, and that changes "
                "along a line; use a score of the whole embedding"
            )
        self.width, self.score = int(score.width), score
        self.each: dict[int, ScoreSet] = {}
        for name, part in score.each.items():
            if isinstance(part, UncertaintyScore):
                self.each[int(name)] = score_set(part)
        self.limits: dict[int, float] = {}
        if score.threshold is not None and score.threshold_groups is not None:
            groups = score.threshold_groups.cpu().tolist()
            self.limits = dict(zip(groups, numbers(score.threshold).tolist(), strict=True))

    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold; where that is NaN, each class has its own.

        Parameters
        ----------
        start, stop
            Embeddings, with the logits behind them where the prediction is known.
        threshold
            A number, or NaN.
        """
        first, last = (np.ascontiguousarray(end[:, : self.width]) for end in (start, stop))
        logits = [end[:, self.width :] for end in (start, stop)]
        if not logits[0].shape[1]:
            if np.isnan(threshold):
                raise NotAvailableError(
                    "accepted_by with a class-wise score needs the logits that the class is predicted from, "
                    "because the nearest class changes along a line: "
                    "accepted_by=Acceptance(score, embedding=..., prediction='name of the logits')"
                )
            return together([part.below(first, last, threshold) for part in self.each.values()])
        if logits[0].shape[1] == 1:
            logits = [np.concatenate([np.zeros_like(end), end], 1) for end in logits]
        found = []
        for label, part in self.each.items():
            limit = threshold
            if np.isnan(threshold):
                limit = self.limits[label]
                limit += self.score.rounding(limit) if np.isfinite(limit) else 0.0
            predicted = _wins(logits[0], logits[1], label)
            rows = predicted.row
            here = Spans.where(np.ones(len(rows), dtype=bool)) if limit == np.inf else None
            if here is None:
                here = part.below(first[rows], last[rows], limit)
            found.append(together([predicted, here.moved(rows, len(start))], 2))
        return together(found)


def _wins(first: Floats, last: Floats, label: int) -> Spans:
    """Where one line is above those before it and not below those behind it: one interval on each piece.

    So says argmax, of classes that are equal over a whole stretch too; rounding does not decide that.
    """
    if label >= first.shape[1]:
        return Spans.where(np.zeros(len(first), dtype=bool))
    equal = tie(np.stack([first, last])) * np.where(np.arange(first.shape[1]) < label, 1.0, -1.0)
    behind, after = (
        np.delete(end - end[:, label : label + 1] + equal, label, axis=1) for end in (first, last)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        place = behind / (behind - after)
    low = np.where((behind > 0) & (after <= 0), place, 0.0).max(1, initial=0.0)
    high = np.where((behind <= 0) & (after > 0), place, 1.0).min(1, initial=1.0)
    never = ((behind > 0) & (after > 0)).any(1)
    row = np.arange(len(first), dtype=np.int64)
    return Spans.of(row, low, np.where(never, -1.0, high), len(first))
