"""Explanations of models that take integers: the real value behind them takes their place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkit.errors import InvalidInputError, NotAvailableError
from selkit.graph.entry import Entry, find_entry
from selkit.graph.model import Graph, ValueSpec
from selkit.utils.arrays import as_tensor


@dataclass
class Behind:
    """The real value behind an integer input.

    Attributes
    ----------
    graph
        The model.
    spec
        Its input.
    entry
        Where integers become real numbers.
    shape
        Of one sample's integers, once references have been read.
    """

    graph: Graph
    spec: ValueSpec
    entry: Entry
    shape: tuple[int, ...] | None = None

    def references(self, given: object) -> object:
        """References as the real value: made of integers, or as they are."""
        integers = _integers(given, "references")
        if integers is None:
            return given
        self.shape = tuple(integers.shape[1:])
        return self._values(integers, "references")

    def samples(self, x: object) -> object:
        """What is to be explained as the real value: made of integers, or as it is."""
        integers = _integers(x, "x")
        return x if integers is None else self._values(integers, "x")

    def _values(self, integers: Tensor, name: str) -> NDArray[np.float32]:
        declared = self.spec.shape
        fits = declared is None or (
            len(declared) == integers.ndim
            and all(a in (None, b) for a, b in zip(declared[1:], integers.shape[1:], strict=True))
        )
        if not fits or not integers.ndim or not len(integers):
            raise InvalidInputError(f"{name} has shape {tuple(integers.shape)}; the model takes {declared}")
        values: NDArray[np.float32] = self.entry.of(self.graph, integers).float().numpy()
        return values

    @property
    def held(self) -> dict[str, Tensor]:
        """Integers of which only the shape counts.

        Raises
        ------
        InvalidInputError
            If that shape is not known, because references were given as real numbers.
        """
        if not self.entry.shaped:
            return {}
        if self.shape is None:
            raise InvalidInputError(
                f"references are real numbers, but the model needs the shape of {self.spec.name!r}; give "
                "integers"
            )
        return {self.spec.name: torch.zeros((1, *self.shape), dtype=torch.int64)}


def behind_of(graph: Graph, output: str, names: object, fixed: Collection[str]) -> Behind | None:
    """Find the real value that is explained in the place of a model's only input, integers.

    Parameters
    ----------
    graph
        The model.
    output
        Name of the explained output.
    names
        The inputs to explain, as the user says.
    fixed
        Inputs whose values are given.

    Returns
    -------
    Behind or None
        ``None`` if the model takes real numbers or several inputs, or something else is named.

    Raises
    ------
    InvalidInputError
        If there is no such value, or several and none is named.
    NotAvailableError
        If the output depends on the integers in another way besides.
    """
    free = [spec for spec in graph.inputs if spec.name not in fixed]
    if len(free) != 1 or free[0].dtype is None or free[0].dtype.is_floating_point:
        return None
    chosen = [names] if isinstance(names, str) else names
    if chosen is None:
        entry = find_entry(graph, free[0].name, [output], argument="input")
    elif isinstance(chosen, list | tuple) and len(chosen) == 1 and isinstance(chosen[0], str):
        if chosen[0] not in graph.values or chosen[0] == free[0].name:
            return None
        try:
            entry = find_entry(graph, free[0].name, [output], chosen[0], argument="input")
        except InvalidInputError:
            return None  # a value farther behind: x is that value
    else:
        return None
    if entry.elsewhere:
        raise NotAvailableError(
            f"the output {output!r} depends on the integers {free[0].name!r} not only through "
            f"{entry.value!r} ({', '.join(entry.elsewhere)}), so attributions would not add up; name a value "
            "behind all of them with input=, or give masks as an input of their own"
        )
    return Behind(graph, free[0], entry)


def _integers(value: Any, name: str) -> Tensor | None:
    """Integers as a tensor; ``None`` for anything else, which others check."""
    if not isinstance(value, np.ndarray | Tensor | list | tuple) or not len(value):
        return None
    try:
        found = as_tensor(value, name)
    except (ValueError, TypeError):
        return None
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        return None
    return found.detach().cpu().to(torch.int64)
