"""The score map and the region of interest of a test, as ONNX nodes, each sample of a batch on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from selkit.bundle.emitter import Emitter
from selkit.bundle.source import inputs_of
from selkit.errors import InvalidInputError, InvalidTypeError, NotAvailableError
from selkit.graph.program import Program
from selkit.inference.hypotheses import Hypothesis
from selkit.inference.layout import Axes, Layouts, axes_by_size, channels_first, check_layout, read_layout
from selkit.inference.postprocess import Builder, channels_to_front
from selkit.inference.regions import ArgMax, Region, TopK
from selkit.inference.roi import RoiTest


class NodeBuilder(Builder):
    """What steps of post-processing append to, writing nodes of a model instead of a program's.

    A program is made for one sample; here the first axis is a batch of any size, and what would reduce or
    reshape across it is done for each sample.
    """

    def __init__(self, g: Emitter, dtype: torch.dtype, tested: Axes | None, mapped: Axes | None) -> None:
        self.g, self.dtype = g, dtype
        self.tested, self.mapped = tested, mapped
        self.inputs: set[str] = set()

    @property
    def program(self) -> Program:  # type: ignore[override]
        """Not here: there is no program.

        Raises
        ------
        NotAvailableError
            Always.
        """
        raise NotAvailableError(
            "a step of post_process uses g.program, which a bundle does not have; use g.add, g.shape and "
            "g.constant, or give the step a method to_onnx(g, score, x)"
        )

    def add(self, op_type: str, *inputs: str | Tensor, **attributes: object) -> str:
        """Append an ONNX operator."""
        values = [value if isinstance(value, str) else self._number(value) for value in inputs]
        if op_type.startswith("Reduce"):
            return self._reduce(op_type, values, attributes)
        if op_type == "Resize" and len(values) > 3 and not isinstance(values[3], str):
            batch = self.g.op("Slice", self.g.op("Shape", values[0]), *(np.asarray([k]) for k in (0, 1, 0)))
            values[3] = self.g.op("Concat", batch, np.asarray(values[3][1:]), axis=0)
        if op_type == "Reshape" and not isinstance(values[1], str):
            values[1] = self._target(values[1])
        return self.g.op(op_type, *values, **attributes)

    def sizes(self, name: str) -> tuple[int | None, ...]:
        """Return the ONNX shape of a value for one sample, as far as it is fixed."""
        found = self.g.shape(name)
        if not found:
            raise NotAvailableError(
                f"the map {name!r} has no shape as far as the model says; make it an output with a "
                "declared one"
            )
        return (1 if found[0] is None else found[0], *found[1:])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the ONNX shape of a value for one sample."""
        sizes = self.sizes(name)
        if None in sizes:
            raise NotAvailableError(
                f"the map {name!r} has shape {sizes} as far as the model says; a bundle with roi= needs "
                "fixed "
                "sizes, except that of the batch: export the model with them, or set them with "
                "onnx.tools.update_model_dims"
            )
        return tuple(int(size) for size in sizes if size is not None)

    def known_axes(self, name: str) -> Axes | None:
        """Axes of the tested input, or those of the score map, which steps keep."""
        found = self.tested if name in self.inputs else self.mapped
        return found if found is not None and found.rank == len(self.sizes(name)) else None

    def permute(self, perm: tuple[int, ...]) -> None:
        """Note that the score map's axes have been put into another order."""
        if self.mapped is not None:
            channel = None if self.mapped.channel is None else perm.index(self.mapped.channel)
            space = tuple(place for place, axis in enumerate(perm) if axis in self.mapped.space)
            self.mapped = Axes(len(perm), channel, space)

    def constant(self, values: object) -> Tensor:
        """Return numbers as a tensor of the map's dtype."""
        return torch.as_tensor(values, dtype=self.dtype)

    def _number(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value

    def _reduce(self, op_type: str, values: list[Any], attributes: dict[str, object]) -> str:
        given = values[1] if len(values) > 1 else attributes.get("axes")
        kept = bool(attributes.get("keepdims", 1))
        rank = len(self.sizes(values[0]))
        axes = list(range(rank)) if given is None else [int(axis) % rank for axis in np.asarray(given)]
        if 0 in axes and not kept:
            raise NotAvailableError(
                f"a step of post_process has {op_type} with keepdims=0 over the first axis, which is the "
                "batch "
                "here; keep the axes"
            )
        return self.g.reduce(op_type, values[0], [axis for axis in axes if axis], keepdims=kept)

    def _target(self, sizes: Tensor) -> Tensor:
        if int(sizes[0]) == 1:
            return torch.cat([torch.zeros_like(sizes[:1]), sizes[1:]])  # 0 keeps the batch
        if int(sizes[0]) != 0:
            raise NotAvailableError(
                f"a step of post_process reshapes to {sizes.tolist()}, which does not keep the first axis, "
                "the "
                "batch; start with 1"
            )
        return sizes


def emit_region(g: Emitter, roi: RoiTest | Hypothesis) -> tuple[str, str]:
    """Append score map and region, and return their names.

    Parameters
    ----------
    g
        Where to append; the model's own outputs come first.
    roi
        What is tested about the model.

    Raises
    ------
    InvalidTypeError, InvalidInputError
        If it is no test, or one of another model.
    NotAvailableError
        If a rule or a step cannot be written as nodes.
    """
    hypothesis = roi.hypothesis if isinstance(roi, RoiTest) else roi
    if not isinstance(hypothesis, Hypothesis):
        raise InvalidTypeError(
            f"roi is a {type(roi).__name__}; give what selkit.load returned, or a hypothesis such as "
            "BackMeanDiff(threshold=0.5)"
        )
    inputs, outputs = [value.name for value in inputs_of(g.model)], [v.name for v in g.model.graph.output]
    _check_same(roi, hypothesis, inputs, outputs)
    x, score = inputs[hypothesis.i_idx], hypothesis.score_map or outputs[hypothesis.o_idx]
    wide = g.kind(score) == TensorProto.DOUBLE
    dtype = torch.float64 if wide else torch.float32
    builder = NodeBuilder(g, dtype, *_axes(g, roi, hypothesis, x, score))
    builder.inputs.add(x)
    shape = builder.sizes(x)
    tested = x
    if g.kind(score) not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        score = g.cast(score, np.float32)
    if g.kind(x) != g.kind(score):
        tested = g.cast(x, np.float64 if wide else np.float32)
        builder.inputs.add(tested)
    for step in hypothesis.steps:
        own = getattr(step, "to_onnx", None)
        score = own(g, score, tested) if callable(own) else step.build(builder, score, tested)
    if hypothesis.region is not None:
        given = score
        if builder.mapped is not None and builder.mapped.channel is not None:
            given = channels_to_front(builder, score, builder.mapped)
            builder.mapped = channels_first(len(builder.mapped.space) + 2)
        return score, _fitted(builder, _selected(builder, hypothesis.region, given), shape)
    score, margin = _thresholded(builder, score, hypothesis)
    return score, _fitted(builder, margin, shape)


def _axes(
    g: Emitter, roi: RoiTest | Hypothesis, hypothesis: Hypothesis, x: str, score: str
) -> tuple[Axes | None, Axes | None]:
    """Axes of the tested input and of the score map, where they are known."""
    shape = tuple(1 if place == 0 else size for place, size in enumerate(g.shape(x) or ()))
    if isinstance(roi, RoiTest) and None not in shape and len(inputs_of(g.model)) == 1:
        return roi.axes_for(tuple(size or 1 for size in shape))
    own, other = check_layout(hypothesis.layout)
    tested = axes_by_size(shape) if own is None else read_layout(own, shape, x)  # type: ignore[arg-type]
    found = tuple(1 if place == 0 else size for place, size in enumerate(g.shape(score) or ()))
    if other is not None:
        return tested, read_layout(other, found, "the score map")  # type: ignore[arg-type]
    layouts = Layouts(x, shape, tested, said=own is not None)  # type: ignore[arg-type]
    return tested, layouts.by_shape(found)  # type: ignore[arg-type]


def _check_same(
    roi: RoiTest | Hypothesis, hypothesis: Hypothesis, inputs: list[str], outputs: list[str]
) -> None:
    if isinstance(roi, RoiTest):
        own = [spec.name for spec in roi.graph.inputs], [spec.name for spec in roi.graph.outputs]
        if own != (inputs, outputs):
            raise InvalidInputError(
                f"roi tests a model with inputs {own[0]} and outputs {own[1]}, but this model has {inputs} "
                "and "
                f"{outputs}; load the test from the same model"
            )
    for name, index, values in (("i_idx", hypothesis.i_idx, inputs), ("o_idx", hypothesis.o_idx, outputs)):
        if not 0 <= index < len(values):
            raise InvalidInputError(f"roi has {name}={index}; the model has {values}")


def _thresholded(builder: NodeBuilder, score: str, hypothesis: Hypothesis) -> tuple[str, str]:
    """The score map, scaled where that is asked for, and where it is above the threshold."""
    g, limit = builder.g, float(hypothesis.threshold or 0.0)
    exact = g.cast(score, np.float64)
    if not hypothesis.use_norm:
        return score, g.op("Greater", exact, g.number(limit))
    axes = list(range(1, len(builder.sizes(score))))
    low, high = (g.reduce(op, exact, axes, keepdims=True) for op in ("ReduceMin", "ReduceMax"))
    level = g.op("Add", g.op("Mul", low, g.number(1.0 - limit)), g.op("Mul", high, g.number(limit)))
    scaled = g.op("Div", g.op("Sub", exact, low), g.op("Sub", high, low))
    kept = np.float64 if builder.dtype is torch.float64 else np.float32
    return g.cast(scaled, kept), g.op("Greater", exact, level)


def _selected(builder: NodeBuilder, region: Region, score: str) -> str:
    """What a rule other than a threshold selects."""
    g = builder.g
    own = getattr(region, "to_onnx", None)
    if callable(own):
        return str(own(g, score))
    shape = builder.shape(score)
    if isinstance(region, ArgMax):
        if len(shape) < 3 or not 0 <= region.index < shape[1] or shape[1] < 2:
            raise InvalidInputError(f"roi has {region}, but the score map has shape {shape}")
        rest = np.asarray([place for place in range(shape[1]) if place != region.index], dtype=np.int64)
        mine = g.op("Gather", score, np.asarray([region.index], dtype=np.int64), axis=1)
        others = g.reduce("ReduceMax", g.op("Gather", score, rest, axis=1), [1], keepdims=True)
        return g.op("Greater", mine, others)
    if isinstance(region, TopK):
        count = int(np.prod(shape[1:]))
        if not 0 < region.k < count:
            raise InvalidInputError(f"roi has {region}; the score map of shape {shape} has {count} pixels")
        flat = g.op("Flatten", score, axis=1)
        _, places = g.top(flat, region.k, largest=True)
        # a comparison with itself is false everywhere: no pixel, in the map's shape
        none = g.cast(g.op("Less", flat, flat), np.int32)
        ones = g.cast(g.op("GreaterOrEqual", places, np.asarray(0, dtype=np.int64)), np.int32)
        marked = g.cast(g.op("ScatterElements", none, places, ones, axis=1), np.bool_)
        return g.op("Reshape", marked, np.asarray([0, *shape[1:]], dtype=np.int64))
    raise NotAvailableError(
        f"roi has the rule {type(region).__name__}, whose select() is Python code; give it a method "
        "to_onnx(g, score) that appends operators and returns the name of a boolean map"
    )


def _fitted(builder: NodeBuilder, chosen: str, shape: tuple[int | None, ...]) -> str:
    """The region in the rank of the input, as :func:`selkit.inference.score_map.fit_to_input` gives it."""
    own, tested = builder.mapped, builder.tested
    found = builder.sizes(chosen)
    if own is not None and tested is not None and own.rank == tested.rank == len(found):
        inverse = sorted(range(tested.rank), key=tested.first.__getitem__)
        perm = tuple(own.first[place] for place in inverse)
        if perm != tuple(range(own.rank)) and own.channel is not None and tested.channel is not None:
            chosen = builder.g.op("Transpose", chosen, perm=list(perm))
            found = builder.sizes(chosen)
    channel = 1 if tested is None or tested.channel is None else tested.channel
    if None in (*found, *shape) and len(found) == len(shape):
        pairs = list(zip(found, shape, strict=True))[1:]
        if pairs[channel - 1][0] == 1:  # one map for all channels
            pairs[channel - 1] = (1, 1)
        if all(None in pair or pair[0] == pair[1] for pair in pairs):
            return chosen

    def squeezed(sides: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(side for side in sides[1:] if side != 1)

    if found[1:] == shape[1:]:
        return chosen
    if squeezed(found) == squeezed(shape):
        target = shape[1:]
    elif len(shape) > 2 and squeezed(found) == squeezed((*shape[:channel], 1, *shape[channel + 1 :])):
        target = (*shape[1:channel], 1, *shape[channel + 1 :])
    else:
        raise InvalidInputError(
            f"roi has a score map of shape {found}, which matches neither the input's shape {shape} nor its "
            "spatial part; choose another output with o_idx, or bring it to the input's size with resize="
        )
    return builder.g.op("Reshape", chosen, np.asarray([0, *target], dtype=np.int64))
