"""Load a model with a hypothesis, and test the region that it points at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.errors import InvalidInputError, InvalidTypeError, NoHypothesisError, NotAvailableError
from selkit.graph import Graph
from selkit.inference.covariance import Covariance
from selkit.inference.engine import Engine
from selkit.inference.events import SignEvent
from selkit.inference.hypotheses import Contrast, Hypothesis, ReferenceMeanDiff
from selkit.inference.intervals import around
from selkit.inference.line import Line
from selkit.inference.result import RoiResult
from selkit.inference.score_map import ScoreMap, build_score_map, fit_to_input
from selkit.inference.search import Goal, InferenceMode, Search
from selkit.inference.truncated import Alternative, Normal, check_alternative

Array = NDArray[Any] | Tensor


def load(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    hypothesis: Hypothesis,
    *,
    var: Any = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
) -> RoiTest:
    """Load an ONNX model and what is to be tested about the region that it selects.

    Parameters
    ----------
    model
        A file, its bytes, or a loaded model.
    hypothesis
        Such as ``BackMeanDiff(threshold=0.5)``.
    var
        Noise variance to use where :meth:`RoiTest.inference` is given none.
    seed
        Fixes random layers of the model (the sampling of a variational autoencoder).
    device
        Where to compute.

    Returns
    -------
    RoiTest

    Raises
    ------
    FileFormatError
        If this is not an ONNX model.
    UnsupportedModelError
        If nodes of the model are not supported; all of them are listed.

    Examples
    --------
    >>> import numpy as np, onnx, selkit
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     agraph (float[1, 1, 8] x) => (float[1, 1, 8] y) { y = Relu(x) }''')
    >>> test = selkit.load(model, hypothesis=selkit.BackMeanDiff(threshold=1.0))
    >>> x = np.array([[[0.1, 0.0, 2.5, 3.0, 0.2, -1.0, 0.4, 0.3]]])
    >>> result = test.inference(x, var=1.0)
    >>> result.roi.astype(int)
    array([0, 0, 1, 1, 0, 0, 0, 0])
    >>> bool(result.naive_p_value() < result.p_value < 1)
    True
    """
    return RoiTest(Graph.load(model), hypothesis, var=var, seed=seed, device=device)


@dataclass(frozen=True, eq=False)
class Observation:
    """The region that was observed, and the line through the observation.

    Attributes
    ----------
    maps
        The model as programs.
    line
        The line along which the contrast varies.
    event
        That the observed region is selected.
    contrast
        Of the input.
    stat, scale
        The standardised contrast, and its standard deviation.
    output, score, roi
        In ONNX shape; ``roi`` in a shape that broadcasts against the input.
    """

    maps: ScoreMap
    line: Line
    event: SignEvent
    contrast: Contrast
    stat: float
    scale: float
    output: Tensor
    score: Tensor
    roi: NDArray[np.bool_]


class RoiTest:
    """A model and a hypothesis, ready to test images.

    Parameters
    ----------
    graph
        The model.
    hypothesis
        What is tested.
    var, seed, device
        See :func:`load`.
    """

    def __init__(
        self,
        graph: Graph,
        hypothesis: Hypothesis,
        *,
        var: Any = None,
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if not isinstance(hypothesis, Hypothesis):
            raise InvalidTypeError(
                f"hypothesis is a {type(hypothesis).__name__}; give an instance of a selkit hypothesis, "
                "such as BackMeanDiff(threshold=0.5)"
            )
        for name, index, values in (
            ("i_idx", hypothesis.i_idx, graph.inputs),
            ("o_idx", hypothesis.o_idx, graph.outputs),
        ):
            if not 0 <= index < len(values):
                kind = "input" if name == "i_idx" else "output"
                listed = ", ".join(f"{place}: {value.name}" for place, value in enumerate(values))
                raise InvalidInputError(f"{name} is {index}; the model's {kind}s are {listed}")
        self.graph, self.hypothesis = graph, hypothesis
        self.var, self.seed, self.device = var, seed, torch.device(device)
        self._compiled: tuple[object, ScoreMap] | None = None

    def inference(
        self,
        x: Array | Sequence[Array],
        var: Any = None,
        mask: Array | None = None,
        inference_mode: InferenceMode = "parametric",
        *,
        alternative: Alternative = "two-sided",
        null_value: float = 0.0,
        precision: float = 1e-3,
        significance_level: float = 0.05,
    ) -> RoiResult:
        """Test the region that the model selects on one image.

        Under the null hypothesis that the contrast's mean is ``null_value``, the p-value is uniform on
        [0, 1], although the region was chosen by looking at the same image (Duy et al. 2022, Shiraishi et al.
        2023, Katsuoka et al. 2025).

        Parameters
        ----------
        x
            The image, with or without its batch axis of 1; for models with several inputs a sequence of all
            of them; for :class:`ReferenceMeanDiff` the pair ``(x, reference)``.
        var
            Covariance of the noise, which is Gaussian: a number (independent pixels), an array of the
            image's shape, a matrix, or :class:`selkit.inference.Stationary`. The level is exact for a known
            covariance; an estimated one makes it approximate.
        mask
            Pixels that may be used at all; the others are in neither region.
        inference_mode
            "parametric" stops when the bounds of the p-value are closer than ``precision``, "decision" when
            they lie on one side of ``significance_level``, "exhaustive" searches ten standard deviations
            beyond the statistic and zero, "over_conditioning" looks at the linear piece of the observation
            only (valid, but with less power).
        alternative
            "two-sided", "greater" or "less", as in scipy.
        null_value
            Mean of the contrast under the null hypothesis, in the input's units.
        precision
            Largest difference of ``sup_p`` and ``inf_p``.
        significance_level
            For "decision".

        Returns
        -------
        RoiResult

        Raises
        ------
        InvalidInputError
            If the image, the variance or the mask cannot be used.
        NoHypothesisError
            If the region is empty, or nothing is left to compare it with.
        """
        goal = Goal(inference_mode, precision, significance_level)
        alternative = check_alternative(alternative)
        seen = self.observe(x, self.var if var is None else var, mask)
        distribution = Normal(float(null_value) / seen.scale)
        search = Search(distribution, seen.stat, alternative, goal)
        engine = Engine(seen.maps.margins, seen.event, seen.line)
        exact = seen.maps.piecewise_linear
        if not exact and goal.mode in ("over_conditioning", "exhaustive"):
            raise NotAvailableError(
                f"inference_mode={goal.mode!r} needs a score map that is piecewise linear in the input, but "
                "this model has smooth operators before it; use 'parametric' or 'decision'"
            )
        if not exact:
            engine.refine(search)
        elif goal.mode == "over_conditioning":
            engine.piece(search)
        else:
            engine.run(search)
        if around(search.included, seen.stat) is None:
            raise InvalidInputError(
                "the observed region lies on the threshold to within rounding, so it cannot be reproduced; "
                "move the threshold a little"
            )
        lower, upper = search.bounds()
        compared = seen.contrast.compared
        return RoiResult(
            stat=seen.stat * seen.scale,
            p_value=search.p_value(),
            inf_p=lower,
            sup_p=upper,
            truncated_intervals=search.included * seen.scale,
            searched_intervals=search.searched * seen.scale,
            output=seen.output.cpu().numpy(),
            score_map=np.squeeze(seen.score.cpu().numpy()),
            roi=np.squeeze(seen.roi),
            non_roi=None if compared is None else np.squeeze(compared),
            alternative=alternative,
            scale=seen.scale,
            exact=exact,
            windows=engine.windows,
            distribution=distribution,
            line=seen.line,
        )

    def observe(self, x: Array | Sequence[Array], var: Any, mask: Array | None = None) -> Observation:
        """Return the region that the model selects, its contrast, and the line along which that varies.

        Parameters
        ----------
        x, var, mask
            As for :meth:`inference`.
        """
        tested, others, reference = self._inputs(x)
        maps = self._programs(tuple(tested.shape), others)
        values = maps.observed.run({self.tested_name: tested[None]})
        output, score = values[maps.output][0], values[maps.score][0]
        margin = maps.margins.run({self.tested_name: tested[None]})[maps.margin][0]
        if not bool(torch.isfinite(margin).all()):
            raise InvalidInputError("the model's score map has values that are not finite on this image")
        self._check_normalizable(score)
        shape = tuple(tested.shape)
        usable = _as_mask(mask, margin, shape)
        roi = fit_to_input(margin > 0, shape).cpu().numpy() & usable
        if not roi.any():
            raise NoHypothesisError(
                "the region is empty: no score that the mask leaves is above "
                f"threshold={self.hypothesis.threshold} (the largest is {float(score.max()):.4g}); "
                "lower the threshold"
            )
        contrast = self.hypothesis.contrast(roi, usable, shape)
        if not contrast.against_reference and reference is not None:
            raise InvalidInputError("x is a pair, but only ReferenceMeanDiff compares with a reference")
        covariance = Covariance(var, shape)
        direction = covariance.times(contrast.eta)
        variance = float(np.sum(contrast.eta * direction)) * (2.0 if contrast.against_reference else 1.0)
        if not variance > 0:
            raise InvalidInputError(
                f"the contrast has variance {variance:.3g} under var; it must be positive: check var"
            )
        scale = float(np.sqrt(variance))
        data = tested.cpu().numpy() - (reference.cpu().numpy() if reference is not None else 0.0)
        stat = float(np.sum(contrast.eta * data)) / scale
        b = torch.as_tensor(direction / scale, device=self.device)
        index = torch.as_tensor(np.flatnonzero(np.broadcast_to(usable, roi.shape)), device=self.device)
        positive = torch.as_tensor(roi.reshape(-1), device=self.device)[index]
        event = SignEvent(maps.margin, index, positive)
        return Observation(maps, Line(tested - stat * b, b), event, contrast, stat, scale, output, score, roi)

    @property
    def tested_name(self) -> str:
        """Name of the model's input that is tested."""
        return self.graph.inputs[self.hypothesis.i_idx].name

    def _check_normalizable(self, score: Tensor) -> None:
        if self.hypothesis.use_norm and not bool(torch.isfinite(score).all()):
            raise InvalidInputError(
                "the score map is constant, so use_norm=True cannot scale it to [0, 1]; use use_norm=False"
            )

    def _inputs(self, x: Array | Sequence[Array]) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Split what was given into the tested input, the other inputs and the reference."""
        given: list[Any] = list(x) if isinstance(x, list | tuple) else [x]
        reference = None
        if isinstance(self.hypothesis, ReferenceMeanDiff):
            if len(given) != len(self.graph.inputs) + 1:
                raise InvalidInputError(
                    "x must be the pair (x, reference) for ReferenceMeanDiff"
                    + ("" if len(self.graph.inputs) == 1 else ": all inputs of the model, then the reference")
                )
            reference = given.pop()
        if len(given) != len(self.graph.inputs):
            names = ", ".join(value.name for value in self.graph.inputs)
            raise InvalidInputError(
                f"x has {len(given)} array(s), but the model has {len(self.graph.inputs)} input(s): {names}"
            )
        tensors = [
            self._tensor(value, spec.name, spec.shape)
            for value, spec in zip(given, self.graph.inputs, strict=True)
        ]
        tested = tensors[self.hypothesis.i_idx]
        others = {
            spec.name: tensor
            for place, (spec, tensor) in enumerate(zip(self.graph.inputs, tensors, strict=True))
            if place != self.hypothesis.i_idx
        }
        if reference is not None:
            reference = self._tensor(reference, "reference", tuple(tested.shape))
        return tested, others, reference

    def _tensor(self, value: Array, name: str, declared: tuple[int | None, ...] | None) -> Tensor:
        """Check one input against the model's declaration, adding the batch axis where it is missing."""
        if not isinstance(value, Tensor | np.ndarray):
            raise InvalidTypeError(
                f"{name} is a {type(value).__name__}; give a numpy array or a torch tensor"
            )
        tensor = torch.as_tensor(value).detach().to(self.device)
        if tensor.is_complex():
            raise InvalidTypeError(f"{name} has dtype {tensor.dtype}; give real numbers")
        tensor = tensor.to(torch.float64)
        if declared is not None and tensor.ndim == len(declared) - 1:
            tensor = tensor[None]
        fits = declared is None or (
            tensor.ndim == len(declared)
            and all(side is None or side == got for side, got in zip(declared, tensor.shape, strict=True))
        )
        if not fits:
            raise InvalidInputError(f"{name} has shape {tuple(tensor.shape)}; the model takes {declared}")
        if tensor.ndim and tensor.shape[0] != 1 and (declared is None or declared[0] in (None, 1)):
            raise InvalidInputError(f"{name} has a batch of {tensor.shape[0]}; test one image at a time")
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(
                f"{name} contains NaN or infinite values; replace or mask them before testing"
            )
        return tensor

    def _programs(self, shape: tuple[int, ...], others: dict[str, Tensor]) -> ScoreMap:
        """Compile the model for this shape; kept for the next image of the same shape."""
        key = (shape, tuple((name, value.cpu().numpy().tobytes()) for name, value in others.items()))
        if self._compiled is None or self._compiled[0] != key:
            output = self.graph.outputs[self.hypothesis.o_idx].name
            program = self.graph.compile(
                {self.tested_name: shape},
                [output],
                constants=others,
                device=self.device,
                seed=self.seed,
                decompose=True,
            )
            self._compiled = (key, build_score_map(program, self.hypothesis, self.tested_name))
        return self._compiled[1]


def _as_mask(mask: Array | None, score: Tensor, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the usable pixels in the shape of the region."""
    region = fit_to_input(score, shape).shape
    if mask is None:
        return np.ones(region, dtype=bool)
    given = torch.as_tensor(mask).detach().cpu()
    if given.is_floating_point() and not bool(((given == 0) | (given == 1)).all()):
        raise InvalidInputError("mask has values other than 0 and 1")
    try:
        usable = fit_to_input(given, shape).numpy().astype(bool)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"mask has shape {tuple(given.shape)}; it must have the score map's shape {tuple(score.shape)}"
        ) from error
    if not usable.any():
        raise InvalidInputError("mask leaves no pixel")
    return np.broadcast_to(usable, region).copy()
