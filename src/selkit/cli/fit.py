"""``selkit fit``: a score from references, with a threshold from calibration data."""

from __future__ import annotations

import inspect
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selkit.cli import options as shared
from selkit.cli.console import Console, Exit
from selkit.errors import InvalidInputError

if TYPE_CHECKING:
    from selkit.scores import UncertaintyScore

SCORES = {
    "euclidean": "EuclideanScore",
    "cosine": "CosineScore",
    "mahalanobis": "MahalanobisScore",
    "gaussian": "GaussianScore",
    "relative-mahalanobis": "RelativeMahalanobisScore",
    "pca": "PCAScore",
    "euclidean-classwise": "EuclideanClassWiseScore",
    "cosine-classwise": "CosineClassWiseScore",
    "mahalanobis-classwise": "MahalanobisClassWiseScore",
    "energy": "EnergyScore",
    "softmax": "SoftmaxScore",
    "max-logit": "MaxLogitScore",
    "entropy": "EntropyScore",
    "margin": "MarginScore",
    "mutual-information": "MutualInformationScore",
    "predictive-variance": "PredictiveVarianceScore",
    "random": "RandomScore",
}
"""What the command line can fit; ViM needs the weights of a head and PyOD runs pickled code, so both are left
to Python."""

OBJECTS = ("head", "base", "detector")  # parameters that no text can give

EXAMPLES = """\
  selkit fit train.npy --calibration calibration.npy --score euclidean -p k=5 -p stat=mean \\
      --coverage 0.9 -o score.safetensors
  selkit fit logits.npy --calibration held-out.npy --score energy --quantile 0.95 -o energy.safetensors
  selkit fit train/ --calibration calibration/ --color gray --model model.onnx --layer embedding \\
      --score mahalanobis --coverage 0.9 -o score.safetensors
"""


def add(commands: shared.Commands, common: ArgumentParser) -> None:
    """Add the command."""
    parser = shared.command(
        commands,
        common,
        "fit",
        summary="fit a score on references and set its threshold on calibration data",
        text="Writes SCORE.safetensors, and SCORE.json that says how it was made. A score is higher for what "
        "is less like the references; what scores at most the threshold is selected.",
        examples=EXAMPLES,
    )
    parser.set_defaults(run=run)
    parser.add_argument("references", metavar="REFERENCES", help=shared.INPUTS)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="SCORE.safetensors")
    parser.add_argument("--score", required=True, choices=SCORES, help="which score")
    parser.add_argument(
        "-p",
        "--param",
        action="append",
        default=[],
        type=shared.assignment,
        metavar="NAME=VALUE",
        help="a parameter of the score, such as k=5; may be given again",
    )
    parser.add_argument("--calibration", metavar="FILE", help="samples that set the threshold")
    parser.add_argument("--labels", metavar="FILE", help="class of each reference, where the score needs it")
    parser.add_argument("--calibration-labels", metavar="FILE", help="class of each calibration sample")
    parser.add_argument("--groups", metavar="FILE", help="group of each calibration sample: a threshold each")
    model = parser.add_argument_group("model", "computes the embeddings or logits from the samples")
    model.add_argument("--model", metavar="MODEL.onnx")
    model.add_argument("--layer", metavar="NAME", help="a value of the model; by default its output")
    model.add_argument("--pool", choices=["mean", "flatten", "tokens"], help="from a feature map to a vector")
    rule = parser.add_argument_group("threshold").add_mutually_exclusive_group(required=True)
    rule.add_argument(
        "--coverage", type=shared.fraction, help="accept a new sample with at least this probability"
    )
    rule.add_argument(
        "--risk", type=shared.fraction, help="keep the mean loss of accepted samples at most this"
    )
    rule.add_argument("--quantile", type=shared.fraction, help="of the calibration scores; promises nothing")
    parser.add_argument("--losses", metavar="FILE", help="for --risk: of each calibration sample, in [0, 1]")
    parser.add_argument("--confidence", type=shared.fraction, default=0.95, help="for --risk (default: 0.95)")
    shared.add_image_options(parser)
    shared.add_chunk(parser)


def run(options: Namespace, console: Console) -> Exit:
    """Fit, calibrate and save."""
    from selkit.cli.features import features_of, file_digest, need_model, onnx_source
    from selkit.cli.images import ImageOptions, ImageSamples, open_samples
    from selkit.cli.sidecar import Sidecar
    from selkit.cli.tables import check_output
    from selkit.utils.atomic import replacing

    check_output(options.output, (".safetensors",))
    score = make_score(options.score, options.param)
    images = ImageOptions.of(options)
    given = {"X": open_samples(options.references, images)}
    if options.calibration is not None:
        given["Y"] = open_samples(options.calibration, images)
    _check(options, given)
    labels = _labels(options, {name: len(samples) for name, samples in given.items()})
    source = None
    for samples in given.values():
        need_model(samples, options.model)
    if options.model is not None:
        source = onnx_source(score, options.model, options.layer, options.pool)
    features = {name: features_of(samples, source, options.chunk) for name, samples in given.items()}
    try:
        score.fit(**features, **labels, layer=options.layer, pool=options.pool)
        guarantee = set_threshold(score, options, len(features.get("Y", ())))
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{error} (X is {options.references}, Y {options.calibration or 'missing: --calibration'}, "
            f"y {options.labels or 'missing: --labels'})"
        ) from error
    with replacing(options.output) as temporary:
        score.save(temporary)
    read = next((s.options.to_dict() for s in given.values() if isinstance(s, ImageSamples)), None)
    side = Sidecar(
        score=type(score).__name__,
        references=len(given["X"]),
        calibration=len(given["Y"]) if "Y" in given else 0,
        threshold=[] if score.threshold is None else score.threshold.double().reshape(-1).tolist(),
        guarantee=guarantee,
        model_sha256=None if options.model is None else file_digest(options.model),
        images=read,
        score_sha256=file_digest(options.output),
    )
    path = side.write(options.output)
    threshold = ", ".join(f"{float(value):.6g}" for value in side.threshold)
    console.say(
        f"{side.score} fitted on {side.references} references, threshold {threshold}: {guarantee}\n"
        f"{options.output}, {path}"
    )
    console.result({"command": "fit", "output": str(options.output), **vars(side)})
    return Exit.OK


def make_score(name: str, params: list[tuple[str, Any]]) -> UncertaintyScore:
    """The score of a name with parameters.

    Raises
    ------
    InvalidInputError
        For a parameter that it does not have.
    """
    import selkit.scores

    kind = getattr(selkit.scores, SCORES[name])
    known = [
        entry for entry in inspect.signature(kind).parameters if entry not in ("head", "base", "detector")
    ]
    unknown = [entry for entry, _ in params if entry not in known]
    if unknown:
        raise InvalidInputError(
            f"--param: {name} has no parameter {unknown[0]!r}; it has: {', '.join(known) or 'none'}"
        )
    try:
        score: UncertaintyScore = kind(**dict(params))
    except TypeError as error:
        raise InvalidInputError(f"--param: {error}") from error
    return score


def _check(options: Namespace, given: dict[str, Any]) -> None:
    """Refuse options that contradict each other, before anything is computed."""
    if "Y" not in given:
        for name in ("coverage", "risk", "groups", "calibration_labels"):
            if getattr(options, name) is not None:
                raise InvalidInputError(
                    f"--{name.replace('_', '-')} needs --calibration: samples that set it"
                )
    if (options.risk is None) != (options.losses is None):
        raise InvalidInputError("--risk and --losses belong together")
    if options.quantile is not None and options.groups is not None:
        raise InvalidInputError("--groups needs --coverage or --risk; a quantile is one for all")
    if options.model is None and (options.layer is not None or options.pool is not None):
        raise InvalidInputError("--layer and --pool need --model")


def _labels(options: Namespace, lengths: dict[str, int]) -> dict[str, Any]:
    from selkit.cli.inputs import read_vector

    found = {}
    for name, file, part in (("y", options.labels, "X"), ("y_cal", options.calibration_labels, "Y")):
        if file is not None:
            found[name] = read_vector(file, "labels", lengths[part])
    return found


def set_threshold(score: UncertaintyScore, options: Namespace, size: int) -> str:
    """Set the threshold that was asked for, and say what it promises."""
    from selkit.cli.inputs import read_vector

    if options.quantile is not None:
        score.set_threshold(q=options.quantile)
        what = f"the {options.quantile:g} quantile of the calibration scores"
        return (what if size else f"the {options.quantile:g} quantile of the references' own scores") + (
            "; no guarantee"
        )
    groups: Any = None if options.groups is None else read_vector(options.groups, "--groups", size)
    each = "" if groups is None else " in each group"
    if options.coverage is not None:
        score.calibrate(coverage=options.coverage, groups=groups)
        return f"accepts a new sample{each} with probability at least {options.coverage:g} (split conformal)"
    losses = read_vector(options.losses, "--losses", size)
    score.calibrate(risk=options.risk, confidence=options.confidence, losses=losses, groups=groups)
    return (
        f"mean loss of accepted samples{each} at most {options.risk:g} with confidence "
        f"{options.confidence:g} (learn then test)"
    )
