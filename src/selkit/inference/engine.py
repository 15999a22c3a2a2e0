"""Find the truncation set: which windows to look at, how, and until when."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from selkit.graph.program import Program
from selkit.inference.events import SignEvent
from selkit.inference.intervals import around
from selkit.inference.line import Follower, Line
from selkit.inference.search import Search

PIECES = 192
"""Linear pieces that one stack should hold: enough to drown overhead, few enough for the cache."""


@dataclass
class Engine:
    """Follows one line until a search has reached its goal.

    Attributes
    ----------
    program
        Its output is what the event reads.
    event
        The selection event.
    line
        The line through the observation.
    windows
        How many windows have been looked at.
    """

    program: Program
    event: SignEvent
    line: Line
    windows: int = 0

    def run(self, search: Search) -> None:
        """Search until the goal is reached or the whole domain is known."""
        follower = Follower(self.program, limit=2 * PIECES)
        width = 0.02
        while not search.finished():
            proposed = search.propose(width, 1)
            if not proposed:
                break
            pieces = 0
            for window in proposed:
                self.windows += 1
                for trace in follower.follow(self.line, [window]):
                    pieces += int(trace.joined.sum())
                    search.record(self.event.settle(trace))
            width *= min(4.0, max(0.25, PIECES * len(proposed) / max(pieces, 1)))

    def piece(self, search: Search) -> None:
        """Look at the linear piece of the observation only."""
        follower = Follower(self.program, limit=2 * PIECES)
        stat, width = search.stat, 1e-3
        while True:
            z = torch.cat([trace.z for trace in follower.follow(self.line, [(stat - width, stat + width)])])
            below, above = z[z <= stat], z[z >= stat]
            if float(below.max()) > stat - width and float(above.min()) < stat + width or width > 1e3:
                break
            width *= 8
        self.windows += 1
        window = (float(below.max()), float(above.min()))
        if window[0] == window[1]:
            window = (stat - width, stat + width)
        for trace in follower.follow(self.line, [window]):
            search.record(self.event.settle(trace))
        home = around(search.included, stat)
        if home is not None:
            search.searched = search.included
