"""Tests of models that take integers: the real value behind them takes their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.graph import Graph, ValueSpec
from selkit.graph.entry import Entry, find_entry
from selkit.inference.inputs import Array, Inputs, read_inputs


def entry_of(graph: Graph, spec: ValueSpec, wanted: Sequence[str], chosen: str | None) -> Entry | None:
    """The real value that is tested in the place of an integer input; ``None`` for a real input.

    Raises
    ------
    InvalidInputError
        If there is none or several, or one is chosen for a real input.
    """
    if spec.dtype is None or spec.dtype.is_floating_point:
        if chosen is not None:
            raise InvalidInputError(f"entry is for integer inputs, but {spec.name!r} takes real numbers")
        return None
    return find_entry(graph, spec.name, wanted, chosen)


def read_behind(
    graph: Graph,
    entry: Entry,
    x: Array | Sequence[Array],
    tested: int,
    *,
    with_reference: bool,
    device: torch.device,
) -> Inputs:
    """Read the inputs of a test, of which the tested one is integers, or the real value behind them.

    Parameters
    ----------
    graph
        The model.
    entry
        Where integers become real numbers.
    x, tested, with_reference, device
        As for :func:`selkit.inference.inputs.read_inputs`.

    Raises
    ------
    InvalidInputError
        If real numbers are given, but the model needs the integers besides.
    """
    given: list[Any] = list(x) if isinstance(x, list | tuple) else [x]
    specs = list(graph.inputs)
    if tested < len(given) and _real(given[tested]):
        if entry.elsewhere or entry.shaped:
            where = ", ".join(entry.elsewhere) or "their shape"
            raise InvalidInputError(
                f"the input {entry.input!r} was given as real numbers, but the model needs the integers "
                f"besides ({where}); give integers"
            )
        shape = specs[tested].shape if entry.how == "cast" else None
        specs[tested] = ValueSpec(entry.value, shape, torch.float64)
        return read_inputs(x, specs, tested, with_reference=with_reference, device=device)
    inputs = read_inputs(x, specs, tested, with_reference=with_reference, device=device)

    def behind(integers: Tensor) -> Tensor:
        return entry.of(graph, integers.cpu().to(torch.int64), inputs.others).to(device, torch.float64)

    needs = bool(entry.elsewhere or entry.shaped)
    return dataclasses.replace(
        inputs,
        tested=behind(inputs.tested),
        others={**inputs.others, entry.input: inputs.tested.cpu().to(torch.int64)}
        if needs
        else inputs.others,
        reference=None if inputs.reference is None else behind(inputs.reference),
    )


def _real(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
