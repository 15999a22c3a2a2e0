"""Rules other than a threshold by which a score map selects a region.

Your own rule is a subclass of :class:`Region`: it says which pixels it selects, and which values are all
positive exactly where it selects the same pixels again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selkit.errors import InvalidInputError
from selkit.inference.postprocess import Builder


class Region(ABC):
    """A rule that selects pixels of a score map."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of other values of the model that the rule looks at."""
        return ()

    def given(self, values: Mapping[str, NDArray[Any]]) -> Region:
        """Return the rule for one image, on which these are the values that it needs."""
        return self

    def shown(self, score: NDArray[Any]) -> NDArray[Any]:
        """Return the part of the score map that is reported."""
        return score

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


@dataclass(frozen=True)
class PredictedClass(Region):
    """A region of the predicted class's map, such as a class-activation map (Zhou et al. 2016, "Learning deep
    features for discriminative localization").

    The test conditions on the predicted class as well: the region is chosen by looking at it.

    Attributes
    ----------
    logits
        Name of the model's value whose largest is the predicted class, of shape ``(1, classes)``. The score
        map has shape ``(1, classes, *spatial)``.
    rule
        A threshold, or the rule that selects pixels of that class's map, such as :class:`TopK`.

    Examples
    --------
    >>> import numpy as np
    >>> rule = PredictedClass("logits", 0.5).given({"logits": np.array([[0.1, 2.0]])})
    >>> rule.select(np.array([[[0.9, 0.1], [0.7, 0.3]]])).astype(int)
    array([[[1, 0]]])
    """

    logits: str
    rule: float | Region

    @property
    def needs(self) -> tuple[str, ...]:
        """The logits, and what the rule needs."""
        return (self.logits, *(self.rule.needs if isinstance(self.rule, Region) else ()))

    def given(self, values: Mapping[str, NDArray[Any]]) -> Region:
        """The rule for the class that is predicted on this image."""
        logits = values[self.logits]
        if logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
            raise InvalidInputError(
                f"the logits {self.logits!r} have shape {logits.shape}; PredictedClass needs one row with at "
                "least two classes"
            )
        rule = self.rule.given(values) if isinstance(self.rule, Region) else float(self.rule)
        return _ClassMap(self.logits, rule, int(logits.argmax()), logits.shape[1])

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """Not known before the class is: see :meth:`given`."""
        raise InvalidInputError("PredictedClass needs the logits of the image first: call given(values)")

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """Not known before the class is: see :meth:`given`."""
        raise InvalidInputError("PredictedClass needs the logits of the image first: call given(values)")


@dataclass(frozen=True)
class _ClassMap(Region):
    """A region of one class's map, where this class is predicted."""

    logits: str
    rule: float | Region
    index: int
    classes: int

    def shown(self, score: NDArray[Any]) -> NDArray[Any]:
        """The map of the class."""
        if score.ndim < 3 or score.shape[1] != self.classes:
            raise InvalidInputError(
                f"the score map has shape {score.shape}; PredictedClass needs one map for each of the "
                f"{self.classes} classes, along its second axis"
            )
        return score[:, self.index : self.index + 1]

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """What the rule selects of the class's map."""
        mine = self.shown(score)
        return self.rule.select(mine) if isinstance(self.rule, Region) else np.asarray(mine > self.rule)

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """The rule's condition on the class's map, and the class's lead over the others."""
        mine = g.add("Gather", score, torch.tensor([self.index]), axis=1)
        if isinstance(self.rule, Region):
            pixels = self.rule.condition(g, mine, selected)
        else:
            sign = np.where(selected, 1.0, -1.0).reshape(g.shape(mine))
            pixels = g.add("Mul", g.add("Sub", mine, g.constant(self.rule)), g.constant(sign))
        others = torch.tensor([place for place in range(self.classes) if place != self.index])
        rest = g.add("ReduceMax", g.add("Gather", self.logits, others, axis=1), torch.tensor([1]), keepdims=1)
        lead = g.add("Sub", g.add("Gather", self.logits, torch.tensor([self.index]), axis=1), rest)
        flat = [g.add("Reshape", value, torch.tensor([-1])) for value in (pixels, lead)]
        return g.add("Concat", *flat, axis=0)
