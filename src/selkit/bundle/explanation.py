"""The attribution of an explainer as part of the file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from selkit.bundle.emitter import Emitter
from selkit.bundle.merging import merge
from selkit.bundle.source import opset_of
from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError
from selkit.graph.files import read

ATTRIBUTION = "attributions"
SAME = ((20, 21),)  # opsets between which the operators of an explanation differ in types only


def exported(explainer: Any) -> onnx.ModelProto:
    """The graph that an explainer writes.

    Raises
    ------
    InvalidTypeError, InvalidInputError
        If it is no explainer, or its graph has no attribution.
    """
    if not callable(getattr(explainer, "export", None)) or not callable(getattr(explainer, "explain", None)):
        raise InvalidTypeError(
            f"explainer is a {type(explainer).__name__}, which cannot be written as a graph; give a "
            "selkit.explain.Explainer"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explainer.onnx"
        explainer.export(path)
        proto = read(path)
    outputs = [value.name for value in proto.graph.output]
    if ATTRIBUTION not in outputs:
        raise InvalidInputError(
            f"explainer wrote a graph with the outputs {outputs}, without {ATTRIBUTION!r}"
        )
    return proto


def same_opset(model: onnx.ModelProto, explanation: onnx.ModelProto) -> onnx.ModelProto:
    """The model in the opset of the explanation, or in its own where that says the same.

    Raises
    ------
    NotAvailableError
        If it cannot be brought there.
    """
    own, wanted = opset_of(model), opset_of(explanation)
    if own == wanted or (wanted, own) in SAME:
        return model
    try:
        if own > wanted:
            raise NotAvailableError("a newer one cannot be made older")
        return onnx.version_converter.convert_version(model, wanted)
    # the C++ converter raises whatever its checks raise
    except Exception as error:
        raise NotAvailableError(
            f"the model uses opset {own}, the explainer's graph {wanted}, and ONNX cannot convert the model "
            f"({error}); export the model with opset_version={wanted}"
        ) from error


def emit_attribution(
    g: Emitter, explainer: Any, explanation: onnx.ModelProto, called: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    """Append an explanation, and return the attribution's name and what it explains.

    Parameters
    ----------
    g
        Where to append.
    explainer, explanation
        What :func:`exported` read, and from what.
    called
        Other names for its optional inputs.
    """
    made = merge(g, explanation, "explainer", called)[ATTRIBUTION]
    facts = getattr(explainer, "facts", None)
    told = {name: getattr(facts, name, None) for name in ("output", "target", "references")}
    if isinstance(told["target"], tuple):  # several targets come first there; here samples always do
        axes = len(g.shape(made) or ())
        made = g.op("Transpose", made, perm=[1, 0, *range(2, axes)])
    return made, {"name": type(explainer).__name__, **told, "target_input": called.get("target", "target")}


def attributions(explainer: Any, x: Any) -> np.ndarray[Any, Any]:
    """What the explainer says in Python, samples first."""
    found = explainer.explain(x)
    array = np.asarray(found.attributions)
    return array.swapaxes(0, 1) if array.ndim > np.ndim(x) else array
