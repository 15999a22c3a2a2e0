"""What explaining a batch returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selkit.errors import InvalidInputError, MissingExtraError
from selkit.utils.boundary import public
from selkit.utils.checks import given, integer

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class Explanation:
    """Attributions of a batch: what each entry of an input adds to the model's output.

    For each sample, the attributions sum to ``output - base_value`` up to :attr:`additivity_error`. Where
    several inputs are explained at once, ``attributions`` and ``x`` are dictionaries with an array for each,
    and it is the sum over all of them.

    With one target per sample (``target="top"`` or a number), ``attributions`` has x's shape ``(N, ...)``
    and the other arrays have shape ``(N,)``. With several (``target=[0, 3]`` or ``"all"``) each gets a first
    axis for them: ``(T, N, ...)`` and ``(T, N)``; :meth:`for_target` takes one out.

    Attributes
    ----------
    attributions
        In units of the output; the model's floating dtype.
    base_value
        Mean output of the references at the target; float64.
    output
        The model's output at the target; float64.
    target
        Index of the explained output; int64.
    x
        What was explained, ``(N, ...)``.
    references
        How many references the base value is a mean of.
    method
        ``"deepshap"``, ``"integrated_gradients"`` or ``"permutation"``.
    integration_error
        Of integrated gradients: how much any one attribution may be off, estimated, in units of the output;
        0 where the integral is a finite sum. ``None`` for other methods.
    notes
        What was computed otherwise than the model's file says, as sentences.

    Raises
    ------
    InvalidInputError
        If the shapes do not fit each other.

    Examples
    --------
    >>> x = np.array([[1.0, 2.0], [0.0, 4.0]])
    >>> explanation = Explanation(
    ...     attributions=x * [3.0, -1.0],  # of the linear model 3 a - b, with the reference 0
    ...     base_value=np.zeros(2), output=x @ [3.0, -1.0], target=np.zeros(2, dtype=np.int64), x=x,
    ...     references=1,
    ... )
    >>> len(explanation), explanation.additivity_error.tolist()
    (2, [0.0, 0.0])
    >>> explanation[1].attributions.tolist()
    [[0.0, -4.0]]
    """

    attributions: Any
    base_value: NDArray[np.float64]
    output: NDArray[np.float64]
    target: NDArray[np.int64]
    x: Any
    references: int
    method: str = "deepshap"
    integration_error: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts, taken = self._parts(self.attributions), self._parts(self.x)
        if parts.keys() != taken.keys():
            raise InvalidInputError(
                f"attributions are for {sorted(parts)} and x has {sorted(taken)}; both need the same inputs"
            )
        for name, values in parts.items():
            x = taken[name]
            shape, wanted = _shape(values, "attributions"), _shape(x, "x")
            lead = shape[: len(shape) - len(wanted) + 1]
            if shape[len(lead) - 1 :] != wanted or len(lead) not in (1, 2):
                raise InvalidInputError(
                    f"attributions has shape {shape}; it must be that of x, {wanted}, "
                    "with at most one axis for targets before it"
                )
            for field in ("base_value", "output", "target", "integration_error"):
                value = getattr(self, field)
                if value is None and field == "integration_error":
                    continue
                shape = _shape(value, field)
                if shape != lead:
                    raise InvalidInputError(
                        f"{field} has shape {shape}; it must be {lead}, one number for each attribution"
                    )

    @staticmethod
    def _parts(values: Any) -> dict[str, NDArray[Any]]:
        """The arrays of all inputs by name; "" for the only one."""
        return dict(values) if isinstance(values, Mapping) else {"": values}

    @staticmethod
    def _each(values: Any, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Any:
        """Change the array, or that of every input."""
        if isinstance(values, Mapping):
            return {name: change(array) for name, array in values.items()}
        return change(values)

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.output.shape[-1])

    def __getitem__(self, sample: int | slice) -> Explanation:
        """Some samples; one sample keeps its axis."""
        if isinstance(sample, int | np.integer):
            if not -len(self) <= sample < len(self):
                raise IndexError(f"sample {sample} of an explanation of {len(self)}")
            sample = slice(sample, sample + 1 if sample != -1 else None)
        several = (slice(None),) * self.several
        parts = {
            name: self._each(getattr(self, name), lambda array: array[(*several, sample)])
            for name in ("attributions", "base_value", "output", "target", "integration_error")
            if getattr(self, name) is not None
        }
        return replace(self, **parts, x=self._each(self.x, lambda array: array[sample]))

    @property
    def several(self) -> bool:
        """Whether there are several targets for each sample, on a first axis."""
        return bool(self.output.ndim > 1)

    @property
    def additivity_error(self) -> NDArray[np.float64]:
        """The sum of a sample's attributions minus ``output - base_value``, summed in float64.

        Of the shape of ``output``, and in its units.
        """
        total = self._flat().sum(axis=-1)
        return np.asarray(total - (self.output - self.base_value), dtype=np.float64)

    def _flat(self) -> NDArray[np.float64]:
        """All attributions of a sample, of whatever input, on the last axis."""
        parts = [
            np.asarray(part, dtype=np.float64).reshape(*self.output.shape, -1)
            for part in self._parts(self.attributions).values()
        ]
        return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]

    @property
    def relative_error(self) -> NDArray[np.float64]:
        """The size of :attr:`additivity_error` relative to the largest of ``output`` and ``base_value``.

        These are what float32 rounds; their difference may be zero.
        """
        scale = np.maximum(np.abs(self.output), np.abs(self.base_value))
        return np.asarray(np.abs(self.additivity_error) / np.maximum(scale, np.finfo(np.float64).tiny))

    @public
    def for_target(self, target: int) -> Explanation:
        """The explanation of one of several targets.

        Parameters
        ----------
        target
            Index of the output, one of ``explanation.target``.

        Raises
        ------
        InvalidInputError
            If that output was not explained for every sample.
        """
        target = integer(target, "target")
        target_rows = self.target if self.several else self.target[None]
        found = np.flatnonzero((target_rows == target).all(axis=1))
        if not len(found):
            raise InvalidInputError(
                f"target {target} was not explained for every sample; there are "
                f"{np.unique(self.target).tolist()}. Ask for it: Explainer(..., target={target})"
            )
        if not self.several:
            return self
        row = int(found[0])
        return replace(
            self,
            attributions=self._each(self.attributions, lambda array: array[row]),
            base_value=self.base_value[row],
            output=self.output[row],
            target=self.target[row],
            integration_error=None if self.integration_error is None else self.integration_error[row],
        )

    def for_input(self, name: str) -> Explanation:
        """The attributions of one of several inputs; alone, they sum to that input's share of the change.

        Parameters
        ----------
        name
            Of the input.

        Raises
        ------
        InvalidInputError
            If there is only one input, or none of that name.
        """
        parts = self._parts(self.attributions)
        if not isinstance(self.attributions, Mapping) or name not in parts:
            has = sorted(parts) if isinstance(self.attributions, Mapping) else "only one input"
            raise InvalidInputError(f"input is {given(name)}, and the explanation has {has}")
        return replace(self, attributions=parts[name], x=self.x[name])

    def summary(self) -> list[dict[str, Any]]:
        """One row for each sample and target, for a table such as ``pandas.DataFrame(e.summary())``.

        Returns
        -------
        list of dict
            ``sample``, ``target``, ``output``, ``base_value``, ``positive`` and ``negative`` (sums of the
            attributions of each sign), ``additivity_error``.
        """
        parts = self._flat()
        positive, negative = np.maximum(parts, 0).sum(axis=-1), np.minimum(parts, 0).sum(axis=-1)
        error = self.additivity_error
        return [
            {
                "sample": int(index[-1]),
                "target": int(self.target[index]),
                "output": float(self.output[index]),
                "base_value": float(self.base_value[index]),
                "positive": float(positive[index]),
                "negative": float(negative[index]),
                "additivity_error": float(error[index]),
            }
            for index in np.ndindex(self.output.shape)
        ]

    @public
    def plot(
        self,
        sample: int = 0,
        *,
        target: int | None = None,
        input: str | None = None,  # noqa: A002 - what a model calls it
        **options: Any,
    ) -> Any:
        """Draw the attributions of one sample: over an image, as bars, or under a signal, by x's shape.

        Parameters
        ----------
        sample
            Which one of the batch.
        target
            Which of several targets; not needed where there is one.
        input
            Which of several inputs; not needed where there is one.
        **options
            Of :func:`selkit.explain.plots.plot_image`, :func:`~selkit.explain.plots.plot_bars` or
            :func:`~selkit.explain.plots.plot_signal`; ``kind="image"``, ``"bars"`` or ``"signal"`` chooses
            where the shape does not say it.

        Returns
        -------
        matplotlib.figure.Figure
            Save it with ``figure.savefig(path)``.

        Raises
        ------
        InvalidInputError
            If there is no such sample or target, or x's shape fits none of the kinds.
        MissingExtraError
            If matplotlib is not installed.
        """
        from selkit.explain.plots import plot

        shown = self if input is None else self.for_input(input)
        return plot(shown._single("plot"), sample, target=target, **options)

    def _single(self, what: str) -> Explanation:
        """Itself, if there is one input."""
        if isinstance(self.attributions, Mapping):
            raise InvalidInputError(
                f"{what} shows one input, and the explanation has {sorted(self.attributions)}; take one with "
                "explanation.for_input(name)"
            )
        return self

    @public
    def to_shap(self, feature_names: Sequence[str] | None = None) -> Any:
        """The same as a ``shap.Explanation``, for shap's own plots; several targets go on the last axis.

        Parameters
        ----------
        feature_names
            One for each feature of tabular inputs.

        Returns
        -------
        shap.Explanation

        Raises
        ------
        MissingExtraError
            If shap is not installed.
        """
        try:
            import shap
        except ImportError as error:
            raise MissingExtraError("to_shap needs shap: pip install 'selkit[shap]'") from error
        self._single("to_shap")
        values, base = self.attributions, self.base_value
        if self.several:
            values, base = np.moveaxis(values, 0, -1), np.moveaxis(base, 0, -1)
        names = None if feature_names is None else list(feature_names)
        return shap.Explanation(values=values, base_values=base, data=self.x, feature_names=names)

    def __str__(self) -> str:
        targets = f", {len(self.target)} targets each" if self.several else ""
        worst = float(np.abs(self.additivity_error).max(initial=0.0))
        shapes = {name: np.shape(array)[1:] for name, array in self._parts(self.x).items()}
        text = (
            f"{self.method} of {len(self)} sample(s) of shape {shapes.get('', shapes)}{targets}, "
            f"{self.references} reference(s), additivity error at most {worst:.2g}"
        )
        if self.integration_error is not None:
            text += f", integration error at most {float(self.integration_error.max(initial=0.0)):.2g}"
        return text


def _shape(values: Any, name: str) -> tuple[int, ...]:
    """The shape of an array."""
    try:
        return tuple(np.shape(values))
    except ValueError as error:  # of numpy, for lists of unequal lengths
        raise InvalidInputError(f"{name} is no array: {error}") from error
