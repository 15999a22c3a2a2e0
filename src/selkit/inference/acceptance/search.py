"""A search whose truncation set is also limited by acceptance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from selkit.inference.events import Settled
from selkit.inference.intervals import Intervals, complement, union
from selkit.inference.line import Line
from selkit.inference.search import Goal, Search
from selkit.inference.truncated import Alternative, Distribution

if TYPE_CHECKING:
    from selkit.inference.acceptance.event import AcceptanceEvent


@dataclass(frozen=True, eq=False)
class AcceptedBy:
    """What conditioning on acceptance did to a test.

    Attributes
    ----------
    score
        Name of the score's class.
    value, threshold
        Score of the image, and what it was compared with (NaN where each class has its own threshold).
    p_value, inf_p, sup_p
        The p-value without conditioning on acceptance, and its bounds: for comparison, it is not valid.
    truncated_intervals
        The truncation set without conditioning on acceptance.
    """

    score: str
    value: float
    threshold: float
    p_value: float
    inf_p: float
    sup_p: float
    truncated_intervals: Intervals


class AcceptedSearch(Search):
    """Keeps, of what selects the observed region, only that on which the input is accepted.

    Parameters
    ----------
    distribution, stat, alternative, goal
        As for :class:`selkit.inference.search.Search`.
    event
        That the input is accepted.
    line
        The line.
    """

    def __init__(  # noqa: PLR0917 - the first four are those of the base class
        self,
        distribution: Distribution,
        stat: float,
        alternative: Alternative,
        goal: Goal,
        event: AcceptanceEvent,
        line: Line,
    ) -> None:
        super().__init__(distribution, stat, alternative, goal)
        self.region = Search(distribution, stat, alternative, goal)
        self.event, self.line = event, line

    def record(self, settled: Settled) -> None:
        """Add what has become known of the region; where it is selected, find out where that is accepted."""
        self.region.record(settled)
        accepted = self.event.on(self.line, settled.included)
        rejected = complement(accepted, settled.included)
        super().record(Settled(accepted, union(settled.excluded, rejected)))

    def outcome(self, value: float, scale: float) -> AcceptedBy:
        """What is reported.

        Parameters
        ----------
        value
            Score of the image.
        scale
            Of the contrast.
        """
        lower, upper = self.region.bounds()
        return AcceptedBy(
            score=type(self.event.acceptance.score).__name__,
            value=value,
            threshold=self.event.limit,
            p_value=self.region.p_value(),
            inf_p=lower,
            sup_p=upper,
            truncated_intervals=self.region.included * scale,
        )
