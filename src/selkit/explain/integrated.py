"""Integrated gradients without steps: the integral itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selkit.embeddings.batches import Key
from selkit.errors import NotFiniteError
from selkit.explain.batches import read_batch, read_reference_batch
from selkit.explain.build import read_weights
from selkit.explain.heads import ClassAxis, Position, Reduce
from selkit.explain.paths import Integral, Paths
from selkit.explain.peers import Graphless
from selkit.explain.question import Choice, Inputs, ask, check_outputs, divide, join
from selkit.explain.result import Explanation
from selkit.explain.targets import Target, check_target, for_batch, resolved
from selkit.graph.files import Source
from selkit.utils.checks import integer, number
from selkit.utils.progress import track


class IntegratedGradientsExplainer(Graphless):
    """Integrate the gradient along the straight path from each reference to the input.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks"; over several references the mean
    ("expected gradients", Erion et al. 2021). The attributions of a sample sum to
    ``f(x) - mean f(references)``. The usual sum over 50 steps misses that by percents, because a network's
    gradient jumps wherever an activation switches. Here the path is cut at these places. On each piece of a
    piecewise-linear network the gradient is constant, so the integral is a finite sum, exact to rounding.
    Where something is smooth, each piece is integrated by Gauss' and Kronrod's rules and halved until they
    agree, and the explanation says how much is left (:attr:`Explanation.integration_error`).

    All is computed by torch in float64. A path costs one pass forward and back for each of its pieces, of
    which there are hundreds in small networks and many thousands in large ones: see ``budget``.

    Parameters
    ----------
    model, references, output, target, input, fixed, reduce, position, mask, class_axis, weights, key
        As for :class:`selkit.explain.Explainer`.
    tolerance
        Error at which halving stops where the integral is no finite sum, relative to the larger of the
        outputs at the path's ends.
    budget
        Most gradients for one path. If a path has more pieces, it is halved as often as that allows, and what
        is left is in ``integration_error``.

    Raises
    ------
    UnsupportedModelError
        If nodes cannot be run, or jump.
    FileFormatError
        If it is no ONNX model.
    InvalidInputError, InvalidTypeError
        If an argument does not fit the model.

    Examples
    --------
    >>> import onnx
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[N, 2] x) => (float[N, 1] y)
    ...     <float[2, 1] w = {1, 1}, float[1] b = {-1}> { h = MatMul(x, w)  g = Add(h, b)  y = Relu(g) }''')
    >>> explainer = IntegratedGradientsExplainer(model, np.zeros((1, 2), dtype=np.float32), target=0)
    >>> explanation = explainer.explain(np.array([[1.0, 3.0]]))
    >>> explanation.attributions  # the Relu is on from 1/4 of the path
    array([[0.75, 2.25]])
    """

    METHOD = "integrated_gradients"
    WHY = "each sample's path is cut where its own activations switch"

    def __init__(
        self,
        model: Source,
        references: object,
        output: str | None = None,
        target: Target = "top",
        *,
        input: Inputs = None,  # noqa: A002 - what a model calls it
        fixed: Mapping[str, Any] | None = None,
        reduce: Reduce = None,
        position: Position = None,
        mask: object = None,
        class_axis: ClassAxis = None,
        weights: object = None,
        tolerance: float = 1e-6,
        budget: int = 20_000,
        key: Key = None,
    ) -> None:
        self.tolerance = number(tolerance, "tolerance", 0, 1, ends="()")
        self.budget = integer(budget, "budget", 1, 2**40)
        question = ask(model, Choice(output, input, fixed, reduce, position, mask, class_axis))
        self._behind, self._notes = question.behind, question.notes
        if self._behind is not None:
            references = self._behind.references(references)
        batches = read_reference_batch(references, question.inputs, key)
        self.weights = read_weights(weights, len(batches[0]))
        asked = question.answer([batch.shape[1:] for batch in batches], dtype=torch.float64, decompose=_flat)
        self.inputs, self.output = asked.inputs, asked.raw
        self.target = check_target(target, asked.classes)
        self.references: NDArray[np.float64] = join(batches, np.float64)
        self._paths = Paths(asked.program.prune([asked.outputs]), self.tolerance, self.budget)
        outputs = self.predict(self.references)
        check_outputs(outputs, "references")
        self.mean_output: NDArray[np.float64] = self.weights @ outputs

    @property
    def exact(self) -> bool:
        """Whether the network is piecewise linear, so that each integral is a finite sum."""
        return self._paths.exact

    def predict(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The outputs to choose from, ``(N, outputs)``, for checked rows."""
        return np.asarray(self._paths.outputs(torch.from_numpy(rows)).numpy())

    def explain(self, x: object, target: Target | None = None) -> Explanation:
        """Explain a batch.

        Parameters
        ----------
        x, target
            As for :meth:`selkit.explain.Explainer.explain`.

        Returns
        -------
        Explanation
            With float64 attributions and ``integration_error``.

        Raises
        ------
        InvalidInputError, InvalidTypeError
            If an argument does not fit the model, or a gradient is not finite.
        """
        declared = [(part.name, (None, *part.shape), part.dtype) for part in self.inputs]
        batches = read_batch(x if self._behind is None else self._behind.samples(x), declared)
        rows = join(batches, np.float64)
        outputs = self.predict(rows)
        check_outputs(outputs, "samples")
        chosen, each = for_batch(target, self.target, outputs.shape[1], len(rows))
        targets = resolved(chosen, outputs) if each is None else each
        values = np.zeros((*targets.shape, *rows.shape[1:]))
        errors = np.zeros(targets.shape)
        for place in track(range(len(rows)), "integrating", len(rows)):
            for start, share in zip(self.references, self.weights, strict=True):
                found = self._integrate(start, rows[place], targets[:, place], place)
                values[:, place] += share * found.attributions.numpy()
                errors[:, place] += share * found.error.numpy()
        keep = slice(None) if isinstance(self.target, tuple) else 0
        return Explanation(
            divide(values[keep], self.inputs),
            self.mean_output[targets][keep],
            np.take_along_axis(outputs, targets.T, axis=1).T[keep],
            targets[keep],
            batches[0]
            if len(batches) == 1
            else {p.name: b for p, b in zip(self.inputs, batches, strict=True)},
            len(self.references),
            method=self.METHOD,
            integration_error=errors[keep],
            notes=self._notes,
        )

    def _integrate(
        self, start: NDArray[np.float64], end: NDArray[np.float64], targets: NDArray[np.int64], place: int
    ) -> Integral:
        found = self._paths.integrate(torch.from_numpy(start), torch.from_numpy(end), targets.tolist())
        if not bool(torch.isfinite(found.attributions).all()):
            raise NotFiniteError(
                f"the gradient is not finite along the path to sample {place}: the model has an infinite "
                "slope there (such as that of Sqrt at 0), or overflows. Choose other references, or "
                "method='deepshap', which takes no gradients"
            )
        return found

    def __repr__(self) -> str:
        inputs = ", ".join(f"{part.name}{list(part.shape)}" for part in self.inputs)
        how = "exact" if self.exact else f"to {self.tolerance:g}"
        return (
            f"IntegratedGradientsExplainer({inputs} -> {self.output}, target={self.target!r}, "
            f"{len(self.references)} references, {how})"
        )


def _flat(operator: object) -> bool:
    """Whether a composite operator is piecewise linear once it is taken apart."""
    from selkit.graph.ops.reduction import ReduceL1

    return isinstance(operator, ReduceL1)
