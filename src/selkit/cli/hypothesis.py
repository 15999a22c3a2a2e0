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
}


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
        help=f"from output to score map, in order: {', '.join(STEPS)}; average:SIZE, gaussian:SIZE:SIGMA",
    )
    group.add_argument(
        f"--{prefix}output-index",
        dest="output_index",
        type=int,
        default=0,
        metavar="I",
        help="which output is the map (default: 0)",
    )


def has_region(options: Namespace) -> bool:
    """Whether the options say what makes a region.

    Raises
    ------
    InvalidInputError
        If they say only half of it.
    """
    if any(getattr(options, name) is not None for name in ("threshold", "top", "argmax")):
        return True
    if options.use_norm or options.post or options.output_index:
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
    most = {"average": 1, "gaussian": 2}.get(name, 0)
    try:
        values = tuple(float(value) for value in given)
    except ValueError:
        values = (math.nan,)
    if name not in STEPS or len(values) > most or any(math.isnan(value) for value in values):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(STEPS)} (average:SIZE, gaussian:SIZE:SIGMA)"
        )
    return name, values


def make_hypothesis(options: Namespace) -> Hypothesis:
    """What is tested, from the options."""
    from selkit import inference

    steps = []
    for name, values in options.post:
        whole = [int(value) if place == 0 else value for place, value in enumerate(values)]
        steps.append(getattr(inference, STEPS[name])(*whole))
    region: Any = None
    if options.top is not None:
        region = inference.TopK(options.top)
    elif options.argmax is not None:
        region = inference.ArgMax(options.argmax)
    common: dict[str, Any] = {
        "threshold": options.threshold,
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
