"""Rules other than a threshold by which a score map selects a region.

Your own rule is a subclass of :class:`Region`: it says which pixels it selects, and which values are all
positive exactly where it selects the same pixels again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selkit.errors import InvalidInputError
from selkit.inference.postprocess import Builder


class Region(ABC):
    """A rule that selects pixels of a score map."""

    @abstractmethod
    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the selected pixels.

        Parameters
        ----------
        score
            The score map in ONNX shape, float64.

        Returns
        -------
        ndarray of bool
            In a shape that matches the input's or its spatial part.
        """

    @abstractmethod
    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """Append values that are all positive exactly where ``selected`` is selected.

        Parameters
        ----------
        g
            Appends operators to the program.
        score
            Name of the score map.
        selected
            What :meth:`select` returned for the observed map.

        Returns
        -------
        str
            Name of the values, of any shape.
        """


@dataclass(frozen=True)
class ArgMax(Region):
    """The pixels at which one class has the largest score of all classes.

    Attributes
    ----------
    index
        Of the class, along the channel axis of a score map of shape ``(1, classes, *spatial)``.

    Examples
    --------
    >>> import numpy as np
    >>> ArgMax(1).select(np.array([[[0.1, 0.9], [0.7, 0.3]]])).astype(int)
    array([[[1, 0]]])
    """

    index: int

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where the class wins."""
        if score.ndim < 3 or not 0 <= self.index < score.shape[1] or score.shape[1] < 2:
            raise InvalidInputError(
                f"region is {self}, but the score map has shape {score.shape}; it needs at least two classes "
                f"along its second axis, and more than {self.index}"
            )
        others = np.delete(score, self.index, axis=1)
        return np.asarray(score[:, self.index : self.index + 1] > others.max(1, keepdims=True))

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """The lead of the class where it wins, and its lag elsewhere."""
        count = g.shape(score)[1]
        mine = g.add("Gather", score, torch.tensor([self.index]), axis=1)
        rest = g.add("Gather", score, torch.tensor([i for i in range(count) if i != self.index]), axis=1)
        lead = g.add("Sub", mine, g.add("ReduceMax", rest, torch.tensor([1]), keepdims=1))
        return g.add("Mul", lead, g.constant(np.where(selected, 1.0, -1.0)))


@dataclass(frozen=True)
class TopK(Region):
    """The ``k`` pixels with the largest scores.

    Attributes
    ----------
    k
        How many.

    Examples
    --------
    >>> import numpy as np
    >>> TopK(2).select(np.array([[[3.0, 1.0, 2.0]]])).astype(int)
    array([[[1, 0, 1]]])
    """

    k: int

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the pixels with the largest scores."""
        if not 0 < self.k < score.size:
            raise InvalidInputError(
                f"k is {self.k}; the score map of shape {score.shape} needs 0 < k < {score.size}"
            )
        flat = score.reshape(-1)
        chosen = np.zeros(flat.size, dtype=bool)
        chosen[np.argsort(-flat, kind="stable")[: self.k]] = True
        if flat[chosen].min() == flat[~chosen].max():
            raise InvalidInputError(f"k is {self.k}, but several scores are equal there; choose another k")
        return chosen.reshape(score.shape)

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """How far each selected score is above the largest of the others."""
        flat = g.add("Reshape", score, torch.tensor([-1]))
        inside, outside = (torch.as_tensor(np.flatnonzero(part)) for part in (selected, ~selected))
        best = g.add("ReduceMax", g.add("Gather", flat, outside, axis=0), keepdims=1)
        return g.add("Sub", g.add("Gather", flat, inside, axis=0), best)
