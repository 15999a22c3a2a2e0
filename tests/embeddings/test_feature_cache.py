from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selkit.embeddings import extract
from selkit.errors import InvalidTypeError
from selkit.scores import EuclideanScore

X, Y = torch.randn(12, 3), torch.arange(12)


class Counting(nn.Module):
    """Counts how often it really runs."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.scale = scale
        self.ran: list[int] = []

    def embed(self, x: Tensor) -> Tensor:
        self.ran.append(len(x))
        return self.inner(x) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def batches(data: Tensor = X) -> list[Any]:
    return [(part, Y[:4]) for part in torch.split(data, 4)]


def run(model: Counting, cache: Path, data: Tensor = X, **options: Any) -> tuple[Tensor, int]:
    before = len(model.ran)
    found = extract(model, batches(data), cache=cache, input_key=0, **options).values
    return found, len(model.ran) - before


def test_what_is_cached_is_not_run_again(tmp_path: Path) -> None:
    model = Counting()
    first, ran = run(model, tmp_path / "cache")
    again, none = run(model, tmp_path / "cache")
    assert (ran, none) == (3, 0)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, model.embed(X))


@pytest.mark.parametrize(
    "change",
    [
        lambda model, data: (model.inner.weight.data.add_(1e-6), data)[1],
        lambda model, data: (setattr(model, "scale", 3.0), data)[1],
        lambda model, data: data + 1e-6,
        lambda model, data: data.flip(0),
        lambda model, data: data.double().float() * 1.0001,
    ],
)
def test_what_changed_is_never_read(change: Any, tmp_path: Path) -> None:
    model = Counting()
    run(model, tmp_path)
    data = change(model, X)
    found, ran = run(model, tmp_path, data)
    assert ran == 3
    torch.testing.assert_close(found, model.embed(data))


def test_only_the_changed_batch_runs_and_other_wishes_have_other_files(tmp_path: Path) -> None:
    model = Counting()
    run(model, tmp_path)
    data = X.clone()
    data[5] += 1
    assert run(model, tmp_path, data)[1] == 1
    assert torch.equal(extract(model, batches(), layer="inner", cache=tmp_path).values, model.inner(X))


def test_another_class_with_the_same_weights_is_another_model(tmp_path: Path) -> None:
    class Negated(Counting):
        def embed(self, x: Tensor) -> Tensor:
            return -super().embed(x)

    model = Counting()
    other = Negated()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(other, tmp_path)[0], -run(model, tmp_path)[0])


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    model = Counting()
    expected, _ = run(model, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".safetensors"] * 3
    files[0].write_bytes(b"damaged")
    files[1].write_bytes(files[1].read_bytes()[:20])
    found, ran = run(model, tmp_path)
    assert ran == 2
    assert torch.equal(found, expected)
    assert run(model, tmp_path)[1] == 0


def test_scores_use_it(tmp_path: Path) -> None:
    model = Counting()
    loaders = {"train": batches(), "val": batches(X + 1)}
    score = EuclideanScore().fit(model=model, loaders=loaders, cache=tmp_path, input_key=0)
    ran = len(model.ran)
    again = EuclideanScore().fit(model=model, loaders=loaders, cache=tmp_path, input_key=0)
    assert len(model.ran) == ran
    assert torch.equal(again.calibration_scores, score.calibration_scores)  # type: ignore[arg-type]


def test_batches_of_all_kinds_and_what_has_no_content(tmp_path: Path) -> None:
    model = Counting()
    for batch in ({"image": X, "id": ["a", 1, None, 2.5]}, (X, np.arange(12)), [X, {"n": [Y]}]):
        key = "image" if isinstance(batch, dict) else 0
        first = extract(model, [batch], cache=tmp_path, input_key=key).values
        assert torch.equal(extract(model, [batch], cache=tmp_path, input_key=key).values, first)
    with pytest.raises(InvalidTypeError, match="a cache cannot tell what a object in a batch holds"):
        extract(model, [(X, object())], cache=tmp_path, input_key=0)
    with pytest.raises(InvalidTypeError, match="a cache cannot tell what a function does"):
        extract(model, [X], cache=tmp_path, pool=torch.relu)
