"""Where an explanation's graph begins and ends: inputs become one batch, its attributions one for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from selkit.explain.facts import Given

Constants = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Ends:
    """The nodes before and after the scan over samples.

    Attributes
    ----------
    parts
        What is explained.
    real
        ONNX' number for the type in which all is computed.
    rest
        Shape of a sample within the scan: of the only input, or of a row of all.
    lead
        Names of the axes before it: of targets, if there are several, and of samples.
    """

    parts: tuple[Given, ...]
    real: int
    rest: tuple[int, ...]
    lead: tuple[str, ...]

    @property
    def rows(self) -> str:
        """The batch that is scanned."""
        return self.parts[0].name if len(self.parts) == 1 else "selkit.rows.in"

    @property
    def whole(self) -> str:
        """The attributions of that batch."""
        return "attributions" if len(self.parts) == 1 else "selkit.rows.out"

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The graph's inputs that are explained."""
        return [value_info(part.name, _type(part.dtype), ("batch", *part.shape)) for part in self.parts]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """The graph's outputs that are attributions."""
        if len(self.parts) == 1:
            return [value_info(self.whole, self.real, (*self.lead, *self.rest))]
        return [
            value_info(f"attributions.{part.name}", self.real, (*self.lead, *part.shape))
            for part in self.parts
        ]

    def before(self, constants: Constants) -> list[onnx.NodeProto]:
        """Join several inputs to rows."""
        if len(self.parts) == 1:
            return []
        nodes, flats = [], []
        for index, part in enumerate(self.parts):
            source = part.name
            if _type(part.dtype) != self.real:
                source = f"selkit.wide.{index}"
                nodes.append(helper.make_node("Cast", [part.name], [source], to=self.real))
            size, flat = f"selkit.size.{index}", f"selkit.flat.{index}"
            constants[size] = np.array([-1, math.prod(part.shape)], np.int64)
            nodes.append(helper.make_node("Reshape", [source, size], [flat]))
            flats.append(flat)
        return [*nodes, helper.make_node("Concat", flats, [self.rows], axis=1)]

    def after(self, constants: Constants) -> list[onnx.NodeProto]:
        """Cut rows of attributions into one array for each input."""
        if len(self.parts) == 1:
            return []
        sizes = [math.prod(part.shape) for part in self.parts]
        constants["selkit.sizes"] = np.array(sizes, np.int64)
        cut = [f"selkit.cut.{index}" for index in range(len(sizes))]
        nodes = [helper.make_node("Split", [self.whole, "selkit.sizes"], cut, axis=len(self.lead))]
        for index, part in enumerate(self.parts):
            shape = f"selkit.shape.{index}"
            constants[shape] = np.array([0] * len(self.lead) + list(part.shape), np.int64)
            nodes.append(helper.make_node("Reshape", [cut[index], shape], [f"attributions.{part.name}"]))
        return nodes


def value_info(name: str, kind: int, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    """Declare a value."""
    return helper.make_tensor_value_info(name, kind, shape)


def _type(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def split(arrays: Sequence[Any], parts: Sequence[Given]) -> Any:
    """The only array, or one for each input by its name."""
    return arrays[0] if len(parts) == 1 else {p.name: a for p, a in zip(parts, arrays, strict=True)}
