"""The attribution of an explainer as part of the file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from selkit.bundle.emitter import Emitter
from selkit.bundle.merging import merge
from selkit.errors import InvalidTypeError
from selkit.graph.files import read


def emit_attribution(g: Emitter, explainer: Any) -> tuple[str, dict[str, Any]]:
    """Append the graph that an explainer exports, and return the attribution's name and what it explains.

    Parameters
    ----------
    g
        Where to append.
    explainer
        Has ``export(path)``, which writes one ONNX graph with an output ``"attribution"``.

    Raises
    ------
    InvalidTypeError
        If it is no explainer.
    """
    if not callable(getattr(explainer, "export", None)):
        raise InvalidTypeError(
            f"explainer is a {type(explainer).__name__}, which cannot be written as a graph; give a "
            "selkit.explain.Explainer"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explainer.onnx"
        explainer.export(path)
        other = read(path)
    made = merge(g, other, "explainer")
    told = {"kind": type(explainer).__name__}
    return made["attribution"], told
