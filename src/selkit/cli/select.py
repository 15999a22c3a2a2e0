"""``selkit select``: scores of new samples, and which of them to accept."""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import InvalidInputError, NotFittedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from selkit.cli.inputs import Chunk, Samples
    from selkit.cli.partial import Partial
    from selkit.embeddings.onnx import OnnxSource
    from selkit.scores import UncertaintyScore

COLUMNS = ("index", "name", "score", "selected")

EXAMPLES = """\
  selkit select score.safetensors new.npy -o decisions.csv
  selkit select score.safetensors new/ --model model.onnx -o decisions.jsonl --conformal-p-values
  selkit select score.safetensors new.npy --fail-below-coverage 0.8 --quiet --json > summary.json
"""


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "select",
        summary="score new samples and decide which to accept",
        text="Writes one row for each sample: index, name, score, selected. A sample that cannot be judged "
        "(NaN, a broken image) is not selected, its row has the reason, and the exit code is 3. An "
        "interrupted run continues where it stopped, if --output is given.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("score", metavar="SCORE.safetensors", help="what selkit fit has written")
    parser.add_argument("inputs", metavar="INPUTS", help=shared.INPUTS)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=".csv, .json or .jsonl; else CSV on standard output"
    )
    parser.add_argument("--model", metavar="MODEL.onnx", help="the one that the score was fitted with")
    parser.add_argument("--threshold", type=float, help="instead of the calibrated one; gives its promise up")
    parser.add_argument(
        "--conformal-p-values", action="store_true", help="p-value of: the sample is like the calibration set"
    )
    parser.add_argument("--groups", metavar="FILE", help="group of each sample, for thresholds by group")
    parser.add_argument("--predictions", metavar="FILE", help="class of each, for class-wise scores")
    parser.add_argument(
        "--fail-below-coverage",
        type=shared.fraction,
        metavar="C",
        help="exit with 4 if a smaller fraction is selected",
    )
    shared.add_image_options(parser)
    shared.add_chunk(parser)
    shared.add_resume(parser)


def run(options: Namespace, console: Console) -> Exit:
    """Score, decide and write."""
    from selkit.cli.partial import partial_path
    from selkit.cli.tables import check_output, dump_rows, write_rows
    from selkit.utils.journal import forget

    if options.output is not None:
        check_output(options.output)
    judge, samples = _prepare(options)
    columns = [*COLUMNS, *(["conformal_p_value"] if options.conformal_p_values else []), "error"]
    if options.output is None:
        with tempfile.TemporaryDirectory(prefix="selkit-") as folder:
            done = _judge_all(judge, samples, Path(folder) / "rows", options, console)
            if not options.json:
                dump_rows(sys.stdout, ".csv", columns, done.all_rows())
            code = _summary(done, judge, options, console, with_rows=True)
            done.remove()
            return code
    path = partial_path(options.output)
    if options.restart:
        forget(path)
    done = _judge_all(judge, samples, path, options, console)
    write_rows(options.output, columns, done.all_rows())
    code = _summary(done, judge, options, console, with_rows=False)
    done.remove()
    return code


@dataclass(frozen=True)
class Judge:
    """A score, with everything that it needs to decide.

    Attributes
    ----------
    score, source, threshold
        The score; what computes its features; a threshold that replaces the score's own.
    p_values
        Whether conformal p-values are wanted.
    groups, predictions
        Of all samples, or None.
    """

    score: UncertaintyScore
    source: OnnxSource | None
    threshold: float | None
    p_values: bool
    groups: NDArray[Any] | None
    predictions: NDArray[Any] | None

    def rows(self, chunk: Chunk, samples: Samples) -> list[dict[str, Any]]:
        """One row for each sample of a chunk."""
        import numpy as np
        import torch

        from selkit.cli.features import finite_rows
        from selkit.utils.arrays import as_tensor

        loaded = chunk.load()
        errors = dict(loaded.bad)
        at = np.array(loaded.good, dtype=np.int64)
        fine = finite_rows(loaded.values)
        errors.update(dict.fromkeys(at[~fine].tolist(), "it has NaN or infinity"))
        values, at = as_tensor(loaded.values[fine], samples.where), at[fine]
        if self.source is not None and len(at):
            values = self.source(values)
            fine = finite_rows(values.numpy())
            errors.update(dict.fromkeys(at[~fine].tolist(), "the model's output has NaN or infinity"))
            values, at = values[torch.from_numpy(fine)], at[fine]
        found = self._decide(values, chunk.start + at) if len(at) else {}
        judged = {int(k): {name: v[i] for name, v in found.items()} for i, k in enumerate(at)}
        return [
            {
                "index": chunk.start + k,
                "name": samples.name(chunk.start + k),
                "score": None,
                "selected": False,
                "error": errors.get(k),
                **judged.get(k, {}),
            }
            for k in range(chunk.size)
        ]

    def _decide(self, values: Any, at: NDArray[Any]) -> dict[str, list[Any]]:
        """Scores, decisions and p-values of features."""
        from selkit.calibration import conformal_pvalues

        query = values
        if self.predictions is not None:
            query = {"embedding": values, "label": self.predictions[at]}
        if self.threshold is not None:
            score = self.score.score(query)
            selected = score <= self.threshold
        else:
            groups = None if self.groups is None else self.groups[at]
            decision = self.score.select(query, groups=groups)
            score, selected = decision["score"], decision["selected"]
        found = {"score": score.double().tolist(), "selected": selected.tolist()}
        if self.p_values and self.score.calibration_scores is not None:
            p_values = conformal_pvalues(self.score.calibration_scores, score)
            found["conformal_p_value"] = p_values.tolist()
        return found


def _prepare(options: Namespace) -> tuple[Judge, Samples]:
    """Load the score and open the samples, and refuse what does not go together."""
    import math

    from selkit.cli.features import load_score, need_model, onnx_source
    from selkit.cli.images import ImageOptions, open_samples
    from selkit.cli.inputs import read_vector
    from selkit.cli.sidecar import Sidecar

    if options.threshold is not None and math.isnan(options.threshold):
        raise InvalidInputError("--threshold is NaN")
    score = load_score(options.score)
    side = Sidecar.read(Path(options.score))
    if side is not None:
        side.check_model(options.model)
    if options.threshold is None and not score.is_calibrated:
        raise NotFittedError(f"{options.score} has no threshold; say --threshold, or fit it with --coverage")
    if options.conformal_p_values and score.calibration_scores is None:
        raise NotFittedError("--conformal-p-values needs a score that was fitted with --calibration")
    samples = open_samples(options.inputs, ImageOptions.of(options, None if side is None else side.images))
    need_model(samples, options.model)
    where = score._where
    source = (
        None if options.model is None else onnx_source(score, options.model, where["layer"], where["pool"])
    )
    extra: dict[str, Any] = {
        name: None if file is None else read_vector(file, f"--{name}", len(samples))
        for name, file in (("groups", options.groups), ("predictions", options.predictions))
    }
    return Judge(score, source, options.threshold, options.conformal_p_values, **extra), samples


def _judge_all(judge: Judge, samples: Samples, path: Path, options: Namespace, console: Console) -> Partial:
    """Judge every chunk that was not judged before."""
    from selkit.cli.features import file_digest
    from selkit.cli.partial import Partial
    from selkit.inference.checkpoint import digest
    from selkit.utils.progress import track

    key = digest(
        file_digest(options.score),
        None if options.model is None else file_digest(options.model),
        (len(samples), options.chunk, options.threshold, options.conformal_p_values),
        (judge.groups, judge.predictions),
    )
    done = Partial(path, key)
    before = done.rows
    if before:
        console.say(f"continuing after {before} of {len(samples)} samples in {path}")
    chunks = -(-len(samples) // options.chunk)
    try:
        for chunk in track(samples.chunks(options.chunk), "selecting", chunks):
            if not done.has(chunk.start, chunk.mark):
                done.add(chunk.start, chunk.mark, judge.rows(chunk, samples))
    except BaseException:
        if options.output is not None:
            console.kept = f"{done.rows} of {len(samples)} samples are kept in {path}: run it again to go on"
        done.close()
        raise
    return done


def _summary(done: Partial, judge: Judge, options: Namespace, console: Console, *, with_rows: bool) -> Exit:
    """Count, tell, and decide about the exit code."""
    total = selected = failed = 0
    rows = []
    for row in done.all_rows():
        total += 1
        selected += bool(row["selected"])
        failed += row["error"] is not None
        if with_rows and options.json:
            rows.append(row)
    coverage = selected / total
    console.say(f"{selected} of {total} selected ({coverage:.1%})" + (f", {failed} failed" if failed else ""))
    own = judge.score.threshold
    threshold = [] if own is None else own.double().reshape(-1).tolist()
    result = {
        "command": "select",
        "samples": total,
        "selected": selected,
        "failed": failed,
        "coverage": coverage,
        "threshold": threshold if options.threshold is None else [options.threshold],
        "output": None if options.output is None else str(options.output),
    }
    console.result({**result, "rows": rows} if with_rows else result)
    if options.fail_below_coverage is not None and coverage < options.fail_below_coverage:
        console.complain(f"coverage is {coverage:.4g}, below {options.fail_below_coverage:g}")
        return Exit.CHECK_FAILED
    return Exit.SOME_FAILED if failed else Exit.OK
