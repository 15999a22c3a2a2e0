"""Steps between a model's output and the score map whose threshold gives the region.

A step only says which operators it appends to the program; following the line, bounds and settling are
those of the operators. Your own step is a subclass of :class:`PostProcess`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.graph.ops.base import find, versions
from selkit.graph.program import Program
from selkit.inference.layout import Axes, Layouts, axes_by_size, unknown
from selkit.utils.boundary import checked_fields
from selkit.utils.checks import number


class Builder:
    """Appends operators to a program.

    Attributes
    ----------
    program
        The program so far.
    layouts
        What is known of the axes of its values.
    """

    def __init__(self, program: Program, layouts: Layouts | None = None) -> None:
        self.program, self.layouts = program, layouts

    def add(self, op_type: str, *inputs: str | Tensor, **attributes: object) -> str:
        """Append an ONNX operator of the newest supported version, and return its output's name.

        Parameters
        ----------
        op_type
            Name of the ONNX operator.
        *inputs
            Names of values, or tensors of ONNX shape for constants; ``""`` leaves an optional input out.
        **attributes
            The operator's ONNX attributes.
        """
        registration = find(op_type, versions(op_type)[-1]) if versions(op_type) else None
        if registration is None:
            raise InvalidInputError(f"op_type is {op_type!r}, which is not a supported ONNX operator")
        self.program, name = self.program.extend(registration.operator(**attributes), inputs)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the ONNX shape of a value."""
        return self.program.shapes[name]

    def axes(self, name: str, why: str) -> Axes:
        """Return which axes of a value hold channels and which are space.

        Parameters
        ----------
        name
            Of the value.
        why
            Who needs to know them, for the error.

        Raises
        ------
        InvalidInputError
            If neither ``layout=`` nor the model nor the sizes tell.
        """
        found = self.known_axes(name)
        if found is None:
            raise unknown(why, "the score map", self.shape(name))
        return found

    def permute(self, perm: tuple[int, ...]) -> None:
        """Note that the score map's axes have been put into another order."""

    def known_axes(self, name: str) -> Axes | None:
        """Return which axes of a value hold channels and which are space, or ``None``."""
        if self.layouts is None:
            return axes_by_size(self.shape(name))
        return self.layouts.of_value(self.program, name)

    def constant(self, values: object) -> Tensor:
        """Return numbers as a tensor of the program's dtype."""
        return torch.as_tensor(values, dtype=self.program.dtype, device=self.program.device)


class PostProcess(ABC):
    """One step of post-processing.

    Examples
    --------
    A step that keeps only how far a score exceeds one:

    >>> class Excess(PostProcess):
    ...     def build(self, g, score, x):
    ...         return g.add("Relu", g.add("Sub", score, g.constant(1.0)))
    """

    @abstractmethod
    def build(self, g: Builder, score: str, x: str) -> str:
        """Append the step.

        Parameters
        ----------
        g
            Appends operators.
        score
            Name of the score map so far.
        x
            Name of the model's input that is tested.

        Returns
        -------
        str
            Name of the new score map.
        """


@dataclass(frozen=True)
class InputDiff(PostProcess):
    """The output minus the input: the reconstruction error of an autoencoder, signed."""

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append ``output - input``."""
        if math.prod(g.shape(score)) != math.prod(g.shape(x)):
            raise InvalidInputError(
                f"post_process has InputDiff, but the score map of shape {g.shape(score)} cannot be compared "
                f"with the input of shape {g.shape(x)}; give o_idx of an output that reconstructs the input"
            )
        return g.add("Sub", as_input(g, score, x), x)


def as_input(g: Builder, score: str, x: str) -> str:
    """Bring a map with as many elements as the input into its shape."""
    target = g.shape(x)
    own, other = g.known_axes(score), g.known_axes(x)
    if own is not None and other is not None and own.sizes(g.shape(score)) == other.sizes(target):
        same = own.channels(g.shape(score)) == other.channels(target) and own.rank == other.rank
        if same and own.first != other.first:
            inverse = sorted(range(other.rank), key=other.first.__getitem__)
            score = g.add("Transpose", score, perm=tuple(own.first[place] for place in inverse))
    return score if g.shape(score) == target else g.add("Reshape", score, torch.tensor(target))


@dataclass(frozen=True)
class Abs(PostProcess):
    """The absolute value."""

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append ``|score|``."""
        return g.add("Abs", score)


@dataclass(frozen=True)
class Neg(PostProcess):
    """The negative, for maps in which low values are striking."""

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append ``-score``."""
        return g.add("Neg", score)


def _filter(g: Builder, score: str, profile: Tensor, step: str) -> str:
    """Convolve every channel with the outer product of a profile, zeros outside."""
    axes = g.axes(score, f"post_process has {step}, which")
    rank, size = len(axes.space), len(profile)
    if not rank:
        raise InvalidInputError(
            f"post_process has {step}, but the score map of shape {g.shape(score)} has no axes of space"
        )
    moved = channels_to_front(g, score, axes)
    channels = g.shape(moved)[1]
    kernel = profile
    for _ in range(rank - 1):
        kernel = kernel[..., None] * profile
    weight = (kernel / kernel.sum()).expand(channels, 1, *(size,) * rank).contiguous()
    pads = (size // 2,) * rank + ((size - 1) // 2,) * rank
    made = g.add("Conv", moved, g.constant(weight), pads=pads, group=channels, kernel_shape=(size,) * rank)
    return channels_back(g, made, axes, g.shape(score))


def channels_to_front(g: Builder, score: str, axes: Axes) -> str:
    """Bring a map into the shape (1, channels, *space)."""
    if axes.usual:
        return score
    if axes.first != tuple(range(axes.rank)):
        score = g.add("Transpose", score, perm=axes.first)
    shape = g.shape(score)
    space = shape[len(shape) - len(axes.space) :]
    target = (1, 1 if axes.channel is None else shape[-len(axes.space) - 1], *space)
    return score if shape == target else g.add("Reshape", score, torch.tensor(target))


def channels_back(g: Builder, made: str, axes: Axes, shape: tuple[int, ...]) -> str:
    """Undo :func:`channels_to_front`; ``shape`` is what the map had before, its sizes of space apart."""
    if axes.usual:
        return made
    found = g.shape(made)
    sizes = dict(zip(axes.space, found[2:], strict=True))
    if axes.channel is not None:
        sizes[axes.channel] = found[1]
    target = tuple(sizes.get(axis, shape[axis]) for axis in range(axes.rank))
    moved = tuple(target[axis] for axis in axes.first)
    if moved != found:
        made = g.add("Reshape", made, torch.tensor(moved))
    inverse = tuple(sorted(range(axes.rank), key=axes.first.__getitem__))
    return made if inverse == tuple(range(axes.rank)) else g.add("Transpose", made, perm=inverse)


def _check_kernel(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise InvalidInputError(f"kernel_size is {size}; it must be odd and positive")


@checked_fields
@dataclass(frozen=True)
class AverageFilter(PostProcess):
    """The mean over a window around each pixel, zeros outside the map.

    Attributes
    ----------
    kernel_size
        Side of the window, odd.
    """

    kernel_size: int = 3

    def __post_init__(self) -> None:
        _check_kernel(self.kernel_size)

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append a convolution with equal weights."""
        return _filter(g, score, torch.ones(self.kernel_size, dtype=torch.float64), "AverageFilter")


@checked_fields
@dataclass(frozen=True)
class GaussianFilter(PostProcess):
    """A Gaussian-weighted mean over a window around each pixel, zeros outside the map.

    Attributes
    ----------
    kernel_size
        Side of the window, odd.
    sigma
        Standard deviation in pixels.
    """

    kernel_size: int = 3
    sigma: float = 1.0

    def __post_init__(self) -> None:
        _check_kernel(self.kernel_size)
        if not number(self.sigma, "sigma") > 0:
            raise InvalidInputError(f"sigma is {self.sigma}; it must be positive")
        number(
            self.sigma, "sigma", 1e-3, 1e6
        )  # outside, weights are those of a single pixel, or all the same

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append a convolution with Gaussian weights."""
        offset = torch.arange(self.kernel_size, dtype=torch.float64) - self.kernel_size // 2
        return _filter(g, score, torch.exp(-(offset**2) / (2 * self.sigma**2)), "GaussianFilter")


@dataclass(frozen=True)
class L1Norm(PostProcess):
    """The sum of absolute values over channels, the same for every channel."""

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append ``sum |score|`` over the channel axis."""
        shape = g.shape(score)
        axes = g.axes(score, "post_process has L1Norm, which")
        if axes.channel is None:
            return g.add("Abs", score)
        total = g.add("ReduceSum", g.add("Abs", score), torch.tensor([axes.channel]), keepdims=1)
        return g.add("Expand", total, torch.tensor(shape)) if axes.channels(shape) > 1 else total
