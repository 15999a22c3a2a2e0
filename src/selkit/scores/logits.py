"""Scores of logits: how undecided a classifier is, and how much the members of an ensemble differ."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selkit.embeddings.sources import Want
from selkit.errors import InvalidInputError, NotFittedError
from selkit.scores.base import UncertaintyScore
from selkit.scores.data import FitData
from selkit.scores.tasks import TASKS, Canonical, Task, canonical, fit_temperature
from selkit.utils.arrays import as_floating, as_tensor, check_finite
from selkit.utils.checks import boolean, choice, given
from selkit.utils.precision import exact_device


class LogitScore(UncertaintyScore):
    """Base of the scores of logits.

    Parameters
    ----------
    temperature
        Divides the logits; ``"fit"`` finds it in ``fit`` by maximum likelihood, on ``X`` (or
        ``loaders["train"]``) and its labels: samples that the model was not trained on.
    task
        ``"multiclass"``: logits ``(N, C)``. ``"binary"``: ``(N,)`` or ``(N, 1)``, the logit of class 1, or
        ``(N, 2)``. ``"multilabel"``: ``(N, C)``, each a label of its own.
    per_member
        The logits have one axis more, the members of an ensemble or draws of a stochastic model:
        ``(N, C, M)``.
    """

    buffer_names = ("fitted_temperature",)
    feature: ClassVar[Want] = "logits"
    fitted_temperature: Tensor | None
    temperature: float | Literal["fit"]
    task: Task
    per_member: bool

    def __init__(
        self,
        temperature: float | Literal["fit"] = 1.0,
        task: Task = "multiclass",
        per_member: bool = False,
    ) -> None:
        super().__init__()
        self.keep(temperature=temperature, task=task, per_member=per_member)

    @abstractmethod
    def _compute(self, logits: Canonical, temperature: float) -> Tensor:
        """Scores ``(N,)`` of logits that were divided by the temperature."""

    @property
    def is_fitted(self) -> bool:
        """Whether it can score: at once, unless its temperature is to be fitted."""
        return self.temperature != "fit" or self.fitted_temperature is not None

    def _check_params(self) -> None:
        choice(self.task, "task", TASKS)
        boolean(self.per_member, "per_member")
        if not (isinstance(self.temperature, str) and self.temperature == "fit"):
            _positive(self.temperature)

    def _needs_labels(self) -> bool:
        return self.temperature == "fit"

    @property
    def T(self) -> float:  # noqa: N802 - the field's letter
        """The temperature in use."""
        if self.temperature != "fit":
            return _positive(self.temperature)
        if self.fitted_temperature is None:
            raise NotFittedError(
                f"{type(self).__name__} has no temperature yet: call fit(X=logits, y=labels)"
            )
        return float(self.fitted_temperature)

    def _check(self, values: object, name: str) -> Tensor:
        tensor = as_floating(as_tensor(values, name), name)
        if not tensor.numel() or not tensor.ndim:
            raise InvalidInputError(f"{name} is empty: its shape is {tuple(tensor.shape)}")
        check_finite(tensor, name)
        self._canonical(tensor)
        return tensor

    def _canonical(self, logits: Tensor) -> Canonical:
        choice(self.task, "task", TASKS)
        return canonical(logits, self.task, self.per_member)

    def _fit_data(self, data: FitData, q: float | None) -> None:
        if q is not None:
            raise InvalidInputError(f"{type(self).__name__} keeps no references: q= has no meaning")
        if data.X is not None:
            self._fit(data.X, data.y)
            self.width = torch.tensor(self._canonical(data.X).values.shape[1])
        elif self.temperature == "fit":
            raise InvalidInputError("a temperature is fitted on X= with labels y=; only Y was given")
        elif data.Y is None:
            raise InvalidInputError("fit needs logits: give X=, Y=, or model= and loaders=")
        else:
            self.width = torch.tensor(self._canonical(data.Y).values.shape[1])
        # X is as good as held-out data where nothing was fitted on it
        if data.Y is None and self.temperature != "fit":
            data.Y, data.y_cal = data.X, data.y

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        self.fitted_temperature = None
        if self.temperature != "fit":
            return
        if y is None:
            raise InvalidInputError("a fitted temperature needs labels: give y=")
        fitted = fit_temperature(self._canonical(X), y)
        self.fitted_temperature = torch.tensor(fitted, dtype=torch.float64, device=exact_device(X))

    def _check_width(self, query: Tensor, name: str) -> None:
        classes = self._canonical(query).values.shape[1]
        if self.width is not None and classes != int(self.width):
            raise InvalidInputError(
                f"{name} has {classes} classes, but {type(self).__name__} was fitted on {int(self.width)}"
            )

    def _score(self, query: Tensor) -> Tensor:
        # float64: an entropy near 0 or an energy near 0 is a difference of nearly equal numbers
        logits = self._canonical(query.to(exact_device(query)).double())
        return self._compute(Canonical(logits.values / self.T, logits.categorical), self.T)


def _positive(temperature: object) -> float:
    """A temperature that logits can be divided by: neither they nor the energy may overflow."""
    kinds = (int, float, np.integer, np.floating)
    if (
        not isinstance(temperature, kinds)
        or isinstance(temperature, bool)
        or not 1e-30 <= temperature <= 1e30
    ):
        raise InvalidInputError(
            f"temperature must be positive (from 1e-30 to 1e30), or 'fit'; got {given(temperature)}"
        )
    return float(temperature)


class PointwiseLogitScore(LogitScore):
    """A score of each member alone, averaged over members; of several labels one value is taken."""

    over_labels: ClassVar[Literal["max", "sum"]] = "max"

    @abstractmethod
    def _categorical(self, z: Tensor, temperature: float) -> Tensor:
        """``(N, C, M)`` to ``(N, M)``, for classes that compete."""

    @abstractmethod
    def _bernoulli(self, z: Tensor, temperature: float) -> Tensor:
        """``(N, C, M)`` to ``(N, C, M)``, for labels that stand alone."""

    def _compute(self, logits: Canonical, temperature: float) -> Tensor:
        if logits.categorical:
            return self._categorical(logits.values, temperature).mean(1)
        each = self._bernoulli(logits.values, temperature)
        return (each.amax(1) if self.over_labels == "max" else each.sum(1)).mean(1)


class EnergyScore(PointwiseLogitScore):
    """Free energy ``-T log sum exp(z / T)`` of the logits (Liu et al. 2020, "Energy-based out-of-distribution
    detection"); for several labels the sum over them (Wang et al. 2021, "JointEnergy").

    A single logit ``z`` is read as the pair ``(-z/2, z/2)``, which has the same probabilities as ``(0, z)``
    and treats both classes alike: the energy is ``-T log(2 cosh(z / 2T))``, low far from the boundary on
    either side. That of a label, which is there or is not, is ``-T log(1 + exp(z / T))``.

    Parameters
    ----------
    temperature
        Divides the logits; ``"fit"`` finds it in ``fit``, which needs labels.
    task
        ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
    per_member
        Logits are ``(N, C, M)``; the mean over members is taken.

    Examples
    --------
    >>> import torch
    >>> EnergyScore().score(torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
    tensor([ -0.6931, -10.0000])
    """

    over_labels = "sum"

    def _categorical(self, z: Tensor, temperature: float) -> Tensor:
        return -temperature * z.logsumexp(1)

    def _bernoulli(self, z: Tensor, temperature: float) -> Tensor:
        if self.task == "binary":  # log(2 cosh(z / 2)), without overflow
            return -temperature * (z.abs() / 2 + functional.softplus(-z.abs()))
        return -temperature * functional.softplus(z)


class SoftmaxScore(PointwiseLogitScore):
    """The negated probability of the predicted class (Hendrycks & Gimpel 2017, "A baseline for detecting
    misclassified and out-of-distribution examples"); of several labels the least sure one.

    Parameters
    ----------
    temperature
        Divides the logits; ``"fit"`` finds it in ``fit``, which needs labels.
    task
        ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
    per_member
        Logits are ``(N, C, M)``; the mean over members is taken.

    Examples
    --------
    >>> import torch
    >>> SoftmaxScore().score(torch.tensor([[0.0, 0.0], [10.0, 0.0]])).round(decimals=4)
    tensor([-0.5000, -1.0000])
    """

    def _categorical(self, z: Tensor, temperature: float) -> Tensor:
        return -z.softmax(1).amax(1)

    def _bernoulli(self, z: Tensor, temperature: float) -> Tensor:
        return -z.abs().sigmoid()


class MaxLogitScore(PointwiseLogitScore):
    """The negated largest logit (Hendrycks et al. 2022, "Scaling out-of-distribution detection for real-world
    settings"); for a label that stands alone ``-|z|``.

    Parameters
    ----------
    temperature
        Divides the logits; ``"fit"`` finds it in ``fit``, which needs labels.
    task
        ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
    per_member
        Logits are ``(N, C, M)``; the mean over members is taken.

    Examples
    --------
    >>> import torch
    >>> MaxLogitScore().score(torch.tensor([[1.0, 0.0], [10.0, 0.0]]))
    tensor([ -1., -10.])
    """

    def _categorical(self, z: Tensor, temperature: float) -> Tensor:
        return -z.amax(1)

    def _bernoulli(self, z: Tensor, temperature: float) -> Tensor:
        return -z.abs()


class EntropyScore(PointwiseLogitScore):
    """Entropy of the predicted distribution, in nats; of several labels the least sure one.

    Parameters
    ----------
    temperature
        Divides the logits; ``"fit"`` finds it in ``fit``, which needs labels.
    task
        ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
    per_member
        Logits are ``(N, C, M)``; the mean over members is taken.

    Examples
    --------
    >>> import torch
    >>> EntropyScore().score(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).round(decimals=4)
    tensor([0.6931, 0.0000])
    """

    def _categorical(self, z: Tensor, temperature: float) -> Tensor:
        return _entropy(z)

    def _bernoulli(self, z: Tensor, temperature: float) -> Tensor:
        return _binary_entropy(z)


class MarginScore(PointwiseLogitScore):
    """The negated distance of the two largest logits; of several labels the one nearest to its boundary.

    Parameters
    ----------
    temperature
        Divides the logits; ``"fit"`` finds it in ``fit``, which needs labels.
    task
        ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
    per_member
        Logits are ``(N, C, M)``; the mean over members is taken.

    Examples
    --------
    >>> import torch
    >>> MarginScore().score(torch.tensor([[1.0, 0.0, -3.0], [7.0, 2.0, 2.0]]))
    tensor([-1., -5.])
    """

    def _categorical(self, z: Tensor, temperature: float) -> Tensor:
        top = z.topk(2, dim=1).values
        return top[:, 1] - top[:, 0]

    def _bernoulli(self, z: Tensor, temperature: float) -> Tensor:
        return -z.abs()


class EnsembleLogitScore(LogitScore):
    """A score of how members differ; of several labels the one on which they differ most."""

    def __init__(self, temperature: float | Literal["fit"] = 1.0, task: Task = "multiclass") -> None:
        super().__init__(temperature=temperature, task=task, per_member=True)

    @abstractmethod
    def _categorical(self, z: Tensor) -> Tensor:
        """``(N, C, M)`` to ``(N,)``, for classes that compete."""

    @abstractmethod
    def _bernoulli(self, z: Tensor) -> Tensor:
        """``(N, C, M)`` to ``(N, C)``, for labels that stand alone."""

    def _canonical(self, logits: Tensor) -> Canonical:
        found = super()._canonical(logits)
        if found.values.shape[2] < 2:
            raise InvalidInputError(
                f"{type(self).__name__} compares members: the last axis of logits of shape "
                f"{tuple(logits.shape)} must be at least 2"
            )
        return found

    def _compute(self, logits: Canonical, temperature: float) -> Tensor:
        if logits.categorical:
            return self._categorical(logits.values)
        return self._bernoulli(logits.values).amax(1)


class MutualInformationScore(EnsembleLogitScore):
    """Entropy of the mean prediction minus the mean entropy of the members' (Houlsby et al. 2011, "Bayesian
    active learning"): what they disagree about, without what each is unsure of.

    Logits are ``(N, C, M)``, with the members of an ensemble (or draws of a stochastic model, see
    :class:`selkit.embeddings.MonteCarloDropout`) on the last axis.

    Parameters
    ----------
    temperature
        Divides the logits; ``"fit"`` finds it in ``fit``, which needs labels.
    task
        ``"multiclass"``, ``"binary"`` or ``"multilabel"``.

    Examples
    --------
    >>> import torch
    >>> agree = torch.tensor([[[100.0, 100.0], [0.0, 0.0]]])
    >>> differ = torch.tensor([[[100.0, 0.0], [0.0, 100.0]]])
    >>> MutualInformationScore().score(torch.cat([agree, differ])).round(decimals=4)
    tensor([0.0000, 0.6931])
    """

    def _categorical(self, z: Tensor) -> Tensor:
        mean = z.log_softmax(1).logsumexp(2) - math.log(z.shape[2])
        return _entropy(mean) - _entropy(z).mean(1)

    def _bernoulli(self, z: Tensor) -> Tensor:
        mean, other = z.sigmoid().mean(2), (-z).sigmoid().mean(2)  # 1 - mean would cancel
        together = -torch.xlogy(mean, mean) - torch.xlogy(other, other)
        return together - _binary_entropy(z).mean(2)


class PredictiveVarianceScore(EnsembleLogitScore):
    """Variance of the predicted probabilities over members, summed over classes.

    Logits are ``(N, C, M)``, with the members of an ensemble (or draws of a stochastic model, see
    :class:`selkit.embeddings.MonteCarloDropout`) on the last axis.

    Parameters
    ----------
    temperature
        Divides the logits; ``"fit"`` finds it in ``fit``, which needs labels.
    task
        ``"multiclass"``, ``"binary"`` or ``"multilabel"``.

    Examples
    --------
    >>> import torch
    >>> differ = torch.tensor([[[100.0, 0.0], [0.0, 100.0]]])
    >>> PredictiveVarianceScore().score(differ)
    tensor([0.5000])
    """

    def _categorical(self, z: Tensor) -> Tensor:
        return z.softmax(1).var(2, correction=0).sum(1)

    def _bernoulli(self, z: Tensor) -> Tensor:
        return z.sigmoid().var(2, correction=0)


def _entropy(z: Tensor) -> Tensor:
    """Entropy over axis 1; ``z`` may be off by a constant, as logits are."""
    logs = z.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def _binary_entropy(z: Tensor) -> Tensor:
    """Entropy of each sigmoid: ``softplus(|z|) - |z| sigmoid(|z|)``, without cancellation."""
    size = z.abs()
    return functional.softplus(-size) + size * torch.sigmoid(-size)
