"""What users hand in as numbers: nothing is rounded, unmasked or guessed on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.metrics import aurc
from selkit.scores import EnergyScore, EuclideanScore
from selkit.utils.arrays import as_floating, as_matrix, as_tensor, as_vector


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_integers_that_float32_rounds_are_refused(dtype: Any) -> None:
    fine = as_floating(torch.from_numpy(np.array([2**24, 3], dtype=dtype)), "x")
    assert fine.tolist() == [2**24, 3]
    for large in (2**24 + 1, np.iinfo(dtype).max):
        with pytest.raises(InvalidTypeError, match=r"x holds integers above 2..24"):
            as_floating(torch.from_numpy(np.array([1, large], dtype=dtype)), "x")
        with pytest.raises(InvalidTypeError, match="above"):
            EuclideanScore().fit(X=np.array([[1], [large]], dtype=dtype))


def test_the_smallest_integer_has_no_absolute_value() -> None:
    with pytest.raises(InvalidTypeError, match="above"):
        as_floating(torch.tensor([-(2**63)]), "x")


def test_masked_entries_are_refused_and_unmasked_arrays_taken() -> None:
    masked = np.ma.array([0.0, 1e6, 0.0], mask=[0, 1, 0])
    for call in (
        lambda: aurc([0.1, 0.2, 0.3], masked),  # type: ignore[arg-type]
        lambda: as_vector(masked, "loss"),
        lambda: EuclideanScore().fit(X=masked[:, None]),
        lambda: EnergyScore(task="binary").score(masked),
    ):
        with pytest.raises(InvalidInputError, match="masked array with 1 masked entries"):
            call()
    whole = np.ma.array([0.0, 1.0, 0.0], mask=False)
    assert as_tensor(whole, "x").tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("value", [object(), [1, "a"], [[1], [1, 2]], [10**400], lambda: 1, 3 + 1j, {1, 2}])
def test_what_is_no_array_is_refused_in_words(value: Any) -> None:
    with pytest.raises((InvalidInputError, InvalidTypeError), match="x must"):
        as_matrix(value, "x")
