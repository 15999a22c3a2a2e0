"""Principal components of tensors, fitted at once or over a stream, and what they leave as a score."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from selkit.errors import InvalidInputError, NotAvailableError, NotFittedError
from selkit.scores.base import UncertaintyScore
from selkit.scores.covariance import directions_of_few
from selkit.scores.rows import Rows, blocks_of
from selkit.scores.state import Stateful
from selkit.utils.arrays import ArrayLike, as_matrix, check_count, check_fraction
from selkit.utils.checks import boolean, given, number, seed
from selkit.utils.precision import exact_device

Mode = Literal["linear", "rff"]


class TensorPCA(Stateful):
    """Principal component analysis, optionally of random Fourier features.

    Parameters
    ----------
    n_components
        A whole number of components, or the fraction in (0, 1] of the variance that they explain at
        least (1 as an integer is one component, 1.0 all the variance).
    gamma, M
        Width of the kernel ``exp(-gamma |x - y|^2)`` and number of random features
        ``sqrt(2/M) cos(x w + u)``, ``w ~ N(0, 2 gamma)`` (Rahimi & Recht 2007); the error of reconstruction
        is then that of kernel PCA (Fang et al. 2024, "Kernel PCA for out-of-distribution detection").
    mode
        ``"linear"`` or ``"rff"``; without it ``"rff"`` where both ``gamma`` and ``M`` are given.
    mean_center
        Subtract the mean first.
    seed
        Of the random features.

    Examples
    --------
    >>> import torch
    >>> X = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    >>> pca = TensorPCA(n_components=1).fit(X)
    >>> _, error = pca.reconstruct(torch.tensor([[4.0, 4.0], [3.0, 1.0]]))
    >>> error.round(decimals=4)
    tensor([0.0000, 1.4142])
    """

    buffer_names: ClassVar[tuple[str, ...]] = (
        "mean",
        "components",
        "explained_variance",
        "explained_variance_ratio",
        "frequencies",
        "phases",
        "_count",
        "_sum",
        "_scatter",
    )
    mean: Tensor | None
    components: Tensor | None
    explained_variance: Tensor | None
    explained_variance_ratio: Tensor | None
    frequencies: Tensor | None
    phases: Tensor | None
    _count: Tensor | None
    _sum: Tensor | None
    _scatter: Tensor | None
    n_components: float
    gamma: float | None
    M: int | None
    mode: Mode | None
    mean_center: bool
    seed: int

    def __init__(
        self,
        n_components: float = 0.90,
        gamma: float | None = None,
        M: int | None = None,
        mode: Mode | None = None,
        mean_center: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.keep(n_components=n_components, gamma=gamma, M=M, mode=mode, mean_center=mean_center, seed=seed)

    def _check_params(self) -> None:
        _check_components(self.n_components)
        if self.gamma is not None:
            number(self.gamma, "gamma", 0, ends="()")
        if self.M is not None:
            check_count(self.M, "M")
        boolean(self.mean_center, "mean_center")
        seed(self.seed)
        _ = self.uses_rff

    @property
    def is_fitted(self) -> bool:
        """Whether it can transform."""
        return self.components is not None

    @property
    def uses_rff(self) -> bool:
        """Whether random Fourier features come first."""
        told = self.gamma is not None and self.M is not None
        mode = ("rff" if told else "linear") if self.mode is None else self.mode
        if mode not in ("linear", "rff"):
            raise InvalidInputError(f"mode must be 'linear' or 'rff'; got {self.mode!r}")
        if mode == "rff" and (self.gamma is None or self.M is None):
            raise InvalidInputError("random Fourier features need both gamma= and M=")
        return mode == "rff"

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit on all samples at once.

        Parameters
        ----------
        X
            Shape ``(N, D)``, at least two samples.
        y
            Not used.

        Returns
        -------
        Self
        """
        return self.fit_rows(as_matrix(X, "X"))

    def reset_partial(self) -> Self:
        """Forget what ``partial_fit`` has seen, and what was fitted."""
        for name in self._all_buffer_names():
            setattr(self, name, None)
        return self

    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Take in more samples; :meth:`finalize` makes the components of all so far.

        Parameters
        ----------
        X
            Shape ``(N, D)``, any number of samples.
        y
            Not used.

        Returns
        -------
        Self

        Raises
        ------
        InvalidInputError
            For NaN, infinity or another width than before.
        """
        checked = as_matrix(X, "X")
        if self._count is None:
            self._check_params()
        if self._count is None and self.uses_rff:
            self._draw(checked)
        rows = self._features(checked)
        count, total = float(len(rows)), rows.sum(0)
        centred = rows - total / count if self.mean_center else rows
        scatter = centred.T @ centred
        if self._count is None or self._sum is None or self._scatter is None:
            self._count, self._sum, self._scatter = torch.tensor(count, dtype=torch.float64), total, scatter
            self.mean = torch.zeros(0, dtype=torch.float64, device=rows.device)  # until finalize
            return self
        if len(self._sum) != rows.shape[1]:
            raise InvalidInputError(
                f"X has {rows.shape[1]} features; the samples before had {len(self._sum)}"
            )
        before = float(self._count)
        if self.mean_center:  # Chan, Golub & LeVeque 1979: no difference of large sums
            shift = total / count - self._sum / before
            scatter += torch.outer(shift, shift) * (before * count / (before + count))
        self._scatter = self._scatter + scatter
        self._sum = self._sum + total
        self._count = self._count + count
        return self

    def finalize(self) -> Self:
        """Make the components of everything that ``partial_fit`` has seen.

        Returns
        -------
        Self

        Raises
        ------
        NotFittedError
            If it has seen nothing.
        InvalidInputError
            If there are fewer samples or dimensions than components, or nothing varies.
        """
        if self._count is None or self._sum is None or self._scatter is None or self.mean is None:
            raise NotFittedError("TensorPCA has seen no samples: call partial_fit first")
        count = float(self._count)
        free = count - 1 if self.mean_center else count
        if free < 1:
            raise InvalidInputError("principal components need at least 2 samples")
        _check_overflow(self._scatter)
        variance, vectors = torch.linalg.eigh(self._scatter / free)
        variance, vectors = variance.flip(0).clamp(min=0), vectors.flip(1)
        mean = self._sum / count if self.mean_center else torch.zeros_like(self._sum)
        self._keep_components(mean, variance, vectors.T, free)
        return self

    def _keep_components(self, mean: Tensor, variance: Tensor, directions: Tensor, free: float) -> None:
        """Store the leading ones of all directions, ``(R, D)``, in order of their variance."""
        total = float(variance.sum())
        _check_overflow(variance)
        if not total > 0:
            raise InvalidInputError("the samples do not vary: there are no principal components")
        number = self._number(variance / total, int(min(free, len(variance))))
        self.mean = mean
        self.components = directions[:number].contiguous()
        self.explained_variance = variance[:number].contiguous()
        self.explained_variance_ratio = self.explained_variance / total

    def fit_rows(self, rows: Tensor | Rows) -> Self:
        """Fit on checked rows, in memory or read a block at a time.

        Raises
        ------
        InvalidInputError
            As :meth:`finalize`.
        """
        self._check_params()
        self.reset_partial()
        width = self.M if self.uses_rff else next(blocks_of(rows, 1))[1].shape[1]
        if width is not None and rows.shape[0] < width:
            self._fit_few(torch.cat([part for _, part in blocks_of(rows)]))
        else:
            for _, part in blocks_of(rows):
                self.partial_fit(part)
            self.finalize()
        self._count = self._sum = self._scatter = None  # only a stream goes on
        return self

    def _fit_few(self, X: Tensor) -> None:
        """Fewer samples than dimensions: singular values of the samples, and no matrix ``(D, D)``."""
        if self.uses_rff:
            self._draw(X)
        rows = self._features(X)
        free = len(rows) - 1 if self.mean_center else len(rows)
        if free < 1:
            raise InvalidInputError("principal components need at least 2 samples")
        mean = rows.mean(0) if self.mean_center else torch.zeros_like(rows[0])
        _check_overflow((rows - mean).square())
        sizes, directions = directions_of_few(rows - mean)
        self._keep_components(mean, sizes.square() / free, directions, free)

    def transform(self, X: ArrayLike) -> Tensor:
        """Coordinates along the components.

        Parameters
        ----------
        X
            Shape ``(N, D)``.

        Returns
        -------
        Tensor
            Shape ``(N, components)``.
        """
        checked = as_matrix(X, "X")
        return self.coordinates(checked).to(checked.dtype).to(checked.device)

    def coordinates(self, X: Tensor) -> Tensor:
        """What :meth:`transform` rounds: in float64, where this module's numbers are."""
        centred, components = self._centred(X)
        return centred @ components.T

    def fit_transform(self, X: ArrayLike, y: Any = None) -> Tensor:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def inverse_transform(self, Z: ArrayLike) -> Tensor:
        """Points with these coordinates.

        Parameters
        ----------
        Z
            Shape ``(N, components)``.

        Returns
        -------
        Tensor
            Shape ``(N, D)``.

        Raises
        ------
        NotAvailableError
            With random Fourier features, which cannot be undone.
        """
        if self.uses_rff:
            raise NotAvailableError("random Fourier features cannot be undone; reconstruct() gives the error")
        components, mean = self._fitted()
        checked = as_matrix(Z, "Z")
        if checked.shape[1] != len(components):
            raise InvalidInputError(
                f"Z has {checked.shape[1]} columns; there are {len(components)} components"
            )
        return (checked.to(components) @ components + mean).to(checked.dtype).to(checked.device)

    def reconstruct(self, X: ArrayLike) -> tuple[Tensor, Tensor]:
        """What the components keep of each sample, and how far that is from it.

        Parameters
        ----------
        X
            Shape ``(N, D)``.

        Returns
        -------
        reconstruction, error
            ``(N, D)`` (``(N, M)`` in the space of random features) and ``(N,)``, Euclidean.
        """
        checked = as_matrix(X, "X")
        kept, rest = self._parts(checked)
        _, mean = self._fitted()
        error = torch.linalg.vector_norm(rest, dim=1)
        return (kept + mean).to(checked.dtype).to(checked.device), error.to(checked.dtype).to(checked.device)

    def errors(self, X: Tensor) -> Tensor:
        """The errors that :meth:`reconstruct` rounds: in float64, where this module's numbers are."""
        found: Tensor = torch.linalg.vector_norm(self._parts(X)[1], dim=1)
        return found

    def _parts(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """What the components keep of centred samples, and what is left."""
        centred, components = self._centred(X)
        kept = centred @ components.T @ components
        return kept, centred - kept

    def _fitted(self) -> tuple[Tensor, Tensor]:
        if self.components is None or self.mean is None:
            raise NotFittedError("TensorPCA is not fitted yet: call fit, or partial_fit and finalize")
        return self.components, self.mean

    def _centred(self, X: Tensor) -> tuple[Tensor, Tensor]:
        components, mean = self._fitted()
        features = self._features(X.to(mean))
        if features.shape[1] != len(mean):
            raise InvalidInputError(
                f"X has {features.shape[1]} features; TensorPCA was fitted on {len(mean)}"
            )
        return features - mean, components

    def _number(self, ratio: Tensor, available: int) -> int:
        wanted = self.n_components
        if isinstance(wanted, (int, np.integer)):
            if wanted > available:
                raise InvalidInputError(
                    f"n_components={wanted}, but these samples have at most {available} components"
                )
            return int(wanted)
        reached = ratio.cumsum(0) >= wanted - 1e-12
        return min(int(reached.int().argmax()) + 1 if bool(reached.any()) else available, available)

    def _draw(self, X: Tensor) -> None:
        width = check_count(self.M, "M")
        if self.gamma is None:
            raise InvalidInputError("random Fourier features need both gamma= and M=")
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn((X.shape[1], width), generator=generator, dtype=torch.float64)
        phases = torch.rand(width, generator=generator, dtype=torch.float64) * 2 * math.pi
        self.frequencies = (drawn * math.sqrt(2 * self.gamma)).to(exact_device(X))
        self.phases = phases.to(exact_device(X))

    def _features(self, X: Tensor) -> Tensor:
        """What principal components are taken of, in float64: data may be far from the origin."""
        X = X.to(exact_device(X)).double()
        if self.frequencies is None or self.phases is None:
            return X
        if X.shape[1] != len(self.frequencies):
            raise InvalidInputError(
                f"X has {X.shape[1]} features; TensorPCA was fitted on {len(self.frequencies)}"
            )
        projected = X @ self.frequencies + self.phases
        return math.sqrt(2 / len(self.phases)) * projected.cos()


class PCAScore(UncertaintyScore):
    """Error of reconstruction from the principal components of the references: what of a query lies outside
    the space that they span.

    Parameters
    ----------
    pca
        A :class:`TensorPCA`, or the number of components (a fraction: of explained variance). One that is
        already fitted, for example over a stream, is used as it is.

    Examples
    --------
    >>> import torch
    >>> X = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    >>> PCAScore(pca=1).fit(X=X).score(torch.tensor([[5.0, 5.0], [3.0, 1.0]])).round(decimals=4)
    tensor([0.0000, 1.4142])
    """

    pca: TensorPCA | float

    def __init__(self, pca: TensorPCA | float = 0.90) -> None:
        super().__init__()
        self.keep(pca=pca)
        self.projection: TensorPCA | None = None

    def _check_params(self) -> None:
        check_pca(self.pca)

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        self.projection = fitted_projection(self.pca, X)
        components = self.projection.components
        if components is not None and components.shape[0] == components.shape[1]:
            raise InvalidInputError(
                f"all {len(components)} components are kept, so every error of reconstruction is 0; "
                "ask for fewer components"
            )

    def _score(self, query: Tensor) -> Tensor:
        if self.projection is None:
            raise NotFittedError("PCAScore is not fitted yet: call fit(...) first")
        return self.projection.errors(query)

    def _rebuild(self, keys: list[str]) -> None:
        self.projection = rebuilt_projection(self.pca, keys)


def _check_components(wanted: object, name: str = "n_components") -> None:
    if isinstance(wanted, (int, np.integer)):
        check_count(wanted, name)
    else:
        check_fraction(wanted, name, zero=False)


def check_pca(pca: object) -> None:
    """Refuse what is neither a :class:`TensorPCA` nor a number of components.

    Raises
    ------
    InvalidInputError
        Saying what is accepted.
    """
    if isinstance(pca, TensorPCA):
        pca._check_params()
    elif isinstance(pca, (int, float, np.integer, np.floating)):
        _check_components(pca, "pca")
    else:
        raise InvalidInputError(
            "pca must be a TensorPCA, a whole number of components or a fraction of the variance; "
            f"got {given(pca)}"
        )


def _check_overflow(squares: Tensor) -> None:
    if not bool(torch.isfinite(squares).all()):
        raise InvalidInputError("X holds numbers so large that their squares overflow; rescale them")


def fitted_projection(pca: TensorPCA | float, X: Tensor | Rows) -> TensorPCA:
    """A fitted copy of what the ``pca`` argument asks for; the argument itself is left alone.

    Raises
    ------
    InvalidInputError
        If a fitted one has another width.
    """
    copy = _fresh(pca)
    if isinstance(pca, TensorPCA) and pca.is_fitted:
        copy.load_state_dict(pca.state_dict())
        copy.transform(next(blocks_of(X, 1))[1])  # refuses another width
    else:
        copy.fit_rows(X)
    copy._count = copy._sum = copy._scatter = None
    return copy.to(X.device) if isinstance(X, Tensor) else copy


def rebuilt_projection(pca: TensorPCA | float | None, keys: list[str]) -> TensorPCA | None:
    """An empty projection to load a state into, where the state has one."""
    return _fresh(pca) if pca is not None and any(key.startswith("projection.") for key in keys) else None


def _fresh(pca: TensorPCA | float) -> TensorPCA:
    return TensorPCA(**pca.get_params()) if isinstance(pca, TensorPCA) else TensorPCA(n_components=pca)
