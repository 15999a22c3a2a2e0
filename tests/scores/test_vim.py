from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.scores import UncertaintyScore, ViMScore

RNG = np.random.default_rng(0)
X = np.abs(RNG.normal(size=(150, 10))) @ RNG.normal(size=(10, 10))
QUERY = RNG.normal(size=(20, 10)) * 3
W, B = RNG.normal(size=(4, 10)), RNG.normal(size=4)


def formula(components: int) -> np.ndarray:
    """The authors' few lines of NumPy, from the paper's equations 2 to 6."""
    origin = -np.linalg.pinv(W) @ B
    values, vectors = np.linalg.eigh((X - origin).T @ (X - origin) / len(X))
    outside = vectors[:, np.argsort(-values)[components:]]
    alpha = (X @ W.T + B).max(1).mean() / np.linalg.norm((X - origin) @ outside, axis=1).mean()
    virtual = alpha * np.linalg.norm((QUERY - origin) @ outside, axis=1)
    return virtual - logsumexp(QUERY @ W.T + B, axis=1)


def test_values_are_those_of_the_formula() -> None:
    np.testing.assert_allclose(ViMScore((W, B), 6).fit(X=X).score(QUERY).numpy(), formula(6), rtol=1e-9)
    np.testing.assert_allclose(ViMScore((W, B)).fit(X=X).score(QUERY).numpy(), formula(5), rtol=1e-9)
    layer = torch.nn.Linear(10, 4).double()
    layer.load_state_dict({"weight": torch.tensor(W), "bias": torch.tensor(B)})
    np.testing.assert_allclose(ViMScore(layer, 6).fit(X=X).score(QUERY).numpy(), formula(6), rtol=1e-9)


def test_a_layer_without_bias() -> None:
    layer = torch.nn.Linear(10, 4, bias=False).double()
    expected = ViMScore((layer.weight.detach(), torch.zeros(4)), 6).fit(X=X).score(QUERY)
    assert torch.equal(ViMScore(layer, 6).fit(X=X).score(QUERY), expected)


def test_the_head_is_in_the_file(tmp_path: Path) -> None:
    score = ViMScore((W, B), 6).fit(X=X)
    score.save(tmp_path / "vim.safetensors")
    loaded = UncertaintyScore.load(tmp_path / "vim.safetensors")
    assert torch.equal(loaded.score(QUERY), score.score(QUERY))


@pytest.mark.parametrize(
    ("head", "components", "error", "text"),
    [
        (None, None, InvalidTypeError, "head must be the model's last"),
        ((W[:, :5], B), None, InvalidInputError, "head must map embeddings of width 10"),
        ((W, B[:2]), None, InvalidInputError, "head must map embeddings"),
        ((W, B), 10, InvalidInputError, "leaves nothing outside"),
        ((-np.abs(W) * 0, B * 0 - 1), 5, InvalidInputError, "both must be positive"),
    ],
)
def test_misuse_is_refused(head: object, components: int | None, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ViMScore(head, components).fit(X=X)  # type: ignore[arg-type]
