"""What kind of function an ONNX operator is, and the registry that finds it.

Every tensor that an operator sees has a leading *stack axis*: a value of ONNX shape ``(2, 3)`` is a torch
tensor of shape ``(S, 2, 3)``, one slice for each of S points of the input. Values that do not depend on the
input (weights, shapes) have ``S == 1`` and broadcast. ONNX axis ``a >= 0`` therefore is torch axis
``a + 1``; a negative axis stays as it is.

Methods take ``*inputs: Any, **named: Any`` here, so that subclasses may name the inputs that they have; they
are only ever called with positions.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from selkit.graph.ops.tensors import (
    LARGEST,
    Input,
    UnsupportedAttribute,
    align,
    broadcast,
    check_size,
    floating,
    integers,
    largest,
    plain,
    radii,
)

__all__ = [
    "LARGEST",
    "Affine",
    "Composite",
    "Constant",
    "Decomposition",
    "Discontinuous",
    "Emit",
    "Input",
    "Kind",
    "Maximum",
    "Movement",
    "Op",
    "Operator",
    "PiecewiseLinear",
    "Product",
    "Random",
    "Registration",
    "Smooth",
    "UnsupportedAttribute",
    "align",
    "broadcast",
    "check_size",
    "find",
    "floating",
    "integers",
    "largest",
    "plain",
    "radii",
    "register",
    "registrations",
    "versions",
]


class Kind(enum.Enum):
    """What an operator does to the inputs that depend on the model's input (its *live* inputs)."""

    CONSTANT = "constant"
    AFFINE = "affine"
    PIECEWISE_LINEAR = "piecewise linear"
    MAXIMUM = "maximum"
    SMOOTH = "smooth"
    PRODUCT = "product"
    COMPOSITE = "composite"
    STEP = "step"


class Operator:
    """An ONNX operator with its attributes; holds no state of a run.

    Subclasses are frozen dataclasses whose fields are named like the ONNX attributes, with ONNX' defaults
    (a field without a default is a required attribute). ``__post_init__`` raises
    :class:`UnsupportedAttribute` for values that are not covered.
    """

    KIND: ClassVar[Kind]
    LIVE: ClassVar[int | None] = None
    """How many of the leading inputs may be live (``None``: all); the others are parameters."""
    OUTPUTS: ClassVar[int | None] = 1
    """How many outputs :meth:`forward` returns (``None``: as many as the node names)."""
    INPUTS: ClassVar[tuple[int, int]] = (1, 3)
    """Fewest and most inputs of an operator that onnx has no schema of."""
    HOST: ClassVar[tuple[int, ...]] = ()
    """Positions of real inputs that are read as Python numbers, and therefore stay on the CPU."""
    NOTE: ClassVar[str] = ""
    """What the table of supported operators adds to the docstring."""

    ADVICE: ClassVar[str] = ""
    """What to do where it is refused because it jumps."""

    def kind(self, live: Sequence[bool]) -> Kind:
        """What this operator is when exactly the inputs marked in ``live`` depend on the model's input."""
        return self.KIND if any(live) else Kind.CONSTANT

    def typed(self, types: Sequence[int]) -> Operator:
        """Return the operator for inputs of these ONNX number types; 0 for one that is not stored."""
        return self

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """Outputs for stacked inputs; a pure function."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def outline(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...] | None:
        """Outputs without data, where a rule tells their shapes and costs less than :meth:`forward`.

        ``inputs`` may be without data too. ``None`` where there is no such rule, or an input does not fit.
        """
        return None

    def emit(self, tape: Any, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
        """Write the nodes of :meth:`forward` for the symbols ``inputs``; ``shapes`` are the outputs'."""
        return tuple(tape.operator(self, name_of(type(self)), inputs, shapes))

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Multipliers of the inputs from those of the outputs (:class:`selkit.graph.pulling.Pull`)."""
        raise UnsupportedAttribute("it has no attribution rule")

    def undo(self, level: float, above: bool, *inputs: Any, **named: Any) -> tuple[float, bool] | None:
        """Where the live input must lie for the output to be on one side of a level.

        Elementwise operators whose output is above ``level`` (below it, unless ``above``) exactly where
        their input is above or below another level say so; the inequalities are strict.

        Parameters
        ----------
        level, above
            The level of the output, and the side of it.
        *inputs
            As for :meth:`forward`, with ``None`` for the live input.

        Returns
        -------
        tuple of float and bool, or None
            The level of the input and its side; ``None`` if there is no such level.
        """
        return None

    def transparent(self, *inputs: Any, **named: Any) -> bool:
        """Whether the (only) output is ``inputs[0]`` as it is; such a step vanishes from a program."""
        return False


class Constant(Operator):
    """The output does not depend on the values of the live inputs (only on their shapes)."""

    KIND = Kind.CONSTANT


class Random(Constant):
    """Random numbers; a compiled program fixes them by a seed, the same for all points of a stack."""

    @property
    def own_seed(self) -> int | None:
        """The seed that the model itself gives, if any."""
        return None

    def seeded(self, seed: int) -> Operator:
        """Return this operator with its random numbers fixed."""
        raise TypeError(f"{type(self).__name__} does not define seeded")


class Affine(Operator):
    """Affine in its live inputs: commutes with interpolation."""

    KIND = Kind.AFFINE

    def spread(self, live: Sequence[bool], *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """Propagate radii: ``|W| e`` for an operator that maps ``x`` to ``W x + c``.

        ``inputs`` are as for :meth:`forward`, with the live ones replaced by radii ``e >= 0``. For every
        input within ``e`` of some ``x`` (elementwise), the output is within the result of ``forward(x)``.
        """
        raise TypeError(f"{type(self).__name__} does not define spread")


class Movement(Affine):
    """Only moves or repeats elements of its first :attr:`LIVE` inputs; the rest are parameters."""

    def spread(self, live: Sequence[bool], *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """Radii move like the elements; what is constant has radius 0."""
        return self.forward(*radii(inputs, live, self.LIVE))

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """Multipliers go back to where their elements came from."""
        return tuple(pull.moved(self))


class PiecewiseLinear(Operator):
    """Elementwise, continuous and piecewise linear in its first input; further inputs are constants."""

    KIND = Kind.PIECEWISE_LINEAR
    LIVE: ClassVar[int | None] = 1

    def knots(self, *inputs: Any, **named: Any) -> tuple[Tensor | float, ...]:
        """Where the slope changes, ascending: numbers, or tensors that broadcast against ``inputs[0]``."""
        raise TypeError(f"{type(self).__name__} does not define knots")

    def outline(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...] | None:
        """As the first input."""
        return elementwise(self, inputs)

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The rescale rule, one bend after the other."""
        return tuple(pull.bends(self))


class Maximum(Operator):
    """The maximum (the minimum, if :attr:`sign` is -1) over a set of candidates for each output element."""

    KIND = Kind.MAXIMUM

    @property
    def sign(self) -> int:
        """1 for a maximum, -1 for a minimum."""
        return 1

    def argmax(self, *inputs: Any, **named: Any) -> Tensor:
        """Index of the winning candidate for each output element: int64 of shape ``(S, *output)``."""
        raise TypeError(f"{type(self).__name__} does not define argmax")

    def pick(self, index: Tensor, *inputs: Any, **named: Any) -> Tensor:
        """Value of candidate ``index`` for each output element; ``index`` as :meth:`argmax` returns it."""
        raise TypeError(f"{type(self).__name__} does not define pick")


class Smooth(Operator):
    """Elementwise and twice differentiable in its first input, except at :attr:`kinks`.

    Subclasses define ``derivative`` and ``second``, and where these have their local extremes; the bounds
    follow from that.
    """

    KIND = Kind.SMOOTH
    LIVE = 1

    @property
    def monotone(self) -> bool:
        """Whether the function is strictly increasing wherever it is defined."""
        return False

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where the first derivative jumps, ascending: split there, as at a knot."""
        return ()

    @property
    def steepest(self) -> tuple[float, ...]:
        """Local extremes of the first derivative."""
        return ()

    @property
    def most_bent(self) -> tuple[float, ...]:
        """Local extremes of the second derivative, and where it jumps."""
        return ()

    def derivative(self, x: Tensor) -> Tensor:
        """First derivative at ``x``."""
        raise TypeError(f"{type(self).__name__} does not define derivative")

    def second(self, x: Tensor) -> Tensor:
        """Second derivative at ``x``; where it jumps, the larger side's absolute value."""
        raise TypeError(f"{type(self).__name__} does not define second")

    def slope(self, lower: Tensor, upper: Tensor) -> Tensor:
        """An upper bound of ``|f'|`` on ``[lower, upper]``, elementwise; infinite where there is none."""
        return largest(self.derivative, (*self.steepest, *self.kinks), lower, upper)

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        """An upper bound of ``|f''|`` on ``[lower, upper]``, elementwise; infinite where there is none.

        It is infinite where a kink lies inside: split there first.
        """
        bound = largest(self.second, self.most_bent, lower, upper)
        for kink in self.kinks:
            bound = torch.where((lower < kink) & (kink < upper), torch.inf, bound)
        return bound

    def outline(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...] | None:
        """As the first input."""
        return elementwise(self, inputs)

    def inverse(self, y: Tensor) -> Tensor:
        """The ``x`` with ``f(x) = y``, for a :attr:`monotone` function; infinite beyond its range."""
        raise TypeError(f"{type(self).__name__} has no inverse")

    def undo(self, level: float, above: bool, *inputs: Any, **named: Any) -> tuple[float, bool] | None:
        """The inverse of an increasing function; infinite where it never reaches the level."""
        if not self.monotone:
            return None
        return float(self.inverse(torch.tensor(level, dtype=torch.float64))), above

    def pull(self, pull: Any) -> tuple[Any, ...]:
        """The rescale rule."""
        return tuple(pull.rescale(self))


class Product(Operator):
    """Bilinear in two inputs: affine as long as only one of them is live."""

    KIND = Kind.PRODUCT
    NOTE = "affine with one live input"

    def kind(self, live: Sequence[bool]) -> Kind:
        """``AFFINE`` with one live input, ``PRODUCT`` with two."""
        alive = sum(live)
        return Kind.CONSTANT if alive == 0 else Kind.AFFINE if alive == 1 else Kind.PRODUCT

    def spread(self, live: Sequence[bool], *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """As :meth:`Affine.spread`, for the case that one input is live."""
        raise TypeError(f"{type(self).__name__} does not define spread")


def blank(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A value without data."""
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta")


def elementwise(operator: Operator, inputs: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """The outline of an operator on each element of its first input: one element tells what it does."""
    x, *rest = inputs
    if any(value is not None and value.numel() != 1 for value in rest):
        return None
    one = torch.zeros((1,) * x.ndim, dtype=x.dtype)
    (result,) = operator.forward(one, *rest)
    return (blank(result, x.shape),) if result.ndim == x.ndim and result.numel() == 1 else None


class Discontinuous(Operator):
    """Piecewise constant in its live inputs: it jumps, so no line can be drawn through it."""

    KIND = Kind.STEP


class Emit(Protocol):
    """Appends a step to the program that is being built and returns the names of its outputs."""

    def __call__(self, operator: Operator, *inputs: str | Tensor, outputs: int = 1) -> tuple[str, ...]:
        """Inputs are value names (``""`` for none) or constants in ONNX shape."""


class Decomposition:
    """What a composite operator may know while it is replaced by simpler steps.

    Attributes
    ----------
    emit
        Appends one of the simpler steps.
    shapes
        ONNX shapes of the operator's inputs (``None`` for one that is left out).
    constants
        Values of the inputs that are constant, with their stack axis; ``None`` for the others.
    dtypes
        Of the inputs, for an operator that depends on them.
    """

    def __init__(
        self,
        emit: Emit,
        shapes: Sequence[tuple[int, ...] | None],
        constants: Sequence[Input],
        dtypes: Sequence[torch.dtype | None] = (),
    ) -> None:
        self.emit = emit
        self.shapes = tuple(shapes)
        self.constants = tuple(constants)
        self.dtypes = tuple(dtypes)

    def __call__(self, operator: Operator, *inputs: str | Tensor) -> str:
        """Append a step with one output and return its name."""
        return self.emit(operator, *inputs)[0]


class Composite(Operator):
    """Made of simpler operators; :meth:`decompose` says of which."""

    KIND = Kind.COMPOSITE

    def decompose(self, build: Decomposition, *inputs: Any, **named: Any) -> tuple[str, ...]:
        """Append the simpler steps through ``build`` and return the names of the outputs."""
        raise TypeError(f"{type(self).__name__} does not define decompose")

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """Outputs by the simpler steps, one after the other."""
        real = next((v for v in inputs if v is not None and v.is_floating_point()), torch.empty(0))
        values: dict[str, Tensor] = {f"input.{place}": v for place, v in enumerate(inputs) if v is not None}

        def emit(operator: Operator, *inputs: str | Tensor, outputs: int = 1) -> tuple[str, ...]:  # noqa: ARG001
            results = operator.forward(*(read(value) for value in inputs))
            names = tuple(f"{len(values)}.{place}" for place in range(len(results)))
            values.update(zip(names, results, strict=True))
            return names

        def read(value: str | Tensor) -> Input:
            if isinstance(value, str):
                return values[value] if value else None
            value = value.unsqueeze(0)
            return value.to(real) if floating(value) else value

        build = Decomposition(
            emit,
            [None if value is None else tuple(value.shape[1:]) for value in inputs],
            [value if value is not None and value.shape[0] == 1 else None for value in inputs],
            [None if value is None else value.dtype for value in inputs],
        )
        names = ["" if value is None else f"input.{place}" for place, value in enumerate(inputs)]
        return tuple(values[name] for name in self.decompose(build, *names))


Op = TypeVar("Op", bound=type[Operator])


@dataclasses.dataclass(frozen=True)
class Registration:
    """One registered operator class: its ONNX name and domain, and the schema versions that it covers."""

    name: str
    domain: str
    since: tuple[int, ...]
    operator: type[Operator]


_REGISTRY: dict[tuple[str, str, int], Registration] = {}


def register(name: str, *, since: tuple[int, ...], domain: str = "") -> Callable[[Op], Op]:
    """Register a frozen dataclass as the implementation of an ONNX operator.

    Parameters
    ----------
    name, domain
        Of the ONNX operator.
    since
        The ``since_version`` of every schema version that the class covers in full.

    Raises
    ------
    ValueError
        If one of these versions has an implementation already.
    """

    def decorate(cls: Op) -> Op:
        registration = Registration(name, domain, since, cls)
        for version in since:
            key = (domain, name, version)
            if key in _REGISTRY:
                raise ValueError(f"{name} of domain {domain!r} since {version} is registered twice")
            _REGISTRY[key] = registration
        return cls

    return decorate


def find(name: str, since: int, domain: str = "") -> Registration | None:
    """Return the registration for an operator's schema version, or ``None``."""
    return _REGISTRY.get((domain, name, since))


def name_of(operator: type[Operator]) -> str:
    """ONNX' name of an operator class."""
    return next(entry.name for entry in _REGISTRY.values() if entry.operator is operator)


def versions(name: str, domain: str = "") -> tuple[int, ...]:
    """Return the schema versions of an operator that are supported, ascending."""
    return tuple(sorted(key[2] for key in _REGISTRY if key[:2] == (domain, name)))


def registrations() -> Iterator[Registration]:
    """Every registered operator class once, by domain and name."""
    unique = {id(entry): entry for entry in _REGISTRY.values()}
    yield from sorted(unique.values(), key=lambda entry: (entry.domain, entry.name, entry.since))
