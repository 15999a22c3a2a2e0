"""One ONNX file: the model's prediction, the score and its decision, the region and the attribution."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnxruntime as ort
from onnx import helper

import selkit
from selkit.bundle.decision import Limit, calibrated, decide, score_dtype
from selkit.bundle.description import Description, ScoreInfo, guarantee_of, plain
from selkit.bundle.emitter import Emitter, as_array, known_values
from selkit.bundle.explanation import emit_attribution, exported, same_opset
from selkit.bundle.loaded import Bundle, Origin
from selkit.bundle.regions import emit_region
from selkit.bundle.source import check_names, check_value, features, find_value, inputs_of, read_source
from selkit.embeddings.sources import Pool
from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError
from selkit.graph.files import Source
from selkit.inference.hypotheses import Hypothesis
from selkit.inference.roi import RoiTest
from selkit.scores.base import UncertaintyScore

ThresholdInput = Literal["optional", "required", "fixed"]
NAMES = ("threshold", "score", "selected", "score_map", "roi", "attribution", "target")
LARGEST = 2**31 - 1  # bytes in one file: protobuf counts in 32 bits


def export_bundle(
    model: Source,
    *,
    path: str | os.PathLike[str],
    score: UncertaintyScore | None = None,
    roi: RoiTest | Hypothesis | None = None,
    explainer: Any = None,
    embedding: str | None = None,
    pool: Pool = None,
    prediction: str | None = None,
    guarantee: str | None = None,
    names: Mapping[str, str] | None = None,
    threshold_input: ThresholdInput = "optional",
    max_references: int = 100_000,
) -> Bundle:
    """Write a model and what is decided about its predictions as one ONNX file.

    The file has the model's own outputs under their own names and, as far as asked for, ``score``, shape
    ``(N,)``, ``selected``, boolean, the map and the region of ``roi`` (``score_map``, ``roi``) and
    ``attribution``. It uses ONNX' standard operators only and runs wherever onnxruntime 1.22 or later does.

    Parameters
    ----------
    model
        An ONNX file, its bytes, or a loaded model.
    path
        File to write; an existing one is replaced.
    score
        A fitted score with a threshold. A score of your own brings a method ``to_onnx(g, features)`` that
        appends operators to an :class:`selkit.bundle.Emitter` and returns the name of the scores, float64.
    roi
        What :func:`selkit.load` returned for this model, or its hypothesis.
    explainer
        A :class:`selkit.explain.Explainer` of this model.
    embedding
        The value of the model, an output, an inner one or an input, that the score was fitted on. Without it
        that which the score was fitted with (``layer=``), else the logits or the only output that can be
        meant.
    pool
        As in :func:`selkit.embeddings.extract`; without it that which the score was fitted with.
    prediction
        For class-wise scores and thresholds of groups: the value that holds the logits from which the class
        follows. Without it a class-wise score takes the nearest class, as it does in Python.
    guarantee
        What the threshold promises, for the metadata. Without it what the score remembers, or what the
        threshold's rank among the calibration scores promises.
    names
        Other names for what is added, such as ``{"score": "uncertainty"}``.
    threshold_input
        ``"optional"``: an input with the calibrated threshold as its default. ``"required"``: an input that
        must be given, for JavaScript, where optional inputs cannot be. ``"fixed"``: no input.
    max_references
        How many references of a neighbour score may be stored.

    Returns
    -------
    Bundle
        To run the file, and to compare it with Python (:meth:`selkit.bundle.Bundle.verify`).

    Raises
    ------
    InvalidInputError
        If nothing was asked for, a value or a name does not fit the model, or the file cannot be written.
    NotFittedError
        If the score is not fitted or has no threshold.
    NotAvailableError
        If something cannot be written with ONNX' operators, with the reason.

    Examples
    --------
    >>> import numpy as np, onnx, selkit, tempfile, torch
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[N, 2] x) => (float[N, 2] logits) { logits = Neg(x) }''')
    >>> score = selkit.scores.MarginScore().fit(Y=torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]))
    >>> score = score.calibrate(coverage=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bundle = selkit.export_bundle(model, score=score, path=f"{folder}/bundle.onnx")
    ...     found = bundle.run(np.array([[0.0, 1.0], [0.0, 4.0]], dtype=np.float32))
    >>> found["score"].tolist(), found["selected"].tolist()
    ([-1.0, -4.0], [False, True])
    """
    if score is None and roi is None and explainer is None:
        raise InvalidInputError("nothing to put into the bundle: give score=, roi= or explainer=")
    if score is not None and not isinstance(score, UncertaintyScore):
        raise InvalidTypeError(f"score is a {type(score).__name__}; give a fitted score of selkit.scores")
    if threshold_input not in get_args(ThresholdInput):
        raise InvalidInputError(
            f"threshold_input must be one of {list(get_args(ThresholdInput))}; got {threshold_input!r}"
        )
    target = _target(path)
    called = _called(names)
    proto = read_source(model)
    origin = Origin(_copy(proto), score, roi, explainer)
    explanation = None
    if explainer is not None:
        explanation = exported(explainer)
        proto = same_opset(proto, explanation)
    taken = known_values(proto.graph)
    wanted = ["threshold", "score", "selected"] if score is not None else []
    wanted += ["score_map", "roi"] if roi is not None else []
    wanted += ["attribution", "target"] if explainer is not None else []
    check_names([called[name] for name in wanted], taken)
    g = Emitter(proto, max_references)
    batch = _batch(proto)
    description = Description(selkit.__version__, [value.name for value in proto.graph.output], {})
    added: list[tuple[str, str]] = []
    if roi is not None:  # first: it counts the model's outputs
        scored, region = emit_region(g, roi)
        added += [("score_map", scored), ("roi", region)]
        hypothesis = roi.hypothesis if isinstance(roi, RoiTest) else roi
        description = replace(description, roi={"hypothesis": repr(hypothesis)})
    if score is not None:
        options = {"embedding": embedding, "pool": pool, "prediction": prediction, "guarantee": guarantee}
        value, selected, info = _scored(g, score, called["threshold"], threshold_input, options)
        added = [("score", value), ("selected", selected), *added]
        description = replace(
            description, score=info, threshold=called["threshold"], threshold_input=threshold_input
        )
    if explanation is not None:
        attribution, told = emit_attribution(g, explainer, explanation, called)
        added.append(("attribution", attribution))
        description = replace(description, explainer=told)
    for name, value in added:
        _declare(g, value, called[name], batch)
    description = replace(description, outputs={name: called[name] for name, _ in added})
    description.write(proto)
    content = _checked(proto)
    _write(content, target)
    return Bundle(content, description, target, origin)


def _scored(
    g: Emitter, score: UncertaintyScore, threshold: str, mode: ThresholdInput, options: dict[str, Any]
) -> tuple[str, str, ScoreInfo]:
    """Append a score with its decision, and say what it is."""
    limits, groups = calibrated(score)
    value = find_value(g, score, options["embedding"])
    pool = score._where["pool"] if options["pool"] is None else options["pool"]
    prediction = options["prediction"]
    if prediction is not None:
        check_value(g, prediction, "prediction")
    found = features(g, score, value, pool)
    dtype = score_dtype(score, found, g)
    stored = as_array(limits).astype(dtype)
    if mode != "required":
        g.constant(stored, threshold)
    if mode != "fixed":
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        g.model.graph.input.append(helper.make_tensor_value_info(threshold, kind, stored.shape))
    before = g.references
    result, selected = decide(g, score, found, Limit.of(threshold, score, stored, groups), prediction)
    known, promised = guarantee_of(score)
    info = ScoreInfo(
        name=type(score).__name__,
        parameters={name: plain(item) for name, item in score.get_params(deep=False).items()},
        value=value,
        pool=pool,
        prediction=prediction,
        references=g.references - before,
        threshold=stored.tolist(),
        groups=list(groups),
        calibration_size=None if score.calibration_scores is None else len(score.calibration_scores),
        guarantee=known if options["guarantee"] is None else str(options["guarantee"]),
        promised=promised,
    )
    return result, selected, info


def _called(names: Mapping[str, str] | None) -> dict[str, str]:
    given = dict(names or {})
    if set(given) - set(NAMES) or not all(given.values()):
        raise InvalidInputError(f"names may rename {list(NAMES)}; got {given}")
    return {name: given.get(name, name) for name in NAMES}


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    folder = os.path.isdir(target)  # False where the name is too long for the system  # noqa: PTH112
    if folder or not target.parent.is_dir():
        raise InvalidInputError(
            f"path is {target}, which "
            f"{'is a folder' if folder else 'lies in no existing folder'}; give "
            "the path of a file to write"
        )
    return target


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _batch(proto: onnx.ModelProto) -> int | str | None:
    """The size or the name of the first axis of the model's first input."""
    inputs = inputs_of(proto)
    if not inputs or not inputs[0].type.tensor_type.shape.dim:
        raise InvalidInputError(
            "the model has no input with a batch axis, so there is nothing to decide about"
        )
    first = inputs[0].type.tensor_type.shape.dim[0]
    return int(first.dim_value) if first.WhichOneof("value") == "dim_value" else first.dim_param or None


def _declare(g: Emitter, value: str, name: str, batch: int | str | None) -> None:
    """Make a value an output, with the batch as its first axis."""
    shape = g.shape(value)
    rest: tuple[int | None, ...] = () if shape is None else shape[1:]
    g.output(value, name, g.kind(value), [batch, *rest])


def _checked(proto: onnx.ModelProto) -> bytes:
    """The file's content, after onnxruntime has accepted it."""
    if proto.ByteSize() > LARGEST:
        raise InvalidInputError(
            f"the bundle has {proto.ByteSize()} bytes; one ONNX file holds at most {LARGEST}: fit the "
            "score on "
            "fewer references"
        )
    content: bytes = proto.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # nothing is run
    try:
        onnx.checker.check_model(content)
        ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # onnxruntime raises classes of its own, all of which mean the same here
    except Exception as error:
        raise NotAvailableError(f"the graph that was written does not run: {error}") from error
    return content


def _write(content: bytes, target: Path) -> None:
    """Write all or nothing."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InvalidInputError(f"path is {target}, which cannot be written: {error}") from error


__all__ = ["export_bundle"]
