"""Rules other than a threshold by which a score map selects a region.

Your own rule is a subclass of :class:`Region`: it says which pixels it selects, and which values keep their
signs exactly where it selects the same pixels again.

Scores may be equal over whole stretches of the line (classes behind a Relu), so that rounding must not decide
whether they are: see :meth:`Region.ties`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.inference.levels import Level, tie, undo
from selkit.inference.postprocess import Builder
from selkit.utils.boundary import checked_fields

if TYPE_CHECKING:
    from selkit.inference.score_map import ScoreMap


class Region(ABC):
    """A rule that selects pixels of a score map.

    Attributes
    ----------
    by_channel
        Whether the rule needs the channels of the score map. Wherever these are known the map is given as
        ``(1, channels, *space)``, in whatever order the model has its axes.
    """

    by_channel: ClassVar[bool] = False

    advice = "the region's condition holds on this image by rounding only; leave the image out"
    """What to do about an image on which the region cannot be reproduced."""

    empty = "use a rule that selects more, or leave the image out"
    """What to do about an image on which no pixel is selected."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of other values of the model that the rule looks at."""
        return ()

    def given(self, values: Mapping[str, NDArray[Any]]) -> Region:
        """Return the rule for one image, on which these are the values that it needs."""
        return self

    def as_threshold(self) -> float | None:
        """The number, if the rule is nothing but a threshold."""
        return None

    def prepared(self, maps: ScoreMap, image: dict[str, Tensor]) -> Region:
        """Return the rule for a model.

        Parameters
        ----------
        maps
            The model with its score map.
        image
            The image, and others of the same size, stacked.
        """
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
        """Append values that keep their signs exactly where ``selected`` is selected.

        What is positive on the observed map stays positive, and what is not does not become so. Values up to
        those of :meth:`ties` are not positive.

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

    def ties(self, score: NDArray[Any], count: int) -> float | NDArray[np.float64]:
        """Up to which the values of :meth:`condition` are not positive.

        Parameters
        ----------
        score
            The observed map, and others of the same size, stacked on a leading axis.
        count
            How many values there are.

        Returns
        -------
        float or ndarray
            One number, or one for each value; by default a share of 1e-10 of the map's largest score.
        """
        return tie(score)


@checked_fields
@dataclass(frozen=True)
class ArgMax(Region):
    """The pixels at which one class has the largest score of all classes, and no other class has it too.

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

    by_channel: ClassVar[bool] = True
    index: int
    advice = "the class leads by rounding alone at some pixel; leave the image out, or test another class"
    empty = "the class has the largest score nowhere; test another class, or leave the image out"

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where the class wins."""
        if score.ndim < 3 or not 0 <= self.index < score.shape[1] or score.shape[1] < 2:
            raise InvalidInputError(
                f"region is {self}, but the score map has shape {score.shape}; it needs at least two classes "
                f"along its second axis, and more than {self.index}"
            )
        others = np.delete(score, self.index, axis=1)
        lead = score[:, self.index : self.index + 1] - others.max(1, keepdims=True)
        return np.asarray(lead > tie(score))

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """The lead of the class."""
        count = g.shape(score)[1]
        mine = g.add("Gather", score, torch.tensor([self.index]), axis=1)
        rest = g.add("Gather", score, torch.tensor([i for i in range(count) if i != self.index]), axis=1)
        return g.add("Sub", mine, g.add("ReduceMax", rest, torch.tensor([1]), keepdims=1))


@checked_fields
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
    advice = "the scores on both sides of k differ by rounding alone; choose another k"
    empty = "the mask covers all of the k best pixels; choose a larger k, or another mask"

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the pixels with the largest scores."""
        if not 0 < self.k < score.size:
            raise InvalidInputError(
                f"k is {self.k}; the score map of shape {score.shape} needs 0 < k < {score.size}"
            )
        order = np.argsort(-score.reshape(-1), kind="stable")
        chosen = np.zeros(score.size, dtype=bool)
        chosen[order[: self.k]] = True
        drops = -np.diff(score.reshape(-1)[order]) > tie(score)
        if not drops[self.k - 1]:
            raise InvalidInputError(
                f"k is {self.k}, but several scores are equal there; {_clear(drops, self.k)}"
            )
        return chosen.reshape(score.shape)

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """How far each selected score is above the largest of the others."""
        flat = g.add("Reshape", score, torch.tensor([-1]))
        inside, outside = (torch.as_tensor(np.flatnonzero(part)) for part in (selected, ~selected))
        best = g.add("ReduceMax", g.add("Gather", flat, outside, axis=0), keepdims=1)
        return g.add("Sub", g.add("Gather", flat, inside, axis=0), best)


def _clear(drops: NDArray[np.bool_], k: int) -> str:
    """Which numbers of pixels are told apart, next to ``k``."""
    possible = np.flatnonzero(drops) + 1
    if not len(possible):
        return "all scores are equal, so no k selects a region"
    near = [str(int(place)) for place in (*possible[possible < k][-1:], *possible[possible > k][:1])]
    return f"choose k={' or k='.join(near)}"


@checked_fields
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

    by_channel: ClassVar[bool] = True
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
        own = self.rule.as_threshold() if isinstance(self.rule, Region) else None
        rule = self.rule if own is None else own
        rule = rule.given(values) if isinstance(rule, Region) else float(rule)
        # The first of equal classes is predicted, as argmax says; rounding does not decide.
        first = int(np.flatnonzero(logits[0] >= logits.max() - tie(logits))[0])
        return _ClassMap(self.logits, rule, first, logits.shape[1], tie(logits))

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
    equal: float
    """The difference up to which logits are equal."""
    level: Level | None = field(default=None, compare=False)
    """Where the class's map is above a threshold, as a region of an earlier value."""
    chosen: NDArray[np.bool_] | None = field(default=None, compare=False)
    """The pixels that this selects on the image."""
    touching: float = 0.0
    """The difference up to which its values equal its level."""

    advice = (
        "a score lies on the threshold, or the predicted class leads, by rounding alone; move the threshold "
        "a little, or leave the image out"
    )
    empty = "the map of the predicted class has no such pixel; lower its threshold, or leave the image out"

    def shown(self, score: NDArray[Any]) -> NDArray[Any]:
        """The map of the class."""
        if score.ndim < 3 or score.shape[1] != self.classes:
            raise InvalidInputError(
                f"the score map has shape {score.shape}; PredictedClass needs one map for each of the "
                f"{self.classes} classes, along its second axis"
            )
        return score[:, self.index : self.index + 1]

    def prepared(self, maps: ScoreMap, image: dict[str, Tensor]) -> Region:
        """The threshold before flat and smooth functions at the end of the map."""
        shape = maps.margins.shapes[maps.margin]
        if isinstance(self.rule, Region) or len(shape) < 3 or shape[1] != self.classes:
            return self
        g = Builder(maps.margins)
        mine = g.add("Gather", maps.margin, torch.tensor([self.index]), axis=1)
        level = undo(g.program, mine, self.rule, maps.dtype, keep=self.needs)
        values = level.program.run(image)[level.value].nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
        touching = tie(np.append(values, level.level))
        lead = values[0] - level.level
        chosen = np.asarray((lead if level.above else -lead) > touching)
        return replace(self, level=level, chosen=chosen, touching=touching)

    @property
    def needs(self) -> tuple[str, ...]:
        """The logits."""
        return (self.logits,)

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """What the rule selects of the class's map."""
        mine = self.shown(score)
        if self.chosen is not None:
            return self.chosen
        if isinstance(self.rule, Region):
            return self.rule.select(mine)
        return np.asarray(mine - self.rule > tie(score))

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """The rule's condition on the class's map, and the class's lead over the others."""
        if self.level is not None:
            g.program = self.level.program
            pair = self.level.value, g.constant(self.level.level)
            pixels = g.add("Sub", *(pair if self.level.above else pair[::-1]))
        else:
            mine = g.add("Gather", score, torch.tensor([self.index]), axis=1)
            if isinstance(self.rule, Region):
                pixels = self.rule.condition(g, mine, selected)
            else:
                pixels = g.add("Sub", mine, g.constant(self.rule))
        parts = [pixels, *self._leads(g)]
        return g.add("Concat", *(g.add("Reshape", part, torch.tensor([-1])) for part in parts), axis=0)

    def _leads(self, g: Builder) -> list[str]:
        """The lead over the classes before it, positive, and that of those behind it, not positive."""
        mine = g.add("Gather", self.logits, torch.tensor([self.index]), axis=1)
        before, behind = range(self.index), range(self.index + 1, self.classes)
        leads = []
        for others in (before, behind):
            if others:
                rest = g.add("Gather", self.logits, torch.tensor(list(others)), axis=1)
                best = g.add("ReduceMax", rest, torch.tensor([1]), keepdims=1)
                leads.append(g.add("Sub", *((mine, best) if others is before else (best, mine))))
        return leads

    def ties(self, score: NDArray[Any], count: int) -> NDArray[np.float64]:
        """Those of the map, and those of the logits."""
        leads = int(self.index > 0) + int(self.index < self.classes - 1)
        ties = np.full(count, tie(score) if self.level is None else self.touching)
        if isinstance(self.rule, Region):
            ties[:-leads] = self.rule.ties(score, count - leads)
        ties[-leads:] = self.equal
        return ties
