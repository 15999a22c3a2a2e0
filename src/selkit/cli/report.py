"""``selkit report``: one HTML page from what select and test have written."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.report import Report

EXAMPLES = """\
  selkit report decisions.csv tests.csv --images new.npy --regions regions.npy -o report.html
  selkit report decisions.csv --score score.safetensors -o report.html
"""

_SHOWN = ("adjusted_p_value", "conformal_p_value", "inf_p", "sup_p", "stat", "roi_size", "exact", "error")


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "report",
        summary="write an HTML page from the results of select and test",
        text="Results are joined by their index. With --images the page has a gallery; without, the "
        "decisions and the densities of the scores only.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help=".csv, .json, .jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.html")
    parser.add_argument("--images", metavar="FILE", help=f"what was judged: {shared.INPUTS}")
    parser.add_argument("--regions", metavar="FILE.npy", help="what selkit test --regions has written")
    parser.add_argument(
        "--score", metavar="SCORE.safetensors", help="adds its threshold, promise and calibration"
    )
    parser.add_argument("--title", default="Decisions and tests")
    parser.add_argument("--alpha", type=float, default=0.05, help="level (default: 0.05)")
    parser.add_argument(
        "--limit", type=shared.count, default=2000, metavar="N", help="images in the gallery (default: 2000)"
    )
    shared.add_image_options(parser)


def run(options: Namespace, console: Console) -> Exit:
    """Join the results and write the page."""
    from selkit.cli.tables import check_output
    from selkit.report import write_report

    check_output(options.output, (".html", ".htm"))
    rows = joined(options.results)
    report = make_report(rows, options)
    path = write_report(options.output, report)
    shown = len(report.samples)
    if options.images is not None and shown < len(rows):
        console.say(f"the gallery has the first {shown} of {len(rows)} samples; --limit shows more")
    console.say(f"{path}")
    console.result({"command": "report", "output": str(path), "samples": len(rows), "shown": shown})
    return Exit.OK


def joined(paths: list[Path]) -> list[dict[str, Any]]:
    """Rows of several results, one for each index.

    Raises
    ------
    InvalidInputError
        If results name their samples differently, or two give the same column.
    """
    from selkit.cli.tables import read_rows

    found: dict[int, dict[str, Any]] = {}
    for path in paths:
        for row in read_rows(path):
            index = row["index"]
            if not isinstance(index, int) or isinstance(index, bool) or index < 0:
                raise InvalidInputError(f"{path}: index {index!r} is no position")
            _merge(found.setdefault(index, {"index": index}), row, path)
    if not found:
        raise InvalidInputError(f"{', '.join(map(str, paths))}: there are no rows")
    return [found[index] for index in sorted(found)]


def _merge(known: dict[str, Any], row: dict[str, Any], path: Path) -> None:
    for name, value in row.items():
        if name in ("index", "error", "error_type") or known.get(name) is None:
            if value is not None or name not in known:
                known[name] = value
        elif name == "name" and value not in (None, "", known[name]):
            raise InvalidInputError(
                f"{path}: sample {row['index']} is {value}, but {known[name]} in another result; join "
                "results of the same inputs"
            )
        elif name != "name" and value is not None:
            raise InvalidInputError(f"{path}: another result has {name} of sample {row['index']} already")


def make_report(rows: list[dict[str, Any]], options: Namespace) -> Report:
    """Everything that the page shows."""
    from selkit.report import Report

    facts: dict[str, str | float] = {"samples": len(rows)}
    summary = []
    decided = [row for row in rows if "selected" in row]
    if decided:
        chosen = sum(bool(row["selected"]) for row in decided)
        facts |= {"selected": chosen, "coverage": f"{chosen / len(decided):.1%}"}
        summary.append("A sample is selected if its score is at most the threshold.")
    tested = [row for row in rows if row.get("p_value") is not None]
    if tested:
        real = sum(row.get("rejected") is True for row in tested)
        facts |= {"regions tested": len(tested), "regions real after adjustment": real}
        summary.append(
            "A p-value answers whether the mean inside the region that the model points at differs from the "
            "mean of what it is compared with, given that the model selected this region. It is exact for "
            "Gaussian noise of the variance that the test was given."
        )
    failed = sum(row.get("error") is not None for row in rows)
    if failed:
        facts["without a result"] = failed
    scores = {"samples": [row["score"] for row in decided if row["score"] is not None]}
    threshold = None
    if options.score is not None:
        threshold = _of_score(options.score, scores, summary)
    samples = [] if options.images is None else _samples(rows, options)
    if samples or not scores["samples"]:
        scores.pop("samples")
    return Report(
        options.title,
        samples,
        threshold=threshold,
        summary=summary,
        facts=facts,
        scores=scores,
        alpha=options.alpha,
    )


def _of_score(path: str, scores: dict[str, list[float]], summary: list[str]) -> float | None:
    """A score's threshold; adds its calibration scores and its guarantee."""
    from selkit.cli.features import load_score
    from selkit.cli.sidecar import Sidecar

    score = load_score(path)
    if score.calibration_scores is not None:
        scores["calibration"] = score.calibration_scores.double().tolist()
    side = Sidecar.read(Path(path))
    if side is not None:
        summary.append(f"{side.score}, fitted on {side.references} references: {side.guarantee}.")
    if score.threshold is None or score.threshold.numel() != 1:
        return None
    return float(score.threshold)


def _samples(rows: list[dict[str, Any]], options: Namespace) -> list[Any]:
    """One record for each image, as far as the limit goes."""
    from selkit.cli.images import ImageOptions, open_samples
    from selkit.cli.inputs import open_array

    images = open_samples(options.images, ImageOptions.of(options))
    regions = None if options.regions is None else open_array(options.regions)
    for name, values in (("--images", images), ("--regions", regions)):
        if values is not None and len(values) <= rows[-1]["index"]:
            raise InvalidInputError(
                f"{name}: {values.where} has {len(values)} entries, but the results go to {rows[-1]['index']}"
            )
    found: dict[int, dict[str, Any]] = {row["index"]: row for row in rows[: options.limit]}
    last = max(found)
    samples = []
    several = iter(regions) if regions is not None else None
    for chunk in images.chunks(64):
        loaded = chunk.load()
        readable = dict(zip(loaded.good, loaded.values, strict=True))
        for place in range(chunk.size):
            region = None if several is None else next(several)
            index = chunk.start + place
            if index in found and place in readable:
                samples.append(_sample(readable[place], region, found[index]))
        if chunk.start + chunk.size > last:
            break
    return samples


def _sample(image: Any, region: Any, row: dict[str, Any]) -> Any:
    import math

    import numpy as np

    from selkit.report import Sample

    image = np.squeeze(image) if image.ndim > 2 else image
    if not np.isfinite(image).all():
        image = np.zeros(image.shape)
    if region is not None and region.size == 0:
        region = None
    score = row.get("score")
    return Sample(
        image,
        score=math.nan if score is None else float(score),
        selected=bool(row.get("selected", True)),
        name=row.get("name") or f"sample {row['index']}",
        roi=region if region is not None and region.any() else None,
        p_value=row.get("p_value"),
        naive_p_value=row.get("naive_p_value"),
        details={
            name.replace("_", " "): f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name])
            for name in _SHOWN
            if row.get(name) is not None
        },
    )
