"""Acceptance by a score as an event along a line, for p-values of inputs that were not abstained from."""

from __future__ import annotations

from selkit.inference.acceptance.event import AcceptanceEvent
from selkit.inference.acceptance.given import Acceptance
from selkit.inference.acceptance.search import AcceptedBy
from selkit.inference.acceptance.sets import ScoreSet, register

__all__ = ["Acceptance", "AcceptanceEvent", "AcceptedBy", "ScoreSet", "register"]
