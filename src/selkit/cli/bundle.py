"""``selkit bundle``: model, score, region and explanation in one ONNX file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.cli.hypothesis import add_region, has_region
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.bundle import Bundle
    from selkit.scores import UncertaintyScore

EXAMPLES = """\
  selkit bundle model.onnx --score score.safetensors -o bundle.onnx --verify new.npy
  selkit bundle model.onnx --score score.safetensors --roi-threshold 0.5 -o bundle.onnx
  selkit bundle model.onnx --explain-references typical.npy --target 3 -o bundle.onnx
"""


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "bundle",
        summary="write model, score, region and explanation as one ONNX file",
        text="The file has the model's outputs, and as far as asked for score and selected, score_map and "
        "roi, and attribution; it runs wherever onnxruntime does. The threshold is an input with the "
        "calibrated value as its default. --verify runs it beside Python; exit code 4 if they differ.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="BUNDLE.onnx")
    score = parser.add_argument_group("score")
    score.add_argument("--score", metavar="SCORE.safetensors", help="what selkit fit has written")
    score.add_argument("--embedding", metavar="NAME", help="the value of the model that the score judges")
    score.add_argument("--pool", choices=["mean", "flatten", "tokens"], help="from a feature map to a vector")
    score.add_argument("--prediction", metavar="NAME", help="the logits, for class-wise scores and groups")
    score.add_argument(
        "--threshold-input",
        choices=["optional", "required", "fixed"],
        default="optional",
        help="whether the threshold is an input (default: optional; required for JavaScript)",
    )
    score.add_argument("--max-references", type=shared.count, default=100_000, metavar="N", help="to store")
    add_region(parser.add_argument_group("region"), prefix="roi-", required=False)
    explain = parser.add_argument_group("explanation")
    explain.add_argument("--explain-references", metavar="FILE", help="what inputs are compared with")
    explain.add_argument("--explain-output", metavar="NAME", help="which output (default: the first)")
    explain.add_argument("--target", default="top", type=_target, metavar="T", help="as in selkit explain")
    parser.add_argument("--verify", metavar="INPUTS", help="compare the file with Python on these inputs")
    shared.add_image_options(parser)
    shared.add_chunk(parser, 256)


def _target(text: str) -> Any:
    from selkit.cli.explain import target

    return target(text)


def run(options: Namespace, console: Console) -> Exit:
    """Write the file, and compare it with Python if that was asked for."""
    import selkit
    from selkit.cli.images import ImageOptions, open_samples
    from selkit.cli.roi import load_test
    from selkit.cli.sidecar import Sidecar
    from selkit.cli.tables import check_output

    check_output(options.output, (".onnx",))
    if options.output.exists() and options.output.samefile(options.model):
        raise InvalidInputError(f"{options.output} is the model itself; give another --output")
    side = None if options.score is None else Sidecar.read(Path(options.score))
    images = ImageOptions.of(options, None if side is None else side.images)
    verify = None if options.verify is None else open_samples(options.verify, images)
    bundle = selkit.export_bundle(
        options.model,
        path=options.output,
        score=_score(options, side),
        roi=load_test(options) if has_region(options) else None,
        explainer=_explainer(options, images),
        embedding=options.embedding,
        pool=options.pool,
        prediction=options.prediction,
        threshold_input=options.threshold_input,
        max_references=options.max_references,
    )
    console.say(f"{options.output}: {', '.join(bundle.outputs)}")
    ok, comparisons = True, None
    if verify is not None:
        ok, comparisons = _verify(bundle, verify, options.chunk, console)
    info = bundle.description.score
    console.result(
        {
            "command": "bundle",
            "output": str(options.output),
            "inputs": bundle.inputs,
            "outputs": bundle.outputs,
            "threshold": None if info is None else info.threshold,
            "guarantee": None if info is None else info.guarantee,
            "verified": None if comparisons is None else ok,
            "comparisons": comparisons,
        }
    )
    return Exit.OK if ok else Exit.CHECK_FAILED


def _score(options: Namespace, side: Any) -> UncertaintyScore | None:
    """The score, if there is to be one."""
    from selkit.cli.features import file_digest, load_score

    if options.score is None:
        for name in ("embedding", "pool", "prediction"):
            if getattr(options, name) is not None:
                raise InvalidInputError(f"--{name} needs --score")
        return None
    if side is not None and side.model_sha256 not in (None, file_digest(options.model)):
        raise InvalidInputError(f"{options.model} is not the model that the score was fitted with")
    return load_score(options.score)


def _explainer(options: Namespace, images: Any) -> Any:
    """The explainer, if there is to be one."""
    import numpy as np

    from selkit.cli.images import open_samples

    if options.explain_references is None:
        if options.target != "top" or options.explain_output is not None:
            raise InvalidInputError("--target and --explain-output need --explain-references")
        return None
    from selkit.explain import Explainer

    references = np.stack(list(open_samples(options.explain_references, images)))
    return Explainer(options.model, references, options.explain_output, options.target)


def _verify(bundle: Bundle, samples: Any, size: int, console: Console) -> tuple[bool, list[dict[str, Any]]]:
    """Compare in chunks; keep the largest difference of each output."""
    from selkit.cli.features import Batches
    from selkit.utils.progress import track

    batches = Batches(samples, size)
    found: dict[str, dict[str, Any]] = {}
    start = 0
    for batch in track(batches, "verifying", len(batches)):
        for one in bundle.verify(batch).comparisons:
            known = found.setdefault(
                one.name,
                {"name": one.name, "values": 0, "largest": 0.0, "tolerance": one.tolerance, "differ": []},
            )
            known["values"] += one.count
            known["largest"] = max(known["largest"], one.largest)
            known["differ"] += [start + position for position in one.differ]
        start += len(batch)
    for told in found.values():
        verdict = f"{len(told['differ'])} samples differ" if told["differ"] else "agrees"
        console.say(f"  {told['name']}: {verdict}, largest difference {told['largest']:.2g}")
    return not any(told["differ"] for told in found.values()), list(found.values())
