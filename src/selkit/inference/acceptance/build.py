"""From an acceptance and a model to the event, compiled for one shape of the input."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selkit.errors import InvalidInputError, NotAvailableError
from selkit.graph import Graph
from selkit.inference.acceptance.event import AcceptanceEvent
from selkit.inference.acceptance.given import Acceptance
from selkit.inference.acceptance.sets import score_set
from selkit.inference.score_map import FOLLOWED
from selkit.scores import ClassWiseScore, UncertaintyScore

if TYPE_CHECKING:
    from selkit.inference.inputs import Inputs
    from selkit.inference.roi import RoiTest


class EventCache:
    """Keeps the event of the last test: the next image mostly has the same."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[object, ...], Acceptance, AcceptanceEvent] | None = None

    def event(self, acceptance: Acceptance, test: RoiTest, inputs: Inputs) -> AcceptanceEvent:
        """Return the event of an acceptance, for inputs of this shape."""
        shape = tuple(inputs.tested.shape)
        others = tuple((name, value.cpu().numpy().tobytes()) for name, value in inputs.others.items())
        # What is told apart by its address is kept alive with it, so that nothing else can have it.
        key: tuple[object, ...] = (id(acceptance.score), id(acceptance.model), acceptance.layer)
        key += (acceptance.pool, acceptance.prediction)
        key += (_state(acceptance.score), shape, others)
        if self._kept is None or self._kept[0] != key:
            event = build_event(
                acceptance,
                test.graph,
                test.tested_name,
                shape,
                inputs.others,
                device=test.device,
                seed=test.seed,
            )
            self._kept = (key, acceptance, event)
        return self._kept[2].at(acceptance)


def _state(score: UncertaintyScore) -> tuple[object, ...]:
    """What tells one state of a score from another: fitting and calibrating make new tensors."""
    tensors = [score.threshold, *score.buffers()]
    return tuple(
        (id(tensor), 0 if tensor is None or tensor.is_inference() else tensor._version) for tensor in tensors
    )


def build_event(
    acceptance: Acceptance,
    graph: Graph,
    tested: str,
    shape: tuple[int, ...],
    others: Mapping[str, Tensor],
    *,
    device: torch.device,
    seed: int | None,
) -> AcceptanceEvent:
    """Compile the part of a model that an acceptance depends on.

    Parameters
    ----------
    acceptance
        What decides.
    graph
        The model whose region is tested.
    tested, shape
        Name and ONNX shape of its tested input.
    others
        Its other inputs.
    device, seed
        As in :func:`selkit.load`.

    Raises
    ------
    InvalidInputError
        If there is no such value, or it does not depend on the input.
    NotAvailableError
        If the embedding is not piecewise linear in the input, or the score cannot be followed.
    """
    score_set(acceptance.score)  # what is not available is not worth compiling
    if acceptance.model is not None:
        given = acceptance.model
        graph = given if isinstance(given, Graph) else Graph.load(given, ())
        if len(graph.inputs) != 1:
            taken = ", ".join(spec.name for spec in graph.inputs)
            raise InvalidInputError(
                f"model of accepted_by takes {len(graph.inputs)} inputs ({taken}); it must take the tested "
                "image alone"
            )
        tested, others = graph.inputs[0].name, {}
    names = [_find(graph, acceptance.layer, "embedding")]
    if isinstance(acceptance.score, ClassWiseScore) and acceptance.prediction is not None:
        names.append(_find(graph, acceptance.prediction, "prediction"))
    program = graph.compile(
        {tested: shape},
        names,
        live=[tested],
        constants=dict(others),
        device=device,
        seed=seed,
        decompose=True,
    )
    computed = {*program.inputs, *(name for step in program.steps for name in step.outputs)}
    for name in names:
        if name not in computed:
            raise InvalidInputError(f"the value {name!r} does not depend on the tested input")
    bad = [step for step in program.steps if step.kind not in FOLLOWED]
    if bad:
        listed = ", ".join(sorted({f"{type(step.operator).__name__} ({step.kind.value})" for step in bad}))
        raise NotAvailableError(
            f"accepted_by is not available for the value {names[0]!r}, because it is not piecewise linear in "
            f"the input: {listed}. Choose a value before these nodes: a score of logits takes what comes "
            "before the softmax"
        )
    return AcceptanceEvent(acceptance, program)


def _find(graph: Graph, name: str | None, argument: str) -> str:
    """The value of a model that a name means."""
    outputs = [spec.name for spec in graph.outputs]
    if name is None:
        if len(outputs) == 1:
            return outputs[0]
        raise InvalidInputError(
            f"{argument}= is missing: the model has the outputs {', '.join(outputs)}; say which value "
            "(an output or an inner one) the score of accepted_by is given"
        )
    known = [*(spec.name for spec in graph.inputs), *(n for node in graph.nodes for n in node.outputs if n)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
        raise InvalidInputError(
            f"{argument}={name!r} is no value of the model; near it are {close}, its outputs are {outputs}"
        )
    return name
