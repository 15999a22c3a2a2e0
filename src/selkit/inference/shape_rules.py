"""Regions that are a mask after clean-up: its largest part, its holes filled, and so on.

The test conditions on the region that comes out, not on the mask that goes in: each mask that ends in the
same region belongs to the truncation set.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError
from selkit.graph.program import Program
from selkit.inference.layout import unknown
from selkit.inference.levels import TIE, Level, representable, tie, undo
from selkit.inference.mask_event import MaskEvent, Outcome
from selkit.inference.masks import (
    FillHoles,
    Grid,
    LargestComponent,
    Mask,
    MaskStep,
    Morphology,
    Pair,
    RemoveSmall,
    clean,
    hysteresis,
)
from selkit.inference.otsu import OtsuEvent, otsu_mask
from selkit.inference.postprocess import Builder
from selkit.inference.regions import Region
from selkit.utils.checks import given, number

if TYPE_CHECKING:
    from selkit.inference.score_map import ScoreMap


@dataclass(frozen=True, eq=False)
class Masks:
    """What a rule made of the observed score map.

    Attributes
    ----------
    program
        Outputs the scores, in a form that can be followed.
    region, comparable
        The region, and the pixels that it may be compared with, in the map's shape; ``None`` for all others.
    template
        The event, for all pixels.
    """

    program: Program
    region: Mask
    comparable: Mask | None
    template: MaskEvent

    def event(self, usable: Mask) -> MaskEvent:
        """The event that region and comparable pixels are what they are, where pixels are usable."""
        return replace(self.template, outcome=replace(self.template.outcome, usable=usable))


@dataclass(frozen=True, kw_only=True)
class MaskRule(Region):
    """A rule that makes a mask and cleans it up, in the order in which the methods are called.

    Every channel of a score map is cleaned up on its own. The test conditions on what comes out, not on the
    mask before it.

    Attributes
    ----------
    steps
        What is done to the mask, in order.
    """

    steps: tuple[MaskStep, ...] = ()
    empty = "lower the threshold, or let the clean-up take less away"

    def __post_init__(self) -> None:
        steps: Any = self.steps
        if not isinstance(steps, tuple) or not all(isinstance(step, MaskStep) for step in steps):
            raise InvalidTypeError(
                f"steps must be a tuple of steps; got {given(self.steps)}: use largest_component, fill_holes "
                "and the other methods, which add them"
            )

    def largest_component(self, connectivity: int = 1) -> Self:
        """Keep the connected part with the most pixels; of several, the first that a scan meets.

        Parameters
        ----------
        connectivity
            1: neighbours along the axes, as in :func:`scipy.ndimage.label`; 2 and more: also across edges and
            corners.

        Examples
        --------
        >>> import numpy as np
        >>> Threshold(0.5).largest_component().select(np.array([[[1.0, 0.2, 1.0, 1.0]]])).astype(int)
        array([[[0, 0, 1, 1]]])
        """
        return self._and(LargestComponent(connectivity))

    def remove_small(self, min_size: int, connectivity: int = 1) -> Self:
        """Drop connected parts of fewer than ``min_size`` pixels."""
        return self._and(RemoveSmall(min_size, connectivity))

    def fill_holes(self) -> Self:
        """Add what the mask encloses, as :func:`scipy.ndimage.binary_fill_holes`."""
        return self._and(FillHoles())

    def open(self, radius: float = 1) -> Self:
        """Drop what no ball of this radius covers, as :func:`scipy.ndimage.binary_opening`.

        A ball is all pixels whose centers are within ``radius``: with 1 a pixel and its neighbours along the
        axes.
        """
        return self._and(Morphology("opening", radius))

    def close(self, radius: float = 1) -> Self:
        """Fill what no ball of this radius fits into, as :func:`scipy.ndimage.binary_closing`.

        As there, what lies beyond the border of the map counts as outside.
        """
        return self._and(Morphology("closing", radius))

    def dilate(self, radius: float = 1) -> Self:
        """Add what is within ``radius``, as :func:`scipy.ndimage.binary_dilation`."""
        return self._and(Morphology("dilation", radius))

    def erode(self, radius: float = 1) -> Self:
        """Keep what is farther than ``radius`` from the outside, as :func:`scipy.ndimage.binary_erosion`."""
        return self._and(Morphology("erosion", radius))

    def _and(self, step: MaskStep) -> Self:
        return replace(self, steps=(*self.steps, step))

    @property
    @abstractmethod
    def levels(self) -> tuple[float, ...]:
        """Levels that scores are compared with, each of which makes a mask."""

    def finish(self, lower: Sequence[Mask], upper: Sequence[Mask], grid: Grid) -> list[Pair]:
        """Carry bounds of the masks to bounds of the region, and of what may be compared with it."""
        return [clean(self.steps, lower[0], upper[0], grid)]

    def masks_of(self, score: NDArray[Any]) -> list[Mask]:
        """The masks of all levels."""
        equal = tie(score)
        return [np.asarray(score - level > equal) for level in self.levels]

    def select(self, score: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the region of a map of shape ``(1, channels, *space)``."""
        masks = self.masks_of(score)
        rank = score.ndim
        return self.finish(masks, masks, Grid(rank, tuple(range(min(2, rank - 1), rank))))[0][0]

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """Not in this form: several masks may end in the same region."""
        raise NotAvailableError(
            f"{type(self).__name__} with clean-up cannot be a rule inside another one; give it as region="
        )

    def observe(self, maps: ScoreMap, image: dict[str, Tensor]) -> Masks:
        """Return what the rule makes of the observed map.

        Parameters
        ----------
        maps
            The model with its score map.
        image
            The image, and others of the same size, stacked.
        """
        grid = self._grid(maps)
        found, levels = self._undone(maps)
        program = found.program.prune([found.value])
        values = program.run(image)[found.value]
        largest = float(values.nan_to_num(0.0, 0.0, 0.0).abs().max())
        equal = TIE * max(largest, *(abs(level) for level in levels), 0.0)
        shape = program.shapes[found.value]
        outcome = Outcome(partial(self.finish, grid=grid), (), np.ones(shape, dtype=bool), shape)
        event = self._event(program, found, levels, equal, outcome)
        masks = event.masks(values[:1])
        seen = [np.ascontiguousarray(pair[0]) for pair in outcome.finish(masks, masks)]
        event = replace(event, outcome=replace(outcome, observed=tuple(seen)))
        return Masks(program, seen[0], seen[1] if len(seen) > 1 else None, event)

    def _event(
        self, program: Program, found: Level, levels: tuple[float, ...], tie: float, outcome: Outcome
    ) -> MaskEvent:
        return MaskEvent(found.value, levels, found.above, tie, outcome)

    def _grid(self, maps: ScoreMap) -> Grid:
        rank, own = len(maps.margins.shapes[maps.margin]), maps.mapped
        if own is None:
            if self._needs_space():
                raise unknown(
                    f"region is {type(self).__name__} with clean-up, which",
                    "the score map",
                    maps.margins.shapes[maps.margin],
                )
            return Grid(rank, ())
        space = own.space if own.channel is None else tuple(range(rank - len(own.space), rank))
        return Grid(rank, space)

    def _needs_space(self) -> bool:
        return bool(self.steps)

    def _undone(self, maps: ScoreMap) -> tuple[Level, tuple[float, ...]]:
        """The scores, before flat and smooth functions at the end of the map where all levels allow that."""
        program = maps.margins.prune([maps.margin])
        founds = [undo(program, maps.margin, level, maps.dtype) for level in self.levels]
        alike = len({(found.value, found.above, len(found.program.steps)) for found in founds}) == 1
        if alike and all(np.isfinite(found.level) for found in founds):
            return founds[0], tuple(found.level for found in founds)
        return Level(program, maps.margin, 0.0), tuple(representable(t, maps.dtype) for t in self.levels)


@dataclass(frozen=True)
class Threshold(MaskRule):
    """Where the score map is above a value, to be cleaned up.

    Attributes
    ----------
    value
        The threshold.

    Examples
    --------
    >>> rule = Threshold(0.5).remove_small(20).fill_holes()
    >>> [type(step).__name__ for step in rule.steps]
    ['RemoveSmall', 'FillHoles']
    """

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "value", number(self.value, "threshold"))

    @property
    def levels(self) -> tuple[float, ...]:
        """The threshold."""
        return (self.value,)

    def condition(self, g: Builder, score: str, selected: NDArray[np.bool_]) -> str:
        """How far scores are above the threshold."""
        if self.steps:
            return super().condition(g, score, selected)
        return g.add("Sub", score, g.constant(self.value))

    def as_threshold(self) -> float | None:
        """The threshold, without clean-up."""
        return None if self.steps else self.value


@dataclass(frozen=True)
class _Two(MaskRule):
    """A rule with two thresholds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            object.__setattr__(self, name, number(getattr(self, name), name))
        if not self.low < self.high:
            raise InvalidInputError(f"low is {self.low} and high is {self.high}; low must be below high")

    @property
    def levels(self) -> tuple[float, ...]:
        """The upper threshold, then the lower one."""
        return self.high, self.low


@dataclass(frozen=True)
class Hysteresis(_Two):
    """Connected parts of what is above ``low`` that hold a pixel above ``high``.

    Attributes
    ----------
    low, high
        The thresholds.
    connectivity
        As for :meth:`MaskRule.largest_component`.

    Examples
    --------
    >>> import numpy as np
    >>> Hysteresis(0.3, 0.8).select(np.array([[[0.5, 0.9, 0.1, 0.5]]])).astype(int)
    array([[[1, 1, 0, 0]]])
    """

    connectivity: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        LargestComponent(self.connectivity)

    def _needs_space(self) -> bool:
        return True

    def finish(self, lower: Sequence[Mask], upper: Sequence[Mask], grid: Grid) -> list[Pair]:
        """Keep the parts with a strong pixel, then clean up."""
        first = hysteresis(lower[0], lower[1], grid, self.connectivity)
        last = first if lower is upper else hysteresis(upper[0], upper[1], grid, self.connectivity)
        return [clean(self.steps, first, last, grid)]


@dataclass(frozen=True)
class TwoThresholds(_Two):
    """Where the map is above ``high``, compared with where it is at most ``low``; between lies neither.

    Clean-up is that of the region above ``high``; what it takes away is not compared with either.

    Attributes
    ----------
    low, high
        The thresholds.

    Examples
    --------
    >>> import numpy as np
    >>> TwoThresholds(0.3, 0.8).select(np.array([[[0.5, 0.9, 0.1, 0.5]]])).astype(int)
    array([[[0, 1, 0, 0]]])
    """

    def finish(self, lower: Sequence[Mask], upper: Sequence[Mask], grid: Grid) -> list[Pair]:
        """Clean up the region; what it may be compared with shrinks as the scores grow."""
        least, most = clean(self.steps, lower[0], upper[0], grid)
        below = np.asarray(~lower[1] & ~least)
        same = lower is upper and least is most
        return [(least, most), (below, below) if same else (np.asarray(~upper[1] & ~most), below)]


@dataclass(frozen=True)
class Otsu(MaskRule):
    """Where the score map is above the threshold that separates it best (Otsu 1979).

    The threshold is exact, not that of a histogram: of all cuts of the sorted scores it has the largest
    variance between the two classes. It depends on the image, and the test takes that into account: the
    square root of that variance is linear in the scores as long as the classes stay what they are, so that
    the best cut is a maximum of lines along each piece.

    Examples
    --------
    >>> import numpy as np
    >>> Otsu().select(np.array([[[0.1, 0.2, 0.9, 0.8]]])).astype(int)
    array([[[0, 0, 1, 1]]])
    """

    empty = "let the clean-up take less away, or leave the image out"

    @property
    def levels(self) -> tuple[float, ...]:
        """None: the threshold is found in the scores."""
        return ()

    def masks_of(self, score: NDArray[Any]) -> list[Mask]:
        """The mask of the best cut."""
        return [otsu_mask(np.asarray(score, dtype=np.float64).reshape(-1), 0.0).reshape(score.shape)]

    def _undone(self, maps: ScoreMap) -> tuple[Level, tuple[float, ...]]:
        return Level(maps.margins.prune([maps.margin]), maps.margin, 0.0), ()

    def _event(
        self, program: Program, found: Level, levels: tuple[float, ...], tie: float, outcome: Outcome
    ) -> MaskEvent:
        from selkit.inference.score_map import is_piecewise_linear

        if not is_piecewise_linear(program):
            raise NotAvailableError(
                "Otsu's threshold needs a score map that is piecewise linear in the input, but this model "
                "has smooth operators before it; use the logits as score map, with score_map= or o_idx"
            )
        return OtsuEvent(found.value, (), True, tie, outcome, "use another rule than Otsu for this image")
