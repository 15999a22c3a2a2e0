from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from selkit.embeddings import Ensemble, MonteCarloDropout, TorchSource, extract, source_of
from selkit.embeddings.sources import pooled
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.scores import EntropyScore, EuclideanScore, MutualInformationScore

X, Y = torch.randn(21, 6), torch.arange(21) % 3


class Net(nn.Module):
    """With embed and logits, dropout and batch norm, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.head = nn.Linear(5, 3)

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).softmax(1)


class Whole(Net):
    """Whose embed unpacks the batch."""

    def embed(self, x: Any) -> Tensor:
        return self.body(x["image"] if isinstance(x, dict) else x[0])


def loader(kind: str, size: int = 8) -> Any:
    tuples = DataLoader(TensorDataset(X, Y), batch_size=size)
    return {
        "tensor": [x for x, _ in tuples],
        "tuple": tuples,
        "dict": [{"image": x, "label": y} for x, y in tuples],
        "array": [(x.numpy(), y.numpy()) for x, y in tuples],
    }[kind]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "array"])
def test_embeddings_and_logits_of_every_kind_of_loader(kind: str) -> None:
    model = Net()
    model.body[2].eval()  # a mode of its own, to be found again
    found = extract(model, loader(kind), labels=kind != "tensor")
    logits = extract(model, loader(kind), "logits")
    assert model.training
    assert [m.training for m in model.body] == [True, True, False]
    model.eval()
    torch.testing.assert_close(found.values, model.embed(X))
    torch.testing.assert_close(logits.values, model.logits(X))
    assert not found.values.requires_grad
    assert found.labels is None if kind == "tensor" else torch.equal(found.labels, Y)  # type: ignore[arg-type]


def test_without_logits_the_output_is_taken() -> None:
    model = nn.Linear(6, 3)
    torch.testing.assert_close(extract(model, loader("tuple"), "logits").values, model(X))


@pytest.mark.parametrize("kind", ["tuple", "dict"])
@pytest.mark.parametrize("size", [1, 5, 6, 7, 21])
def test_a_model_that_unpacks_the_batch_is_recognized(kind: str, size: int) -> None:
    model = Whole()
    found = extract(model, loader(kind, size)).values
    torch.testing.assert_close(found, model.eval().body(X))


class FirstRow(nn.Module):
    """Like the documentation's example: an embedding for each entry of x[0], whatever x is."""

    def embed(self, x: Any) -> Tensor:
        return torch.ones(x[0].shape[0], 2)


@pytest.mark.parametrize("size", [5, 6, 7])
def test_a_wrong_reading_is_not_taken_where_the_numbers_of_rows_agree_by_chance(size: int) -> None:
    # X has 6 columns: x[0] of a batch of 6 samples has 6 entries
    assert extract(FirstRow(), loader("tuple", size)).values.shape == (21, 2)


def test_input_key_decides_without_trying() -> None:
    batches = [{"a": X, "b": X + 1, "label": Y}]
    model = Net().eval()
    torch.testing.assert_close(extract(model, batches, input_key="b").values, model.embed(X + 1))
    with pytest.raises(InvalidInputError, match="input_key="):
        extract(model, batches)


def test_a_model_that_fails_either_way_says_why() -> None:
    with pytest.raises(
        InvalidInputError, match=r"neither for the batch's input .*cannot be multiplied"
    ) as caught:
        extract(Net(), [(X[:, :4], Y)])
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        extract(Net(), [X[:, :4]])
    with pytest.raises(InvalidInputError, match=r"features of shape \(1, 2\) for 21 samples"):
        extract(FirstRow(), [X[:, :1]])


@pytest.mark.parametrize(
    ("features", "pool", "expected"),
    [
        ((4, 3), None, lambda f: f),
        ((4, 3, 5, 6), None, lambda f: f.mean((2, 3))),
        ((4, 3, 5, 6, 2), "mean", lambda f: f.mean((2, 3, 4))),
        ((4, 3, 5), "mean", lambda f: f.mean(2)),
        ((4, 7, 5), "tokens", lambda f: f.mean(1)),
        ((4, 3, 5), "flatten", lambda f: f.reshape(4, 15)),
        ((4, 7, 5), lambda f: f[:, 0], lambda f: f[:, 0]),
    ],
)
def test_pooling(features: tuple[int, ...], pool: Any, expected: Any) -> None:
    values = torch.randn(features)
    torch.testing.assert_close(pooled(values, pool), expected(values))


@pytest.mark.parametrize(
    ("shape", "pool", "text"),
    [
        ((4, 3, 5), None, "may be tokens or channels"),
        ((4, 3, 5), "max", "pool must be"),
        ((4,), None, r"must have shape \(samples, features\); the model gave \(4,\)"),
    ],
)
def test_unclear_pooling_is_refused(shape: tuple[int, ...], pool: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        pooled(torch.zeros(shape), pool)


def test_layers_by_a_hook_that_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    images = torch.randn(5, 1, 6, 6)
    before = set(model.state_dict())
    found = extract(model, [images], layer="1").values
    torch.testing.assert_close(found, model[1](model[0](images)).mean((2, 3)))
    assert set(model.state_dict()) == before
    assert not model[1]._forward_hooks
    torch.testing.assert_close(
        extract(model, [images], layer="0", pool="flatten").values, model[0](images).flatten(1)
    )


def test_layers_that_cannot_be_taken() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    with pytest.raises(InvalidInputError, match=r"no layer 'inne'; near it are \['inner'\]"):
        TorchSource(Twice(), layer="inne")
    with pytest.raises(InvalidInputError, match="ran 2 times"):
        extract(Twice(), [X], layer="inner")
    with pytest.raises(InvalidInputError, match=r"Twice has no embed\(x\) method; .* layer='encoder.layer4'"):
        extract(Twice(), [X])
    with pytest.raises(InvalidTypeError, match=r"model must be a torch.nn.Module, or an ONNX model"):
        source_of(object())

    class Tuples(nn.Module):
        def embed(self, x: Tensor) -> Any:
            return x, x

    with pytest.raises(InvalidTypeError, match="gave tuple of Tensor, Tensor where an embedding is expected"):
        extract(Tuples(), [X])


def test_an_empty_loader_is_refused() -> None:
    for kind in ("embedding", "logits"):
        with pytest.raises(InvalidInputError, match="the loader is empty"):
            extract(Net(), [], kind)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="the loader is empty"):
        EuclideanScore().fit(model=Net(), loaders={"train": loader("tuple"), "val": []})


def test_scores_with_loaders_equal_scores_with_tensors() -> None:
    model = Net()
    score = EuclideanScore(k=2).fit(model=model, loaders={"train": loader("tuple"), "val": loader("dict")})
    features = extract(model, loader("tuple")).values
    expected = EuclideanScore(k=2).fit(X=features, Y=features).set_threshold(0.6)
    score.set_threshold(0.6)
    assert torch.equal(score.threshold, expected.threshold)  # type: ignore[arg-type]
    chosen = score.select(model=model, loader=loader("tuple"))
    assert torch.equal(chosen["score"], expected.score(features))
    assert model.training
    assert torch.equal(score.extract(model, X), model.eval().embed(X))
    labels = (model.logits(X).argmax(1) + (torch.arange(21) % 5 == 0)) % 3
    entropy = EntropyScore("fit").fit(model=model, loaders={"train": loader("tuple")}, labels=labels)
    with_own = [(x, y) for (x, _), y in zip(loader("tuple"), labels.split(8), strict=True)]
    assert EntropyScore("fit").fit(model=model, loaders={"train": with_own}).T == entropy.T
    found = entropy.score(model=model, loader=loader("tuple"))
    torch.testing.assert_close(found, entropy.score(model.logits(X)))


def test_members_of_an_ensemble_and_of_dropout() -> None:
    models = [Net().eval() for _ in range(3)]
    together = Ensemble(models)
    torch.testing.assert_close(together.logits(X), torch.stack([m.logits(X) for m in models], -1))
    torch.testing.assert_close(together(X), torch.stack([m(X) for m in models]).mean(0))
    draws = MonteCarloDropout(models[0], members=50, seed=1)
    one = extract(draws, loader("tuple"), "logits").values
    assert one.shape == (21, 3, 50)
    before = torch.random.get_rng_state()
    draws.logits(X)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(extract(draws, loader("tuple"), "logits").values, one)
    assert one.std(-1).min() > 0.01
    assert not models[0].body[2].training
    assert (MutualInformationScore().fit(model=draws, loaders={"val": loader("tuple")}).score(one) > 0).all()
    torch.testing.assert_close(draws(X).sum(1), torch.ones(21))
    with pytest.raises(InvalidInputError, match="Linear has no dropout layer"):
        MonteCarloDropout(nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="at least 2 members"):
        Ensemble(models[:1])
    with pytest.raises(InvalidInputError, match="members must be a whole number of at least 2"):
        MonteCarloDropout(models[0], members=1)
