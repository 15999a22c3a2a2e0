"""A bundle in Python: run it, read what it says about itself, compare it with what it was made of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from selkit.bundle.description import Description
from selkit.bundle.emitter import Array, as_array
from selkit.bundle.seal import check
from selkit.bundle.source import STANDARD
from selkit.errors import FileFormatError, InvalidInputError, InvalidTypeError
from selkit.graph.files import Source, read
from selkit.utils.arrays import as_tensor
from selkit.utils.boundary import public
from selkit.utils.checks import number

if TYPE_CHECKING:
    from torch import Tensor

    from selkit.bundle.verification import Verification
    from selkit.inference.hypotheses import Hypothesis
    from selkit.inference.roi import RoiTest
    from selkit.scores.base import UncertaintyScore


@dataclass(frozen=True, eq=False)
class Origin:
    """What a bundle was made of.

    Attributes
    ----------
    model
        Before anything was added; ``None`` if only the bundle is known.
    score, roi, explainer
        In Python.
    """

    model: onnx.ModelProto | None = None
    score: UncertaintyScore | None = None
    roi: RoiTest | Hypothesis | None = None
    explainer: Any = None


class Bundle:
    """A model with its decisions in one ONNX file.

    Made by :func:`selkit.export_bundle` and :func:`selkit.load_bundle`.

    Attributes
    ----------
    content
        The file's bytes.
    description
        What it holds: which score, which threshold and guarantee, which outputs.
    path
        The file; ``None`` if it was loaded from bytes.
    origin
        What it was made of, as far as known.
    """

    @public
    def __init__(
        self, content: bytes, description: Description, path: Path | None, origin: Origin | None = None
    ) -> None:
        self.content, self.description, self.path = content, description, path
        self.origin = Origin() if origin is None else origin

    def __repr__(self) -> str:
        info, outputs = self.description, ", ".join(self.outputs)
        score = "" if info.score is None else f", score={info.score.name}, threshold={info.score.threshold}"
        return f"Bundle({'' if self.path is None else self.path}: {outputs}{score})"

    @property
    def outputs(self) -> list[str]:
        """Names of all outputs: the model's own, then those that were added."""
        return [*self.description.predictions, *self.description.outputs.values()]

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs that have no default."""
        return [value.name for value in self._session.get_inputs()]

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return session(self.content)

    @public
    def run(
        self,
        x: Array | Tensor | Mapping[str, Array | Tensor] | Sequence[Array | Tensor],
        *,
        threshold: float | Sequence[float] | None = None,
    ) -> dict[str, Array]:
        """Run the file in onnxruntime.

        Parameters
        ----------
        x
            The model's input, with its batch axis; for several inputs a mapping by name, or a sequence in
            their order.
        threshold
            To use instead of the calibrated one; one for each group or class where there are several.

        Returns
        -------
        dict
            Every output by name.

        Raises
        ------
        InvalidInputError
            If the number or the shapes of the inputs do not fit, or the threshold cannot be moved.
        """
        feeds = named_inputs(self._model_inputs(), x)
        return run_pieces(self._session, feeds, self._limits(threshold))

    @public
    def verify(
        self,
        x: Array | Tensor | Mapping[str, Array | Tensor] | Sequence[Array | Tensor],
        *,
        model: Source | None = None,
        score: UncertaintyScore | None = None,
        roi: RoiTest | Hypothesis | None = None,
        explainer: Any = None,
        threshold: float | None = None,
        rtol: float = 1e-5,
    ) -> Verification:
        """Run the file in onnxruntime and compare it with Python.

        Parameters
        ----------
        x
            As for :meth:`run`.
        model, score, roi, explainer
            What the bundle was made of; after :func:`selkit.export_bundle` they are known. Those that are not
            given after :func:`selkit.load_bundle` are not compared, and without ``model`` embeddings are
            those of the bundle's own graph.
        threshold
            Compare decisions at this threshold instead of the calibrated one.
        rtol
            How far scores may differ, relative to the larger of score and threshold.

        Returns
        -------
        Verification
            What was compared, and what differed.

        Raises
        ------
        InvalidInputError
            If there is nothing to compare with, or the inputs do not fit.
        """
        from selkit.bundle.verification import verify

        number(rtol, "rtol", 0.0)
        given = self.origin
        known = Origin(
            given.model if model is None else read(model),
            given.score if score is None else score,
            given.roi if roi is None else roi,
            given.explainer if explainer is None else explainer,
        )
        return verify(self, known, x, threshold, rtol)

    def _model_inputs(self) -> list[Any]:
        return [value for value in self._session.get_inputs() if value.name != self.description.threshold]

    def _limits(self, threshold: float | Sequence[float] | None) -> dict[str, Array]:
        info = self.description
        if info.score is None or info.threshold is None:
            if threshold is not None:
                raise InvalidInputError("threshold= was given, but this bundle has no score")
            return {}
        if info.threshold_input == "fixed" or (threshold is None and info.threshold_input == "optional"):
            if threshold is not None:
                raise InvalidInputError(
                    "the threshold of this bundle is fixed; export it with threshold_input='optional'"
                )
            return {}
        wanted = np.asarray(info.score.threshold, dtype=np.float64)
        values = wanted if threshold is None else _numbers(threshold)
        if values.shape != wanted.shape:
            raise InvalidInputError(f"threshold has shape {values.shape}; this bundle takes {wanted.shape}")
        dtype = next(
            FLOATS[value.type]
            for value in (*self._session.get_inputs(), *self._session.get_overridable_initializers())
            if value.name == info.threshold
        )
        return {info.threshold: values.astype(dtype)}


def _numbers(threshold: object) -> Array:
    """Thresholds as numbers; infinity accepts all, or nothing."""
    values = as_tensor(threshold, "threshold").double().cpu().numpy()
    if np.isnan(values).any():
        raise InvalidInputError("threshold is NaN; give a number, or one for each group or class")
    return np.asarray(values)


FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64}
TYPES = {
    **FLOATS,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


@public
def load_bundle(path: str | os.PathLike[str] | bytes) -> Bundle:
    """Load what :func:`selkit.export_bundle` wrote.

    Parameters
    ----------
    path
        The file, or its content.

    Returns
    -------
    Bundle

    Raises
    ------
    FileFormatError
        If it is no ONNX model, no bundle, or one that was changed or damaged.

    Examples
    --------
    >>> load_bundle(b"no model")
    Traceback (most recent call last):
    ...
    selkit.errors.FileFormatError: the given bytes: not an ONNX model, or truncated ...
    """
    if not isinstance(path, str | os.PathLike | bytes):
        raise InvalidTypeError(f"path is a {type(path).__name__}; give a file or its bytes")
    where = "the given bytes" if isinstance(path, bytes) else str(path)
    proto = read(path)
    description = Description.read(proto, where)
    strange = sorted({node.domain for node in proto.graph.node} - set(STANDARD))
    if strange:
        raise FileFormatError(f"{where} has operators of {strange}; a bundle has standard operators only")
    content = path if isinstance(path, bytes) else Path(path).read_bytes()
    check(content, where)
    made = Bundle(content, description, None if isinstance(path, bytes) else Path(path))
    try:
        made.inputs  # noqa: B018 - opens the session, which checks the graph
    # onnxruntime raises classes of its own, all of which mean the same here
    except Exception as error:
        raise FileFormatError(f"{where} does not run in onnxruntime: {error}") from error
    return made


def session(content: bytes) -> ort.InferenceSession:
    """A session without onnxruntime's remarks on optional inputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def cut(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """A copy that gives these values, outputs or inner ones."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(values))
    return copy


def named_inputs(wanted: Sequence[Any], x: Any) -> dict[str, Array]:
    """The model's inputs by name, in its types.

    Raises
    ------
    InvalidInputError
        If names, number, axes or numbers of rows do not fit.
    """
    names = [value.name for value in wanted]
    if isinstance(x, Mapping):
        given = dict(x)
    elif isinstance(x, list | tuple):
        given = dict(zip(names, x, strict=False)) if len(x) == len(names) else {}
    else:
        given = {names[0]: x} if len(names) == 1 else {}
    if set(given) != set(names):
        raise InvalidInputError(
            f"the model takes the inputs {names}; give an array for each, by name or in order"
        )
    feeds = {}
    for value in wanted:
        array = as_array(given[value.name])
        if array.ndim != len(value.shape) or array.dtype.kind not in "fiub":
            raise InvalidInputError(
                f"the input {value.name!r} takes numbers of shape {value.shape}; got {array.dtype} of shape "
                f"{array.shape}"
            )
        feeds[value.name] = array.astype(TYPES.get(value.type, array.dtype), copy=False)
    return feeds


def run_pieces(
    runner: ort.InferenceSession, feeds: Mapping[str, Array], more: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Every output; a model whose batch is fixed is run in pieces of that size.

    Raises
    ------
    InvalidInputError
        If onnxruntime refuses the inputs, or their number does not fit a fixed batch.
    """
    names = [value.name for value in runner.get_outputs()]
    first = next(value for value in runner.get_inputs() if value.name in feeds)
    rows, fixed = len(feeds[first.name]), first.shape[0]
    size = fixed if isinstance(fixed, int) and fixed > 0 else max(rows, 1)
    if rows % size:
        raise InvalidInputError(f"the model takes batches of {size}; got {rows} rows, which is no multiple")
    found: list[list[Array]] = []
    try:
        for start in range(0, rows, size):
            piece = {name: array[start : start + size] for name, array in feeds.items()}
            found.append(runner.run(names, {**piece, **(more or {})}))
    # onnxruntime raises classes of its own, all of which mean the same here
    except Exception as error:
        raise InvalidInputError(f"onnxruntime cannot run these inputs: {error}") from error
    if not found:
        raise InvalidInputError(f"the input {first.name!r} is empty")
    return {name: _joined([part[place] for part in found]) for place, name in enumerate(names)}


def _joined(parts: list[Any]) -> Any:
    """One output of all pieces; a model's own may be a sequence instead of an array."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    return np.concatenate(parts)


__all__ = ["Bundle", "Origin", "load_bundle"]
