"""What a user says about acceptance: the score, and where its features are in the model."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import onnx

from selkit.embeddings.sources import Pool
from selkit.errors import InvalidInputError, InvalidTypeError, NotFittedError
from selkit.graph import Graph
from selkit.scores import ClassWiseScore, UncertaintyScore
from selkit.utils.boundary import checked_fields


@checked_fields
@dataclass(frozen=True, eq=False)
class Acceptance:
    """Which score decided that an input is accepted, and where it read the input's features.

    Attributes
    ----------
    score
        Fitted, with a threshold.
    embedding
        Name of an output or of any inner value of the ONNX model: what the score is given, its embedding or
        logits. Without it the layer that the score was fitted with, or the only output of ``model``.
    model
        The ONNX model with the embedding, which takes the same image: a file, its bytes, a loaded model.
        Without it the model whose region is tested.
    pool
        "mean", "tokens" or "flatten", as in :meth:`selkit.scores.UncertaintyScore.fit`; without it that of
        the score, where the value is not a vector already.
    prediction
        For class-wise scores: name of the logits whose largest is the predicted class (whose positive ones
        are the predicted labels, where there are several).
    threshold
        Instead of the score's own: such as that of the input's group.

    Examples
    --------
    >>> import torch
    >>> from selkit.scores import EuclideanScore
    >>> score = EuclideanScore(k=1).fit(X=torch.zeros(1, 2), Y=torch.rand(9, 2)).set_threshold(q=0.9)
    >>> Acceptance(score, embedding="features").embedding
    'features'
    """

    score: UncertaintyScore
    embedding: str | None = None
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | Graph | None = None
    pool: Pool = None
    prediction: str | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.score, UncertaintyScore):
            raise InvalidTypeError(
                f"score is a {type(self.score).__name__}; give a fitted score of selkit.scores"
            )
        if self.threshold is not None and np.isnan(self.threshold):
            raise InvalidInputError("threshold is NaN; give a number")

    @property
    def layer(self) -> str | None:
        """The name to look for in the model."""
        remembered = self.score._where["layer"]
        return self.embedding if self.embedding is not None or remembered is None else str(remembered)

    def limit(self) -> float:
        """The threshold that the score is compared with; NaN where each class has its own.

        Raises
        ------
        NotFittedError
            If there is none yet.
        InvalidInputError
            If each group has its own.
        """
        if self.threshold is not None:
            return float(self.threshold)
        kind = type(self.score).__name__
        if self.score.threshold is None:
            raise NotFittedError(
                f"{kind} has no threshold yet: call set_threshold(q=...) or calibrate(...) before "
                "accepted_by is used"
            )
        if self.score.threshold_groups is not None:
            if isinstance(self.score, ClassWiseScore):
                return float("nan")
            raise InvalidInputError(
                f"{kind} has a threshold for each group; give that of this input's group, "
                "accepted_by=Acceptance(score, threshold=...)"
            )
        return float(self.score.threshold)


def as_acceptance(accepted_by: object, embedding: str | None) -> Acceptance | None:
    """Read the arguments ``accepted_by`` and ``embedding`` of a test.

    Raises
    ------
    InvalidTypeError
        If ``accepted_by`` is neither a score nor an acceptance.
    InvalidInputError
        If ``embedding`` has no score, or is given twice.
    """
    if accepted_by is None:
        if embedding is not None:
            raise InvalidInputError("embedding= belongs to accepted_by=, which is missing")
        return None
    if isinstance(accepted_by, Acceptance):
        if embedding is not None:
            raise InvalidInputError("give embedding= inside Acceptance(score, embedding=...), not twice")
        return accepted_by
    if not isinstance(accepted_by, UncertaintyScore):
        raise InvalidTypeError(
            f"accepted_by is a {type(accepted_by).__name__}; give a fitted score of selkit.scores, or "
            "selkit.inference.Acceptance(score, ...)"
        )
    return Acceptance(accepted_by, embedding)
