"""Whether the file decides as Python does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from selkit.bundle.decision import DIGITS, slack_of
from selkit.bundle.description import ScoreInfo
from selkit.bundle.emitter import Array, as_array
from selkit.bundle.explanation import attributions
from selkit.bundle.loaded import Bundle, Origin, cut, named_inputs, run_pieces, session
from selkit.embeddings.sources import pooled
from selkit.errors import InvalidInputError, NoHypothesisError
from selkit.graph import Graph
from selkit.inference.hypotheses import Hypothesis, ReferenceMeanDiff
from selkit.inference.roi import RoiTest
from selkit.scores.base import UncertaintyScore
from selkit.scores.classwise import ClassWiseScore
from selkit.utils.arrays import as_floating

MAPS = 1e-4  # tolerance of maps and attributions: Python computes them in float64, the file in float32
ALONE = 8  # samples that are also run one at a time


@dataclass(frozen=True)
class Comparison:
    """One output of the file beside the same from Python.

    Attributes
    ----------
    name
        Of the output, or what was compared.
    count
        Number of values.
    largest
        Largest difference, relative as ``tolerance`` is; for decisions the number that differ.
    tolerance
        What is allowed.
    differ
        Samples where more than that differs.
    """

    name: str
    count: int
    largest: float
    tolerance: float
    differ: tuple[int, ...]

    @property
    def ok(self) -> bool:
        """Whether no sample differs."""
        return not self.differ

    def __str__(self) -> str:
        if self.ok:
            return f"{self.name}: {self.count} values agree (largest difference {self.largest:.2g})"
        shown = ", ".join(map(str, self.differ[:10])) + (", ..." if len(self.differ) > 10 else "")
        return (
            f"{self.name}: {len(self.differ)} samples DIFFER ({shown}), by up to {self.largest:.3g} where "
            f"{self.tolerance:g} is allowed"
        )


@dataclass(frozen=True)
class Verification:
    """What :meth:`selkit.bundle.Bundle.verify` found; true where everything agrees.

    Attributes
    ----------
    samples
        Number of samples that were run.
    comparisons
        One for each output.
    """

    samples: int
    comparisons: tuple[Comparison, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return all(one.ok for one in self.comparisons)

    def __bool__(self) -> bool:
        return self.ok

    def __getitem__(self, name: str) -> Comparison:
        found = {one.name: one for one in self.comparisons}
        if name not in found:
            raise InvalidInputError(f"{name!r} was not compared; compared were {list(found)}")
        return found[name]

    def __str__(self) -> str:
        head = f"{self.samples} samples: " + (
            "the file agrees with Python" if self.ok else "the file DIFFERS"
        )
        return "\n".join([head, *(f"  {one}" for one in self.comparisons)])


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of the file, and what it is compared with."""

    bundle: Bundle
    origin: Origin
    feeds: Mapping[str, Array]
    limits: Mapping[str, Array]
    found: Mapping[str, Array]
    threshold: float | None
    rtol: float

    def of(self, output: str) -> Array:
        """An output that was added, by the name that it has without ``names=``."""
        return self.found[self.bundle.description.outputs[output]]


def compare(name: str, got: Array, expected: Array, scale: Array | float, tolerance: float) -> Comparison:
    """Compare numbers, sample by sample.

    Parameters
    ----------
    name
        What is compared.
    got, expected
        From the file and from Python, samples first.
    scale
        What differences are relative to; broadcast against the numbers.
    tolerance
        Largest relative difference that is allowed.
    """
    if got.shape != expected.shape:
        return Comparison(f"{name} (shape {got.shape}, not {expected.shape})", 0, np.inf, tolerance, (0,))
    found, wanted = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(found - wanted) / np.maximum(scale, np.finfo(np.float64).tiny)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    rows = apart.reshape(len(apart), -1).max(1) if apart.size else np.zeros(len(apart))
    bad = np.flatnonzero(rows > tolerance)
    return Comparison(name, apart.size, float(rows.max(initial=0.0)), tolerance, tuple(bad.tolist()))


def compare_flags(name: str, got: Array, expected: Array, excused: Array | None = None) -> Comparison:
    """Compare decisions; a sample differs if one of its decisions does that is not excused."""
    if got.shape != expected.shape or got.dtype != np.bool_:
        return Comparison(f"{name} ({got.dtype}{got.shape}, not {expected.shape})", 0, np.inf, 0.0, (0,))
    wrong = got != expected if excused is None else (got != expected) & ~excused
    bad = np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))
    return Comparison(name, got.size, float(wrong.sum()), 0.0, tuple(bad.tolist()))


def verify(bundle: Bundle, origin: Origin, x: Any, threshold: float | None, rtol: float) -> Verification:
    """Compare a bundle with what it was made of; see :meth:`selkit.bundle.Bundle.verify`."""
    info = bundle.description
    feeds = named_inputs(bundle._model_inputs(), x)
    limits = bundle._limits(threshold)
    found = run_pieces(bundle._session, feeds, limits)
    run = _Run(bundle, origin, feeds, limits, found, threshold, rtol)
    made: list[Comparison] = []
    if origin.model is not None:
        direct = run_pieces(session(origin.model.SerializeToString()), feeds)
        made += [_prediction(name, found[name], direct[name], rtol) for name in info.predictions]
    if info.score is not None and origin.score is not None:
        made += _score(run, info.score, origin.score)
    if info.roi is not None and origin.roi is not None:
        made += _roi(run, origin.roi)
    if info.explainer is not None and origin.explainer is not None:
        made.append(_attribution(run))
    if not made:
        raise InvalidInputError(
            "there is nothing to compare the bundle with: give what it was made of, model=, score=, roi= or "
            "explainer="
        )
    if info.score is not None:
        made += _alone(run)
    samples = len(next(iter(feeds.values())))
    return Verification(samples, tuple(made))


def _prediction(name: str, got: Any, expected: Any, rtol: float) -> Comparison:
    """Compare an output of the model: numbers by size, labels, texts and maps as they are."""
    if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        return compare(name, got, expected, np.abs(expected).max(initial=0.0), rtol)
    pairs = zip(list(got), list(expected), strict=True)
    bad = [place for place, (one, other) in enumerate(pairs) if not np.all(one == other)]
    return Comparison(name, len(expected), float(len(bad)), 0.0, tuple(bad))


def python_features(
    model: onnx.ModelProto, info: ScoreInfo, score: UncertaintyScore, feeds: Mapping[str, Array]
) -> Any:
    """What the score sees in Python, from the model run by onnxruntime."""
    wanted = [info.value] + ([] if info.prediction is None else [info.prediction])
    computed = [name for name in wanted if name not in feeds]
    values = dict(feeds)
    if computed:
        values |= run_pieces(session(cut(model, computed).SerializeToString()), feeds)
    given = torch.from_numpy(values[info.value])
    if score.feature == "logits":
        return as_floating(given, "logits")
    rows = pooled(as_floating(given, "the embedding"), info.pool)  # type: ignore[arg-type]
    if info.prediction is None:
        return rows
    logits = values[info.prediction]
    if isinstance(score, ClassWiseScore) and score.multilabel is not None and bool(score.multilabel):
        predicted = (logits > 0).astype(np.int64)
    elif logits.shape[1] == 1:
        predicted = (logits[:, 0] > 0).astype(np.int64)
    else:
        predicted = logits.argmax(1)
    return {"embedding": rows, "prediction": torch.from_numpy(predicted)}


def _score(run: _Run, info: ScoreInfo, score: UncertaintyScore) -> Iterator[Comparison]:
    if type(score).__name__ != info.name:
        raise InvalidInputError(f"score is a {type(score).__name__}; the bundle holds a {info.name}")
    model = _own(run.bundle) if run.origin.model is None else run.origin.model
    query = python_features(model, info, score, run.feeds)
    if info.groups and not isinstance(score, ClassWiseScore):
        result = score.select(query["embedding"], groups=query["prediction"])
    else:
        result = score.select(query)
    expected, selected = as_array(result["score"]), as_array(result["selected"])
    limit = np.asarray(info.threshold, dtype=np.float64)
    if run.threshold is not None:
        if info.groups:
            raise InvalidInputError("threshold= compares one threshold; this bundle has one for each group")
        limit = run.limits[str(run.bundle.description.threshold)].astype(np.float64)
        selected = expected <= limit
    known = np.abs(limit[np.isfinite(limit)]).max(initial=0.0)
    scale = np.maximum(np.abs(expected.astype(np.float64)), known)
    called, got = run.bundle.description.outputs, run.of("score")
    snapped = _snapped(run, score, query, expected, limit)
    if (
        got.shape == expected.shape
    ):  # what the file puts at the threshold lies there in Python too, but for digits
        expected = np.where(snapped & np.isin(got, limit.astype(got.dtype)), got, expected)
    yield compare(called["score"], got, expected, scale, run.rtol)
    yield compare_flags(called["selected"], run.of("selected"), selected, snapped)


def _snapped(run: _Run, score: UncertaintyScore, query: Any, scores: Array, limit: Array) -> Array:
    """Samples whose score in Python is so near to its threshold that the file may call the two equal.

    See :mod:`selkit.bundle.decision`: there, decisions on the threshold are those of the calibration.
    """
    info, values = run.bundle.description.score, scores.astype(np.float64)
    if info is None:
        return np.zeros(values.shape, dtype=bool)
    if isinstance(score, ClassWiseScore):
        rows = query["embedding"] if isinstance(query, Mapping) else query
        with torch.no_grad():
            values = as_array(score._matrix(rows)).astype(np.float64)
    elif info.groups:
        place = np.searchsorted(np.asarray(info.groups), as_array(query["prediction"]))
        limit = limit[np.clip(place, 0, len(info.groups) - 1)]
    slack = DIGITS * np.abs(limit)
    if run.threshold is None:
        own = np.asarray(info.threshold, dtype=np.float64)
        usual = slack_of(score, own).astype(np.float64)
        slack = np.maximum(slack, usual if usual.shape in ((), limit.shape) else usual[place])
    with np.errstate(invalid="ignore"):
        near = np.abs(values - limit) <= slack + 4 * DIGITS * np.abs(limit)
    return np.asarray(near.any(1) if near.ndim == 2 else near)


def _own(bundle: Bundle) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.ParseFromString(bundle.content)
    return model


def _alone(run: _Run) -> Iterator[Comparison]:
    """The first samples one at a time, where the model takes any batch."""
    runner, feeds = run.bundle._session, run.feeds
    first = next(value for value in runner.get_inputs() if value.name in feeds)
    rows = len(feeds[first.name])
    if isinstance(first.shape[0], int) or any(len(array) != rows for array in feeds.values()):
        return
    name, together = run.bundle.description.outputs["score"], run.of("score")
    parts = []
    for place in range(min(ALONE, rows)):
        one = {name: array[place : place + 1] for name, array in feeds.items()}
        parts.append(run_pieces(runner, one, run.limits)[name])
    alone = np.concatenate(parts)
    scale = np.abs(together.astype(np.float64)).max(initial=0.0)
    yield compare(f"{name}, one sample at a time", alone, together[: len(alone)], scale, run.rtol)


def _roi(run: _Run, test: RoiTest | Hypothesis) -> Iterator[Comparison]:
    if not isinstance(test, RoiTest):
        if run.origin.model is None:
            raise InvalidInputError("roi is a hypothesis, which needs the model: give model= too")
        test = RoiTest(Graph.load(run.origin.model, ()), test)
    maps, regions = run.of("score_map"), run.of("roi")
    parts = [_selection(run, test, place) for place in range(len(maps))]
    expected_maps = np.concatenate([part[0] for part in parts])
    expected = np.concatenate([part[1] for part in parts])
    size = np.abs(expected_maps).max(initial=0.0)
    called = run.bundle.description.outputs
    yield compare(called["score_map"], maps, expected_maps, size, MAPS)
    excused = None
    threshold = test.hypothesis.threshold
    if threshold is not None and expected_maps.size == expected.size:
        excused = (np.abs(expected_maps - threshold) <= MAPS * size).reshape(expected.shape)
    yield compare_flags(called["roi"], regions, expected, excused)


def _selection(run: _Run, test: RoiTest, place: int) -> tuple[Array, Array]:
    """Score map and region of one sample in Python."""
    given: list[Any] = [run.feeds[spec.name][place : place + 1] for spec in test.graph.inputs]
    if isinstance(test.hypothesis, ReferenceMeanDiff):
        given.append(given[test.hypothesis.i_idx])
    try:
        selection = test.select(given if len(given) > 1 else given[0])
    except NoHypothesisError:  # an empty region, of which Python keeps no map
        return run.of("score_map")[place : place + 1], np.zeros_like(run.of("roi")[place : place + 1])
    return as_array(selection.score), selection.roi


def _attribution(run: _Run) -> Comparison:
    (x,) = run.feeds.values()  # an explainer's model has one input
    expected = attributions(run.origin.explainer, x)
    name = run.bundle.description.outputs["attribution"]
    return compare(name, run.of("attribution"), expected, np.abs(expected).max(initial=0.0), MAPS)
