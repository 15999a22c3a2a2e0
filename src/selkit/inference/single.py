"""Test one region of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selkit.errors import InvalidInputError, NotAcceptedError, NotAvailableError
from selkit.inference.acceptance.event import AcceptanceEvent
from selkit.inference.acceptance.search import AcceptedSearch
from selkit.inference.engine import CACHE, Engine
from selkit.inference.hypotheses import Hypothesis
from selkit.inference.intervals import around
from selkit.inference.observation import Observation, Selection, observe
from selkit.inference.result import RoiResult
from selkit.inference.score_map import is_piecewise_linear
from selkit.inference.search import Goal, Search
from selkit.inference.tail import cut
from selkit.inference.threads import threads, useful
from selkit.inference.truncated import Alternative, Chi
from selkit.inference.witness import stack


@dataclass(frozen=True)
class Options:
    """What a test is asked for.

    Attributes
    ----------
    goal, alternative, null_value
        See :meth:`selkit.inference.RoiTest.inference`.
    accepted
        That the input is accepted, where the p-value is conditioned on it.
    notes
        For the result.
    """

    goal: Goal
    alternative: Alternative
    null_value: float
    accepted: AcceptanceEvent | None = None
    notes: tuple[str, ...] = ()


def check_region(
    selection: Selection, hypothesis: Hypothesis, roi: NDArray[np.bool_], var: Any, options: Options
) -> RoiResult:
    """Test one region of a selection.

    Parameters
    ----------
    selection
        What was selected.
    hypothesis
        What is tested about it.
    roi
        The region to test: ``selection.roi`` or a part of it.
    var
        Covariance of the noise.
    options
        What is asked for.

    Raises
    ------
    NotAcceptedError
        If the p-value shall be conditioned on acceptance, and the image is rejected.
    """
    score = None if options.accepted is None else _accepted_score(options.accepted, selection)
    seen = observe(selection, hypothesis, roi, var, null_value=options.null_value)
    alternative = options.alternative
    if isinstance(seen.distribution, Chi):
        if alternative != "two-sided" or options.null_value:
            raise InvalidInputError(
                "several contrasts are tested together by their length, which has no direction: use "
                "alternative='two-sided' and null_value=0"
            )
        alternative = "greater"
    search = Search(seen.distribution, seen.stat, alternative, options.goal)
    if options.accepted is not None:
        search = AcceptedSearch(
            seen.distribution, seen.stat, alternative, options.goal, options.accepted, seen.line
        )
    exact, windows = _search(selection, seen, search, options.goal)
    if around(search.included, seen.stat) is None:
        _explain(search, seen.stat, selection.event.advice)
    lower, upper = search.bounds()
    compared = seen.contrast.compared
    return RoiResult(
        stat=seen.stat * seen.scale,
        p_value=search.p_value(),
        inf_p=lower,
        sup_p=upper,
        truncated_intervals=search.included * seen.scale,
        searched_intervals=search.searched * seen.scale,
        output=selection.output.cpu().numpy(),
        score_map=np.squeeze(selection.score.cpu().numpy()),
        roi=np.squeeze(roi),
        non_roi=None if compared is None else np.squeeze(compared),
        alternative=alternative,
        scale=seen.scale,
        exact=exact,
        windows=windows,
        distribution=seen.distribution,
        line=seen.line,
        notes=options.notes,
        accepted_by=None
        if score is None or not isinstance(search, AcceptedSearch)
        else search.outcome(score, seen.scale),
        axes=selection.tested,
    )


def _search(selection: Selection, seen: Observation, search: Search, goal: Goal) -> tuple[bool, int]:
    """Find the truncation set; return whether it is exact, and how many windows were looked at."""
    program, event = cut(selection.margins, selection.event)
    exact = is_piecewise_linear(program)
    if not exact and goal.mode in ("over_conditioning", "exhaustive"):
        raise NotAvailableError(
            f"inference_mode={goal.mode!r} needs a score map that is piecewise linear in the "
            "input, but this model has smooth operators before it; use 'parametric' or 'decision'"
        )
    with threads(useful(program, stack(program, CACHE))):
        engine = Engine(program, event, seen.line)
        if not exact:
            engine.refine(search)
        elif goal.mode == "over_conditioning":
            engine.piece(search)
        else:
            engine.run(search)
    return exact, engine.windows


def _accepted_score(event: AcceptanceEvent, selection: Selection) -> float:
    """The score of an image that is accepted."""
    value, limit, accepted = event.observe(selection.inputs.tested)
    if not accepted:
        kind = type(event.acceptance.score).__name__
        above = "the threshold of its class" if np.isnan(limit) else f"the threshold {limit:.6g}"
        raise NotAcceptedError(
            f"the image is not accepted: its {kind} is {value:.6g}, above {above}. A p-value given "
            "acceptance exists for accepted images only; leave accepted_by out to test this one regardless"
        )
    return value


def _explain(search: Search, stat: float, advice: str) -> None:
    """Say which event the observation itself does not reproduce."""
    if isinstance(search, AcceptedSearch) and around(search.region.included, stat) is not None:
        raise InvalidInputError(
            "the image's score lies on the threshold of accepted_by to within rounding, so that its "
            "acceptance cannot be reproduced; move the threshold a little"
        )
    raise InvalidInputError(
        f"the observed region is selected by rounding alone, so it cannot be reproduced: {advice}"
    )
