"""What makes a region and what is compared: options that test and bundle share."""

from __future__ import annotations

import argparse
import math
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.inference.hypotheses import Hypothesis

STEPS = {
    "input-diff": "InputDiff",
    "abs": "Abs",
    "neg": "Neg",
    "average": "AverageFilter",
    "gaussian": "GaussianFilter",
    "l1-norm": "L1Norm",
    "channel": "SelectChannel",
    "crop": "Crop",
    "resize-linear": "Resize",
    "resize-nearest": "Resize",
}

MOST = {"average": 1, "gaussian": 2, "channel": 1, "crop": 2}
"""How many numbers a step takes."""

FORMS = "average:SIZE, gaussian:SIZE:SIGMA, channel:INDEX, crop:START:STOP"

CLEAN = {
    "largest": "largest_component",
    "remove-small": "remove_small",
    "fill-holes": "fill_holes",
    "open": "open",
    "close": "close",
    "dilate": "dilate",
    "erode": "erode",
}

RULES = ("threshold", "top", "argmax")
"""Options of a bundle that say what makes a region."""


def add_region(group: argparse._ArgumentGroup, *, prefix: str = "", required: bool = True) -> None:
    """What makes a region; with a prefix the options are called ``--roi-threshold`` and so on."""
    which = group.add_mutually_exclusive_group(required=required)
    which.add_argument(
        f"--{prefix}threshold",
        dest="threshold",
        type=float,
        metavar="T",
        help="where the score map is above this",
    )
    which.add_argument(
        f"--{prefix}top",
        dest="top",
        type=shared.count,
        metavar="K",
        help="the region is the K largest scores",
    )
    which.add_argument(
        f"--{prefix}argmax", dest="argmax", type=int, metavar="CLASS", help="where this class is largest"
    )
    if not prefix:  # such rules are Python code, which a bundle does not have
        add_masks(group, which)
    group.add_argument(
        f"--{prefix}use-norm",
        dest="use_norm",
        action="store_true",
        help=f"scale the map to [0, 1] before --{prefix}threshold",
    )
    group.add_argument(
        f"--{prefix}post",
        dest="post",
        type=step,
        action="append",
        default=[],
        metavar="STEP",
        help=f"from output to score map, in order: {', '.join(STEPS)}; {FORMS}",
    )
    group.add_argument(
        f"--{prefix}output-index",
        dest="output_index",
        type=int,
        default=0,
        metavar="I",
        help="which output is the map (default: 0)",
    )
    add_map(group, prefix)


def add_masks(group: argparse._ArgumentGroup, which: argparse._MutuallyExclusiveGroup) -> None:
    """Masks that are cleaned up."""
    which.add_argument("--otsu", action="store_true", help="where it is above Otsu's threshold")
    for name, text in (
        ("--hysteresis", "connected parts above LOW that hold a pixel above HIGH"),
        ("--two-thresholds", "above HIGH, compared with what is at most LOW"),
    ):
        which.add_argument(name, type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
    group.add_argument(
        "--clean",
        type=cleaning,
        action="append",
        default=[],
        metavar="STEP",
        help="what is done to the mask, in order; the test conditions on what comes out: largest, "
        "remove-small:PIXELS, fill-holes, open:RADIUS, close:RADIUS, dilate:RADIUS, erode:RADIUS",
    )


def add_map(group: argparse._ArgumentGroup, prefix: str) -> None:
    """Which value of the model is the map, and how it lies in the image."""
    group.add_argument(
        f"--{prefix}score-map", dest="score_map", metavar="NAME", help="name of the map, also an inner value"
    )
    group.add_argument(
        f"--{prefix}channel", dest="channel", type=int, metavar="I", help="which channel of the map"
    )
    group.add_argument(
        f"--{prefix}map-resize",
        dest="map_resize",
        choices=["linear", "nearest"],
        help="bring a smaller map to the image's size",
    )
    group.add_argument(
        f"--{prefix}axes",
        dest="axes",
        metavar="LAYOUT",
        help="order of the model's axes, such as NHWC, where neither the model nor the sizes tell",
    )


def has_region(options: Namespace) -> bool:
    """Whether the options say what makes a region.

    Raises
    ------
    InvalidInputError
        If they say only half of it.
    """
    if any(getattr(options, name) is not None for name in RULES):
        return True
    more = (options.use_norm, options.post, options.output_index, options.score_map, options.map_resize)
    if any(more) or options.channel is not None or options.axes is not None:
        raise InvalidInputError("options of a region need --roi-threshold, --roi-top or --roi-argmax")
    return False


def add_contrast(group: argparse._ArgumentGroup) -> None:
    """What a region is compared with."""
    group.add_argument(
        "--hypothesis",
        choices=["background", "neighborhood", "reference"],
        default="background",
        help="what the region is compared with (default: background)",
    )
    group.add_argument("--neighborhood", type=shared.count, default=1, metavar="PIXELS", help="its width")
    group.add_argument("--reference", metavar="FILE", help="one image for each, or one for all")


def step(text: str) -> tuple[str, tuple[float, ...]]:
    """Parse a step of post-processing.

    Examples
    --------
    >>> step("gaussian:5:1.5"), step("abs")
    (('gaussian', (5.0, 1.5)), ('abs', ()))
    """
    name, *given = text.split(":")
    most = MOST.get(name, 0)
    try:
        values = tuple(float(value) for value in given)
    except ValueError:
        values = (math.nan,)
    if name not in STEPS or len(values) > most or any(math.isnan(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(STEPS)} ({FORMS})")
    return name, values


def cleaning(text: str) -> tuple[str, tuple[float, ...]]:
    """Parse a step of clean-up.

    Examples
    --------
    >>> cleaning("remove-small:20"), cleaning("largest")
    (('remove-small', (20.0,)), ('largest', ()))
    """
    name, *given = text.split(":")
    try:
        values = tuple(float(value) for value in given)
    except ValueError:
        values = (math.nan,)
    needs = {"remove-small": (1, 1), "fill-holes": (0, 0)}.get(name, (0, 1))
    if name not in CLEAN or not needs[0] <= len(values) <= needs[1] or any(map(math.isnan, values)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(CLEAN)} (remove-small:PIXELS, open:RADIUS and so on)"
        )
    return name, values


def _region(options: Namespace) -> Any:
    """The rule for the region; None for a plain threshold."""
    from selkit import inference

    known: dict[str, Any] = vars(options)
    rule: Any = None
    steps = known.get("clean") or []
    if known.get("otsu"):
        rule = inference.Otsu()
    elif known.get("hysteresis") is not None:
        rule = inference.Hysteresis(*options.hysteresis)
    elif known.get("two_thresholds") is not None:
        rule = inference.TwoThresholds(*options.two_thresholds)
    elif options.threshold is not None and steps:
        rule = inference.Threshold(options.threshold)
    if steps and rule is None:
        raise InvalidInputError("--clean needs a threshold, --otsu, --hysteresis or --two-thresholds")
    for name, values in steps:
        whole = name in ("largest", "remove-small")
        rule = getattr(rule, CLEAN[name])(*(int(value) if whole else value for value in values))
    if options.top is not None:
        return inference.TopK(options.top)
    return inference.ArgMax(options.argmax) if options.argmax is not None else rule


def make_hypothesis(options: Namespace) -> Hypothesis:
    """What is tested, from the options."""
    from selkit import inference

    steps = []
    for name, values in options.post:
        whole: list[Any] = [int(v) if name == "crop" or not place else v for place, v in enumerate(values)]
        if name.startswith("resize-"):
            whole = [name.removeprefix("resize-")]
        steps.append(getattr(inference, STEPS[name])(*whole))
    region = _region(options)
    common: dict[str, Any] = {
        "threshold": options.threshold if region is None else None,
        "region": region,
        "post_process": steps,
        "use_norm": options.use_norm,
        "o_idx": options.output_index,
    }
    contrast = vars(options).get("hypothesis", "background")
    if contrast == "reference":
        return inference.ReferenceMeanDiff(**common)
    if contrast == "neighborhood":
        return inference.NeighborMeanDiff(**common, neighborhood_range=options.neighborhood)
    return inference.BackMeanDiff(**common)
