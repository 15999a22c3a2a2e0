"""What principal components leave of an embedding, along a line."""

from __future__ import annotations

import numpy as np

from selkit.errors import NotFittedError
from selkit.inference.acceptance.neighbors import Affine, Balls, Lengths, numbers
from selkit.inference.acceptance.sets import ScoreSet, register
from selkit.inference.acceptance.solve import difference_below
from selkit.inference.acceptance.spans import Floats, Index, Spans
from selkit.scores.pca import PCAScore
from selkit.scores.vim import ViMScore


@register(PCAScore)
class ResidualSet(ScoreSet):
    """The part outside the principal space is in a ball around the origin.

    Parameters
    ----------
    score
        Fitted, without random Fourier features.
    """

    def __init__(self, score: PCAScore) -> None:
        if score.projection is None:
            raise NotFittedError("the score of accepted_by is not fitted yet: call fit(...) first")
        inside = Affine.of_projection(score.projection)
        components = inside.matrix if inside.matrix is not None else np.zeros((0, 0))
        self.outside = Affine(inside.center, np.eye(len(components)) - components @ components.T)
        self.ball = Balls(np.zeros((1, len(components))))

    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold."""
        return self.ball.within(self.outside(start), self.outside(stop), threshold, 1)


@register(ViMScore)
class VirtualLogitSet(ScoreSet):
    """A length minus a logarithm of a sum of exponentials, both of which are convex.

    Parameters
    ----------
    score
        Fitted.
    """

    def __init__(self, score: ViMScore) -> None:
        self.outside = Affine(numbers(score.origin), numbers(score.outside))
        self.weight, self.bias = numbers(score.weight).T, numbers(score.bias)
        self.alpha = float(numbers(score.alpha))

    def below(self, start: Floats, stop: Floats, threshold: float) -> Spans:
        """Where the score is at most a threshold."""
        first = self.outside(start)
        lengths = Lengths(first, self.outside(stop) - first)
        logits, rise = start @ self.weight + self.bias, (stop - start) @ self.weight

        def parts(t: Floats, rows: Index) -> tuple[Floats, Floats, Floats, Floats]:
            length, slope = lengths.at(t, rows)
            z = logits[rows] + t[:, None] * rise[rows]
            top = z.max(1, keepdims=True)
            weight = np.exp(z - top)
            total = weight.sum(1)
            energy = top[:, 0] + np.log(total)
            steep = (weight * rise[rows]).sum(1) / total
            return self.alpha * length, self.alpha * slope, energy + threshold, steep

        return difference_below(parts, len(start))
