"""Additive on networks where others are not; equal to shap where shap is right; exact where that can be."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from selkit.explain import Explainer

sys.path.insert(0, str(Path(__file__).parent))
import networks

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images.astype(np.float32) / 8 - 1).unsqueeze(1)
    return images, torch.from_numpy(data.target)


def check_additive(result, model: nn.Module, references: torch.Tensor) -> None:
    """The sums are those of the network itself, run by torch in float64."""
    exact = model.double()
    with torch.no_grad():
        outputs = exact(torch.from_numpy(result.x).double()).numpy()
        base = exact(references.double()).mean(0).numpy()
    model.float()
    rows = np.arange(len(outputs))
    change = outputs[rows, result.target] - base[result.target]
    total = result.attributions.sum(axis=tuple(range(1, result.attributions.ndim)), dtype=np.float64)
    scale = np.maximum(np.abs(change), np.abs(outputs[rows, result.target]))
    assert (np.abs(total - change) <= TOLERANCE * scale).all()


@pytest.mark.parametrize("dynamo", [False, True], ids=["old exporter", "new exporter"])
@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_attributions_add_up(name, trained, dynamo, digits):
    x, y = digits
    model = networks.NETWORKS[name]()
    networks.train(model, x, y, 40 if trained else 3)
    references = x[100:107]
    content = networks.export(model, x[:1], dynamo=dynamo, dynamic=dynamo and name == "relu_pool")
    for cache in (True, False):
        explainer = Explainer(content, references, cache=cache, threads=1)
        check_additive(explainer.explain(x[:3]), model, references)


def test_the_check_fails_for_a_wrong_sum(digits):
    x, _ = digits
    model = networks.NETWORKS["relu_pool"]().eval()
    result = Explainer(networks.export(model, x[:1], dynamo=False), x[5:8], threads=1).explain(x[:2])
    check_additive(result, model, x[5:8])
    result.attributions[0, 0, 3, 3] += 0.01
    with pytest.raises(AssertionError):
        check_additive(result, model, x[5:8])


@pytest.mark.parametrize("name", ["relu_pool", "functional_once", "softplus"])
def test_equal_to_shap_where_shap_is_right(name, digits):
    shap = pytest.importorskip("shap")
    x, y = digits
    act = {"relu_pool": nn.ReLU, "functional_once": nn.ReLU, "softplus": nn.Softplus}[name]
    pool = [nn.MaxPool2d(2)] if name == "relu_pool" else [nn.AvgPool2d(2)]
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        act(),
        *pool,
        nn.Conv2d(6, 8, 3),
        act(),
        nn.Flatten(),
        nn.Linear(32, 16),
        act(),
        nn.Linear(16, 10),
    )
    networks.train(model, x, y, 40)
    references = x[100:105]
    ours = Explainer(networks.export(model, x[:1], dynamo=False), references, target=3, threads=1).explain(
        x[:4]
    )
    deep = shap.DeepExplainer(model.double(), references.double())
    theirs = deep.shap_values(x[:4].double(), check_additivity=False)[..., 3]
    largest = np.abs(theirs).max()
    np.testing.assert_allclose(ours.attributions, theirs, atol=2e-5 * largest, rtol=1e-4)


def shapley(f, x: np.ndarray, references: np.ndarray) -> np.ndarray:
    """By enumeration of all subsets, for one output."""
    n = len(x)
    value = {}
    for size in range(n + 1):
        for subset in itertools.combinations(range(n), size):
            mixed = references.copy()
            mixed[:, list(subset)] = x[list(subset)]
            value[frozenset(subset)] = f(mixed).mean()
    phi = np.zeros(n)
    for subset, v in value.items():
        for i in range(n):
            if i in subset:
                weight = math.factorial(len(subset) - 1) * math.factorial(n - len(subset)) / math.factorial(n)
                phi[i] += weight * (v - value[subset - {i}])
    return phi


def small(act: type[nn.Module] | None) -> nn.Module:
    torch.manual_seed(1)
    middle = [act(), nn.Linear(12, 8), act()] if act is not None else [nn.Linear(12, 8)]
    return nn.Sequential(nn.Linear(7, 12), *middle, nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("act", [None, nn.ReLU, nn.Tanh, nn.SiLU])
def test_close_to_exact_shapley_values_and_exact_for_linear_ones(act):
    model = small(act)
    rng = np.random.default_rng(0)
    x, references = rng.standard_normal((4, 7)), rng.standard_normal((6, 7))
    content = networks.export(model, torch.zeros(1, 7), dynamo=False)
    ours = Explainer(content, references.astype(np.float32), target=1, threads=1).explain(
        x.astype(np.float32)
    )
    exact_model = model.double()

    def f(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return exact_model(torch.from_numpy(rows))[:, 1].numpy()

    exact = np.stack([shapley(f, row, references) for row in x])
    if act is None:
        np.testing.assert_allclose(ours.attributions, exact, atol=1e-5)
    else:
        assert np.corrcoef(ours.attributions.ravel(), exact.ravel())[0, 1] > 0.97
        gradient = torch.autograd.functional.jacobian(
            lambda v: exact_model(v)[:, 1].sum(), torch.from_numpy(x)
        ).numpy() * (x - references.mean(0))
        closer = np.abs(ours.attributions - exact).mean() < np.abs(gradient - exact).mean()
        assert closer, "no closer than gradient times difference"


def test_a_product_of_two_inputs_is_shared_as_shapley_says():
    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x[:, :1] * x[:, 1:2]) / (x[:, 2:].square().sum(1, keepdim=True) + 1)

    content = networks.export(Product(), torch.ones(1, 3), dynamo=False)
    x, reference = np.array([[2.0, 3.0, 0.0]], np.float32), np.array([[1.0, -1.0, 0.0]], np.float32)
    found = Explainer(content, reference, target=0, threads=1).explain(x).attributions[0]
    exact = shapley(
        lambda v: v[:, 0] * v[:, 1] / (v[:, 2] ** 2 + 1), x[0].astype(float), reference.astype(float)
    )
    np.testing.assert_allclose(found, exact, atol=1e-5)


@pytest.mark.parametrize("name", ["overlapping_pool", "squeeze_excite", "attention", "encoder_layer"])
def test_a_sample_is_explained_as_if_it_were_alone(name, digits):
    x, _ = digits
    model = networks.NETWORKS[name]().eval()
    explainer = Explainer(networks.export(model, x[:1], dynamo=False), x[50:55], threads=1)
    together = explainer.explain(x[:5])
    backwards = explainer.explain(x[:5].flip(0))
    np.testing.assert_array_equal(together.attributions, backwards.attributions[::-1])
    for row in range(5):
        np.testing.assert_array_equal(
            explainer.explain(x[row : row + 1]).attributions[0], together.attributions[row]
        )


def test_ties_and_equal_inputs_do_no_harm(digits):
    x, _ = digits
    model = networks.NETWORKS["overlapping_pool"]().eval()
    flat = torch.zeros_like(x[:2])  # every window is a tie
    references = torch.cat([flat[:1], x[:2]])
    explainer = Explainer(networks.export(model, x[:1], dynamo=False), references, threads=1)
    for batch in (flat, x[:2]):
        result = explainer.explain(batch)
        assert np.isfinite(result.attributions).all()
        check_additive(result, model, references)
    same = Explainer(networks.export(model, x[:1], dynamo=False), x[:1], threads=1).explain(x[:1])
    np.testing.assert_array_equal(same.attributions, 0)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e10])
def test_additive_whatever_the_size_of_activations_is(size):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    with torch.no_grad():
        for layer in model[::2]:
            layer.bias.mul_(size)
    factors = torch.tensor([1e-6, 1.0, 0.0, 1e2, 1.0, 1.0, 1.0])[:, None]  # the first is small
    references = torch.randn((7, 6), generator=generator) * factors * size
    x = torch.randn((4, 6), generator=generator) * torch.tensor([1.0, 1e-6, 1e6, 0.0])[:, None] * size
    content = networks.export(model, x[:1], dynamo=False)
    for chunk in (1, 7):
        result = Explainer(content, references, chunk=chunk, threads=1).explain(x)
        scale = np.abs(result.attributions).sum(-1) + np.abs(result.output)
        assert (np.abs(result.additivity_error) <= 1e-5 * scale).all()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_weights_and_storing_change_nothing_but_rounding(chunk, digits):
    x, _ = digits
    model = networks.NETWORKS["functional"]().eval()
    content = networks.export(model, x[:1], dynamo=False)
    references = x[20:27]
    plain = Explainer(content, references, chunk=1, cache=True, threads=1).explain(x[:2])
    weights = np.array([1.0, 2, 1, 1, 1, 1, 1])
    repeated = torch.cat([references, references[1:2]])
    for cache in (True, False):
        found = Explainer(content, references, chunk=chunk, cache=cache, threads=1).explain(x[:2])
        np.testing.assert_allclose(found.attributions, plain.attributions, atol=1e-6)
        weighted = Explainer(content, references, chunk=chunk, cache=cache, weights=weights, threads=1)
        twice = Explainer(content, repeated, chunk=chunk, cache=cache, threads=1)
        np.testing.assert_allclose(
            weighted.explain(x[:2]).attributions, twice.explain(x[:2]).attributions, atol=1e-6
        )
