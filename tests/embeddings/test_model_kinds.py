"""Models as other libraries build them: heads named ``logits``, outputs with names, tuples, compiled."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from selkit.embeddings import TorchSource, extract
from selkit.embeddings.batches import rows_of, take_rows, to_device
from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.scores import EnergyScore, EuclideanScore

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(21, 4, generator=DRAW)


class Head(nn.Module):
    """A head of the name, as wide as the input: called with the input it gives other numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.logits = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(torch.relu(self.body(x)))


def test_a_head_named_logits_is_no_method() -> None:
    model = Head()
    expected = model(X).detach()
    assert torch.equal(extract(model, X.split(8), "logits").values, expected)
    assert not torch.equal(model.logits(X), expected)  # what calling the name would give
    score = EnergyScore().fit(model=model, loaders={"val": X.split(8)}).set_threshold(0.5)
    oracle = -torch.log(torch.exp(expected.double()).sum(1))
    found = score.select(model=model, loader=X.split(8))
    torch.testing.assert_close(found["score"].double(), oracle, rtol=1e-5, atol=1e-6)
    assert int(found["selected"].sum()) == 11


def test_a_head_that_the_model_does_not_end_in_is_unclear() -> None:
    class Probabilities(Head):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    class Embeds(Head):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = Probabilities()
    with pytest.raises(
        InvalidInputError, match=r"Probabilities\.logits is a submodule \(Linear\), which runs"
    ):
        TorchSource(model, "logits")(X)
    head = extract(model, [X], "logits", layer="logits").values
    torch.testing.assert_close(head, model.logits(torch.relu(model.body(X))).detach())
    torch.testing.assert_close(extract(model, [X], "logits", layer="").values, head.softmax(1))
    with pytest.raises(InvalidInputError, match="which does not run when the model is called"):
        TorchSource(Embeds(), "logits")(X)


def test_a_submodule_named_embed_is_named_in_the_error() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(x).sum(1)

    model = Tokens()
    with pytest.raises(InvalidInputError, match=r"Tokens\.embed is a submodule \(Linear\).*layer='embed'"):
        extract(model, [X])
    assert torch.equal(extract(model, [X], layer="embed").values, model.embed(X).detach())


def test_a_method_that_takes_features_is_named_in_the_error() -> None:
    class Pretrained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def logits(self, features: Tensor) -> Tensor:
            return self.last(features)

        def forward(self, x: Tensor) -> Tensor:
            return self.logits(self.body(x))

    class Unnamed(Pretrained):
        def logits(self, h: Tensor) -> Tensor:
            return self.last(h)

    class Table(nn.Module):
        def logits(self, features: Tensor) -> Tensor:
            return features * 2

        def forward(self, features: Tensor) -> Tensor:
            return self.logits(features)

    with pytest.raises(InvalidInputError, match=r"Pretrained\.logits\(features\) takes features by the name"):
        extract(Pretrained(), [X], "logits")
    with pytest.raises(InvalidInputError, match=r"Unnamed\.logits\(x\) failed on the model's input.*layer="):
        extract(Unnamed(), [X], "logits")
    assert torch.equal(extract(Table(), [X], "logits").values, X * 2)
    model = Pretrained()
    assert torch.equal(extract(model, [X], "logits", layer="last").values, model(X).detach())


@dataclasses.dataclass
class ModelOutput(collections.OrderedDict):  # as HuggingFace makes it: a dataclass that is a dictionary
    logits: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class Texts(Dataset):
    """Samples with tensors and strings."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> dict[str, Any]:
        mask = torch.ones(4)
        mask[i % 4] = 0
        return {"input_ids": X[i], "attention_mask": mask, "text": f"sample {i}", "labels": i % 3}


def masked() -> Tensor:
    mask = torch.ones(21, 4)
    mask[torch.arange(21), torch.arange(21) % 4] = 0
    return X * mask


class Bert(nn.Module):
    """Takes arguments by name and returns an output with names."""

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
        return ModelOutput(hidden=input_ids * attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> ModelOutput:
        assert labels is None
        hidden = input_ids * attention_mask
        return ModelOutput(logits=hidden * 2, hidden=hidden)


class OwnBatch(Bert):
    """Takes the whole batch, strings and all."""

    def embed(self, batch: Any) -> Tensor:  # type: ignore[override]
        assert len(batch["text"]) == len(batch["input_ids"])
        return batch["input_ids"] * batch["attention_mask"]


@pytest.mark.parametrize("size", [1, 4, 5, 21])
@pytest.mark.parametrize("kind", [Bert, OwnBatch])
def test_dictionaries_with_strings(kind: Any, size: int) -> None:
    loader = DataLoader(Texts(), batch_size=size)
    assert torch.equal(extract(kind(), loader).values, masked())
    assert torch.equal(extract(kind(), loader, "logits").values, masked() * 2)
    found = extract(kind(), loader, labels=True).labels
    assert torch.equal(found, torch.arange(21) % 3)  # type: ignore[arg-type]


def test_a_dictionary_that_fits_in_no_way_says_what_was_tried() -> None:
    class Other(nn.Module):
        def embed(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1)

    with pytest.raises(InvalidInputError, match=r"name it with input_key=.*as a whole: .*flatten"):
        extract(Other(), DataLoader(Texts(), batch_size=4))


def test_structures_keep_their_kind() -> None:
    pair = collections.namedtuple("pair", ["image", "name"])
    batch = pair(X, [str(i) for i in range(21)])
    moved = to_device(batch, torch.device("meta"))
    assert isinstance(moved, pair)
    assert moved.image.device.type == "meta"
    part = take_rows(batch, slice(0, 2))
    assert (len(part.image), part.name) == (2, ["0", "1"])
    output = to_device(ModelOutput(logits=X), torch.device("meta"))
    assert isinstance(output, ModelOutput)
    assert output["logits"].device.type == "meta"
    assert rows_of({"text": ["a", "b"], "n": 3}) == 2
    assert rows_of({"text": ["a", "b"], "x": torch.zeros(5)}) == 5


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm = nn.LSTM(1, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, :, None])[0][:, -1])


def test_a_layer_that_returns_a_tuple_is_taken_apart_by_pool() -> None:
    model = Recurrent()
    found = extract(model, X.split(8), layer="lstm", pool=lambda output: output[0][:, -1]).values
    torch.testing.assert_close(found, model.lstm(X[:, :, None])[0][:, -1].detach())
    state = extract(model, X.split(8), layer="lstm", pool=lambda output: output[1][0][0]).values
    torch.testing.assert_close(state, found)
    with pytest.raises(InvalidTypeError, match=r"gave tuple of Tensor, tuple.*pool= may be a function"):
        extract(model, [X], layer="lstm")
    with pytest.raises(InvalidTypeError, match="pool must give a tensor"):
        extract(model, [X], layer="lstm", pool=lambda output: output)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_place", [False, True])
def test_layers_of_compiled_models_after_their_first_call(in_place: bool) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    expected = model[1](model[0](X)).detach()
    logits = model(X).detach()
    if in_place:
        model.compile(backend="eager")
        compiled: Any = model
    else:
        compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(X)
    torch.testing.assert_close(extract(compiled, [X], layer="1").values, expected)
    torch.testing.assert_close(extract(compiled, [X], "logits").values, logits)
    torch.testing.assert_close(compiled(X), logits)
    part = nn.Sequential(torch.compile(model, backend="eager"), nn.Identity()).eval()
    with torch.no_grad():
        part(X)
    torch.testing.assert_close(extract(part, [X], layer="0.1").values, expected)
    torch.testing.assert_close(extract(part, [X], layer="0").values, logits)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_a_last_batch_of_one_that_was_squeezed(size: int) -> None:
    class Squeezing(nn.Module):
        def embed(self, x: Tensor) -> Tensor:
            return x[:, :, None, None].squeeze()

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1].squeeze()

    assert torch.equal(extract(Squeezing(), X.split(size)).values, X)
    assert torch.equal(extract(Squeezing(), X.split(size), "logits").values, X[:, 0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"want": "embed"}, "want must be one of 'embedding', 'logits'; got 'embed'"),
        ({"layer": 3}, "layer must be the name of a submodule"),
        ({"input_key": 0.5}, "input_key must be a position .int. or a name .str.; got 0.5"),
        ({"target_key": []}, r"target_key must be a position .int. or a name .str.; got \[\]"),
        ({"layer": "0", "pool": 3}, "pool must be 'mean', 'tokens', 'flatten' or a function; got 3"),
        ({"loader": None}, "loader must yield batches"),
        ({"loader": "abc"}, "loader must yield batches"),
        ({"model": None}, "model must be a torch.nn.Module, or an ONNX model"),
        ({"layer": "0", "cache": 3}, "cache must be a path"),
    ],
)
def test_arguments_of_a_wrong_kind(options: dict[str, Any], text: str) -> None:
    given = {"model": nn.Sequential(nn.Linear(4, 3)), "loader": [X], **options}
    with pytest.raises((InvalidInputError, InvalidTypeError), match=text):
        extract(given.pop("model"), given.pop("loader"), **given)


def test_scores_take_all_of_this() -> None:
    model = Recurrent()
    loaders = {"train": X.split(8), "val": X.split(8)}
    pool = lambda output: output[0][:, -1]
    score = EuclideanScore().fit(model=model, loaders=loaders, layer="lstm", pool=pool)
    assert score.extract(model, X[:1]).shape == (1, 3)
