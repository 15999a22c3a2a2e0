"""Compare an exported explainer with Python."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from selkit.explain import storage
from selkit.explain.question import Choice, ask
from selkit.graph.files import Source

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


def verify(explainer: Explainer, x: object, model: Source | None, choice: Choice) -> Verification:
    """Do the work of :meth:`selkit.explain.Explainer.verify`."""
    import onnxruntime as ort

    result = explainer.explain(x)
    facts = explainer.facts
    names = [part.name for part in facts.inputs]
    given = [result.x] if len(names) == 1 else [result.x[name] for name in names]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explainer.onnx"
        explainer.export(path)
        session = ort.InferenceSession(str(path), storage.options(), providers=["CPUExecutionProvider"])
        wanted = list(facts.attributions)
        outputs, *written = session.run([facts.output, *wanted], dict(zip(names, given, strict=True)))
        alone = [
            session.run(
                wanted, {name: batch[row : row + 1] for name, batch in zip(names, given, strict=True)}
            )
            for row in range(len(result))
        ]
        del session
    axis = 1 if result.several else 0
    apart = [np.concatenate([row[i] for row in alone], axis=axis) for i in range(len(wanted))]
    here = [result.attributions] if len(names) == 1 else [result.attributions[name] for name in names]
    scale = max(*(float(np.abs(part).max()) for part in here), np.finfo(np.float64).tiny)
    return Verification(
        additivity_error=float(result.relative_error.max()),
        output_difference=None if model is None else _beside(model, choice, explainer, given, outputs),
        batch_difference=_largest(apart, written) / scale,
        file_difference=_largest(written, here) / scale,
    )


def _largest(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


def _beside(
    model: Source, choice: Choice, explainer: Explainer, x: Sequence[np.ndarray], outputs: np.ndarray
) -> float:
    facts = explainer.facts
    question = ask(model, choice)
    shapes = {part.name: (1, *part.shape) for part in facts.inputs}
    behind = explainer._behind
    held = {**question.fixed, **({} if behind is None else behind.held)}
    program = question.graph.compile(shapes, [facts.output], live=list(shapes), constants=held)
    stacks = {
        part.name: torch.from_numpy(batch.astype(np.float64)).unsqueeze(1)
        for part, batch in zip(facts.inputs, x, strict=True)
    }
    found = program.run(stacks)[facts.output]
    expected = found.reshape(outputs.shape).numpy()
    return float(np.abs(expected - outputs).max() / max(np.abs(expected).max(), np.finfo(np.float64).tiny))
