"""``selkit test``: p-values of the regions that a model points at."""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.cli.hypothesis import add_contrast, add_region, make_hypothesis
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.cli.inputs import Samples
    from selkit.inference import RoiTest
    from selkit.inference.table import RoiTable

EXAMPLES = """\
  selkit test model.onnx images.npy --threshold 0.5 --var 0.04 -o tests.csv
  selkit test model.onnx images/ --color gray --top 20 --hypothesis neighborhood --neighborhood 3 \\
      --var-from dark-frames.npy --n-jobs -1 --regions regions.npy -o tests.csv
  selkit test autoencoder.onnx images.npy --threshold 0.8 --post input-diff --post abs --var 1 --json
  selkit test heatmaps.onnx images.npy --channel 1 --map-resize linear --threshold 0.5 --clean largest \\
      --clean fill-holes --var 0.04 -o tests.csv
"""

Row: TypeAlias = dict[str, Any]

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
    "given_acceptance",
    "p_value_unconditioned",
    "roi_size",
    "exact",
    "windows",
    "seconds",
    "error_type",
    "error",
)

EXPECTED = ("NoHypothesisError", "NotAcceptedError")
"""Reasons not to test an image that are no mistake."""


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
    add_contrast(group)
    noise = parser.add_argument_group("noise of the images").add_mutually_exclusive_group(required=True)
    noise.add_argument(
        "--var", metavar="V", help="its variance: a number, or a .npy file with an array or a matrix"
    )
    noise.add_argument("--var-from", metavar="FILE", help="estimate it from images of noise alone")
    accepted = parser.add_argument_group("abstention")
    accepted.add_argument(
        "--accepted-by",
        metavar="SCORE.safetensors",
        help="test only the images that this score accepts, and condition their p-values on it",
    )
    accepted.add_argument("--embedding", metavar="NAME", help="the value of the model that the score judges")
    accepted.add_argument("--score-model", metavar="MODEL.onnx", help="the score's model, if it is another")
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
    rows = _rows(table, samples, adjust, mode, options)
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
    return selkit.load(
        options.model,
        make_hypothesis(options),
        var=variance,
        seed=known.get("seed"),
        layout=options.axes,
        score_map=options.score_map,
        channel=options.channel,
        resize=options.map_resize,
    )


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
    from selkit.utils.journal import forget

    path = None if options.output is None else _checkpoint(options)
    if path is not None:
        if options.restart:
            forget(path)
        if path.exists():
            console.say(f"continuing the run in {path}")
    images: Any = samples if references is None else Pairs(samples, references)
    try:
        return test.inference_batch(
            images,
            mask=_mask(options),
            n_jobs=options.n_jobs,
            checkpoint=path,
            accepted_by=_acceptance(options),
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


def _acceptance(options: Namespace) -> Any:
    """The score that accepts images, if there is one."""
    from selkit.cli.features import load_score
    from selkit.cli.sidecar import Sidecar
    from selkit.inference import Acceptance

    if options.accepted_by is None:
        if options.embedding is not None or options.score_model is not None:
            raise InvalidInputError("--embedding and --score-model need --accepted-by")
        return None
    side = Sidecar.read(Path(options.accepted_by))
    if side is not None and side.model_sha256 is not None:
        side.check_model(options.score_model or options.model)
    return Acceptance(load_score(options.accepted_by), options.embedding, options.score_model)


def _check_some(table: RoiTable, options: Namespace) -> None:
    """Refuse what fails for every image, unless it is that there is no region, or that it is not accepted."""
    if table.n_tested or any(row.error_type in EXPECTED for row in table):
        return
    if options.output is not None:
        _checkpoint(options).unlink(missing_ok=True)
    raise InvalidInputError(f"no image could be tested; the first: {table[0].error}")


def _rows(
    table: RoiTable, samples: Samples, adjust: Any, mode: str, options: Namespace
) -> list[dict[str, Any]]:
    """The rows of the output; with "decision" the upper bound decides."""
    values: Any = "sup_p" if mode == "decision" else "p_value"
    adjusted = table.adjusted(adjust, values=values) if table.n_tested else table.p_values
    rows = []
    for row, level in zip(table, adjusted.tolist(), strict=True):
        entry = {name: getattr(row, name) for name in COLUMNS if hasattr(row, name)}
        entry |= {"name": samples.name(row.index), "adjusted_p_value": level}
        entry["rejected"] = None if row.failed else bool(level <= options.alpha)
        entry["given_acceptance"] = options.accepted_by is not None
        entry["error"] = None if row.error is None else " ".join(row.error.split())
        rows.append(entry)
    return rows


def write_regions(path: Path, test: RoiTest, samples: Samples, references: Samples | None, mask: Any) -> None:
    """Write the region of every image, ones inside; all zeros where there is none."""
    import numpy as np

    from selkit.errors import SelkitError
    from selkit.utils.atomic import replacing, reserved, write_array
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
                regions = reserved(temporary, (len(samples), *region.shape), np.uint8)
            if regions.shape[1:] != region.shape:
                raise InvalidInputError("--regions: regions have different shapes, so they fit no one array")
            regions[index] = region
        if regions is None:
            write_array(temporary, np.zeros((len(samples), 0, 0), np.uint8))
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
    refused = sum(row["error_type"] == "NotAcceptedError" for row in rows)
    failed = [row for row in rows if row["error_type"] not in (None, "NotAcceptedError")]
    rejected = sum(row["rejected"] is True for row in rows)
    tested = len(rows) - len(failed) - refused
    console.say(
        f"{tested} of {len(rows)} images tested, {rejected} regions real at level {options.alpha:g} "
        f"({'not adjusted' if adjust == 'none' else f'adjusted: {adjust}'})"
        + (f", {refused} not accepted" if options.accepted_by is not None else "")
    )
    if failed:
        console.say(f"{len(failed)} not tested; the first, image {failed[0]['index']}: {failed[0]['error']}")
    result = {
        "command": "test",
        "images": len(rows),
        "tested": tested,
        "failed": len(failed),
        "not_accepted": refused,
        "rejected": rejected,
        "alpha": options.alpha,
        "adjust": adjust,
        "exact": all(row["exact"] for row in rows if row["exact"] is not None),
        "output": None if options.output is None else str(options.output),
    }
    console.result(result if options.output is not None else {**result, "rows": rows})
    return Exit.SOME_FAILED if failed else Exit.OK
