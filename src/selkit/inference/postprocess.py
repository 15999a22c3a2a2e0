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
from selkit.utils.boundary import checked_fields
from selkit.utils.checks import number


class Builder:
    """Appends operators to a program.

    Attributes
    ----------
    program
        The program so far.
    """

    def __init__(self, program: Program) -> None:
        self.program = program

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
        return g.add("Sub", score, x)


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


def _filter(g: Builder, score: str, profile: Tensor) -> str:
    """Convolve every channel with the outer product of a profile, zeros outside."""
    shape = g.shape(score)
    if len(shape) < 3:
        raise InvalidInputError(
            f"post_process has a filter, but the score map has shape {shape}; "
            "it needs (1, channels, *spatial)"
        )
    rank, channels, size = len(shape) - 2, shape[1], len(profile)
    kernel = profile
    for _ in range(rank - 1):
        kernel = kernel[..., None] * profile
    weight = (kernel / kernel.sum()).expand(channels, 1, *(size,) * rank).contiguous()
    pads = (size // 2,) * rank + ((size - 1) // 2,) * rank
    return g.add("Conv", score, g.constant(weight), pads=pads, group=channels, kernel_shape=(size,) * rank)


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
        return _filter(g, score, torch.ones(self.kernel_size, dtype=torch.float64))


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
        return _filter(g, score, torch.exp(-(offset**2) / (2 * self.sigma**2)))


@dataclass(frozen=True)
class L1Norm(PostProcess):
    """The sum of absolute values over channels, the same for every channel."""

    def build(self, g: Builder, score: str, x: str) -> str:
        """Append ``sum |score|`` over the channel axis."""
        shape = g.shape(score)
        if len(shape) < 3:
            raise InvalidInputError(
                f"post_process has L1Norm, but the score map has shape {shape}; "
                "it needs (1, channels, *spatial)"
            )
        axes = torch.tensor([1])
        total = g.add("ReduceSum", g.add("Abs", score), axes, keepdims=1)
        return g.add("Expand", total, torch.tensor(shape)) if shape[1] > 1 else total
