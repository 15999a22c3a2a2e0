"""The baseline that every score has to beat."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from selkit.errors import InvalidInputError
from selkit.scores.base import UncertaintyScore
from selkit.scores.data import FitData
from selkit.utils.arrays import ArrayLike, as_floating, as_tensor, check_fraction
from selkit.utils.checks import seed as valid_seed


class RandomScore(UncertaintyScore):
    """Uniform random numbers in [0, 1), from a seed.

    It needs no fitting; its calibration scores, drawn by ``fit(Y=...)``, are random numbers too. Each call
    of ``score`` goes on in the sequence.

    Parameters
    ----------
    seed
        Where the sequence starts.

    Examples
    --------
    >>> import torch
    >>> one, two = RandomScore(seed=1), RandomScore(seed=1)
    >>> bool((one.score(torch.zeros(3, 2)) == two.score(torch.zeros(3, 2))).all())
    True
    """

    buffer_names = ("generator_state",)
    requires_fit = False
    generator_state: Tensor | None
    seed: int

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.keep(seed=seed)

    def _check_params(self) -> None:
        valid_seed(self.seed)

    def set_threshold(
        self, q: float = 0.99, *, scores: ArrayLike | None = None, method: str = "linear"
    ) -> Self:
        """As for every score; without calibration scores the threshold is ``q``: that is their quantile."""
        if scores is None and self.calibration_scores is None:
            q = check_fraction(q, "q")
            self._set([q], None, np.array([q]), up=True)
            return self
        return super().set_threshold(q, scores=scores, method=method)

    def _check(self, values: object, name: str) -> Tensor:
        tensor = as_floating(as_tensor(values, name), name)
        if not tensor.ndim or not len(tensor):
            raise InvalidInputError(f"{name} is empty: its shape is {tuple(tensor.shape)}")
        return tensor

    def _fit_data(self, data: FitData, q: float | None) -> None:
        if q is not None:
            raise InvalidInputError("RandomScore keeps no references: q= has no meaning")
        self.generator_state = None
        if data.Y is None:
            data.Y = data.X

    def _settled(self, score: Tensor) -> Tensor:
        """As drawn: no number is the score of a sample."""
        return score

    def _check_width(self, query: Tensor, name: str) -> None:
        """Any width will do."""

    def _fit(self, X: Tensor, y: Tensor | None) -> None:
        """Nothing to learn."""

    def _score(self, query: Tensor) -> Tensor:
        generator = torch.Generator()
        if self.generator_state is None:
            generator.manual_seed(valid_seed(self.seed))
        else:  # part of the state, so that a loaded score goes on where the saved one was
            generator.set_state(self.generator_state.cpu())
        numbers = torch.rand(len(query), generator=generator)
        self.generator_state = generator.get_state()
        return numbers.to(query.device)
