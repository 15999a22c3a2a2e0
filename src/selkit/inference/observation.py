"""What was selected on an image, what is tested about it, and the line along which that varies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.errors import InvalidInputError, NoHypothesisError
from selkit.graph import Program
from selkit.inference.covariance import Covariance
from selkit.inference.events import Event, SignEvent
from selkit.inference.hypotheses import Contrast, Hypothesis
from selkit.inference.inputs import Array, Inputs, read_mask
from selkit.inference.layout import Axes, fit_to_input
from selkit.inference.line import Line
from selkit.inference.postprocess import Builder
from selkit.inference.score_map import ScoreMap, require_bounded
from selkit.inference.shape_rules import MaskRule, Masks
from selkit.inference.truncated import Chi, Normal
from selkit.utils.checks import number

APART = 1e10
"""How many times larger or smaller than the image the noise may be."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What a model selects on one image.

    Attributes
    ----------
    inputs
        The image.
    margins, event
        A program, and the event on its output that this region is selected.
    output, score
        In ONNX shape.
    roi, usable
        The region and the pixels that the mask leaves, in a shape that broadcasts against the input.
    tested
        Axes of the tested input, where they are known.
    """

    inputs: Inputs
    margins: Program
    event: Event
    output: Tensor
    score: Tensor
    roi: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    tested: Axes | None = None


@dataclass(frozen=True, eq=False)
class Observation:
    """What is tested on a selection.

    Attributes
    ----------
    selection
        What was selected.
    roi, contrast
        The region that is tested (all that was selected, or a part of it), and its contrast.
    line
        The line along which the statistic varies and all that is independent of it is fixed.
    stat, scale
        The standardised statistic, and the standard deviation of the contrast.
    distribution
        Of the statistic under the null hypothesis, before selection.
    """

    selection: Selection
    roi: NDArray[np.bool_]
    contrast: Contrast
    line: Line
    stat: float
    scale: float
    distribution: Normal | Chi


def select(maps: ScoreMap, hypothesis: Hypothesis, inputs: Inputs, mask: Array | None) -> Selection:
    """Return the region that a model selects.

    Parameters
    ----------
    maps
        The model with its score map.
    hypothesis
        Says how a region comes out of it.
    inputs, mask
        What was given.
    """
    if not maps.margins.steps:
        raise InvalidInputError(
            "the score map does not depend on the tested input; choose another output with o_idx"
        )
    x, shape = inputs.tested, tuple(inputs.tested.shape)
    # The image turned round and doubled tells how large values are along the line.
    image = dict.fromkeys(maps.observed.inputs, torch.stack([x, -x, 2 * x]))
    values = maps.observed.run(image)
    output, score = values[maps.output][0], values[maps.score][0]
    if not bool(torch.isfinite(score).all()):
        why = "is constant, so use_norm=True cannot scale it" if hypothesis.use_norm else "overflows"
        raise InvalidInputError(f"the score map {why}: it has values that are not finite on this image")
    rule = hypothesis.region
    if rule is not None:
        rule = rule.given({name: values[name][0].cpu().numpy() for name in rule.needs}).prepared(maps, image)
    margin = maps.margins.run(image)[maps.margin] if rule is None else values[maps.raw]
    tie: float | NDArray[np.float64] = maps.tie(values[maps.raw], margin)
    masks = rule.observe(maps, image) if isinstance(rule, MaskRule) else None
    if masks is not None:
        chosen = torch.as_tensor(masks.region)
    else:
        chosen = torch.as_tensor(margin[0] > float(tie) if rule is None else rule.select(score.cpu().numpy()))
    roi = fit_to_input(chosen, shape, maps.axes_of(chosen), maps.tested).cpu().numpy()
    usable = read_mask(mask, roi.shape, shape, maps.tested)
    roi = roi & usable  # what is selected elsewhere stays in the condition
    if not roi.any():
        said = f"threshold={hypothesis.threshold}" if rule is None else f"region={hypothesis.region}"
        raise NoHypothesisError(
            "the region is empty: no score that the mask leaves is selected (the largest is "
            f"{float(score.max()):.4g}, {said}); {'lower the threshold' if rule is None else rule.empty}"
        )
    shown = score if rule is None else maps.as_made(torch.as_tensor(rule.shown(score.cpu().numpy())))
    if masks is not None:
        final, usable = _final(masks, chosen, roi, usable, maps)
        return Selection(inputs, masks.program, final, output, shown, roi, usable, maps.tested)
    if rule is None:
        margins, name = maps.margins, maps.margin
        places = torch.arange(chosen.numel()).reshape(chosen.shape)  # the map may have other axes first
        index = fit_to_input(places, shape, maps.axes_of(chosen), maps.tested).numpy()[usable]
        positive = roi[usable]
    else:
        builder = Builder(maps.margins)
        name = rule.condition(builder, maps.margin, chosen.cpu().numpy())
        margins = require_bounded(builder.program.prune([name]))
        index = np.arange(int(np.prod(margins.shapes[name])))
        tie = rule.ties(values[maps.score].nan_to_num(0.0, 0.0, 0.0).cpu().numpy(), len(index))
        positive = margins.run(image)[name][0].cpu().numpy().reshape(-1) > tie
    event = SignEvent(
        name,
        torch.as_tensor(index, device=inputs.tested.device),
        torch.as_tensor(positive, device=inputs.tested.device),
        tie if isinstance(tie, float) else torch.as_tensor(tie, device=inputs.tested.device),
        "move the threshold a little" if rule is None else rule.advice,
    )
    return Selection(inputs, margins, event, output, shown, roi, usable, maps.tested)


def _final(
    masks: Masks, chosen: Tensor, roi: NDArray[np.bool_], usable: NDArray[np.bool_], maps: ScoreMap
) -> tuple[Event, NDArray[np.bool_]]:
    """The event that a mask ends in what was observed, and the pixels that may be compared."""
    (shape,) = maps.margins.inputs.values()
    numbers = torch.arange(chosen.numel()).reshape(chosen.shape)
    places = fit_to_input(numbers, shape, maps.axes_of(chosen), maps.tested).numpy()
    within = np.zeros(chosen.numel(), dtype=bool)
    within[places[usable]] = True
    if masks.comparable is not None:
        usable = usable & (roi | masks.comparable.reshape(-1)[places])
    return masks.event(within.reshape(chosen.shape)), usable


def check_units(image: torch.Tensor, noise: float) -> None:
    """Refuse noise so far from the image in size that double precision cannot hold both.

    Raises
    ------
    InvalidInputError
        If ``var`` is not in the square of the image's units.
    """
    size = float(image.abs().max())
    if not noise > 0 or not np.isfinite(noise) or (size > 0 and not 1 / APART <= size / noise <= APART):
        raise InvalidInputError(
            f"var makes the contrast's standard deviation {noise:.3g}, but the image's largest value is "
            f"{size:.3g}: they are too far apart to compute with; give var in the square of the image's units"
        )


def observe(
    selection: Selection,
    hypothesis: Hypothesis,
    roi: NDArray[np.bool_],
    var: Any,
    *,
    null_value: float = 0.0,
) -> Observation:
    """Return the contrast of a selected region, and the line along which it varies.

    Parameters
    ----------
    selection
        What was selected.
    hypothesis
        What is tested about it.
    roi
        The region to test: ``selection.roi`` or a part of it.
    var, null_value
        As for :meth:`selkit.inference.RoiTest.inference`.
    """
    inputs = selection.inputs
    shape = tuple(inputs.tested.shape)
    contrast = hypothesis.placed(selection.tested).contrast(
        roi, selection.usable & ~(selection.roi & ~roi), shape
    )
    covariance = Covariance(var, shape)
    data = inputs.tested.cpu().numpy() - (0.0 if inputs.reference is None else inputs.reference.cpu().numpy())
    etas = contrast.eta if contrast.eta.ndim > len(shape) else contrast.eta[None]
    # The noise of a reference counts as well, but only the input moves along the line.
    noise = 2.0 if inputs.reference is not None else 1.0
    directions = np.stack([covariance.times(eta) for eta in etas])
    flat = etas.reshape(len(etas), -1)
    spread = noise * flat @ directions.reshape(len(etas), -1).T
    values = flat @ data.reshape(-1)
    noise_size = float(np.sqrt(spread.diagonal().max()))
    check_units(inputs.tested, noise_size)
    number(null_value, "null_value", -APART * noise_size, APART * noise_size)
    if not np.all(np.linalg.eigvalsh(spread) > 0):
        raise InvalidInputError(
            "the contrast has no positive variance under var, or several contrasts depend on each other"
        )
    distribution: Normal | Chi
    if len(etas) == 1:
        scale = float(np.sqrt(spread[0, 0]))
        stat, b = float(values[0]) / scale, directions[0] / scale
        distribution = Normal(float(null_value) / scale)
    else:
        weights = np.linalg.solve(spread, values)
        scale, stat = 1.0, float(np.sqrt(values @ weights))
        b = np.tensordot(weights, directions, 1) / stat
        distribution = Chi(len(etas))
    direction = torch.as_tensor(b, device=inputs.tested.device)
    line = Line(inputs.tested - stat * direction, direction)
    return Observation(selection, roi, contrast, line, stat, scale, distribution)
