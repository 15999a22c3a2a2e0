"""``selkit report``: one HTML page from what select and test have written."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.cli.inputs import Samples
    from selkit.report import Report, Sample

EXAMPLES = """\
  selkit report decisions.csv tests.csv --images new.npy --regions regions.npy -o report.html
  selkit report decisions.csv --images new.npy --attributions attributions.npy -o report.html
  selkit report decisions.csv --score score.safetensors -o report.html
"""

_SHOWN = ("conformal_p_value", "inf_p", "sup_p", "stat", "roi_size", "exact", "error")


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "report",
        summary="write an HTML page from the results of select and test",
        text="Results are joined by their index. The page needs no network. Its gallery shows "
        "images, regions and attributions, as far as they are given.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help=".csv, .json, .jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.html")
    parser.add_argument("--images", metavar="FILE", help=f"what was judged: {shared.INPUTS}")
    parser.add_argument("--regions", metavar="FILE.npy", help="what selkit test --regions has written")
    parser.add_argument("--attributions", metavar="FILE.npy", help="what selkit explain has written")
    parser.add_argument(
        "--score", metavar="SCORE.safetensors", help="adds its threshold, promise and calibration"
    )
    parser.add_argument("--groups", metavar="FILE", help="kind of each, one a line (default: its folder)")
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
    if shown < len(rows):
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
    from selkit.report.from_test import ACCEPTED, NOT_ACCEPTED, REGIONS

    facts: dict[str, str | float] = {}
    guarantees = []
    decided = [row for row in rows if "selected" in row]
    whole = len(rows) <= options.limit  # the page counts what it shows
    if decided and not whole:
        chosen = sum(bool(row["selected"]) for row in decided)
        facts |= {"selected of all": chosen, "coverage of all": f"{chosen / len(decided):.1%}"}
    tested = [row for row in rows if row.get("p_value") is not None]
    if tested:
        if not whole:
            real = sum(row.get("rejected") is True for row in tested)
            facts |= {"regions tested of all": len(tested), "regions real of all": real}
        conditioned = all(row.get("given_acceptance") for row in tested)
        guarantees.append(f"{REGIONS} {ACCEPTED if conditioned else NOT_ACCEPTED if decided else ''}".strip())
    failed = sum(row.get("error") is not None and row.get("error_type") != "NotAcceptedError" for row in rows)
    if failed:
        facts["without a result"] = failed
    scores: dict[str, list[float]] = {}
    threshold = None if options.score is None else _of_score(options.score, scores, guarantees)
    return Report(
        options.title,
        _samples(rows, options),
        threshold=threshold,
        guarantees=guarantees,
        facts=facts,
        scores=scores,
        alpha=options.alpha,
    )


def _of_score(path: str, scores: dict[str, list[float]], guarantees: list[str]) -> float | None:
    """A score's threshold; adds its calibration scores and its guarantee."""
    from selkit.cli.features import load_score
    from selkit.cli.sidecar import Sidecar

    score = load_score(path)
    if score.calibration_scores is not None:
        scores["calibration"] = score.calibration_scores.double().tolist()
    side = Sidecar.read(Path(path))
    if side is not None:
        guarantees.append(f"{side.score}, fitted on {side.references} references: {side.guarantee}.")
    if score.threshold is None or score.threshold.numel() != 1:
        return None
    return float(score.threshold)


def _samples(rows: list[dict[str, Any]], options: Namespace) -> list[Sample]:
    """One record for each sample, as far as the limit goes; files are read a chunk at a time."""
    from selkit.cli.images import ImageOptions, open_samples
    from selkit.cli.inputs import open_array

    files: dict[str, Samples] = {}
    if options.images is not None:
        files["image"] = open_samples(options.images, ImageOptions.of(options))
    for field, path in (("roi", options.regions), ("attribution", options.attributions)):
        if path is not None:
            files[field] = open_array(path)
    for values in files.values():
        if len(values) <= rows[-1]["index"]:
            raise InvalidInputError(
                f"{values.where} has {len(values)} entries, but the results go to {rows[-1]['index']}"
            )
    groups = None if options.groups is None else _groups(options.groups, rows[-1]["index"])
    shown = {row["index"]: row for row in rows[: options.limit]}
    parts = {field: _read(values, set(shown)) for field, values in files.items()}
    return [
        _sample(
            row,
            {field: found.get(index) for field, found in parts.items()},
            _folder(row) if groups is None else groups[index],
        )
        for index, row in shown.items()
    ]


def _groups(path: str, last: int) -> list[str]:
    """The kind of each sample, from a text file with one in each line."""
    found = Path(path).read_text(encoding="utf-8").splitlines()
    if len(found) <= last:
        raise InvalidInputError(f"--groups: {path} has {len(found)} lines, but the results go to {last}")
    return found


def _folder(row: dict[str, Any]) -> str:
    """The folder of an image in a folder of folders."""
    return str(row.get("name") or "").rpartition("/")[0]


def _read(samples: Samples, wanted: set[int]) -> dict[int, Any]:
    """Some of the samples by position, without those that cannot be read."""
    found = {}
    for chunk in samples.chunks(64):
        places = {chunk.start + place for place in range(chunk.size)}
        if places & wanted:
            loaded = chunk.load()
            at = (chunk.start + place for place in loaded.good)
            found.update(
                {index: value for index, value in zip(at, loaded.values, strict=True) if index in wanted}
            )
        if max(places) >= max(wanted):
            break
    return found


def _sample(row: dict[str, Any], arrays: dict[str, Any], group: str) -> Sample:
    """A record from a row of the results."""
    import math

    import numpy as np

    from selkit.report import Sample

    image, roi, attribution = (arrays.get(name) for name in ("image", "roi", "attribution"))
    if image is not None and image.ndim > 2:
        image = np.squeeze(image)
    if roi is not None and not roi.any():
        roi = None
    if attribution is not None and not np.isfinite(attribution).all():
        attribution = None
    score = row.get("score")
    p_values: dict[str, Any] = {
        name: row.get(name) for name in ("p_value", "adjusted_p_value", "naive_p_value")
    }
    if row.get("given_acceptance"):
        p_values["p_value_without_acceptance"] = row.get("p_value_unconditioned")
    return Sample(
        image,
        score=math.nan if score is None else float(score),
        selected=bool(row.get("selected", row.get("error_type") != "NotAcceptedError")),
        name=row.get("name") or f"sample {row['index']}",
        group=group,
        roi=roi,
        attribution=attribution,
        details={
            name.replace("_", " "): f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name])
            for name in _SHOWN
            if row.get(name) is not None
        },
        **p_values,
    )
