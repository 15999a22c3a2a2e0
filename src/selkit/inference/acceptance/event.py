"""The event that a score accepts the input, as a set of points of a line."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selkit.embeddings.sources import Pool, pooled
from selkit.errors import InvalidInputError, NotAvailableError
from selkit.graph import Program
from selkit.inference.acceptance.given import Acceptance
from selkit.inference.acceptance.sets import ScoreSet, score_set
from selkit.inference.acceptance.spans import Floats
from selkit.inference.intervals import EMPTY, Intervals, as_intervals
from selkit.inference.levels import tie
from selkit.inference.line import Follower, Line, Trace
from selkit.scores import ClassWiseScore

CACHE = 2**24
"""Bytes of the largest value that one stack may hold."""


class AcceptanceEvent:
    """The points of a line at which a score accepts the input.

    Parameters
    ----------
    acceptance
        What decides.
    program
        In double precision; outputs the features that the score is given, and what the predicted class is
        taken from where that is needed.
    """

    def __init__(self, acceptance: Acceptance, program: Program) -> None:
        self.acceptance, self.program = acceptance, program
        self.set: ScoreSet = score_set(acceptance.score)
        self.limit = acceptance.limit()
        self.follower = Follower(program, _stack(program))

    def at(self, acceptance: Acceptance) -> AcceptanceEvent:
        """Return the event with the threshold of another acceptance, which is the same in all else."""
        event = copy.copy(self)
        event.acceptance, event.limit = acceptance, acceptance.limit()
        return event

    def observe(self, image: Tensor) -> tuple[float, float, bool]:
        """The score of an image, its threshold, and whether it is accepted, by the score's own code.

        Parameters
        ----------
        image
            In ONNX shape, float64.
        """
        values = self.program.run(dict.fromkeys(self.program.inputs, image[None]))
        score = self.acceptance.score
        features = self._features(values)
        query: Any = features
        if len(values) > 1:
            query = {"embedding": features[:, : self._width], "prediction": self._predicted(features)}
        if self.acceptance.threshold is None:
            found = score.select(query)
            return float(found["score"]), self.limit, bool(found["selected"])
        value = float(score.score(query))
        return value, self.limit, value <= self.limit

    def on(self, line: Line, windows: Intervals) -> Intervals:
        """Return the part of windows on which the input is accepted.

        Parameters
        ----------
        line
            The line.
        windows
            Sorted, disjoint and finite.
        """
        windows = windows[windows[:, 0] < windows[:, 1]]
        if not len(windows) or self.limit == -np.inf:
            return EMPTY
        if self.limit == np.inf:
            return windows
        pairs = [(float(low), float(high)) for low, high in windows]
        # A score that is on the threshold but for rounding is on it, and may be so over whole stretches.
        level = (
            self.limit + self.acceptance.score.rounding(self.limit) if np.isfinite(self.limit) else self.limit
        )
        found = [self._settle(trace, level) for trace in self.follower.follow(line, pairs)]
        return as_intervals(np.concatenate(found))

    def _settle(self, trace: Trace, level: float) -> Intervals:
        features = self._features(trace.values)
        if not bool(torch.isfinite(features).all()):
            raise InvalidInputError(
                "the embedding's values overflow along the line through this image; scale the input or the "
                "model"
            )
        pieces = trace.joined.nonzero(as_tuple=True)[0]
        start, stop = _array(features[pieces]), _array(features[pieces + 1])
        low, high = trace.z[pieces].cpu().numpy(), trace.z[pieces + 1].cpu().numpy()
        spans = self.set.below(start, stop, level)
        begin, width = low[spans.row], (high - low)[spans.row]
        ends = [
            np.where(part == 1.0, high[spans.row], begin + width * part) for part in (spans.low, spans.high)
        ]
        return as_intervals(np.column_stack(ends))

    def _features(self, values: Mapping[str, Tensor]) -> Tensor:
        """What the score is given, one row for each point; with what decides the class behind it."""
        names = self.program.outputs
        value = values[names[0]]
        score = self.acceptance.score
        if value.shape[1] != 1:
            raise InvalidInputError(
                f"the value {names[0]!r} has shape {tuple(value.shape[1:])}; the score needs one row for "
                "each image, a first axis of 1: choose another value in embedding="
            )
        features = value[:, 0]
        if score.feature == "embedding" and (features.ndim != 2 or self.acceptance.pool is not None):
            features = pooled(features, self._pool())
        if len(names) == 1:
            return features
        return torch.cat([features, values[names[1]].flatten(1)], 1)

    def _pool(self) -> Pool:
        """How a feature map becomes a vector, which must be linear."""
        own = self.acceptance.pool
        pool: Pool = self.acceptance.score._where["pool"] if own is None else own
        if callable(pool):
            raise NotAvailableError(
                "accepted_by is not available for a score whose pool is a function, because selkit cannot "
                "follow it along a line; make it part of the ONNX model, and name its result in embedding="
            )
        return pool

    @property
    def _width(self) -> int:
        width = self.acceptance.score.width
        return 0 if width is None else int(width)

    def _predicted(self, features: Tensor) -> Tensor:
        logits = features[:, self._width :]
        score = self.acceptance.score
        equal = tie(logits.cpu().numpy())
        if isinstance(score, ClassWiseScore) and score.multilabel is not None and bool(score.multilabel):
            return (logits > equal).long()
        if logits.shape[1] == 1:
            return (logits > equal).long()[:, 0]
        # The first of equal classes, as argmax says where rounding does not decide.
        return (logits >= logits.amax(1, keepdim=True) - equal).long().argmax(1)


def _array(values: Tensor) -> Floats:
    array: Floats = values.cpu().numpy()
    return array


def _stack(program: Program) -> int:
    """How many points of a program fit into one stack."""
    largest = max(int(np.prod(shape)) for shape in program.shapes.values())
    return int(np.clip(CACHE // (8 * largest), 64, 1024))
