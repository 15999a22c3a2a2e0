"""``selkit test``: p-values of the regions that a model points at."""

from __future__ import annotations

import argparse
import math
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.cli.inputs import Samples
    from selkit.inference import RoiTest
    from selkit.inference.hypotheses import Hypothesis
    from selkit.inference.table import RoiTable

EXAMPLES = """\
  selkit test model.onnx images.npy --threshold 0.5 --var 0.04 -o tests.csv
  selkit test model.onnx images/ --color gray --top 20 --hypothesis neighborhood --neighborhood 3 \\
      --var-from dark-frames.npy --n-jobs -1 --regions regions.npy -o tests.csv
  selkit test autoencoder.onnx images.npy --threshold 0.8 --post input-diff --post abs --var 1 --json
"""

COLUMNS = (
    "index",
    "name",
    "p_value",
    "adjusted_p_value",
    "rejected",
    "inf_p",
    "sup_p",
    "naive_p_value",
    "stat",
    "scale",
    "roi_size",
    "exact",
    "windows",
    "seconds",
    "error_type",
    "error",
)

STEPS = {
    "input-diff": "InputDiff",
    "abs": "Abs",
    "neg": "Neg",
    "average": "AverageFilter",
    "gaussian": "GaussianFilter",
    "l1-norm": "L1Norm",
}


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "test",
        summary="test whether the regions that a model points at are real",
        text="The model selects a region of each image; the p-value answers whether the mean inside it "
        "differs from the mean of what it is compared with, given that the model selected it. It is exact "
        "for Gaussian noise of known variance. An image without a region is a row without p-value, and the "
        "exit code is 3. An interrupted run continues where it stopped, if --output is given.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("images", metavar="IMAGES", help=shared.INPUTS)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=".csv, .json or .jsonl; else CSV on standard output"
    )
    parser.add_argument("--regions", type=Path, metavar="FILE.npy", help="also write the regions, (N, H, W)")
    group = parser.add_argument_group("region and hypothesis")
    add_region(group)
    _add_contrast(group)
    noise = parser.add_argument_group("noise of the images").add_mutually_exclusive_group(required=True)
    noise.add_argument(
        "--var", metavar="V", help="its variance: a number, or a .npy file with an array or a matrix"
    )
    noise.add_argument("--var-from", metavar="FILE", help="estimate it from images of noise alone")
    parser.add_argument("--mask", metavar="FILE.npy", help="pixels that may be used at all: zeros and ones")
    parser.add_argument("--mode", choices=["parametric", "decision", "exhaustive", "over_conditioning"])
    parser.add_argument("--alternative", choices=["two-sided", "greater", "less"], default="two-sided")
    parser.add_argument("--precision", type=shared.fraction, default=1e-3, help="(default: 0.001)")
    parser.add_argument("--alpha", type=shared.fraction, default=0.05, help="level (default: 0.05)")
    parser.add_argument(
        "--adjust",
        choices=["bh", "by", "bonferroni", "none"],
        help="for the number of images: Benjamini-Hochberg (default), Benjamini-Yekutieli, ...",
    )
    parser.add_argument("-j", "--n-jobs", type=int, default=1, metavar="N", help="-1: all cores")
    parser.add_argument("--seed", type=int, help="of random layers of the model")
    shared.add_image_options(parser)
    shared.add_resume(parser)


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


def _add_contrast(group: argparse._ArgumentGroup) -> None:
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


def run(options: Namespace, console: Console) -> Exit:
    """Test every image and write the table."""
    from selkit.cli.images import ImageOptions, open_samples
    from selkit.cli.tables import check_output

    mode = options.mode or "parametric"
    adjust = options.adjust or ("none" if mode == "decision" else "bh")
    if mode == "decision" and adjust != "none":
        raise InvalidInputError("--mode decision finds no p-values to adjust; say --adjust none")
    for path, suffixes in ((options.output, None), (options.regions, (".npy",))):
        if path is not None:
            check_output(path, *(() if suffixes is None else (suffixes,)))
    samples = open_samples(options.images, ImageOptions.of(options))
    references = _references(options, len(samples))
    test = load_test(options)
    table = _tested(test, samples, references, mode=mode, options=options, console=console)
    _check_some(table, options)
    rows = _rows(table, samples, adjust, mode, options.alpha)
    if options.regions is not None:
        write_regions(options.regions, test, samples, references, _mask(options))
    code = _finish(rows, options, console, adjust)
    if options.output is not None:
        _checkpoint(options).unlink(missing_ok=True)
    return code


def load_test(options: Namespace) -> RoiTest:
    """The model with its hypothesis; the noise matters only where something is tested."""
    import selkit

    known = vars(options)
    variance = _variance(options) if "var" in known else None
    return selkit.load(options.model, make_hypothesis(options), var=variance, seed=known.get("seed"))


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


def _variance(options: Namespace) -> Any:
    """The noise's covariance, as given or estimated."""
    import numpy as np

    from selkit.cli.images import ImageOptions, open_samples
    from selkit.cli.inputs import open_array
    from selkit.inference import estimate_variance

    if options.var_from is not None:
        noise = open_samples(options.var_from, ImageOptions.of(options))
        return float(estimate_variance(np.stack(list(noise))))
    try:
        value = float(options.var)
    except ValueError:
        return np.stack(list(open_array(options.var)))
    if not (math.isfinite(value) and value > 0):
        raise InvalidInputError(f"--var is {options.var}; a variance is a positive number")
    return value


def _mask(options: Namespace) -> Any:
    import numpy as np

    from selkit.cli.inputs import open_array

    return None if options.mask is None else np.stack(list(open_array(options.mask)))


def _references(options: Namespace, size: int) -> Samples | None:
    from selkit.cli.images import ImageOptions, open_samples

    if (options.reference is not None) != (options.hypothesis == "reference"):
        raise InvalidInputError("--hypothesis reference and --reference FILE belong together")
    if options.reference is None:
        return None
    found = open_samples(options.reference, ImageOptions.of(options))
    if len(found) not in (1, size):
        raise InvalidInputError(f"--reference has {len(found)} images; 1 or {size} are needed")
    return found


class Pairs:
    """Images, each with its reference.

    Parameters
    ----------
    samples, references
        As many references as samples, or one.
    """

    def __init__(self, samples: Samples, references: Samples) -> None:
        self._samples, self._references = samples, references

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Any:
        if len(self._references) == 1:
            (only,) = self._references
            return ((image, only) for image in self._samples)
        return zip(self._samples, self._references, strict=True)


def _checkpoint(options: Namespace) -> Path:
    from selkit.cli.partial import partial_path

    return partial_path(options.output)


def _tested(
    test: RoiTest,
    samples: Samples,
    references: Samples | None,
    *,
    mode: str,
    options: Namespace,
    console: Console,
) -> RoiTable:
    path = None if options.output is None else _checkpoint(options)
    if path is not None:
        if options.restart:
            path.unlink(missing_ok=True)
        if path.exists():
            console.say(f"continuing the run in {path}")
    images: Any = samples if references is None else Pairs(samples, references)
    try:
        return test.inference_batch(
            images,
            mask=_mask(options),
            n_jobs=options.n_jobs,
            checkpoint=path,
            inference_mode=mode,
            alternative=options.alternative,
            precision=options.precision,
            significance_level=options.alpha,
        )
    except BaseException as error:
        if path is not None and path.exists():
            done = len(getattr(error, "table", ()))
            console.kept = f"{done} of {len(samples)} images are kept in {path}: run it again to go on"
        raise


def _check_some(table: RoiTable, options: Namespace) -> None:
    """Refuse what fails for every image, unless it is that there is no region."""
    if table.n_tested or any(row.error_type == "NoHypothesisError" for row in table):
        return
    if options.output is not None:
        _checkpoint(options).unlink(missing_ok=True)
    raise InvalidInputError(f"no image could be tested; the first: {table[0].error}")


def _rows(table: RoiTable, samples: Samples, adjust: Any, mode: str, alpha: float) -> list[dict[str, Any]]:
    """The rows of the output; with "decision" the upper bound decides."""
    values: Any = "sup_p" if mode == "decision" else "p_value"
    adjusted = table.adjusted(adjust, values=values) if table.n_tested else table.p_values
    rows = []
    for row, level in zip(table, adjusted.tolist(), strict=True):
        entry = {name: getattr(row, name) for name in COLUMNS if hasattr(row, name)}
        entry |= {"name": samples.name(row.index), "adjusted_p_value": level}
        entry["rejected"] = None if row.failed else bool(level <= alpha)
        entry["error"] = None if row.error is None else " ".join(row.error.split())
        rows.append(entry)
    return rows


def write_regions(path: Path, test: RoiTest, samples: Samples, references: Samples | None, mask: Any) -> None:
    """Write the region of every image, ones inside; all zeros where there is none."""
    import numpy as np

    from selkit.cli.tables import replacing
    from selkit.errors import SelkitError
    from selkit.utils.progress import track

    images: Any = samples if references is None else Pairs(samples, references)
    regions: Any = None
    with replacing(path) as temporary:
        for index, image in enumerate(track(_readable(images), "regions", len(samples))):
            try:
                region = np.squeeze(test.select(image, mask).roi)
            except SelkitError:  # its row in the table says why
                continue
            if regions is None:
                regions = np.lib.format.open_memmap(
                    temporary, mode="w+", dtype=np.uint8, shape=(len(samples), *region.shape)
                )
            if regions.shape[1:] != region.shape:
                raise InvalidInputError("--regions: regions have different shapes, so they fit no one array")
            regions[index] = region
        if regions is None:
            np.save(temporary, np.zeros((len(samples), 0, 0), np.uint8))
        else:
            regions.flush()


def _readable(images: Any) -> Any:
    """The images; None for one that cannot be read."""
    from selkit.errors import FileFormatError

    if not hasattr(images, "__getitem__"):
        yield from images
        return
    for index in range(len(images)):
        try:
            yield images[index]
        except FileFormatError:
            yield None


def _finish(rows: list[dict[str, Any]], options: Namespace, console: Console, adjust: str) -> Exit:
    """Write the table, count, tell."""
    from selkit.cli.tables import dump_rows, write_rows

    if options.output is not None:
        write_rows(options.output, COLUMNS, rows)
    elif not options.json:
        dump_rows(sys.stdout, ".csv", COLUMNS, rows)
    failed = [row for row in rows if row["error_type"] is not None]
    rejected = sum(row["rejected"] is True for row in rows)
    tested = len(rows) - len(failed)
    console.say(
        f"{tested} of {len(rows)} images tested, {rejected} regions real at level {options.alpha:g} "
        f"({'not adjusted' if adjust == 'none' else f'adjusted: {adjust}'})"
    )
    if failed:
        console.say(f"{len(failed)} not tested; the first, image {failed[0]['index']}: {failed[0]['error']}")
    result = {
        "command": "test",
        "images": len(rows),
        "tested": tested,
        "failed": len(failed),
        "rejected": rejected,
        "alpha": options.alpha,
        "adjust": adjust,
        "exact": all(row["exact"] for row in rows if row["exact"] is not None),
        "output": None if options.output is None else str(options.output),
    }
    console.result(result if options.output is not None else {**result, "rows": rows})
    return Exit.SOME_FAILED if failed else Exit.OK
