from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from selkit.embeddings import input_of, target_of
from selkit.embeddings.batches import rows_of, take_rows, to_device
from selkit.errors import InvalidInputError

X, Y = torch.zeros(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    ("batch", "key"),
    [
        (X, None),
        ((X, Y), None),
        ([X, Y], None),
        ([Y, X], 1),
        ({"image": X, "label": Y}, None),
        ({"x": X, "y": Y}, None),
        ({"features": X}, None),
        ({"features": X, "label": Y}, "features"),
    ],
)
def test_the_input_of_a_batch(batch: Any, key: Any) -> None:
    assert input_of(batch, key) is X


@pytest.mark.parametrize(
    ("batch", "key"),
    [((X, Y), None), ((X, X, Y), 2), ({"image": X, "label": Y}, None), ({"image": X, "mask": Y}, "mask")],
)
def test_the_target_of_a_batch(batch: Any, key: Any) -> None:
    assert target_of(batch, key) is Y


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (lambda: input_of({"a": X, "b": Y}), "its keys are .* and none of .*; name it with input_key="),
        (lambda: input_of({"image": X, "x": Y}), "more than one of them fits"),
        (lambda: input_of({"image": X}, "pixels"), "input_key='pixels' is not in the batch; it has"),
        (lambda: input_of((X, Y), 2), "input_key=2 is not in the batch; it has positions 0 to 1"),
        (lambda: input_of(X, 0), "input_key=0 was given, but the batch is a Tensor"),
        (lambda: target_of(X), "labels are needed, but the loader yields a Tensor"),
        (lambda: target_of((X,)), "without a second entry"),
        (lambda: target_of({"image": X}), "target_key="),
    ],
)
def test_unclear_batches_are_refused(use: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        use()


def test_nested_structures() -> None:
    nested = {"a": [X, {"b": Y}], "n": 3, "s": "text"}
    assert rows_of(nested) == 4
    assert rows_of("text") is None
    assert rows_of(torch.tensor(1)) is None
    part = take_rows(nested, slice(0, 2))
    assert rows_of(part) == 2
    assert len(part["a"][1]["b"]) == 2
    assert part["s"] == "text"
    moved = to_device({"a": (np.zeros((2, 2)), X)}, torch.device("meta"))
    assert all(value.device.type == "meta" for value in moved["a"])
