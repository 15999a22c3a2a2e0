"""Compare an exported explainer with Python."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from selkit.explain import storage
from selkit.graph.files import Source
from selkit.graph.model import Graph

if TYPE_CHECKING:
    from selkit.explain.explainer import Explainer


@dataclass(frozen=True)
class Verification:
    """What :meth:`selkit.explain.Explainer.verify` found; all numbers are the largest over the batch.

    Attributes
    ----------
    additivity_error
        Sum of the attributions minus ``output - base_value``, relative to the larger of both.
    output_difference
        The graph's output and that of the model, run by torch in float64; relative to the largest output.
        ``None`` for a loaded explainer, which does not know its model.
    batch_difference
        Attributions of samples alone and in their batch; relative to the largest attribution.
    file_difference
        Attributions by the written file, loaded by plain onnxruntime, and by this explainer.
    """

    additivity_error: float
    output_difference: float | None
    batch_difference: float
    file_difference: float

    def __str__(self) -> str:
        model = "not known" if self.output_difference is None else f"{self.output_difference:.1e}"
        return (
            f"additivity error {self.additivity_error:.1e}, output beside the model {model}, "
            f"alone beside batch {self.batch_difference:.1e}, file beside Python {self.file_difference:.1e}"
        )


def verify(explainer: Explainer, x: object, model: Source | None) -> Verification:
    """Do the work of :meth:`selkit.explain.Explainer.verify`."""
    import onnxruntime as ort

    result = explainer.explain(x)
    facts = explainer.facts
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explainer.onnx"
        explainer.export(path)
        session = ort.InferenceSession(str(path), storage.options(), providers=["CPUExecutionProvider"])
        names = [facts.output, "attributions"]
        outputs, written = session.run(names, {facts.input: result.x})
        alone = [session.run(["attributions"], {facts.input: row[None]})[0] for row in result.x]
        del session
    apart = np.concatenate(alone, axis=1 if result.several else 0)
    scale = max(float(np.abs(result.attributions).max()), np.finfo(np.float64).tiny)
    return Verification(
        additivity_error=float(result.relative_error.max()),
        output_difference=None if model is None else _beside(model, explainer, result.x, outputs),
        batch_difference=float(np.abs(apart - written).max()) / scale,
        file_difference=float(np.abs(written - result.attributions).max()) / scale,
    )


def _beside(model: Source, explainer: Explainer, x: np.ndarray, outputs: np.ndarray) -> float:
    facts = explainer.facts
    program = Graph.load(model).compile({facts.input: (1, *facts.shape)}, [facts.output])
    stack = torch.from_numpy(x.astype(np.float64)).unsqueeze(1)
    expected = program.run({facts.input: stack})[facts.output][:, 0].numpy()
    return float(np.abs(expected - outputs).max() / max(np.abs(expected).max(), np.finfo(np.float64).tiny))
