"""Load a model with a hypothesis, and test the region that it points at."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.graph import Graph, Quantization
from selkit.inference.acceptance.build import EventCache
from selkit.inference.acceptance.given import Acceptance, as_acceptance
from selkit.inference.covariance import check_var
from selkit.inference.entry import entry_of, read_behind
from selkit.inference.hypotheses import Hypothesis, ReferenceMeanDiff
from selkit.inference.inputs import Array, Inputs, read_inputs
from selkit.inference.layout import Axes, Layouts, components
from selkit.inference.multiple import inference_batch
from selkit.inference.observation import Selection, select
from selkit.inference.postprocess import PostProcess
from selkit.inference.randomized import RandomizedResult, randomized_inference
from selkit.inference.resizing import Resize, ResizeMode, SelectChannel
from selkit.inference.result import RoiResult
from selkit.inference.score_map import ScoreMap, build_score_map
from selkit.inference.search import Goal, InferenceMode
from selkit.inference.single import Options, check_region
from selkit.inference.table import RoiTable
from selkit.inference.threads import threads, useful
from selkit.inference.truncated import Alternative, check_alternative
from selkit.scores import UncertaintyScore
from selkit.utils.boundary import public
from selkit.utils.checks import given, instance
from selkit.utils.checks import seed as check_seed


@public
def load(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    hypothesis: Hypothesis,
    *,
    var: Any = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    layout: str | tuple[str | None, str | None] | None = None,
    score_map: str | None = None,
    channel: int | None = None,
    resize: ResizeMode | None = None,
    quantization: Quantization = "keep",
    entry: str | None = None,
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
    layout
        Which axis of the tested input is what: "NCHW", "NHWC", "NCL", "NLC", "NCDHW", "NDHWC",
        "channels_first", "channels_last"; letters left out are axes that there are not ("HW", "NHW"). Needed
        only where neither the model's convolutions and poolings nor the sizes tell, as in an error that asks
        for it. A pair says it of the input and of the score map.
    score_map
        Name of the model's value that is the score map, an output or an inner one, instead of ``o_idx``.
    channel
        Which channel of the score map to use; before all steps of ``post_process``.
    resize
        "linear" or "nearest" brings a score map with a stride to the image's size; after ``channel`` and
        before all steps of ``post_process``.
    quantization
        For a quantized model, "ignore" tests the network without the rounding of its activations, whose
        limits stay; rounded activations jump, so that the network as it is ("keep") cannot be tested.
    entry
        For a model that takes integers (bytes, token ids), the real value made of them that is tested in
        their place. The value behind the only embedding or Cast is found by itself; results say which.

    Returns
    -------
    RoiTest

    Raises
    ------
    FileFormatError
        If this is not an ONNX model.
    UnsupportedModelError
        If nodes that the score map needs are not supported; all of them are listed.

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
    return RoiTest(
        Graph.load(model, (), quantization=quantization),
        hypothesis,
        var=var,
        seed=seed,
        device=device,
        layout=layout,
        score_map=score_map,
        channel=channel,
        resize=resize,
        entry=entry,
    )


def _device(device: object) -> torch.device:
    try:
        return torch.device(device)  # type: ignore[call-overload, no-any-return]
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device must be one that torch knows; got {given(device)}") from error


class RoiTest:
    """A model and a hypothesis, ready to test images.

    Parameters
    ----------
    graph
        The model.
    hypothesis
        What is tested.
    var, seed, device, layout, score_map, channel, resize, entry
        See :func:`load`.
    """

    @public
    def __init__(
        self,
        graph: Graph,
        hypothesis: Hypothesis,
        *,
        var: Any = None,
        seed: int | None = None,
        device: str | torch.device = "cpu",
        layout: str | tuple[str | None, str | None] | None = None,
        score_map: str | None = None,
        channel: int | None = None,
        resize: ResizeMode | None = None,
        entry: str | None = None,
    ) -> None:
        instance(graph, "graph", Graph, "a selkit.graph.Graph")
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
        first: list[PostProcess] = [] if channel is None else [SelectChannel(channel)]
        first += [] if resize is None else [Resize(resize)]
        steps = (*first, *hypothesis.steps) if first else None
        self.graph = graph
        self.hypothesis = hypothesis.told(layout=layout, score_map=score_map, post_process=steps)
        needs = () if hypothesis.region is None else hypothesis.region.needs
        wanted = [self._output_name(), *(name for name in needs if name in graph.values)]
        graph.check(wanted)
        self.entry = entry_of(graph, graph.inputs[hypothesis.i_idx], wanted, entry)
        if var is not None:
            check_var(var)
        self.var, self.device = var, _device(device)
        self.seed = None if seed is None else check_seed(seed)
        self._compiled: tuple[object, ScoreMap] | None = None
        self._accepting = EventCache()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the compiled programs, which a copy makes anew."""
        return {**self.__dict__, "_compiled": None, "_accepting": EventCache()}

    @public
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
        accepted_by: UncertaintyScore | Acceptance | None = None,
        embedding: str | None = None,
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
        accepted_by
            The score because of whose threshold this image was not abstained from: without it a p-value
            that is only looked at for accepted images is not valid. A fitted score with a threshold, or
            :class:`selkit.inference.Acceptance`.
        embedding
            Name of the model's value that the score is given, an output or an inner one.

        Returns
        -------
        RoiResult

        Raises
        ------
        InvalidInputError
            If the image, the variance or the mask cannot be used.
        NoHypothesisError
            If the region is empty, or nothing is left to compare it with.
        NotAcceptedError
            If ``accepted_by`` rejects the image.
        NotAvailableError
            If the acceptance by this score cannot be followed along a line, with the reason.
        """
        accepted = as_acceptance(accepted_by, embedding)
        goal = Goal(inference_mode, precision, significance_level)
        check_alternative(alternative)
        selection = self.select(x, mask)
        options = self._options(selection, goal, alternative, null_value, accepted)
        return self._test(selection, selection.roi, var, options)

    @public
    def inference_components(
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
        accepted_by: UncertaintyScore | Acceptance | None = None,
        embedding: str | None = None,
    ) -> list[RoiResult]:
        """Test every connected component of the region on its own.

        Each component is compared as the hypothesis says, without the other components. Neighbours along
        the axes are connected, diagonal ones are not. The p-values condition on the whole region: adjust
        them for their number (:func:`scipy.stats.false_discovery_control`).

        Parameters
        ----------
        x, var, mask, inference_mode, alternative, null_value, precision, significance_level, accepted_by, \
        embedding
            As for :meth:`inference`.

        Returns
        -------
        list of RoiResult
            In the order in which a scan of the region meets the components.

        Raises
        ------
        InvalidInputError, NoHypothesisError
            As for :meth:`inference`.
        """
        accepted = as_acceptance(accepted_by, embedding)
        goal = Goal(inference_mode, precision, significance_level)
        check_alternative(alternative)
        selection = self.select(x, mask)
        options = self._options(selection, goal, alternative, null_value, accepted)
        labels, count = components(selection.roi, selection.tested)
        return [self._test(selection, labels == place, var, options) for place in range(1, count + 1)]

    @public
    def inference_randomized(
        self,
        x: Array,
        var: float | None = None,
        mask: Array | None = None,
        *,
        noise_var: float,
        seed: int,
        alternative: Alternative = "two-sided",
        null_value: float = 0.0,
        accepted_by: UncertaintyScore | Acceptance | None = None,
        embedding: str | None = None,
    ) -> RandomizedResult:
        """Select the region on the image with added noise, and test the image itself.

        Parameters
        ----------
        x, mask, alternative, null_value
            As for :meth:`inference`.
        var
            Noise variance of the image, the same for all pixels and known.
        noise_var
            Variance of the Gaussian noise that is added for the selection; about that of the image keeps
            half of the information for the test.
        seed
            Of the added noise. Fix it before looking at the data, and use it once.
        accepted_by, embedding
            As for :meth:`inference`; it is the image with added noise that was accepted, like its region.

        Returns
        -------
        RandomizedResult

        Raises
        ------
        InvalidInputError
            If a variance is not a positive number.
        NotAvailableError
            If the score map is smooth in the input: the truncation set must be exact.
        """
        return randomized_inference(
            self,
            x,
            var=self.var if var is None else var,
            mask=mask,
            noise_var=noise_var,
            seed=seed,
            alternative=check_alternative(alternative),
            null_value=null_value,
            accepted_by=as_acceptance(accepted_by, embedding),
        )

    @public
    def inference_batch(self, images: Iterable[Any], var: Any = None, **options: Any) -> RoiTable:
        """Test many images, in parallel and with a progress bar.

        Parameters
        ----------
        images
            What :meth:`inference` takes, one for each test.
        var, **options
            As for :func:`selkit.inference.inference_batch`.

        Returns
        -------
        RoiTable
        """
        return inference_batch(self, images, var, **options)

    def _options(
        self,
        selection: Selection,
        goal: Goal,
        alternative: Alternative,
        null_value: float,
        accepted: Acceptance | None,
    ) -> Options:
        """What a test is asked for."""
        event = None if accepted is None else self._accepting.event(accepted, self, selection.inputs)
        return Options(goal, check_alternative(alternative), null_value, event, self.notes)

    @public
    def select(self, x: Array | Sequence[Array], mask: Array | None = None) -> Selection:
        """Return the region that the model selects.

        Parameters
        ----------
        x, mask
            As for :meth:`inference`.
        """
        inputs = self.read(x)
        maps = self._programs(tuple(inputs.tested.shape), inputs.others)
        with threads(useful(maps.observed, 1)):
            return select(maps, self.hypothesis, inputs, mask)

    def read(self, x: Array | Sequence[Array], *, alone: bool = False) -> Inputs:
        """Check what a test is given; integers become the real value that is tested in their place.

        Parameters
        ----------
        x
            As for :meth:`inference`.
        alone
            Whether no reference is expected, whatever the hypothesis.
        """
        specs, tested = self.graph.inputs, self.hypothesis.i_idx
        with_reference = not alone and isinstance(self.hypothesis, ReferenceMeanDiff)
        if self.entry is None:
            return read_inputs(x, specs, tested, with_reference=with_reference, device=self.device)
        return read_behind(
            self.graph, self.entry, x, tested, with_reference=with_reference, device=self.device
        )

    def _test(self, selection: Selection, roi: NDArray[np.bool_], var: Any, options: Options) -> RoiResult:
        return check_region(selection, self.hypothesis, roi, self.var if var is None else var, options)

    @property
    def tested_name(self) -> str:
        """Name of the value that is tested: the model's input, or the real value behind its integers."""
        return self.graph.inputs[self.hypothesis.i_idx].name if self.entry is None else self.entry.value

    @property
    def notes(self) -> tuple[str, ...]:
        """What is computed otherwise than the model's file says, as sentences."""
        return self.graph.notes + (() if self.entry is None else (self.entry.note("tested"),))

    def axes_for(self, shape: tuple[int, ...]) -> tuple[Axes | None, Axes | None]:
        """Return the axes of the tested input and of the model's score map, for an input of this shape."""
        program = self.graph.compile(
            {self.tested_name: shape},
            [self._output_name()],
            live=None if self.entry is None else [self.tested_name],
            device=self.device,
            seed=self.seed,
        )
        layouts = Layouts.of(self.hypothesis.layout, program, self.tested_name)
        layouts.place_map(program, self._output_name())
        return layouts.tested, layouts.of_value(program, self._output_name())

    def _output_name(self) -> str:
        """Name of the model's value that is the score map."""
        name, o_idx = self.hypothesis.score_map, self.hypothesis.o_idx
        if name is None:
            return self.graph.outputs[o_idx].name
        known = [output for node in self.graph.nodes for output in node.outputs if output]
        if name not in known:
            near = difflib.get_close_matches(name, known, 5, 0.3) or known[-5:]
            raise InvalidInputError(
                f"score_map is {name!r}, which is no value that the model computes; did you mean one of "
                f"{', '.join(near)}?"
            )
        return name

    def _output_dtype(self) -> torch.dtype | None:
        """Number type of the score map outside selkit; an inner value mostly has that of the input."""
        if self.hypothesis.score_map is None:
            return self.graph.outputs[self.hypothesis.o_idx].dtype
        declared = {spec.name: spec.dtype for spec in self.graph.outputs}
        return declared.get(self.hypothesis.score_map, self.graph.inputs[self.hypothesis.i_idx].dtype)

    def _programs(self, shape: tuple[int, ...], others: dict[str, torch.Tensor]) -> ScoreMap:
        """Compile the model for this shape; kept for the next image of the same shape."""
        key = (shape, tuple((name, value.cpu().numpy().tobytes()) for name, value in others.items()))
        if self._compiled is None or self._compiled[0] != key:
            output = self._output_name()
            needs = () if self.hypothesis.region is None else self.hypothesis.region.needs
            program = self.graph.compile(
                {self.tested_name: shape},
                [output, *needs],
                live=[self.tested_name],
                constants=others,
                device=self.device,
                seed=self.seed,
                decompose=True,
            )
            self._compiled = (
                key,
                build_score_map(program, self.hypothesis, self.tested_name, self._output_dtype()),
            )
        return self._compiled[1]
