"""The model that a bundle is made of: checked, and the value found that a score looks at."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from selkit.bundle.emitter import Emitter
from selkit.embeddings.sources import Pool
from selkit.errors import InvalidInputError, NotAvailableError, UnsupportedModelError, UnsupportedNode
from selkit.graph.files import Source, read
from selkit.graph.tidy import keep
from selkit.scores.base import UncertaintyScore
from selkit.scores.logits import LogitScore

OLDEST, NEWEST, USED = 13, 21, 17  # opsets: kept between the first two, where ONNX can convert to the third
IR = (8, 10)  # onnxruntime 1.18 reads up to 10
STANDARD = ("", "ai.onnx", "ai.onnx.ml")
USUAL = ("embedding", "embeddings", "features")


def read_source(model: Source) -> onnx.ModelProto:
    """A copy of a model with an opset and an IR version that onnxruntime 1.18 and later run.

    Raises
    ------
    FileFormatError
        If it is no ONNX model.
    UnsupportedModelError
        If it has operators that are not ONNX' own.
    NotAvailableError
        If its opset is too old and ONNX cannot convert it.
    """
    proto = read(model)
    if any(node.domain not in STANDARD for node in proto.graph.node):
        keep(proto, ())  # what no output needs may be foreign
    foreign = [
        UnsupportedNode(
            node.name, node.op_type, node.domain, opset_of(proto, node.domain), "not a standard operator"
        )
        for node in proto.graph.node
        if node.domain not in STANDARD
    ]
    if foreign:
        raise UnsupportedModelError(foreign, "bundle this model")
    if opset_of(proto, "") < OLDEST:
        try:
            proto = onnx.version_converter.convert_version(proto, USED)
        # the C++ converter raises whatever its checks raise
        except Exception as error:
            raise NotAvailableError(
                f"the model uses opset {opset_of(proto, '')}; a bundle needs {OLDEST} or newer, and ONNX "
                "cannot "
                f"convert it ({error}); export the model again with opset_version={USED}"
            ) from error
    proto.ir_version = max(IR[0], min(proto.ir_version, IR[1]))
    used = {node.domain for node in proto.graph.node} | {""}
    kept = [entry for entry in proto.opset_import if entry.domain in used or entry.domain == "ai.onnx"]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto


def opset_of(proto: onnx.ModelProto, domain: str = "") -> int:
    """The version of a domain that a model imports, 0 if it does not."""
    names = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
    return next((entry.version for entry in proto.opset_import if entry.domain in names), 0)


def check_names(wanted: Iterable[str], taken: Iterable[str]) -> None:
    """Refuse names of outputs that the model uses already.

    Raises
    ------
    InvalidInputError
        Naming them, and how to give others.
    """
    wanted = list(wanted)
    used = set(taken)
    both = [name for name in wanted if name in used or wanted.count(name) > 1]
    if both:
        raise InvalidInputError(
            f"the model has values called {sorted(set(both))} already, which are names of the bundle's "
            "outputs "
            f"or its threshold; give others, names={{{both[0]!r}: 'selkit_{both[0]}'}}"
        )


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that have no stored value."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def find_value(g: Emitter, score: UncertaintyScore, embedding: str | None) -> str:
    """The name of the value that a score looks at.

    Raises
    ------
    InvalidInputError
        If there is no such value, or none is named and several could be meant; candidates are listed.
    """
    outputs = [str(value.name) for value in g.model.graph.output]
    values = [name for node in g.model.graph.node for name in node.output if name]
    if embedding is None and score._where["layer"] in {*values, *outputs}:
        embedding = score._where["layer"]
    if embedding is not None:
        check_value(g, embedding, "embedding", _fitting(g, score))
        return embedding
    if isinstance(score, LogitScore):
        return outputs[0] if "logits" not in outputs else "logits"
    named = [name for name in outputs if name.lower() in USUAL]
    fitting = [name for name in outputs if _width(g, name) == _wanted(score)]
    for found in (named, fitting, outputs):
        if len(found) == 1 and (found is not outputs or _width(g, found[0]) in (None, _wanted(score))):
            return found[0]
    raise InvalidInputError(
        f"it is not clear which value of the model {type(score).__name__} was fitted on; say embedding=. The "
        f"outputs are {[f'{name} {_listed(g, name)}' for name in outputs]}{_fitting(g, score)}"
    )


def check_value(g: Emitter, name: str, argument: str, more: str = "") -> None:
    """Refuse a name that no value of the model has.

    Raises
    ------
    InvalidInputError
        With names that are near to it.
    """
    values = {name for node in g.model.graph.node for name in node.output if name}
    values |= {value.name for value in inputs_of(g.model)}
    outputs = [value.name for value in g.model.graph.output]
    if name not in values and name not in outputs:
        near = difflib.get_close_matches(str(name), values, n=5, cutoff=0.3)
        raise InvalidInputError(
            f"{argument}={name!r}: the model has no such value; near it are {near}, its outputs are {outputs}"
            f"{more}"
        )


def _wanted(score: UncertaintyScore) -> int | None:
    return None if score.width is None else int(score.width)


def _width(g: Emitter, name: str) -> int | None:
    shape = g.shape(name)
    return shape[1] if shape is not None and len(shape) >= 2 else None


def _listed(g: Emitter, name: str) -> str:
    shape = g.shape(name)
    return "of unknown shape" if shape is None else str(tuple(shape))


def _fitting(g: Emitter, score: UncertaintyScore) -> str:
    """Inner values whose width is that of the score."""
    names = [name for node in g.model.graph.node for name in node.output if name]
    found = [f"{name} {_listed(g, name)}" for name in names if _width(g, name) == _wanted(score)]
    if not found or score.width is None:
        return ""
    return f"; values of width {_wanted(score)} are {found[-8:]}"


def features(g: Emitter, score: UncertaintyScore, name: str, pool: Pool) -> str:
    """Append what turns a value of the model into what the score sees in Python, and return its name.

    Raises
    ------
    InvalidInputError
        If the value has another width than the score was fitted on, or its axes leave open what is meant.
    NotAvailableError
        For a pool that is a function.
    """
    kind = g.kind(name)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if kind not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        if dtype.kind not in "iufb" and kind != TensorProto.BFLOAT16:
            raise InvalidInputError(f"the value {name!r} has type {dtype}, which is no number")
        value, dtype = g.cast(name, np.float32), np.dtype(np.float32)
    else:
        value = name
    if isinstance(score, LogitScore):
        return value
    return _pooled(g, score, (name, value, dtype), pool)


def _pooled(
    g: Emitter, score: UncertaintyScore, given: tuple[str, str, np.dtype[np.generic]], pool: Pool
) -> str:
    name, value, dtype = given
    if callable(pool):
        raise NotAvailableError(
            "pool is a function, which ONNX cannot hold; pool inside the model, or use 'mean' or 'flatten'"
        )
    if pool not in (None, "mean", "tokens", "flatten"):
        raise InvalidInputError(f"pool must be 'mean', 'tokens' or 'flatten'; got {pool!r}")
    shape = g.shape(name)
    if shape is None or len(shape) < 2:
        raise InvalidInputError(
            f"the value {name!r} has shape {'that is unknown' if shape is None else tuple(shape)}; an "
            "embedding "
            "has shape (samples, features, ...)"
        )
    rank = len(shape)
    if rank == 3 and pool is None:
        raise InvalidInputError(
            f"the value {name!r} of shape {tuple(shape)} may be tokens or channels; say pool='tokens' "
            "(mean over "
            "the second axis), pool='mean' (over the last) or pool='flatten'"
        )
    rest = shape[1:]
    if pool == "tokens" and rank > 2:
        value, rest = _mean(g, value, [1], dtype), rest[1:]
    if pool == "flatten" and rank > 2:
        value, rest = g.op("Flatten", value, axis=1), (None if None in rest else int(np.prod(rest)),)  # type: ignore[arg-type]
    elif len(rest) > 1:
        value, rest = _mean(g, value, list(range(2, len(rest) + 1)), dtype), rest[:1]
    if rest[0] is not None and score.width is not None and rest[0] != int(score.width):
        raise InvalidInputError(
            f"the value {name!r} gives embeddings of width {rest[0]}, but {type(score).__name__} was "
            "fitted on "
            f"{int(score.width)}; say which value it was fitted on, embedding={_fitting(g, score)}"
        )
    return value


def _mean(g: Emitter, value: str, axes: list[int], dtype: np.dtype[np.generic]) -> str:
    return g.cast(g.reduce("ReduceMean", g.cast(value, np.float64), axes), dtype)
